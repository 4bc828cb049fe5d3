"""How well membership can be told from scores: rates at low false-positive rates with intervals. Scores in, numbers out.

A score is higher for what looks more like a member. ``members`` (n_in,) and ``others`` (n_out,) are scores of balanced in and out points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats

from distill.errors import InputError

FLOORS = (0.001, 0.01)


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; None where the sample cannot tell."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.3g} ({self.low:.3g} to {self.high:.3g})"


def checked(scores: object, what: str) -> np.ndarray:
    """(n,) float64, finite, at least two; `InputError` otherwise."""
    array = np.asarray(scores)
    if array.dtype.kind not in "fiu" or array.ndim != 1 or len(array) < 2 or len(array) > 100_000_000:
        raise InputError(f"{what} are {array.dtype} of shape {array.shape}; allowed: a list of at least two numbers.")
    if not np.isfinite(array).all():
        raise InputError(f"{what} hold values that are not finite; allowed: finite numbers only.")
    return array.astype(np.float64)


def clopper_pearson(hits: int, count: int, alpha: float = 0.05) -> tuple[float, float]:
    """Exact interval of a binomial rate (Clopper and Pearson, 1934); each end is wrong with probability at most ``alpha`` / 2."""
    low = 0.0 if hits == 0 else float(scipy.stats.beta.ppf(alpha / 2, hits, count - hits + 1))
    high = 1.0 if hits == count else float(scipy.stats.beta.ppf(1 - alpha / 2, hits + 1, count - hits))
    return low, high


def roc(members: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(false-positive rates, true-positive rates) at every threshold "score >= t", rising, from (0, 0) to (1, 1). Ties move together."""
    thresholds = np.unique(np.concatenate([members, others]))[::-1]
    rising_in, rising_out = np.sort(members), np.sort(others)
    # Whole numbers first: a rate of exactly 1 % may not come out above 1 %.
    true = (len(members) - np.searchsorted(rising_in, thresholds, "left")) / len(members)
    false = (len(others) - np.searchsorted(rising_out, thresholds, "left")) / len(others)
    return np.concatenate([[0.0], false]), np.concatenate([[0.0], true])


def auc(members: np.ndarray, others: np.ndarray) -> float:
    """The chance that a member scores above another point, ties counted half."""
    ranks = scipy.stats.rankdata(np.concatenate([members, others]))[: len(members)]
    return float((ranks.sum() - len(members) * (len(members) + 1) / 2) / (len(members) * len(others)))


def rate_at(members: np.ndarray, others: np.ndarray, floor: float) -> Interval | None:
    """True-positive rate where the false-positive rate is the largest that stays at or below ``floor``.

    The interval covers the rate at the threshold that the others' distribution has its quantile at, which is not known either: its ends are
    Clopper-Pearson ends of the members' rate at the ends of the quantile's own interval (order statistics), each with a quarter of the
    5 %. It therefore covers at least 95 %.
    None with fewer than 10 / ``floor`` others: the rate would rest on a handful of points.
    """
    if len(others) * floor < 10:
        return None
    false, true = roc(members, others)
    value = float(true[false <= floor].max())
    falling = np.sort(others)[::-1]
    # The number of others above the true quantile is binomial: the quantile lies between these two order statistics.
    few, many = (int(k) for k in scipy.stats.binom.ppf([0.0125, 0.9875], len(others), floor))
    strict = falling[few - 1] if few else np.inf
    loose = falling[many] if many < len(others) else -np.inf
    above, at_least = int((members > strict).sum()), int((members >= loose).sum())
    low = clopper_pearson(above, len(members), 0.025)[0]
    high = clopper_pearson(at_least, len(members), 0.025)[1]
    return Interval(value, min(low, value), max(high, value))


def best_advantage(members: np.ndarray, others: np.ndarray) -> float:
    """The threshold with the largest TPR - FPR on these scores; choose it on one half, judge it on the other (`advantage`)."""
    false, true = roc(members, others)
    thresholds = np.concatenate([[np.inf], np.unique(np.concatenate([members, others]))[::-1]])
    return float(thresholds[(true - false).argmax()])


def advantage(members: np.ndarray, others: np.ndarray, threshold: float, alpha: float = 0.05) -> Interval:
    """TPR - FPR of "member where score >= threshold" (Yeom et al., 2018), which is Dong et al.'s 2 x (balanced accuracy - 1/2)."""
    hits, false = int((members >= threshold).sum()), int((others >= threshold).sum())
    hit = clopper_pearson(hits, len(members), alpha / 2)
    wrong = clopper_pearson(false, len(others), alpha / 2)
    return Interval(hits / len(members) - false / len(others), hit[0] - wrong[1], hit[1] - wrong[0])


def by_run(values: Sequence[float]) -> Interval:
    """Mean over runs with Student's t interval of whole runs: points of one run share a model. With one run its ends are not a number.

    It covers 95 % where runs are independent and their figures roughly normal. A percentile bootstrap of whole runs, which earlier
    versions had, covers 50 % with two runs, 81 % with four and 91 % with twelve.
    """
    found = np.asarray(values, dtype=np.float64)
    mean = float(found.mean())
    if len(found) < 2:
        return Interval(mean, float("nan"), float("nan"))
    half = float(scipy.stats.t.ppf(0.975, len(found) - 1) * found.std(ddof=1) / np.sqrt(len(found)))
    return Interval(mean, mean - half, mean + half)


@dataclass(frozen=True)
class Membership:
    """One attack on one run (or on scores from anywhere)."""

    auc: float
    advantage: Interval
    rates: dict[float, Interval | None]
    n_in: int
    n_out: int

    def __str__(self) -> str:
        rates = ", ".join(f"TPR at {floor:.1%} FPR {'n/a (too few others)' if r is None else r}" for floor, r in self.rates.items())
        return f"AUC {self.auc:.3f}, advantage {self.advantage}, {rates}; {self.n_in} members, {self.n_out} others"

    def as_dict(self) -> dict[str, object]:
        rates = {f"tpr_at_{floor:g}": None if r is None else [r.value, r.low, r.high] for floor, r in self.rates.items()}
        wide = [self.advantage.value, self.advantage.low, self.advantage.high]
        return {"auc": self.auc, "advantage": wide, **rates, "n_in": self.n_in, "n_out": self.n_out}


def membership(members: object, others: object, threshold: float | None = None, seed: int = 0) -> Membership:
    """All figures of one attack. Without a ``threshold`` it is chosen on a random half and the advantage is that of the other half."""
    inside, outside = checked(members, "scores of members"), checked(others, "scores of others")
    judged_in, judged_out = inside, outside
    if threshold is None:
        draws = np.random.default_rng(seed)
        first, second = draws.permutation(len(inside)), draws.permutation(len(outside))
        half_in, half_out = len(inside) // 2, len(outside) // 2
        threshold = best_advantage(inside[first[:half_in]], outside[second[:half_out]])
        judged_in, judged_out = inside[first[half_in:]], outside[second[half_out:]]
    rates = {floor: rate_at(inside, outside, floor) for floor in FLOORS}
    return Membership(auc(inside, outside), advantage(judged_in, judged_out, threshold), rates, len(inside), len(outside))


def reversed_warning(members: np.ndarray, others: np.ndarray) -> str:
    """A warning where members clearly have the lower scores, as losses and distances have; empty otherwise.

    By Mann and Whitney's test at four standard deviations, which scores that tell nothing pass once in 30,000 times.
    """
    spread = math.sqrt((len(members) + len(others) + 1) / (12 * len(members) * len(others)))
    found = auc(members, others)
    if found >= 0.5 - 4 * spread:
        return ""
    return (
        f"AUC {found:.3f} is below 0.5: members have the lower scores. A score must be higher for members; losses and distances need the "
        "opposite sign (or a column named loss)."
    )


def worst_decile(members: np.ndarray, others: np.ndarray) -> float:
    """Mean share of others that score below the tenth of members with the highest scores; 0.95 where there is nothing to see."""
    top = np.sort(members)[-max(1, len(members) // 10) :]
    rising = np.sort(others)
    return float(((np.searchsorted(rising, top, "left") + np.searchsorted(rising, top, "right")) / (2 * len(others))).mean())
