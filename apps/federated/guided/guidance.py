"""What a guided client has got from the federation, and what networks say about its images. Plain functions; no Flower."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.federated.received import network_with
from distill.data import ImageData
from distill.networks import Factory, create
from distill.spec import DataSpec

CHUNK = 512  # images at a time


@dataclass(frozen=True)
class Guidance:
    """What a client has got.

    Attributes:
        weights: of the server's model in this round.
        before: those of the last round in which the client took part, or None.
        more: the bytes of further arrays by name; None: the server sent none.
    """

    weights: Mapping[str, Tensor]
    before: Mapping[str, Tensor] | None = None
    more: Mapping[str, bytes] | None = None


def received_model(network: Factory, weights: Mapping[str, Tensor], spec: DataSpec, device: torch.device) -> nn.Module:
    """The network with these weights, in evaluation mode."""
    return create(network_with(network, weights), spec, torch.Generator().manual_seed(0), device).eval()


def class_numbers(labels: Tensor) -> Tensor:
    """(n,) of labels (n,) or soft ones (n, K)."""
    return labels.argmax(1) if labels.is_floating_point() else labels


def logits_of(data: ImageData, network: Factory, weights: Mapping[str, Tensor]) -> Tensor:
    """(N, K) outputs of the network with these weights on the training images, in evaluation mode."""
    model = received_model(network, weights, data.spec, data.device)
    with torch.no_grad():
        parts = torch.arange(len(data.train), device=data.device).split(CHUNK)
        return torch.cat([model(data.normalised("train", part)) for part in parts])


def losses_of(logits: Tensor, data: ImageData) -> Tensor:
    """(N,) cross-entropy of each training image."""
    return F.cross_entropy(logits, data.train.labels, reduction="none")
