"""What Avalanche's SCR (Mai et al., CVPR workshops 2021) needs: an encoder with a projection, and a second view of each mini-batch.

SCR classifies by the nearest mean feature of the memory's images of each class; Avalanche averages a class's new mean with its last one.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from apps.continual.engine import avalanche
from distill.augment import augment, for_data, strategy
from distill.networks import embed
from distill.spec import DataSpec

TEMPERATURE, OUTPUTS = 0.07, 128  # of the projection; Gu et al. (SSD, AAAI 2024) train SCR with this temperature


class Encoder(nn.Module):
    """A network's features (N, D), without its last layer."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return embed(self.network, images)


class Unit(nn.Module):
    """Rows (N, D) of length 1."""

    def forward(self, rows: Tensor) -> Tensor:
        return nn.functional.normalize(rows)


def contrastive(network: nn.Module, spec: DataSpec) -> nn.Module:
    """Avalanche's SCR model of a network for images of ``spec``; the projection's weights come from torch's generator."""
    with torch.no_grad():
        width = embed(network, torch.zeros(2, *spec.shape, device=next(network.parameters()).device)).shape[1]
    projection = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, OUTPUTS), Unit())
    made: nn.Module = avalanche("avalanche.models").SCRModel(Encoder(network), projection)
    return made


def views(spec: DataSpec, draws: torch.Generator) -> Callable[[Tensor], Tensor]:
    """The second view of a batch (N, C, H, W): DSA's augmentation, digits are not flipped. The authors crop, flip, and change colours."""
    chosen = strategy(for_data(spec))
    return lambda images: augment(images, chosen, draws)
