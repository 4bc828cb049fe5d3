"""Pools of trained networks and calibration with private statistics: one account of experts and means, or experts of public data."""

import dataclasses
import itertools
import json
import math
from pathlib import Path
from typing import Any

import pytest
import scipy.optimize
import scipy.stats
import torch
from torch import Tensor

from apps.privacy import PrivateStatistics, accounting, private_experts
from apps.privacy.accounting import Steps
from apps.privacy.budget import EXPERTS_SHARE
from apps.privacy.ledger import Ledger
from apps.privacy.networks import UnitNetwork
from apps.privacy.private_start import private_kmeans
from apps.privacy.public_experts import PublicExperts
from apps.privacy.statement import guarantee
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.data_sources import load
from distill.errors import InputError
from distill.experts import ExpertConfig, train_experts
from distill.methods import METHODS
from distill.networks import create, embed
from distill.pool import Pool
from distill.randomness import generator
from distill.run import condense
from tests.apps.privacy.loss_distribution import loss_distribution_epsilon
from tests.apps.privacy.test_planted import NOBODY, Drawn, is_standard_normal, uncorrelated
from tests.apps.privacy.test_planted import data as planted_data
from tests.apps.privacy.test_private_statistics import public_toy

pytest.importorskip("opacus")

NETWORK, DELTA = "ConvNetW32D2", 1e-3
CONFIG = ExpertConfig(experts=2, epochs=1, lr=0.1, batch_size=12, network=NETWORK)  # of 36 examples: three steps each
POOL: dict[str, Any] = {"network": NETWORK, "pool": "blend", "pool_networks": 2, "pool_epochs": 1, "pool_batch": 12, "pool_draws": 3}
PLAIN: dict[str, Any] = {"augmentation": "none", "decode": "none", "compile": "off", "progress": False}


def private(data: ImageData | None = None, **options: Any) -> PrivateStatistics:
    settings = {"epsilon": 4.0, "delta": DELTA, "population": 36, "releases": 3, "sample_rate": 0.5, **options}
    return PrivateStatistics(public_toy() if data is None else data, **settings)


def digits(**options: Any) -> PrivateStatistics:
    return PrivateStatistics(load("digits"), 8.0, 1e-4, releases=3, sample_rate=0.5, **options)


# The plan and its composition


def rdp(noise: float, rate: float, order: int) -> float:
    """Of one subsampled Gaussian at a whole order (Mironov, Talwar and Zhang, 2019, section 3.3), a sum of `order` + 1 terms."""
    terms = [
        math.log(math.comb(order, k)) + (order - k) * math.log1p(-rate) + k * math.log(rate) + (k * k - k) / (2 * noise**2)
        for k in range(order + 1)
        if rate < 1 or k == order
    ]
    top = max(terms)
    return (top + math.log(sum(math.exp(term - top) for term in terms))) / (order - 1)


def independent_epsilon(history: list[Steps], delta: float) -> float:
    """Rényi composition at whole orders, converted as in Canonne, Kamath and Steinke (2020), proposition 12."""
    return min(
        sum(step.times * rdp(step.noise_multiplier, min(step.sample_rate, 1 - 1e-15), order) for step in history)
        + math.log1p(-1 / order)
        - math.log(delta * order) / (order - 1)
        for order in range(2, 200)
    )


def gaussian(epsilon: float, delta: float) -> float:
    """mu of the Gaussian mechanism with exactly this (epsilon, delta) (Balle and Wang, 2018, theorem 8)."""
    cdf = scipy.stats.norm.cdf
    return float(
        scipy.optimize.brentq(lambda m: cdf(m / 2 - epsilon / m) - math.exp(epsilon) * cdf(-m / 2 - epsilon / m) - delta, 1e-3, 20)
    )


@pytest.mark.parametrize(("start", "share"), [(0, EXPERTS_SHARE), (2, EXPERTS_SHARE), (2, 0.6)])
def test_everything_together_costs_what_an_independent_computation_says(start: int, share: float) -> None:
    options = {} if share == EXPERTS_SHARE else {"experts_share": share}
    statistics = private(start_releases=start, **options)
    if start:
        private_kmeans(statistics, 1)
    statistics.trajectories(CONFIG, NETWORK, batch_real=4)
    for factor in (1.0, 2.0, 3.0):
        statistics.class_means(lambda images, factor=factor: factor * images.flatten(1), 4, None, generator(0, "test"))
    history, stated = statistics.history, statistics.privacy
    assert [step.times for step in history] == [*([start] if start else []), 6, 3]
    assert [step.sample_rate for step in history] == [*([1.0] if start else []), 12 / 36, 0.5]
    assert accounting.rdp_epsilon(history, DELTA) <= independent_epsilon(history, DELTA) * (1 + 1e-9)
    together = loss_distribution_epsilon(history, DELTA)
    assert 0.95 * 4.0 < together < 4.0 * 1.01, "the budget is used and kept"
    assert together == pytest.approx(float(str(stated["epsilon"])), rel=0.01)
    assert float(str(stated["epsilon"])) <= 4.0
    # Start and experts alone: within the epsilon of their share of mu^2, and near it.
    part = loss_distribution_epsilon(history[:-1], DELTA)
    low, high = (
        accounting.gaussian_epsilon((share + (0.3 if start else 0)) ** 0.5 * gaussian(4.0, DELTA), DELTA) * f for f in (0.95, 1.01)
    )
    assert low < part < high


def test_the_share_moves_noise_between_experts_and_means() -> None:
    plans = []
    for share in (0.1, 0.5, 0.8):
        statistics = private(experts_share=share)
        statistics._planned_experts(6, 12, 4)
        plans.append((statistics._ledger.experts.noise_multiplier, statistics._ledger.plan.noise_multiplier))  # type: ignore[union-attr]
    experts, means = zip(*plans, strict=True)
    assert list(experts) == sorted(experts, reverse=True)
    assert list(means) == sorted(means)


def test_the_plan_is_made_and_written_before_anything_is_spent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*arguments: Any, **named: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(private_experts, "_train", never)
    statistics = private(ledger=tmp_path / "a")
    with pytest.raises(KeyboardInterrupt):
        statistics.trajectories(CONFIG, NETWORK, batch_real=4)
    account = json.loads((tmp_path / "a" / "account.json").read_text())
    assert account["history"] == []
    assert (account["experts"][:2], account["plan"][:2]) == ([6, 12 / 36], [3, 0.5])
    again = private(ledger=tmp_path / "a")
    assert [*again._planned_experts(6, 12, 4)] == account["experts"]
    assert again.history == []


def account_is_the_plan(statistics: PrivateStatistics) -> None:
    """Every planned step is counted once at its noise and rate, and the stated epsilon is that of the plan."""
    plan, experts = statistics._ledger.plan, statistics._ledger.experts
    assert plan is not None
    assert experts is not None
    steps = [Steps(each.noise_multiplier, each.sample_rate, each.releases) for each in (experts, plan)]
    assert statistics.history == steps
    assert statistics.privacy["epsilon"] == accounting.spent(steps, statistics.delta).epsilon
    assert statistics.privacy["experts"] == experts.releases
    assert statistics.privacy["releases"] == experts.releases + plan.releases


def everything(**options: Any) -> PrivateStatistics:
    statistics = private(**options)
    condense(statistics, "ncfm", ipc=1, iterations=12, frequencies=16, calibration=1.0, **POOL, **PLAIN)
    return statistics


def test_the_account_is_the_plan() -> None:
    account_is_the_plan(everything())


def test_an_account_that_counts_an_expert_once_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Ledger.record

    def once(self: Ledger, key: str, released: Tensor, noise: float, rate: float, *more: Any, **named: Any) -> None:
        record(self, key, released, noise, rate, 1, *more[1:], **named)

    monkeypatch.setattr(Ledger, "record", once)
    with pytest.raises(AssertionError):
        account_is_the_plan(everything())


# A method with a trained pool and calibration


@pytest.mark.parametrize("method", ["dance", "ncfm"])
def test_a_blended_pool_with_calibration_is_private_on_digits(method: str) -> None:
    statistics = digits(clip=0.5, centred=True, start_releases=2)
    start = private_kmeans(statistics, 1)
    pool = {**POOL, "network": UnitNetwork(NETWORK), "pool_networks": 1, "pool_batch": 400, "pool_lr": 0.5}
    more = {"frequencies": 64} if method == "ncfm" else {"lr_img": 100.0}
    made = condense(
        statistics,
        method,
        ipc=1,
        iterations=12,
        calibration=0.1,
        initial=start,
        **pool,
        **PLAIN,
        **more,
    )
    stated = made.provenance.dp
    assert stated is not None
    assert [step.times for step in statistics.history] == [2, 4, 3], "1,297 digits in batches of 400 are four steps"
    assert (stated["releases"], stated["experts"]) == (9, 4)
    assert float(str(stated["epsilon"])) <= 8.0
    words = guarantee(CondensedSet.from_bytes(made.to_bytes()).provenance.dp)
    assert words.startswith("The maker states (")
    assert "9 releases, 4 of them steps of DP-SGD that trained the matching networks, accounted by PRV (recomputed" in words
    assert not torch.equal(made.images, start.images)


def test_a_statement_of_more_experts_than_releases_is_no_guarantee() -> None:
    stated = everything().privacy
    assert guarantee(stated).startswith("The maker states")
    assert guarantee({**stated, "experts": 1000}) == "No privacy guarantee: the set states 9 releases, 1000 of them steps of DP-SGD."


def test_a_killed_run_continues_with_its_experts_and_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed in each expert and after each step in turn: nothing is paid twice and the images are those of an undisturbed run."""
    import distill.run as runs

    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", -1.0)
    path, train, trained = tmp_path / "checkpoint.safetensors", private_experts._train, []

    class Killed(Exception):
        pass

    def once(in_expert: bool, after: int | None) -> CondensedSet:
        statistics, made = private(), [0]
        before = statistics.class_means

        def training(*arguments: Any, **named: Any) -> Tensor:
            weights = train(*arguments, **named)
            if in_expert and made[0]:
                raise Killed  # trained, and neither kept nor counted: nobody has seen it
            made[0] += 1
            trained.append(1)
            return weights

        def counting(*arguments: Any, **named: Any) -> Tensor:
            found = before(*arguments, **named)
            made[0] += 1
            if after is not None and made[0] > after:
                raise Killed  # the release is kept, the step that wanted it is not done
            return found

        monkeypatch.setattr(private_experts, "_train", training)
        monkeypatch.setattr(statistics, "class_means", counting)
        settings: dict[str, Any] = {"iterations": 8, "frequencies": 16, "calibration": 1.0, "checkpoint": path, "resume": True}
        return condense(statistics, "ncfm", ipc=1, **settings, **POOL, **PLAIN)

    with pytest.raises(Killed):
        once(True, None)
    for _ in range(3):
        with pytest.raises(Killed):
            once(False, 2)
    last = once(False, None)
    assert len(trained) == 2, "each expert was trained to its end once"
    stated = last.provenance.dp or {}
    account = json.loads((tmp_path / "checkpoint-releases" / "account.json").read_text())
    assert [entry[2] for entry in account["history"]] == [6, stated["releases"] - 6]  # type: ignore[operator]
    assert stated["experts"] == 6
    assert float(str(stated["epsilon"])) <= 4.0
    path.unlink()
    assert torch.equal(once(False, None).images, last.images), "from the start, with the kept experts and releases"
    assert len(trained) == 2
    assert json.loads((tmp_path / "checkpoint-releases" / "account.json").read_text()) == account


# The noise of experts in an account of both


def experts_of_a_pool_are_noised() -> None:
    """Of nobody, a step of an expert is noise of the planned size and of the experts' own clip, new in each step."""
    settings = {"epsilon": 2.0, "delta": DELTA, "population": 36, "releases": 3, "sample_rate": 0.5, "clip": 3.0, "experts_clip": 0.5}
    statistics = PrivateStatistics(planted_data(), **settings)  # type: ignore[arg-type]
    statistics._entropy = Drawn(statistics._entropy, NOBODY)
    config = ExpertConfig(experts=2, epochs=2, lr=1.0, batch_size=36, network=NETWORK)
    found = statistics.trajectories(config, NETWORK, batch_real=4)
    weights = [[found.weights(expert, epoch).double() for epoch in range(3)] for expert in range(2)]
    changes = [after - before for row in weights for before, after in itertools.pairwise(row)]
    (steps,) = statistics.history
    assert steps.times == 4
    for change in changes:
        is_standard_normal(change * 36 / (steps.noise_multiplier * 0.5))
    uncorrelated(*changes)


def test_experts_of_a_pool_are_noised() -> None:
    experts_of_a_pool_are_noised()


@pytest.mark.parametrize("bug", ["no noise", "noise of the means' clip", "noise of the means' plan"])
def test_experts_with_another_noise_than_planned_are_found(bug: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train = private_experts._train
    if bug == "no noise":
        monkeypatch.setattr(PrivateStatistics, "noise", lambda self, shape: torch.zeros(shape, dtype=torch.float64))
    elif bug == "noise of the means' clip":
        monkeypatch.setattr(private_experts, "_train", lambda *rest, clip: train(*rest, clip=rest[0].clip))
    else:
        other = lambda *rest, clip: train(*rest[:4], rest[0]._ledger.plan._replace(sample_rate=rest[4].sample_rate), *rest[5:], clip=clip)  # noqa: E731
        monkeypatch.setattr(private_experts, "_train", other)
    with pytest.raises(AssertionError):
        experts_of_a_pool_are_noised()


# The known length of a method's rows


@pytest.mark.parametrize("claimed", [1.0, 0.1])
def test_rows_are_clipped_to_the_length_that_a_method_claims_whether_it_is_true_or_not(claimed: float) -> None:
    """Each example's row, alone and without noise: at most as long as the claim, which the noise is for."""
    for place in (0, 20):
        statistics = private(planted_data(), sample_rate=1.0)
        statistics._entropy = Drawn(statistics._entropy, [index == place for index in range(36)], silent=True)
        found = statistics.class_means(lambda images: images.flatten(1), 4, None, generator(0, "test"), norm=claimed)
        assert float(found.norm()) * 12 == pytest.approx(claimed, rel=1e-4)


@pytest.mark.parametrize("claimed", [0.0, -1.0, math.inf, math.nan, "1"])
def test_a_claim_that_is_no_length_is_refused(claimed: Any) -> None:
    statistics = private()
    with pytest.raises(InputError, match="as the length of its rows; allowed: a positive number"):
        statistics.class_means(lambda images: images.flatten(1), 4, None, generator(0, "test"), norm=claimed)
    assert statistics.history == []


def test_characteristic_functions_need_no_clip_and_refuse_one_that_shortens_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    norms = []
    release = PrivateStatistics.release

    def seen(self: PrivateStatistics, key: str, plan: Any, norm: float, *rest: Any) -> Tensor:
        norms.append(norm)
        return release(self, key, plan, norm, *rest)

    monkeypatch.setattr(PrivateStatistics, "release", seen)
    settings: dict[str, Any] = {
        "ipc": 1,
        "iterations": 2,
        "frequencies": 16,
        "pool": "random",
        "calibration": 0.0,
        "network": NETWORK,
        **PLAIN,
    }
    condense(private(), "ncfm", **settings)
    condense(private(clip=7.0), "ncfm", **settings)
    assert norms == [1.0] * 4
    statistics = private(clip=0.5)
    with pytest.raises(InputError, match=r"every row of this method has length 1, which clip 0.5 would shorten; leave clip out"):
        condense(statistics, "ncfm", **settings)
    assert statistics.history == []


# Public experts


def test_public_experts_cost_nothing_and_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    public = public_toy(7)
    statistics = private(public_experts=public)
    monkeypatch.setattr(private_experts, "_train", lambda *rest, **named: pytest.fail("the private images were trained on"))
    made = condense(statistics, "dance", ipc=1, iterations=8, calibration=0.1, **{**POOL, "network": UnitNetwork(NETWORK)}, **PLAIN)
    assert statistics._ledger.experts is None
    assert [step.times for step in statistics.history] == [3]
    plain = private()
    plain._planned(4)
    assert statistics._ledger.plan == plain._ledger.plan, "the means have the whole budget"
    stated = made.provenance.dp or {}
    assert (stated["public_experts"], stated["releases"]) == ("toy", 3)
    assert "3 releases, in networks trained on data that are stated to be public (toy), accounted by" in guarantee(stated)


def test_public_experts_are_those_of_the_public_data_with_the_network_inside() -> None:
    public, config = public_toy(7), ExpertConfig(experts=1, epochs=1, batch_size=12, network="ConvNet")
    for statistics in (private(public_experts=public), PublicExperts(public_toy(), public)):
        found = statistics.trajectories(config, UnitNetwork(NETWORK), batch_real=4)
        reference = train_experts(public, ExpertConfig(experts=1, epochs=1, batch_size=12, network=NETWORK))
        assert torch.equal(found.weights(0, 1), reference.weights(0, 1))
        assert found.classes == public.spec.classes


def test_a_unit_network_has_the_weights_of_its_network_and_features_of_length_one() -> None:
    data = public_toy()
    made = create(UnitNetwork(NETWORK), data.spec, generator(0, "net"))
    features = embed(made, data.normalised("train", torch.arange(4)))
    assert torch.allclose(features.norm(dim=1), torch.ones(4), atol=1e-5)
    assert [p.shape for p in made.parameters()] == [p.shape for p in made.network.parameters()]  # type: ignore[union-attr, operator]


# What is refused


def other_classes() -> ImageData:
    made = public_toy(7)
    return ImageData.from_arrays(
        "other",
        *(part.numpy() for part in (made.train.images.permute(0, 2, 3, 1), made.train.labels)),
        *(part.numpy() for part in (made.test.images.permute(0, 2, 3, 1), made.test.labels)),
        classes=("x", "y", "z"),
        mean=(0.5,),
        std=(0.5,),
    )


@pytest.mark.parametrize(
    ("options", "settings", "words"),
    [
        ({"experts_share": 0.0}, {}, "experts_share is 0.0; allowed: a share between 0 and 1"),
        ({"experts_share": 1.0}, {}, "experts_share is 1.0; allowed: a share between 0 and 1"),
        ({"experts_clip": 0.0}, {}, "experts_clip is 0.0; allowed: a positive norm"),
        ({"experts_share": 0.7, "start_releases": 2}, {}, "experts_share 0.7 and start_share 0.3 leave nothing"),
        ({"experts_share": 1e-9}, {}, "is too little for any noise; give a larger one"),
        ({}, {"pool": "walk"}, "pool 'walk' takes each after the one before; leave pool_draws out"),
        ({}, {"pool_draws": 0}, "the privacy budget is spent: 3 of 3 planned releases are made"),
        ({}, {"real_batches": "kmeans"}, "batches chosen by looking at all images"),
    ],
)
def test_what_has_no_plan_is_refused_in_one_line(options: dict[str, Any], settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        condense(private(**options), "dance", ipc=1, iterations=8, **{**POOL, **settings}, **PLAIN)
    assert "\n" not in str(caught.value)


def test_an_account_that_was_planned_without_experts_trains_none() -> None:
    statistics = private(epsilon=8.0)
    statistics.class_means(lambda images: images.flatten(1), 4, None, generator(0, "test"))
    with pytest.raises(InputError, match="planned without trained networks, and what it has is divided before its first release"):
        statistics.trajectories(CONFIG, NETWORK, batch_real=4)
    assert [step.times for step in statistics.history] == [1]


def test_more_experts_than_planned_are_refused() -> None:
    statistics = private()
    first, again = (statistics.trajectories(CONFIG, NETWORK, batch_real=4) for _ in range(2))
    assert torch.equal(first.weights(1, 1), again.weights(1, 1)), "the same question has the same answer, without a folder, too"
    with pytest.raises(InputError, match="the privacy budget is spent: 6 of 6 planned releases"):
        statistics.trajectories(dataclasses.replace(CONFIG, experts=3), NETWORK, batch_real=4)
    with pytest.raises(InputError, match="expert-0000: was made with other settings"):
        statistics.trajectories(dataclasses.replace(CONFIG, lr=0.5), NETWORK, batch_real=4)
    assert [step.times for step in statistics.history] == [6]


def with_a_private_image() -> ImageData:
    """Other data, of which one image is one of the private ones."""
    public, private_images = public_toy(7), public_toy().train.images
    images = public.train.images.clone()
    images[5] = private_images[11]
    return dataclasses.replace(public, train=dataclasses.replace(public.train, images=images))


@pytest.mark.parametrize(
    ("public", "words"),
    [
        (lambda: public_toy(7, side=16), "allowed: data of the same shape and number of classes"),
        (lambda: public_toy(7, classes=2), "allowed: data of the same shape and number of classes"),
        (lambda: public_toy(7).whitened(), "these data are whitened"),
        (public_toy, "hold a copy of a private image"),
        (with_a_private_image, "hold a copy of a private image"),
    ],
)
def test_data_that_experts_cannot_be_of_are_refused(public: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        private(public_experts=public())


def test_calibration_needs_networks_that_know_the_classes() -> None:
    statistics = private(public_experts=other_classes())
    with pytest.raises(InputError, match=r"trained on data of other classes .*; set calibration to 0"):
        condense(statistics, "dance", ipc=1, iterations=2, calibration=0.1, **POOL, **PLAIN)
    condense(statistics, "dance", ipc=1, iterations=2, calibration=0.0, **POOL, **PLAIN)


def test_weights_of_public_experts_alone_are_no_statistics_of_private_data() -> None:
    with pytest.raises(InputError, match="mtt matches nothing else; leave public_experts out"):
        private(public_experts=public_toy(7)).trajectories(CONFIG, NETWORK)


def test_another_share_or_public_data_are_other_settings_of_an_account(tmp_path: Path) -> None:
    private(ledger=tmp_path / "a")
    facts = json.loads((tmp_path / "a" / "account.json").read_text())["facts"]
    assert not {"experts", "public_experts"} & facts.keys(), "an account of an earlier version stays readable"
    for other in ({"experts_share": 0.5}, {"experts_clip": 2.0}, {"public_experts": public_toy(7)}):
        with pytest.raises(InputError, match="made under other settings"):
            private(ledger=tmp_path / "a", **other)


# Draws that come back


def test_fixed_draws_are_as_many_as_asked_and_the_same_in_every_run(toy_data: ImageData) -> None:
    """NCFM's network and frequencies by draw: two runs of other seeds see the same ones."""
    config, kind = METHODS["ncfm"]
    seen: list[set[bytes]] = []
    for seed in (0, 1):
        made = config(frequencies=4, **{**POOL, "pool": "random"}, augmentation="none", decode="none", compile="off", initial="noise")
        from distill.statistics import ExactStatistics
        from distill.synthetic import initial_set

        statistics = ExactStatistics(toy_data)
        method = kind(made, initial_set(statistics, "noise", 1, generator(0, "start")))
        draws, pairs = generator(seed, "run"), set()
        for _ in range(24):
            network = method._network(statistics, draws)  # type: ignore[attr-defined]
            pairs.add(next(network.parameters()).detach().numpy().tobytes() + method.projections.numpy().tobytes())  # type: ignore[attr-defined]
        seen.append(pairs)
    assert seen[0] == seen[1]
    assert len(seen[0]) == 3


def test_without_fixed_draws_the_runs_own_generator_is_used(toy_data: ImageData) -> None:
    from distill.shared_config import SharedConfig

    pool, draws = Pool(SharedConfig(), NETWORK, NETWORK, "none", batch_real=4), generator(0, "run")
    assert pool._source(draws) is draws
