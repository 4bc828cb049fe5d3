"""Each method's step as its paper defines it, class by class and batch by batch, without the optimisations of this project.

These loops are what `python -m benchmarks.core` compares with, and what tests take for the truth. They use the networks and the
augmentation of the core, plain autograd and nothing else. Every function returns (loss, gradient for the images (N, C, H, W)).
"""

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.networks import activations, embed

Augment = Callable[[Tensor, int], Tensor]


def dm(network: nn.Module, real: Sequence[Tensor], images: Tensor, counts: Sequence[int], augment: Augment) -> tuple[Tensor, Tensor]:
    """Zhao and Bilen, WACV 2023, eq. 6: squared distance of the mean features, summed over classes."""
    images = images.detach().requires_grad_(True)
    loss = torch.zeros((), dtype=images.dtype, device=images.device)
    for c, synthetic in enumerate(images.split(list(counts))):
        with torch.no_grad():
            target = embed(network, augment(real[c], c)).mean(0)
        loss = loss + (target - embed(network, augment(synthetic, c)).mean(0)).square().sum()
    (gradient,) = torch.autograd.grad(loss, [images])
    return loss.detach(), gradient


def gm(network: nn.Module, real: Sequence[Tensor], images: Tensor, counts: Sequence[int], augment: Augment) -> tuple[Tensor, Tensor]:
    """Zhao, Mopuri and Bilen, ICLR 2021, eq. 9 and its appendix: one minus the cosine of each output row of each layer's gradient."""
    parameters = list(network.parameters())
    images = images.detach().requires_grad_(True)
    loss = torch.zeros((), dtype=images.dtype, device=images.device)
    for c, synthetic in enumerate(images.split(list(counts))):
        labels = torch.full((len(real[c]),), c, device=images.device)
        target = torch.autograd.grad(F.cross_entropy(network(augment(real[c], c)), labels), parameters)
        ours = F.cross_entropy(network(augment(synthetic, c)), labels[:1].expand(len(synthetic)))
        gradients = torch.autograd.grad(ours, parameters, create_graph=True)
        for a, b in zip(target, gradients, strict=True):
            if a.ndim > 1:
                a, b = a.flatten(1), b.flatten(1)
                loss = loss + (1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1) + 1e-6)).sum()
    (gradient,) = torch.autograd.grad(loss, [images])
    return loss.detach(), gradient


def datadam(
    network: nn.Module,
    real: Sequence[Tensor],
    images: Tensor,
    counts: Sequence[int],
    augment: Augment,
    *,
    power: float,
    weight: float,
    feature_weight: float,
) -> tuple[Tensor, Tensor]:
    """Sajedi et al., ICCV 2023, eq. 2 to 6: distances of mean attention maps of all layers but the last, and of mean features."""
    images = images.detach().requires_grad_(True)
    loss = torch.zeros((), dtype=images.dtype, device=images.device)
    for c, synthetic in enumerate(images.split(list(counts))):
        with torch.no_grad():
            targets = activations(network, augment(real[c], c))
        ours = activations(network, augment(synthetic, c))
        for layer in range(len(ours) - 2):
            means = []
            for activation in (targets[layer], ours[layer]):
                attention = activation.abs().pow(power).sum(1).flatten(1)
                means.append((attention / attention.norm(dim=1, keepdim=True).clamp_min(1e-12)).mean(0))
            loss = loss + weight * (means[0] - means[1]).square().sum()
        loss = loss + weight * feature_weight * (targets[-1].mean(0) - ours[-1].mean(0)).square().sum()
    (gradient,) = torch.autograd.grad(loss, [images])
    return loss.detach(), gradient


def mtt(
    network: nn.Module,
    start: Tensor,
    target: Tensor,
    images: Tensor,
    labels: Tensor,
    lr: Tensor,
    view: Callable[[int, Tensor, Tensor], tuple[Tensor, Tensor]],
    *,
    steps: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """Cazenavette et al., CVPR 2022, eq. 2, by one graph through all steps: (loss, gradients for images, lr and soft labels)."""
    names = [name for name, _ in network.named_parameters()]
    shapes = [p.shape for p in network.parameters()]
    images, lr = images.detach().requires_grad_(True), lr.detach().requires_grad_(True)
    soft = labels.is_floating_point()
    labels = labels.detach().requires_grad_(soft)
    weights = start.detach().requires_grad_(True)
    for step in range(steps):
        x, y = view(step, images, labels)
        parts = [p.view(s) for p, s in zip(weights.split([s.numel() for s in shapes]), shapes, strict=True)]
        loss = F.cross_entropy(torch.func.functional_call(network, dict(zip(names, parts, strict=True)), (x,)), y)
        (gradient,) = torch.autograd.grad(loss, [weights], create_graph=True)
        weights = weights - lr * gradient
    value = (weights - target).square().sum() / (start - target).square().sum()
    gradients = torch.autograd.grad(value, [images, lr] + ([labels] if soft else []))
    return value.detach(), gradients[0], gradients[1], gradients[2] if soft else None


def train(network: nn.Module, images: Tensor, labels: Tensor, steps: int, lr: float, transform: Callable[[Tensor], Tensor]) -> None:
    """``steps`` of SGD with momentum 0.9 and decay 5e-4 on the full set as one batch, as the papers train evaluation networks."""
    optimiser = torch.optim.SGD(network.parameters(), lr=lr, momentum=0.9, weight_decay=5e-4)
    network.train()
    for _ in range(steps):
        optimiser.zero_grad()
        F.cross_entropy(network(transform(images)), labels).backward()
        optimiser.step()


def test_pass(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Percentage right, in batches of 256 without gradients."""
    network.eval()
    with torch.no_grad():
        right = sum(int((network(x).argmax(1) == y).sum()) for x, y in zip(images.split(256), labels.split(256), strict=True))
    return 100.0 * right / len(labels)
