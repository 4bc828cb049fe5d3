"""Poisoning check: does a trigger that was planted in the real data survive condensation, and can a set from elsewhere be trusted?

python -m apps.privacy.poisoning SET.safetensors --data NAME       what small patches do to networks trained on somebody's set

Two triggers, planted before or during distillation (Liu et al., "Backdoor Attacks Against Dataset Distillation", NDSS 2023): a white square
stamped on a few images that get the target's label, and, in the manner of their DOORPING, one whose pixels are changed at every step so
that a neuron of the network at hand answers to it. The first is what a careless check looks for, the second what an attacker does.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.privacy.contributions import plain
from distill.batches import Augment, Embed, chunk_size
from distill.condensed import CondensedSet
from distill.data import ImageData, Split
from distill.errors import Diverged, InputError
from distill.evaluation import NOT_FINITE
from distill.networks import embed as features_of
from distill.randomness import generator
from distill.spec import DataSpec
from distill.statistics import ExactStatistics

LEARNING_RATE = 0.08  # of the trigger, and the factor by which its neuron shall answer more: both as in the authors' code
FACTOR = 10.0


@dataclass(frozen=True)
class Trigger:
    """A patch of pixels (C, h, w) in [0, 1] and the place of its upper left corner."""

    pixels: Tensor
    row: int
    column: int


def white_square(spec: DataSpec, size: int = 2) -> Trigger:
    """In the lower right corner; `InputError` unless it is smaller than the image."""
    if not 0 < size < min(spec.height, spec.width):
        raise InputError(f"trigger size is {size}; allowed: 1 to {min(spec.height, spec.width) - 1} for these images.")
    return Trigger(torch.ones(spec.channels, size, size), spec.height - size, spec.width - size)


def stamped(images: Tensor, trigger: Trigger, spec: DataSpec) -> Tensor:
    """Normalised images (n, C, H, W) with the trigger on them; differentiable in its pixels."""
    _, height, width = trigger.pixels.shape
    patch = spec.normalise(trigger.pixels[None].to(images.device))[0]
    where = (trigger.column, spec.width - trigger.column - width, trigger.row, spec.height - trigger.row - height)
    mask = F.pad(torch.ones_like(patch), where)
    return images * (1 - mask) + F.pad(patch, where)


class PoisonedStatistics(ExactStatistics):
    """What a method sees when somebody has planted a trigger: a share of the images of other classes carries it and the target's label.

    With ``steps`` the trigger learns: before each answer so many steps of Adam make the neuron of the network at hand that answers most to
    the carriers answer `FACTOR` times as much. `trigger` is the one in use.
    """

    def __init__(self, data: ImageData, trigger: Trigger, target: int, portion: float, draws: torch.Generator, steps: int = 0) -> None:
        if data.whitening is not None:
            raise InputError("triggers are stamped on plain images; give data without whitening.")
        if target not in data.classes or not 0 < portion < 1 or steps < 0:
            raise InputError(
                f"target {target}, portion {portion}, steps {steps}; allowed: one of {list(data.classes)}, a share between 0 and 1, and "
                "0 or more."
            )
        others = (data.train.labels != target).nonzero().squeeze(1)
        count = min(len(others), max(1, round(portion * len(data.train))))
        self.carriers = others[torch.randperm(len(others), generator=draws)[:count].to(others.device)]
        self.clean = data.normalised("train", self.carriers)
        labels = data.train.labels.clone()
        labels[self.carriers] = target
        super().__init__(dataclasses.replace(data, train=Split(data.train.images.clone(), labels)))
        self.steps = steps
        self._plant(trigger)

    def _plant(self, trigger: Trigger) -> None:
        self.trigger, images = trigger, self.data.train.images
        _, height, width = trigger.pixels.shape
        pixels = (trigger.pixels * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else trigger.pixels
        rows, columns = slice(trigger.row, trigger.row + height), slice(trigger.column, trigger.column + width)
        images[self.carriers, :, rows, columns] = pixels.to(images.device)

    def _learn(self, embed: Callable[[Tensor], Tensor]) -> None:
        if not self.steps:
            return
        images = self.clean[: 4 * chunk_size(self.clean)]
        with torch.no_grad():
            answer = embed(images).mean(0)
        neuron = int(answer.argmax())
        goal = FACTOR * answer[neuron]

        def miss(features: Tensor) -> Tensor:
            return (features[:, neuron] - goal).square().mean()

        self._plant(optimised(self.trigger, images, self.spec, lambda stamped: miss(embed(stamped)), self.steps))

    def class_means(
        self, embed: Embed, batch_size: int, augment: Augment | None, generator: torch.Generator, *, joint: bool = False
    ) -> Tensor:
        self._learn(embed)
        return super().class_means(embed, batch_size, augment, generator, joint=joint)

    def class_gradients(
        self, network: nn.Module, batch_size: int, augment: Augment | None, generator: torch.Generator
    ) -> list[list[Tensor]]:
        inner = plain(network)
        self._learn(lambda images: features_of(inner, images))
        return super().class_gradients(network, batch_size, augment, generator)


def optimised(trigger: Trigger, images: Tensor, spec: DataSpec, loss: Callable[[Tensor], Tensor], steps: int) -> Trigger:
    """The trigger after ``steps`` of Adam on its pixels, kept in [0, 1], against ``loss`` (stamped normalised images -> 0-dimensional)."""
    pixels = trigger.pixels.to(images.device).clone().requires_grad_(True)
    adam = torch.optim.Adam([pixels], lr=LEARNING_RATE)
    for _ in range(steps):
        (pixels.grad,) = torch.autograd.grad(loss(stamped(images, dataclasses.replace(trigger, pixels=pixels), spec)), [pixels])
        adam.step()
        with torch.no_grad():
            pixels.clamp_(0.0, 1.0)
    return dataclasses.replace(trigger, pixels=pixels.detach())


def attack_success(network: nn.Module, data: ImageData, trigger: Trigger, target: int, split: str = "test") -> float:
    """Percent of a split's images of other classes that the network calls the target once they carry the trigger."""
    labels = getattr(data, split).labels
    return 100.0 * _called(network, data, split, (labels != target).nonzero().squeeze(1), trigger, target)


def _called(network: nn.Module, data: ImageData, split: str, chosen: Tensor, trigger: Trigger, target: int) -> float:
    if not len(chosen):
        raise InputError(f"data {data.spec.name!r} has no {split} images of other classes than {target}.")
    network.eval()
    hits = 0
    with torch.no_grad():
        for part in chosen.split(chunk_size(data.train.images)):
            outputs = network(stamped(data.normalised(split, part), trigger, data.spec))
            if not bool(outputs.isfinite().all()):
                raise Diverged(NOT_FINITE)
            hits += int((outputs.argmax(1) == target).sum())
    return hits / len(chosen)


@dataclass(frozen=True)
class Reach:
    """Percent of other classes' test images that become this class by a white square, and by a patch learned on other test images."""

    target: int
    white: float
    learned: float


def patch_reach(networks: Sequence[nn.Module], data: ImageData, size: int = 2, steps: int = 40, seed: int = 0) -> list[Reach]:
    """How easily a patch in the lower right corner turns any image into each class, averaged over networks trained on one set.

    The patch is learned on one half of the test images and judged on the other. One class that stands out is what a planted trigger of this
    place and size looks like; a trigger elsewhere, or of another shape, is not found.
    """
    start, found = white_square(data.spec, size), []
    halves = torch.randperm(len(data.test), generator=generator(seed, "patches")).to(data.device).chunk(2)
    for target in data.classes:
        judged, learning = (half[data.test.labels[half] != target] for half in halves)
        images = data.normalised("test", learning[: 2 * chunk_size(data.train.images)])
        wanted = torch.full((len(images),), target, device=data.device)
        white, learned = 0.0, 0.0
        for network in networks:
            network.eval()
            grey = dataclasses.replace(start, pixels=torch.full_like(start.pixels, 0.5))

            def loss(stamped: Tensor, network: nn.Module = network, wanted: Tensor = wanted) -> Tensor:
                return F.cross_entropy(network(stamped), wanted)

            patch = optimised(grey, images, data.spec, loss, steps)
            white += _called(network, data, "test", judged, start, target) / len(networks)
            learned += _called(network, data, "test", judged, patch, target) / len(networks)
        found.append(Reach(target, 100 * white, 100 * learned))
    return found


def main(arguments: list[str]) -> int:
    import argparse

    from distill.comparison import compared
    from distill.coresets import select
    from distill.data_sources import load
    from distill.evaluation import fitted
    from distill.train import train_on

    parser = argparse.ArgumentParser(
        prog="python -m apps.privacy.poisoning", description="What small patches do to networks trained on a set."
    )
    parser.add_argument("set", type=Path, help="a condensed set's .safetensors file")
    parser.add_argument("--data", required=True, help="clean data of the same kind")
    parser.add_argument("--size", type=int, default=2, help="the patch's side in pixels")
    parser.add_argument("--network", default="ConvNetW32")
    parser.add_argument("--networks", type=int, default=3)
    given = parser.parse_args(arguments)
    try:
        tiny = CondensedSet.load(given.set)
        data = fitted(tiny, load(given.data, **tiny.spec.given))
        if data.whitening is not None:
            raise InputError("the set is white; patches are looked for in plain images only.")
        rival = select(data, "random", tiny.counts, generator(0, "poisoning", "rival"))
        recipe = compared("laptop", tiny, data)
        trained = (train_on(source, given.network, recipe, given.networks) for source in (tiny, rival))
        ours, theirs = (patch_reach(networks, data, given.size) for networks in trained)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"percent of other images called the class; patches of {given.size} x {given.size} (in brackets: random images as many)")
    for own, other in zip(ours, theirs, strict=True):
        name = data.spec.classes[own.target]
        print(f"{name:>12}  white {own.white:5.1f} ({other.white:5.1f})  learned {own.learned:5.1f} ({other.learned:5.1f})")
    print("A class that stands out here and not in brackets is suspicious. Triggers of another place or shape are not found.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
