"""Attacks and their figures against double loops, and on cases whose answer is known."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from apps.privacy import attacks
from apps.privacy.metrics import advantage, auc, best_advantage, by_run, clopper_pearson, membership, rate_at, roc, worst_decile
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator

scores = st.lists(st.integers(-5, 5).map(float), min_size=2, max_size=30).map(np.array)


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_the_curve_is_counting(members: np.ndarray, others: np.ndarray) -> None:
    false, true = roc(members, others)
    slow = sorted({(float((others >= t).mean()), float((members >= t).mean())) for t in [np.inf, *members, *others]})
    assert np.allclose(sorted(set(zip(false.tolist(), true.tolist(), strict=True))), slow)
    labels = np.concatenate([np.ones(len(members)), np.zeros(len(others))])
    assert auc(members, others) == pytest.approx(roc_auc_score(labels, np.concatenate([members, others])))
    best = max((members >= t).mean() - (others >= t).mean() for t in [np.inf, *members, *others])
    chosen = best_advantage(members, others)
    assert advantage(members, others, chosen).value == pytest.approx(best)


@pytest.mark.parametrize("effect", [0.0, 1.0, 2.0, 3.0])
def test_the_interval_of_a_rate_covers_it_although_the_threshold_is_estimated(effect: float) -> None:
    """Gaussian scores: the rate at a true FPR of 1 % is known. An interval for a fixed threshold covers it in half the cases."""
    import scipy.stats

    rng = np.random.default_rng(4)
    truth = scipy.stats.norm.sf(scipy.stats.norm.isf(0.01) - effect)
    covered = fixed = 0
    for _ in range(200):
        members, others = rng.normal(effect, 1, 1000), rng.normal(0, 1, 1000)
        found = rate_at(members, others, 0.01)
        assert found is not None
        covered += found.low <= truth <= found.high
        low, high = clopper_pearson(round(found.value * 1000), 1000)
        fixed += low <= truth <= high
    assert covered >= 180, "a 95 % interval covers fewer with a probability of 0.001"
    assert effect == 0.0 or fixed < 170


def test_rates_at_low_false_positives_are_conservative() -> None:
    draws = np.random.default_rng(0)
    members, others = draws.normal(1, 1, 5000), draws.normal(0, 1, 5000)
    found = rate_at(members, others, 0.01)
    assert found is not None
    slow = max((members >= t).mean() for t in np.concatenate([members, others]) if (others >= t).mean() <= 0.01)
    assert found.value == pytest.approx(slow)
    truth = 1 - scipy.stats.norm.cdf(scipy.stats.norm.ppf(0.99) - 1)
    assert found.low - 0.02 < truth < found.high + 0.02
    assert rate_at(members, others, 0.001) is None  # 10,000 others are needed
    assert rate_at(members, np.zeros(1000), 0.01) is not None
    assert rate_at(np.zeros(50), np.zeros(1000), 0.01).value == 0.0  # type: ignore[union-attr]


def test_intervals_cover() -> None:
    draws, held, wide = np.random.default_rng(0), 0, 0
    for _ in range(300):
        hits = int(draws.binomial(80, 0.1))
        low, high = clopper_pearson(hits, 80)
        held += low <= 0.1 <= high
        inside, outside = draws.normal(1, 1, 60), draws.normal(0, 1, 60)
        found = advantage(inside, outside, 0.5)
        truth = scipy.stats.norm.cdf(0.5) - scipy.stats.norm.cdf(-0.5)
        wide += found.low <= truth <= found.high
    assert held >= 285
    assert wide >= 285
    assert clopper_pearson(0, 10)[0] == 0.0
    assert clopper_pearson(10, 10)[1] == 1.0
    assert clopper_pearson(1, 1000)[1] == pytest.approx(0.0056, abs=1e-4)


@pytest.mark.parametrize("runs", [2, 4, 12])
def test_the_interval_over_runs_covers_what_it_says(runs: int) -> None:
    """A percentile bootstrap covers 50, 81 and 91 %."""
    draws, held = np.random.default_rng(0), 0
    for _ in range(1000):
        found = by_run(draws.normal(2.0, 1.0, runs))
        held += found.low <= 2.0 <= found.high
    assert 930 <= held <= 970
    alone = by_run([0.5])
    assert (alone.value, math.isnan(alone.low), math.isnan(alone.high)) == (0.5, True, True)


def test_the_threshold_is_never_chosen_on_the_points_it_is_judged_on() -> None:
    draws = np.random.default_rng(0)
    found = [membership(draws.normal(size=40), draws.normal(size=40), seed=k).advantage.value for k in range(300)]
    assert abs(np.mean(found)) < 4 * np.std(found) / 300**0.5
    assert np.mean([advantage(m, o, best_advantage(m, o)).value for m, o in draws.normal(size=(50, 2, 40))]) > 0.1


def test_nothing_to_see_is_the_worst_decile_at_its_base() -> None:
    draws = np.random.default_rng(0)
    assert worst_decile(draws.normal(size=20_000), draws.normal(size=20_000)) == pytest.approx(0.95, abs=0.01)


@pytest.mark.parametrize("bad", [[1.0], ["a", "b"], [[1.0, 2.0]], [1.0, float("nan")]])
def test_scores_without_meaning_are_refused(bad: list[object]) -> None:
    with pytest.raises(InputError, match="allowed"):
        membership(bad, [1.0, 2.0])


def test_losses_and_margins_are_their_formulas(toy_data: ImageData) -> None:
    network = create("MLP", toy_data.spec, generator(0, "net"))
    images, labels = toy_data.normalised("train", torch.arange(36)), toy_data.train.labels
    loss, margin = attacks.losses_and_margins([network], images, labels)
    for k in range(36):
        p = F.softmax(network(images[k : k + 1]).detach().double(), 1)[0]
        y = int(labels[k])
        assert loss[k] == pytest.approx(-float(p[y].log()), abs=1e-5)
        assert margin[k] == pytest.approx(float(p[y].log() - (p.sum() - p[y]).log()), abs=1e-5)


def _shadow_world(seed: int, effect: float, count: int = 32, points: int = 400) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Margins with difficulties of their own per point, higher by ``effect`` in models that saw the point; complementary pairs."""
    draws = np.random.default_rng(seed)
    half = draws.random((count // 2, points)) < 0.5
    inside = np.concatenate([half, ~half])
    return draws.normal(0, 3, points) + effect * inside + draws.normal(size=inside.shape), inside, draws.normal(size=points)


@pytest.mark.parametrize("online", [True, False])
def test_lira_sees_through_difficulty_where_a_threshold_does_not(online: bool) -> None:
    margins, inside, _ = _shadow_world(0, 1.5)
    target, members = margins[0], inside[0]
    found = attacks.lira_scores(target, margins[1:], inside[1:], online=online)
    assert auc(found[members], found[~members]) > 0.78
    assert auc(target[members], target[~members]) < 0.68
    none = _shadow_world(1, 0.0)
    blind = attacks.lira_scores(none[0][0], none[0][1:], none[1][1:], online=online)
    assert abs(auc(blind[none[1][0]], blind[~none[1][0]]) - 0.5) < 0.1


def test_lira_scores_are_their_formula() -> None:
    margins, inside, _ = _shadow_world(2, 1.0, 8, 20)
    found = attacks.lira_scores(margins[0], margins[1:], inside[1:])
    residuals: dict[bool, list[float]] = {True: [], False: []}
    freedom = {True: 0, False: 0}
    means: list[dict[bool, float]] = []
    for j in range(20):
        means.append({})
        for side in (True, False):
            values = margins[1:, j][inside[1:, j] == side]
            means[j][side] = values.mean()
            residuals[side] += ((values - values.mean()) ** 2).tolist()
            freedom[side] += len(values) - 1
    sd = {side: (sum(residuals[side]) / freedom[side]) ** 0.5 for side in (True, False)}
    for j in range(20):
        slow = [scipy.stats.norm(means[j][side], sd[side]).logpdf(margins[0, j]) for side in (True, False)]
        assert found[j] == pytest.approx(slow[0] - slow[1])


def test_offline_lira_does_not_saturate() -> None:
    """Points far above what models without them say keep their order; as probabilities all of them would be 1."""
    shadows = np.random.default_rng(0).normal(size=(4, 50))
    target = np.linspace(20.0, 60.0, 50)
    found = attacks.lira_scores(target, shadows, np.zeros((4, 50), dtype=bool), online=False)
    mean, sd = shadows.mean(0), (((shadows - shadows.mean(0)) ** 2).sum() / 150) ** 0.5
    assert found == pytest.approx(-scipy.stats.norm(mean, sd).logsf(target))
    assert np.isfinite(found).all()
    assert len(np.unique(found)) == 50


def test_lira_without_a_side_is_refused() -> None:
    with pytest.raises(InputError, match="complementary pairs"):
        attacks.lira_scores(np.zeros(3), np.zeros((2, 3)), np.ones((2, 3), dtype=bool))


def _paired_world(seed: int, effect: float, runs: int, points: int) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(seed)
    half = draws.random((runs // 2, points)) < 0.5
    inside = np.stack([half, ~half], 1).reshape(runs, points)
    return draws.normal(0, 3, points) + effect * inside + draws.normal(size=inside.shape), inside


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("online", [True, False])
def test_lira_over_runs_finds_nothing_where_nothing_is_and_what_is_there(seed: int, online: bool) -> None:
    """True- and false-positive rates of models that do not know their members are the same, in both tails."""
    margins, inside = _paired_world(seed, 0.0, 6, 100_000)

    def high_and_low(score: np.ndarray, members: np.ndarray) -> tuple[float, float]:
        low, high = np.quantile(score[~members], [0.01, 0.99])
        return float((score[members] > high).mean()), float((score[members] < low).mean())

    for score, members in zip(attacks.lira_by_run(margins, inside, online=online), inside, strict=True):
        # 50,000 members: more than three standard deviations of the rate and of the threshold together.
        assert np.allclose(high_and_low(score, members), 0.01, atol=0.0022)
        assert abs(auc(score[members], score[~members]) - 0.5) < 0.01
    # The run's own opposite among its shadows would have been seen.
    wrong = attacks.lira_scores(margins[0], margins[1:], inside[1:], online=online)
    assert not np.allclose(high_and_low(wrong, inside[0]), 0.01, atol=0.0022)
    margins, inside = _paired_world(seed, 1.5, 16, 2000)
    for score, members in zip(attacks.lira_by_run(margins, inside, online=online), inside, strict=True):
        assert auc(score[members], score[~members]) > 0.75


def test_lira_over_runs_wants_pairs() -> None:
    margins, inside = _paired_world(0, 0.0, 6, 50)
    for wrong in (inside[:4], inside[:5], inside[[0, 2, 1, 3, 4, 5]]):
        with pytest.raises(InputError, match="LiRA needs an even number from 6"):
            attacks.lira_by_run(margins[: len(wrong)], wrong)


@pytest.mark.parametrize("gamma", [1.0, 2.0])
def test_rmia_is_its_double_loop(gamma: float) -> None:
    draws = np.random.default_rng(0)
    target, refs, z, z_refs = draws.random(9), draws.random((3, 9)), draws.random(11), draws.random((3, 11))
    found = attacks.rmia_scores(target, refs, z, z_refs, 0.3, *([gamma] if gamma != 2.0 else []))  # the paper's 2 is the default

    def ratio(p: float, others: np.ndarray) -> float:
        return p / ((1.3 * others.mean() + 0.7) / 2)

    for x in range(9):
        beats = [ratio(target[x], refs[:, x]) > gamma * ratio(z[k], z_refs[:, k]) for k in range(11)]
        assert found[x] == pytest.approx(np.mean(beats))


def test_a_set_that_copies_members_is_seen(toy_data: ImageData) -> None:
    images = toy_data.normalised("train", torch.arange(36))
    found = attacks.nearest_scores(images, images[:18])
    assert auc(found[:18], found[18:]) == 1.0
    slow = [-float((images[30] - images[k]).norm()) for k in range(18)]
    assert found[30] == pytest.approx(max(slow), abs=1e-4)


def test_gradient_alignment_is_the_cosine_of_gradients(toy_data: ImageData) -> None:
    images, labels = toy_data.normalised("train", torch.arange(36)), toy_data.train.labels
    network = create("MLP", toy_data.spec, generator(0, "net"))
    parameters = list(network.parameters())
    found = attacks.alignment_scores([network], (images[:5], labels[:5]), (images[10:14], labels[10:14]))

    def flat(part: slice) -> torch.Tensor:
        return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(network(images[part]), labels[part]), parameters)])

    whole = flat(slice(10, 14))
    assert found == pytest.approx([float(F.cosine_similarity(flat(slice(k, k + 1)), whole, dim=0)) for k in range(5)], abs=1e-4)


@pytest.mark.parametrize(("name", "least"), [("calibrated", 0.85), ("rmia", 0.63)])
def test_attacks_by_run_find_what_is_there_and_nothing_where_nothing_is(name: str, least: float) -> None:
    """Points are unequally hard. Losses of models that know nothing give an AUC of 0.5; a gain is found, better than by a threshold."""
    draws = np.random.default_rng(0)
    coins = draws.random((4, 4000)) < 0.5
    inside = np.stack([part for coin in coins for part in (coin, ~coin)])
    noise = draws.uniform(0.2, 2.0, 4000) + draws.normal(0.0, 0.1, inside.shape)
    found = {}
    for gain in (0.0, 0.2):
        runs = attacks.Runs(noise - gain * inside, noise, inside)
        scores = attacks.ATTACKS[name](runs)
        assert scores is not None
        found[gain] = [auc(score[members], score[~members]) for score, members in zip(scores, inside, strict=True)]
    assert all(abs(value - 0.5) < 0.03 for value in found[0.0])
    assert all(value > least for value in found[0.2])
    blind = attacks.ATTACKS["loss"](runs)
    assert blind is not None
    assert auc(blind[0][inside[0]], blind[0][~inside[0]]) < least - 0.02


def test_references_are_the_runs_of_other_pairs_that_did_not_see_a_point() -> None:
    coin = np.array([[True, False], [True, True], [False, True]])
    inside = np.stack([part for row in coin for part in (row, ~row)])
    losses = np.arange(12.0).reshape(6, 2)
    found = attacks.Runs(losses, losses, inside).outside(3)
    assert found.tolist() == [[losses[1, 0], losses[0, 1]], [losses[4, 0], losses[5, 1]]]


def test_an_attack_is_left_out_where_it_lacks_something() -> None:
    few = attacks.Runs(np.zeros((4, 3)), np.zeros((4, 3)), np.zeros((4, 3), dtype=bool))
    assert [attacks.ATTACKS[name](few) for name in ("lira", "calibrated", "rmia", "nearest", "alignment")] == [None] * 5
