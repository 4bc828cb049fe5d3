"""The runs of a grid: what stands between the commas of ``--set`` and in ``--seeds``, and every combination of it."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from distill.errors import InputError, clipped

MAX_CELLS = 10_000
MAX_SEED = 10**18 - 1  # of --seed and --seeds
_CLOSES = {"[": "]", "{": "}"}


def alternatives(value: str, key: str = "") -> list[str]:
    """The values between commas that stand outside brackets and quotes: ``1,10`` is two, ``[1,10]`` and ``"a,b"`` are one.

    ``key`` is what messages put before the value.

    A quote opens a text only where TOML lets one begin: at the start of a value. Raises `InputError` for an empty or repeated alternative,
    and for a bracket or quote that stays open in a value with commas.
    """
    if "," not in value:
        return [value]
    values, start, expected, quote, begins, skip = [], 0, [], "", True, False
    for place, char in enumerate(value):
        if quote:
            skip, escaped = char == "\\" and quote == '"' and not skip, skip
            if char == quote and not escaped:
                quote = ""
        elif char in "\"'" and begins:
            quote, begins = char, False
        elif char in _CLOSES:
            expected.append(_CLOSES[char])
            begins = True
        elif expected and char == expected[-1]:
            expected.pop()
            begins = False
        elif char == "," and not expected:
            values.append(value[start:place])
            start, begins = place + 1, True
        elif not char.isspace():
            begins = char in ",="
    values = [text.strip() for text in [*values, value[start:]]]
    setting = f"{key}={value}" if key else value
    if quote or expected:
        raise InputError(f"--set {clipped(setting)!r}: {quote or expected[-1]} is missing; close it, or put the whole value in quotes.")
    if not all(values):
        raise InputError(f"--set {clipped(setting)!r}: an alternative is empty; allowed: values between commas, for example 1,10,50.")
    if len(set(values)) < len(values):
        raise InputError(f"--set {clipped(setting)!r}: an alternative is there twice; allowed: different ones.")
    return values


def combinations(settings: list[str]) -> list[tuple[list[str], list[str]]]:
    """Every combination of the settings' alternatives: (all its settings, those of them that vary)."""
    options = []
    for setting in settings:
        key, equals, value = setting.partition("=")
        options.append([f"{key}={combination}" for combination in alternatives(value, key)] if equals else [setting])
    count = 1
    for option in options:
        count *= len(option)
    _not_too_many(count)
    varied = [len(option) > 1 for option in options]
    return [(list(combination), list(itertools.compress(combination, varied))) for combination in itertools.product(*options)]


def seeds(text: str) -> list[int]:
    """The seeds of a text: ``0..4`` is 0 to 4, both included; ``0..2,7`` is 0, 1, 2, 7.

    Raises:
        InputError: for another form, a repeated seed, and more than `MAX_CELLS` seeds.
    """
    numbers: list[int] = []
    for part in text.split(","):
        first, dots, last = (piece.strip() for piece in part.partition(".."))
        ends = (first, last) if dots else (first, first)
        if not all(end.isascii() and end.isdigit() and len(end) <= len(str(MAX_SEED)) for end in ends) or int(ends[0]) > int(ends[1]):
            raise InputError(f"--seeds {clipped(text)!r}: allowed: whole numbers and ranges, for example 0..4 or 0,3,7.")
        _not_too_many(int(ends[1]) - int(ends[0]) + 1)
        numbers += range(int(ends[0]), int(ends[1]) + 1)
    if len(set(numbers)) < len(numbers):
        raise InputError(f"--seeds {clipped(text)!r}: a seed is there twice; allowed: different ones.")
    return numbers


def _not_too_many(count: int) -> None:
    if count > MAX_CELLS:
        raise InputError(f"the grid has {count} runs; allowed: at most {MAX_CELLS}. Give fewer seeds or alternatives.")


@dataclass(frozen=True)
class Cell:
    """One run of the grid."""

    label: str
    arguments: tuple[str, ...]  # what its command line has beside the options that all cells share
    folder: Path


def cells(
    combinations: list[tuple[list[str], list[str]]], seeds: list[int], folder_of: Callable[[list[str], int], Path]
) -> tuple[list[Cell], dict[str, InputError]]:
    """(the runs to make, the wrong ones by label); two that would share a folder are refused."""
    _not_too_many(len(combinations) * len(seeds))
    good: dict[Path, Cell] = {}
    wrong: dict[str, InputError] = {}
    for settings, varied in combinations:
        for seed in seeds:
            label = " ".join([*varied, f"seed {seed}"])
            try:
                folder = folder_of(settings, seed)
            except InputError as error:
                wrong[label] = error
                continue
            if folder in good:
                raise InputError(f"{good[folder].label!r} and {label!r} are the same run; give different alternatives.")
            options = [part for setting in settings for part in ("--set", setting)]
            good[folder] = Cell(label, (*options, "--seed", str(seed)), folder)
    return list(good.values()), wrong
