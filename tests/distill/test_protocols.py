"""The protocols of PROTOCOLS: step size, batch and augmentation of every step of a toy run, against the authors' loops written out here."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, MultiStepLR

from distill.augment import DSA, DSA_DIGITS, Strategy, apply, augment, draw, strategy
from distill.condensed import CondensedSet
from distill.configure import configure
from distill.errors import InputError
from distill.mixing import Mixed, mixed
from distill.networks import create
from distill.protocols import PROTOCOLS, check_untaught, protocol
from distill.randomness import generator
from distill.recipe import Recipe
from distill.resized_crops import boxes, resized
from distill.spec import DataSpec
from distill.train import train_network, training
from tests.conftest import toy


class Step(NamedTuple):
    """What is logged at a step."""

    lr: float
    batch: int
    augmentation: str
    mix: tuple[str | None, float | None, float | None]


class Expected(NamedTuple):
    """A protocol as its authors' code has it: images of the toy set, step sizes by epoch, batch, augmentation, mixing, what is fixed."""

    images: int
    sizes: Callable[[], list[float]]
    batch: int
    augmentation: str
    mix: tuple[str | None, float | None, float | None] = (None, None, None)
    fixed: tuple[str, float, float] = ("SGD", 5e-4, 0.9)  # optimiser, weight decay, momentum


def published(last: int) -> list[float]:
    """`evaluate_synset` of VICO-UoE/DatasetCondensation: range(E + 1) epochs, one drop, looked up after the epoch."""
    lr, used = 0.01, []
    for epoch in range(last + 1):
        used.append(lr)
        lr = lr * 0.1 if epoch == last // 2 + 1 else lr
    return used


def scheduled(kind: Callable[..., Any], lr: float, epochs: int, *given: Any, **named: Any) -> list[float]:
    """The step sizes of a scheduler of torch that is advanced once an epoch."""
    optimiser = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)
    scheduler, used = kind(optimiser, *given, **named), []
    for _ in range(epochs):
        used.append(optimiser.param_groups[0]["lr"])
        optimiser.step()
        scheduler.step()
    return used


def half_cosine(epoch: int) -> float:
    return 0.5 * (1.0 + math.cos(math.pi * epoch / 300 / 2)) if epoch <= 300 else 0


def cos2(epoch: int) -> float:
    """shaoshitong/EDC, direct_train.py, at st 2 and 1,000 epochs."""
    if epoch <= 1000 * 5 / 6:
        return 0.5 * (1.0 + math.cos(math.pi * epoch / (2 * 1000)))
    return 0.5 * (1.0 + math.cos(math.pi * 5 / (6 * 2))) * (6 * 1000 - 6 * epoch) / (6 * 1000)


def warm(total: int) -> list[float]:
    """optax: 500 steps from 0, then a cosine to a hundredth."""
    up = [3e-4 * step / 500 for step in range(500)]
    rest = total - 500
    return up + [3e-4 * (0.99 * 0.5 * (1 + math.cos(math.pi * step / rest)) + 0.01) for step in range(rest)]


CUTMIX, FLIP = ("cutmix", 1.0, None), "all_resized_flip"
ADAMW = ("AdamW", 0.01, 0.9)
NO_CUTOUT = "color_crop_flip_scale_rotate"
TABLE: dict[str, Expected] = {
    "dc": Expected(20, lambda: published(300), 256, "none"),
    "dc-augmented": Expected(20, lambda: published(1000), 256, "dc_crop_scale_rotate"),
    "dsa": Expected(20, lambda: published(1000), 256, DSA),
    "dm": Expected(20, lambda: published(1000), 256, DSA),
    "mtt": Expected(20, lambda: published(1000), 256, DSA),
    "datm": Expected(20, lambda: published(1000), 128, DSA),
    "datadam": Expected(20, lambda: published(1800), 64, DSA),
    "datadam-paper": Expected(20, lambda: published(1800), 256, DSA),
    "idc": Expected(70, lambda: scheduled(MultiStepLR, 0.01, 1000, [666, 833], 0.2), 64, NO_CUTOUT, ("cutmix", None, None)),
    "ncfm": Expected(
        20,
        lambda: scheduled(MultiStepLR, 1e-3, 2000, [400, 800, 1200, 1600], 0.5),
        128,
        DSA,
        ("cutmix", None, None),
        ("AdamW", 5e-4, 0.9),
    ),
    "frepo": Expected(10, lambda: warm(1000), 500, DSA, fixed=("AdamW", 0.0, 0.9)),
    "rded": Expected(100, lambda: scheduled(LambdaLR, 1e-3, 300, half_cosine), 50, "flip", CUTMIX, ADAMW),
    "sre2l": Expected(20, lambda: scheduled(CosineAnnealingLR, 1e-3, 400, 400), 128, "all_crop_flip", ("mixup", 1.0, 0.8), ADAMW),
    "edc": Expected(20, lambda: scheduled(MultiStepLR, 1e-3, 1000, [800, 900, 950], 0.5), 50, FLIP, CUTMIX, ADAMW),
    "laptop": Expected(
        40, lambda: [1e-3 * 0.5 * (1 + math.cos(math.pi * step / 200)) for step in range(200)], 32, DSA, fixed=("AdamW", 5e-4, 0.9)
    ),
}
BY_STEP = ("frepo", "laptop")  # whose step sizes are by step


def a_set(images: int, *, name: str = "cifar10", classes: int = 10) -> CondensedSet:
    spec = DataSpec(name, 3, 8, 8, tuple(map(str, range(classes))), (0.0,) * 3, (1.0,) * 3)
    return CondensedSet(torch.randn(images, 3, 8, 8, generator=generator(0, "toy")), torch.arange(images) % classes, spec)


class Bias(nn.Module):
    """The cheapest network: its outputs are its weights."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(spec.num_classes))

    def forward(self, images: Tensor) -> Tensor:
        return self.bias + 0 * images[:, 0, 0, :1]


class Enough(Exception):
    """Ends a training."""


class Log:
    """Every optimiser step of the trainings in a test, with what was done to its batch; ends a training after ``most`` steps."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.most = 10**9
        self.batch, self.augmentation, self.mix = 0, "none", (None, None, None)

    def augment(self, images: Tensor, found: Strategy, generator: torch.Generator) -> Tensor:
        self.augmentation = ("dc_" if found.dc else "all_" if found.every else "") + "_".join(found.transforms)
        return images

    def mixed(self, images: Tensor, kind: str | None, generator: torch.Generator, **named: float | None) -> Mixed | None:
        self.batch, self.mix = len(images), (kind, named["probability"], named["alpha"])
        return None

    def step(self, optimiser: torch.optim.Optimizer) -> None:
        self.steps.append(Step(optimiser.param_groups[0]["lr"], self.batch, self.augmentation, self.mix))
        self.augmentation = "none"
        if len(self.steps) >= self.most:
            raise Enough


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Log:
    """A log of trainings whose batches stay as they are and whose weights do not move."""
    found = Log()
    monkeypatch.setattr("distill.train.augment", found.augment)
    monkeypatch.setattr("distill.train.mixed", found.mixed)
    monkeypatch.setattr(Tensor, "backward", lambda self: None)
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        monkeypatch.setattr(kind, "step", lambda self: found.step(self))
    return found


def test_every_protocol_is_in_the_table() -> None:
    assert TABLE.keys() == PROTOCOLS.keys()


@pytest.mark.parametrize("name", TABLE)
def test_every_step_is_the_authors(name: str, log: Log) -> None:
    expected = TABLE[name]
    recipe = protocol(name, a_set(1).spec, images=expected.images)
    train_network(a_set(expected.images), Bias, recipe, 0, teacher=Bias(a_set(1).spec) if recipe.teacher else None)
    steps, sizes = list(log.steps), expected.sizes()
    per_epoch = -(-expected.images // recipe.batch_size)
    by_step = sizes if name in BY_STEP else [lr for lr in sizes for _ in range(per_epoch)]
    assert [step.lr for step in steps] == pytest.approx(by_step, rel=1e-6, abs=1e-12)
    assert {step.augmentation for step in steps} == {expected.augmentation}
    assert {step.mix for step in steps} == {expected.mix}
    optimiser, decay, momentum = expected.fixed
    assert (recipe.optimiser, recipe.weight_decay, recipe.momentum) == (optimiser.lower(), decay, momentum)


@pytest.mark.parametrize("name", TABLE)
def test_every_batch_has_the_authors_size(name: str, log: Log) -> None:
    batch = TABLE[name].batch
    recipe, log.most = protocol(name, a_set(1).spec, images=TABLE[name].images), 5
    with pytest.raises(Enough):
        train_network(a_set(batch + 10), Bias, recipe, 0, teacher=Bias(a_set(1).spec) if recipe.teacher else None)
    assert [step.batch for step in log.steps] == [batch, 10, batch, 10, batch]


def test_what_is_learned_from_by_protocol() -> None:
    """Losses, temperatures and averages; a teacher where the authors label every view."""
    rows = {name: (r.loss, r.temperature, r.hard_weight, r.ema, r.teacher is not None) for name, r in PROTOCOLS.items()}
    assert {name: row for name, row in rows.items() if any(row)} == {
        "frepo": ("mse", None, None, None, False),
        "rded": ("kl", 20.0, None, None, True),
        "sre2l": ("kl", 30.0, None, None, True),
        "edc": ("mse", None, 0.025, 0.99, True),
    }


@pytest.mark.parametrize(
    ("name", "data", "classes", "images", "changes"),
    [
        ("frepo", "cifar10", 10, 10, {"max_steps": 1000, "augmentation": DSA}),
        ("frepo", "cifar10", 10, 100, {"max_steps": 2000}),
        ("frepo", "cifar10", 10, 500, {"max_steps": 5000}),
        ("frepo", "cifar100", 100, 1000, {"max_steps": 10_000}),
        ("frepo", "tiny", 200, 2000, {"max_steps": 40_000}),
        ("frepo", "fashion-mnist", 10, 10, {"augmentation": DSA_DIGITS}),
        ("rded", "cifar10", 10, 10, {"batch_size": 10}),
        ("rded", "cifar10", 10, 500, {"batch_size": 100}),
        ("rded", "tiny", 100, 1000, {"batch_size": 100}),
        ("rded", "cifar100", 100, 1000, {"batch_size": 25, "lr": 0.002}),
        ("rded", "mnist", 10, 10, {"batch_size": 10, "augmentation": "none"}),
        ("sre2l", "svhn", 10, 10, {"augmentation": "all_crop"}),
        ("edc", "svhn", 10, 10, {"augmentation": "all_resized", "batch_size": 10}),
        ("edc", "cifar10", 10, 500, {"batch_size": 100}),
        ("edc", "cifar100", 100, 1000, {"optimiser": "sgd", "lr": 0.1, "momentum": 0.875, "weight_decay": 5e-4, "batch_size": 50}),
        ("datm", "cifar100", 100, 1000, {}),
    ],
)
def test_protocols_follow_data_and_number_of_images(name: str, data: str, classes: int, images: int, changes: dict[str, object]) -> None:
    found = protocol(name, a_set(1, name=data, classes=classes).spec, images=images)
    for key, value in changes.items():
        assert getattr(found, key) == value
    rest = {key for key in dataclasses.asdict(found) if getattr(found, key) != getattr(PROTOCOLS[name], key)}
    assert rest <= {*changes, "augmentation", "max_steps", "milestones", "decay", "schedule"}


def test_a_recipe_says_what_it_does() -> None:
    text = str(PROTOCOLS["sre2l"])
    assert "lr 0.001 (epoch-cosine), batch size 128, 400 epochs, augmentation all_crop_flip, mixup (0.8) of 100% of the batches" in text
    assert "lr 0.0003 (cosine, 500 steps of warm-up)" in str(PROTOCOLS["frepo"])
    assert "moving average of weights 0.99" in str(PROTOCOLS["edc"])
    assert str(Recipe(mix="cutmix")).endswith("augmentation auto, cutmix")


def test_edc_on_cifar100_has_its_own_step_sizes(log: Log) -> None:
    tiny = a_set(20, name="cifar100", classes=100)
    train_network(tiny, Bias, protocol("edc", tiny.spec), 0, teacher=Bias(tiny.spec))
    assert [step.lr for step in log.steps] == pytest.approx([0.1 * cos2(epoch) for epoch in range(1000)])


def test_a_sets_own_step_size_is_used_by_datm(log: Log) -> None:
    tiny = dataclasses.replace(a_set(20), labels=torch.randn(20, 10, generator=generator(0, "labels")), label_kind="logits", lr=0.02)
    recipe = dataclasses.replace(protocol("datm", tiny.spec), epochs=4, drop_epochs=2)
    train_network(tiny, Bias, recipe, 0)
    assert [step.lr for step in log.steps] == pytest.approx([0.02, 0.02, 0.002, 0.002])


def test_places_without_a_teacher_refuse_a_protocol_that_has_one() -> None:
    for recipe, name, words in (
        (None, "rded", "protocol 'rded' has a teacher"),
        (PROTOCOLS["edc"], "laptop", "the recipe has a teacher"),
        (None, "rdad", "did you mean 'rded'"),
    ):
        with pytest.raises(InputError, match=words):
            check_untaught(recipe, name, "s.toml: [learner]")
    check_untaught(PROTOCOLS["dm"], "rded", "s.toml: [learner]")
    check_untaught(None, "dm", "s.toml: [learner]")


# What the protocols are made of


def test_a_moving_average_is_the_authors_loop() -> None:
    """EDC: a copy of the initial network, pulled towards the weights after every step."""
    tiny, recipe = a_set(6), Recipe(epochs=5, schedule="constant", augmentation="none", ema=0.8, compile="off")
    plain = dataclasses.replace(recipe, ema=None)
    path = [next(iter(training(tiny, "MLP", dataclasses.replace(plain, epochs=n), 1))) for n in range(1, 6)]
    start = next(iter(training(tiny, "MLP", dataclasses.replace(plain, epochs=1, lr=1e-30), 1)))
    expected = [p.detach().double() for p in start.parameters()]
    for network in path:
        expected = [0.8 * e + 0.2 * p.detach().double() for e, p in zip(expected, network.parameters(), strict=True)]
    for found, slow in zip(train_network(tiny, "MLP", recipe, 1).parameters(), expected, strict=True):
        assert torch.allclose(found.double(), slow, atol=1e-6)


def test_looks_change_nothing_and_are_even() -> None:
    tiny, recipe = a_set(12), Recipe(epochs=10, batch_size=8, compile="off")
    last = train_network(tiny, "MLP", recipe, 0)
    assert not last.training
    steps = []
    for network in training(tiny, "MLP", recipe, 0, looks=4):
        assert not network.training
        steps.append(torch.cat([p.detach().flatten() for p in network.parameters()]))
    assert len(steps) == 4
    assert torch.equal(steps[-1], torch.cat([p.detach().flatten() for p in last.parameters()]))
    half = train_network(tiny, "MLP", dataclasses.replace(recipe, max_steps=10, drop_epochs=5), 0)
    assert torch.equal(steps[1], torch.cat([p.detach().flatten() for p in half.parameters()]))
    assert len(list(training(tiny, "MLP", dataclasses.replace(recipe, max_steps=3), 0, looks=20))) == 3


def test_every_batch_is_mixed_with_a_share_of_the_beta_distribution() -> None:
    images, draws = torch.randn(4, 1, 4, 4, generator=generator(0, "i")), generator(0, "mix")
    shares = []
    for _ in range(2000):
        both = mixed(images, "mixup", draws, probability=1.0, alpha=0.8)
        assert both is not None
        shares.append(both.share)
    assert scipy.stats.kstest(shares, scipy.stats.beta(0.8, 0.8).cdf).statistic < 0.05
    assert sum(mixed(images, "cutmix", draws, probability=0.1) is not None for _ in range(2000)) == pytest.approx(200, abs=50)


@pytest.mark.parametrize(("height", "width"), [(12, 12), (9, 14), (40, 8)])
def test_resized_crops_are_torchs_interpolation_of_the_rectangle(height: int, width: int) -> None:
    images, found = torch.randn(20, 2, height, width, generator=generator(0, "i")), boxes(20, height, width, generator(0, "b"))
    for image, box, ours in zip(images, found, resized(images, found), strict=True):
        top, left, tall, wide = map(int, box)
        assert 0 <= top <= height - tall
        assert 0 <= left <= width - wide
        cut = image[None, :, top : top + tall, left : left + wide]
        slow = nn.functional.interpolate(cut, size=(height, width), mode="bilinear", align_corners=False, antialias=True)
        assert torch.allclose(ours, slow[0], atol=1e-5)


def test_boxes_have_the_areas_and_ratios_that_they_say() -> None:
    found = boxes(4000, 64, 64, generator(0, "b"))
    area, shape = (found[:, 2] * found[:, 3] / 64**2).numpy(), (found[:, 3] / found[:, 2]).numpy()
    small = area < 0.5  # larger rectangles are drawn again where they do not fit
    assert scipy.stats.kstest(area[small], scipy.stats.uniform(0.08, 0.42).cdf).statistic < 0.05
    assert (shape > 0.7).all()
    assert (shape < 1.4).all()
    assert abs(np.log(shape).mean()) < 0.01
    square = boxes(50, 20, 20, generator(0, "b"), ratio=(1.0, 1.0))
    assert torch.equal(square[:, 2], square[:, 3])


def test_all_transforms_are_applied_in_order() -> None:
    images, chosen = torch.randn(6, 3, 8, 8, generator=generator(0, "i")), strategy("all_crop_flip")
    drawn = draw(chosen, generator(0, "d"), 8, 8, count=6)
    assert drawn.values.shape == (6, 3)
    for image, (down, right, flip), ours in zip(images, drawn.values.tolist(), apply(images, drawn), strict=True):
        slow = torch.zeros_like(image)
        for i in range(8):
            for j in range(8):
                if 0 <= i + down < 8 and 0 <= j + right < 8:
                    slow[:, i, j] = image[:, int(i + down), int(j + right)]
        assert torch.equal(ours, slow.flip(2) if flip else slow)
    assert augment(images, strategy("all_resized_flip"), generator(0, "d")).shape == images.shape
    with pytest.raises(InputError, match="augmentation 'resized' is not known"):
        strategy("resized_flip")
    with pytest.raises(InputError, match="did you mean 'resized'"):
        strategy("all_resize")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"warmup": 5}, "schedule 'cosine'"),
        ({"lr_end": 0.1, "schedule": "cosine", "milestones": [0.5]}, "schedule 'cosine'"),
        ({"mix_probability": 1.0}, "name 'cutmix' or 'mixup'"),
        ({"mix_alpha": 0.8}, "name 'cutmix' or 'mixup'"),
    ],
)
def test_settings_that_do_nothing_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        configure(Recipe, given, "recipe")


def test_a_taught_protocol_trains_on_the_toy_data() -> None:
    """All parts together, with a real network: KL with a teacher of mixed, cropped views."""
    data = toy(channels=3)
    tiny = CondensedSet(data.normalised("train", torch.arange(6)), data.train.labels[:6], data.spec)
    for name in ("rded", "sre2l", "edc"):
        recipe = dataclasses.replace(protocol(name, data.spec), epochs=3, compile="off")
        network = train_network(tiny, "MLP", recipe, 0, teacher=create("MLP", data.spec, generator(1, "teacher")))
        assert all(p.isfinite().all() for p in network.parameters())
