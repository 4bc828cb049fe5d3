"""The exact gradient of a complete training run with respect to the images it was trained on, at constant memory.

A student takes N steps of plain SGD, w[i+1] = w[i] - lr * g(w[i], x[i]), and a loss L is a function of w[N]. Instead of one graph through
all steps (whose memory grows with N), or of ignoring that later weights depend on earlier images (which is not the gradient), the weights
are kept, and the adjoint a = dL/dw is computed backwards:

    dL/dx[i]  = -lr * d(g(w[i], x[i]) . a[i+1]) / dx        dL/dlr = - sum over i of a[i+1] . g(w[i], x[i])
    a[i]      = a[i+1] - lr * H(w[i], x[i]) a[i+1]

Both products of one step are derivatives of one gradient along a[i+1]: about one more forward and backward pass per step than a full
unroll, and the memory of one chunk of images and N weight vectors. They are computed by forward-over-reverse differentiation, and on a GPU
by reverse-over-reverse, which launches half as many operations.
"""

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batches import chunk_size, piece_count
from distill.fast import compiled
from distill.networks import has_batchnorm

# The batch that step i trains on, as a differentiable function of all images and labels: (i, images, labels) -> (x, y).
View = Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]]
# The same for several steps at once.
Views = Callable[[Sequence[int], Tensor, Tensor], Sequence[tuple[Tensor, Tensor]]]


@dataclass(frozen=True)
class Matched:
    """Value of the matching loss and its gradients, detached; ``labels`` is None for hard labels."""

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
        outputs: Tensor = torch.func.functional_call(network, parameters, (images,))
        return outputs

    return logits


class Student:
    """A network as functions of its flat weights: its gradient, and the derivatives of that gradient along a direction.

    Each is a sum over pieces of the batch that stay in a CPU's cache (the whole batch for BatchNorm).
    """

    def __init__(self, network: nn.Module, *, compile: bool = False, reverse: bool | None = None, mode: str = "default") -> None:
        """``compile`` and ``mode``: see `distill.fast`.

        ``reverse``: differentiate along a direction in reverse, None: on a GPU, if not compiled.
        """
        with warnings.catch_warnings():
            # torch loads its forward-mode formulas with a deprecated function.
            warnings.simplefilter("ignore", FutureWarning)
            import torch._decomp.decompositions_for_jvp
        self.logits = logits = stateless(network)
        self.whole = has_batchnorm(network)

        def loss(weights: Tensor, x: Tensor, y: Tensor, share: Tensor) -> Tensor:
            return F.cross_entropy(logits(weights, x), y, reduction="sum") * share

        def along(weights: Tensor, v: Tensor, x: Tensor, y: Tensor, share: Tensor) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            gradients = torch.func.grad(loss, argnums=(0, 1, 2) if y.is_floating_point() else (0, 1))
            outputs = torch.func.jvp(lambda w: gradients(w, x, y, share), (weights,), (v,))
            return outputs[0], outputs[1]

        def reversed_along(
            weights: Tensor, v: Tensor, x: Tensor, y: Tensor, share: Tensor
        ) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
            w, x, y = (part.detach().requires_grad_(part.is_floating_point()) for part in (weights, x, y))
            (slope,) = torch.autograd.grad(loss(w, x, y, share), w, create_graph=True)
            return (slope.detach(),), torch.autograd.grad(slope @ v, [w, x, y] if y.requires_grad else [w, x])

        gradient = torch.func.grad(loss)
        if reverse is None:
            reverse = not compile and next(network.parameters()).device.type != "cpu"
        self._gradient = compiled(gradient, mode) if compile else gradient
        self._along = reversed_along if reverse else compiled(along, mode) if compile else along

    def _pieces(self, x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        number = 1 if self.whole else piece_count(len(x), chunk_size(x))
        share = torch.full((), 1 / len(x), dtype=x.dtype, device=x.device)  # `torch.tensor` would make the host wait for a GPU
        for part, target in zip(x.tensor_split(number), y.tensor_split(number), strict=True):
            yield part, target, share

    def gradient(self, weights: Tensor, x: Tensor, y: Tensor) -> Tensor:
        """(P,) gradient g of the mean cross-entropy at ``weights`` (P,)."""
        total = torch.zeros_like(weights)
        for piece in self._pieces(x, y):
            total += self._gradient(weights, *piece)
        return total

    def along(self, weights: Tensor, v: Tensor, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, list[Tensor]]:
        """g (P,); its derivative along v, H v (P,); and d(g . v)/dx, for soft labels also d(g . v)/dy."""
        gradient, curved = torch.zeros_like(weights), torch.zeros_like(weights)
        inputs: list[tuple[Tensor, ...]] = []
        for piece in self._pieces(x, y):
            value, tangent = self._along(weights, v, *piece)
            gradient += value[0]
            curved += tangent[0]
            inputs.append(tangent[1:])
        return gradient, curved, [torch.cat(parts) for parts in zip(*inputs, strict=True)]


def stepwise(view: View) -> Views:
    """The batches of several steps, made one after the other by ``view``."""
    return lambda steps, images, labels: [view(step, images, labels) for step in steps]


def matching_gradient(
    student: Student,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    views: Views,
    *,
    steps: int,
    at_once: int = 1,
) -> Matched:
    """Loss |w[N] - target|^2 / |start - target|^2 (Cazenavette et al., CVPR 2022, eq. 2) and its exact gradients.

    Args:
        student: the network.
        start: flat weights (P,) before the first step.
        target: flat weights (P,).
        images: (n, C, H, W).
        labels: (n,), or (n, K) soft labels, which get gradients, too.
        lr: step size, 0-dimensional.
        views: the batches of several steps (`stepwise`: one after the other).
        steps: N.
        at_once: steps whose batches are made, and differentiated, at once.
    """
    soft = labels.is_floating_point()
    groups = [range(first, min(first + at_once, steps)) for first in range(0, steps, at_once)]
    weights = [start.detach()]
    for group in groups:
        with torch.no_grad():
            batches = views(group, images, labels)
        for x, y in batches:
            weights.append(weights[-1] - lr * student.gradient(weights[-1], x, y))

    scale = (start - target).square().sum()
    value = (weights[-1] - target).square().sum() / scale
    adjoint = 2 * (weights.pop() - target) / scale
    totals, lr_gradient = [torch.zeros_like(images)] + ([torch.zeros_like(labels)] if soft else []), torch.zeros_like(lr)
    for group in reversed(groups):
        leaves = [images.detach().requires_grad_(True)] + ([labels.detach().requires_grad_(True)] if soft else [])
        batches = views(group, leaves[0], leaves[1] if soft else labels)
        outputs: list[Tensor] = []
        gradients: list[Tensor] = []
        for x, y in reversed(batches):
            gradient, curved, inputs = student.along(weights.pop(), adjoint, x.detach(), y.detach())
            lr_gradient -= (adjoint * gradient).sum()
            adjoint = adjoint - lr * curved
            outputs += [x, y] if soft else [x]
            gradients += [-lr * part for part in inputs]
        for total, part in zip(totals, torch.autograd.grad(outputs, leaves, gradients), strict=True):
            total += part
    return Matched(value, totals[0], totals[1] if soft else None, lr_gradient)
