"""Figures that are kept: records become `scenarios/expected/*.csv`, and those become the tables of README.md and docs/methods.md.

python -m scenarios.tables RUN_DIR [RUN_DIR ...]     write scenarios/expected/<scenario>.csv and the tables
python -m scenarios.tables                           write the tables only
"""

import csv
import io
import sys
from pathlib import Path
from typing import Any

from distill.errors import InputError
from distill.records import read_json, write_whole
from scenarios.schema import shipped

EXPECTED = Path(__file__).parent / "expected"
README = Path(__file__).parent.parent / "README.md"
METHODS_PAGE = README.parent / "docs" / "methods.md"
BEGIN, END = "<!-- table: begin (python -m scenarios.tables) -->", "<!-- table: end -->"
COLUMNS = (
    *("scenario", "dataset", "ipc", "set", "network", "protocol", "published", "source", "mean", "low", "high", "reproduced", "seeds"),
    *("iterations", "device", "run_seconds", "run_peak_memory_bytes"),
)


def rows_of(folder: Path) -> list[dict[str, str]]:
    """One row for each set and IPC of a finished run; numbers rounded to what their interval carries."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    if record["status"] != "done":
        raise InputError(f"{folder}: status is {record['status']!r}; only a finished run can be kept.")
    evaluation, environment = config["evaluation"], record["environment"]
    rows = []
    for key, part in record["results"].items():
        tables = part.get("cross_architecture") or {evaluation["networks"][0]: part.get("accuracy", {})} if key.startswith("ipc") else {}
        for network, sets in tables.items():
            for name, found in sets.items():
                said = published(config["data"]["name"], "" if name == "whole" else key[3:], name) if network == "ConvNet" else {}
                row: dict[str, Any] = {
                    "scenario": record["scenario"],
                    "dataset": config["data"]["name"],
                    "ipc": "" if name == "whole" else key[3:],
                    "set": name,
                    "network": network,
                    "protocol": "own recipe" if evaluation["recipe"] else evaluation["protocol"],
                    "published": said.get("accuracy", ""),
                    "source": said.get("source", ""),
                    **{field: f"{found[field]:.2f}" for field in ("mean", "low", "high")},
                    "reproduced": reproduced(found["high"], said.get("accuracy", "")),
                    "seeds": len(found["values"]),
                    "iterations": config["method"]["iterations"] if name == config["method"]["name"] else "",
                    "device": environment["gpu"] or f"{environment['cores']} cores, {environment['processor']}",
                    "run_seconds": round(record["seconds"]),
                    "run_peak_memory_bytes": record["peak_memory_bytes"],
                }
                rows.append({column: str(row[column]) for column in COLUMNS})
    return [row for place, row in enumerate(rows) if row not in rows[:place]]


def reproduced(high: float, published: str) -> str:
    """ "yes" when the published figure is not above our interval by more than half a point (the rounding of such tables), else "no"."""
    return "" if not published else "yes" if high + 0.5 >= float(published) else "no"


def published(dataset: str, ipc: str, name: str) -> dict[str, str]:
    with (EXPECTED / "published.csv").open(newline="") as file:
        return next((r for r in csv.DictReader(file) if (r["dataset"], r["ipc"], r["set"]) == (dataset, ipc, name)), {})


def to_csv(rows: list[dict[str, str]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def kept() -> list[dict[str, str]]:
    """The rows of every kept run, quickstart first."""
    rows = []
    for path in sorted(EXPECTED.glob("*.csv"), key=lambda p: (p.stem != "quickstart", p.stem)):
        if path.stem != "published":
            with path.open(newline="") as file:
                rows += list(csv.DictReader(file))
    return rows


def readme_table(rows: list[dict[str, str]]) -> str:
    """Markdown: one line a set; the method of a run in bold."""
    names = ("run", "IPC", "set", "judged by", "accuracy, % (95 % interval)", "published", "reproduced")
    lines = [f"| {' | '.join(names)} |", "|" + " --- |" * len(names)]
    for row in rows:
        name = f"**{row['set']}**" if row["iterations"] else row["set"]
        spread = f"{float(row['mean']):.1f} ({float(row['low']):.1f} to {float(row['high']):.1f})"
        cells = (f"`{row['scenario']}`", row["ipc"] or "-", name, row["network"], spread, row["published"], row["reproduced"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def with_table(readme: str, table: str) -> str:
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return f"{head}{BEGIN}\n{table}\n{END}{tail}"


def pages() -> dict[Path, str]:
    """Each page with a generated table, as it should be: shipped scenarios in the README, those of the template in docs/methods.md."""
    rows, files = kept(), shipped()
    parts = {README: [r for r in rows if r["scenario"] in files], METHODS_PAGE: [r for r in rows if r["scenario"] not in files]}
    return {page: with_table(page.read_text(), readme_table(part)) for page, part in parts.items()}


def main(folders: list[str]) -> None:
    for folder in folders:
        rows = rows_of(Path(folder))
        write_whole(EXPECTED / f"{rows[0]['scenario']}.csv", to_csv(rows))
    for page, text in pages().items():
        write_whole(page, text)


if __name__ == "__main__":
    main(sys.argv[1:])
