"""Figures that are kept: records become files of `kept/expected`, and those become the tables of the pages.

python -m kept.pages RUN_DIR [RUN_DIR ...]     keep finished runs of any kind, then write the pages
python -m kept.pages                           write the pages only

A run of kind "condense" becomes kept/expected/condense/<scenario>.csv, and a table of docs/results.md or docs/methods.md.
A run of another kind becomes kept/expected/<kind>/<scenario>.csv, and a table of apps/<kind>/README.md (pipelines: docs/pipelines.md);
its columns are the kind's own, and its main results are in docs/results.md, too (headlines.py). README.md has a few rows of these tables.
"""

import argparse
import csv
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from distill.errors import InputError
from distill.records import read_json, write_whole
from kept import condense, continual, federated, nas, pipeline, privacy
from kept.condense import Rows, methods_tables, readme_table
from kept.headlines import headlines
from scenarios.engine.scenario import shipped
from scenarios.nas.run import TRUTH
from scenarios.reporting.text import as_csv, as_markdown, replaced

EXPECTED = Path(__file__).parent / "expected"
ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
README_RUNS = ("quickstart", "mnist-dm-ipc10", "short-dm-cifar10-ipc10", "short-dance-cifar10-ipc10")
README_SETS = ("dm", "dance", "random", "random-decoded")
RESULTS_PAGE = ROOT / "docs" / "results.md"
METHODS_PAGE = ROOT / "docs" / "methods.md"
BEGIN, END = "<!-- table: begin (python -m kept.pages) -->", "<!-- table: end -->"


def _every_column(rows: Mapping[str, Rows], place: Path) -> str:
    parts = []
    for name, part in rows.items():
        columns = [column for column in part[0] if column not in ("scenario", "device", "run_seconds")]
        parts.append(f"`{name}`\n\n" + as_markdown([columns, *([row[column] for column in columns] for row in part)]))
    return "\n\n".join(parts)


def _no_files(folder: Path) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Keeper:
    """What of a kind's runs is kept.

    ``rows`` are those of a finished run, whose first column is "scenario"; ``page`` is Markdown from the kept rows by scenario and their
    folder; ``files`` are more files to keep, name to content.
    """

    rows: Callable[[Path], Rows]
    page: Callable[[dict[str, Rows], Path], str] = _every_column
    files: Callable[[Path], dict[str, str]] = _no_files


KEEPERS = {
    "condense": Keeper(condense.kept_rows),
    "federated": Keeper(federated.kept_rows, federated.page_text),
    "continual": Keeper(continual.kept_rows, continual.page_text),
    "privacy": Keeper(privacy.kept_rows, privacy.page_text),
    "nas": Keeper(nas.kept_rows, nas.page_text, nas.kept_files),
    "pipeline": Keeper(pipeline.kept_rows, pipeline.page_text),
}


def rows_of(folder: Path) -> Rows:
    """The rows of a finished run that are kept, as its kind has them."""
    record = read_json(folder / "record.json")
    if record["status"] != "done":
        raise InputError(f"{folder}: status is {record['status']!r}; only a finished run can be kept.")
    return keeper_of(folder).rows(folder)


def keeper_of(folder: Path) -> Keeper:
    """The keeper of a run's kind; `InputError` where no figures of that kind are kept."""
    kind = read_json(folder / "record.json").get("kind", "condense")
    if kind not in KEEPERS:
        raise InputError(f"{folder}: no figures of kind {str(kind)[:40]!r} are kept; allowed: {', '.join(KEEPERS)}.")
    return KEEPERS[kind]


def to_csv(rows: Rows) -> str:
    """A table as the text of a CSV file."""
    return as_csv([list(rows[0]), *(list(row.values()) for row in rows)])


def keep(folder: Path) -> list[Path]:
    """Write the files of a finished run; their paths, that of its figures first."""
    rows, kind = rows_of(folder), read_json(folder / "record.json").get("kind", "condense")
    if not rows:
        raise InputError(f"{folder}: the run has no figures to keep.")
    files = {f"{rows[0]['scenario']}.csv": to_csv(rows), **keeper_of(folder).files(folder)}
    paths = {name: (TRUTH if name.endswith("-truth.csv") else EXPECTED / kind) / name for name in files}  # studies read true accuracies
    for name, text in files.items():
        write_whole(paths[name], text)
    return list(paths.values())


def kept(kind: str = "condense") -> dict[str, Rows]:
    """The rows of every kept run of a kind by scenario, quickstart first. A csv without the column "scenario" is a kind's own file."""
    tables = {}
    place = EXPECTED / kind
    for path in sorted(place.glob("*.csv"), key=lambda p: (p.stem != "quickstart", p.stem)):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if rows and "scenario" in rows[0]:
            tables[path.stem] = rows
    return tables


def page_text(kind: str) -> str:
    """Markdown of a kind's kept runs: as its keeper writes it, else every column but those about the machine."""
    rows = kept(kind)
    return KEEPERS[kind].page(rows, EXPECTED / kind).strip() if rows else "No figures are kept yet."


def page_of(kind: str) -> Path:
    """The page of a kind's figures: its application's README, or docs/pipelines.md for pipelines."""
    return ROOT / "docs" / "pipelines.md" if kind == "pipeline" else ROOT / "apps" / kind / "README.md"


def pages() -> dict[Path, str]:
    """Each page with a generated table, and the text that it should have."""
    files = shipped()
    rows = [row for part in kept().values() for row in part]
    tables = {
        README: readme_table([row for row in rows if row["scenario"] in README_RUNS and row["set"] in README_SETS]),
        RESULTS_PAGE: readme_table([row for row in rows if row["scenario"] in files])
        + "\n\n"
        + headlines({kind: kept(kind) for kind in KEEPERS if kind != "condense"}),
        METHODS_PAGE: methods_tables([row for row in rows if row["scenario"] not in files]),
    }
    for kind in KEEPERS:
        page = page_of(kind)
        if kind != "condense" and (kept(kind) or (page.is_file() and BEGIN in page.read_text())):
            tables[page] = page_text(kind)
    return {page: replaced(page.read_text(), BEGIN, table, END) for page, table in tables.items()}


def main(arguments: list[str]) -> int:
    """Keep the figures of run folders, and write the pages' tables anew."""
    purpose = "Keep finished runs, then write the tables of the pages."
    parser = argparse.ArgumentParser(prog="python -m kept.pages", description=purpose)
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
