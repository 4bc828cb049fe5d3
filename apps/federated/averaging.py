"""The rivals that send weights: local SGD with its corrections, and how SCAFFOLD and FedNova put the results together. No Flower.

FedProx: Li et al., MLSys 2020. SCAFFOLD: Karimireddy et al., ICML 2020, option II. FedNova: Wang et al., NeurIPS 2020.
Weights are state dicts of floats and (BatchNorm's counters) whole numbers; updates are of the trainable ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.federated.settings import LocalConfig
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

    ``proximal_mu`` adds mu / 2 * |w - w_received|^2 to the loss (FedProx); ``correction`` (c - c_k by parameter name) is added to every
    gradient (SCAFFOLD).
    """
    centre = {name: value.detach().clone() for name, value in network.named_parameters()}
    optimiser = torch.optim.SGD(network.parameters(), config.lr, config.momentum, weight_decay=config.weight_decay)
    count, steps = len(data.train), 0
    network.train()
    for _ in range(config.epochs):
        for batch in torch.randperm(count, generator=generator, device=generator.device).split(config.batch_size):
            if config.max_steps is not None and steps >= config.max_steps:
                break
            images, labels = data.normalised("train", batch), data.train.labels[batch.to(data.device)]
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


def fednova(weights: Weights, results: Sequence[LocalResult], normalisers: Sequence[float] | None = None) -> Weights:
    """w - tau_eff * sum_k p_k (w - w_k) / |a_k|_1, with p_k = n_k / n and tau_eff = sum_k p_k |a_k|_1.

    ``normalisers`` are the |a_k|_1 of tau_eff where they are not the stated ones: a client may not stretch everybody's steps by its own.
    """
    total = sum(result.examples for result in results)
    shares = [result.examples / total for result in results]
    lengths = normalisers or [result.normaliser for result in results]
    effective = sum(share * length for share, length in zip(shares, lengths, strict=True))
    averages = weighted_mean([result.weights for result in results], shares)  # for what is no float
    for name, old in weights.items():
        if old.is_floating_point():
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
    weights: Weights, control: Weights, results: Sequence[LocalResult], changes: Sequence[Weights], clients: int
) -> tuple[Weights, Weights]:
    """(new weights, new server control): the mean of the clients' weights (server step size 1), c + (1 / N) sum of changes."""
    mean = weighted_mean([result.weights for result in results], [1.0] * len(results))
    moved = {name: value + torch.stack([change[name] for change in changes]).sum(0) / clients for name, value in control.items()}
    return {name: mean[name] for name in weights}, moved
