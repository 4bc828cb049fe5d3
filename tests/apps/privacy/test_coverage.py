"""Printed intervals hold the true value as often as they say; the simulation can find one that does not."""

import functools

import numpy as np
import pytest
import scipy.stats

from benchmarks import coverage
from distill.scores import Measure, Row, Score, Scorecard

# Kinds that take milliseconds a study; `python -m benchmarks.coverage` does them all, and more studies.
QUICK = [name for name in coverage.KINDS if not name.startswith(("AUC over", "TPR", "advantage", "Spearman"))]
STUDIES = 600
LEAST = 1 - 10**-6  # of the chance that a right interval passes


@pytest.mark.parametrize("name", QUICK)
def test_an_interval_holds_the_true_value(name: str) -> None:
    found = coverage.line(name, STUDIES)
    few = float(scipy.stats.binom.ppf(1 - LEAST, STUDIES, 0.93)) / STUDIES
    assert found["held"] >= few
    assert found["low"] <= found["held"] <= found["high"]


def test_networks_of_one_set_do_not_count_as_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interval of nine values of three sets, as if they were independent, is too short, and the simulation shows it."""
    original = Score.of

    def naive(name: str, values: list[list[float]]) -> Score:
        return original(name, [[value for row in values for value in row]])

    monkeypatch.setattr(coverage.Score, "of", naive)
    monkeypatch.setitem(coverage.KINDS, "naive", functools.partial(coverage.of_a_score, sets=3, networks=3))
    assert coverage.line("naive", STUDIES)["high"] < 0.85


def test_a_score_of_several_sets_is_students_interval_of_their_means() -> None:
    values = [[0.1, 0.2, 0.3], [0.4, 0.4, 0.7], [0.2, 0.1, 0.0]]
    found = Score.of("improvement", values)
    means = np.mean(values, 1)
    low, high = scipy.stats.t.interval(0.95, 2, means.mean(), scipy.stats.sem(means))
    assert found.mean == pytest.approx(means.mean())
    assert (found.mean - found.half_width, found.mean + found.half_width) == pytest.approx((low, high))
    row = Row("condensed", "own", "own", "ConvNet", "sgd")
    table = Scorecard(
        (Measure(row, (0.1,), tuple(tuple(100 * v for v in one) for one in values), 9),), (), 3, 10, 9, 0.1, 0.0, 0.0, "test"
    ).table()
    assert table[1][6] == f"{100 * means.mean():.1f} ± {100 * (high - means.mean()):.1f}"
    one = Score.of("improvement", values[:1])
    low, high = scipy.stats.t.interval(0.95, 2, 0.2, scipy.stats.sem(values[0]))
    assert (one.mean - one.half_width, one.mean + one.half_width) == pytest.approx((low, high))


def test_the_page_has_a_row_for_each_kind() -> None:
    shown = coverage.table([coverage.line(name, 20) for name in QUICK]).splitlines()
    assert len(shown) == 2 + len(QUICK)
    assert coverage.BEGIN in coverage.PAGE.read_text()
    assert coverage.END in coverage.PAGE.read_text()
