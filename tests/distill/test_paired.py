"""The paired difference against scipy's paired t test and against its definition written out."""

import math

import numpy as np
import pytest
import scipy.stats

from distill.errors import InputError
from distill.paired import paired_difference


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_equals_scipys_paired_t_test(count: int) -> None:
    rng = np.random.default_rng(count)
    common = rng.normal(80, 5, count)  # what both have in common: pairing removes it
    first, second = common + rng.normal(0, 1, count), common + rng.normal(0.7, 1, count)
    found = paired_difference(first.tolist(), second.tolist())
    known = scipy.stats.ttest_rel(second, first)
    interval = known.confidence_interval(0.95)
    assert (found.low, found.high, found.p) == pytest.approx((interval.low, interval.high, known.pvalue), rel=1e-9)
    assert found.pairs == count
    assert found.significant == (known.pvalue < 0.05)
    # Unpaired, the spread that both share would hide the difference.
    apart = scipy.stats.ttest_ind(second, first).confidence_interval(0.95)
    assert count < 5 or found.high - found.low < 0.5 * (apart.high - apart.low)  # type: ignore[operator]


def test_equals_the_definition_written_out() -> None:
    found = paired_difference([80.0, 82.0, 81.0, 85.0], [81.0, 82.5, 83.0, 85.5])
    differences = [1.0, 0.5, 2.0, 0.5]
    mean = sum(differences) / 4
    spread = math.sqrt(sum((d - mean) ** 2 for d in differences) / 3)
    half = 3.182446305284263 * spread / math.sqrt(4)  # the 97.5 % quantile of Student's t with 3 degrees of freedom, from a table
    assert (found.mean, found.low, found.high) == pytest.approx((1.0, 1.0 - half, 1.0 + half), rel=1e-12)
    assert (found.first, found.second) == (82.0, 83.0)
    assert not found.significant


def test_pairs_without_spread_and_single_pairs() -> None:
    same = paired_difference([1.0, 2.0, 3.0], [1.0, 2.0, 3.0])
    assert (same.mean, same.low, same.high, same.p, same.significant) == (0.0, 0.0, 0.0, 1.0, False)
    shifted = paired_difference([1.0, 2.0, 3.0], [2.0, 3.0, 4.0])
    assert (shifted.mean, shifted.low, shifted.high, shifted.p, shifted.significant) == (1.0, 1.0, 1.0, 0.0, True)
    single = paired_difference([1.0], [9.0])
    assert (single.mean, single.low, single.high, single.p, single.significant) == (8.0, None, None, None, False)
    assert "no interval" in str(single)


@pytest.mark.parametrize(("first", "second"), [([], []), ([1.0], [1.0, 2.0]), ([1.0, math.nan], [1.0, 2.0]), ([1.0, 2.0], [1.0, math.inf])])
def test_what_cannot_be_paired_is_refused(first: list[float], second: list[float]) -> None:
    with pytest.raises(InputError):
        paired_difference(first, second)
