"""White-box canaries: rows of exactly the clipping norm in orthogonal directions, included by a coin and looked for in a release.

They audit the real code path of `PrivateStatistics` (clipping, sums, noise, sampling, kept releases, the account) in seconds. A planted
bug that a test of the finished set could never see, such as noise of half the size, stands out here.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from apps.privacy.accounting import spent
from apps.privacy.audit import Bounds, guess, lower_bounds, one_run_bound
from apps.privacy.private_statistics import PrivateStatistics
from distill.data import ImageData, Split
from distill.randomness import generator
from distill.spec import DataSpec

SIDE = 48  # a canary image's pixels are its row: 2304 directions
ASKED = 8  # the same question again and again: an answer with new noise each time would average out

# PrivateStatistics, or what a test plants in its place.
Make = Callable[..., PrivateStatistics]


@dataclass(frozen=True)
class Audit:
    """What canaries say about a release (with all the data, so that the Gaussian bound applies) beside what the account says."""

    claimed: float
    bounds: Bounds
    one_run: float
    size_bound: float
    sampling_p: float
    runs: int

    @property
    def holds(self) -> bool:
        """False where the mechanism gives more away than the account says: a bug, up to the bounds' confidence."""
        highest = max(self.bounds.gaussian, self.bounds.rates, self.one_run, self.size_bound)
        return highest <= self.claimed and self.sampling_p >= 1 - self.bounds.confidence

    def __str__(self) -> str:
        verdict = "no contradiction" if self.holds else "CONTRADICTION: the guarantee does not hold"
        return (
            f"account: epsilon {self.claimed:.2f}; canaries: {self.bounds}; one run: at least {self.one_run:.2f}; from the size of the "
            f"noise: at least {self.size_bound:.2f}; Poisson sampling: p = {self.sampling_p:.3g}; {verdict}"
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "claimed_epsilon": self.claimed,
            "gaussian_bound": self.bounds.gaussian,
            "rates_bound": self.bounds.rates,
            "one_run_bound": self.one_run,
            "size_bound": self.size_bound,
            "sampling_p": self.sampling_p,
            "confidence": self.bounds.confidence,
            "runs": self.runs,
            "holds": self.holds,
        }


def audit(
    make: Make = PrivateStatistics, epsilon: float = 4.0, delta: float = 1e-5, runs: int = 2000, confidence: float = 0.999, seed: int = 0
) -> Audit:
    """All audits of one mechanism; ``runs`` (up to 2304) canaries in one release, an eighth as many small releases for the noise's size."""
    claimed, bounds, one_run = _directions(make, epsilon, delta, runs, confidence, seed)
    return Audit(claimed, bounds, one_run, _size(make, epsilon, delta, runs // 8, confidence), _sampling(make, delta), runs)


def canary_data(directions: Tensor) -> ImageData:
    """Images (n, 1, 48, 48) of one class; image i has the value 1 (normalised) at pixel ``directions[i]`` (n,) and 0 elsewhere."""
    spec = DataSpec("canaries", 1, SIDE, SIDE, ("canary", "other"), (0.5,), (0.5,), "given", "given")
    images = torch.full((len(directions), 1, SIDE, SIDE), 0.5)
    images.flatten(1)[torch.arange(len(directions)), directions] = 1.0
    none = Split(images[:0], torch.zeros(0, dtype=torch.int64))
    return ImageData(spec, Split(images, torch.zeros(len(directions), dtype=torch.int64)), none, none)


def _ask(statistics: PrivateStatistics, scale: Tensor | float = 1.0, batch: int = 1) -> Tensor:
    """(D,): the class's released mean of flattened images times ``scale``, through the door that methods use."""
    return statistics.class_means(lambda images: images.flatten(1) * scale, batch, None, generator(0, "audit"))[0]


def _directions(make: Make, epsilon: float, delta: float, runs: int, confidence: float, seed: int) -> tuple[float, Bounds, float]:
    """One release over ``runs`` canaries, each in by a coin, scored by the release along its own direction.

    Directions are orthogonal and their noise independent, so each canary is a separate run. Every second canary's row is three times
    as long as the clip: a missing clip shows.
    """
    coins = np.random.default_rng(seed).random(runs) < 0.5
    data = canary_data(torch.from_numpy(coins.nonzero()[0]))
    statistics = make(data, epsilon, delta, releases=1, sample_rate=1.0, population=runs, clip=1.0)
    scale = 1.0 + 2.0 * (torch.arange(SIDE * SIDE) % 2)
    scores = torch.stack([_ask(statistics, scale) for _ in range(ASKED)]).mean(0)[:runs].double().numpy()
    claimed = spent(statistics.history, delta).epsilon
    guesses = max(10, runs // 5)
    one_run = one_run_bound(guess(scores, coins, guesses), guesses, runs, delta, confidence)
    return claimed, lower_bounds(scores[coins], scores[~coins], delta, confidence), one_run


def _size(make: Make, epsilon: float, delta: float, runs: int, confidence: float) -> float:
    """Lower bound of epsilon from the release's size alone: dividing by a private number of examples scales the noise.

    Each of ``runs`` small releases has 20 examples without any content, and a 21st in every second one.
    """
    scores: list[list[float]] = [[], []]
    for run in range(runs):
        data = canary_data(torch.zeros(20 + run % 2, dtype=torch.int64))
        statistics = make(data, epsilon, delta, releases=1, sample_rate=1.0, population=20, clip=1.0)
        scores[run % 2].append(-float(_ask(statistics, 0.0).double().square().sum().clamp_min(1e-300).log()))
    bounds = lower_bounds(scores[1], scores[0], delta, confidence)
    return max(bounds.gaussian, bounds.rates)


def _sampling(make: Make, delta: float, count: int = 400, rate: float = 0.25, releases: int = 40) -> float:
    """p-value of Poisson sampling: with hardly any noise, rows of their own show who was in each release.

    Batches of a fixed size vary too little from release to release; shuffled passes vary too little from example to example.
    """
    data = canary_data(torch.arange(count))
    statistics = make(data, 1e7, delta, releases=releases, sample_rate=rate, population=count, clip=1.0)
    statistics._plan = statistics._planned(1)._replace(noise_multiplier=1e-3)
    seen = []
    for number in range(releases):
        scale = torch.ones(SIDE * SIDE)
        scale[-1] = number + 2.0  # another question, the same for every canary
        seen.append((_ask(statistics, scale)[:count] * rate * count / 2 > 0.5).double().numpy())
    masks = np.stack(seen)
    spread = rate * (1 - rate)
    by_release = ((masks.sum(1) - count * rate) ** 2).sum() / (count * spread)
    by_example = ((masks.sum(0) - releases * rate) ** 2).sum() / (releases * spread)
    tails = [scipy.stats.chi2.cdf(by_release, releases), scipy.stats.chi2.cdf(by_example, count)]
    return float(min(1.0, 4 * min(min(tail, 1 - tail) for tail in tails)))
