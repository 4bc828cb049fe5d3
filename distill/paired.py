"""The paired difference of two sequences of measurements with its 95 % interval (Student's t over the pairs)."""

import math
import statistics as numbers
from collections.abc import Sequence
from dataclasses import dataclass

import scipy.stats

from distill.errors import InputError


@dataclass(frozen=True)
class Difference:
    """A paired difference, in the unit of the measurements.

    Attributes:
        first: mean of the first measurements.
        second: mean of the second measurements.
        mean: of the differences second minus first.
        low: lower end of the 95 % interval; None for a single pair.
        high: upper end.
        p: two-sided p-value; None for a single pair.
        pairs: number of pairs.
    """

    first: float
    second: float
    mean: float
    low: float | None
    high: float | None
    p: float | None
    pairs: int

    @property
    def significant(self) -> bool:
        """Whether the 95 % interval excludes zero; False for a single pair."""
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return f"{self.mean:+.2f} (one pair: no interval)"
        return f"{self.mean:+.2f} ({self.low:+.2f} to {self.high:+.2f})"


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Mean of the differences second minus first, with the 95 % interval and two-sided p-value of the paired t test.

    Pairing removes the variation that both have in common, so that the interval is shorter than that of two separate means. If all pairs
    differ by the same amount, its length is zero.

    Args:
        first: measurements.
        second: ``second[i]`` was measured under the same conditions as ``first[i]`` (the same seed of the network, for example), in the
            same unit.

    Raises:
        InputError: for no pairs, unequal lengths, or numbers that are not finite.
    """
    if len(first) != len(second) or not first:
        raise InputError(f"{len(first)} and {len(second)} measurements were given; allowed: pairs, one or more.")
    if not all(map(math.isfinite, [*first, *second])):
        raise InputError("a measurement is not a finite number; a paired difference needs finite ones.")
    differences = [b - a for a, b in zip(first, second, strict=True)]
    count, middle = len(differences), numbers.fmean(differences)
    means = numbers.fmean(first), numbers.fmean(second)
    if count == 1:
        return Difference(*means, middle, None, None, None, 1)
    error = numbers.stdev(differences) / count**0.5
    half = float(scipy.stats.t.ppf(0.975, count - 1)) * error
    p = 2 * float(scipy.stats.t.sf(abs(middle) / error, count - 1)) if error else float(middle == 0)
    return Difference(*means, middle, middle - half, middle + half, p, count)
