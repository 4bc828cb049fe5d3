"""What of a "privacy" run is kept (see pages.py): its sets, attacked arms and checks."""

from pathlib import Path

from distill.errors import InputError
from distill.records import read_json
from scenarios.engine.record import Results
from scenarios.privacy.schema import MEASURES

FIGURES = {  # column: (key in a row of the record, digits)
    "accuracy": ("accuracy", 2),
    "advantage_percent": ("advantage_percent", 3),
    "auc": ("auc", 4),
    "tpr_at_1_percent_fpr": ("tpr_at_1_percent", 4),
    "tpr_at_01_percent_fpr": ("tpr_at_01_percent", 4),
    "lira_auc": ("lira.auc", 4),
    "lira_tpr_at_1_percent_fpr": ("lira.tpr_at_1_percent", 4),
    "nearest_auc": ("nearest.auc", 4),
    **{f"{name}_auc": (f"{name}.auc", 4) for name in ("lira-offline", "calibrated", "rmia", "alignment")},
    "advantage_more_than_rival": ("advantage_percent_difference", 3),
    "tpr_at_1_percent_fpr_more_than_rival": ("tpr_at_1_percent_difference", 4),
    **{f"closer_in_{name}": (f"{name}.share_closer", 3) for name in MEASURES},
    **{f"outstanding_in_{name}": (f"{name}.share_outstanding", 3) for name in MEASURES},
    "naive_trigger_percent": ("naive", 2),
    "optimised_trigger_percent": ("optimised", 2),
    "invisible_trigger_percent": ("invisible", 2),
    "doorping_trigger_percent": ("doorping", 2),
    "doorping_clamped_trigger_percent": ("doorping-clamped", 2),
    "psnr_db": ("psnr", 2),
    "ssim": ("ssim", 4),
}
BOUNDS = ("gaussian_bound", "rates_bound", "one_run_bound", "one_run_gaussian_bound", "size_bound")  # the last: earlier records


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """A finished run's sets, attacked arms and checks as rows of one table, all with the same columns; only columns that some row has."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    if record["status"] != "done":
        raise InputError(f"{folder}: status is {record['status']!r}; only a finished run can be kept.")
    results, method = record["results"], config["method"]
    rows: list[Results] = []
    for key, part in results.items():
        if key.startswith("epsilon"):
            made = {f"private {name}": own for name, own in {method["name"]: part, **part.get("arms", {})}.items()}
            for name, found in part["accuracy"].items():
                row: Results = {"part": "sets", "set": name, "budget": key[7:], "accuracy": found, "ipc": method["ipc"]}
                if name in made:
                    stated = made[name]["privacy"]
                    row |= {name: stated[name] for name in ("releases", "accountant")}
                    row |= {"epsilon": f"{stated['epsilon']:.4f}", "delta": f"{stated['delta']:g}"}
                    row["distil_seconds"] = f"{made[name]['distil_seconds']:.0f}"
                rows.append(row)
    if "audit" in results:
        found = results["audit"]
        bounds = {name: f"{found[name]:.4f}" for name in BOUNDS if name in found}
        rows.append({"part": "audit", "set": "canaries", "epsilon": f"{found['claimed_epsilon']:.4f}", **bounds})
    for name, found in results.get("attack", {}).items():
        same = results["same_accuracy"].get(name, {})
        rows.append({"part": "attack", "set": name, "ipc": found["images_a_class"], "runs": found["runs"], **found, **same})
    for name, found in results.get("visual", {}).items():
        chance = f"{next(iter(found.values()))['chance']:.3f}"
        rows.append({"part": "visual", "set": name, "ipc": method["ipc"], "chance_of_closer": chance, **found})
    for name, found in results.get("poisoning", {}).items():
        rows.append({"part": "poisoning", "set": name, "ipc": method["ipc"], **found})
    for name, found in results.get("inversion", {}).items():
        label = f"{found['label_percent']:.0f}" if "label_percent" in found else None
        rows.append({"part": "inversion", "set": name, "ipc": method["ipc"], "label_read_percent": label, **found})
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


def _flat(row: Results) -> dict[str, str]:
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
        "victims",
        "label_read_percent",
    )
    flat = {name: "" if row.get(name) is None else str(row[name]) for name in (*plain, *BOUNDS)}
    for column, (path, digits) in FIGURES.items():
        value: object = row
        for key in path.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        for field, names in (("mean", ("mean", "value")), ("low", ("low",)), ("high", ("high",))):
            number = next((value[name] for name in names if value.get(name) is not None), None) if isinstance(value, dict) else None
            flat[f"{column}_{field}"] = "" if number is None else f"{number:.{digits}f}"
    return flat


PAGE = {  # part: (words, columns of its table)
    "sets": ("Accuracy of networks that learned from each set", ("set", "budget", "epsilon", "releases", "accuracy")),
    "audit": ("Lower bounds of epsilon by canaries", ("epsilon", *BOUNDS)),
    "attack": (
        "What membership inference finds",
        ("set", "ipc", "accuracy", "advantage_percent", "tpr_at_1_percent_fpr", "lira_tpr_at_1_percent_fpr", "rival"),
    ),
    "visual": (
        "How often training images are nearer than others (compared with chance) and stand out more than others (chance 0.5)",
        ("set", "chance_of_closer", *(f"{what}_in_{name}" for name in MEASURES for what in ("closer", "outstanding"))),
    ),
    "poisoning": (
        "Images of other classes that obey a planted trigger",
        (
            "set",
            "accuracy",
            *(f"{trigger}_trigger_percent" for trigger in ("naive", "optimised", "invisible", "doorping", "doorping_clamped")),
        ),
    ),
    "inversion": (
        "What a client's message shows of its images, each compared with the nearest image of its class (a gradient: with the image found)",
        ("set", "victims", "label_read_percent", "psnr_db", "ssim"),
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


HEADS = {"rival": "baseline of nearest accuracy", "psnr_db": "PSNR, dB", "ssim": "SSIM"}  # where a page's word is not the column's


def _spread(row: dict[str, str], column: str) -> str:
    if row.get(column):
        return row[column]
    middle, low, high = (row.get(f"{column}_{field}", "") for field in ("mean", "low", "high"))
    return f"{middle} ({low} to {high})" if middle and low else middle or "-"
