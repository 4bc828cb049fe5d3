"""Whether a trained network has learned anything: its accuracy on real training images compared with that of a guess."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from distill.batches import chunk_size
from distill.data import ImageData
from distill.randomness import generator

IMAGES = 1000


@dataclass(frozen=True)
class Working:
    """How a network does on real training images.

    Attributes:
        accuracy: percent; 0 where its outputs are not finite.
        chance: percent, the share of the largest class in these images.
        images: number of these images.
    """

    accuracy: float
    chance: float
    images: int

    @property
    def at_chance(self) -> bool:
        """Whether the accuracy is within three standard deviations of chance, or below."""
        share = self.chance / 100
        return self.accuracy <= self.chance + 300 * math.sqrt(share * (1 - share) / self.images)

    def __str__(self) -> str:
        return f"{self.accuracy:.1f} % of {self.images:,} training images (chance {self.chance:.1f} %)"


def working(network: nn.Module | None, data: ImageData) -> Working:
    """Classify at most `IMAGES` training images, drawn with a fixed seed; test images are not used. None is a network that diverged."""
    chosen = torch.randperm(len(data.train), generator=generator(0, "import"))[:IMAGES].to(data.device)
    images, labels = data.normalised("train", chosen), data.train.labels[chosen]
    chance = 100 * int(torch.bincount(labels).max()) / len(labels)
    if network is None:
        return Working(0.0, chance, len(labels))
    network.eval()
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in images.split(chunk_size(images))])
    right = int((outputs.argmax(1) == labels).sum()) if bool(outputs.isfinite().all()) else 0
    return Working(100 * right / len(labels), chance, len(labels))
