"""Numbers with their intervals, lists and tables as text: in sentences, columns, Markdown and CSV."""

import csv
import io
import itertools
import textwrap
from collections.abc import Iterable, Iterator

from distill.errors import InputError
from scenarios.engine.record import Results


def shown(row: Results) -> str:
    """An accuracy of a record as ``89.2 ± 0.6``, or ``failed (2 of 5)`` where networks have none."""
    if row.get("failed"):
        return f"failed ({row['failed']} of {len(row['values'])})"
    if row.get("high") is None:
        return f"{row['mean']:.1f}"
    # An interval that is cut off at 0 or 100 has its full length on the other side.
    return f"{row['mean']:.1f} ± {max(row['high'] - row['mean'], row['mean'] - row['low']):.1f}"


def few(count: int, what: str) -> list[str]:
    """A sentence where there is one only of what an interval needs several of."""
    return [f"One {what} only, so there is no interval."] if count < 2 else []


def other_split(name: str) -> list[str]:
    """A sentence where figures are not of the test split."""
    return [] if name == "test" else [f"The test images were not used: the figures are those of the {name} split."]


def series(values: Iterable[object]) -> str:
    """``a, b and c``."""
    texts = [f"{value:g}" if isinstance(value, float) else str(value) for value in values]
    return " and ".join([", ".join(texts[:-1]), texts[-1]] if len(texts) > 1 else texts)


def as_text(rows: list[list[str]], left: int = 1, width: int | None = None) -> str:
    """Columns under each other, the first ``left`` of them flush left.

    With ``width`` (characters of a terminal) no line is longer: columns that do not fit follow in further blocks, each with the first
    ``left`` columns again, and a cell that is too long is wrapped. Without it a row is one line.
    """
    if not rows:
        return ""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    every = list(range(len(widths)))
    if width is None or sum(widths) + 2 * (len(widths) - 1) <= width:
        return "\n".join(_lines(rows, every, widths, left))
    most = max(8, (width // 2 - 2 * left) // left)  # of a column that is repeated
    widths = [min(size, most) for size in widths[:left]] + widths[left:]
    room = width - sum(widths[:left]) - 2 * left
    widths = widths[:left] + [min(size, max(room, 8)) for size in widths[left:]]
    blocks: list[list[int]] = [[]]
    for place in every[left:]:
        if blocks[-1] and sum(widths[other] + 2 for other in [*blocks[-1], place]) > room + 2:
            blocks.append([])
        blocks[-1].append(place)
    return "\n\n".join("\n".join(_lines(rows, [*every[:left], *block], widths, left)) for block in blocks)


def _lines(rows: list[list[str]], places: list[int], widths: list[int], left: int) -> Iterator[str]:
    for row in rows:
        cells = [
            textwrap.wrap(row[place], widths[place], break_on_hyphens=False) if len(row[place]) > widths[place] else [row[place]]
            for place in places
        ]
        for parts in itertools.zip_longest(*cells, fillvalue=""):
            line = [part.ljust(widths[p]) if p < left else part.rjust(widths[p]) for part, p in zip(parts, places, strict=True)]
            yield "  ".join(line).rstrip()


def as_markdown(rows: list[list[str]]) -> str:
    """A table of Markdown; a bar inside a cell is escaped."""
    lines = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return "\n".join([*lines[:1], "|" + " --- |" * len(rows[0]), *lines[1:]]) if rows else ""


def as_csv(rows: list[list[str]]) -> str:
    """A table as CSV."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def replaced(page: str, begin: str, table: str, end: str) -> str:
    """The page with this table between its two marks. Raises `InputError` where a mark is missing."""
    head, found, rest = page.partition(begin)
    _, last, tail = rest.partition(end)
    if not (found and last):
        raise InputError(f"the page {page[:60]!r} has no place for a table; put {begin} and {end} where it belongs.")
    return f"{head}{begin}\n{table}\n{end}{tail}"
