"""The audit of the installed mechanism: its noise, what one example changes, its ledger, and white-box canaries with bounds of epsilon.

All of it asks `PrivateStatistics` as methods do and takes seconds. It examines the code that runs here and nothing else: a set from
another party may have been made by other code (`apps.privacy.auditing.evidence` is for sets). Canaries are rows of the clipping norm in
orthogonal directions, included by a coin and looked for in a release; at small budgets they alone would find large faults only.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.stats
import torch
from torch import Tensor

from apps.privacy.accounting import gaussian_delta, spent
from apps.privacy.audit import Bounds, guess, lower_bounds, one_run_bound
from apps.privacy.auditing.bounds import one_run_gaussian
from apps.privacy.auditing.checks import Check, attempted, certain
from apps.privacy.auditing.noise import noise_checks
from apps.privacy.auditing.questions import CLASSES, RELEASED, Make, turned
from apps.privacy.auditing.sensitivity import ledger_check, sensitivity_checks
from apps.privacy.private_statistics import PrivateStatistics
from distill.data import ImageData, Split
from distill.errors import InputError
from distill.randomness import generator
from distill.spec import DataSpec

SIDE, SMALL = 48, 20  # a canary image's pixels are its row: 2304 directions, and 400 where only the sampling is asked for
REPEATS = 4  # the same question again: an answer with new noise each time would average out
CLIP = 0.5
MOST_EPSILON = 10_000  # beyond, float32 rounds away noise that is there (of experts' weights at a million)
CHANCE = 16  # bounds (4) and checks (12) in which chance has a part; they share the error that is allowed


@dataclass(frozen=True)
class Audit:
    """What was found in the installed mechanism, and what the account says.

    Attributes:
        claimed: epsilon of the account for the canaries' release of all the data, to which the Gaussian bounds apply.
        bounds: lower bounds of epsilon from the canaries as separate runs.
        one_run: the same from their coins as one run, for any mechanism.
        one_run_gaussian: from one run, for a Gaussian mechanism.
        checks: of noise, sampling, sensitivity, ledger and account.
        runs: number of canaries.
        confidence: of all checks and bounds together: a correct mechanism is contradicted with the remaining probability.
    """

    claimed: float
    bounds: Bounds
    one_run: float
    one_run_gaussian: float
    checks: tuple[Check, ...]
    runs: int
    confidence: float

    @property
    def highest(self) -> float:
        """The largest of the lower bounds."""
        return max(self.bounds.gaussian, self.bounds.rates, self.one_run, self.one_run_gaussian)

    @property
    def failed(self) -> tuple[Check, ...]:
        """The checks that contradict the mechanism."""
        return tuple(check for check in self.checks if check.fails((1 - self.confidence) / CHANCE))

    @property
    def holds(self) -> bool:
        """False where the mechanism gives more away than the account says: a bug, up to the confidence."""
        return self.highest <= self.claimed and not self.failed

    def __str__(self) -> str:
        verdict = "no contradiction" if self.holds else "CONTRADICTION: the guarantee does not hold"
        found = "; ".join(map(str, self.failed)) or f"{len(self.checks)} checks of noise, sampling, sensitivity and ledger passed"
        return (
            f"installed mechanism, account: epsilon {self.claimed:.2f}; canaries: {self.bounds}; one run: at least {self.one_run:.2f}, "
            f"Gaussian {self.one_run_gaussian:.2f}; {found}; {verdict}"
        )

    def as_dict(self) -> dict[str, object]:
        return {
            "claimed_epsilon": self.claimed,
            "gaussian_bound": self.bounds.gaussian,
            "rates_bound": self.bounds.rates,
            "one_run_bound": self.one_run,
            "one_run_gaussian_bound": self.one_run_gaussian,
            "checks": {check.name: check.p for check in self.checks},
            "failed": [str(check) for check in self.failed],
            "confidence": self.confidence,
            "runs": self.runs,
            "holds": self.holds,
        }


def audit(
    make: Make = PrivateStatistics, epsilon: float = 4.0, delta: float = 1e-5, runs: int = 2000, confidence: float = 0.999, seed: int = 0
) -> Audit:
    """All checks of one mechanism.

    Args:
        make: makes its statistics, as `PrivateStatistics`.
        epsilon: the budget of the releases, at most `MOST_EPSILON`.
        delta: that of the releases.
        runs: number of canaries, up to 2304.
        confidence: of everything together, see `Audit`.
        seed: of the canaries' coins; noise and masks are the mechanism's.

    Raises:
        InputError: ``epsilon`` is out of range.
    """
    if not 0 < epsilon <= MOST_EPSILON:
        raise InputError(f"epsilon is {epsilon:g}; allowed in an audit: above 0, at most {MOST_EPSILON:,} (float32 hides smaller noise).")
    found = audit_of_chance(make, epsilon, delta, runs, confidence, seed)
    with tempfile.TemporaryDirectory() as folder:
        certain_ones = [
            *sensitivity_checks(make),
            attempted("ledger", lambda: ledger_check(make, Path(folder) / "ledger", epsilon, delta)),
            attempted("account", lambda: _account(make, epsilon, delta)),
        ]
    checks = (*found.checks, *certain_ones)
    return Audit(found.claimed, found.bounds, found.one_run, found.one_run_gaussian, checks, runs, confidence)


def audit_of_chance(make: Make, epsilon: float, delta: float, runs: int, confidence: float, seed: int) -> Audit:
    """The part of `audit` in which chance has a part: noise, sampling and canaries."""
    scores, coins, claimed = _canaries(make, epsilon, delta, runs, seed)
    each = 1 - (1 - confidence) / CHANCE
    bounds = lower_bounds(scores[coins], scores[~coins], delta, each)
    guesses = max(10, runs // 5)
    right = guess(scores, coins, guesses)
    one_run = one_run_bound(right, guesses, runs, delta, each), one_run_gaussian(right, guesses, runs, delta, each)
    checks = (*noise_checks(make, epsilon, delta), attempted("sampling", lambda: _sampling(make, delta)))
    return Audit(claimed, bounds, *one_run, checks, runs, confidence)


def canary_data(directions: Tensor, labels: Tensor, side: int = SIDE) -> ImageData:
    """Images (n, 1, side, side); image i has the value 1 (normalised) at pixel ``directions[i]`` (n,) and 0 elsewhere."""
    spec = DataSpec("canaries", 1, side, side, CLASSES, (0.5,), (0.5,), "given", "given")
    images = torch.full((len(directions), 1, side, side), 0.5)
    images.flatten(1)[torch.arange(len(directions)), directions] = 1.0
    none = Split(images[:0], torch.zeros(0, dtype=torch.int64))
    return ImageData(spec, Split(images, labels), none, none)


def _canaries(make: Make, epsilon: float, delta: float, runs: int, seed: int) -> tuple[np.ndarray, np.ndarray, float]:
    """Scores (runs,) and coins (runs,) of one release, and epsilon of its account.

    Canaries are of three classes, each augmented in its own way, in by a coin, and scored by the release along their own direction.
    Directions are orthogonal and their noise independent, so each canary is a separate run. Every row is longer than the clip, every
    second one six times as long: a missing clip shows.
    """
    coins = np.random.default_rng(seed).random(runs) < 0.5
    labels = torch.arange(runs) % len(RELEASED)
    inside = torch.from_numpy(coins.nonzero()[0])
    statistics = make(
        canary_data(inside, labels[inside]), epsilon, delta, releases=1, sample_rate=1.0, population=runs, clip=CLIP, classes=RELEASED
    )
    scale = 1.0 + 2.0 * (torch.arange(SIDE * SIDE) % 2)

    def answer() -> Tensor:
        return statistics.class_means(lambda images: images.flatten(1) * scale, 1, turned, generator(0, "audit"))

    released = torch.stack([answer() for _ in range(REPEATS)]).mean(0).view(len(RELEASED), 1, SIDE, SIDE)
    upright = torch.stack([torch.rot90(part, -(position + 1), (1, 2)) for position, part in enumerate(released)]).flatten(1)
    scores = upright[labels, torch.arange(runs)].double().numpy()
    return scores, coins, spent(statistics.history, delta).epsilon


def _scaled(statistics: PrivateStatistics, scale: float) -> Tensor:
    """(K, D): released means of the images' pixels times ``scale``."""
    return statistics.class_means(lambda images: scale * images.flatten(1), 1, None, generator(0, "audit"))


def _sampling(make: Make, delta: float, rate: float = 0.25, releases: int = 40) -> Check:
    """Poisson sampling at the account's rate: with hardly any noise, rows of their own show who was in each release.

    Batches of a fixed size vary too little from release to release; shuffled passes vary too little from example to example. Examples lie
    in turn in all classes, so that coins which classes or neighbours share make releases vary too much.
    """
    count = SMALL * SMALL
    labels = torch.arange(count) % len(RELEASED)
    data = canary_data(torch.arange(count), labels, SMALL)
    options = {"releases": releases, "sample_rate": rate, "population": count, "clip": CLIP, "classes": RELEASED}
    statistics = make(data, 1e7, delta, **options)
    statistics._plan = statistics._planned(1)._replace(noise_multiplier=1e-3)
    seen = []
    for number in range(releases):
        means = _scaled(statistics, 1.0 + number / releases)[labels, torch.arange(count)]  # another question, the same for every canary
        seen.append((means * rate * count / len(RELEASED) > CLIP / 2).double().numpy())
    history = statistics.history
    stated = history[0].sample_rate if history else 0.0
    if sum(step.times for step in history) != releases or not 0 < stated < 1:
        made = f"{sum(step.times for step in history)} releases at rate {stated:g}"
        return Check("sampling", 0.0, f"the account has {made}, and {releases} at rate {rate:g} were asked for")
    masks = np.stack(seen)
    spread = stated * (1 - stated)
    by_release = ((masks.sum(1) - count * stated) ** 2).sum() / (count * spread)
    by_example = ((masks.sum(0) - releases * stated) ** 2).sum() / (releases * spread)
    laws = (scipy.stats.chi2(releases), by_release), (scipy.stats.chi2(count), by_example)
    tails = [float(tail) for law, value in laws for tail in (law.cdf(value), law.sf(value))]
    words = f"{masks.mean():.4f} of the examples in a release, stated {stated:g}"
    return Check("sampling", min(1.0, 4 * min(tails)), words)


def _account(make: Make, epsilon: float, delta: float) -> Check:
    """The stated epsilon, computed again from the history of releases of all the data, and within the budget."""
    data = canary_data(torch.arange(4), torch.zeros(4, dtype=torch.int64), SMALL)
    statistics = make(data, epsilon, delta, releases=3, sample_rate=1.0, population=4, clip=CLIP, classes=RELEASED)
    for number in range(1, 4):
        _scaled(statistics, float(number))
    stated = float(str(statistics.privacy["epsilon"]))
    mu = sum(step.times / step.noise_multiplier**2 for step in statistics.history) ** 0.5
    return certain("account", list(_accounted(stated, epsilon, delta, mu)), f"epsilon {stated:.4f} of a budget of {epsilon:g}")


def _accounted(stated: float, epsilon: float, delta: float, mu: float) -> Iterator[str]:
    if not mu > 0 or gaussian_delta(stated, mu) > delta * (1 + 1e-6):
        yield f"epsilon {stated:.4f} is stated, which is too small for the history of releases"
    if stated > epsilon * (1 + 1e-6):
        yield f"epsilon {stated:.4f} was spent of a budget of {epsilon:g}"
