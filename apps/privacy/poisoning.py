"""Poisoning check: does a trigger in the real data survive condensation, and can a set from elsewhere be trusted?

python -m apps.privacy.poisoning SET.safetensors --data NAME       the effect of small patches on networks trained on the set

Triggers (Liu et al., "Backdoor Attacks Against Dataset Distillation", NDSS 2023): a white square stamped before distillation on a few
images that get the target's label, and, as in their DOORPING, a patch whose pixels are optimised at every step so that it activates a
neuron of the current network; or a perturbation of all pixels that is optimised in the same way and that nobody sees.
"""

import dataclasses
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.privacy.contributions import plain
from apps.privacy.triggers import Planted, stamped, white_square
from distill.batches import Augment, Embed, chunk_size
from distill.condensed import CondensedSet
from distill.data import ImageData, Split
from distill.errors import Diverged, InputError
from distill.evaluation import NOT_FINITE
from distill.networks import embed as features_of
from distill.randomness import generator
from distill.spec import DataSpec
from distill.statistics import ExactStatistics

LEARNING_RATE = 0.08  # Adam's step size for the trigger, and the factor for the activation of its neuron: both as in the authors' code
FACTOR = 10.0

AnyTrigger = TypeVar("AnyTrigger", bound=Planted)


class PoisonedStatistics(ExactStatistics):
    """Exact statistics of poisoned data: a share of the images of other classes carries the trigger and the target's label.

    If ``steps`` > 0, the trigger (attribute `trigger`) is optimised before each answer: ``steps`` Adam updates push the neuron that the
    poisoned images activate most to `FACTOR` times its activation.

    Args:
        data: clean images.
        trigger: the first trigger.
        target: label that the poisoned images get.
        portion: number of poisoned images over the number of training images.
        draws: chooses them.
        steps: Adam updates before each answer; 0: the trigger is fixed.

    Raises:
        InputError: the data are whitened, or a number is out of range.
    """

    def __init__(self, data: ImageData, trigger: Planted, target: int, portion: float, draws: torch.Generator, steps: int = 0) -> None:
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
        self.clean, self.originals = data.normalised("train", self.carriers), data.train.images[self.carriers].clone()
        labels = data.train.labels.clone()
        labels[self.carriers] = target
        super().__init__(dataclasses.replace(data, train=Split(data.train.images.clone(), labels)))
        self.steps = steps
        self._plant(trigger)

    def _plant(self, trigger: Planted) -> None:
        self.trigger = trigger
        self.data.train.images[self.carriers] = trigger.in_files(self.originals)

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
        self,
        embed: Embed,
        batch_size: int,
        augment: Augment | None,
        generator: torch.Generator,
        *,
        joint: bool = False,
        norm: float | None = None,
    ) -> Tensor:
        self._learn(embed)
        return super().class_means(embed, batch_size, augment, generator, joint=joint, norm=norm)

    def class_gradients(
        self, network: nn.Module, batch_size: int, augment: Augment | None, generator: torch.Generator, *, together: bool = False
    ) -> list[list[Tensor]]:
        inner = plain(network)
        self._learn(lambda images: features_of(inner, images))
        return super().class_gradients(network, batch_size, augment, generator, together=together)


def optimised(trigger: AnyTrigger, images: Tensor, spec: DataSpec, loss: Callable[[Tensor], Tensor], steps: int) -> AnyTrigger:
    """The trigger after ``steps`` Adam updates of its pixels, kept in their range, that minimise ``loss`` (stamped images -> scalar)."""
    pixels = trigger.pixels.to(images.device).clone().requires_grad_(True)
    adam = torch.optim.Adam([pixels], lr=LEARNING_RATE * (trigger.high - trigger.low))
    for _ in range(steps):
        (pixels.grad,) = torch.autograd.grad(loss(stamped(images, trigger.moved(pixels), spec)), [pixels])
        adam.step()
        with torch.no_grad():
            pixels.clamp_(trigger.low, trigger.high)
    return trigger.moved(pixels.detach())


def attack_success(network: nn.Module, data: ImageData, trigger: Planted, target: int, split: str = "test") -> float:
    """Percent of the images of other classes in ``split`` that the network classifies as ``target`` when they carry the trigger."""
    labels = getattr(data, split).labels
    return 100.0 * _called(network, data, split, (labels != target).nonzero().squeeze(1), trigger, target)


def _called(network: nn.Module, data: ImageData, split: str, chosen: Tensor, trigger: Planted, target: int) -> float:
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
    """Percent of the test images of other classes that a white square, or a patch optimised on other test images, turns into ``target``."""

    target: int
    white: float
    learned: float


def patch_reach(networks: Sequence[nn.Module], data: ImageData, size: int = 2, steps: int = 40, seed: int = 0) -> list[Reach]:
    """The share of images that a patch in the lower right corner turns into each class, averaged over networks trained on one set.

    The patch is optimised on one half of the test images and measured on the other. A class with a much higher share than the others
    suggests a trigger of this place and size; a trigger elsewhere, or of another shape, is not found.

    Args:
        networks: trained on the set.
        data: clean data.
        size: side of the patch in pixels.
        steps: Adam updates of the patch.
        seed: of the halves.

    Returns:
        One entry per class.
    """
    start, reaches = white_square(data.spec, size), []
    halves = torch.randperm(len(data.test), generator=generator(seed, "patches")).to(data.device).chunk(2)
    for target in data.classes:
        judged, learning = (half[data.test.labels[half] != target] for half in halves)
        images = data.normalised("test", learning[: 2 * chunk_size(data.train.images)])
        labels = torch.full((len(images),), target, device=data.device)
        white, learned = 0.0, 0.0
        for network in networks:
            network.eval()
            grey = dataclasses.replace(start, pixels=torch.full_like(start.pixels, 0.5))

            def loss(stamped: Tensor, network: nn.Module = network, labels: Tensor = labels) -> Tensor:
                return F.cross_entropy(network(stamped), labels)

            patch = optimised(grey, images, data.spec, loss, steps)
            white += _called(network, data, "test", judged, start, target) / len(networks)
            learned += _called(network, data, "test", judged, patch, target) / len(networks)
        reaches.append(Reach(target, 100 * white, 100 * learned))
    return reaches


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
    options = parser.parse_args(arguments)
    try:
        tiny = CondensedSet.load(options.set)
        data = fitted(tiny, load(options.data, **tiny.spec.given))
        if data.whitening is not None:
            raise InputError("the set is white; patches are looked for in plain images only.")
        rival = select(data, "random", tiny.counts, generator(0, "poisoning", "rival"))
        recipe = compared("laptop", tiny, data)
        trained = (train_on(source, options.network, recipe, options.networks) for source in (tiny, rival))
        ours, theirs = (patch_reach(networks, data, options.size) for networks in trained)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"percent of other images called the class; patches of {options.size} x {options.size} (in brackets: random images as many)")
    for own, other in zip(ours, theirs, strict=True):
        name = data.spec.classes[own.target]
        print(f"{name:>12}  white {own.white:5.1f} ({other.white:5.1f})  learned {own.learned:5.1f} ({other.learned:5.1f})")
    print("A class that stands out here and not in brackets is suspicious. Triggers of another place or shape are not found.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
