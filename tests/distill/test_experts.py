"""Expert trajectories: the weights that plain SGD passes through, kept on disk, continued after a stop."""

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from distill import experts
from distill.augment import augment, strategy
from distill.data import ImageData
from distill.errors import Diverged, InputError
from distill.experts import ExpertConfig, cache_folder, train_experts
from distill.networks import create
from distill.randomness import generator
from tests.conftest import toy

CONFIG = ExpertConfig(experts=2, epochs=3, lr=0.05, batch_size=10, network="ConvNetD1W32", augmentation="color_crop")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    return tmp_path


def slowly(data: ImageData, config: ExpertConfig, expert: int) -> list[torch.Tensor]:
    """torch.optim.SGD over shuffled batches, a copy of the weights after every epoch."""
    network = create(config.network, data.spec, generator(config.seed, "expert", expert, "weights")).train()
    draws = generator(config.seed, "expert", expert, "training")
    optimiser = torch.optim.SGD(network.parameters(), lr=config.lr)
    found = [torch.cat([p.detach().clone().flatten() for p in network.parameters()])]
    for _ in range(config.epochs):
        for batch in torch.randperm(len(data.train), generator=draws).split(config.batch_size):
            images = augment(data.normalised("train", batch), strategy(config.augmentation), draws)
            optimiser.zero_grad()
            F.cross_entropy(network(images), data.train.labels[batch]).backward()
            optimiser.step()
        found.append(torch.cat([p.detach().clone().flatten() for p in network.parameters()]))
    return found


def test_every_epoch_is_that_of_plain_sgd_and_no_snapshot_follows_the_live_weights(cache: Path) -> None:
    data = toy()
    trajectories = train_experts(data, CONFIG)
    for expert in range(2):
        truth = slowly(data, CONFIG, expert)
        for epoch in range(4):
            assert torch.allclose(trajectories.weights(expert, epoch), truth[epoch], atol=1e-5)
        # Snapshots that alias the live weights would all be the last one.
        assert float((trajectories.weights(expert, 0) - trajectories.weights(expert, 3)).norm()) > 0.01
    assert not torch.equal(trajectories.weights(0, 0), trajectories.weights(1, 0))


def test_trained_once(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy()
    first = train_experts(data, CONFIG).weights(1, 3)

    def never(*_: object) -> None:
        raise AssertionError("an expert in the cache was trained again")

    monkeypatch.setattr(experts, "_train_one", never)
    assert torch.equal(train_experts(data, CONFIG).weights(1, 3), first)
    names = sorted(path.name for path in cache_folder(data, CONFIG).iterdir())
    assert names == [".lock", "config.json", "expert-0000.safetensors", "expert-0001.safetensors"]
    assert json.loads((cache_folder(data, CONFIG) / "config.json").read_text())["network"] == "ConvNetD1W32"


def test_more_experts_are_added_to_those_that_are_there(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy()
    first = train_experts(data, CONFIG).weights(1, 3)
    real, trained = experts._train_one, []
    monkeypatch.setattr(experts, "_train_one", lambda *given: trained.append(given[2]) or real(*given))
    more = train_experts(data, ExpertConfig(**{**CONFIG.__dict__, "experts": 3}))
    assert trained == [2]
    assert torch.equal(more.weights(1, 3), first)


def test_other_data_settings_or_whitening_are_kept_apart(cache: Path) -> None:
    data = toy()
    others = [
        cache_folder(toy(seed=1), CONFIG),
        cache_folder(data.whitened(), CONFIG),
        *(cache_folder(data, ExpertConfig(**{**CONFIG.__dict__, **change})) for change in ({"lr": 0.06}, {"seed": 1}, {"epochs": 4})),
    ]
    assert len({cache_folder(data, CONFIG), *others}) == 6


def test_experts_in_bfloat16_are_near_and_kept_apart(cache: Path) -> None:
    data, near = toy(), ExpertConfig(**{**CONFIG.__dict__, "precision": "bf16"})
    assert cache_folder(data, near) != cache_folder(data, CONFIG)
    exact, found = train_experts(data, CONFIG).weights(1, 3), train_experts(data, near).weights(1, 3)
    moved = float((exact - train_experts(data, CONFIG).weights(1, 0)).norm())
    assert found.dtype == torch.float32
    assert 0 < float((found - exact).norm()) < 0.1 * moved


@pytest.mark.parametrize("stop", [1, 2, 5, 6])
def test_a_stopped_training_goes_on_to_the_same_bits(cache: Path, monkeypatch: pytest.MonkeyPatch, stop: int) -> None:
    """Killed during the ``stop``-th epoch of six, with a save after each epoch."""
    data = toy()
    monkeypatch.setattr(experts, "SAVE_SECONDS", -1.0)
    monkeypatch.setenv("DISTILL_CACHE", str(cache / "whole"))
    whole = train_experts(data, CONFIG)
    monkeypatch.setenv("DISTILL_CACHE", str(cache / "stopped"))
    real, calls = experts.mean_gradient, 0

    def until(*given: object) -> list[torch.Tensor]:
        nonlocal calls
        calls += 1
        if calls > 4 * stop - 2:  # four batches an epoch
            raise KeyboardInterrupt
        return real(*given)  # type: ignore[arg-type]

    monkeypatch.setattr(experts, "mean_gradient", until)
    with pytest.raises(KeyboardInterrupt):
        train_experts(data, CONFIG)
    calls_before, calls = calls, -1000
    again = train_experts(data, CONFIG)
    assert calls + 1000 == 24 - 4 * ((calls_before - 1) // 4)  # whole epochs are not trained again
    for expert in range(2):
        for epoch in range(4):
            assert torch.equal(again.weights(expert, epoch), whole.weights(expert, epoch))


def test_side_by_side_each_expert_is_the_one_it_is_alone(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the work is worth it: processes of one thread each, beside what is there already; one that diverges is named."""
    data = toy()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = train_experts(data, CONFIG)
        expected = [[alone.weights(expert, epoch) for epoch in range(4)] for expert in range(2)]
    finally:
        torch.set_num_threads(threads)
    (cache_folder(data, CONFIG) / "expert-0001.safetensors").unlink()
    monkeypatch.setattr(experts, "WORTH_WORKERS", 0.0)
    monkeypatch.setattr(experts, "_train_one", None)  # this process trains none
    together = train_experts(data, CONFIG)
    for expert in range(2):
        assert all(torch.equal(together.weights(expert, epoch), expected[expert][epoch]) for epoch in range(4))
    with pytest.raises(
        Diverged, match=r"^expert [01] diverged at epoch 1 of 3 with expert_lr 1e\+30; try a smaller step size: expert_lr=0\.01"
    ):
        train_experts(data, ExpertConfig(**{**CONFIG.__dict__, "lr": 1e30}))
    monkeypatch.setitem(
        experts.OWN,
        "nets:make",
        lambda spec: torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(spec.channels * spec.height * spec.width, 2)),
    )
    assert not experts._side_by_side(data, ExpertConfig(**{**CONFIG.__dict__, "network": "nets:make"}))


def test_bfloat16_snapshots_are_smaller_and_near(cache: Path) -> None:
    data = toy()
    small = ExpertConfig(**{**CONFIG.__dict__, "snapshots": "bf16"})
    exact, near = train_experts(data, CONFIG), train_experts(data, small)
    assert torch.equal(exact.weights(0, 0), near.weights(0, 0))
    for epoch in (1, 2, 3):
        change = exact.weights(0, epoch) - exact.weights(0, 0)
        error = near.weights(0, epoch) - exact.weights(0, epoch)
        assert 0 < float(error.abs().max()) <= 2**-8 * float(change.abs().max())
    sizes = [(cache_folder(data, c) / "expert-0000.safetensors").stat().st_size for c in (CONFIG, small)]
    assert sizes[1] < 0.7 * sizes[0]


def test_a_damaged_file_and_a_wrong_place_are_one_line(cache: Path) -> None:
    data = toy()
    trajectories = train_experts(data, CONFIG)
    with pytest.raises(InputError, match=r"experts 0\.\.1, epochs 0\.\.3"):
        trajectories.weights(2, 0)
    path = cache_folder(data, CONFIG) / "expert-0001.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged"):
        trajectories.weights(1, 1)


def test_an_expert_that_diverges_is_named(cache: Path) -> None:
    with pytest.raises(
        Diverged, match=r"^expert 0 diverged at epoch 1 of 3 with expert_lr 1e\+20; try a smaller step size: expert_lr=0\.01"
    ):
        train_experts(toy(), ExpertConfig(**{**CONFIG.__dict__, "lr": 1e20}))
    assert not list(cache.rglob("expert-*.safetensors"))


def test_an_expert_that_is_stopped_goes_on_from_its_last_whole_epoch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes in the first batch of the third epoch: the first two are kept and not trained again, and the bits are the same."""
    data, config = toy(), ExpertConfig(**{**CONFIG.__dict__, "experts": 1, "seed": 7})
    whole = [weights.clone() for weights in experts._epochs(data, config, config.network, 0)]
    real, batches = experts.mean_gradient, []
    per_epoch = -(-len(data.train) // config.batch_size)

    def pressed(*arguments: object):
        batches.append(1)
        if len(batches) == 2 * per_epoch + 1:
            raise KeyboardInterrupt
        return real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(experts, "mean_gradient", pressed)
    with pytest.raises(KeyboardInterrupt):
        train_experts(data, config)
    batches = [1] * 100
    found = train_experts(data, config)
    assert len(batches) == 100 + per_epoch, "one epoch was left to train"
    assert all(torch.equal(found.weights(0, epoch), whole[epoch]) for epoch in range(4))


def test_the_file_is_plain_safetensors(cache: Path) -> None:
    data = toy()
    train_experts(data, CONFIG)
    (weights,) = safetensors.torch.load_file(cache_folder(data, CONFIG) / "expert-0000.safetensors").values()
    assert weights.dtype == torch.float32
    assert weights.shape[0] == 4
