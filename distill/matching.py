"""The losses that methods minimise: pure functions of statistics of real and synthetic images."""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from distill import sharding
from distill.batches import augmented, class_means, group_size, groups, segment_means
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

    The loss is a sum over classes, so computing it class by class is exact and needs the memory of one class. On a GPU it is computed in
    groups of classes whose activations are bounded, a class that is larger by itself in two passes: its mean, then its images' gradients.

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
    counts = [len(part) * (2 if flipped else 1) for part in images]
    everything = list(range(len(images)))
    own = everything if joint else sharding.own(everything)
    size = group_size(images[0])
    total = torch.zeros((), device=real.device)
    gradients: dict[int, Tensor] = {}
    for group in [own] if joint else groups(own, [counts[c] for c in own], size):
        parts, several = [images[c] for c in group], [counts[c] for c in group]
        seen = augmented(augment, shown(parts, flipped=flipped), group, several)
        rows = real[group[0] : group[-1] + 1 : 1 if joint else sharding.count()]
        if not joint and size and len(seen) > size:
            loss, slope = _in_two_passes(view, rows, seen, size, distance)
            found = torch.autograd.grad(seen, parts, slope)
        else:
            loss = distance(rows, segment_means(view(seen), several))
            found = torch.autograd.grad(loss, parts)
        gradients.update(zip(group, found, strict=True))
        total = total + loss.detach()
    if joint:  # every process has computed all classes
        return total, [gradients[c] for c in everything]
    return sharding.summed_by_class(total, gradients, images)


def synthetic_means(view: Callable[[Tensor], Tensor], images: Sequence[Tensor], augment: Callable[[Tensor, int], Tensor]) -> Tensor:
    """(K, D): the class means that `class_mean_gradients` compares, of all classes, without gradients and not as one batch."""
    counts, size, means = [len(part) for part in images], group_size(images[0]), []
    with torch.no_grad():
        for group in groups(list(range(len(images))), counts, size):
            several = [counts[c] for c in group]
            seen = augmented(augment, shown([images[c] for c in group], flipped=False), group, several)
            means.append(class_means(view, seen, several) if size and len(seen) > size else segment_means(view(seen), several))
    return torch.cat(means)


def shown(parts: Sequence[Tensor], *, flipped: bool) -> Tensor:
    """The images of some classes, one after the other; if ``flipped`` each class with its mirror images."""
    if len(parts) == 1:
        return mirrored(parts[0]) if flipped else parts[0]
    images = torch.cat(list(parts))
    return torch.stack([images, images.flip(3)], 1).flatten(0, 1) if flipped else images


def shown_labels(labels: Sequence[Tensor], *, flipped: bool) -> Tensor:
    """The labels of `shown`'s images."""
    if len(labels) == 1:
        return torch.cat([labels[0], labels[0]]) if flipped else labels[0]
    return torch.cat(list(labels)).repeat_interleave(2, 0) if flipped else torch.cat(list(labels))


def _in_two_passes(
    view: Callable[[Tensor], Tensor], real: Tensor, images: Tensor, size: int, distance: Callable[[Tensor, Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    """The distance of one class's mean from ``real`` (1, D) and its gradient for the images (n, C, H, W), ``size`` of them at a time."""
    pieces = images.detach().tensor_split(-(-len(images) // size))
    with torch.no_grad():
        mean = torch.stack([view(piece).sum(0) for piece in pieces]).sum(0, keepdim=True) / len(images)
    loss = distance(real, mean.requires_grad_(True))
    (slope,) = torch.autograd.grad(loss, mean)
    leaves = [piece.requires_grad_(True) for piece in pieces]
    gradients = [torch.autograd.grad(view(leaf).sum(0), leaf, slope[0] / len(images))[0] for leaf in leaves]
    return loss, torch.cat(gradients)


def calibration_gradients(
    network: Callable[[Tensor], Tensor], classes: Sequence[tuple[Tensor, Tensor]], augment: Callable[[Tensor, int], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """The mean cross-entropy of each class's images under a trained network, summed over classes, and its gradients.

    Zhang et al., DANCE, IJCAI 2024, eq. 8. ``classes`` are K pairs of images, leaves (n, C, H, W), and labels. Returns (loss, gradients),
    detached.
    """
    total = torch.zeros((), device=classes[0][0].device)
    gradients: dict[int, Tensor] = {}
    counts = [len(images) for images, _ in classes]
    own = sharding.own(list(range(len(classes))))
    for group in groups(own, [counts[c] for c in own], group_size(classes[0][0])):
        parts, several = [classes[c][0] for c in group], [counts[c] for c in group]
        outputs, labels = network(augmented(augment, shown(parts, flipped=False), group, several)), [classes[c][1] for c in group]
        if len(group) == 1:
            loss = F.cross_entropy(outputs, labels[0])
        else:
            loss = segment_means(F.cross_entropy(outputs, torch.cat(labels), reduction="none")[:, None], several).sum()
        gradients.update(zip(group, torch.autograd.grad(loss, parts), strict=True))
        total = total + loss.detach()
    return sharding.summed_by_class(total, gradients, [images for images, _ in classes])
