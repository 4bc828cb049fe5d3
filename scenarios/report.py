"""Reports: the numbers of a record as text, and one self-contained HTML page of one or more run folders."""

import base64
import html
import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from distill.errors import InputError
from distill.records import read_json, write_whole
from scenarios.schema import READY

_NOTE = "Test accuracy in percent: mean and 95 % interval over networks, last epoch, one recipe for all sets."  # a room may have its own
_STYLE = """
:root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
body { max-width: 60rem; margin: 0 auto; padding: 1rem; }
img { max-width: 100%; height: auto; background: #fff; border-radius: 4px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .8rem .2rem 0; text-align: right; border-bottom: 1px solid #8884; }
th:first-child, td:first-child { text-align: left; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
"""


def shown(row: dict[str, Any]) -> str:
    """An accuracy of a record as ``89.2 ± 0.6``."""
    if row.get("high") is None:
        return f"{row['mean']:.1f}"
    # An interval that is cut off at 0 or 100 has its full length on the other side.
    return f"{row['mean']:.1f} ± {max(row['high'] - row['mean'], row['mean'] - row['low']):.1f}"


def accuracy_table(record: dict[str, Any]) -> list[list[str]]:
    """Header and rows of the record's main table, as its kind tells it."""
    found: list[list[str]] = _room(record).accuracy_table(record)
    return found


def answer(record: dict[str, Any]) -> str:
    """The record in one sentence, as its kind tells it."""
    found: str = _room(record).answer(record)
    return found


def _room(record: dict[str, Any]) -> ModuleType:
    kind = record.get("kind", "condense")
    if kind not in READY:  # a record may come from anywhere
        raise InputError(f"the record's kind is {str(kind)[:40]!r}; this version can show: {', '.join(READY)}.")
    return importlib.import_module(f"scenarios.{kind}")


def write_report(folders: Sequence[Path], out: Path) -> None:
    """One HTML file with everything inside; run folders one after the other."""
    body = "".join(_section(folder) for folder in folders)
    page = "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'><title>distill report</title>"
    write_whole(out, f"{page}<style>{_STYLE}</style><body>{body}</body></html>\n")


def _section(folder: Path) -> str:
    try:
        return _described(folder)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{folder / 'record.json'}: is not a whole record ({type(error).__name__}: {error}).") from None


def _described(folder: Path) -> str:
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    if not isinstance(record, dict) or record.get("schema") != 1 or not isinstance(record.get("results"), dict):
        raise InputError(f"{folder / 'record.json'}: is not a record of schema 1.")
    escape = html.escape
    rows = accuracy_table(record)
    cells = "".join(
        "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in row) + "</tr>"
        for row, tag in zip(rows, ["th"] + ["td"] * len(rows), strict=False)
    )
    figures = "".join(
        f"<figure><img alt='{escape(path.stem)}' src='data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}'></figure>"
        for path in sorted((folder / "figures").glob("*.png"))
    )
    gigabytes, processor = record["peak_memory_bytes"] / 1e9, record["environment"]["processor"]
    facts = f"{record['seconds']:.0f} s, peak memory {gigabytes:.2f} GB, {processor}, seed {record['seed']}"
    return (
        f"<h1>{escape(str(record.get('title') or record['scenario']))}</h1><p>{escape(answer(record))}</p>"
        f"<div class=wide><table>{cells}</table></div>"
        f"<p>{escape(getattr(_room(record), 'note', _NOTE))}</p>"
        f"{figures}<p>{escape(facts)}</p>"
        f"<details><summary>Configuration</summary><pre>{escape(json.dumps(config, indent=1))}</pre></details>"
    )
