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
from typing import Literal, cast

from apps.nas.training import Row, RowName, Shelf, Task
from apps.nas.workers import Crew, rows
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.decode import as_text
from distill.errors import InputError, clipped
from distill.labels import DEFAULT_KIND
from distill.records import append_line, read_lines, write_json_lines, write_whole
from distill.train import Recipe

COLUMNS = ("id", "seed", "status", "validation", "test", "seconds", "cpu_seconds", "parameters", "flops", "reason", "key")
_WHOLE_NUMBERS, _NUMBERS = ("seed", "parameters", "flops"), ("validation", "test", "seconds", "cpu_seconds")
MAX_TABLE_BYTES = 1 << 26
SPLITS: tuple[Literal["validation"], Literal["test"]] = ("validation", "test")
OnRow = Callable[[int, int, Row], None]  # done, total, row


class Ledger:
    """The rows by name.

    Args:
        path: the JSON-lines file; None keeps the rows in memory only.
        known: rows of a shipped table.
    """

    def __init__(self, path: Path | None = None, known: Iterable[Row] = ()) -> None:
        self.path = path
        self.rows: dict[RowName, Row] = {_name(row): row for row in known}
        if path is not None and path.exists():
            lines = list(read_lines(path))
            write_json_lines(path, lines)  # removes a last line that a kill cut off
            complete = (cast(Row, line) for line in lines if all(name in line for name in ("stage", "id", "seed", "key")))
            self.rows |= {_name(row): row for row in complete}

    def add(self, row: Row) -> None:
        """Append a row to the file and keep it."""
        if self.path is not None:
            append_line(self.path, dict(row))
        self.rows[_name(row)] = row

    def do(self, jobs: Sequence[Task], shelf: Shelf, crew: Crew, on_row: OnRow | None = None) -> list[Row]:
        """The rows of all jobs, in their order. Work is done only for unknown rows and for those given up under a smaller limit.

        Args:
            jobs: the work.
            shelf: data and sets.
            crew: the workers.
            on_row: called as ``on_row(done, total, row)`` after each row; from the second row on, ``row["left_seconds"]`` estimates the
                remaining seconds.
        """
        missing = [job for job in jobs if job.name not in self.rows or _worth_more_time(self.rows[job.name], crew.limit)]
        work = {job.name: job.images(shelf) for job in missing}
        total, done, first, start = sum(work.values()), 0, 0, 0.0
        # Also closed when ``on_row`` stops the study, so that no worker outlives it.
        with contextlib.closing(rows(missing, shelf, crew)) as finished:
            for count, row in enumerate(finished, 1):
                self.add(row)
                done += work[_name(row)]
                if count == 1:  # the start of the workers is not in the estimate
                    first, start = done, time.monotonic()
                elif on_row is not None:
                    row = {**row, "left_seconds": (time.monotonic() - start) / (done - first) * (total - done)}
                if on_row is not None:
                    on_row(count, len(missing), row)
        return [self.rows[job.name] for job in jobs]


def _worth_more_time(row: Row, limit: float | None) -> bool:
    return "limit" in row and (limit is None or limit > row["limit"])


def _name(row: Row) -> RowName:
    return row["stage"], row["id"], row["seed"], row["key"]


def data_key(data: ImageData, recipe: Recipe) -> str:
    """A hash of twelve hexadecimal digits over the training, validation and test images and the recipe."""
    digest = hashlib.sha256(f"{data.fingerprint} {json.dumps(dataclasses.asdict(recipe), sort_keys=True)}".encode())
    for split in (data.validation, data.test):
        digest.update(split.labels.cpu().numpy().tobytes())
        digest.update(split.images.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:12]


def set_key(condensed: CondensedSet, data: ImageData, recipe: Recipe) -> str:
    """The hash for training on a condensed set: `data_key` with the images, labels and step size of the set."""
    content = hashlib.sha256(condensed.images.cpu().contiguous().numpy().data)
    content.update(condensed.labels.cpu().numpy().tobytes())
    content.update(repr(condensed.lr).encode())
    if condensed.decode is not None:
        content.update(as_text(condensed.decode).encode())
    if condensed.label_kind != DEFAULT_KIND:
        content.update(condensed.label_kind.encode())
    if condensed.views is not None:
        content.update(str(condensed.views).encode())
        for tensor in condensed.views.tensors.values():
            content.update(tensor.cpu().contiguous().numpy().data)
    return hashlib.sha256(f"{data_key(data, recipe)} {content.hexdigest()}".encode()).hexdigest()[:12]


def write_table(path: Path, rows: Iterable[Row]) -> None:
    """Write truth rows as CSV with the columns `COLUMNS`, in the given order."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n", extrasaction="ignore", restval="")
    writer.writeheader()
    for row in rows:
        writer.writerow({key: _short(value) for key, value in row.items()})
    write_whole(path, text.getvalue())


def read_table(path: Path) -> list[Row]:
    """Read and check the rows of a truth table.

    Raises:
        InputError: the file cannot be read, has other columns, or a line is no truth row.
    """
    try:
        if path.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; a truth table has at most {MAX_TABLE_BYTES}.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({clipped(error)}).") from None
    reader = csv.DictReader(io.StringIO(text))
    if tuple(reader.fieldnames or ()) != COLUMNS:
        raise InputError(f"{path}: has the columns {clipped(reader.fieldnames)}; allowed: {', '.join(COLUMNS)}.")
    rows = []
    try:
        for line in reader:
            if None in line:
                raise ValueError("more values than columns")
            row = cast(Row, {"stage": "truth", **{key: _value(key, value) for key, value in line.items() if value}})
            if row["status"] not in ("ok", "failed") or not all(0 <= row.get(split, 0.0) <= 100 for split in SPLITS):
                raise ValueError("status or accuracy out of range")
            _name(row)
            rows.append(row)
    except (ValueError, KeyError, TypeError, csv.Error) as error:
        raise InputError(f"{path}: line {reader.line_num} is not a truth row ({clipped(error)}).") from None
    return rows


def _value(key: str, text: str) -> str | int | float:
    return int(text) if key in _WHOLE_NUMBERS else float(text) if key in _NUMBERS else text


def _short(value: object) -> object:
    return f"{value:.6g}" if isinstance(value, float) else value
