"""The rivals that send weights: local SGD with its corrections, and how SCAFFOLD, FedNova and FedDyn put the results together. No Flower.

FedProx: Li et al., MLSys 2020. SCAFFOLD: Karimireddy et al., ICML 2020, option II. FedNova: Wang et al., NeurIPS 2020. FedDyn: Acar et al.,
ICLR 2021. Weights are state dicts of floats and (BatchNorm's counters) whole numbers. Corrections are of the trainable ones; BatchNorm's
running statistics are averaged, and of whole numbers the largest is taken.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.federated.tables import LocalConfig
from distill.augment import augment, for_data, strategy
from distill.batches import chunks
from distill.data import ImageData

Weights = dict[str, Tensor]


@dataclass(frozen=True)
class LocalResult:
    """A client's weights after its ``steps``; ``normaliser`` is the 1-norm of the weights that its gradients got in the sum (FedNova),
    ``change`` what became of its control (SCAFFOLD)."""

    weights: Weights
    examples: int
    steps: int
    normaliser: float
    change: Weights | None = None


def local_sgd(
    network: nn.Module,
    data: ImageData,
    config: LocalConfig,
    generator: torch.Generator,
    proximal_mu: float = 0.0,
    correction: Mapping[str, Tensor] | None = None,
) -> LocalResult:
    """SGD with momentum on one shard, from the network's present weights, which it changes.

    Args:
        network: the network with the received weights.
        data: the client's images; those of the train split are used, in batches of normalised images.
        config: number of steps, step size, momentum, weight decay, augmentation.
        generator: of the order of the images and, with an augmentation, of its parameters.
        proximal_mu: adds mu / 2 * |w - w_received|^2 to the loss (FedProx; FedDyn's alpha).
        correction: by parameter name, added to every gradient: c - c_k (SCAFFOLD), minus the client's kept gradient (FedDyn).
    """
    augmentation = strategy(for_data(data.spec) if config.augmentation == "auto" else config.augmentation)
    centre = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    count, steps = len(data.train), 0
    network.train()
    for _ in range(config.epochs):
        for batch in torch.randperm(count, generator=generator, device=generator.device).split(config.batch_size):
            if config.max_steps is not None and steps >= config.max_steps:
                break
            images, labels = data.normalised("train", batch), data.train.labels[batch.to(data.device)]
            if augmentation.transforms:
                images = augment(images, augmentation, generator)
            optimiser.zero_grad()
            for part, target in chunks(images, labels):
                (F.cross_entropy(network(part), target, reduction="sum") / len(images)).backward()
            for name, parameter in network.named_parameters():
                assert parameter.grad is not None
                if proximal_mu:
                    parameter.grad.add_(parameter.detach() - centre[name], alpha=proximal_mu)
                if correction is not None:
                    parameter.grad.add_(correction[name])
            optimiser.step()
            steps += 1
    return LocalResult(state(network), count, steps, normaliser(steps, config.momentum))


def state(network: nn.Module) -> Weights:
    """A copy of the network's state dict on the CPU."""
    return {name: value.detach().cpu().clone() for name, value in network.state_dict().items()}


def normaliser(steps: int, momentum: float) -> float:
    """FedNova, section 4: the 1-norm of a_k for SGD with momentum m, [tau - m (1 - m^tau) / (1 - m)] / (1 - m); tau without momentum."""
    return (steps - momentum * (1 - momentum**steps) / (1 - momentum)) / (1 - momentum)


def weighted_mean(items: Sequence[Weights], shares: Sequence[float]) -> Weights:
    """Mean by ``shares`` (any positive numbers); whole-number entries take the largest."""
    total = float(sum(shares))
    means = {}
    for name, first in items[0].items():
        if first.is_floating_point():
            means[name] = (
                torch.stack([item[name].double() * (share / total) for item, share in zip(items, shares, strict=True)])
                .sum(0)
                .to(first.dtype)
            )
        else:
            means[name] = torch.stack([item[name] for item in items]).amax(0)
    return means


def fednova(
    weights: Weights,
    results: Sequence[LocalResult],
    normalisers: Sequence[float] | None = None,
    trained: Collection[str] | None = None,
) -> Weights:
    """w - tau_eff * sum_k p_k (w - w_k) / |a_k|_1, with p_k = n_k / n and tau_eff = sum_k p_k |a_k|_1.

    Args:
        weights: what the clients received, w.
        results: of the clients.
        normalisers: the |a_k|_1 of tau_eff where they are not the stated ones: a client may not stretch everybody's steps by its own.
        trained: names of the parameters; other entries are means by p_k. None: every floating-point entry.
    """
    total = sum(result.examples for result in results)
    shares = [result.examples / total for result in results]
    lengths = normalisers or [result.normaliser for result in results]
    effective = sum(share * length for share, length in zip(shares, lengths, strict=True))
    averages = weighted_mean([result.weights for result in results], shares)  # for what is not trained
    for name, old in weights.items():
        if old.is_floating_point() and (trained is None or name in trained):
            step = torch.stack(
                [
                    (share / result.normaliser) * (old.double() - result.weights[name].double())
                    for share, result in zip(shares, results, strict=True)
                ]
            ).sum(0)
            averages[name] = (old.double() - effective * step).to(old.dtype)
    return averages


def control_variate(own: Weights, server: Weights, received: Weights, result: LocalResult, lr: float) -> Weights:
    """SCAFFOLD, option II: c_k - c + (w_received - w_k) / (K lr).

    With momentum K is the 1-norm of the gradients' weights, so that the last term stays a mean gradient.
    """
    scale = 1.0 / (result.normaliser * lr)
    return {name: own[name] - server[name] + scale * (received[name] - result.weights[name]) for name in own}


def scaffold(
    weights: Weights,
    control: Weights,
    results: Sequence[LocalResult],
    changes: Sequence[Weights],
    clients: int,
    shares: Sequence[float] | None = None,
) -> tuple[Weights, Weights]:
    """The server's step of size 1: the mean of the clients' weights, and c + |S| / N times the mean of the changes.

    Args:
        weights: what the clients received.
        control: c, by parameter name.
        results: of the clients S that took part.
        changes: of their control variates.
        clients: N, the number of all clients.
        shares: the weight of each client in both means. None: equal ones, as in the paper, so that c moves by (1 / N) sum of changes.

    Returns:
        (new weights, new control).
    """
    counted = shares or [1.0] * len(results)
    mean, moved = weighted_mean([result.weights for result in results], counted), weighted_mean(changes, counted)
    part = len(results) / clients
    return {name: mean[name] for name in weights}, {name: value + part * moved[name] for name, value in control.items()}


def feddyn(weights: Weights, control: Weights, results: Sequence[LocalResult], clients: int, alpha: float) -> tuple[Weights, Weights]:
    """FedDyn, algorithm 1: h - (alpha / N) sum_k (w_k - w), and the mean of the w_k minus h / alpha; clients count equally.

    Args:
        weights: what the clients received, w.
        control: h, by parameter name.
        results: of the clients that took part.
        clients: N, the number of all clients.
        alpha: the weight of the regularisation.

    Returns:
        (new weights, new h), both of the parameters only.
    """
    mean = weighted_mean([result.weights for result in results], [1.0] * len(results))
    part = alpha * len(results) / clients
    moved = {name: value - part * (mean[name] - weights[name]) for name, value in control.items()}
    return {name: mean[name] - value / alpha for name, value in moved.items()}, moved


def kept_gradient(kept: Weights, received: Weights, result: LocalResult, alpha: float) -> Weights:
    """FedDyn's state of a client after its round: the kept gradient minus alpha (w_k - w_received)."""
    return {name: value - alpha * (result.weights[name] - received[name]) for name, value in kept.items()}
