"""Lower bounds of epsilon that use all scores at thresholds fixed in advance, and the one-run bound of f-differential privacy."""

from collections.abc import Callable, Iterator

import numpy as np
import scipy.optimize
import scipy.stats
from scipy.special import ndtr, ndtri

from apps.privacy.accounting import gaussian_epsilon
from apps.privacy.metrics import clopper_pearson
from distill.errors import InputError

# Ranks at which thresholds are placed, from the most extreme score to the median; each takes an equal part of the allowed error.
RANKS = 12
LARGEST_MU = 50.0


def rate_pairs(inside: np.ndarray, outside: np.ndarray, alpha: float) -> Iterator[tuple[float, float]]:
    """(lowest rate of one side, highest rate of the other side) beyond each of `RANKS` thresholds in both directions.

    The threshold of rank k is the k-th most extreme score of the side that is to be rare beyond it, so that this side's true rate there
    is Beta(k, n - k + 1) for any continuous distribution, and below it where scores are equal (only scores beyond the threshold count).
    Ranks are fixed before the scores are seen and the other side is independent of them: with ``alpha`` / (4 `RANKS`) for each end, all
    pairs hold together with probability 1 - ``alpha``.
    """
    share = alpha / (4 * RANKS)
    for many, rare in ((inside, outside), (-outside, -inside)):
        falling = np.sort(rare)[::-1]
        for rank in np.unique(np.geomspace(1, max(1, len(rare) // 2), RANKS).round().astype(int)):
            high = float(scipy.stats.beta.ppf(1 - share, rank, len(rare) - rank + 1))
            hits = int((many > falling[rank - 1]).sum())
            yield clopper_pearson(hits, len(many), 2 * share)[0], high


def gaussian_bound(inside: np.ndarray, outside: np.ndarray, delta: float, alpha: float) -> float:
    """Epsilon from the largest mu = Phi^-1(low) - Phi^-1(high) of `rate_pairs` (Gaussian mechanisms; Nasr et al., USENIX Security 2023)."""
    mus = [float(ndtri(low) - ndtri(high)) for low, high in rate_pairs(inside, outside, alpha)]
    return gaussian_epsilon(max(0.0, *mus), delta)


def rates_bound(inside: np.ndarray, outside: np.ndarray, delta: float, alpha: float) -> float:
    """Epsilon from the largest log((low - delta) / high) of `rate_pairs` (any mechanism; Kairouz, Oh and Viswanath, 2015)."""
    found = [float(np.log((low - delta) / high)) for low, high in rate_pairs(inside, outside, alpha) if low > delta]
    return max([0.0, *found])


def one_run_gaussian(right: int, guesses: int, canaries: int, delta: float = 1e-5, confidence: float = 0.95) -> float:
    """Lower bound of epsilon of a Gaussian mechanism from one run, for the same game as `apps.privacy.audit.one_run_bound`.

    f-differential privacy audited in one run (Mahloujifar, Melis and Chaudhuri, ICML 2025), with the curve of mu-Gaussian privacy: the
    largest mu at which ``right`` of ``guesses`` right guesses about ``canaries`` coins have a probability of at most 1 - ``confidence``.

    Raises:
        InputError: the numbers are of no game.
    """
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise InputError(f"{right} right of {guesses} guesses about {canaries} canaries; allowed: right <= guesses <= canaries.")

    def excess(mu: float) -> float:
        return least_mass(right, guesses, canaries, 1 - confidence, lambda mass: float(ndtr(ndtri(mass) - mu))) - guesses / canaries

    if excess(0.0) <= 0:
        return 0.0
    if excess(LARGEST_MU) > 0:
        return gaussian_epsilon(LARGEST_MU, delta)
    return gaussian_epsilon(float(scipy.optimize.bisect(excess, 0.0, LARGEST_MU, xtol=1e-4)), delta)


def least_mass(right: int, guesses: int, canaries: int, chance: float, least_wrong: Callable[[float], float]) -> float:
    """The smallest total mass (guesses / canaries where it is one distribution) with P[at least ``right`` right] = ``chance``.

    Let p_l be the probability of exactly l right guesses, r_i = sum over l >= i of (l / m) p_l and h_i = sum of ((g - l) / m) p_l, the
    masses of "a random canary is guessed right / wrong and at least i are right". A canary's coin turned over makes a wrong guess a right
    one, so that r_(i+1) <= 1 - f(h_i). Going down from i = ``right`` with the least h_i that this allows gives the least r_0 + h_0; a
    mechanism for which it is more than g / m does not have the trade-off function f.

    Args:
        right: c, number of right guesses.
        guesses: g.
        canaries: m.
        chance: probability of at least c right guesses.
        least_wrong: the least x with 1 - f(x) >= y, as a function of y.
    """
    mass_right, mass_wrong = chance * right / canaries, chance * (guesses - right) / canaries
    for i in range(right - 1, -1, -1):
        wrong = max(mass_wrong, least_wrong(mass_right))
        mass_right += i / (guesses - i) * (wrong - mass_wrong)
        mass_wrong = wrong
        if mass_right + mass_wrong > guesses / canaries:
            break
    return mass_right + mass_wrong
