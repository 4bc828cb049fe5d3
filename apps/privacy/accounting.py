"""How much privacy is spent: Opacus' accountants, and the closed formula where every release looks at all the data.

Adjacency in this package: add or remove one labelled example. sigma is the noise's standard deviation divided by the clipping
norm; one release of a noised sum over one Poisson sample is one step.
"""

import functools
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

import numpy as np
import scipy.optimize
from scipy.special import log_ndtr

from distill.errors import InputError

ADJACENCY = "add or remove one labelled example"
# PRV's time and memory grow with the number of steps and with epsilon; beyond these the RDP bound, always valid, is what is stated.
MAX_PRV_STEPS = 1_000_000
MAX_PRV_EPSILON = 40.0
MAX_SIGMA = 1e6
MAX_SEARCH_STEPS = 100_000  # of which PRV takes seconds: the search asks it a few times
MOST_ASKED, TIGHT = 8, 2e-3  # the second is relative to epsilon
# Opacus stops at order 63, where no noise reaches an epsilon below 0.19 at delta 1e-5; small budgets need higher orders.
# Between whole orders the bound is a slow series: the search, which needs many bounds, takes few of those (any choice is valid).
ORDERS = (*(1 + step / 10 for step in range(1, 100)), *range(12, 64), 80, 96, 128, 192, 256, 384, 512, 1024)
WHOLE_ORDERS = (*range(2, 64), *ORDERS[-8:])
SEARCH_ORDERS = (*(1 + step / 2 for step in range(1, 10)), *range(6, 64), *ORDERS[-8:])


class Steps(NamedTuple):
    """``times`` releases with the same noise multiplier and Poisson sampling rate."""

    noise_multiplier: float
    sample_rate: float
    times: int


class Spent(NamedTuple):
    """An upper bound of epsilon, and by which accountant."""

    epsilon: float
    accountant: str


def spent(history: Sequence[Steps], delta: float) -> Spent:
    """Epsilon of all releases together at ``delta``: the closed formula where every rate is 1, else PRV, else (where PRV fails) RDP."""
    counted = tuple(Steps(*step) for step in history if step.times)
    if not counted:
        return Spent(0.0, "no release")
    check(counted, delta)
    return _spent(counted, delta)


@functools.lru_cache(maxsize=256)  # a set's statement is asked for several times, and PRV takes a second
def _spent(history: tuple[Steps, ...], delta: float) -> Spent:
    if all(step.sample_rate == 1.0 for step in history):
        mu = sum(step.times / step.noise_multiplier**2 for step in history) ** 0.5
        return Spent(gaussian_epsilon(mu, delta), "exact Gaussian composition")
    bound = rdp_epsilon(history, delta)
    if sum(step.times for step in history) > MAX_PRV_STEPS or not bound < MAX_PRV_EPSILON:
        return Spent(bound, "RDP")
    accountant = _opacus().PRVAccountant()
    accountant.history = [tuple(step) for step in history]
    try:
        # At large steps it takes logarithms of zero, by the thousand.
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            epsilon = float(accountant.get_epsilon(delta))
    except (RuntimeError, ValueError, FloatingPointError, MemoryError, OverflowError):
        return Spent(bound, "RDP")
    # Both are upper bounds, so the smaller one holds.
    return Spent(epsilon, "PRV") if 0.0 <= epsilon <= bound else Spent(bound, "RDP")


def rdp_epsilon(history: Sequence[Steps], delta: float, orders: Sequence[float] = ORDERS) -> float:
    """Rényi accountant (Mironov, Talwar and Zhang, 2019): valid always, 7 to 15 % above the tight value."""
    orders = tuple(orders)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the best order at the end of the list: a looser bound, not a wrong one
        spent_by_rdp = _opacus().analysis.rdp.get_privacy_spent
        return float(spent_by_rdp(orders=orders, rdp=_renyi(tuple(Steps(*step) for step in history), orders), delta=delta)[0])


def _renyi(history: tuple[Steps, ...], orders: tuple[float, ...]) -> np.ndarray:
    """Rényi divergence of a history at each order."""
    return np.asarray(sum(_curve(step.noise_multiplier, step.sample_rate, orders) * step.times for step in history))


@functools.lru_cache(maxsize=1024)  # a search asks for the same earlier releases again and again; a curve takes a tenth of a second
def _curve(noise_multiplier: float, sample_rate: float, orders: tuple[float, ...]) -> np.ndarray:
    """Rényi divergence of one release at each order."""
    compute = _opacus().analysis.rdp.compute_rdp
    return np.asarray(compute(q=sample_rate, noise_multiplier=noise_multiplier, steps=1, orders=orders))


@functools.lru_cache(maxsize=64)
def noise_multiplier(epsilon: float, delta: float, sample_rate: float, releases: int, before: tuple[Steps, ...] = ()) -> float:
    """The smallest sigma with which ``releases`` releases, after those of ``before``, stay within ``epsilon``.

    Exact where every sampling rate is 1. Otherwise it is searched with RDP, and then lowered as far as the tight accountant of `spent`
    allows: 4 to 7 % less noise, much less for few releases of a small rate. Raises `InputError` when the target cannot be reached.
    """
    check([*before, Steps(1.0, sample_rate, releases)], delta)
    if not (np.isfinite(epsilon) and epsilon > 0):
        raise InputError(f"epsilon is {epsilon}; allowed: a positive number (1 is strong, 10 is weak).")
    exact = all(step.sample_rate == 1.0 for step in [*before, Steps(1.0, sample_rate, 1)])
    steps = releases + sum(step.times for step in before)
    tight = not exact and epsilon < MAX_PRV_EPSILON and steps <= MAX_SEARCH_STEPS

    def enough(sigma: float, bound: Callable[[Sequence[Steps], float], float] = _exact if exact else _quick_rdp) -> bool:
        return bound([*before, Steps(sigma, sample_rate, releases)], delta) <= epsilon

    high = _doubled(enough)
    if high is not None:
        low = high / 2 if high > 1 else 0.0
        while high - low > (1e-9 if exact else 1e-3) * high:
            middle = (low + high) / 2
            low, high = (low, middle) if enough(middle) else (middle, high)
    elif tight:  # earlier releases, whose noise the tight accountant allowed, may cost more than epsilon by RDP
        high = _doubled(lambda sigma: enough(sigma, _exact))
    if high is None:
        raise InputError(
            f"no noise reaches epsilon {epsilon} at delta {delta} in {releases} releases of rate {sample_rate:g}; "
            "allow a larger epsilon or fewer releases."
        )
    return _lowered(epsilon, delta, sample_rate, releases, before, high) if tight else high


def _exact(history: Sequence[Steps], delta: float) -> float:
    return spent(history, delta).epsilon


def _doubled(enough: Callable[[float], bool]) -> float | None:
    """The first of 1, 2, 4, ... that is enough; None beyond `MAX_SIGMA`."""
    sigma = 1.0
    while not enough(sigma):
        sigma *= 2
        if sigma > MAX_SIGMA:
            return None
    return sigma


def _lowered(epsilon: float, delta: float, sample_rate: float, releases: int, before: tuple[Steps, ...], sigma: float) -> float:
    """The smallest noise multiplier up to ``sigma`` that `spent` finds within ``epsilon``, to `TIGHT` of epsilon.

    PRV takes a second, so it is asked a few times: epsilon is nearly a power of the multiplier, whose exponent the last two answers give.
    """

    def cost(value: float) -> float:
        return max(spent([*before, Steps(value, sample_rate, releases)], delta).epsilon, 1e-12)

    found, (log_sigma, log_cost), slope = sigma, (np.log(sigma), np.log(cost(sigma))), -1.0
    for _ in range(MOST_ASKED):
        if np.log1p(-TIGHT) <= log_cost - np.log(epsilon) <= 0:
            break
        tried = log_sigma + float(np.clip((np.log(epsilon) + np.log1p(-TIGHT / 3) - log_cost) / slope, -0.5, 0.5))
        answer = float(np.log(cost(float(np.exp(tried)))))
        slope = min(-0.2, (answer - log_cost) / (tried - log_sigma)) if tried != log_sigma else slope
        log_sigma, log_cost = tried, answer
        if log_cost <= np.log(epsilon):
            found = min(found, float(np.exp(log_sigma)))
    return found


def group_epsilon(history: Sequence[Steps], delta: float, examples: int) -> float:
    """Epsilon, at the same ``delta``, for one person with ``examples`` examples; infinite where no useful figure is known.

    Exact where every sampling rate is 1: k examples move a sum k times as far. Otherwise, of (e, d) for one example follows
    (k e, (1 + exp(e) + ... + exp((k - 1) e)) d) for k (Dwork and Roth, 2014, theorem 2.2 with its proof), with the largest d that fits.
    """
    counted = [Steps(*step) for step in history if step.times]
    if not counted or examples < 1:
        return 0.0
    check(counted, delta)
    if all(step.sample_rate == 1.0 for step in counted):
        mu = sum(step.times / step.noise_multiplier**2 for step in counted) ** 0.5
        return gaussian_epsilon(examples * mu, delta)
    if examples == 1:
        return spent(counted, delta).epsilon
    curve = _renyi(tuple(counted), WHOLE_ORDERS)
    for power in np.arange(0.0, 40.0, 0.1):
        # Of Rényi to approximate privacy (Canonne, Kamath and Steinke, 2020, proposition 12), as Opacus does it.
        log_delta = np.log(delta) - power * np.log(10.0)
        orders = np.asarray(WHOLE_ORDERS, dtype=np.float64)
        epsilon = max(0.0, float((curve + np.log1p(-1 / orders) - (log_delta + np.log(orders)) / (orders - 1)).min()))
        if np.logaddexp.reduce(epsilon * np.arange(examples)) <= power * np.log(10.0):
            return examples * epsilon
    return float("inf")


def _quick_rdp(history: Sequence[Steps], delta: float) -> float:
    return rdp_epsilon(history, delta, SEARCH_ORDERS)


def gaussian_delta(epsilon: float, mu: float) -> float:
    """delta of mu-Gaussian differential privacy (Dong, Roth and Su, 2022, corollary 1): Phi(-e/mu + mu/2) - exp(e) Phi(-e/mu - mu/2)."""
    if mu <= 0:
        return 0.0
    first, second = log_ndtr(-epsilon / mu + mu / 2), epsilon + log_ndtr(-epsilon / mu - mu / 2)
    return float(np.exp(first) - np.exp(second))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The epsilon at which `gaussian_delta` is ``delta``; 0 where less would do."""
    if mu <= 0 or gaussian_delta(0.0, mu) <= delta:
        return 0.0
    if not np.isfinite(mu) or mu > 1e6:
        return float("inf")
    high = mu * mu / 2 + mu * (2 * np.log(1 / delta)) ** 0.5 + 1.0  # above the tail bound, so delta is smaller there
    return float(scipy.optimize.brentq(lambda epsilon: gaussian_delta(epsilon, mu) - delta, 0.0, high, xtol=1e-10))


def add(history: Sequence[Steps], noise: float, rate: float, count: int = 1) -> list[Steps]:
    """The history with ``count`` more releases; equal neighbours are one entry."""
    *earlier, last = [*history] or [Steps(noise, rate, 0)]
    if (last.noise_multiplier, last.sample_rate) == (noise, rate):
        return [*earlier, Steps(noise, rate, last.times + count)]
    return [*history, Steps(noise, rate, count)]


def check(history: Sequence[Steps], delta: float) -> None:
    """`InputError` unless every number of a history (which may come from a file) means something."""
    if not (isinstance(delta, float) and 0 < delta < 1):
        raise InputError(f"delta is {str(delta)[:40]}; allowed: a number between 0 and 1, far below 1 / number of examples.")
    for noise, rate, count in history:
        if not (np.isfinite(noise) and noise > 0 and 0 < rate <= 1 and count >= 1):
            raise InputError(
                f"a release of noise multiplier {noise!s:.40}, sampling rate {rate!s:.40}, {count!s:.40} times; allowed: a positive "
                "multiplier, a rate above 0 up to 1, at least once."
            )


def _opacus() -> ModuleType:
    try:
        import opacus.accountants
    except ImportError:
        raise InputError('privacy accounting needs opacus: pip install "distill-apps[privacy]"') from None
    accountants: ModuleType = opacus.accountants
    return accountants
