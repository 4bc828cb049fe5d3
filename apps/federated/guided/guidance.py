"""What a guided client has got from the federation, and what networks say about its images. Plain functions; no Flower."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.federated.received import network_with
from distill.data import ImageData
from distill.networks import Factory, create

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


def logits_of(data: ImageData, network: Factory, weights: Mapping[str, Tensor]) -> Tensor:
    """(N, K) outputs of the network with these weights on the training images, in evaluation mode."""
    model = create(network_with(network, weights), data.spec, torch.Generator().manual_seed(0), data.device).eval()
    with torch.no_grad():
        parts = torch.arange(len(data.train), device=data.device).split(CHUNK)
        return torch.cat([model(data.normalised("train", part)) for part in parts])


def losses_of(logits: Tensor, data: ImageData) -> Tensor:
    """(N,) cross-entropy of each training image."""
    return F.cross_entropy(logits, data.train.labels, reduction="none")
