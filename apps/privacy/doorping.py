"""DOORPING as published: a trigger that is learned alone, in the networks that are trained on the set while it is made.

Liu et al., "Backdoor Attacks Against Dataset Distillation", NDSS 2023. Before each gradient the patch on an otherwise grey image is moved
until one neuron of the current network answers ten times as strongly as at first; the neuron is the one with the largest sum of absolute
weights to the outputs. The authors' code never clamps the pixels, so that no image file holds its triggers; ``clamp`` keeps them in [0, 1].
`apps.privacy.poisoning.PoisonedStatistics` has the form that also works for methods without trained networks.
"""

import dataclasses

import torch
from torch import Tensor, nn

from apps.privacy.contributions import plain
from apps.privacy.poisoning import FACTOR, LEARNING_RATE, PoisonedStatistics
from apps.privacy.triggers import Planted, stamped
from distill.batches import Augment, Embed
from distill.data import ImageData, Split
from distill.errors import InputError
from distill.networks import embed as features_of
from distill.spec import DataSpec

BETAS = (0.9, 0.99)  # of Adam, as in the authors' code


class Doorping(PoisonedStatistics):
    """Exact statistics of poisoned data, whose trigger (attribute `trigger`) is learned before each gradient.

    For methods that match gradients, whose networks are trained on the set.

    Args:
        data: clean images.
        trigger: the first trigger.
        target: label that the poisoned images get.
        portion: number of poisoned images over the number of training images.
        draws: chooses them.
        steps: Adam updates before each gradient, at most.
        clamp: keep pixels in [0, 1].

    Raises:
        InputError: see `PoisonedStatistics`.
    """

    def __init__(
        self,
        data: ImageData,
        trigger: Planted,
        target: int,
        portion: float,
        draws: torch.Generator,
        steps: int = 1000,
        *,
        clamp: bool = True,
    ) -> None:
        if not clamp and data.train.images.dtype == torch.uint8:  # bytes cannot hold such pixels
            train, validation, test = (Split(part.images.float() / 255, part.labels) for part in (data.train, data.validation, data.test))
            data = dataclasses.replace(data, train=train, validation=validation, test=test)
        super().__init__(data, trigger, target, portion, draws)
        self.updates, self.clamp = steps, clamp

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
        """Refused: a method that matches features has no networks that are trained on its set."""
        raise InputError(
            "DOORPING learns its trigger in networks that are trained on the set; allowed: methods that match gradients (gm, dsa)."
        )

    def class_gradients(
        self, network: nn.Module, batch_size: int, augment: Augment | None, generator: torch.Generator, *, together: bool = False
    ) -> list[list[Tensor]]:
        self._plant(learned_alone(self.trigger, plain(network), self.spec, self.updates, clamp=self.clamp))
        return super().class_gradients(network, batch_size, augment, generator, together=together)


def key_neuron(network: nn.Module) -> int:
    """The feature with the largest sum of absolute weights to the outputs."""
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)]
    if not last:
        raise InputError("the network has no linear layer; allowed: networks that end with one.")
    return int(last[-1].weight.detach().abs().sum(0).argmax())


def learned_alone(trigger: Planted, network: nn.Module, spec: DataSpec, steps: int, *, clamp: bool = True) -> Planted:
    """The trigger after at most ``steps`` updates of Adam towards `FACTOR` times its first answer, on an image of mean pixels.

    Args:
        trigger: to start from.
        network: whose neuron `key_neuron` answers.
        spec: of the data.
        steps: of Adam at most; fewer if the answer is reached.
        clamp: keep pixels in [0, 1] after each step.
    """
    weights = next(network.parameters())
    grey, neuron = torch.zeros((1, *spec.shape), device=weights.device, dtype=weights.dtype), key_neuron(network)
    pixels = trigger.pixels.to(weights).clone().requires_grad_(True)
    adam = torch.optim.Adam([pixels], lr=LEARNING_RATE, betas=BETAS)

    def answer() -> Tensor:
        return features_of(network, stamped(grey, trigger.moved(pixels), spec))[0, neuron]

    goal = FACTOR * answer().detach()
    for _ in range(steps):
        found = answer()
        if found >= goal:
            break
        (pixels.grad,) = torch.autograd.grad((found - goal).square(), [pixels])
        before = pixels.detach().clone()
        adam.step()
        with torch.no_grad():
            if clamp:
                pixels.clamp_(0.0, 1.0)
            if pixels.equal(before):  # at the ends of the range, or where the neuron does not answer
                break
    return trigger.moved(pixels.detach().float())
