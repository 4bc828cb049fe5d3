"""Classes in groups, as on a GPU: the numbers of the class-by-class form, and what a step asks of a device, counted on device "meta"."""

import dataclasses

import pytest
import torch
from torch import Tensor

from benchmarks.counting import Counting, Counts, counted, made_data, moved, step_of
from distill import condense
from distill.architectures import build
from distill.augment import DSA, Parameters, apply, apply_effects, draw, effects, strategy
from distill.batches import _averages, groups, segment_means
from distill.coresets import select
from distill.data import ImageData
from distill.devices import normal, own_stream, sent
from distill.evaluation import accuracy
from distill.experts import ExpertConfig, Trajectories, _epochs
from distill.methods import METHODS
from distill.networks import create
from distill.randomness import generator
from distill.spec import DataSpec
from distill.statistics import ExactStatistics
from distill.synthetic import Synthetic, initial_set
from distill.train import Recipe, train_network
from tests.conftest import toy

POOL = {"pool_networks": 1, "pool_epochs": 1}
FORMS: dict[str, tuple[str, dict[str, object]]] = {
    "dm": ("dm", {}),
    "dm flipped": ("dm", {"flipped": True}),
    "dm clamped": ("dm", {"clamp": True, "optimizer": "adam", "logits": True}),
    "dm batch norm": ("dm", {"network": "ConvNetD1W32BN"}),
    "dm of digits": ("dm", {"augmentation": "dc_crop_rotate"}),
    "datadam": ("datadam", {"network": "ConvNetD2W32"}),
    "dance": ("dance", POOL),
    "ncfm": ("ncfm", {"frequencies": 16, **POOL}),
    "idm": ("idm", POOL),
    "cafe": ("cafe", {"outer_steps": 2}),
}
FEATURE_METHODS = {"dm": {}, "datadam": {}, "dance": {}, "ncfm": {"frequencies": 64}, "idm": {}, "cafe": {"outer_steps": 1}}


def stepped(form: str, monkeypatch: pytest.MonkeyPatch, size: int) -> tuple[Tensor, list[float]]:
    """Images and losses of two steps in float64, of uneven classes, in groups of ``size`` images; 0: class by class."""
    method, settings = FORMS[form]
    data = toy(channels=3, per_class=9)
    keep = torch.arange(len(data.train)) > 2  # the first class has fewer
    data = dataclasses.replace(data, train=data.train.at(keep))
    with monkeypatch.context() as patch:
        for module in ("batches", "matching", "statistics"):
            patch.setattr(f"distill.{module}.group_size", lambda images: size)
        patch.setattr(Trajectories, "weights", lambda self, expert, epoch, device="cpu": self.read(expert, epoch).double())
        patch.setattr("distill.methods.ncfm.normal", lambda *given: normal(*given).double())
        network = str(settings.get("network", "ConvNetD1W32"))
        config, kind = METHODS[method]
        made = config(**{"batch_real": 7, "iterations": 2, **settings, "network": network})
        start = initial_set(ExactStatistics(data), "real", [2, 3, 2], generator(0, "start"))
        as_published = DataSpec.normalise
        patch.setattr(DataSpec, "normalise", lambda spec, images: as_published(spec, images).double())
        distiller = kind(dataclasses.replace(made, decode="none"), start, lambda spec: build(network, spec).double())
        for name in ("stored", "velocity", "squares"):
            if (value := getattr(distiller.synthetic, name)) is not None:
                setattr(distiller.synthetic, name, value.double())
        statistics, draws = ExactStatistics(data), generator(0, "steps")
        losses = [float(distiller.step(statistics, draws)["loss"]) for _ in range(2)]
        return distiller.synthetic.stored, losses


@pytest.mark.parametrize("form", FORMS)
def test_groups_of_classes_give_the_numbers_of_class_by_class(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one group, in several, and with classes that are larger than a group."""
    images, losses = stepped(form, monkeypatch, 0)
    for size in (100, 14, 2):
        found, also = stepped(form, monkeypatch, size)
        assert torch.allclose(found, images, rtol=0, atol=1e-12 * float(images.abs().max())), size
        assert also == pytest.approx(losses, rel=1e-12)


def test_groups_hold_every_class_once_within_their_size() -> None:
    for counts, size in (([256] * 10, 2048), ([5, 1, 9, 3], 12), ([50] * 3, 41), ([1], 0), ([2, 2], 0)):
        found = groups(range(len(counts)), counts, size)
        assert [place for group in found for place in group] == list(range(len(counts)))
        assert all(len(group) == 1 or sum(counts[place] for place in group) <= size for group in found)
    assert [len(group) for group in groups(range(10), [256] * 10, 2048)] == [5, 5], "equal groups, which are compiled once"


def test_segment_means() -> None:
    rows = torch.randn(9, 4, generator=generator(0, "rows"), dtype=torch.float64)
    by_hand = torch.stack([rows[:2].mean(0), rows[2:5].mean(0), rows[5:].mean(0)])
    assert torch.allclose(segment_means(rows, [2, 3, 4]), by_hand, atol=1e-15)
    assert torch.allclose(_averages((2, 3, 4), rows.dtype, rows.device) @ rows, by_hand, atol=1e-15)
    assert torch.equal(segment_means(rows, [3, 3, 3]), rows.view(3, 3, 4).mean(1))


@pytest.mark.parametrize("seed", range(3))
def test_transforms_of_many_classes_at_once(seed: int) -> None:
    """Each image under a transform of its own, and their gradients, as `apply` gives them one by one."""
    draws = generator(seed, "draws")
    parameters = [draw(strategy(name), draws, 6, 9) for name in DSA.split("_") for _ in range(2)] + [Parameters("none", torch.zeros(1, 0))]
    images = torch.randn(len(parameters), 3, 6, 9, generator=draws, dtype=torch.float64, requires_grad=True)
    found = apply_effects(images, torch.cat([effects(one) for one in parameters]))
    expected = torch.cat([apply(image[None], one) for image, one in zip(images, parameters, strict=True)])
    weights = torch.randn(found.shape, generator=draws, dtype=torch.float64)
    assert torch.allclose(found, expected, atol=1e-13)
    assert torch.allclose(*(torch.autograd.grad((result * weights).sum(), images)[0] for result in (found, expected)), atol=1e-13)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_updates_of_one_class_after_the_other_in_closed_form(momentum: float, toy_data: ImageData) -> None:
    start = select(toy_data, "random", [3, 1, 2], generator(0, "start"))
    loop, closed = (Synthetic(start, METHODS["dm"][0](updates="per_class")) for _ in range(2))
    for synthetic in (loop, closed):
        synthetic.stored, synthetic.velocity = synthetic.stored.double(), synthetic.velocity.double()
    for step in range(3):
        gradient = torch.randn(loop.stored.shape, generator=generator(step, "g"), dtype=torch.float64)
        loop.descend([gradient], 0.3, momentum)
        closed._descend_by_class(gradient, 0.3, momentum)
    assert torch.allclose(loop.stored, closed.stored, rtol=0, atol=1e-12)
    assert torch.allclose(loop.velocity, closed.velocity, rtol=0, atol=1e-12)


def test_draws_for_a_device_come_from_the_runs_stream() -> None:
    draws, again = generator(0, "run"), generator(0, "run")
    assert own_stream(draws, "cpu") is draws
    assert torch.equal(normal((3,), draws, "cpu"), torch.randn(3, generator=again))
    assert own_stream(draws, "meta") is None
    assert not torch.equal(draws.get_state(), again.get_state()), "the next draw is another"
    assert normal((3,), draws, "meta").device.type == "meta"
    assert sent(torch.ones(2), "cpu").tolist() == [1, 1]


# Counted on device "meta"


def test_the_counts_themselves() -> None:
    """Each kind of wait, transfer, mixture and live byte, once."""
    x = torch.ones(4, 4, device="meta")
    with Counting() as counts:
        held = x + 1
        del held
        x.view(16)
    assert (counts.operations, counts.peak, counts.waits.total(), counts.transfers) == (1, 2 * 64, 0, 0)
    for wait in (
        lambda: x.sum().item(),
        lambda: bool((x > 0).all()),
        lambda: x.tolist(),
        lambda: x.cpu(),
        lambda: torch.tensor([1.0, 2.0], device="meta"),
        lambda: x[[0, 1]],
        lambda: torch.ones(3).to("meta"),
        lambda: x.copy_(torch.ones(4, 4)),
    ):
        with Counting() as counts:
            wait()
        assert counts.waits.total() == 1
    for name, wait in (("nonzero", lambda: (x > 0).nonzero()), ("index", lambda: x[x > 0]), ("_unique2", lambda: x.unique())):
        with pytest.raises(NotImplementedError), Counting() as counts:
            wait()
        assert counts.waits[name] == 1
    with Counting() as counts:
        torch.ones(3).to("meta", non_blocking=True)
    assert (counts.transfers, counts.waits.total()) == (1, 0)
    with Counting() as counts:
        x[torch.tensor([0, 1])]
    assert counts.mixed.total() == 1


def clean(counts: Counts) -> bool:
    return not counts.waits and not counts.mixed


@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_a_step_asks_little_of_a_device_whatever_the_number_of_classes(method: str) -> None:
    """No wait for the host; at most 250 operations for each pass of a group through the network."""
    settings = {"network": "ConvNetW32", "batch_real": 20, **FEATURE_METHODS[method]}
    few, more = (counted(step_of(method, made_data(classes, 20), 10, **settings)) for classes in (3, 6))
    assert clean(few), few
    assert clean(more), more
    if method != "cafe":  # which asks for gradients class by class
        assert few.operations == more.operations, "one group of classes each"
    passes = sum(count for name, count in more.names.items() if name == "native_group_norm") / 3
    assert more.operations <= 250 * passes, (more.operations, passes)


VARIANTS: list[dict[str, object]] = [
    {"decode": "frequency:9"},
    {"decode": "formation:2", "clamp": True},
    {"flipped": True, "optimizer": "adam", "schedule": "cosine"},
    {"radius": 2.0, "logits": True},
    {"pool": "early", "updates": "per_class"},
    {"network": "ConvNetD1W32BN", "calibration": 1.0},
]


@pytest.mark.parametrize("settings", VARIANTS, ids=str)
def test_no_shared_setting_waits(settings: dict[str, object]) -> None:
    counts = counted(step_of("dm", made_data(3, 8, (3, 8, 8)), 2, **{"network": "ConvNetD1W32", "batch_real": 8, **settings}))
    assert clean(counts), counts
    assert counts.operations <= 400


def test_operations_and_memory_grow_with_groups_and_not_with_images_at_once() -> None:
    """At 512 images of 64 x 64 a group, more classes add groups; the peak grows by the images' own tensors only."""
    settings = {"network": "ConvNetD4W32", "batch_real": 64}
    one, four = (counted(step_of("dm", made_data(classes, 64, (3, 64, 64)), 8, **settings)) for classes in (8, 32))
    assert clean(one)
    assert clean(four)
    assert four.operations < 4 * one.operations
    images, data = 24 * 8 * 3 * 64 * 64 * 4, 24 * 65 * 3 * 64 * 64
    assert four.peak < one.peak + 9 * images + data


def test_a_learner_trains_and_is_tested_without_waits() -> None:
    data, tiny = made_data(3, 20), condense(made_data(3, 20), "dm", iterations=1, ipc=4, network="ConvNetD1W32", progress=False)
    for recipe in (Recipe(batch_size=4), Recipe(batch_size=4, optimiser="adamw", mix="cutmix", augmentation="dc_crop_scale")):
        counts = []
        for steps in (2, 6):
            with Counting() as found:
                train_network(moved(tiny), "ConvNetD2W32", dataclasses.replace(recipe, max_steps=steps), 0)
            counts.append(found)
        assert counts[0].waits == counts[1].waits, "the initial weights, once"
        assert not counts[1].mixed
        assert counts[1].operations - counts[0].operations <= 4 * 250
    network, there = create("ConvNetD2W32", data.spec, generator(0, "weights"), "meta"), moved(data)
    tested = counted(lambda: accuracy(network, there))
    assert tested.waits == {"copy to the host": 1}, "the result"


def test_batches_of_a_test_pass_are_bounded_by_the_size_of_the_images() -> None:
    network = create("ConvNetD2W32", made_data(2, 1, (3, 128, 128)).spec, generator(0, "weights"), "meta")
    few, many = (moved(made_data(2, each, (3, 128, 128))) for each in (64, 256))
    small, large = (counted(lambda data=data: accuracy(network, data, "train")) for data in (few, many))  # type: ignore[misc]
    assert large.peak < small.peak + 2 * (512 - 128) * 3 * 128 * 128


def test_experts_wait_at_the_end_of_an_epoch_only() -> None:
    data, counts = made_data(2, 32), []
    config = ExpertConfig(experts=1, epochs=1, network="ConvNetD2W32", momentum=0.9)
    for size in (32, 8):
        with Counting() as found:
            list(_epochs(moved(data), dataclasses.replace(config, batch_size=size), config.network, 0))
        counts.append(found)
    assert counts[0].waits == counts[1].waits
    assert not counts[1].mixed
    assert counts[1].operations - counts[0].operations <= 6 * 250


@pytest.mark.gpu
@pytest.mark.parametrize("method", FEATURE_METHODS)
def test_the_same_counts_on_a_gpu(method: str) -> None:
    settings = {"network": "ConvNetW32", "batch_real": 20, **FEATURE_METHODS[method]}
    counts = counted(step_of(method, made_data(6, 20), 10, "cuda", **settings), "cuda")
    assert clean(counts), counts
    assert counts.operations <= counted(step_of(method, made_data(6, 20), 10, **settings)).operations * 1.2
