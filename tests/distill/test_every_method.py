"""What every entry of METHODS must do. A new method is finished when this file and test_combinations.py are green for it."""

import dataclasses
from pathlib import Path

import pytest
import torch

from distill.checkpoint import load_checkpoint, save_checkpoint, state_of
from distill.comparison import formed
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.decode import from_text
from distill.errors import InputError
from distill.evaluation import Accuracy, accuracy
from distill.methods import METHODS
from distill.randomness import generator
from distill.run import condense
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set
from distill.train import Recipe, train_network
from tests.conftest import toy

# Other settings of dcc and idc, which are tested in full; each runs and continues here, too.
PRESETS = ("dsac", "accdd", "dream")
METHOD = pytest.mark.parametrize("method", [name for name in METHODS if name not in PRESETS])
EVERY = pytest.mark.parametrize("method", METHODS)
NETWORK = "ConvNetD1W32"
SMALL = {"network": NETWORK, "batch_real": 8}
# What a method needs beside that to be quick.
ALSO: dict[str, dict[str, object]] = {
    **{name: {"outer_steps": 1} for name in ("cafe", "olcgm", "ssd")},
    **{name: {"pool_networks": 1, "pool_epochs": 1} for name in ("idm", "dance", "ncfm")},
    **{name: {"pool_networks": 1, "pool_epochs": 1, "outer_steps": 1} for name in ("idc", "accdd", "dream")},
    "mtt": {"experts": 2, "max_start_epoch": 2, "expert_epochs": 1, "syn_steps": 3, "expert_lr": 0.05, "lr_img": 30.0},
}
# Settings of four steps that pass through every kind of step a method has.
GRADIENTS = ("gm", "dsa", "dcc", "dsac", "cafe", "idc", "accdd", "dream", "olcgm", "ssd")
FOUR_STEPS = {name: {"iterations": 2, "outer_steps": 2, "inner_epochs": 1 if name == "ssd" else 2} for name in GRADIENTS}
# Steps are cheap or dear by method; each entry is what the tests below need on a laptop. Digits: enough to beat random images.
DIGITS = {
    "dm": {"iterations": 25, "lr_img": 5.0},
    "gm": {"iterations": 25, "initial": "real"},
    "dsa": {"iterations": 50},
    "datadam": {"iterations": 25, "lr_img": 10.0},
    "mtt": {"iterations": 20, "lr_img": 100.0, "syn_steps": 10, "experts": 2, "max_start_epoch": 3, "expert_lr": 0.02},
}


def small(method: str) -> dict[str, object]:
    return {**SMALL, **ALSO.get(method, {})}


def make(method: str, data: ImageData, ipc: int = 2, seed: int = 0, **settings: object):
    config, kind = METHODS[method]
    made = config(**{**small(method), "iterations": 3, **settings})
    statistics = ExactStatistics(data)
    start = initial_set(statistics, made.initial, ipc, generator(seed, "initial"), from_text(made.decode))
    return kind(made, start), statistics


@EVERY
def test_images_are_finite_and_shape_and_labels_are_kept(method: str, toy_data: ImageData) -> None:
    tiny = condense(toy_data, method, ipc=2, iterations=3, **small(method))
    assert tiny.images.shape == (6, 1, 8, 8)
    assert tiny.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert bool(torch.isfinite(tiny.images).all())
    assert tiny.provenance.method == method
    assert tiny.provenance.config["iterations"] == 3
    assert tiny.provenance.fingerprint == toy_data.fingerprint


@METHOD
@pytest.mark.parametrize("seed", [0, 1])
def test_same_seed_same_bits_and_other_seed_other_bits(method: str, seed: int) -> None:
    data = toy()
    first, again, other = (condense(data, method, ipc=2, seed=s, iterations=3, **small(method)) for s in (seed, seed, seed + 7))
    assert torch.equal(first.images, again.images)
    assert not torch.equal(first.images, other.images)


@METHOD
def test_real_data_are_untouched(method: str, toy_data: ImageData) -> None:
    before = toy_data.train.images.clone()
    condense(toy_data, method, iterations=3, **small(method))
    assert torch.equal(before, toy_data.train.images)


# Of the others the networks change while they are compared, and the scale of the loss with them; test_new_losses.py has their gradients.
@pytest.mark.parametrize("method", ["gm", "dsa", "dm", "datadam", "mtt", "dcc", "cafe"])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_falls(method: str, seed: int) -> None:
    """From noise, without augmentation: the mean loss of the last steps is below that of the first."""
    distiller, statistics = make(method, toy(), ipc=1, seed=seed, iterations=40, initial="noise", augmentation="none")
    draws = generator(seed, "steps")
    losses = [float(distiller.step(statistics, draws)["loss"]) for _ in range(40)]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


@METHOD
@pytest.mark.parametrize("kind", ["real", "noise", "herding", "kmeans", "given"])
def test_every_initialisation(method: str, kind: str, toy_data: ImageData) -> None:
    start = select(toy_data, "class_mean", 2, generator(3, "start"))
    form = from_text(METHODS[method][0]().decode)
    if form is not None and kind == "given":
        with pytest.raises(InputError, match="the initial set is stored as none, and decode is formation:2; give one of that form"):
            condense(toy_data, method, ipc=2, iterations=1, initial=start, **small(method))  # type: ignore[arg-type]
        start = formed(toy_data, "random", 2, form, generator(3, "start"))
    tiny = condense(toy_data, method, ipc=2, iterations=1, initial=start if kind == "given" else kind, **small(method))  # type: ignore[arg-type]
    assert tiny.counts == (2, 2, 2)
    if kind == "given":
        # One step of a small size stays near its start, which is sorted by class already.
        assert float((tiny.images - start.images).abs().mean()) < 0.5 * float(start.images.abs().mean())


@EVERY
@pytest.mark.parametrize("ipc", [1, 3])
def test_a_checkpoint_at_every_step_continues_to_the_same_bits(method: str, ipc: int, tmp_path: Path) -> None:
    data = toy()
    settings = FOUR_STEPS.get(method, {"iterations": 4})
    whole, statistics = make(method, data, ipc, **settings)
    draws = generator(0, "steps")
    for _ in range(whole.total_steps):
        whole.step(statistics, draws)
    assert whole.total_steps == 4
    for stop in range(1, 4):
        before, _ = make(method, data, ipc, **settings)
        draws = generator(0, "steps")
        for _ in range(stop):
            before.step(statistics, draws)
        save_checkpoint(tmp_path / "c.safetensors", {"run": 1}, state_of(before.state(), draws, stop), 1.5)
        after, _ = make(method, data, ipc, **settings)
        draws = generator(99, "other")
        assert load_checkpoint(tmp_path / "c.safetensors", {"run": 1}, after, draws)[:2] == (stop, 1.5)
        for _ in range(stop, 4):
            after.step(statistics, draws)
        assert torch.equal(after.condensed.images, whole.condensed.images)


@METHOD
def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(method: str, toy_data: ImageData, tmp_path: Path) -> None:
    distiller, _ = make(method, toy_data)
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"run": 1}, state_of(distiller.state(), generator(0, "a"), 1), 0.0)
    with pytest.raises(InputError, match="other settings, data or seed"):
        load_checkpoint(path, {"run": 2}, distiller, generator(0, "a"))
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(path, {"run": 1}, distiller, generator(0, "a"))


@METHOD
def test_save_and_load(method: str, toy_data: ImageData, tmp_path: Path) -> None:
    tiny = condense(toy_data, method, iterations=1, **small(method))
    tiny.save(tmp_path / "tiny.safetensors")
    back = CondensedSet.load(tmp_path / "tiny.safetensors")
    assert torch.equal(back.images, tiny.images)
    assert torch.equal(back.labels, tiny.labels)
    assert back.provenance == tiny.provenance
    assert back.spec == tiny.spec


@METHOD
def test_uneven_classes_and_an_absent_one(method: str) -> None:
    """A class of 2 images (fewer than the batch and than ipc), one of 12, one without any, labels 0, 1, 3 of 4."""
    data = toy(classes=4)
    keep = (data.train.labels != 2) & ~((data.train.labels == 1) & (torch.arange(len(data.train)) % 6 != 0))
    data = dataclasses.replace(data, train=data.train.at(keep.nonzero().squeeze(1)))
    assert data.counts == (12, 2, 0, 12)
    tiny = condense(data, method, ipc=5, iterations=2, **small(method))
    assert tiny.counts == (5, 5, 0, 5)
    assert len(torch.unique(tiny.images[tiny.labels == 1], dim=0)) == 5


@METHOD
def test_batchnorm_and_a_network_of_ones_own(method: str, toy_data: ImageData) -> None:
    settings = {**small(method), "ipc": 2, "iterations": 2}
    mixed = getattr(METHODS[method][0](), "pool", "random") in ("blend", "early")
    if mixed:
        with pytest.raises(InputError, match="mixes weights, which networks with batch normalisation do not take"):
            condense(toy_data, method, **{**settings, "network": "ConvNetD1W32BN"})
        settings["decode"] = "none"
    first, again = (condense(toy_data, method, **{**settings, "network": NETWORK if mixed else "ConvNetD1W32BN"}) for _ in range(2))
    assert torch.equal(first.images, again.images)

    def own(spec):
        convolution, head = torch.nn.Conv2d(spec.channels, 4, 3, 2), torch.nn.Linear(36, spec.num_classes)
        return torch.nn.Sequential(convolution, torch.nn.Tanh(), torch.nn.Flatten(), head)

    first, again = (condense(toy_data, method, **{**settings, "network": own}) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.provenance.config["network"] == "given: own"


@METHOD
def test_wrong_settings_are_one_line(method: str, toy_data: ImageData) -> None:
    for settings, text in (
        ({"iteration": 3}, "did you mean 'iterations'"),
        ({"iterations": 0}, "a whole number of at least 1"),
        ({"iterations": 2.5}, "a whole number"),
        ({"lr_img": -1.0}, "above 0"),
        ({"network": "ConvNett"}, "ConvNet"),
        ({"ipc": 0}, "1 or more"),
        ({"initial": "kmean"}, "did you mean 'kmeans'"),
    ):
        with pytest.raises(InputError) as caught:
            condense(toy_data, method, **{**small(method), **settings})
        assert text in str(caught.value)
        assert "\n" not in str(caught.value)
    two, form = toy_data.subset([0, 1]), from_text(METHODS[method][0]().decode)
    start = select(two, "random", 1, generator(0, "x")) if form is None else formed(two, "random", [1, 1, 0], form, generator(0, "x"))
    with pytest.raises(InputError, match="classes"):
        condense(toy_data, method, initial=start, **small(method))


@pytest.mark.parametrize("method", DIGITS)
def test_beats_random_images_on_digits(method: str, digits: ImageData) -> None:
    """IPC 1, three networks each; the condensed set's interval lies above the mean of random images."""
    tiny = condense(digits, method, ipc=1, network="ConvNetD1W32", batch_real=32, **DIGITS[method])
    recipe = Recipe(max_steps=40, batch_size=16, lr=0.02, schedule="cosine")

    def judge(source) -> Accuracy:
        return Accuracy(tuple(accuracy(train_network(source(s), "ConvNetD1W32", recipe, s), digits) for s in range(3)))

    ours, random = judge(lambda s: tiny), judge(lambda s: select(digits, "random", 1, generator(s, "rival")))
    assert ours.low > random.mean + 3


@pytest.mark.gpu
@EVERY
def test_runs_on_cuda_and_agrees_with_the_cpu(method: str, toy_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same start and the same random numbers give the same step to float32 accuracy."""
    for module in ("devices", "networks"):
        monkeypatch.setattr(f"distill.{module}.own_stream", lambda generator, device: generator)
    start = select(toy_data, "random", 2, generator(0, "start"))
    results = []
    for device in ("cpu", "cuda"):
        config, kind = METHODS[method]
        distiller = kind(config(**{**small(method), "augmentation": "none", "batch_real": 100}), start.to(device))
        draws = generator(0, "steps")  # drawn on the CPU for both
        distiller.step(ExactStatistics(toy_data.to(device)), draws)
        results.append(distiller.condensed.images.cpu())
    assert torch.allclose(results[0], results[1], atol=1e-3)
