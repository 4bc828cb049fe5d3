"""Scores of condensed sets that do not depend on how a method evaluates its own.

Accuracy under a method's own labels and augmentation says little: random images with the same labels and augmentation may reach as much.
The two scores are those of DD-Ranking (Li et al., "DD-Ranking: Rethinking the Evaluation of Dataset Distillation", 2025). Here accuracies
in them are fractions of 1, networks are tested after the last step, and step sizes are chosen on held-out training images.
"""

import dataclasses
import math
import operator
import statistics as numbers
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import scipy.stats

from distill.condensed import CondensedSet
from distill.evaluation import Accuracy


def bounded(advantage: float) -> float:
    """(e^a - e^-1) / (e - e^-1): 0 at -1, 0.269 at 0, 1 at 1."""
    return (math.exp(advantage) - math.exp(-1)) / (math.e - math.exp(-1))


def label_robust(improvement: float, recovery: float, weight: float = 0.5) -> float:
    """The label-robust score, in [0, 1]; higher is better.

    Args:
        improvement: accuracy of the set minus that of random images of the same number, both with the labels, loss and augmentation of the
            set's method; as a fraction.
        recovery: accuracy of the full training set minus that of the set with class labels; as a fraction.
        weight: of ``improvement``; ``recovery`` has one minus it.
    """
    return bounded(weight * improvement - (1 - weight) * recovery)


def augmentation_robust(augmented: float, plain: float, weight: float = 0.5) -> float:
    """The augmentation-robust score, in [0, 1]; higher is better.

    Args:
        augmented: accuracy of the set minus that of random images of the same number, with augmentation; as a fraction.
        plain: the same without augmentation.
        weight: of ``augmented``; ``plain`` has one minus it.
    """
    return bounded(weight * augmented + (1 - weight) * plain)


@dataclass(frozen=True)
class Row:
    """What one accuracy is of.

    Attributes:
        images: "condensed" (the sets that are scored), or the name of a baseline (`distill.comparison.BASELINES`).
        labels: "own" (those of the recipe's teacher, else of the set's stored views, else of the set) or "hard" (class numbers). Without
            augmentation there are no stored views.
        augmentation: "own" (that of the recipe or set) or "none".
        network: name of the evaluation network.
        optimiser: of the recipe.
    """

    images: str
    labels: Literal["own", "hard"]
    augmentation: Literal["own", "none"]
    network: str
    optimiser: Literal["sgd", "adamw"]

    def __str__(self) -> str:
        more = [self.network, self.optimiser, *(["class labels"] if self.labels == "hard" and self.images == "condensed" else [])]
        return f"{self.images} ({', '.join([*more, *(['no augmentation'] if self.augmentation == 'none' else [])])})"


@dataclass(frozen=True)
class Measure:
    """The accuracies of one row, in percent.

    Attributes:
        row: what they are of.
        lr: the chosen step size of each set; one number where the row is a baseline.
        values: by set and then by network; one entry where the row is a baseline.
        images_seen: images that training one network takes.
    """

    row: Row
    lr: tuple[float, ...]
    values: tuple[tuple[float, ...], ...]
    images_seen: int

    @property
    def mean(self) -> float:
        """Mean over sets and networks, percent."""
        return numbers.fmean(value for one in self.values for value in one)

    def as_dict(self) -> dict[str, object]:
        """For a record; None for a network that diverged."""
        return dataclasses.asdict(self)

    @staticmethod
    def read(line: "Line") -> "Measure":
        """The reverse of `as_dict` after JSON."""
        values = tuple(tuple(math.nan if value is None else value for value in one) for one in line["values"])
        return Measure(Row(**line["row"]), tuple(line["lr"]), values, line["images_seen"])


class _RowLine(TypedDict):
    images: str
    labels: Literal["own", "hard"]
    augmentation: Literal["own", "none"]
    network: str
    optimiser: Literal["sgd", "adamw"]


class Line(TypedDict):
    """A `Measure` in JSON."""

    row: _RowLine
    lr: list[float]
    values: list[list[float | None]]
    images_seen: int


def half_width(values: Sequence[Sequence[float]]) -> float:
    """Half the 95 % interval of the mean of values by set and network; NaN for a single value or one that is not a number.

    Networks of one set share the set, and networks of one seed share their start and the baseline that a score compares with. The variance
    of the mean is that of the sets' means over their number plus that of the seeds' means over theirs, which is slightly too large; degrees
    of freedom after Satterthwaite. Of one set it is Student's interval over its networks.
    """
    if any(math.isnan(value) for row in values for value in row):
        return math.nan
    by_set, by_seed = [numbers.fmean(row) for row in values], [numbers.fmean(column) for column in zip(*values, strict=True)]
    parts = [(numbers.variance(means) / len(means), len(means) - 1) for means in (by_set, by_seed) if len(means) > 1]
    total = sum(variance for variance, _ in parts)
    if not parts or not total:
        return 0.0 if parts else math.nan
    freedom = total**2 / sum(variance**2 / degrees for variance, degrees in parts)
    return float(scipy.stats.t.ppf(0.975, freedom) * total**0.5)


@dataclass(frozen=True)
class Score:
    """A score with its 95 % interval over sets and paired networks, see `half_width`.

    Attributes:
        name: "hard-label recovery", "improvement over random", "label-robust score", "augmentation-robust score" or
            "cross-architecture drop".
        mean: a fraction of 1.
        half_width: half the interval's length; NaN for one set with one network.
        values: of each set and network.
    """

    name: str
    mean: float
    half_width: float
    values: tuple[float, ...]

    @staticmethod
    def of(name: str, values: Sequence[Sequence[float]]) -> "Score":
        """The mean of values by set and network with its interval (`half_width`)."""
        all_ = tuple(value for row in values for value in row)
        return Score(name, numbers.fmean(all_), half_width(values), all_)


@dataclass(frozen=True)
class Scorecard:
    """Everything that was measured of one or more sets of one method.

    Attributes:
        measures: in the order in which they were made.
        scores: see `Score`.
        sets: number of sets.
        images: stored images of a set.
        nbytes: bytes of a set: images, labels and what decodes them.
        keep: stored images as a fraction of all training images.
        spread_sets: standard deviation of the accuracy over sets, percentage points; NaN for one set.
        spread_networks: the same over the networks of one set, in the mean; NaN for one network.
        split: the tested split.
        notes: traps that the sets or the teacher are in (`distill.set_notes`).
    """

    measures: tuple[Measure, ...]
    scores: tuple[Score, ...]
    sets: int
    images: int
    nbytes: int
    keep: float
    spread_sets: float
    spread_networks: float
    split: str
    notes: tuple[str, ...] = ()

    def table(self) -> list[list[str]]:
        """Header and rows as texts: every accuracy, with its chosen step size and the images that training saw."""
        rows = [["images", "labels", "augmentation", "network", "optimiser", "step size", f"{self.split} accuracy, %", "images seen"]]
        for one in self.measures:
            flat, row = tuple(value for part in one.values for value in part), one.row
            half = half_width(one.values)
            shown = str(Accuracy(flat)) if math.isnan(half) else f"{one.mean:.1f} ± {half:.1f}"
            rates = " / ".join(f"{lr:.3g}" for lr in dict.fromkeys(one.lr))
            rows.append([row.images, row.labels, row.augmentation, row.network, row.optimiser, rates, shown, f"{one.images_seen:,}"])
        return rows

    def score_table(self) -> list[list[str]]:
        """Header and rows as texts: the scores, as fractions of 1."""
        rows = [["score", "value", "95 % interval"]]
        for one in self.scores:
            ends = "-" if math.isnan(one.half_width) else f"{one.mean - one.half_width:.3f} to {one.mean + one.half_width:.3f}"
            rows.append([one.name, f"{one.mean:.3f}", ends])
        return rows

    def sentence(self) -> str:
        """The result in one sentence."""
        found = {one.name: one for one in self.scores}
        gain, gap = found["improvement over random"], found["hard-label recovery"]
        sure = "" if math.isnan(gain.half_width) else f" ± {100 * gain.half_width:.1f}"
        size = f"{self.images} images ({100 * self.keep:.3g} % of the training set, {self.nbytes:,} bytes)"
        random = f"{100 * gain.mean:+.1f}{sure} points from random images under the same training"
        return f"{size}: {random}, {100 * gap.mean:.1f} points below the full training set with class labels."

    def as_dict(self) -> dict[str, object]:
        """For a record."""
        return dataclasses.asdict(self)


def scorecard(
    given: Sequence[CondensedSet], measures: Sequence[Measure], *, training_images: int, split: str, notes: Sequence[str] = ()
) -> Scorecard:
    """The scores of all rows of `distill.scoring.rows_of`, which ``measures`` has in their order.

    Args:
        given: the sets.
        measures: of every row.
        training_images: number of training images, held-out ones included.
        split: the tested split.
        notes: see `Scorecard`.
    """
    first, own = given[0], measures[0]
    means = [numbers.fmean(values) for values in own.values]
    return Scorecard(
        tuple(measures),
        tuple(_scores(first, {one.row: one for one in measures}, own.row)),
        len(given),
        len(first),
        first.nbytes,
        len(first) / training_images,
        numbers.stdev(means) if len(means) > 1 else math.nan,
        numbers.fmean(numbers.stdev(values) for values in own.values) if len(own.values[0]) > 1 else math.nan,
        split,
        tuple(notes),
    )


def reference(condensed: CondensedSet, *, labelled: bool) -> str:
    """The random images that a set is compared with: of as many bytes, that is, in its form where it stores one.

    ``labelled``: the set has a teacher's labels, and they have them as well.
    """
    return ("random" if condensed.decode is None else "random-decoded") + ("-labelled" if labelled else "")


def _scores(first: CondensedSet, measures: dict[Row, Measure], own: Row) -> list[Score]:
    """The scores, each over the pairs of a set's network and the baseline's network of the same seed."""

    def pairs(one: Row, other: Row) -> list[list[float]]:
        """Accuracy of ``one`` minus that of ``other``, as fractions, by set and network."""
        rival = measures[other].values
        return [[(a - b) / 100 for a, b in zip(row, rival[k % len(rival)], strict=True)] for k, row in enumerate(measures[one].values)]

    def each(function: Callable[..., float], *tables: list[list[float]]) -> list[list[float]]:
        """The function of the values at the same place of the tables."""
        return [[function(*values) for values in zip(*rows, strict=True)] for rows in zip(*tables, strict=True)]

    hard = dataclasses.replace(own, labels="hard")
    hard = hard if hard in measures else own
    labelled = any(row.images.endswith("-labelled") for row in measures)
    random = Row(reference(first, labelled=labelled), "own" if labelled else "hard", "own", own.network, own.optimiser)
    whole = dataclasses.replace(random, images="whole", labels="hard")
    without, random_without = (dataclasses.replace(row, augmentation="none") for row in (own, random))
    recovery, gain = each(operator.neg, pairs(hard, whole)), pairs(own, random)
    plain = pairs(without, random_without)
    found = [
        Score.of("hard-label recovery", recovery),
        Score.of("improvement over random", gain),
        Score.of("label-robust score", each(label_robust, gain, recovery)),
        Score.of("augmentation-robust score", each(augmentation_robust, gain, plain)),
    ]
    others = [row for row in measures if row.images == "condensed" and row.network != own.network]
    if others:
        drops = [pairs(own, row) for row in others]
        found.append(Score.of("cross-architecture drop", each(lambda *drop: numbers.fmean(drop), *drops)))
    return found
