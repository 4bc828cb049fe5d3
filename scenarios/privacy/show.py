"""What a record of kind "privacy" says: pictures, its main table, a few sentences, and the rows that are kept in kept/expected."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from apps.privacy.figures import roc_curves
from distill.comparison import row_label
from distill.condensed import CondensedSet
from distill.drawing import Drawing
from distill.errors import InputError
from distill.evaluation import Accuracy
from distill.figures import accuracy_bars, image_grid
from distill.records import read_json
from scenarios.engine.public_part import FOLDER, place
from scenarios.privacy.attack import cell
from scenarios.privacy.schema import MEASURES
from scenarios.reporting.report import shown

MAX_CURVES = 8


def draw(folder: Path, record: dict[str, Any]) -> Iterator[tuple[str, Drawing]]:
    """Images and accuracies of each budget, poisoned sets, log-log curves of the attacks. Closest pairs are drawn with the data."""
    results = record["results"]
    for key, part in results.items():
        if key.startswith("epsilon"):
            tiny = CondensedSet.load(place(folder, Path(FOLDER, f"condensed-{key}.safetensors")))
            yield f"images-{key}", image_grid(tiny, f"Images of the private set at epsilon {key[7:]}")
            rows = {row_label(name, row): Accuracy.read(row) for name, row in part["accuracy"].items()}
            yield f"accuracy-{key}", accuracy_bars(rows, f"{record['title']}, epsilon {key[7:]}")
    for path in sorted((folder / "poisoning").glob("*.safetensors")):
        if not path.name.startswith("trigger-"):
            yield f"poisoned-{path.stem}", image_grid(CondensedSet.load(path), f"Images of the set made from {path.stem} poisoned data")
    curves = {}
    for arm in list(results.get("attack", {}))[:MAX_CURVES]:
        with np.load(folder / "attack" / f"{arm.replace(' ', '-')}-0.npz") as saved:
            curves[arm] = (saved["in_scores"], saved["out_scores"])
    if curves:
        yield "roc", roc_curves(curves)


def accuracy_table(record: dict[str, Any]) -> list[list[str]]:
    """One row a set and one column a budget; without sets, one row an attacked arm; without those, one row a poisoned or compared set."""
    results = record["results"]
    columns = {f"epsilon {key[7:]}": part["accuracy"] for key, part in results.items() if key.startswith("epsilon") and "accuracy" in part}
    if columns:
        columns = {budget: {row_label(name, row): row for name, row in rows.items()} for budget, rows in columns.items()}
        names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
        return [["set", *columns], *([name, *(shown(rows[name]) if name in rows else "" for rows in columns.values())] for name in names)]
    if "attack" in results:
        header = ["attacked", "accuracy, %", "advantage, %", "AUC", "TPR at 1 % FPR", "LiRA: TPR at 1 % FPR"]
        return [header, *([arm, *_attack_cells(row)] for arm, row in results["attack"].items())]
    if "poisoning" in results:
        rows = [[name, *(shown(row[key]) for key in ("accuracy", "naive", "optimised"))] for name, row in results["poisoning"].items()]
        return [["learned from", "clean accuracy, %", "naive trigger obeyed, %", "optimised trigger obeyed, %"], *rows]
    if "visual" in results:
        rows = [[name, *(cell(row["share_outstanding"], 2) for row in found.values())] for name, found in results["visual"].items()]
        return [["nearest training image stands out", *next(iter(results["visual"].values()))], *rows]
    return []


def _attack_cells(row: dict[str, Any]) -> list[str]:
    figures = (("accuracy", 1), ("advantage_percent", 2), ("auc", 3), ("tpr_at_1_percent", 4))
    return [*(cell(row[name], digits) for name, digits in figures), cell(row.get("lira", {}).get("tpr_at_1_percent"), 4)]


def answer(record: dict[str, Any]) -> str:
    """What was guaranteed, what was found."""
    results, parts = record["results"], []
    for key, part in results.items():
        if key.startswith("epsilon") and "accuracy" in part:
            rows = part["accuracy"]
            first = next(iter(rows))
            others = ", ".join(f"{row_label(name, row)} {shown(row)}" for name, row in rows.items() if name != first)
            beside = f" ({others})" if others else ""
            parts.append(f"{first} at epsilon {key[7:]} trains a network to {shown(rows[first])} %{beside}. {part['guarantee']}")
    budgets = [key for key, part in results.items() if key.startswith("epsilon") and "guarantee" in part]
    if len(budgets) > 1 and results.get("public"):
        parts.append(f"All sets and releases of the {len(budgets)} budgets together: {results['public']['guarantee']}")
    found = results.get("audit")
    if found:
        highest = max(found["gaussian_bound"], found["rates_bound"], found["one_run_bound"], found["size_bound"])
        verdict = "contradict the account" if not found["holds"] else "do not contradict it, which proves nothing more"
        parts.append(f"The account says epsilon {found['claimed_epsilon']:.2f}, canaries find at least {highest:.2f}: they {verdict}.")
    if results.get("attack"):
        said = ", ".join(f"{arm} {cell(row['advantage_percent'], 2)} %" for arm, row in results["attack"].items())
        parts.append(f"Loss-based membership advantage: {said}; an advantage near 0 is no proof of privacy.")
    for arm, row in results.get("same_accuracy", {}).items():
        parts.append(
            f"{arm} compared with {row['rival']}, the baseline that is the nearest in accuracy ({row['accuracy_difference']:+.1f} points): "
            f"advantage {cell(row['advantage_percent_difference'], 2)} points more, "
            f"TPR at 1 % FPR {cell(row['tpr_at_1_percent_difference'], 4)} more."
        )
    if results.get("visual"):
        copied = {name: [measure for measure, row in rows.items() if row["copied"]] for name, rows in results["visual"].items()}
        said = "; ".join(f"{name} in {' and '.join(measures) or 'none'}" for name, measures in copied.items())
        parts.append(f"Distances in which a set looks copied from its training images: {said}; none is no proof of privacy.")
    if results.get("poisoning"):
        said = ", ".join(
            f"{name} {shown(row['naive'])} % naive and {shown(row['optimised'])} % optimised" for name, row in results["poisoning"].items()
        )
        parts.append(f"Images of other classes with the trigger that are called the target: {said}.")
    return " ".join(parts) or f"Nothing was found. Status: {record['status']}."


# What is kept

FIGURES = {  # column: (key in a row of the record, digits)
    "accuracy": ("accuracy", 2),
    "advantage_percent": ("advantage_percent", 3),
    "auc": ("auc", 4),
    "tpr_at_1_percent_fpr": ("tpr_at_1_percent", 4),
    "tpr_at_01_percent_fpr": ("tpr_at_01_percent", 4),
    "lira_auc": ("lira.auc", 4),
    "lira_tpr_at_1_percent_fpr": ("lira.tpr_at_1_percent", 4),
    "nearest_auc": ("nearest.auc", 4),
    "advantage_more_than_rival": ("advantage_percent_difference", 3),
    "tpr_at_1_percent_fpr_more_than_rival": ("tpr_at_1_percent_difference", 4),
    **{f"closer_in_{name}": (f"{name}.share_closer", 3) for name in MEASURES},
    **{f"outstanding_in_{name}": (f"{name}.share_outstanding", 3) for name in MEASURES},
    "naive_trigger_percent": ("naive", 2),
    "optimised_trigger_percent": ("optimised", 2),
}


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """A finished run's sets, attacked arms and checks as rows of one table, all with the same columns; only columns that some row has."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    if record["status"] != "done":
        raise InputError(f"{folder}: status is {record['status']!r}; only a finished run can be kept.")
    results, method = record["results"], config["method"]
    rows: list[dict[str, Any]] = []
    for key, part in results.items():
        if key.startswith("epsilon"):
            stated = part["privacy"]
            for name, found in part["accuracy"].items():
                row: dict[str, Any] = {"part": "sets", "set": name, "budget": key[7:], "accuracy": found, "ipc": method["ipc"]}
                if name == f"private {method['name']}":
                    row |= {name: stated[name] for name in ("releases", "accountant")}
                    row |= {"epsilon": f"{stated['epsilon']:.4f}", "delta": f"{stated['delta']:g}"}
                    row["distil_seconds"] = f"{part['distil_seconds']:.0f}"
                rows.append(row)
    if "audit" in results:
        found = results["audit"]
        bounds = {f"{name}_bound": f"{found[f'{name}_bound']:.4f}" for name in ("gaussian", "rates", "one_run", "size")}
        rows.append({"part": "audit", "set": "canaries", "epsilon": f"{found['claimed_epsilon']:.4f}", **bounds})
    for name, found in results.get("attack", {}).items():
        same = results["same_accuracy"].get(name, {})
        rows.append({"part": "attack", "set": name, "ipc": found["images_a_class"], "runs": found["runs"], **found, **same})
    for name, found in results.get("visual", {}).items():
        chance = f"{next(iter(found.values()))['chance']:.3f}"
        rows.append({"part": "visual", "set": name, "ipc": method["ipc"], "chance_of_closer": chance, **found})
    for name, found in results.get("poisoning", {}).items():
        rows.append({"part": "poisoning", "set": name, "ipc": method["ipc"], **found})
    environment, evaluation = record["environment"], config["evaluation"]
    shared = {"scenario": record["scenario"], "dataset": config["data"]["name"], "method": method["name"]}
    network = {"network": evaluation["networks"][0], "split": evaluation["split"]}
    end = {
        "device": environment["gpu"] or f"{environment['cores']} cores, {environment['processor']}",
        "run_seconds": str(round(record["seconds"])),
    }
    flat = [{**shared, **_flat(row), **network, **end} for row in rows]
    used = [column for column in flat[0] if any(row[column] for row in flat)] if flat else []
    return [{column: row[column] for column in used} for row in flat]


def _flat(row: dict[str, Any]) -> dict[str, str]:
    plain = (
        "part",
        "set",
        "ipc",
        "budget",
        "epsilon",
        "delta",
        "releases",
        "accountant",
        "runs",
        "rival",
        "distil_seconds",
        "chance_of_closer",
    )
    bounds = ("gaussian_bound", "rates_bound", "one_run_bound", "size_bound")
    found = {name: "" if row.get(name) is None else str(row[name]) for name in (*plain, *bounds)}
    for column, (path, digits) in FIGURES.items():
        value: Any = row
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        for field, names in (("mean", ("mean", "value")), ("low", ("low",)), ("high", ("high",))):
            number = next((value[name] for name in names if value.get(name) is not None), None) if isinstance(value, dict) else None
            found[f"{column}_{field}"] = "" if number is None else f"{number:.{digits}f}"
    return found


PAGE = {  # part: (words, columns of its table)
    "sets": ("Accuracy of networks that learned from each set", ("set", "budget", "epsilon", "releases", "accuracy")),
    "audit": ("Lower bounds of epsilon by canaries", ("epsilon", "gaussian_bound", "rates_bound", "one_run_bound", "size_bound")),
    "attack": (
        "What membership inference finds",
        ("set", "ipc", "accuracy", "advantage_percent", "tpr_at_1_percent_fpr", "lira_tpr_at_1_percent_fpr", "rival"),
    ),
    "visual": (
        "How often training images are nearer than others (beside chance) and stand out more than others (chance 0.5)",
        ("set", "chance_of_closer", *(f"{what}_in_{name}" for name in MEASURES for what in ("closer", "outstanding"))),
    ),
    "poisoning": (
        "Images of other classes that obey a planted trigger",
        ("set", "accuracy", "naive_trigger_percent", "optimised_trigger_percent"),
    ),
}


def page_text(rows: dict[str, list[dict[str, str]]], place: Path) -> str:
    """Markdown of the kept runs: one table for each part of a study."""
    parts = []
    for name, kept in rows.items():
        for part, (words, columns) in PAGE.items():
            mine = [row for row in kept if row["part"] == part]
            used = [c for c in columns if any(row.get(c) or row.get(f"{c}_mean") for row in mine)]
            if mine:
                heads = [HEADS.get(c, c).replace("_", " ").replace("fpr", "FPR").replace("tpr", "TPR") for c in used]
                lines = [heads, ["---"] * len(used)]
                lines += [[_spread(row, column) for column in used] for row in mine]
                table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
                parts.append(f"`{name}` ({mine[0]['dataset']}, {mine[0]['method']}). {words}:\n\n{table}")
    return "\n\n".join(parts)


HEADS = {"rival": "baseline of nearest accuracy"}  # where a page's word is not the column's


def _spread(row: dict[str, str], column: str) -> str:
    if row.get(column):
        return row[column]
    middle, low, high = (row.get(f"{column}_{field}", "") for field in ("mean", "low", "high"))
    return f"{middle} ({low} to {high})" if middle and low else middle or "-"
