"""`distill compare`: the paired difference of two finished runs, or of two groups of runs, with its 95 % interval.

With one run on each side the pairs are evaluation networks of equal seed: the interval says how the two sets differ, not how the methods
would with another seed. With several on each side the pairs are runs of equal seed, each by its mean: networks of one run share its set and
are not independent. A figure that carries the method's name (``ipc1.accuracy.dm``) meets its counterpart under the other method's name.
"""

import fnmatch
import glob
import itertools
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.errors import InputError, clipped
from distill.paired import Difference, paired_difference
from distill.records import Json
from scenarios.engine.study import Kinds
from scenarios.reporting.runs import NO_KINDS, Run, by_seed, find_runs, finished
from scenarios.reporting.text import as_csv, as_markdown, as_text

FORMATS = ("text", "markdown", "csv", "json")
# Settings in which two runs may differ: what is being compared. All others say how it is measured.
_FREE = re.compile(r"(kind|method|settings|own|evaluation\.(seeds|baselines))(\..*)?")
_MEASURED = re.compile(r"(data|evaluation|recipe|server|judge|learner)(\..*)?")


@dataclass(frozen=True)
class Comparison:
    """One figure of both sides; ``over`` says what the pairs are."""

    first: str
    second: str
    difference: Difference
    over: str

    @property
    def figure(self) -> str:
        """The figure's name, or both names where they differ."""
        return self.first if self.first == self.second else f"{self.first} = {self.second}"

    @property
    def verdict(self) -> str:
        """The difference in plain words."""
        difference = self.difference
        pairs = f"{difference.pairs} pair{'s' if difference.pairs > 1 else ''} of {self.over}"
        if difference.low is None or difference.high is None:
            return f"{self.figure}: {difference.mean:+.2f}; {pairs}, so no interval: more seeds are needed to compare."
        spread = f"{difference.mean:+.2f} (95 % interval {difference.low:+.2f} to {difference.high:+.2f})"
        if not difference.significant:
            return f"{self.figure}: difference not significant: {spread}, {pairs}."
        return f"{self.figure}: the second is {'higher' if difference.mean > 0 else 'lower'}: {spread}, {pairs}."


def group(place: str | Path, left_out: list[str] | None = None, kinds: Kinds = NO_KINDS) -> list[Run]:
    """The finished runs of one side of a comparison, in the order of their seeds; all of one study.

    Args:
        place: a run folder, a folder of runs, or a pattern.
        left_out: a line for each run that is not finished is appended to it.
        kinds: say which figures a reader looks for first.

    Raises:
        InputError: when nothing is finished there, or the runs are of several studies.
    """
    text = str(place)
    places = [Path(text)] if Path(text).exists() else [Path(path) for path in sorted(glob.glob(text)) if Path(path).is_dir()]
    if not places:
        raise InputError(f"{clipped(text, 200)}: there is no such folder; give a run folder, a folder that holds runs, or a pattern.")
    runs, unfinished = finished(find_runs(places, kinds))
    if left_out is not None:
        left_out += unfinished
    if not runs:
        raise InputError(f"{clipped(text, 200)}: no run there is done; finish one with --resume.")
    groups = by_seed(runs)
    if len(groups) > 1:
        names = ", ".join(sorted({runs_of_study[0].folder.name for runs_of_study in groups})[:4])
        raise InputError(f"{clipped(text, 200)}: holds runs of {len(groups)} studies ({names}); give the runs of one.")
    return groups[0]


def measured_differently(first: Run, second: Run) -> list[str]:
    """In what the measurements of two runs differ (data, split, recipe, evaluation networks): a line each."""
    lines = []
    for key in dict.fromkeys([*first.settings, *second.settings]):
        ours_value, theirs_value = first.settings.get(key, "-"), second.settings.get(key, "-")
        if ours_value != theirs_value and _MEASURED.fullmatch(key) and not _FREE.fullmatch(key):
            lines.append(f"{key} is {clipped(ours_value, 60)} and {clipped(theirs_value, 60)}")
    prints = [run.record["results"].get("data", {}) for run in (first, second)]
    marks = [part.get("fingerprint") if isinstance(part, dict) else None for part in prints]
    if None not in marks and marks[0] != marks[1] and not any(line.startswith("data.") for line in lines):
        lines.append("the training data have other pixels or labels (results.data.fingerprint)")
    for key, part in first.record["results"].items():
        same = second.record["results"].get(key)
        if key.startswith("ipc") and isinstance(part, dict) and isinstance(same, dict):
            ours, theirs = part.get("augmentation"), same.get("augmentation")
            if ours != theirs and None not in (ours, theirs):  # "auto" is what the set names
                lines.append(f"{key}: the evaluation's augmentation is {clipped(ours, 60)} and {clipped(theirs, 60)}")
    if first.record.get("kind") != second.record.get("kind"):
        lines.append(f"kind is {clipped(first.record.get('kind'), 40)} and {clipped(second.record.get('kind'), 40)}")
    return lines


def compare(
    first: Sequence[Run], second: Sequence[Run], patterns: Sequence[str] = (), *, anyway: bool = False
) -> tuple[list[Comparison], list[str]]:
    """(one comparison a figure, warnings) of two groups of finished runs (see `group`); second minus first.

    Args:
        patterns: figures by name, ``*`` stands for anything; ``LEFT=RIGHT`` compares two figures of different names. None: the main ones.
        anyway: compare runs that were measured differently; what differs is then a warning.

    Raises `InputError` where that is not allowed, where no figure is in both, and where no seed is in both.
    """
    unlike = measured_differently(first[0], second[0])
    if unlike and not anyway:
        raise InputError(
            f"the runs were not measured alike: {'; '.join(unlike)}. A difference would mix that with what is compared; run one of them "
            "again under the other's settings, or add --anyway."
        )
    warnings = [f"not measured alike: {line}" for line in unlike]
    comparisons = []
    for left, right in _names(first, second, patterns):
        pairs, over = _pairs(first, second, left, right)
        if not pairs and {run.record["seed"] for run in first} & {run.record["seed"] for run in second} and over == "runs":
            raise InputError(f"{left}: no seed has this figure on both sides (a figure of which a network failed has no mean).")
        if not pairs:
            raise InputError(
                f"{left}: no seed is in both ({_seeds(first)} and {_seeds(second)}), so nothing can be paired; run both with the same "
                "--seed, or with the same --seeds."
            )
        comparisons.append(Comparison(left, right, paired_difference(*zip(*pairs, strict=True)), over))
    if not patterns:
        roles = [_by_role(runs[0]) for runs in (first, second)]
        lone = [
            name
            for side, other, runs in ((0, 1, first), (1, 0, second))
            for role, name in roles[side].items()
            if role not in roles[other] and name in runs[0].main_figures
        ]
        warnings += [f"{name}: not in both runs (a figure of which a network failed has no mean)" for name in lone]
    unpaired = {run.record["seed"] for run in first} ^ {run.record["seed"] for run in second}
    if unpaired and comparisons and comparisons[0].over == "runs":
        warnings.append(f"seeds on one side only are left out: {', '.join(map(str, sorted(unpaired)))}")
    if comparisons and comparisons[0].over != "runs":
        warnings.append("one run on each side: the interval is over evaluation networks; it is about these two runs, not about other seeds")
    return comparisons, warnings


def _seeds(runs: Sequence[Run]) -> str:
    return f"seed{'s' if len(runs) > 1 else ''} {', '.join(str(run.record['seed']) for run in runs)}"


def _names(first: Sequence[Run], second: Sequence[Run], patterns: Sequence[str]) -> list[tuple[str, str]]:
    """The figures to compare, by their names on both sides."""
    left, right = (_by_role(runs[0]) for runs in (first, second))
    if not patterns:
        main = set(first[0].main_figures)
        chosen = [(name, right[role]) for role, name in left.items() if role in right and name in main]
        if not chosen:
            raise _nothing("the runs have no figure in common", left.values(), right.values())
        return chosen
    chosen = []
    for pattern in patterns:
        left_name, equals, right_name = pattern.partition("=")
        if equals:
            for name, runs in ((left_name, first), (right_name, second)):
                if name not in runs[0].figures:
                    raise _nothing(
                        f"--figure {clipped(pattern)!r}: {clipped(name)!r} is no figure of its run", left.values(), right.values()
                    )
            chosen.append((left_name, right_name))
            continue
        matching = [(name, right[role]) for role, name in left.items() if role in right and fnmatch.fnmatchcase(name, pattern)]
        if not matching:
            raise _nothing(f"--figure {clipped(pattern)!r}: no figure in both runs has that name", left.values(), right.values())
        chosen += matching
    return list(dict.fromkeys(chosen))


def _nothing(what: str, left: Iterable[str], right: Iterable[str]) -> InputError:
    names = [clipped(", ".join(itertools.islice(names, 12)), 300) or "none" for names in (left, right)]
    return InputError(f"{what}; the first has {names[0]}; the second has {names[1]}. Two names: --figure LEFT=RIGHT.")


def _by_role(run: Run) -> dict[str, str]:
    """Figures by what they are in the run: a condense study's own set is "condensed", whatever its method is called."""
    method = run.config.get("method")
    own = method.get("name") if isinstance(method, dict) and run.record.get("kind") == "condense" else None
    roles = {}
    for name in run.figures:
        head, _, last = name.rpartition(".")
        roles[f"{head}.condensed" if own is not None and last == own else name] = name
    return roles


def _pairs(first: Sequence[Run], second: Sequence[Run], left: str, right: str) -> tuple[list[tuple[float, float]], str]:
    """(value, value) of what has the same seed on both sides, and what the pairs are."""
    ones, others = ({run.record["seed"]: run for run in runs} for runs in (first, second))
    both = [seed for seed in ones if seed in others]
    if len(first) > 1 or len(second) > 1:
        seeds = [seed for seed in both if left in ones[seed].figures and right in others[seed].figures]
        return [(ones[seed].figures[left][0], others[seed].figures[right][0]) for seed in seeds], "runs"
    if not both:
        return [], ""
    # Networks of a run are numbered from its seed on, so those at the same place have the same seed.
    rows = [_values(run.record["results"], name) for run, name in ((first[0], left), (second[0], right))]
    pairs = [(one, other) for one, other in zip(*rows, strict=False) if one is not None and other is not None]
    if pairs:
        return pairs, "evaluation networks"
    return [(first[0].figures[left][0], second[0].figures[right][0])], "runs"


def _values(results: Json, name: str) -> list[float | None]:
    """The single values behind a figure, with None for a network that failed; empty where the record does not keep them."""
    part, rest = results, name
    while rest and isinstance(part, dict):
        key = next((key for key in sorted(part, key=len, reverse=True) if rest == key or rest.startswith(f"{key}.")), None)
        if key is None:
            return []
        part, rest = part[key], rest[len(key) + 1 :]
    values = part.get("values") if isinstance(part, dict) else None
    return [float(x) if isinstance(x, int | float) and math.isfinite(x) else None for x in values] if isinstance(values, list) else []


def shown(comparisons: Sequence[Comparison], form: str, width: int | None = None) -> str:
    """The comparisons as ``text`` (sentences below the table), ``markdown``, ``csv`` or ``json`` (these two with all digits)."""
    if form == "json":
        return json.dumps([_plain(comparison) for comparison in comparisons], indent=2)
    if form == "csv":
        rows = [_plain(comparison) for comparison in comparisons]
        return as_csv([list(rows[0]), *(["" if value is None else str(value) for value in row.values()] for row in rows)])
    table = [["figure", "first", "second", "difference", "95 % interval", "pairs"]]
    for comparison in comparisons:
        d = comparison.difference
        interval = "-" if d.low is None or d.high is None else f"{d.low:+.2f} to {d.high:+.2f}"
        table.append([comparison.first, f"{d.first:.4g}", f"{d.second:.4g}", f"{d.mean:+.2f}", interval, str(d.pairs)])
    if form == "markdown":
        return "\n".join([as_markdown(table), "", *(f"- {comparison.verdict}" for comparison in comparisons)])
    return "\n".join([as_text(table, width=width), "", *(comparison.verdict for comparison in comparisons)])


def _plain(comparison: Comparison) -> dict[str, object]:
    numbers = asdict(comparison.difference)
    names = {"first": "first_mean", "second": "second_mean", "mean": "difference"}
    return {
        "first_figure": comparison.first,
        "second_figure": comparison.second,
        **{names.get(key, key): value for key, value in numbers.items()},
        "over": comparison.over,
        "significant": comparison.difference.significant,
    }
