"""Networks of a pool: where their weights lie, what a resumed run draws, calibration against a slow definition."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill import experts
from distill.data import ImageData
from distill.errors import InputError
from distill.experts import ExpertConfig, Trajectories, train_experts
from distill.networks import create, embed
from distill.pool import EARLY_RANGE, SPHERE_RADIUS, Pool, Received, perturb
from distill.randomness import generator
from distill.run import condense
from distill.shared_config import SharedConfig
from distill.statistics import ExactStatistics

NETWORK = "ConvNetD1W32"


def weights_of(network: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in network.parameters()])


def pool_of(data: ImageData, factory: object = NETWORK, **settings: object) -> tuple[Pool, ExactStatistics]:
    config = SharedConfig(pool_networks=2, pool_epochs=2, **settings)  # type: ignore[arg-type]
    return Pool(config, factory, NETWORK, "none", batch_real=8), ExactStatistics(data)  # type: ignore[arg-type]


def experts_of(pool: Pool) -> Trajectories:
    assert pool.trajectories is not None
    return pool.trajectories


def test_blended_networks_lie_on_the_line_between_start_and_end(toy_data: ImageData) -> None:
    pool, statistics = pool_of(toy_data, pool="blend")
    draws, shares = generator(0, "draws"), []
    for _ in range(12):
        found = weights_of(pool.draw(statistics, draws))
        best = []
        for expert in range(2):
            start, end = (experts_of(pool).weights(expert, epoch) for epoch in (0, 2))
            share = float((found - end) @ (start - end) / (start - end).square().sum())
            best.append((float((share * start + (1 - share) * end - found).norm()), share))
        error, share = min(best)
        assert error < 1e-4
        assert 0 <= share <= 1
        shares.append(share)
    assert max(shares) - min(shares) > 0.3


def test_early_networks_are_moved_filter_by_filter(toy_data: ImageData) -> None:
    network = create(NETWORK, toy_data.spec, generator(0, "network"))
    before = [p.detach().clone() for p in network.parameters()]
    perturb(network, generator(1, "moves"))
    ratios = []
    for old, new in zip(before, network.parameters(), strict=True):
        if old.ndim < 2:
            assert torch.equal(old, new)
        else:
            moved = (new - old).detach().flatten(1).norm(dim=1) / old.flatten(1).norm(dim=1)
            assert float(moved.max()) < 2 * EARLY_RANGE[1] + 1e-6
            assert float(moved.min()) > 0
            ratios.append(moved)
    # Two random directions of sizes a and b, the same for all layers, give about the root of a^2 + b^2 in each filter.
    assert float(torch.cat(ratios).std() / torch.cat(ratios).mean()) < 0.35


def test_a_walk_follows_one_training_after_the_other(toy_data: ImageData) -> None:
    pool, statistics = pool_of(toy_data, pool="walk")
    draws = generator(0, "draws")
    pool.prepare(statistics)
    length = experts_of(pool).epochs
    assert length == 2 * min(25, -(-len(toy_data.train) // 64))
    for _ in range(2):
        walked = [weights_of(pool.draw(statistics, draws)) for _ in range(length + 1)]
        expert = int(pool.walk[0])
        for place, found in enumerate(walked):
            assert torch.equal(found, experts_of(pool).weights(expert, place))


def test_stages_and_sphere(toy_data: ImageData) -> None:
    pool, statistics = pool_of(toy_data, pool="stages")
    draws = generator(0, "draws")
    for _ in range(5):
        found = weights_of(pool.draw(statistics, draws))
        assert any(torch.equal(found, experts_of(pool).weights(e, k)) for e in range(2) for k in range(3))
    pool, statistics = pool_of(toy_data, pool="sphere")
    places = [weights_of(pool.draw(statistics, draws)) for _ in range(3)]
    assert pool.trajectories is None
    assert pool.centre is not None
    for place in places:
        assert float((place - pool.centre).norm()) == pytest.approx(SPHERE_RADIUS, rel=1e-4)


@pytest.mark.parametrize("kind", ["early", "blend", "stages", "sphere"])
def test_received_weights_take_the_place_of_trained_ones(kind: str, toy_data: ImageData) -> None:
    weights = weights_of(create(NETWORK, toy_data.spec, generator(3, "received")))
    pool, statistics = pool_of(toy_data, Received(NETWORK, weights), pool=kind, calibration=1.0)
    first, second = (weights_of(pool.draw(statistics, generator(k, "draws"))) for k in range(2))
    assert pool.trajectories is None, "a client trains nothing"
    assert torch.equal(first, second) == (kind == "stages")
    assert torch.equal(weights_of(pool.trained(statistics, generator(0, "end"))), weights)


def test_a_walk_needs_a_training(toy_data: ImageData) -> None:
    weights = weights_of(create(NETWORK, toy_data.spec, generator(3, "received")))
    pool, statistics = pool_of(toy_data, Received(NETWORK, weights), pool="walk")
    with pytest.raises(InputError, match="a client that received one set of weights has none; take 'blend'"):
        pool.draw(statistics, generator(0, "draws"))


@pytest.mark.parametrize("kind", ["blend", "early"])
def test_batch_normalisation_is_refused_where_weights_are_mixed(kind: str, toy_data: ImageData) -> None:
    config = SharedConfig(pool=kind, pool_networks=1, pool_epochs=1)  # type: ignore[arg-type]
    pool = Pool(config, "ConvNetD1W32BN", "ConvNetD1W32BN", "none", batch_real=8)
    with pytest.raises(InputError, match=f"pool {kind} mixes weights"):
        pool.draw(ExactStatistics(toy_data), generator(0, "draws"))


@pytest.mark.parametrize("every", [1, 3])
def test_calibration_is_the_weighted_cross_entropy_under_the_trained_network(every: int, toy_data: ImageData) -> None:
    pool, statistics = pool_of(toy_data, calibration=0.5, calibration_every=every)
    images = torch.randn((3, 2, *toy_data.spec.shape), generator=torch.Generator().manual_seed(0))
    classes = [(part.clone().requires_grad_(True), torch.full((2,), label)) for label, part in enumerate(images)]
    zeros = [torch.zeros_like(part) for part in images]
    found = pool.calibrated(zeros, classes, lambda part, place: 2 * part, statistics, generator(5, "end"), step=every)
    network = pool.trained(statistics, generator(5, "end"))
    for (part, labels), gradient in zip(classes, found, strict=True):
        logs = F.log_softmax(network(2 * part), 1)
        loss = -sum(logs[row, label] for row, label in enumerate(labels.tolist())) / len(part)
        (expected,) = torch.autograd.grad(0.5 * every * loss, part)
        assert torch.allclose(gradient, expected, atol=1e-6)
    if every > 1:
        assert pool.calibrated(zeros, classes, lambda part, place: part, statistics, generator(5, "end"), step=every + 1) is zeros


def slow_expert(data: ImageData, config: ExpertConfig) -> list[Tensor]:
    """SGD with momentum by torch's own optimiser on the same batches."""
    model = create(config.network, data.spec, generator(config.seed, "expert", 0, "weights")).train()
    draws = generator(config.seed, "expert", 0, "training")
    optimiser = torch.optim.SGD(model.parameters(), lr=config.lr, momentum=config.momentum)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, config.epochs * -(-len(data.train) // config.batch_size))
    found = [weights_of(model)]
    for _ in range(config.epochs):
        order = torch.randperm(len(data.train), generator=draws)
        batches = order.split(config.batch_size)
        for number, batch in enumerate(batches, 1):
            optimiser.zero_grad()
            F.cross_entropy(model(data.normalised("train", batch)), data.train.labels[batch]).backward()
            optimiser.step()
            if config.schedule == "cosine":
                falling.step()
            if number * config.per_epoch % len(batches) == 0:
                found.append(weights_of(model))
    return found


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_experts_with_momentum_and_several_snapshots_an_epoch(toy_data: ImageData, schedule: Literal["constant", "cosine"]) -> None:
    size = len(toy_data.train) // 4
    config = ExpertConfig(1, 2, 0.05, size, NETWORK, "none", momentum=0.9, per_epoch=2, schedule=schedule)
    found, expected = train_experts(toy_data, config), slow_expert(toy_data, config)
    assert len(toy_data.train) % size == 0
    assert found.epochs == 4 == len(expected) - 1
    for place, weights in enumerate(expected):
        assert torch.allclose(found.weights(0, place), weights, atol=1e-5)


def test_experts_with_momentum_continue_to_the_same_bits(toy_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    config = ExpertConfig(1, 3, 0.05, 7, NETWORK, "none", momentum=0.9, per_epoch=2, seed=1, schedule="cosine")
    reference = list(experts._epochs(toy_data, config, NETWORK, 0))
    original: Callable[..., object] = experts._epochs

    def stopped(*arguments: object) -> object:
        for place, weights in enumerate(original(*arguments)):  # type: ignore[arg-type, call-overload]
            if place == 5:  # within the last epoch
                raise KeyboardInterrupt
            yield weights

    monkeypatch.setattr(experts, "_epochs", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_experts(toy_data, config)
    monkeypatch.setattr(experts, "_epochs", original)
    found = train_experts(toy_data, config)
    for place, weights in enumerate(reference):
        assert torch.equal(found.weights(0, place), weights)


def test_old_experts_are_found_again() -> None:
    plain = ExpertConfig()
    assert set(plain.facts) == {field.name for field in dataclasses.fields(plain)} - {
        "experts",
        "momentum",
        "per_epoch",
        "precision",
        "schedule",
    }
    assert "momentum" in ExpertConfig(momentum=0.9).facts
    assert "schedule" in ExpertConfig(schedule="cosine").facts


def test_features_differ_between_stages(toy_data: ImageData) -> None:
    """A trained network is another network than a fresh one: the pool does train."""
    pool, statistics = pool_of(toy_data, calibration=1.0)
    trained = pool.trained(statistics, generator(0, "end"))
    fresh = create(NETWORK, toy_data.spec, generator(0, "expert", 0, "weights"))
    images = toy_data.normalised("train", torch.arange(4))
    assert not torch.allclose(embed(trained, images), embed(fresh, images), atol=1e-3)


@pytest.mark.parametrize("settings", [{"pool": "blend"}, {"calibration": 1.0}])
def test_a_pool_that_trains_says_what_is_asked_for_in_its_networks(settings: dict[str, object], toy_data: ImageData) -> None:
    """Statistics that divide a budget plan for trainings and means at once, before the first of them."""
    asked: list[dict[str, object]] = []

    class Asked(ExactStatistics):
        def trajectories(self, *arguments: object, **named: object) -> Trajectories:
            asked.append(named)
            return Trajectories(1, 1, lambda expert, epoch: torch.zeros(1))

    pool_of(toy_data, **settings)[0].prepare(Asked(toy_data))
    assert asked == [{"progress": None, "batch_real": 8}]


def test_a_ball_and_a_pool_are_two_sources_of_networks(toy_data: ImageData) -> None:
    with pytest.raises(InputError, match="radius keeps one network and pool 'blend' draws others"):
        condense(toy_data, "dm", ipc=1, iterations=1, radius=5.0, pool="blend", network=NETWORK)
