"""Network gradients of several classes at once and their distance: the form for a GPU, where one class is too little work for a launch.

`torch.func.vmap` maps the gradient over classes, and second derivatives go through it. Classes of fewer images than the largest of a group
are filled up with images of weight 0. On a CPU gradients are computed class by class, in pieces that fit its cache (batches.py).
"""

import functools
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from distill import sharding
from distill.architectures import Network
from distill.batches import group_size, groups, mean_gradient
from distill.devices import sent
from distill.matching import gradient_distance
from distill.networks import has_batchnorm

GROUP_VALUES = 2**26  # of the gradients of a group's classes, 256 MiB in float32; matching holds about six times as much


def together(network: nn.Module, device: torch.device) -> bool:
    """Whether the classes' gradients are computed together: on a GPU, for the listed networks without BatchNorm or LayerNorm.

    A network of the user may do what `torch.func.vmap` cannot map. torch's second derivatives of layer norm under vmap are wrong (2.15).
    """
    if device.type == "cpu" or has_batchnorm(network):
        return False
    modules = list(network.modules())
    return any(isinstance(m, Network) for m in modules) and not any(isinstance(m, nn.LayerNorm) for m in modules)


def gradient_groups(network: nn.Module, images: Tensor, positions: Sequence[int], counts: Sequence[int]) -> list[list[int]]:
    """The classes at ``positions``, with ``counts`` images each, in groups that `class_gradients` takes; of one class if not `together`.

    ``images`` are any of the size and on the device of the classes' images.
    """
    if not together(network, images.device):
        return [[position] for position in positions]
    classes = max(1, GROUP_VALUES // sum(p.numel() for p in network.parameters() if p.requires_grad))
    return groups(positions, counts, min(group_size(images), classes * max(counts, default=1)))


def class_gradients(network: nn.Module, images: Tensor, labels: Tensor, counts: Sequence[int]) -> list[Tensor]:
    """Gradients of each class's mean cross-entropy, for each trainable parameter a tensor (K, *its shape), differentiable in the images.

    Args:
        network: without BatchNorm, whose images depend on each other.
        images: of K classes, one class after the other, (N, C, H, W).
        labels: (N,), or soft labels (N, L).
        counts: images of each class (K,).
    """
    parameters = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}

    def loss(parameters: dict[str, Tensor], x: Tensor, y: Tensor, shares: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(network, parameters, (x,)), y, reduction="none") @ shares

    each = vmap(grad(loss), in_dims=(None, 0, 0, 0))
    found: dict[str, Tensor] = each(
        parameters, _stacked(images, counts), _stacked(labels, counts), _shares(tuple(counts), images.dtype, images.device)
    )
    return list(found.values())


def matched(
    network: nn.Module,
    real: Sequence[Sequence[Tensor]],
    images: Tensor,
    labels: Tensor,
    counts: Sequence[int],
    *,
    distance: str,
    leaves: Sequence[Tensor],
) -> tuple[Tensor, Sequence[Tensor]]:
    """The distance of each class's gradient from a given one, summed over classes, and its gradients for the tensors of the images.

    Args:
        network: see `class_gradients`; with one class, any.
        real: gradients by class and parameter.
        images: of the classes, one after the other (N, C, H, W), a function of ``leaves``.
        labels: (N,), or soft labels (N, L).
        counts: images of each class.
        distance: see `distill.matching.gradient_distance`.
        leaves: what to differentiate for.

    Returns:
        The loss and the gradients, detached. A single class of more images than a GPU's group takes is computed in two passes.
    """
    size = group_size(images)
    if len(counts) == 1 and size and len(images) > size and not has_batchnorm(network):
        loss, slope = in_two_passes(network, real[0], images, labels, distance, size)
        return loss, torch.autograd.grad(images, leaves, slope)
    if len(counts) == 1:
        parameters = [p for p in network.parameters() if p.requires_grad]
        gradient = torch.autograd.grad(F.cross_entropy(network(images), labels), parameters, create_graph=True)
        loss = gradient_distance(real[0], gradient, distance)
    else:
        stacked = [torch.stack(rows) for rows in zip(*real, strict=True)]
        distances: Tensor = vmap(lambda r, s: gradient_distance(r, s, distance))(stacked, class_gradients(network, images, labels, counts))
        loss = distances.sum()
    return loss.detach(), torch.autograd.grad(loss, leaves)


def in_two_passes(
    network: nn.Module, real: Sequence[Tensor], images: Tensor, labels: Tensor, distance: str, size: int
) -> tuple[Tensor, Tensor]:
    """The distance of ``real`` from the gradient of all images' mean cross-entropy, and its slope for them, ``size`` images at a time.

    The gradient is summed first; the slope of the distance then weights the second derivatives of each piece. Both results are detached.
    """
    gradient = [part.requires_grad_(True) for part in mean_gradient(network, images.detach(), labels)]
    loss = gradient_distance(real, gradient, distance)
    weights = torch.autograd.grad(loss, gradient, materialize_grads=True)  # biases may not count
    parameters = [p for p in network.parameters() if p.requires_grad]
    slopes: list[Tensor] = []
    for part, target in zip(images.detach().split(size), labels.split(size), strict=True):
        part.requires_grad_(True)
        mean = F.cross_entropy(network(part), target, reduction="sum") / len(images)
        slopes += torch.autograd.grad(torch.autograd.grad(mean, parameters, create_graph=True), [part], weights)
    return loss.detach(), torch.cat(slopes)


def _stacked(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """(K, n, ...): rows (N, ...) class by class; a smaller class is filled up with its last row."""
    if len(set(counts)) == 1:
        return rows.reshape(len(counts), counts[0], *rows.shape[1:])
    return rows[_places(tuple(counts), rows.device)]


@functools.lru_cache(maxsize=64)
def _places(counts: tuple[int, ...], device: torch.device) -> Tensor:
    sizes = torch.tensor(counts)[:, None]
    places = sizes.cumsum(0) - sizes + torch.minimum(torch.arange(max(counts)), sizes - 1)
    return sent(places, device)


@functools.lru_cache(maxsize=64)
def _shares(counts: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(K, n): one over a class's count for its images, and 0 for what fills it up."""
    sizes = torch.tensor(counts)[:, None]
    shares: Tensor = (torch.arange(max(counts)) < sizes) / sizes.double()
    return sent(shares.to(dtype), device)


def mean_over_classes(network: nn.Module, gradients: list[list[Tensor]]) -> list[Tensor]:
    """The mean gradient of all classes, one tensor per trainable parameter.

    Args:
        network: that the gradients are of.
        gradients: one list a class; those of classes that another process computes are not read.
    """
    own = [gradient for position, gradient in enumerate(gradients) if sharding.mine(position)]
    parameters = [p for p in network.parameters() if p.requires_grad]
    sums = [torch.stack(parts).sum(0) for parts in zip(*own, strict=True)] or [torch.zeros_like(p) for p in parameters]
    return [part / len(gradients) for part in sharding.summed(sums)]
