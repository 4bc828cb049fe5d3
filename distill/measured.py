"""Accuracies of trained networks, with their interval, as values for tables, records and ledgers."""

import math
import statistics as numbers
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import scipy.stats


@dataclass(frozen=True)
class Accuracy:
    """Test accuracies in percent, one per seed, with the mean and its 95 % interval (Student's t over seeds; none for one seed).

    NaN stands for a network that has no accuracy, for the ``reason`` given; then there is no mean: that of the others would be too good.
    ``best`` are the best accuracies of several tests during each training, which were selected on the tested split; None: not asked for.
    """

    values: tuple[float, ...]
    reason: str | None = None
    best: tuple[float, ...] | None = None

    @property
    def failed(self) -> int:
        """How many networks have no accuracy."""
        return sum(map(math.isnan, self.values))

    @property
    def mean(self) -> float:
        """Mean over seeds, percent."""
        return numbers.fmean(self.values)

    @property
    def half_width(self) -> float:
        """Half the interval's length; NaN for a single seed, which says nothing about spread."""
        if len(self.values) < 2 or self.failed:
            return float("nan")
        return float(scipy.stats.t.ppf(0.975, len(self.values) - 1) * numbers.stdev(self.values) / len(self.values) ** 0.5)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval, percent, at least 0; NaN for a single seed."""
        return max(0.0, self.mean - self.half_width) if len(self.values) > 1 and not self.failed else float("nan")

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval, percent, at most 100; NaN for a single seed."""
        return min(100.0, self.mean + self.half_width) if len(self.values) > 1 and not self.failed else float("nan")

    def __str__(self) -> str:
        if self.failed:
            return f"failed ({self.failed} of {len(self.values)})"
        return f"{self.mean:.1f} ± {self.half_width:.1f}" if len(self.values) > 1 else f"{self.mean:.1f}"

    @staticmethod
    def read(row: dict[str, Any]) -> "Accuracy":
        """The reverse of `as_dict`."""
        best = row["best"]["values"] if "best" in row else None
        return Accuracy(tuple(math.nan if value is None else value for value in row["values"]), row.get("reason"), best and tuple(best))

    def as_dict(self) -> dict[str, object]:
        """For records: ``low`` and ``high`` are None for a single seed. If networks failed, their values and the mean are None, and
        ``failed`` and ``reason`` have their number and the reason. ``best`` has the same keys as the row."""
        more: dict[str, object] = {} if self.best is None else {"best": Accuracy(self.best).as_dict()}
        if self.failed:
            values = [None if math.isnan(value) else value for value in self.values]
            return {"mean": None, "low": None, "high": None, "values": values, "failed": self.failed, "reason": self.reason, **more}
        several = len(self.values) > 1
        ends = {"low": self.low if several else None, "high": self.high if several else None}
        return {"mean": self.mean, **ends, "values": list(self.values), **more}


class Measured(NamedTuple):
    """One trained network: the set's name, the seed, its accuracy in percent; NaN and the ``reason`` where it has none. ``best``: see
    `Accuracy`."""

    name: str
    seed: int
    value: float
    reason: str | None = None
    best: float | None = None

    def line(self) -> dict[str, object]:
        """For a ledger: ``seed``, ``accuracy`` (None where there is none, with the ``reason``), and ``best`` where it was asked for."""
        more = {} if self.best is None else {"best": self.best}
        if self.reason is None:
            return {"seed": self.seed, "accuracy": self.value, **more}
        return {"seed": self.seed, "accuracy": None, "reason": self.reason, **more}

    @staticmethod
    def read(name: str, line: dict[str, Any]) -> "Measured":
        """The reverse of `line`."""
        value = line["accuracy"]
        return Measured(name, line["seed"], math.nan if value is None else value, line.get("reason"), line.get("best"))


def summed_up(networks: Sequence[Measured]) -> Accuracy:
    """The accuracy over several networks, with the first failure's reason."""
    best = [row.best for row in networks if row.best is not None]
    reason = next((row.reason for row in networks if row.reason), None)
    return Accuracy(tuple(row.value for row in networks), reason, tuple(best) if len(best) == len(networks) else None)
