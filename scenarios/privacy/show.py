"""What a record of kind "privacy" says: pictures, its main table, a few sentences."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from apps.privacy.figures import roc_curves
from distill.comparison import row_label
from distill.condensed import CondensedSet
from distill.drawing import Drawing
from distill.evaluation import Accuracy
from distill.figures import accuracy_bars, image_grid
from scenarios.engine.public_part import FOLDER, place
from scenarios.engine.record import Config, Record, Results, Rows
from scenarios.privacy.attack import cell
from scenarios.reporting.text import few, other_split, series, shown

MAX_CURVES = 8
BOUNDS = ("gaussian_bound", "rates_bound", "one_run_bound", "one_run_gaussian_bound", "size_bound")  # the last: earlier records


def draw(folder: Path, record: Record) -> Iterator[tuple[str, Drawing]]:
    """Images and accuracies of each budget, poisoned sets, log-log curves of the attacks. Closest pairs are drawn with the data."""
    results = record["results"]
    for key, part in results.items():
        if key.startswith("epsilon"):
            for arm in ("", *part.get("arms", {})):
                name, whose = f"{key}{arm and '-'}{arm}", f" {arm}" if arm else ""
                tiny = CondensedSet.load(place(folder, Path(FOLDER, f"condensed-{name}.safetensors")))
                yield f"images-{name}", image_grid(tiny, f"Images of the private set{whose} at epsilon {key[7:]}")
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


def accuracy_table(record: Record) -> Rows:
    """One row a set and one column a budget; without sets, one row an attacked arm; without those, one row a poisoned set, a
    client's message or a compared set."""
    results = record["results"]
    columns = {f"epsilon {key[7:]}": part["accuracy"] for key, part in results.items() if key.startswith("epsilon") and "accuracy" in part}
    if columns:
        columns = {budget: {row_label(name, row): row for name, row in rows.items()} for budget, rows in columns.items()}
        names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
        return [["set", *columns], *([name, *(shown(rows[name]) if name in rows else "" for rows in columns.values())] for name in names)]
    if "attack" in results:
        header = ["attacked", "accuracy, %", "advantage, %", "AUC", "TPR at 1 % FPR", "LiRA: TPR at 1 % FPR"]
        more = [
            name for name in ("lira-offline", "calibrated", "rmia", "alignment") if any(name in row for row in results["attack"].values())
        ]
        rows = [
            [arm, *_attack_cells(row), *(cell(row.get(name, {}).get("auc"), 3) for name in more)] for arm, row in results["attack"].items()
        ]
        return [[*header, *(f"{name}: AUC" for name in more)], *rows]
    if "poisoning" in results:
        rows = [[name, *map(shown, row.values())] for name, row in results["poisoning"].items()]
        _, *triggers = next(iter(results["poisoning"].values()))
        return [["learned from", "clean accuracy, %", *(f"{trigger} trigger obeyed, %" for trigger in triggers)], *rows]
    if "inversion" in results:
        rows = [[name, cell(row["psnr"], 1), cell(row["ssim"], 3)] for name, row in results["inversion"].items()]
        return [["what shows of a victim", "PSNR, dB", "SSIM"], *rows]
    if "visual" in results:
        rows = [[name, *(cell(row["share_outstanding"], 2) for row in measures.values())] for name, measures in results["visual"].items()]
        return [["nearest training image stands out", *next(iter(results["visual"].values()))], *rows]
    return []


def _attack_cells(row: Results) -> list[str]:
    figures = (("accuracy", 1), ("advantage_percent", 2), ("auc", 3), ("tpr_at_1_percent", 4))
    return [*(cell(row[name], digits) for name, digits in figures), cell(row.get("lira", {}).get("tpr_at_1_percent"), 4)]


def answer(record: Record) -> str:
    """What was guaranteed, what was found."""
    results, parts = record["results"], []
    for key, part in results.items():
        if key.startswith("epsilon") and "accuracy" in part:
            rows = part["accuracy"]
            first = next(iter(rows))
            others = ", ".join(f"{row_label(name, row)} {shown(row)}" for name, row in rows.items() if name != first)
            beside = f" ({others})" if others else ""
            parts.append(f"{first} at epsilon {key[7:]} trains a network to {shown(rows[first])} %{beside}. {part['guarantee']}")
            parts += [f"private {arm} states {_budget(own['privacy'])}." for arm, own in part.get("arms", {}).items()]
    budgets = [part for key, part in results.items() if key.startswith("epsilon") and "guarantee" in part]
    if (len(budgets) > 1 or any("arms" in part for part in budgets)) and results.get("public"):
        several = "arms" if len(budgets) == 1 else f"{len(budgets)} budgets"
        parts.append(f"All sets and releases of the {several} together: {results['public']['guarantee']}")
    audit = results.get("audit")
    if audit:
        highest = max(audit[name] for name in BOUNDS if name in audit)
        verdict = "contradict the account" if not audit["holds"] else "do not contradict it, which proves nothing more"
        found = f"canaries find at least {highest:.2f}"
        if "checks" in audit:
            found += f", and {len(audit['checks'])} checks examined the installed code's noise, sampling, sensitivity and ledger"
        parts.append(f"The account says epsilon {audit['claimed_epsilon']:.2f}, {found}: they {verdict}.")
    if results.get("attack"):
        text = ", ".join(f"{arm} {cell(row['advantage_percent'], 2)} %" for arm, row in results["attack"].items())
        parts.append(f"Loss-based membership advantage: {text}; an advantage near 0 is no proof of privacy.")
    for arm, row in results.get("same_accuracy", {}).items():
        parts.append(
            f"{arm} compared with {row['rival']}, the baseline that is the nearest in accuracy ({row['accuracy_difference']:+.1f} points): "
            f"advantage {cell(row['advantage_percent_difference'], 2)} points more, "
            f"TPR at 1 % FPR {cell(row['tpr_at_1_percent_difference'], 4)} more."
        )
    if results.get("visual"):
        copied = {name: [measure for measure, row in rows.items() if row["copied"]] for name, rows in results["visual"].items()}
        text = "; ".join(f"{name} in {' and '.join(measures) or 'none'}" for name, measures in copied.items())
        parts.append(f"Distances in which a set looks copied from its training images: {text}; none is no proof of privacy.")
    if results.get("poisoning"):
        obeyed = {
            name: [f"{shown(value)} % {trigger}" for trigger, value in row.items() if trigger != "accuracy"]
            for name, row in results["poisoning"].items()
        }
        text = ", ".join(f"{name} {' and '.join(words)}" for name, words in obeyed.items())
        parts.append(f"Images of other classes with the trigger that are called the target: {text}.")
    if results.get("inversion"):
        rows = results["inversion"]
        text = "; ".join(f"{name} {cell(row['psnr'], 1)} dB, SSIM {cell(row['ssim'], 3)}" for name, row in rows.items())
        parts.append(f"What shows of {next(iter(rows.values()))['victims']} images of a client: {text}.")
    return " ".join(parts) or f"Nothing was found. Status: {record['status']}."


def _budget(stated: Config) -> str:
    """Epsilon, delta and releases of an arm; the total of all of them is in full."""
    trained = f", {stated['experts']} of them steps of DP-SGD" if "experts" in stated else ""
    public = f", in networks trained on {stated['public_experts']}" if "public_experts" in stated else ""
    return f"({stated['epsilon']:.2f}, {stated['delta']:.1e}) in {stated['releases']} releases{trained}{public}"


def question(config: Config) -> str:
    """The study's question in a sentence."""
    parts = []
    if config.get("privacy"):
        method, epsilon = config["method"], config["privacy"]["epsilon"]
        methods = [method["name"], *config.get("arms", {})]
        parts.append(
            f"What does it cost in accuracy to condense {config['data']['name']} with {series(methods)} at epsilon {series(epsilon)},"
            f" {method['ipc']} image{'s' if method['ipc'] != 1 else ''} a class?"
        )
    if config.get("audit"):
        parts.append("Does the mechanism keep its promise?")
    if config.get("attack"):
        parts.append(f"Whom does membership inference find in networks trained on: {series(config['attack']['arms'])}?")
    if config.get("poisoning"):
        parts.append(f"Does a trigger that is planted in images of {config['data']['name']} survive their condensation?")
    if config.get("inversion"):
        parts.append("What does one message of a client reveal, a gradient or an upload of condensed images?")
    return " ".join(parts) or str(config["title"])


def missing(record: Record, config: Config) -> list[str]:
    """What a reader could miss: rivals and bounds that were not asked for, single runs."""
    results = record["results"]
    sentences = []
    if config.get("privacy") is None:
        sentences.append("No private set was made: the study has no [privacy] table.")
    else:
        budgets = [f"{epsilon:g}" for epsilon in config["privacy"]["epsilon"]]
        sentences += [f"Not evaluated: epsilon {budget}." for budget in budgets if "accuracy" not in results.get(f"epsilon{budget}", {})]
        sentences += [] if config["privacy"]["twin"] else ["No twin without noise, so the cost of privacy is not measured."]
        sentences += few(config["evaluation"]["seeds"], "network")
    for part, words in (("audit", "The mechanism was not audited"), ("attack", "No point was attacked")):
        if config.get(part) is None:
            sentences.append(f"{words}: the study has no [{part}] table.")
        elif part not in results:
            sentences.append(f"{words} yet.")
    return [*sentences, *other_split(config["evaluation"]["split"])]
