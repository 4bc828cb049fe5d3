"""Printed intervals hold the true value as often as they say; the simulation can find one that does not."""

import functools

import numpy as np
import pytest
import scipy.stats

from benchmarks import audit_power, coverage
from distill.records import read_json
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


def test_a_score_has_the_interval_of_sets_and_seeds() -> None:
    values = [[0.1, 0.2, 0.3], [0.4, 0.4, 0.7], [0.2, 0.1, 0.0]]
    found, both = Score.of("improvement", values), [np.var(np.mean(values, axis), ddof=1) / 3 for axis in (1, 0)]
    freedom = sum(both) ** 2 / sum(part**2 / 2 for part in both)
    half = scipy.stats.t.ppf(0.975, freedom) * sum(both) ** 0.5
    assert found.mean == pytest.approx(np.mean(values))
    assert found.half_width == pytest.approx(half)
    row = Row("condensed", "own", "own", "ConvNet", "sgd")
    table = Scorecard(
        (Measure(row, (0.1,), tuple(tuple(100 * v for v in one) for one in values), 9),), (), 3, 10, 9, 0.1, 0.0, 0.0, "test"
    ).table()
    assert table[1][6] == f"{100 * np.mean(values):.1f} ± {100 * half:.1f}"
    one = Score.of("improvement", values[:1])
    low, high = scipy.stats.t.interval(0.95, 2, 0.2, scipy.stats.sem(values[0]))
    assert (one.mean - one.half_width, one.mean + one.half_width) == pytest.approx((low, high))
    assert np.isnan(Score.of("improvement", [[float("nan"), 0.1], [0.2, 0.3]]).half_width)
    assert np.isnan(Score.of("improvement", [[0.1]]).half_width)
    assert Score.of("improvement", [[0.1, 0.1]]).half_width == 0


def test_the_page_has_a_row_for_each_kind() -> None:
    shown = coverage.table([coverage.line(name, 20) for name in QUICK]).splitlines()
    assert len(shown) == 2 + len(QUICK)
    kept = read_json(coverage.KEPT)["lines"]
    assert [line["interval"] for line in kept] == list(coverage.KINDS)
    assert f"{coverage.BEGIN}\n{coverage.table(kept)}\n{coverage.END}" in coverage.PAGE.read_text()


def test_the_page_has_the_power_of_the_audit() -> None:
    """The record is of complete runs: what it shows is what docs/privacy.md states."""
    record, page = read_json(audit_power.KEPT), audit_power.PAGE.read_text()
    assert audit_power.with_power(page, record) == page
    audits = {row["factor"]: row["audits"] for row in record["rows"]}
    assert (record["epsilon"], record["confidence"], audits) == (1.0, audit_power.CONFIDENCE, {0.5: 300, 0.9: 300, 1.0: 3000})
    shares = {row["factor"]: row["contradicted"] / row["audits"] for row in record["rows"]}
    assert shares[0.5] >= 0.95
    assert shares[0.9] >= 0.9
    assert shares[1.0] <= 8 / 3000
    assert [row["complete_audit_holds"] for row in record["rows"]] == [False, False, True]
