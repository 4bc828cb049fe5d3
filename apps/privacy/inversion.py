"""Gradient inversion: what does a client's gradient of one image show?

Zhu, Liu and Han, "Deep Leakage from Gradients" (DLG), NeurIPS 2019: images whose gradient comes closest to the one that was sent are
searched. Zhao, Mopuri and Bilen, "iDLG: Improved Deep Leakage from Gradients", 2020: of cross-entropy of one image only the true class has
a negative gradient of the last layer's bias, so that the label is read and the image alone is searched.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from apps.privacy.distances import structure
from distill.configure import config_class
from distill.devices import normal
from distill.errors import InputError
from distill.networks import Factory, create
from distill.spec import DataSpec

DLG = "dlg"  # `dlg_network`'s name in a study
MOST_DECIBELS = 100.0  # of a copy, whose error is 0
# A search ends when the distance of the gradients has not fallen by this much in so many iterations.
SMALLEST_GAIN, PATIENCE = 1e-12, 5


@config_class
class Inversion:
    """How an image is searched.

    Attributes:
        rule: "idlg" reads the label from the gradient, "dlg" searches it with the image.
        iterations: of L-BFGS at most, each with up to 20 evaluations, as in the authors' code.
        starts: of random images; the one whose gradient comes closest counts.
    """

    rule: Literal["idlg", "dlg"] = "idlg"
    iterations: Annotated[int, Field(ge=1)] = 100
    starts: Annotated[int, Field(ge=1)] = 2


@dataclass(frozen=True)
class Found:
    """What a gradient revealed: an image (C, H, W), normalised, its label, and the squared distance that is left between the gradients."""

    image: Tensor
    label: int
    distance: float


def dlg_network(spec: DataSpec) -> nn.Module:
    """The network of DLG's experiments: three 5 x 5 convolutions of 12 channels, sigmoids, one linear layer, weights of U(-0.5, 0.5)."""
    layers: list[nn.Module] = []
    height, width, inputs = spec.height, spec.width, spec.channels
    for stride in (2, 2, 1):
        layers += [nn.Conv2d(inputs, 12, 5, padding=2, stride=stride), nn.Sigmoid()]
        height, width, inputs = math.ceil(height / stride), math.ceil(width / stride), 12
    network = nn.Sequential(*layers, nn.Flatten(), nn.Linear(12 * height * width, spec.num_classes))
    with torch.no_grad():
        for weights in network.parameters():
            weights.uniform_(-0.5, 0.5)
    return network


def gradient_of(network: nn.Module, images: Tensor, targets: Tensor, *, differentiable: bool = False) -> list[Tensor]:
    """The gradient of the mean cross-entropy for each parameter: what a client of one step sends.

    Args:
        network: in the mode in which it is trained.
        images: (N, C, H, W), normalised.
        targets: (N,) class numbers, or (N, K) probabilities.
        differentiable: whether it can be differentiated again.
    """
    loss = F.cross_entropy(network(images), targets)
    return list(torch.autograd.grad(loss, list(network.parameters()), create_graph=differentiable))


def label_in(gradients: Sequence[Tensor]) -> int:
    """The label of the one image that a gradient is of (iDLG): cross-entropy's gradient for the last bias is p_k - [k is the label].

    ``gradients`` end with those of the last linear layer's weights (K, D) and bias (K,). Raises `InputError` for others.
    """
    if len(gradients) < 2 or gradients[-1].dim() != 1 or gradients[-2].dim() != 2 or len(gradients[-1]) != len(gradients[-2]):
        raise InputError(
            "the gradient does not end with a linear layer's weights and bias; allowed: a network whose last layer has a bias."
        )
    return int(gradients[-1].argmin())


def invert(
    network: nn.Module, gradients: Sequence[Tensor], spec: DataSpec, draws: torch.Generator, config: Inversion | None = None
) -> Found:
    """Search the image whose gradient was sent: the least sum of squared differences over all parameters, by L-BFGS.

    Args:
        network: with the weights at which the gradient was taken; float64 finds finer images.
        gradients: one for each of its parameters, of one image.
        spec: of the data.
        draws: of the starts.
        config: see there.
    """
    config = config or Inversion()
    label = label_in(gradients) if config.rule == "idlg" else None
    return min(
        (_searched(network, gradients, spec, draws, label, config.iterations) for _ in range(config.starts)), key=lambda one: one.distance
    )


def _searched(
    network: nn.Module, gradients: Sequence[Tensor], spec: DataSpec, draws: torch.Generator, label: int | None, iterations: int
) -> Found:
    """From one start; without a ``label`` its logits are searched, too."""
    like = gradients[0]
    image = normal((1, *spec.shape), draws, torch.device("cpu")).to(like).requires_grad_(True)
    logits = normal((1, spec.num_classes), draws, torch.device("cpu")).to(like).requires_grad_(True)
    searched = [image, logits] if label is None else [image]
    known = torch.tensor([label or 0], device=like.device)
    search = torch.optim.LBFGS(searched, lr=1.0, max_iter=20, history_size=100)

    def apart(*, differentiable: bool) -> Tensor:
        tried = gradient_of(network, image, logits.softmax(1) if label is None else known, differentiable=differentiable)
        return torch.stack([(ours - theirs).square().sum() for ours, theirs in zip(tried, gradients, strict=True)]).sum()

    def closure() -> Tensor:
        distance = apart(differentiable=True)
        for leaf, slope in zip(searched, torch.autograd.grad(distance, searched), strict=True):
            leaf.grad = slope
        return distance.detach()

    best, stale = Found(image.detach()[0].clone(), label or 0, math.inf), 0
    for _ in range(iterations):
        search.step(closure)
        distance = float(apart(differentiable=False))
        stale = 0 if best.distance - distance > SMALLEST_GAIN else stale + 1
        if distance < best.distance:
            best = Found(image.detach()[0].clone(), int(logits.detach().argmax()) if label is None else label, distance)
        if stale == PATIENCE or not math.isfinite(distance):
            break
    return best


def decibels(found: Tensor, true: Tensor) -> Tensor:
    """(N,): peak signal-to-noise ratio of pixels (N, C, H, W) in [0, 1], at most `MOST_DECIBELS`."""
    error = (found.double() - true.double()).square().flatten(1).mean(1)
    return (-10 * error.clamp_min(10 ** (-MOST_DECIBELS / 10)).log10()).to(torch.float64)


def likeness(found: Tensor, true: Tensor) -> Tensor:
    """(N,): mean SSIM of pixels (N, C, H, W) in [0, 1], each with its own (`apps.privacy.distances.structure`)."""
    return torch.stack([1 - structure(one[None].double(), other[None].double())[0, 0] for one, other in zip(found, true, strict=True)])


def created(network: Factory, spec: DataSpec, draws: torch.Generator) -> nn.Module:
    """A fresh network in float64, in evaluation mode: batch statistics of one image mean nothing."""
    return create(network, spec, draws).double().eval()
