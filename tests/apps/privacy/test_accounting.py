"""Epsilon against published values, an independent integration, and what must be monotone."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.optimize
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.privacy import accounting
from apps.privacy.accounting import Steps, add, gaussian_delta, gaussian_epsilon, group_epsilon, noise_multiplier, rdp_epsilon, spent
from distill.errors import InputError

opacus = pytest.importorskip("opacus")

DELTA = 1e-5
# (noise multiplier, rate, releases, PLD epsilon of the dp-accounting package); delta 1e-5, add or remove one example.
TABLE = [
    (1.0, 1.0, 1, 4.377),
    (4.0, 1.0, 1, 0.926),
    (1.0, 256 / 60_000, 10_000, 2.345),
    (1.3, 256 / 60_000, 100_000, 5.509),
    (3.0, 256 / 60_000, 100_000, 1.832),
    (2.0, 50 / 6000, 10_000, 1.765),
    (4.2969, 50 / 5000, 10_000, 0.873),
    (1.0, 0.032, 200, 2.998),
]


@pytest.mark.parametrize("row", TABLE)
def test_epsilon_of_every_row_is_that_of_the_privacy_loss_distribution(row: tuple[float, float, int, float]) -> None:
    noise, rate, count, published = row
    found = spent([Steps(noise, rate, count)], DELTA)
    assert published - 0.002 <= found.epsilon <= published + 0.02
    assert found.accountant in ("PRV", "exact Gaussian composition")
    assert found.epsilon <= rdp_epsilon([Steps(noise, rate, count)], DELTA)


@pytest.mark.parametrize("row", TABLE)
def test_dp_accounting_agrees(row: tuple[float, float, int, float]) -> None:
    dp = pytest.importorskip("dp_accounting")
    noise, rate, count, _ = row
    event = dp.SelfComposedDpEvent(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise)), count)
    accountant = dp.pld.PLDAccountant()
    accountant.compose(event)
    assert abs(accountant.get_epsilon(DELTA) - spent([Steps(noise, rate, count)], DELTA).epsilon) < 0.02


@pytest.mark.parametrize(("epsilon", "mu"), [(0.0, 1.0), (1.0, 0.25), (4.377, 1.0), (10.0, 2.0)])
def test_the_gaussian_formula_is_the_integral_of_the_densities(epsilon: float, mu: float) -> None:
    def excess(x: float) -> float:
        with_, without = math.exp(-((x - mu) ** 2) / 2), math.exp(-(x**2) / 2)
        return max(0.0, with_ - math.exp(epsilon) * without) / math.sqrt(2 * math.pi)

    slow = scipy.integrate.quad(excess, -12, 14, limit=500, points=[epsilon / mu + mu / 2])[0]
    assert gaussian_delta(epsilon, mu) == pytest.approx(slow, abs=1e-9)
    if slow > 1e-12:
        assert gaussian_epsilon(mu, slow) == pytest.approx(epsilon, abs=1e-4)


@pytest.mark.parametrize(
    ("epsilon", "rate", "count"), [(1.0, 1.0, 1), (10.0, 1.0, 10), (1.0, 256 / 60_000, 10_000), (0.1, 0.1, 50), (8.0, 0.5, 3)]
)
def test_the_noise_found_keeps_the_target_and_is_not_wasteful(epsilon: float, rate: float, count: int) -> None:
    sigma = noise_multiplier(epsilon, DELTA, rate, count)
    assert spent([Steps(sigma, rate, count)], DELTA).epsilon <= epsilon
    assert spent([Steps(0.99 * sigma, rate, count)], DELTA).epsilon > epsilon * (1 if rate < 1 else 0.99)


@pytest.mark.parametrize(
    ("epsilon", "rate", "count", "less"),
    [(1.0, 256 / 60_000, 10_000, 0.96), (1.0, 0.1, 100, 0.97), (8.0, 0.05, 20, 0.97), (2.0, 0.005, 5, 0.8)],
)
def test_the_tight_accountant_needs_less_noise_than_rdp(epsilon: float, rate: float, count: int, less: float) -> None:
    """Against the multiplier that RDP with all its orders would choose, and where it is there against the PLD of dp-accounting."""
    sigma = noise_multiplier(epsilon, DELTA, rate, count)
    by_rdp = scipy.optimize.brentq(lambda value: rdp_epsilon([Steps(value, rate, count)], DELTA) - epsilon, 0.3, 20)
    assert sigma < less * by_rdp


def test_dp_accounting_finds_the_noise_enough() -> None:
    dp = pytest.importorskip("dp_accounting")
    for epsilon, rate, count in ((1.0, 0.1, 100), (2.0, 0.005, 5)):
        accountant = dp.pld.PLDAccountant()
        event = dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(noise_multiplier(epsilon, DELTA, rate, count)))
        accountant.compose(dp.SelfComposedDpEvent(event, count))
        assert epsilon - 0.03 < accountant.get_epsilon(DELTA) <= epsilon


def test_earlier_releases_count_in_the_search() -> None:
    before = (Steps(4.0, 1.0, 3), Steps(1.0, 0.02, 50))
    sigma = noise_multiplier(4.0, DELTA, 0.1, 20, before)
    assert 3.9 < spent([*before, Steps(sigma, 0.1, 20)], DELTA).epsilon <= 4.0


def test_earlier_releases_that_the_tight_accountant_allowed_leave_room_for_more() -> None:
    """By RDP the earlier releases alone cost more than the whole budget."""
    before = (Steps(0.637032941624987, 1.0, 2), Steps(0.386538810845881, 0.2, 5))
    assert accounting._quick_rdp(before, 1e-3) > 20.0 > accounting.spent(before, 1e-3).epsilon
    noise = accounting.noise_multiplier(20.0, 1e-3, 1.0, 2, before)
    assert 0 < 20.0 - accounting.spent([*before, Steps(noise, 1.0, 2)], 1e-3).epsilon < 0.5
    with pytest.raises(InputError, match="no noise reaches epsilon 15"):
        accounting.noise_multiplier(15.0, 1e-3, 1.0, 2, before)


@pytest.mark.parametrize("examples", [1, 2, 5])
def test_several_examples_of_one_person(examples: int) -> None:
    """With all the data in each release a group moves the sum k times as far; in samples it costs at least k times one example."""
    whole = [Steps(4.0, 1.0, 2), Steps(8.0, 1.0, 1)]
    far = gaussian_epsilon(examples * (2 / 16 + 1 / 64) ** 0.5, DELTA)
    assert group_epsilon(whole, DELTA, examples) == pytest.approx(far)
    sampled = [Steps(4.0, 0.02, 50)]
    found = group_epsilon(sampled, DELTA, examples)
    assert found >= examples * spent(sampled, DELTA).epsilon * (1 - 1e-9)
    if examples == 1:
        assert found == spent(sampled, DELTA).epsilon


def test_the_group_bound_is_its_definition() -> None:
    """(e, d) for one example, so (k e, sum of exp(i e) d) for k: the returned figure has some d for which the sum stays below delta."""
    sampled, k = [Steps(2.0, 0.01, 100)], 3
    found = group_epsilon(sampled, DELTA, k)
    low, high = 1e-30, DELTA  # the smallest d at which one example has this epsilon
    for _ in range(25):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rdp_epsilon(sampled, middle, range(2, 64)) <= found / k + 1e-9 else (middle, high)
    assert high * sum(math.exp(i * found / k) for i in range(k)) <= DELTA
    assert found < 2.5 * k * spent(sampled, DELTA).epsilon
    assert group_epsilon([Steps(0.5, 0.5, 1000)], DELTA, 5) == math.inf
    assert group_epsilon([], DELTA, 3) == 0.0


def test_published_noise_multipliers() -> None:
    assert noise_multiplier(1.0, DELTA, 1.0, 1) == pytest.approx(3.73, abs=0.03)  # PLD's value; PRV's, which adds 0.01 to epsilon, is 3.79
    assert noise_multiplier(1.0, DELTA, 256 / 60_000, 10_000) == pytest.approx(1.77, abs=0.015)  # RDP's is 1.88
    assert noise_multiplier(1.0, DELTA, 256 / 60_000, 100_001) == pytest.approx(5.55, abs=0.04)  # RDP's: too many releases for PRV


@settings(max_examples=12, deadline=None)
@given(st.floats(0.6, 20), st.floats(0.001, 1.0), st.integers(1, 500), st.floats(1.05, 3.0))
def test_more_noise_less_data_or_fewer_releases_never_cost_more(noise: float, rate: float, count: int, factor: float) -> None:
    epsilon = rdp_epsilon([Steps(noise, rate, count)], DELTA)
    assert rdp_epsilon([Steps(noise * factor, rate, count)], DELTA) <= epsilon + 1e-9
    assert rdp_epsilon([Steps(noise, rate / factor, count)], DELTA) <= epsilon + 1e-9
    assert rdp_epsilon([Steps(noise, rate, count), Steps(noise, rate, 1)], DELTA) >= epsilon - 1e-9


def test_history_joins_equal_neighbours_only() -> None:
    history = add(add(add([], 1.0, 0.5), 1.0, 0.5, 3), 2.0, 0.5)
    assert history == [Steps(1.0, 0.5, 4), Steps(2.0, 0.5, 1)]
    assert spent([], DELTA).epsilon == 0.0
    assert spent(history, DELTA).epsilon > spent(history[:1], DELTA).epsilon


def test_where_prv_fails_the_rdp_bound_is_stated(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: object, *args: object, **named: object) -> float:
        raise RuntimeError("Discrete mean differs significantly from continuous mean.")

    monkeypatch.setattr(opacus.accountants.PRVAccountant, "get_epsilon", fails)
    accounting._spent.cache_clear()
    history = [Steps(1.0, 0.032, 200)]
    found = spent(history, DELTA)
    assert found.accountant == "RDP"
    assert found.epsilon == rdp_epsilon(history, DELTA) == pytest.approx(3.446, abs=0.01)
    accounting._spent.cache_clear()


@pytest.mark.parametrize(
    "bad",
    [Steps(0.0, 0.5, 1), Steps(-1.0, 0.5, 1), Steps(np.nan, 0.5, 1), Steps(1.0, 1.5, 1), Steps(1.0, 0.0, 1), Steps(1.0, 0.5, -1)],
)
def test_a_history_without_meaning_is_refused(bad: Steps) -> None:
    with pytest.raises(InputError, match=r"allowed: a positive multiplier"):
        spent([bad], DELTA)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1.0, float("nan")])
def test_a_delta_without_meaning_is_refused(delta: float) -> None:
    with pytest.raises(InputError, match="delta is"):
        spent([Steps(1.0, 0.5, 1)], delta)


def test_an_impossible_budget_is_one_line() -> None:
    with pytest.raises(InputError, match=r"allowed: a positive number"):
        noise_multiplier(0.0, DELTA, 0.5, 1)
    with pytest.raises(InputError, match=r"allow a larger epsilon or fewer releases"):
        noise_multiplier(1e-6, DELTA, 0.9, 1_000_000_000)


def test_the_sentence_has_the_figures_of_groups() -> None:
    """Recomputed from the stated history: exact where all the data are used, none where the history gives no useful one."""
    from apps.privacy.statement import guarantee, statement

    text = guarantee(statement([Steps(4.0, 1.0, 1)], DELTA, secure=True))
    two, five = (gaussian_epsilon(examples / 4, DELTA) for examples in (2, 5))
    assert f"epsilon of one person with several examples, at the same delta: 2 examples {two:.2f}, 5 examples {five:.2f}; " in text
    text = guarantee(statement([Steps(0.6, 0.5, 300)], DELTA, secure=True))
    assert "5 examples no useful bound" in text
