"""Figures that are kept: records become files of `kept/expected`, and those become the tables of the pages.

python -m kept.pages RUN_DIR [RUN_DIR ...]     keep finished runs of any kind, then write the pages
python -m kept.pages                           write the pages only

A run of kind "condense" becomes kept/expected/condense/<scenario>.csv, and a table of README.md or docs/methods.md. A run of another kind
becomes kept/expected/<kind>/<scenario>.csv, and a table of apps/<kind>/README.md (pipelines: docs/pipelines.md);
its columns are the kind's own, and the first answers stand in README.md, too (headlines.py). scenarios/<kind>/run.py offers

    kept_rows(folder) -> list[dict[str, str]]     the rows of a finished run; their first column is "scenario"
    kept_files(folder) -> dict[str, str]          more files to keep beside them, name to content; may be absent
    page_text(rows, place) -> str                 Markdown for the page, from the kept rows by scenario and their folder; may be absent
"""

import argparse
import csv
import importlib
import sys
from pathlib import Path
from typing import Any

from distill.comparison import recipe_of, row_label
from distill.errors import InputError
from distill.records import read_json, write_whole
from distill.train import protocol
from kept.headlines import headlines
from kept.published import judging, published, reproduced
from scenarios.engine.folder import Options, load_data
from scenarios.engine.schema import READY, CondenseStudy, read_scenario, shipped, study
from scenarios.reporting.runs import as_csv, as_markdown

Rows = list[dict[str, str]]
EXPECTED = Path(__file__).parent / "expected"
PUBLISHED = Path(__file__).parent / "published.csv"
ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
METHODS_PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- table: begin (python -m kept.pages) -->", "<!-- table: end -->"
COLUMNS = (
    *(
        "scenario",
        "dataset",
        "ipc",
        "set",
        "network",
        "protocol",
        "judging",
        "published",
        "published_judging",
        "source",
        "mean",
        "low",
        "high",
    ),
    *("reproduced", "seeds", "iterations", "device", "run_seconds", "run_peak_memory_bytes"),
)


def rows_of(folder: Path) -> Rows:
    """The rows of a finished run that are kept, as its kind has them."""
    record = read_json(folder / "record.json")
    if record["status"] != "done":
        raise InputError(f"{folder}: status is {record['status']!r}; only a finished run can be kept.")
    kind = record.get("kind", "condense")
    if kind not in READY:
        raise InputError(f"{folder}: the record's kind is {str(kind)[:40]!r}; allowed: {', '.join(READY)}.")
    if kind == "condense":
        return _condensed(folder)
    room = importlib.import_module(f"scenarios.{kind}.run")
    if not hasattr(room, "kept_rows"):
        raise InputError(f"{folder}: no figures of kind {kind!r} are kept in this version.")
    rows: Rows = room.kept_rows(folder)
    return rows


def _condensed(folder: Path) -> Rows:
    """One row for each set and IPC; numbers rounded to what their interval carries."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    evaluation, environment = config["evaluation"], record["environment"]
    rows = []
    for key, part in record["results"].items():
        tables = part.get("cross_architecture") or {evaluation["networks"][0]: part.get("accuracy", {})} if key.startswith("ipc") else {}
        for network, sets in tables.items():
            for name, found in sets.items():
                if found.get("failed"):
                    raise InputError(f"{folder}: {found['failed']} networks trained on {name} have no accuracy ({found['reason']})")
                how = judging(config, network, part.get("augmentation", "auto"))
                # Published figures are a ConvNet's; in DataDAM's released code the network of that name is batch norm.
                own = network == "ConvNetBN" and name == "datadam" and config["method"].get("form") == "released"
                ipc = "" if name == "whole" else key[3:]
                alike = (network == "ConvNet" or own) and (name == "whole" or isinstance(config["method"].get("ipc", []), list))
                said = published(PUBLISHED, config["data"]["name"], ipc, name, how) if alike else {}
                row: dict[str, Any] = {
                    "scenario": record["scenario"],
                    "dataset": config["data"]["name"],
                    "ipc": ipc,
                    "set": name,
                    "network": network,
                    "protocol": "own recipe" if evaluation["recipe"] else evaluation["protocol"],
                    "judging": how,
                    "published": said.get("accuracy", ""),
                    "published_judging": said.get("judging", ""),
                    "source": said.get("source", ""),
                    **{field: f"{found[field]:.2f}" for field in ("mean", "low", "high")},
                    "reproduced": reproduced(found["low"], found["high"], said, how),
                    "seeds": len(found["values"]),
                    "iterations": config["method"]["iterations"] if name == config["method"]["name"] else "",
                    "device": environment["gpu"] or f"{environment['cores']} cores, {environment['processor']}",
                    "run_seconds": round(record["seconds"]),
                    "run_peak_memory_bytes": record["peak_memory_bytes"],
                }
                rows.append({column: str(row[column]) for column in COLUMNS})
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def to_csv(rows: Rows) -> str:
    return as_csv([list(rows[0]), *(list(row.values()) for row in rows)])


def keep(folder: Path) -> list[Path]:
    """Write the files of a finished run; their paths, that of its figures first."""
    rows, kind = rows_of(folder), read_json(folder / "record.json").get("kind", "condense")
    if not rows:
        raise InputError(f"{folder}: the run has no figures to keep.")
    place = EXPECTED / kind
    more = getattr(importlib.import_module(f"scenarios.{kind}.run"), "kept_files", lambda folder: {})(folder)
    files = {f"{rows[0]['scenario']}.csv": to_csv(rows), **more}
    for name, text in files.items():
        write_whole(place / name, text)
    return [place / name for name in files]


def kept(kind: str = "condense") -> dict[str, Rows]:
    """The rows of every kept run of a kind by scenario, quickstart first. A csv without the column "scenario" is a room's own file."""
    found = {}
    place = EXPECTED / kind
    for path in sorted(place.glob("*.csv"), key=lambda p: (p.stem != "quickstart", p.stem)):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and "scenario" in rows[0]:
            found[path.stem] = rows
    return found


def readme_table(rows: Rows) -> str:
    """Markdown: one line a set; the method of a run in bold."""
    table = [["run", "IPC", "set", "evaluation network", "augmentation", "accuracy, % (95 % interval)", "published (with)", "reproduced"]]
    for row in rows:
        name = f"**{row['set']}**" if row["iterations"] else _set_label(row)
        spread = f"{float(row['mean']):.1f} ({float(row['low']):.1f} to {float(row['high']):.1f})"
        said = f"{row['published']} ({row['published_judging']})" if row["published"] else ""
        table.append([f"`{row['scenario']}`", row["ipc"] or "-", name, row["network"], row["judging"], spread, said, row["reproduced"]])
    return as_markdown(table)


def _set_label(row: dict[str, str]) -> str:
    """A kept row's set; that of all data says how long its networks were trained, where the scenario and the built-in data say it."""
    path = shipped().get(row["scenario"])
    if row["set"] != "whole" or path is None or row["dataset"] != "digits":
        return row["set"]
    made = study(*read_scenario(str(path)), str(path))
    assert isinstance(made, CondenseStudy)
    if made.evaluation is None:
        return row["set"]
    data, table = load_data(made, Options()), made.evaluation
    given = table.recipe or protocol(table.protocol, data.spec, row["network"])
    recipe = recipe_of("whole", given, table.whole_epochs)
    images = len(data.train)
    return row_label("whole", {"steps": recipe.steps(images), "epochs": recipe.passes(images)})


def methods_tables(rows: Rows) -> str:
    """Markdown: the template's runs as `readme_table` has them, then one table a data set and IPC of the runs across architectures."""
    across = [row for row in rows if row["scenario"].startswith("cross-")]
    parts = [readme_table([row for row in rows if row not in across])]
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


def page_text(kind: str) -> str:
    """Markdown of a kind's kept runs: as its room writes it, else every column but those about the machine."""
    rows = kept(kind)
    if not rows:
        return "No figures are kept yet."
    room = importlib.import_module(f"scenarios.{kind}.run")
    if hasattr(room, "page_text"):
        text: str = room.page_text(rows, EXPECTED / kind)
        return text.strip()
    parts = []
    for name, part in rows.items():
        columns = [column for column in part[0] if column not in ("scenario", "device", "run_seconds")]
        parts.append(f"`{name}`\n\n" + as_markdown([columns, *([row[column] for column in columns] for row in part)]))
    return "\n\n".join(parts)


def page_of(kind: str) -> Path:
    """The page of a kind's figures: its room's README, or docs/pipelines.md for the kind that has no room of its own."""
    return ROOT / "docs" / "pipelines.md" if kind == "pipeline" else ROOT / "apps" / kind / "README.md"


def with_table(page: str, table: str) -> str:
    """The page with the table between its marks; `InputError` when it has none."""
    if BEGIN not in page or END not in page:
        raise InputError(f"the page {page[:60]!r} has no place for a table; put {BEGIN} and {END} where it belongs.")
    head, _, rest = page.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def pages() -> dict[Path, str]:
    """Each page with a generated table, as it should be. README: shipped condensations and the applications' headlines."""
    files = shipped()
    rows = [row for part in kept().values() for row in part]
    tables = {
        README: readme_table([row for row in rows if row["scenario"] in files])
        + "\n\n"
        + headlines({kind: kept(kind) for kind in READY if kind != "condense"}),
        METHODS_PAGE: methods_tables([row for row in rows if row["scenario"] not in files]),
    }
    for kind in READY:
        page = page_of(kind)
        if kind != "condense" and (kept(kind) or (page.is_file() and BEGIN in page.read_text())):
            tables[page] = page_text(kind)
    return {page: with_table(page.read_text(), table) for page, table in tables.items()}


def main(arguments: list[str]) -> int:
    told = "Keep finished runs, then write the tables of the pages."
    parser = argparse.ArgumentParser(prog="python -m kept.pages", description=told)
    parser.add_argument("folders", type=Path, nargs="*", metavar="RUN_DIR", help="a finished run; none: write the pages only")
    try:
        for folder in parser.parse_args(arguments).folders:
            print("\n".join(map(str, keep(folder))))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for page, text in pages().items():
        if page.read_text() != text:
            write_whole(page, text)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
