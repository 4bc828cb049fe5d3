"""The kept figures of a "condense" run (see pages.py): a row for each set, network and IPC, and the pages' tables."""

from pathlib import Path

from distill.comparison import recipe_of, row_label
from distill.errors import InputError
from distill.records import read_json
from distill.train import protocol
from kept.published import PUBLISHED, judging, published, reproduced
from scenarios import catalogue
from scenarios.condense.schema import CondenseStudy
from scenarios.engine.folder import load_data
from scenarios.engine.record import Results
from scenarios.engine.scenario import read_scenario, shipped
from scenarios.engine.study import Options
from scenarios.reporting.text import as_markdown

Rows = list[dict[str, str]]
COLUMNS = (
    *(
        "scenario",
        "dataset",
        "ipc",
        "set",
        "network",
        "protocol",
        "judging",
        "labels",
        "bytes",
        "published",
        "published_judging",
        "source",
        "mean",
        "low",
        "high",
    ),
    *("reproduced", "sets", "seeds", "iterations", "device", "distil_seconds", "run_seconds", "run_peak_memory_bytes"),
)


def kept_rows(folder: Path) -> Rows:
    """One row for each set and IPC; numbers rounded to what their interval carries."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    evaluation, environment, method = config["evaluation"], record["environment"], config["method"]["name"]
    rows = []
    for key, part in record["results"].items():
        tables = part.get("cross_architecture") or {evaluation["networks"][0]: part.get("accuracy", {})} if key.startswith("ipc") else {}
        for network, sets in tables.items():
            for name, accuracy in sets.items():
                if accuracy.get("failed"):
                    raise InputError(f"{folder}: {accuracy['failed']} networks trained on {name} have no accuracy ({accuracy['reason']})")
                several = part.get("sets", {}).get(network) if name == method else None  # its interval is over sets
                spread = several or accuracy
                how = judging(config, network, part.get("augmentation", "auto"))
                # Published figures are a ConvNet's; in DataDAM's released code the network of that name is batch norm.
                own = network == "ConvNetBN" and name == "datadam" and config["method"].get("form") == "released"
                ipc = "" if name == "whole" else key[3:]
                alike = (network == "ConvNet" or own) and (name == "whole" or isinstance(config["method"].get("ipc", []), list))
                figure = published(PUBLISHED, config["data"]["name"], ipc, name, how) if alike else {}
                row: Results = {
                    "scenario": record["scenario"],
                    "dataset": config["data"]["name"],
                    "ipc": ipc,
                    "set": name,
                    "network": network,
                    "protocol": in_words(evaluation["recipe"]) if evaluation["recipe"] else evaluation["protocol"],
                    "judging": how,
                    "labels": accuracy.get("labels", "class"),
                    "bytes": accuracy.get("bytes") or "",
                    "published": figure.get("accuracy", ""),
                    "published_judging": figure.get("judging", ""),
                    "source": figure.get("source", ""),
                    **{field: f"{spread[field]:.2f}" for field in ("mean", "low", "high")},
                    "reproduced": reproduced(spread["low"], spread["high"], figure, how),
                    "sets": len(several["values"]) if several else 1 if name in (method, "whole") else len(accuracy["values"]),
                    "seeds": sum(map(len, several["values"])) if several else len(accuracy["values"]),
                    "iterations": config["method"]["iterations"] if name == method else "",
                    "device": environment["gpu"] or f"{environment['cores']} cores, {environment['processor']}",
                    "distil_seconds": round(part["distil_seconds"]) if name == method and "distil_seconds" in part else "",
                    "run_seconds": round(record["seconds"]),
                    "run_peak_memory_bytes": record["peak_memory_bytes"],
                }
                rows.append({column: str(row[column]) for column in COLUMNS})
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def in_words(recipe: Results) -> str:
    """A study's own recipe, for the column "protocol"."""
    name, size = "AdamW" if recipe["optimiser"] == "adamw" else "SGD", recipe["batch_size"]
    steps = f"{recipe['max_steps']:,} steps" if recipe["max_steps"] else f"{recipe['epochs']:,} epochs"
    return f"{steps} of {size}, {name}"


def readme_table(rows: Rows) -> str:
    """Markdown: one line a set; the method of a run in bold. What we measured, what is claimed, and whether both agree stand apart."""
    head = ["run", "IPC", "set", "evaluation network", "training", "augmentation", "labels", "bytes", "sets x networks"]
    table = [[*head, "ours, % (95 % interval)", "claimed (with)", "reproduced"]]
    for row in rows:
        name = f"**{row['set']}**" if row["iterations"] else _set_label(row)
        spread = f"{float(row['mean']):.1f} ({float(row['low']):.1f} to {float(row['high']):.1f})"
        published = f"{row['published']} ({row['published_judging']})" if row["published"] else ""
        table.append(
            [
                f"`{row['scenario']}`",
                row["ipc"] or "-",
                name,
                row["network"],
                row["protocol"],
                *_how(row),
                spread,
                published,
                row["reproduced"],
            ]
        )
    return as_markdown(table)


def _how(row: dict[str, str]) -> list[str]:
    """Cells: augmentation, labels, bytes, and sets times networks of each; a coreset is drawn for each network."""
    size = f"{int(row['bytes']):,}" if row["bytes"] else "-"
    return [row["judging"], row["labels"], size, f"{row['sets']} x {int(row['seeds']) // int(row['sets'])}"]


def _set_label(row: dict[str, str]) -> str:
    """A kept row's set; that of all data says how long its networks were trained, where the scenario and the built-in data say it."""
    path = shipped().get(row["scenario"])
    if row["set"] != "whole" or path is None or row["dataset"] != "digits":
        return row["set"]
    made = catalogue.study(*read_scenario(str(path)), str(path))
    assert isinstance(made, CondenseStudy)
    if made.evaluation is None:
        return row["set"]
    data, table = load_data(made, Options()), made.evaluation
    given = table.recipe or protocol(table.protocol, data.spec, row["network"])
    recipe = recipe_of("whole", given, table.whole_epochs)
    images = len(data.train)
    return row_label("whole", {"steps": recipe.steps(images), "epochs": recipe.passes(images)})


def methods_tables(rows: Rows) -> str:
    """Markdown: the template's runs as `readme_table` has them, then for each data set and IPC a table of the runs at width 64 and one of
    those across architectures."""
    across = [row for row in rows if row["scenario"].startswith("cross-")]
    small = [row for row in rows if row["scenario"].startswith(("small-", "seams-", "labels-"))]
    parts = [readme_table([row for row in rows if row not in across and row not in small])]
    for dataset, ipc in dict.fromkeys((row["dataset"], row["ipc"]) for row in small):
        here = [row for row in small if (row["dataset"], row["ipc"]) == (dataset, ipc)]
        head = ["augmentation", "labels", "bytes", "sets x networks", "image steps"]
        table = [[f"{dataset}, IPC {ipc}, {here[0]['network']}, {here[0]['protocol']}", "run", "ours, % (95 % interval)", *head]]
        for row in sorted(here, key=lambda row: -float(row["mean"])):
            spread = f"{float(row['mean']):.1f} ({float(row['low']):.1f} to {float(row['high']):.1f})"
            seam = row["scenario"].removeprefix("seams-").partition(f"-{dataset}-")[0].replace("-", " + ")
            name = row["set"] if not row["iterations"] else f"dm + {seam}" if row["scenario"].startswith("seams-") else f"**{row['set']}**"
            table.append([name, f"`{row['scenario']}`", spread, *_how(row), row["iterations"] or "-"])
        parts.append(as_markdown(table))
    for dataset, ipc in dict.fromkeys((row["dataset"], row["ipc"]) for row in across):
        here = [row for row in across if (row["dataset"], row["ipc"]) == (dataset, ipc)]
        networks = list(dict.fromkeys(row["network"] for row in here))
        table = [[f"{dataset}, IPC {ipc}, evaluation network", *networks]]
        for name in sorted({row["set"] for row in here}, key=lambda name: (name == "random", name)):
            cells = {
                row["network"]: f"{float(row['mean']):.1f} ± {float(row['high']) - float(row['mean']):.1f}"
                for row in here
                if row["set"] == name
            }
            table.append([name, *(cells.get(network, "") for network in networks)])
        parts.append(as_markdown(table))
    return "\n\n".join(parts)
