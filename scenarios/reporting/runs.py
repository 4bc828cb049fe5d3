"""`distill table`: what runs that differ in nothing but their seed found together, as mean and 95 % interval over the seeds.

A figure is a part of a record's `results` with a middle and an interval (``mean`` or ``value``, ``low``, ``high``). Its name is its path,
as docs/results.md has it: ``ipc10.accuracy.dm``, ``strategies.feddm.accuracy``. An entry of a list is named by its texts, else by its first
whole number, else by its place: ``cells.gdumb items1 dm float32.accuracy``, ``strategies.feddm.rounds.2.accuracy``.
"""

import fnmatch
import itertools
import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from distill.errors import InputError, clipped
from distill.records import Json, read_json
from scenarios.engine.record import Config, Record, Results
from scenarios.engine.study import Kinds
from scenarios.reporting.text import as_csv, as_markdown, as_text

FORMATS = ("text", "markdown", "csv")
HEADER = ("run", "figure", "seeds", "mean", "low", "high", "interval over")
NO_KINDS: Kinds = MappingProxyType({})
_HOW = ("scenario", "title", "seed", "device", "run")  # keys of config.json that say how a study was run, not what it is


@dataclass(frozen=True)
class Run:
    """A run folder that was read: what the study is, flat (``{"method.ipc": "[1, 10]"}``), and (middle, low, high) of figures by name."""

    folder: Path
    record: Record
    config: Config
    settings: dict[str, str]
    figures: dict[str, tuple[float, float | None, float | None]]
    main: str = ".*"  # a regular expression of the figures that a reader looks for first

    @property
    def scenario(self) -> str:
        """The study's name."""
        return str(self.record["scenario"])

    @property
    def main_figures(self) -> dict[str, tuple[float, float | None, float | None]]:
        """The figures that a reader looks for first."""
        return {name: self.figures[name] for name in _chosen(self.figures, self.main, ())}


def read_run(folder: Path, kinds: Kinds = NO_KINDS) -> Run:
    """Read a run folder.

    Args:
        folder: the run folder.
        kinds: say which figures a reader looks for first.

    Raises:
        InputError: where record.json or config.json is missing, damaged or of another form.
    """
    record: Record = read_json(folder / "record.json")
    config: Config = read_json(folder / "config.json")
    if not isinstance(record, dict) or record.get("schema") != 1 or not isinstance(record.get("results"), dict):
        raise InputError(f"{folder / 'record.json'}: is not a record of schema 1.")
    if not isinstance(record.get("scenario"), str) or type(record.get("seed")) is not int:
        raise InputError(f"{folder / 'record.json'}: is not a complete record (scenario or seed is missing).")
    if not isinstance(config, dict):
        raise InputError(f"{folder / 'config.json'}: is not a configuration.")
    try:
        settings = dict(_flat({key: value for key, value in config.items() if key not in _HOW}, ""))
        return Run(folder, record, config, settings, dict(_figures(record["results"], "")), _main(record, kinds))
    except RecursionError:
        raise InputError(f"{folder / 'record.json'}: is not a record of this program (parts inside parts without end).") from None


def _main(record: Record, kinds: Kinds) -> str:
    kind = record.get("kind", "condense")
    return kinds[kind].view.main if isinstance(kind, str) and kind in kinds else ".*"


def find_runs(places: Sequence[Path], kinds: Kinds = NO_KINDS) -> list[Run]:
    """The runs of these folders: a run folder itself, or all run folders directly inside; each once."""
    folders: dict[Path, Path] = {}
    for place in places:
        inside = [place] if (place / "record.json").exists() else sorted(path.parent for path in place.glob("*/record.json"))
        if not inside:
            raise InputError(
                f"{place}: holds no run (no record.json in it or in its folders); give run folders, or the folder they are in."
            )
        folders |= {folder.resolve(): folder for folder in inside}
    return [read_run(folder, kinds) for folder in folders.values()]


def finished(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """(the runs that are done, a line for each that is not)."""
    done = [run for run in runs if run.record.get("status") == "done"]
    return done, [f"left out: {run.folder} (status {clipped(run.record.get('status'))})" for run in runs if run not in done]


def by_seed(runs: Sequence[Run]) -> list[list[Run]]:
    """Runs of one study in one group, in the order of their seeds; a seed that comes twice is refused, for it would count twice."""
    groups: dict[str, list[Run]] = {}
    for run in runs:
        groups.setdefault(json.dumps([run.scenario, run.settings], sort_keys=True), []).append(run)
    for group in groups.values():
        group.sort(key=lambda run: run.record["seed"])
        for previous, other in itertools.pairwise(group):
            if previous.record["seed"] == other.record["seed"]:
                raise InputError(f"{previous.folder} and {other.folder} are the same study with the same seed; give one of them.")
    return list(groups.values())


def differing(runs: Sequence[Run]) -> list[str]:
    """The settings in which the runs differ, as names."""
    settings = [run.settings for run in runs]
    return [key for key in dict.fromkeys(key for one in settings for key in one) if len({one.get(key) for one in settings}) > 1]


def summary(runs: Sequence[Run], patterns: Sequence[str] = ()) -> list[list[str]]:
    """Header and rows: one row a figure of each group of runs. ``patterns`` choose figures by name (``*`` stands for anything)."""
    from distill.evaluation import Accuracy

    groups = by_seed(runs)
    rows = [list(HEADER)]
    for group in groups:
        first = group[0]
        changed = differing([other[0] for other in groups if other[0].scenario == first.scenario])
        label = " ".join([first.scenario, *(f"{key}={first.settings.get(key, '')}" for key in changed)])
        figures = [run.figures for run in group]
        for name in _chosen(dict.fromkeys(name for one in figures for name in one), first.main, patterns):
            values = [one[name] for one in figures if name in one]
            if len(values) == 1:
                middle, low, high = values[0]
                over = "within the run" if low is not None and high is not None else ""
            else:
                # Not cut off at 0 or 100: a rank correlation or a forgetting is no percentage.
                measured = Accuracy(tuple(value[0] for value in values))
                middle, low, high, over = measured.mean, measured.mean - measured.half_width, measured.mean + measured.half_width, "seeds"
            rows.append(
                [clipped(label, 300), name, str(len(values)), *("" if x is None else f"{x:.6g}" for x in (middle, low, high)), over]
            )
    return rows


def no_figures(runs: Sequence[Run], patterns: Sequence[str]) -> InputError:
    """The error for runs that have none of the figures that were asked for."""
    names = list(dict.fromkeys(name for run in runs for name in run.figures))
    if not names:
        return InputError("the runs have no figures with an interval; nothing was evaluated in them.")
    return InputError(f"no figure is named {' or '.join(map(repr, patterns))}; there are: {clipped(', '.join(names), 800)}.")


def short(rows: list[list[str]]) -> list[list[str]]:
    """The rows of `summary` for a reader: four digits, the interval in one cell."""
    found = [["run", "figure", "seeds", "mean", "95 % interval", "interval over"]]
    for label, name, count, *numbers, over in rows[1:]:
        middle, low, high = (f"{float(x):.4g}" if x else "" for x in numbers)
        found.append([label, name, count, middle, f"{low} to {high}" if low and high else "-", over])
    return found


def shown(rows: list[list[str]], form: str, width: int | None = None) -> str:
    """The rows of `summary` as ``text`` (``width``: see `as_text`), ``markdown`` or ``csv`` (more digits, low and high in columns)."""
    return as_csv(rows) if form == "csv" else as_markdown(short(rows)) if form == "markdown" else as_text(short(rows), left=2, width=width)


def _chosen(names: Iterable[str], main: str, patterns: Sequence[str]) -> list[str]:
    every = list(names)
    if patterns:
        return [name for name in every if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    return [name for name in every if re.fullmatch(main, name)] or every


def _number(value: Json) -> float | None:
    """A finite number; None for anything else."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) else None


def _figures(part: Json, path: str) -> Iterator[tuple[str, tuple[float, float | None, float | None]]]:
    if isinstance(part, dict):
        middle = next((value for key in ("mean", "value") if (value := _number(part.get(key))) is not None), None)
        if middle is not None and {"low", "high"} <= set(part):
            yield path, (middle, _number(part["low"]), _number(part["high"]))
        else:
            for key, inner in part.items():
                yield from _figures(inner, f"{path}.{key}" if path else str(key))
    elif isinstance(part, list):
        taken: set[str] = set()
        for place, inner in enumerate(part, 1):
            if isinstance(inner, dict):
                name = _entry(inner) or str(place)
                name = f"{name} #{place}" if name in taken else name
                taken.add(name)
                yield from _figures(inner, f"{path}.{name}" if path else name)


def _entry(part: Results) -> str:
    """What an entry of a list is called: its texts, else its first whole number."""
    texts = [value for value in part.values() if isinstance(value, str) and value]
    return " ".join(texts) or next((str(value) for value in part.values() if type(value) is int), "")


def _flat(value: Json, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value)
