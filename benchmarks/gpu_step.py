"""What benchmarks/gpu.py measures: one step of a method, the same step of its paper's plain loop, and its floating-point operations."""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, cast

import torch
from torch import Tensor

from benchmarks import plain
from benchmarks.counting import counted, made_data, step_of
from benchmarks.launches import SETTINGS
from distill.adjoint import View
from distill.augment import augment, for_data, strategy
from distill.data import ImageData
from distill.errors import InputError
from distill.fast import Precision
from distill.methods import METHODS
from distill.methods.siamese import shared_draws
from distill.networks import create
from distill.randomness import generator
from distill.statistics import ExactStatistics

PLAIN = ("dm", "gm", "dsa", "datadam", "mtt")  # methods with a loop in plain.py


class Size(NamedTuple):
    """What is measured. ``settings`` of methods' configs replace their defaults where a config has them."""

    network: str
    side: int
    classes: tuple[int, ...]
    ipcs: tuple[int, ...]
    matrix: int  # rows of the matrix product that the rate is compared with
    settings: dict[str, object]


FULL = Size("ConvNet", 32, (10, 100), (1, 10, 50), 8192, {})
TINY = Size("ConvNetW8", 8, (2,), (1,), 64, {"batch_real": 5, "frequencies": 8, "syn_steps": 2, "compile": "off"})


class Cell(NamedTuple):
    method: str
    classes: int
    ipc: int
    precision: Precision

    def __str__(self) -> str:
        return f"{self.method}, {self.classes} classes, IPC {self.ipc}, {self.precision}"


def settings_of(cell: Cell, size: Size) -> dict[str, object]:
    """The fields of the method's config. Raises `InputError` where it has no such precision."""
    fields = {field.name for field in dataclasses.fields(METHODS[cell.method][0])}
    if cell.precision != "float32" and "precision" not in fields:
        raise InputError(f"{cell.method} has no option precision")
    own = {name: value for name, value in SETTINGS.get(cell.method, {}).items() if name != "compile"}
    given = {**own, **size.settings, "network": size.network, "precision": cell.precision}
    return {name: value for name, value in given.items() if name in fields}


def random_data(classes: int, each: int, side: int) -> ImageData:
    """`made_data` with random pixels."""
    data = made_data(classes, each, (3, side, side))
    pixels = torch.randint(0, 256, data.train.images.shape, generator=generator(0, "pixels"), dtype=torch.uint8)
    return dataclasses.replace(data, train=dataclasses.replace(data.train, images=pixels))


def plain_step(cell: Cell, data: ImageData, settings: dict[str, object]) -> Callable[[], object]:
    """A step of the paper's loop with the same config: a new network, a batch of each class, one update of the images."""
    config = METHODS[cell.method][0](**settings)
    draws, counts, device = generator(0, "plain"), [cell.ipc] * cell.classes, data.device
    transform = strategy(for_data(data.spec) if config.augmentation == "auto" else config.augmentation)
    images = torch.randn((cell.classes * cell.ipc, *data.spec.shape), generator=generator(1, "images")).to(device)
    labels, statistics = torch.arange(cell.classes, device=device).repeat_interleave(cell.ipc), ExactStatistics(data)

    def step() -> None:
        network = create(config.network, data.spec, draws, device)
        shared = shared_draws(transform, statistics, draws)

        def batch(label: int) -> Tensor:
            places = data.class_indices(label)
            return data.normalised("train", places[torch.randperm(len(places), generator=draws)[: config.batch_real].to(device)])

        if cell.method == "mtt":
            start = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
            view: View = lambda step, x, y: (augment(x, transform, draws), y)  # noqa: E731
            lr = torch.tensor(0.01, device=device)
            gradient = plain.mtt(network, start, 0.99 * start, images, labels, lr, view, steps=config.syn_steps)[1]
        else:
            real = [batch(label) for label in range(cell.classes)]
            if cell.method == "datadam":
                weights = {"power": config.power, "weight": config.weight, "feature_weight": 0.01}
                gradient = plain.datadam(network, real, images, counts, shared, **weights)[1]
            else:
                gradient = (plain.dm if cell.method == "dm" else plain.gm)(network, real, images, counts, shared)[1]
        images.sub_(gradient, alpha=0.01)

    return step


def flops_of(cell: Cell, size: Size) -> int:
    """Floating-point operations of the convolutions and matrix products of a step, without a device; a multiply-add counts as 2."""
    settings = {**settings_of(cell._replace(precision="float32"), size), "compile": "off"}  # the operations are the same
    data = made_data(cell.classes, int(cast(int, METHODS[cell.method][0](**settings).batch_real)), (3, size.side, size.side))
    return counted(step_of(cell.method, data, cell.ipc, "meta", **settings)).flops
