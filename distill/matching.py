"""The losses that methods minimise: pure functions of statistics of real and synthetic images."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import sharding
from distill.errors import InputError, unknown_name

TINY = 1e-12  # under roots, whose slope is infinite at zero
GRADIENT_DISTANCES = ("layerwise", "mse", "cosine", "convolutions-mse", "convolutions-l1")


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], distance: str = "layerwise") -> Tensor:
    """Distance of two network gradients (scalar).

    - ``layerwise``: Zhao et al., ICLR 2021, eq. 9 and appendix: for each weight tensor one minus the cosine of each output row,
      summed over rows and layers; biases and norm parameters (one-dimensional) do not count.
    - ``mse``: squared Euclidean distance of all parameters' gradients; ``cosine``: one minus the cosine of the two full vectors.
    - ``convolutions-mse`` and ``convolutions-l1``: sum of the squared or absolute differences over the weights of convolutions, that is,
      tensors of three dimensions or more (IDC's code, Kim et al., ICML 2022).

    ``real`` and ``synthetic`` hold one tensor per parameter, in the same order.
    """
    if distance == "layerwise":
        rows = [_row_distance(r, s) for r, s in zip(real, synthetic, strict=True) if r.ndim > 1]
        return torch.stack(rows).sum()
    if distance in ("convolutions-mse", "convolutions-l1"):
        differences = [r - s for r, s in zip(real, synthetic, strict=True) if r.ndim > 2]
        if not differences:
            raise InputError("gradients of convolutions are compared, and the network has none; take another network or distance.")
        return torch.stack([d.square().sum() if distance.endswith("mse") else d.abs().sum() for d in differences]).sum()
    if distance not in GRADIENT_DISTANCES:
        raise unknown_name("gradient distance", distance, GRADIENT_DISTANCES)
    a = torch.cat([r.flatten() for r in real])
    b = torch.cat([s.flatten() for s in synthetic])
    if distance == "mse":
        return (a - b).square().sum()
    cosine: Tensor = (a * b).sum() / (a.norm() * b.norm() + 1e-6)
    return 1 - cosine


def _row_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    # A three-dimensional weight is a layer norm over (C, H, W): each channel is a row, as in the authors' code.
    a, b = real.flatten(1), synthetic.flatten(1)
    cosine: Tensor = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)
    return (1 - cosine).sum()


def mean_distance(real: Tensor, synthetic: Tensor) -> Tensor:
    """Zhao and Bilen, WACV 2023, eq. 6: squared distance of class means (K, D), summed over features and classes (scalar)."""
    return (real - synthetic).square().sum()


def mirrored(images: Tensor) -> Tensor:
    """(2 N, C, H, W): images and their mirror images."""
    return torch.cat([images, images.flip(3)])


def characteristic_distance(real: Tensor, synthetic: Tensor, amplitude: float) -> Tensor:
    """Wang et al., NCFM, CVPR 2025, eq. 7: how far two characteristic functions are apart at k frequencies, summed over classes (scalar).

    ``real`` and ``synthetic`` (K, 2 k) are class means of cosines and then sines, each divided by the root of k (`phases`). The distance at
    a frequency is the root of ``amplitude`` * (difference of absolute values)^2 + (1 - ``amplitude``) * 2 (|r| |s| - Re(r conj s)); it is
    averaged over frequencies.
    """
    k = real.shape[1] // 2
    r, s = (torch.complex(part[:, :k], part[:, k:]) * k**0.5 for part in (real, synthetic))
    sizes = (r.real.square() + r.imag.square() + TINY).sqrt(), (s.real.square() + s.imag.square() + TINY).sqrt()
    aligned = r.real * s.real + r.imag * s.imag
    squares = amplitude * (sizes[0] - sizes[1]).square() + (1 - amplitude) * 2 * (sizes[0] * sizes[1] - aligned).clamp_min(0)
    total: Tensor = (squares + TINY).sqrt().mean(1).sum()
    return total


def phases(features: Tensor, frequencies: Tensor) -> Tensor:
    """(N, 2 k) of features (N, D), scaled to length 1, and frequencies (D, k): cosines, then sines, over the root of k.

    Every row has length 1, whatever the image: a class mean moves by at most 2 / n when one of n images changes.
    """
    angles = F.normalize(features) @ frequencies
    rows: Tensor = torch.cat([angles.cos(), angles.sin()], 1) / frequencies.shape[1] ** 0.5
    return rows


def class_mean_gradients(
    view: Callable[[Tensor], Tensor],
    real: Tensor,
    images: Sequence[Tensor],
    augment: Callable[[Tensor, int], Tensor],
    *,
    joint: bool,
    flipped: bool = False,
    distance: Callable[[Tensor, Tensor], Tensor] = mean_distance,
) -> tuple[Tensor, list[Tensor]]:
    """A distance of class means, and its gradients for the images.

    The loss is a sum over classes, so computing it class by class is exact and needs the memory of one class.

    Args:
        view: maps images (n, C, H, W) to features (n, D).
        real: class means of real features, (K, D).
        images: K leaves (n, C, H, W) that require gradients.
        augment: applied to the images of each class, with the class's position.
        joint: compute all classes as one batch, as BatchNorm requires.
        flipped: double the images with their mirror images (FYI, Son et al., ECCV 2024).
        distance: of class means (K, D) of both sides, a sum over classes.

    Returns:
        The loss and the gradients, in the order of ``images``; detached.
    """
    everything = list(range(len(images)))
    own = everything if joint else [c for c in everything if sharding.mine(c)]
    # A GPU likes few large kernels.
    groups = [own] if joint or real.device.type != "cpu" else [[c] for c in own]
    total = torch.zeros((), device=real.device)
    gradients = [torch.zeros_like(part) for part in images]
    for group in groups:
        parts = [augment(mirrored(images[c]) if flipped else images[c], c) for c in group]
        means = torch.stack([part.mean(0) for part in view(torch.cat(parts)).split([len(part) for part in parts])])
        loss = distance(real[group], means)
        for c, gradient in zip(group, torch.autograd.grad(loss, [images[c] for c in group]), strict=True):
            gradients[c] = gradient
        total = total + loss.detach()
    if not joint:
        sharding.summed([total, *gradients])
    return total, gradients


def calibration_gradients(
    network: Callable[[Tensor], Tensor], classes: Sequence[tuple[Tensor, Tensor]], augment: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The mean cross-entropy of each class's images under a trained network, summed over classes, and its gradients.

    Zhang et al., DANCE, IJCAI 2024, eq. 8. ``classes`` are K pairs of images, leaves (n, C, H, W), and labels. Returns (loss, gradients),
    detached.
    """
    total = torch.zeros((), device=classes[0][0].device)
    gradients = [torch.zeros_like(images) for images, _ in classes]
    for place, (images, labels) in enumerate(classes):
        if sharding.mine(place):
            loss = F.cross_entropy(network(augment(images, place)), labels)
            (gradients[place],) = torch.autograd.grad(loss, [images])
            total = total + loss.detach()
    sharding.summed([total, *gradients])
    return total, gradients
