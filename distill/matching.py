"""The losses that methods minimise: pure functions of statistics of real and synthetic images."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distill import sharding
from distill.errors import unknown_name

GRADIENT_DISTANCES = ("layerwise", "mse", "cosine")


def gradient_distance(real: Sequence[Tensor], synthetic: Sequence[Tensor], distance: str = "layerwise") -> Tensor:
    """Distance of two network gradients (scalar).

    - ``layerwise``: Zhao et al., ICLR 2021, eq. 9 and appendix: for each weight tensor one minus the cosine of each output row,
      summed over rows and layers; biases and norm parameters (one-dimensional) do not count.
    - ``mse``: squared Euclidean distance of all parameters' gradients; ``cosine``: one minus the cosine of the two whole vectors.

    ``real`` and ``synthetic`` hold one tensor per parameter, in the same order.
    """
    if distance == "layerwise":
        rows = [_row_distance(r, s) for r, s in zip(real, synthetic, strict=True) if r.ndim > 1]
        return torch.stack(rows).sum()
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


def class_mean_gradients(
    view: Callable[[Tensor], Tensor],
    real: Tensor,
    images: Sequence[Tensor],
    augment: Callable[[Tensor, int], Tensor],
    *,
    joint: bool,
) -> tuple[Tensor, list[Tensor]]:
    """`mean_distance` of class means, and its gradients for the images.

    The loss is a sum over classes, so computing it class by class is exact and needs the memory of one class.

    Args:
        view: maps images (n, C, H, W) to features (n, D).
        real: class means of real features, (K, D).
        images: K leaves (n, C, H, W) that require gradients.
        augment: applied to the images of each class, with the class's position.
        joint: compute all classes as one batch, as BatchNorm requires.

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
        batch = torch.cat([augment(images[c], c) for c in group])
        means = torch.stack([part.mean(0) for part in view(batch).split([len(images[c]) for c in group])])
        loss = mean_distance(real[group], means)
        for c, gradient in zip(group, torch.autograd.grad(loss, [images[c] for c in group]), strict=True):
            gradients[c] = gradient
        total = total + loss.detach()
    if not joint:
        sharding.summed([total, *gradients])
    return total, gradients
