"""Rank statistics against scipy and against counting every case."""

import itertools
import math

import numpy as np
import pytest
import scipy.stats
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from apps.nas import intervals, ranking
from distill.errors import InputError

NAN = math.nan
# Few different values, so that ties are everywhere; NaN in both lists.
scores = st.one_of(st.integers(0, 4).map(float), st.floats(-100, 100), st.just(NAN))
pairs = st.lists(st.tuples(scores, scores), min_size=2, max_size=9)
quick = settings(max_examples=150, deadline=None)


def slow_pairs(rows: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """The rule for what is missing, written again: no truth, no row; no score, last."""
    lowest = min([p for p, _ in rows if not math.isnan(p)], default=0.0) - 1
    return [(lowest if math.isnan(p) else p, t) for p, t in rows if not math.isnan(t)]


def split(rows: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [p for p, _ in rows], [t for _, t in rows]


def slow_kendall(rows: list[tuple[float, float]]) -> float:
    agree = against = first = second = 0
    for (p, t), (q, u) in itertools.combinations(rows, 2):
        agree += (p > q and t > u) or (p < q and t < u)  # no products: tiny differences would become zero
        against += (p > q and t < u) or (p < q and t > u)
        first += p != q
        second += t != u
    return (agree - against) / math.sqrt(first * second)


def slow_ranks(values: list[float]) -> list[float]:
    return [1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]


def falling(values: list[float]) -> bool:
    return all(a >= b for a, b in itertools.pairwise(values))


def every_top(values: list[float], k: int):
    """(chance, members) of each way to pick k, ties in every order."""
    orders = [
        order for order in itertools.permutations(range(len(values))) if all(values[a] >= values[b] for a, b in itertools.pairwise(order))
    ]
    for order in orders:
        yield 1 / len(orders), order[:k]


@quick
@given(pairs)
def test_correlations_equal_scipy_and_the_count(rows) -> None:
    expected = slow_pairs(rows)
    proxy, truth = split(rows)
    if len(expected) < 2 or len({p for p, _ in expected}) == 1 or len({t for _, t in expected}) == 1:
        assert math.isnan(ranking.spearman(proxy, truth))
        assert math.isnan(ranking.kendall(proxy, truth))
        return
    p, t = split(expected)
    assert ranking.spearman(proxy, truth) == pytest.approx(scipy.stats.spearmanr(p, t).statistic, abs=1e-12)
    assert ranking.spearman(proxy, truth) == pytest.approx(np.corrcoef(slow_ranks(p), slow_ranks(t))[0, 1], abs=1e-12)
    assert ranking.kendall(proxy, truth) == pytest.approx(scipy.stats.kendalltau(p, t).statistic, abs=1e-12)
    assert ranking.kendall(proxy, truth) == pytest.approx(slow_kendall(expected), abs=1e-12)


@quick
@given(st.lists(pairs.filter(lambda rows: len(rows) == 5), min_size=1, max_size=4))
def test_many_rows_at_once_equal_one_by_one(many) -> None:
    usable = [ranking.usable(*split(slow_pairs(rows))) for rows in many]
    assume(len({len(p) for p, _ in usable}) == 1 and len(usable[0][0]) > 1)
    proxy, truth = np.array([p for p, _ in usable]), np.array([t for _, t in usable])
    for one, rows in (
        (ranking.spearman, ranking.spearman_rows),
        (ranking.kendall, ranking.kendall_rows),
        (lambda a, b: ranking.regret(a, b, 2), ranking.regret_rows(2)),
        (lambda a, b: ranking.overlap(a, b, 2), ranking.overlap_rows(2)),
    ):
        np.testing.assert_allclose(rows(proxy, truth), [one(a, b) for a, b in zip(proxy, truth, strict=True)], atol=1e-9)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.tuples(scores, scores), min_size=2, max_size=6), st.integers(1, 7))
def test_picking_equals_every_order_of_the_ties(rows, k: int) -> None:
    expected = slow_pairs(rows)
    assume(expected)
    p, t = split(expected)
    missed = sum(chance * (max(t) - max(t[i] for i in picked)) for chance, picked in every_top(p, k))
    shared = sum(
        chance * other * len(set(picked) & set(best)) for chance, picked in every_top(p, k) for other, best in every_top(t, k)
    ) / min(k, len(t))
    proxy, truth = split(rows)
    assert ranking.regret(proxy, truth, k) == pytest.approx(missed, abs=1e-9)
    assert ranking.overlap(proxy, truth, k) == pytest.approx(shared, abs=1e-9)


@quick
@given(pairs, st.integers(1, 9))
def test_the_top_by_truth(rows, k: int) -> None:
    expected = slow_pairs(rows)
    proxy, truth = split(rows)
    best = sorted((t for _, t in expected), reverse=True)[:k]
    top = [(p, t) for p, t in expected if best and t >= best[-1]]
    found = ranking.spearman_top(proxy, truth, k)
    assert found == pytest.approx(ranking.spearman(*split(top)), abs=1e-12, nan_ok=True)


@quick
@given(pairs)
def test_order_and_scale_do_not_matter(rows) -> None:
    proxy, truth = split(rows)
    for function in (ranking.spearman, ranking.kendall, lambda a, b: ranking.overlap(a, b, 2), lambda a, b: ranking.regret(a, b, 2)):
        turned = function(proxy[::-1], truth[::-1])
        assert function(proxy, truth) == pytest.approx(turned, abs=1e-9, nan_ok=True)
        assert function([8 * p for p in proxy], truth) == pytest.approx(turned, abs=1e-9, nan_ok=True)


@pytest.mark.parametrize("n", [8, 30])
def test_chance_level_of_the_overlap(n: int) -> None:
    """Random scores share k / n of the best k on average: the figure printed beside the overlap."""
    draws = np.random.default_rng(3)
    truth = draws.permutation(n).astype(float)
    for k in (1, 5):
        found = ranking.overlap_rows(k)(draws.random((20000, n)), np.tile(truth, (20000, 1)))
        error = 4 * math.sqrt(k / n * (1 - k / n) / k / 20000)
        assert abs(found.mean() - k / n) < error
    assert ranking.overlap(np.zeros(n), truth, 5) == pytest.approx(5 / n)


def test_a_perfect_and_an_inverted_proxy() -> None:
    truth = np.array([3.0, 1, 4, 1.5, 9, 2.6])
    assert (ranking.spearman(truth, truth), ranking.kendall(truth, truth)) == (pytest.approx(1), pytest.approx(1))
    assert (ranking.spearman(-truth, truth), ranking.kendall(-truth, truth)) == (pytest.approx(-1), pytest.approx(-1))
    assert (ranking.regret(truth, truth), ranking.regret(-truth, truth)) == (0, 8)
    assert (ranking.overlap(truth, truth, 3), ranking.overlap(-truth, truth, 3)) == (1, 0)


def test_lists_of_different_length_are_refused() -> None:
    with pytest.raises(InputError, match="two lists of one length"):
        ranking.spearman([1, 2], [1, 2, 3])


def related(rng: np.random.Generator, n: int, rho: float) -> tuple[np.ndarray, np.ndarray]:
    a = rng.standard_normal(n)
    return a, rho * a + math.sqrt(1 - rho * rho) * rng.standard_normal(n)


def test_the_bootstrap_interval_covers_the_true_value() -> None:
    """Spearman's rho of a bivariate normal is 6/pi asin(r/2); 95 % intervals hold it in 95 % of studies, within sampling error."""
    rng, r = np.random.default_rng(7), 0.7
    true = 6 / math.pi * math.asin(r / 2)
    held, studies = 0, 150
    for _ in range(studies):
        found = intervals.bootstrap(*related(rng, 60, r), ranking.spearman_rows, rng, 200)
        held += found.low <= true <= found.high
    deviation = math.sqrt(0.95 * 0.05 / studies)  # of a share of that many studies
    assert abs(held / studies - 0.95) <= 3 * deviation


def test_the_bootstrap_equals_scipys() -> None:
    proxy, truth = related(np.random.default_rng(1), 40, 0.8)
    ours = intervals.bootstrap(proxy, truth, ranking.kendall_rows, np.random.default_rng(2), 4000)
    theirs = scipy.stats.bootstrap(
        (proxy, truth),
        lambda a, b: scipy.stats.kendalltau(a, b).statistic,
        paired=True,
        vectorized=False,
        method="percentile",
        n_resamples=4000,
        random_state=np.random.default_rng(5),
    ).confidence_interval
    assert ours.value == pytest.approx(scipy.stats.kendalltau(proxy, truth).statistic)
    assert (ours.low, ours.high) == (pytest.approx(theirs.low, abs=0.02), pytest.approx(theirs.high, abs=0.02))


def test_the_paired_bootstrap_tells_a_better_proxy_from_an_equal_one() -> None:
    """Two proxies that share most of their error: the pair's interval is shorter than one that ignores the pairing."""
    rng = np.random.default_rng(11)
    above, wrong, studies = 0, 0, 60
    for _ in range(studies):
        truth, good = related(rng, 72, 0.9)
        worse = good + 0.8 * rng.standard_normal(72)
        found = intervals.paired_bootstrap(good, worse, truth, ranking.spearman_rows, rng, 200)
        assert found.value == pytest.approx(ranking.spearman(good, truth) - ranking.spearman(worse, truth))
        above += found.low > 0
        noise = [good + 0.5 * rng.standard_normal(72) for _ in range(2)]
        equal = intervals.paired_bootstrap(noise[0], noise[1], truth, ranking.spearman_rows, rng, 200)
        wrong += equal.low > 0 or equal.high < 0
    # Correlations 0.9 and 0.9 / sqrt(1.64) of 72 networks, taken as independent, have deviations (1 - r^2) / sqrt(72): their difference of
    # 0.2 is then 3.1 deviations, which an interval of 1.96 finds in 87 % of studies. Pairing takes the shared error out: more than that.
    assert above > 0.87 * studies
    # Equal proxies: 5 % of the intervals leave zero out, and at most three deviations more.
    assert wrong <= studies * 0.05 + 3 * math.sqrt(studies * 0.05 * 0.95)
    same = intervals.paired_bootstrap(good, good, truth, ranking.spearman_rows, rng, 300)
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_undefined_statistics_have_no_interval() -> None:
    rng = np.random.default_rng(0)
    flat = intervals.bootstrap(np.zeros(5), np.arange(5.0), ranking.spearman_rows, rng)
    assert all(math.isnan(v) for v in flat.as_dict().values())
    empty = intervals.bootstrap([1.0, 2.0], [NAN, NAN], ranking.spearman_rows, rng)
    assert all(math.isnan(v) for v in empty.as_dict().values())


def test_halvings_are_all_the_ways() -> None:
    assert ranking.halvings(3, 1) == [((0,), (1,)), ((0,), (2,)), ((1,), (2,))]
    assert len(ranking.halvings(4, 2)) == 3
    assert len(ranking.halvings(5, 2)) == 15


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_noise_ceiling_is_what_a_second_measurement_reaches(seeds: int) -> None:
    """Networks with known quality and known noise: the stepped-up figure is the correlation with an equally noisy second measurement,
    its root that with the quality itself."""
    rng, n, noise = np.random.default_rng(seeds), 4000, 1.2
    quality = rng.standard_normal(n)
    first, second = (quality[:, None] + noise * rng.standard_normal((n, seeds)) for _ in range(2))
    found = ranking.noise_ceiling(first, rng, 20)
    expected = 1 / (1 + noise**2 / seeds)  # the correlation of two means over the seeds
    three = 3 * (1 - expected**2) / math.sqrt(n)  # deviations of a correlation
    assert found.reliability == pytest.approx(ranking.spearman(first.mean(1), second.mean(1)), abs=three)
    assert found.perfect == pytest.approx(ranking.spearman(first.mean(1), quality), abs=three)
    assert found.halves < found.reliability


def test_one_seed_has_no_ceiling() -> None:
    assert math.isnan(ranking.noise_ceiling(np.ones((5, 1)), np.random.default_rng(0)).reliability)


@given(st.floats(0, 1e5), st.floats(0.01, 50), st.floats(0.01, 50), st.integers(1, 5))
def test_break_even_is_the_first_number_that_pays(one_off: float, proxy: float, truth: float, finalists: int) -> None:
    found = ranking.break_even(one_off, proxy, truth, finalists)
    if proxy >= truth:
        assert found == math.inf
        return

    def gain(n: float) -> float:
        return n * truth - (one_off + n * proxy + finalists * truth)

    slack = 1e-9 * (one_off + found * (truth + proxy))
    assert found > finalists
    assert gain(found) > -slack
    assert gain(found - 1) <= slack


def test_top_five_percent() -> None:
    assert [ranking.top_count(n) for n in (1, 12, 20, 21, 72, 720)] == [1, 1, 1, 2, 4, 36]
