"""The exact gradient of a whole training run with respect to the images it was trained on, at constant memory.

A student takes N steps of plain SGD, w[i+1] = w[i] - lr * g(w[i], x[i]), and a loss L looks at w[N]. Instead of one graph through all
steps (memory grows with N), or of dropping the dependence of later weights on earlier images (which is not the gradient), keep the
weights and go backwards with the adjoint a = dL/dw:

    dL/dx[i]  = -lr * d(g(w[i], x[i]) . a[i+1]) / dx        dL/dlr = - sum over i of a[i+1] . g(w[i], x[i])
    a[i]      = a[i+1] - lr * H(w[i], x[i]) a[i+1]

Both products of one step are the derivative of one gradient along a[i+1], found by forward-over-reverse differentiation: about one more
forward and backward pass a step than a full unroll, and the memory of a single chunk of images plus N weight vectors.
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks import has_batchnorm
from distill.statistics import chunk_size, piece_count

# The batch that step i trains on, as a differentiable function of all images and labels: (i, images, labels) -> (x, y).
View = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Matched:
    """Value of the matching loss and its gradients; ``labels`` is None for hard labels. All detached."""

    loss: Tensor
    images: Tensor
    labels: Tensor | None
    lr: Tensor


def stateless(network: nn.Module) -> Callable[[Tensor, Tensor], Tensor]:
    """``network`` as a function of its flat parameters (P,) and images: logits. BatchNorm uses the batch's statistics, Dropout is off."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.train()
            module.track_running_stats, module.running_mean, module.running_var = False, None, None
            module.num_batches_tracked = None
        elif isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    named = [(name, p.shape, p.numel()) for name, p in network.named_parameters() if p.requires_grad]
    sizes = [size for _, _, size in named]

    def logits(weights: Tensor, images: Tensor) -> Tensor:
        parts = weights.split(sizes)
        parameters = {name: part.view(shape) for (name, shape, _), part in zip(named, parts, strict=True)}
        found: Tensor = torch.func.functional_call(network, parameters, (images,))
        return found

    return logits


def matching_gradient(
    network: nn.Module, start: Tensor, target: Tensor, images: Tensor, labels: Tensor, lr: Tensor, view: View, steps: int
) -> Matched:
    """Loss |w[N] - target|^2 / |start - target|^2 (Cazenavette et al., CVPR 2022, eq. 2) and its exact gradients.

    ``start`` and ``target`` (P,) flat weights; images (n, C, H, W); labels (n,) or, with gradients too, (n, K); lr 0-dimensional.
    """
    with warnings.catch_warnings():
        # torch loads its forward-mode formulas with a function of its own that it calls outdated.
        warnings.simplefilter("ignore", FutureWarning)
        import torch._decomp.decompositions_for_jvp
    logits = stateless(network)
    soft = labels.is_floating_point()

    def loss(weights: Tensor, x: Tensor, y: Tensor, count: int) -> Tensor:
        return F.cross_entropy(logits(weights, x), y, reduction="sum") / count

    def pieces(x: Tensor, y: Tensor) -> list[tuple[Tensor, Tensor]]:
        number = 1 if has_batchnorm(network) else piece_count(len(x), chunk_size(x))
        return list(zip(x.tensor_split(number), y.tensor_split(number), strict=True))

    weights = [start.detach()]
    for step in range(steps):
        with torch.no_grad():
            x, y = view(step, images, labels)
        gradient = torch.zeros_like(start)
        leaf = weights[-1].requires_grad_(True)
        for part, target_part in pieces(x, y):
            gradient += torch.autograd.grad(loss(leaf, part, target_part, len(x)), leaf)[0]
        leaf.requires_grad_(False)
        weights.append(leaf - lr * gradient)

    scale = (start - target).square().sum()
    value = (weights[-1] - target).square().sum() / scale
    adjoint = 2 * (weights.pop() - target) / scale
    image_gradient, label_gradient, lr_gradient = torch.zeros_like(images), torch.zeros_like(labels) if soft else None, torch.zeros_like(lr)
    for step in reversed(range(steps)):
        here = weights.pop()
        leaves = [images.detach().requires_grad_(True)] + ([labels.detach().requires_grad_(True)] if soft else [])
        x, y = view(step, leaves[0], leaves[1] if soft else labels)
        along = _along(loss, here, adjoint, pieces(x.detach(), y.detach()), soft)
        lr_gradient -= (adjoint * along.gradient).sum()
        adjoint = adjoint - lr * along.weights
        outputs, weighted = ([x, y], [along.images, along.labels]) if soft else ([x], [along.images])
        found = torch.autograd.grad(outputs, leaves, [-lr * w for w in weighted if w is not None])
        image_gradient += found[0]
        if label_gradient is not None:
            label_gradient += found[1]
    return Matched(value, image_gradient, label_gradient, lr_gradient)


@dataclass(frozen=True)
class _Along:
    """A step's gradient, and the derivatives along a direction v of its gradients: H v, d(g . v)/dx, d(g . v)/dy."""

    gradient: Tensor
    weights: Tensor
    images: Tensor
    labels: Tensor | None


def _along(loss: Callable[..., Tensor], weights: Tensor, v: Tensor, parts: list[tuple[Tensor, Tensor]], soft: bool) -> _Along:
    count = sum(len(x) for x, _ in parts)
    gradient, curved = torch.zeros_like(weights), torch.zeros_like(weights)
    images, labels = [], []
    for x, y in parts:
        gradients = torch.func.grad(loss, argnums=(0, 1, 2) if soft else (0, 1))

        def at(w: Tensor, x: Tensor = x, y: Tensor = y, gradients: Callable[..., tuple[Tensor, ...]] = gradients) -> tuple[Tensor, ...]:
            return gradients(w, x, y, count)

        primal, tangent = torch.func.jvp(at, (weights,), (v,))[:2]
        gradient += primal[0]
        curved += tangent[0]
        images.append(tangent[1])
        labels += list(tangent[2:])
    return _Along(gradient, curved, torch.cat(images), torch.cat(labels) if soft else None)
