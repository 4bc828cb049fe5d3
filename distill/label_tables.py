"""Labels in tables: a CSV file with one line an image, and Tiny-ImageNet's val_annotations.txt."""

import csv
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from distill.errors import InputError, clipped

MAX_TABLE_BYTES = 1 << 30
SPLITS = ("train", "test", "val")
# Common column names, in lower case without spaces and punctuation; the first one in a table is used.
_FILE_COLUMNS = (
    *(
        "filename",
        "filenames",
        "file",
        "files",
        "filepath",
        "filepaths",
        "path",
        "paths",
        "image",
        "images",
        "img",
        "imagename",
        "imagepath",
    ),
    *("imagefile", "imageid", "imgname", "imgid", "idcode", "picture", "photo", "name", "id"),
)
_LABEL_COLUMNS = (
    *("label", "labels", "classname", "class", "classes", "category", "target", "targets", "y", "labelname", "classid", "labelid"),
    "categoryid",
)
_SPLIT_COLUMNS = ("split", "splits", "partition", "dataset", "subset", "set", "phase")
_WORDS = {
    **dict.fromkeys(("train", "training", "trn"), "train"),
    **dict.fromkeys(("test", "testing", "tst"), "test"),
    **dict.fromkeys(("val", "valid", "validation", "validate", "eval", "evaluation", "dev"), "val"),
}
_NEUTRAL = ("set", "data", "dataset", "split", "images", "image", "imgs", "img", "labels", "label", "folder", "list", "annotations")


class Row(NamedTuple):
    """One labelled image; ``part`` is "train", "test" or "val", or None if the table does not state it."""

    file: Path
    label: str
    part: str | None


def split_of(name: str) -> tuple[str, tuple[str, ...]] | None:
    """("train", "test" or "val"; the other words) of a name like Training, val_images or seg_test; None where it names no split."""
    words = [word for word in re.split(r"[\W_]+", name.casefold()) if word]
    splits: list[str] = []
    rest: list[str] = []
    for word in words:
        short = next((word.removesuffix(end) for end in _NEUTRAL if word.endswith(end) and word.removesuffix(end) in _WORDS), word)
        if short in _WORDS:
            splits.append(_WORDS[short])
        elif word not in _NEUTRAL:
            rest.append(word)
    return (splits[0], tuple(rest)) if len(splits) == 1 else None


class Places:
    """Finds image files by the names in a table: a path or the end of one, with or without its suffix."""

    def __init__(self, top: Path, files: Iterable[Path]) -> None:
        self.top = top
        self._by_tail: dict[tuple[str, ...], list[Path]] = {}
        for file in files:
            parts = file.relative_to(top).parts
            for start in range(len(parts)):
                tail = parts[start:]
                self._by_tail.setdefault(tail, []).append(file)
                self._by_tail.setdefault((*tail[:-1], file.stem), []).append(file)

    def find(self, text: str, part: str | None) -> list[Path]:
        """The files that ``text`` may name, those in a folder named after the split ``part`` if there are any. Several are ambiguous."""
        steps = tuple(step for step in text.replace("\\", "/").split("/") if step not in ("", "."))
        for start in range(len(steps)):  # a path of another machine ends in the same file name
            if matches := self._by_tail.get(steps[start:]):
                inside = [file for file in matches if part is not None and self.part(file) == part]
                return inside or matches
        return []

    def part(self, file: Path) -> str | None:
        """The split after which the nearest folder above the file is named; None without one."""
        for folder in file.relative_to(self.top).parents:
            if named := split_of(folder.name):
                return named[0]
        return None


def read_table(table: Path, places: Places, what: str) -> list[Row] | None:
    """Read a CSV file of labels.

    Columns are recognised by their names or, in a table of two columns, by which of them names files. Labels may be one-hot columns.

    Args:
        table: the file.
        places: finds the images.
        what: begins the messages of errors.

    Returns:
        The rows; None if the file has no column that names existing images, or no labels.

    Raises:
        InputError: with the line, for an image that is missing or has two labels.
    """
    lines = _lines(table, what)
    if not lines:
        return None
    named = split_of(table.stem)
    part = named[0] if named else places.part(table)
    head = [re.sub(r"[\W_]+", "", cell.casefold()) for _, row in lines[:1] for cell in row]
    file_at = next((head.index(name) for name in _FILE_COLUMNS if name in head), None)
    label_at = next((head.index(name) for name in _LABEL_COLUMNS if name in head and head.index(name) != file_at), None)
    split_at = next((head.index(name) for name in _SPLIT_COLUMNS if name in head and head.index(name) not in (file_at, label_at)), None)
    body = lines[1:]
    if file_at is None or not any(_cell(row, file_at) and places.find(_cell(row, file_at), part) for _, row in body):
        columns = [at for at in range(len(head)) if any(places.find(_cell(row, at), part) for _, row in lines)]
        if len(head) != 2 or len(columns) != 1:
            return None
        file_at, label_at, split_at = columns[0], 1 - columns[0], None
        if places.find(_cell(lines[0][1], file_at), part):
            body = lines  # no line of names
    if label_at is None:
        hot = _one_hot([row for _, row in body], [at for at in range(len(head)) if at not in (file_at, split_at)])
        if hot is None:
            return None
        labels = [lines[0][1][at].strip() for at in hot]
    else:
        labels = [_cell(row, label_at) for _, row in body]
    return _rows(table, body, file_at=file_at, labels=labels, split_at=split_at, part=part, places=places, what=what)


def read_annotations(table: Path, places: Places, what: str) -> list[Row]:
    """Rows of a file like Tiny-ImageNet's val_annotations.txt: file name, tab, class, tab, a box that is not needed."""
    body = [(number, row) for number, row in _lines(table, what, "\t") if len(row) > 1]
    labels = [_cell(row, 1) for _, row in body]
    return _rows(table, body, file_at=0, labels=labels, split_at=None, part=places.part(table), places=places, what=what)


def sorted_labels(labels: Iterable[str]) -> list[str]:
    """The distinct labels, in numerical order if all are whole numbers, else in alphabetical order."""
    different = set(labels)
    return sorted(different, key=int) if all(re.fullmatch(r"-?\d{1,18}", label) for label in different) else sorted(different)


def _rows(
    table: Path,
    body: Sequence[tuple[int, list[str]]],
    *,
    file_at: int,
    labels: Sequence[str],
    split_at: int | None,
    part: str | None,
    places: Places,
    what: str,
) -> list[Row]:
    rows: dict[Path, Row] = {}
    for (number, row), text in zip(body, labels, strict=True):
        line, label = f"{what}: {table.name} line {number}", re.sub(r"^(-?\d+)\.0+$", r"\1", text)  # 3.0, as pandas writes it
        mine = part
        if split_at is not None and (split_name := _cell(row, split_at)):
            split = split_of(split_name)
            if split is None:
                raise InputError(f"{line}: split {clipped(split_name)!r} is not known; allowed: {', '.join(SPLITS)}.")
            mine = split[0]
        files = places.find(_cell(row, file_at), mine)
        if len(files) != 1:
            state = "is not there" if not files else f"may be {clipped(files[0], 200)} or {clipped(files[1], 200)}"
            raise InputError(f"{line}: image {clipped(_cell(row, file_at))!r} {state}; write its path, or delete the line.")
        if not label:
            raise InputError(f"{line}: has no label; write one, or delete the line.")
        new = Row(files[0], label, mine or places.part(files[0]))
        if rows.setdefault(files[0], new) != new:
            old = rows[files[0]]
            raise InputError(
                f"{line}: image {clipped(files[0].name)!r} is {clipped(label)!r} ({mine or 'no split'}) here and {clipped(old.label)!r} "
                f"({old.part or 'no split'}) in a line before; each image may have one label."
            )
    many = len({row.label for row in rows.values()})
    if many > 20 and many > len(rows) / 2:
        raise InputError(f"{what}: {table.name} has {many} different labels for {len(rows)} images; allowed: a column of classes.")
    return list(rows.values())


def _one_hot(rows: Sequence[list[str]], columns: list[int]) -> list[int] | None:
    """The column of each row's 1, if all its other columns are 0; None if some row is not one-hot."""
    columns_of_ones = []
    for row in rows:
        cells = [_cell(row, at) for at in columns]
        ones = [at for at, cell in zip(columns, cells, strict=True) if cell in ("1", "1.0")]
        if len(columns) < 2 or len(ones) != 1 or any(cell not in ("0", "0.0", "1", "1.0") for cell in cells):
            return None
        columns_of_ones.append(ones[0])
    return columns_of_ones


def _cell(row: Sequence[str], at: int) -> str:
    return row[at].strip() if at < len(row) else ""


def _lines(table: Path, what: str, delimiter: str | None = None) -> list[tuple[int, list[str]]]:
    """(line number, cells) of all lines that are not empty, separated by commas, semicolons or tabs."""
    try:
        if table.stat().st_size > MAX_TABLE_BYTES:
            raise InputError(f"{what}: {table.name} has {table.stat().st_size} bytes; allowed: at most {MAX_TABLE_BYTES}.")
        with table.open(newline="", encoding="utf-8-sig") as opened:
            first = opened.readline()
            opened.seek(0)
            reader = csv.reader(opened, delimiter=delimiter or max(",;\t", key=first.count))
            return [(reader.line_num, row) for row in reader if any(cell.strip() for cell in row)]
    except UnicodeDecodeError:
        raise InputError(f"{what}: {table.name} is not UTF-8 text; save it as CSV UTF-8.") from None
    except (OSError, csv.Error) as error:
        raise InputError(f"{what}: {table.name} cannot be read ({error}).") from None


def is_table(path: Path) -> bool:
    """Whether this CSV or TSV file may hold labels; the sample submission of a competition does not."""
    return path.suffix.lower() in (".csv", ".tsv") and "submission" not in path.stem.casefold() and path.is_file()
