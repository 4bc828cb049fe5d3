"""What of a pipeline's run is kept (see pages.py): its headline figures."""

from collections.abc import Mapping
from pathlib import Path

from distill.errors import InputError
from distill.records import read_json
from scenarios.pipeline.show import FIGURES, rows_of
from scenarios.reporting.text import as_markdown

_COLUMNS = ("scenario", "dataset", "figure", "stage", "of", "value", "low", "high", "unit", "kind", "takes", "stage_seconds", "run_seconds")


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """A finished run's headline figures as rows of text columns, one row a figure."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    if record["status"] != "done":
        raise InputError(f"{folder}: status is {record['status']!r}; only a finished run can be kept.")
    environment, rows = record["environment"], []
    for figure, stage, of, row in rows_of(record["results"]):
        entry = record["results"]["stages"][stage]
        ends = {key: "" if row[key] is None else f"{row[key]:.3f}" for key in ("value", "low", "high")}
        cells = {
            "scenario": record["scenario"],
            "dataset": config["data"]["name"],
            "figure": figure,
            "stage": stage,
            "of": of,
            **ends,
            "unit": FIGURES[figure][1],
            "kind": entry["kind"],
            "takes": " ".join(entry["from"]),
            "stage_seconds": str(round(entry["seconds"])),
            "run_seconds": str(round(record["seconds"])),
        }
        device = environment["gpu"] or f"{environment['cores']} cores, {environment['processor']}"
        rows.append({**{column: str(cells[column]) for column in _COLUMNS}, "device": device})
    return rows


def page_text(rows: Mapping[str, list[dict[str, str]]], place: Path) -> str:
    """The kept runs' headline figures, a table for each run."""
    parts = []
    for name, cells in rows.items():
        table = [["stage", "figure", "of", "value (95 %)"]]
        for row in cells:
            digits = 2 if row["figure"] in ("epsilon", "rank_correlation") else 1
            middle, low, high = (f"{float(row[key]):.{digits}f}" if row[key] else "" for key in ("value", "low", "high"))
            unit = {"%": " %", "points": " points"}.get(row["unit"], "")
            spread = f" ({low} to {high})" if low and high else ""
            table.append([row["stage"], FIGURES[row["figure"]][0], row["of"], f"{middle or 'none'}{unit}{spread}"])
        parts.append(f"`{name}` ({cells[0]['dataset']}):\n\n{as_markdown(table)}")
    return "\n\n".join(parts)
