"""Statistics of a ranking: how well a proxy's scores order networks by their true accuracy, and how far that can be trusted.

Pure functions. Scores and truths are arrays (n,), higher is better, position by network. Missing values (`usable`): a network
without a truth (NaN) is left out; networks that the proxy could not score (NaN) rank last, tied with each other.
Ties never help: whatever depends on picking the k best is the expectation over the order of tied networks, drawn evenly.

Functions whose names end in ``_rows`` take many resamples at once, (resamples, n), and return one value each; the bootstrap uses them
(intervals.py).
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
from numpy.typing import ArrayLike, NDArray

from distill.errors import InputError

Array = NDArray[np.float64]
Rows = Callable[[Array, Array], Array]
_CHUNK = 4_000_000  # elements of a temporary array


def usable(proxy: ArrayLike, truth: ArrayLike) -> tuple[Array, Array]:
    """Scores and truths (m,) of the networks that have a truth; missing scores become minus infinity."""
    scores, values = np.asarray(proxy, dtype=np.float64), np.asarray(truth, dtype=np.float64)
    if scores.shape != values.shape or scores.ndim != 1:
        raise InputError(f"proxy scores have shape {scores.shape} and truths {values.shape}; allowed: two lists of one length.")
    kept = np.isfinite(values)
    scores, values = scores[kept], values[kept]
    return np.where(np.isnan(scores), -np.inf, scores), values


# Correlations (scipy's, and the same for many resamples at once)


def spearman(proxy: ArrayLike, truth: ArrayLike) -> float:
    """Spearman's rho (tied values share their mean rank); NaN for a constant list or fewer than two networks."""
    scores, values = usable(proxy, truth)
    if len(scores) < 2 or _constant(scores) or _constant(values):
        return math.nan
    return float(scipy.stats.spearmanr(scipy.stats.rankdata(scores), values).statistic)


def kendall(proxy: ArrayLike, truth: ArrayLike) -> float:
    """Kendall's tau-b, which takes ties into account; NaN for a constant list or fewer than two networks."""
    scores, values = usable(proxy, truth)
    if len(scores) < 2 or _constant(scores) or _constant(values):
        return math.nan
    return float(scipy.stats.kendalltau(scipy.stats.rankdata(scores), values, variant="b").statistic)


def spearman_top(proxy: ArrayLike, truth: ArrayLike, k: int) -> float:
    """Spearman's rho over the ``k`` networks with the highest true accuracy (and those that tie with the k-th)."""
    scores, values = usable(proxy, truth)
    if not len(values):
        return math.nan
    top = values >= np.sort(values)[-min(k, len(values))]
    return spearman(scores[top], values[top])


def spearman_rows(proxy: Array, truth: Array) -> Array:
    """`spearman` of each row, (resamples,)."""
    a, b = scipy.stats.rankdata(proxy, axis=1), scipy.stats.rankdata(truth, axis=1)
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    return _ratio((a * b).sum(1), np.sqrt((a * a).sum(1) * (b * b).sum(1)))


def kendall_rows(proxy: Array, truth: Array) -> Array:
    """`kendall` of each row, (resamples,): product of signs, summed over pairs, by the geometric mean of untied pairs."""
    count, n = proxy.shape
    parts = []
    proxy = scipy.stats.rankdata(proxy, axis=1)  # minus infinity has no difference from itself
    for rows in np.array_split(np.arange(count), max(1, count * n * n // _CHUNK)):
        a = np.sign(proxy[rows, :, None] - proxy[rows, None, :]).astype(np.int8)
        b = np.sign(truth[rows, :, None] - truth[rows, None, :]).astype(np.int8)
        both = (a * b).sum((1, 2), dtype=np.int64)
        norm = np.sqrt((a != 0).sum((1, 2)).astype(np.float64) * (b != 0).sum((1, 2)))
        parts.append(_ratio(both.astype(np.float64), norm))
    return np.concatenate(parts)


# Picking the best


def regret(proxy: ArrayLike, truth: ArrayLike, k: int = 1) -> float:
    """True accuracy of the best network minus that of the best among the proxy's top ``k``, in percentage points."""
    scores, values = usable(proxy, truth)
    return float(regret_rows(k)(scores[None], values[None])[0]) if len(values) else math.nan


def overlap(proxy: ArrayLike, truth: ArrayLike, k: int) -> float:
    """The share of the ``k`` networks with the highest true accuracy among the proxy's top ``k``; ``min(k, n) / n`` by chance."""
    scores, values = usable(proxy, truth)
    return float(overlap_rows(k)(scores[None], values[None])[0]) if len(values) else math.nan


def regret_rows(k: int) -> Rows:
    """`regret` of each row. Of t tied networks m are picked: the j-th best of them is the best picked with probability
    C(t - j, m - 1) / C(t, m), here as a product of conditional probabilities."""

    def rows(proxy: Array, truth: Array) -> Array:
        above, tied, places = _picked(proxy, k)
        sure = np.where(above, truth, -np.inf).max(1)
        group = -np.sort(-np.where(tied, truth, -np.inf), axis=1)
        left = tied.sum(1)[:, None] - np.arange(truth.shape[1])  # tied networks not better than the j-th
        chance = np.clip(places[:, None] / np.maximum(left, 1), 0, 1) * (left > 0)
        before = np.concatenate([np.ones((len(truth), 1)), np.cumprod(1 - chance, 1)[:, :-1]], 1)
        best = np.maximum(sure[:, None], np.where(left > 0, group, sure[:, None]))
        share = chance * before
        expected = np.where(share > 0, share * np.where(share > 0, best, 0.0), 0.0).sum(1)
        return np.asarray(truth.max(1) - expected)

    return rows


def overlap_rows(k: int) -> Rows:
    """`overlap` of each row: a network's chance to be picked times its chance to belong to the best, summed."""

    def rows(proxy: Array, truth: Array) -> Array:
        return np.asarray((chances(proxy, k) * chances(truth, k)).sum(1) / min(k, truth.shape[1]))

    return rows


def _picked(values: Array, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_], NDArray[np.int64]]:
    """Per row: the values that are certainly picked, those that tie for the last places, and the number of these places."""
    k = min(k, values.shape[1])
    edge = np.sort(values, axis=1)[:, -k][:, None]
    above = values > edge
    return above, values == edge, k - above.sum(1)


def chances(values: Array, k: int) -> Array:
    """Each value's chance to be among the ``k`` highest of its row, where tied values are drawn evenly."""
    above, tied, places = _picked(values, k)
    return np.where(above, 1.0, np.where(tied, (places / tied.sum(1))[:, None], 0.0))


# Noise


@dataclass(frozen=True)
class Ceiling:
    """The noise ceiling of a truth.

    Args:
        halves: Spearman's rho between disjoint halves of the seeds, averaged over the ways to halve them.
        reliability: ``halves`` extrapolated to all seeds (Spearman-Brown): the rho of a second, equally noisy measurement of the truth.
        perfect: the square root of ``reliability``: the rho of a proxy without noise.
    """

    halves: float
    reliability: float
    perfect: float


def noise_ceiling(truth: ArrayLike, generator: np.random.Generator, splits: int = 200) -> Ceiling:
    """The noise ceiling of ``truth`` (n networks, S seeds); NaN with one seed. With an odd number of seeds one is left out each time."""
    values = np.asarray(truth, dtype=np.float64)
    values = values[np.isfinite(values).all(1)]
    seeds = values.shape[1]
    if seeds < 2 or len(values) < 2:
        return Ceiling(math.nan, math.nan, math.nan)
    half = seeds // 2
    pairs = halvings(seeds, half) if seeds <= 8 else _random_halvings(seeds, half, splits, generator)
    correlations = np.array([spearman(values[:, list(a)].mean(1), values[:, list(b)].mean(1)) for a, b in pairs])
    correlations = correlations[np.isfinite(correlations)]
    if not len(correlations):
        return Ceiling(math.nan, math.nan, math.nan)
    rho = float(correlations.mean())
    reliability = spearman_brown(rho, seeds / half)
    return Ceiling(rho, reliability, math.sqrt(reliability) if reliability > 0 else 0.0)


def spearman_brown(rho: float, times: float) -> float:
    """The reliability of a mean over ``times`` as many measurements (Spearman 1910, Brown 1910)."""
    return times * rho / (1 + (times - 1) * rho)


def halvings(seeds: int, half: int) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
    """All unordered pairs of disjoint sets of ``half`` seeds."""
    sets = list(itertools.combinations(range(seeds), half))
    return [(a, b) for a, b in itertools.combinations(sets, 2) if not set(a) & set(b)]


def _random_halvings(seeds: int, half: int, splits: int, generator: np.random.Generator) -> list[tuple[list[int], list[int]]]:
    orders = [generator.permutation(seeds).tolist() for _ in range(splits)]
    return [(order[:half], order[half : 2 * half]) for order in orders]


# Cost


def break_even(one_off: float, proxy_each: float, truth_each: float, finalists: int = 1) -> float:
    """The smallest number of candidates from which a proxy saves time.

    That is, the one-off cost, a proxy run for each candidate and full training of the finalists take less than full training of all.

    Args:
        one_off: seconds paid once.
        proxy_each: seconds of a proxy run.
        truth_each: seconds of full training.
        finalists: networks that are trained fully after the proxy.

    Returns:
        The number; infinity if a proxy run costs as much as full training.
    """
    saved = truth_each - proxy_each
    if not saved > 0:
        return math.inf
    needed = (one_off + finalists * truth_each) / saved
    return float(max(finalists + 1, math.floor(needed) + 1))


def top_count(n: int, share: float = 0.05) -> int:
    """The number of networks in the top ``share`` of ``n``, at least 1."""
    return max(1, math.ceil(share * n - 1e-9))


def _constant(values: Array) -> bool:
    return bool((values == values[0]).all())


def _ratio(above: Array, below: Array) -> Array:
    """The quotient; NaN if the denominator is zero up to rounding, as for a constant row."""
    return np.divide(above, below, out=np.full_like(above, np.nan), where=below > 1e-9)
