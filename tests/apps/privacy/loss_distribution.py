"""Epsilon by the privacy loss distribution, written out: an accountant of the tests, independent of Opacus' and dp-accounting's."""

import math
from collections.abc import Sequence

import numpy as np
import scipy.optimize
import scipy.signal
import scipy.stats

from apps.privacy.accounting import Steps

STEP, REACH = 2e-3, 60.0  # the grid of losses; what lies above counts as infinite
GRID = np.arange(-round(REACH / STEP), round(REACH / STEP) + 1) * STEP


def one_release(noise: float, rate: float, *, removed: bool) -> tuple[np.ndarray, float]:
    """The loss of one release, rounded up to the grid, and the probability of a loss beyond it.

    With one example more the release is a mixture of N(0, noise^2) and N(1, noise^2); ``removed`` is the loss under the mixture.
    """

    def place(ratio: np.ndarray) -> np.ndarray:
        """The outcome at which the mixture's density is ``ratio`` times the other's."""
        with np.errstate(divide="ignore", invalid="ignore"):
            found = noise**2 * np.log((ratio - (1 - rate)) / rate) + 0.5
        return np.where(ratio > 1 - rate, found, -np.inf)

    normal = scipy.stats.norm(scale=noise).cdf
    if removed:
        at = place(np.exp(GRID))
        below = (1 - rate) * normal(at) + rate * normal(at - 1)
    else:
        below = 1 - normal(place(np.exp(-GRID)))
    mass = np.diff(below, prepend=0.0)
    return np.maximum(mass, 0.0), max(0.0, 1 - float(below[-1]))


def composed(history: Sequence[Steps], *, removed: bool) -> tuple[np.ndarray, float]:
    """The same for all releases together."""
    total, beyond = (GRID == 0).astype(float), 0.0
    for step in history:
        one, more = one_release(step.noise_multiplier, step.sample_rate, removed=removed)
        for _ in range(step.times):
            whole = np.maximum(scipy.signal.fftconvolve(total, one), 0.0)
            low, high = len(GRID) // 2, len(GRID) // 2 + len(GRID)
            beyond = beyond + (1 - beyond) * more + float(whole[high:].sum())
            total = whole[low:high]
            total[0] += whole[:low].sum()
    return total, beyond


def delta_at(epsilon: float, total: np.ndarray, beyond: float) -> float:
    """The delta of a loss distribution at ``epsilon``."""
    over = epsilon < GRID
    return beyond + float((total[over] * -np.expm1(epsilon - GRID[over])).sum())


def loss_distribution_epsilon(history: Sequence[Steps], delta: float) -> float:
    """Epsilon at ``delta`` under adding or removing one example; at most half a grid step for each release too large."""
    found = 0.0
    for removed in (True, False):
        total, beyond = composed(history, removed=removed)
        if delta_at(0.0, total, beyond) > delta:
            if beyond >= delta:
                return math.inf
            found = max(found, float(scipy.optimize.brentq(lambda e, t=total, b=beyond: delta_at(e, t, b) - delta, 0.0, REACH)))
    return found
