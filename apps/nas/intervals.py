"""95 % intervals of a ranking's statistics.

Correlations: a bootstrap over networks, which are drawn from a space. Regret and overlap: the networks are given, and what is uncertain is
their true accuracy, a mean over few training seeds. A bootstrap over networks fails for these two, since they depend on the best networks
alone: in simulated studies its intervals of regret@1 held the expected regret in 85 % (`python -m benchmarks.coverage` has the present
intervals). Theirs are of Tukey's kind instead: all differences between two networks are within `seed_margin` of the true ones at once.
"""

import functools
import math
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from apps.nas.ranking import Array, Rows, chances, overlap, regret, usable
from distill.records import Json

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Estimate:
    """A statistic and its 95 % interval; NaN where it is not defined (a constant score, fewer than 2 networks)."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, Json]:
        """The three numbers by name, for records."""
        return {"value": self.value, "low": self.low, "high": self.high}


# Over networks


def resamples(n: int, count: int, generator: np.random.Generator) -> NDArray[np.int64]:
    """Indices (count, n) of networks drawn with replacement."""
    return generator.integers(0, n, (count, n))


def bootstrap(proxy: ArrayLike, truth: ArrayLike, statistic: Rows, generator: np.random.Generator, count: int = RESAMPLES) -> Estimate:
    """A correlation with its 95 % percentile bootstrap interval.

    Args:
        proxy: scores (n,).
        truth: true accuracies (n,).
        statistic: one of the functions for rows.
        generator: draws the resamples.
        count: number of resamples.
    """
    scores, values = usable(proxy, truth)
    if len(values) < 2:
        return Estimate(math.nan, math.nan, math.nan)
    at = resamples(len(values), count, generator)
    return _estimate(float(statistic(scores[None], values[None])[0]), statistic(scores[at], values[at]))


def paired_bootstrap(
    first_proxy: ArrayLike,
    second_proxy: ArrayLike,
    truth: ArrayLike,
    statistic: Rows,
    generator: np.random.Generator,
    count: int = RESAMPLES,
) -> Estimate:
    """The difference of a correlation between two proxies (first minus second) on the same resamples; see `bootstrap`."""
    first, values = usable(first_proxy, truth)
    second, _ = usable(second_proxy, truth)
    if len(values) < 2:
        return Estimate(math.nan, math.nan, math.nan)
    at = resamples(len(values), count, generator)
    value = float((statistic(first[None], values[None]) - statistic(second[None], values[None]))[0])
    return _estimate(value, statistic(first[at], values[at]) - statistic(second[at], values[at]))


def _estimate(value: float, values: Array) -> Estimate:
    values = values[np.isfinite(values)]
    if not math.isfinite(value) or not len(values):
        return Estimate(value, math.nan, math.nan)
    low, high = np.percentile(values, (50 * (1 - CONFIDENCE), 50 * (1 + CONFIDENCE)))
    return Estimate(value, float(low), float(high))


# Over training seeds


def seed_margin(truth: ArrayLike) -> float:
    """Half-width of simultaneous 95 % intervals of all differences between two networks' mean accuracies, in the unit of ``truth``.

    Tukey's: the studentised range of n means times their standard error, with one spread for all networks. Networks with fewer seeds than
    others count with the fewest of any network, which makes the intervals longer.

    Args:
        truth: accuracies (n networks, S seeds); NaN where a network failed.

    Returns:
        The half-width; NaN with one seed, or with fewer than two networks.
    """
    values = np.asarray(truth, dtype=np.float64)
    values = values[np.isfinite(values).any(1)]
    counts = np.isfinite(values).sum(1)
    if len(values) < 2 or counts.max() < 2:
        return math.nan
    freedom = int((counts - 1).sum())
    means = np.nanmean(values, axis=1, keepdims=True)
    spread = math.sqrt(float(np.nansum((values - means) ** 2)) / freedom)
    return _studentised_range(len(values), freedom) * spread / math.sqrt(int(counts.min()))


@functools.cache
def _studentised_range(groups: int, freedom: int) -> float:
    return float(scipy.stats.studentized_range.ppf(CONFIDENCE, groups, freedom))  # a tenth of a second


def regret_interval(proxy: ArrayLike, truth: ArrayLike, k: int, margin: float) -> Estimate:
    """`ranking.regret` and the values that it takes for all true accuracies whose differences are within ``margin`` of these.

    Args:
        proxy: scores (n,).
        truth: mean accuracies (n,).
        k: number of networks that are taken by their scores.
        margin: `seed_margin` of the accuracies.
    """
    value = regret(proxy, truth, k)
    return Estimate(value, max(0.0, value - margin) if math.isfinite(margin) else math.nan, value + margin)


def overlap_interval(proxy: ArrayLike, truth: ArrayLike, k: int, margin: float) -> Estimate:
    """`ranking.overlap`, between the share that is certainly and the share that is possibly among the best ``k``; see `regret_interval`."""
    value = overlap(proxy, truth, k)
    scores, values = usable(proxy, truth)
    if not math.isfinite(value) or not math.isfinite(margin):
        return Estimate(value, math.nan, math.nan)
    places, picked = min(k, len(values)), chances(scores[None], k)[0]
    ahead = values[None] - values[:, None]  # of network i: how much better the others are
    possible = (ahead > margin).sum(1) < places
    certain = (ahead > -margin).sum(1) - 1 < places  # not counting itself
    return Estimate(
        value, min(value, float((picked * certain).sum()) / places), max(value, min(1.0, float((picked * possible).sum()) / places))
    )
