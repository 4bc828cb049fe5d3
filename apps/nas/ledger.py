"""The rows of a study: a JSON-lines file with one writer, a line a network as it finishes, and the truth as a table to ship.

A row is named by stage, network, seed and key (data and recipe). What is in the file, or in a shipped table with the same key, is never
trained again; a study that was killed loses the networks that were in training.
"""

import contextlib
import csv
import dataclasses
import hashlib
import io
import json
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from apps.nas.training import Shelf, Task
from apps.nas.workers import Crew, Row, rows
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError, clipped
from distill.labels import DEFAULT_KIND
from distill.records import append_line, read_lines, write_json_lines, write_whole
from distill.train import Recipe

COLUMNS = ("id", "seed", "status", "validation", "test", "seconds", "cpu_seconds", "parameters", "flops", "reason", "key")
_WHOLE_NUMBERS, _NUMBERS = ("seed", "parameters", "flops"), ("validation", "test", "seconds", "cpu_seconds")
MAX_TABLE_BYTES = 1 << 26


class Ledger:
    """The rows by name. ``path`` None keeps them in memory only."""

    def __init__(self, path: Path | None = None, known: Iterable[Row] = ()) -> None:
        self.path = path
        self.rows: dict[tuple[Any, ...], Row] = {_name(row): row for row in known}
        if path is not None and path.exists():
            lines = list(read_lines(path))
            write_json_lines(path, lines)  # a line that a kill cut off is not continued by the next one
            self.rows |= {_name(row): row for row in lines if "id" in row and "key" in row}

    def add(self, row: Row) -> None:
        """Write a row down and know it."""
        if self.path is not None:
            append_line(self.path, row)
        self.rows[_name(row)] = row

    def do(self, jobs: Sequence[Task], shelf: Shelf, crew: Crew, told: Callable[[int, int, Row], None] | None = None) -> list[Row]:
        """Rows of all jobs, in their order; those not yet known are worked on, and those given up under a smaller limit than now.
        ``told(done, of, row)`` hears of each, in its row also an estimate of the ``left_seconds`` for all, from the second on."""
        missing = [job for job in jobs if job.name not in self.rows or _worth_more_time(self.rows[job.name], crew.limit)]
        work = {job.name: job.images(shelf) for job in missing}
        total, done, first, start = sum(work.values()), 0, 0, 0.0
        # Closed also when ``told`` stops the study, so that no worker outlives it.
        with contextlib.closing(rows(missing, shelf, crew)) as found:
            for count, row in enumerate(found, 1):
                self.add(row)
                done += work[_name(row)]
                if count == 1:  # the start of the workers is not in the estimate
                    first, start = done, time.monotonic()
                elif told is not None:
                    row = {**row, "left_seconds": (time.monotonic() - start) / (done - first) * (total - done)}
                if told is not None:
                    told(count, len(missing), row)
        return [self.rows[job.name] for job in jobs]


def _worth_more_time(row: Row, limit: float | None) -> bool:
    return "limit" in row and (limit is None or limit > row["limit"])


def _name(row: Row) -> tuple[Any, ...]:
    return row.get("stage"), row.get("id"), row.get("seed"), row.get("key")


def data_key(data: ImageData, recipe: Recipe) -> str:
    """Twelve letters that change with the training or the measured images, or with the recipe."""
    digest = hashlib.sha256(f"{data.fingerprint} {json.dumps(dataclasses.asdict(recipe), sort_keys=True)}".encode())
    for split in (data.validation, data.test):
        digest.update(split.labels.cpu().numpy().tobytes())
        digest.update(split.images.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def set_key(condensed: CondensedSet, data: ImageData, recipe: Recipe) -> str:
    """The same for training on a condensed set and measuring on the data."""
    content = hashlib.sha256(condensed.images.cpu().contiguous().numpy().data)
    content.update(condensed.labels.cpu().numpy().tobytes())
    content.update(repr(condensed.lr).encode())
    if condensed.label_kind != DEFAULT_KIND:
        content.update(condensed.label_kind.encode())
    return hashlib.sha256(f"{data_key(data, recipe)} {content.hexdigest()}".encode()).hexdigest()[:12]


def write_table(path: Path, found: Iterable[Row]) -> None:
    """Truth rows as csv (`COLUMNS`), in order of id and seed."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    for row in found:
        writer.writerow({key: _short(value) for key, value in row.items()})
    write_whole(path, text.getvalue())


def read_table(path: Path) -> list[Row]:
    """The rows of a truth table, checked; `InputError` names what is wrong."""
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; a truth table has at most {MAX_TABLE_BYTES}.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({clipped(error)}).") from None
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path}: has the columns {clipped(reader.fieldnames)}; allowed: {', '.join(COLUMNS)}.")
    found = []
    try:
        for line in reader:
            if None in line:
                raise ValueError("more values than columns")
            row: Row = {key: _value(key, value) for key, value in line.items() if value}
            if row["status"] not in ("ok", "failed") or not all(0 <= row.get(split, 0.0) <= 100 for split in ("validation", "test")):
                raise ValueError("status or accuracy out of range")
            found.append({"stage": "truth", **row})
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: line {reader.line_num} is not a truth row ({clipped(error)}).") from None
    return found


def _value(key: str, text: str) -> Any:
    return int(text) if key in _WHOLE_NUMBERS else float(text) if key in _NUMBERS else text


def _short(value: Any) -> Any:
    return f"{value:.6g}" if isinstance(value, float) else value
