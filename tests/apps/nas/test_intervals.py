"""Intervals of regret and overlap: against scipy's Tukey, against true accuracies within the margin, and how often they hold."""

import math

import numpy as np
import pytest
import scipy.stats

from apps.nas import intervals, ranking


@pytest.mark.parametrize(("networks", "seeds"), [(3, 2), (8, 3), (20, 5)])
def test_the_margin_is_tukeys(networks: int, seeds: int) -> None:
    truth = np.random.default_rng([networks, seeds]).normal(80, 2, (networks, seeds))
    theirs = scipy.stats.tukey_hsd(*truth).confidence_interval(0.95)
    half = (theirs.high - theirs.low)[0, 1] / 2
    assert intervals.seed_margin(truth) == pytest.approx(half, rel=1e-3)


def test_networks_that_failed_do_not_count_and_one_seed_has_no_margin() -> None:
    truth = np.random.default_rng(3).normal(80, 2, (9, 3))
    holed = np.vstack([truth, np.full((2, 3), math.nan)])
    assert intervals.seed_margin(holed) == pytest.approx(intervals.seed_margin(truth))
    fewer = truth.copy()
    fewer[0, 2] = math.nan  # one network with two seeds: all intervals are as long as its
    assert intervals.seed_margin(fewer) > 1.1 * intervals.seed_margin(truth)
    for unknown in (truth[:, :1], truth[:1], np.full((4, 3), math.nan)):
        assert math.isnan(intervals.seed_margin(unknown))
    found = intervals.regret_interval([1.0, 2.0], [3.0, 2.0], 1, math.nan)
    assert found.value == 1
    assert math.isnan(found.low)
    assert math.isnan(found.high)


@pytest.mark.parametrize("k", [1, 3])
def test_no_true_accuracies_within_the_margin_leave_the_interval(k: int) -> None:
    """All differences of the drawn truths are within the margin of the measured ones; ends of the interval are reached or nearly so."""
    rng = np.random.default_rng(k)
    for _ in range(20):
        proxy, measured, margin = rng.integers(0, 6, 9).astype(float), rng.normal(80, 1, 9), 0.8
        regret = intervals.regret_interval(proxy, measured, k, margin)
        overlap = intervals.overlap_interval(proxy, measured, k, margin)
        assert regret.value == ranking.regret(proxy, measured, k)
        assert overlap.value == ranking.overlap(proxy, measured, k)
        # Half a margin up or down, each network by itself: differences change by at most the margin.
        shifts = np.where(rng.random((3000, 9)) < 0.5, -1.0, 1.0) * margin / 2
        shifts[:1500] *= rng.random((1500, 9))
        drawn = [(ranking.regret(proxy, measured + shift, k), ranking.overlap(proxy, measured + shift, k)) for shift in shifts[::3]]
        regrets, overlaps = np.array(drawn).T
        assert regret.low - 1e-9 <= regrets.min()
        assert regrets.max() <= regret.high + 1e-9
        assert overlap.low - 1e-9 <= overlaps.min()
        assert overlaps.max() <= overlap.high + 1e-9


def test_an_interval_is_no_longer_than_the_truth_leaves_open() -> None:
    """Four networks a point apart: within 0.5 nothing can change places, within 1.5 neighbours can."""
    truth = np.array([83.0, 82.0, 81.0, 80.0])
    proxy = np.array([1.0, 2.0, 0.0, 0.0])  # takes the second best
    sure = intervals.regret_interval(proxy, truth, 1, 0.5)
    assert (sure.low, sure.value, sure.high) == (0.5, 1.0, 1.5)
    assert intervals.overlap_interval(proxy, truth, 1, 0.5) == intervals.Estimate(0.0, 0.0, 0.0)
    assert intervals.overlap_interval(proxy, truth, 1, 1.5) == intervals.Estimate(0.0, 0.0, 1.0)
    assert intervals.overlap_interval(proxy, truth, 2, 0.5) == intervals.Estimate(1.0, 1.0, 1.0)
    assert intervals.overlap_interval(proxy, truth, 2, 1.5) == intervals.Estimate(1.0, 0.5, 1.0)  # the second may be the third


@pytest.mark.parametrize("statistic", ["regret", "overlap"])
def test_intervals_hold_the_true_value(statistic: str) -> None:
    """20 networks near each other, three seeds: at least 95 % of studies, within sampling error."""
    rng, held, studies = np.random.default_rng(5), 0, 300
    interval, of_means = {
        "regret": (intervals.regret_interval, ranking.regret),
        "overlap": (intervals.overlap_interval, ranking.overlap),
    }[statistic]
    for _ in range(studies):
        true = rng.normal(80, 1, 20)
        proxy, trained = true + rng.normal(0, 1, 20), true[:, None] + rng.normal(0, 0.5, (20, 3))
        found = interval(proxy, trained.mean(1), 3, intervals.seed_margin(trained))
        held += found.low <= of_means(proxy, true, 3) <= found.high
    assert held / studies >= 0.95 - 3 * math.sqrt(0.95 * 0.05 / studies)
