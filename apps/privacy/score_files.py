"""Scores of an attack from a file of another program: npz or csv, never unpickled, with the same names of arrays and columns.

Either ``in_scores`` and ``out_scores``: those of members and of others. Or ``score`` (higher for members) or ``loss`` (lower for members)
with ``member``, which is 1 or 0 for each. A csv file is UTF-8, with commas (.csv) or tabs (.tsv); its first line has the names of its
columns; further columns are not read.
"""

import codecs
import csv
from pathlib import Path

import numpy as np

from apps.privacy.metrics import checked
from distill.errors import InputError, clipped

MAX_FILE_BYTES = 1 << 30
PAIR = ("in_scores", "out_scores")
RULE = "needed: in_scores and out_scores, or score (or loss) and member"
NAMES = frozenset((*PAIR, "score", "loss", "member"))
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons"}
TRUE, FALSE = ("1", "1.0", "true", "in", "member"), ("0", "0.0", "false", "out", "other")


def read_scores(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Scores of members (n,) and of others (m,), higher for members.

    Raises:
        InputError: names what is wrong with the file, and in which line of a csv file.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; allowed: at most {MAX_FILE_BYTES}.")
        columns = _csv(path) if path.suffix.lower() in (".csv", ".tsv") else _npz(path)
    except InputError:
        raise
    except UnicodeDecodeError:
        raise InputError(f"{path}: its text is not UTF-8; save it again as UTF-8.") from None
    except Exception as error:  # damaged archives raise a dozen types
        form = "a csv" if path.suffix.lower() in (".csv", ".tsv") else "an npz"
        raise InputError(f"{path}: cannot be read as {form} file ({type(error).__name__}: {clipped(error, 80)}).") from None
    return _divided(path, columns)


def _divided(path: Path, columns: dict[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if any(name in columns for name in PAIR):
        missing = [name for name in PAIR if name not in columns]
        if missing:
            raise InputError(f"{path}: has no {missing[0]!r}; {RULE}.")
        inside, outside = (checked(columns[name], f"{path}: {name}") for name in PAIR)
        return inside, outside
    found = [name for name in ("score", "loss") if name in columns]
    if len(found) != 1 or "member" not in columns:
        names = ", ".join(clipped(name, 30) for name in list(columns)[:8]) or "none"
        raise InputError(f"{path}: its names are {names}; {RULE}.")
    values = checked(columns[found[0]], f"{path}: {found[0]}") * (-1.0 if found == ["loss"] else 1.0)
    member = np.asarray(columns["member"])
    if member.shape != values.shape or not np.isin(member, (0, 1)).all():
        raise InputError(f"{path}: member has shape {member.shape} for {len(values)} scores; allowed: one 1 or 0 for each.")
    inside = member.astype(bool)
    return checked(values[inside], f"{path}: scores of members"), checked(values[~inside], f"{path}: scores of others")


def _npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
        if isinstance(arrays, np.ndarray):
            raise InputError(f"{path}: is one array without a name; {RULE}.")
        return {name: arrays[name] for name in (*PAIR, "score", "loss", "member") if name in arrays}


def _csv(path: Path) -> dict[str, np.ndarray]:
    separator = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open("rb") as file:
        begin = file.read(64)
    if b"\0" in begin or begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise InputError(f"{path}: its text is UTF-16, or not text; save it again as UTF-8 (a spreadsheet program offers CSV UTF-8).")
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file, delimiter=separator)
        names = [name.strip() for name in next(lines, [])]
        known = [name for name in names if name in NAMES]
        if not known and len(names) == 1:
            _check_separator(path, names[0], separator)
        if len(set(known)) != len(known) or not known:
            raise InputError(f"{path}: its first line is {clipped(','.join(names), 80)!r}; {RULE} as names of columns.")
        values: dict[str, list[float]] = {name: [] for name in known}
        for row in lines:
            for name, text in zip(names, (part.strip() for part in row), strict=False):
                if name in values and not (text == "" and name in PAIR):  # the two lists may have different lengths
                    values[name].append(_number(path, lines.line_num, name, text))
    return {name: np.asarray(column, dtype=np.float64) for name, column in values.items()}


def _check_separator(path: Path, line: str, needed: str) -> None:
    """Raises `InputError` where the first line has names of columns between other separators than the one that is needed."""
    for found, what in SEPARATORS.items():
        if found in line and NAMES & {name.strip(" \"'") for name in line.split(found)}:
            # Spreadsheet programs write semicolons where they write decimal commas.
            points = ", and numbers with a decimal point" if found == ";" else ""
            raise InputError(f"{path}: its columns are separated by {what}; save it again with {SEPARATORS[needed]} between them{points}.")


def _number(path: Path, line: int, name: str, text: str) -> float:
    if name == "member" and text.lower() in (*TRUE, *FALSE):
        return float(text.lower() in TRUE)
    try:
        return float(text)
    except ValueError:
        allowed = "1 or 0" if name == "member" else "a number"
        raise InputError(f"{path}: line {line}: {name} is {clipped(text, 40)!r}; allowed: {allowed}.") from None
