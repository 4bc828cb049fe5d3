"""Whether an imported set works: one small network is trained on it. Accuracy at chance means that something was read wrongly."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.decode import as_text
from distill.errors import Diverged, InputError
from distill.evaluation import accuracy, fitted
from distill.foreign.reading import VALUES, read_foreign
from distill.networks import Factory
from distill.randomness import generator
from distill.train import train_network

IMAGES = 1000
NETWORK = "ConvNetW32"


@dataclass(frozen=True)
class Working:
    """How a network that was trained on the set does on real training images.

    Attributes:
        accuracy: percent; 0 where its training diverged.
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


def try_out(condensed: CondensedSet, data: ImageData, network: Factory = NETWORK) -> Working:
    """Train one network on the set and classify at most `IMAGES` training images; test images are not used."""
    data = fitted(condensed, data)
    chosen = torch.randperm(len(data.train), generator=generator(0, "import"))[:IMAGES].to(data.device)
    part, nothing = data.train.at(chosen), data.train.at(chosen[:0])
    few = ImageData(data.spec, part, nothing, nothing, data.whitening)
    chance = 100 * int(torch.bincount(part.labels).max()) / len(part)
    try:
        found = accuracy(train_network(condensed, network, "laptop", 0, data.device), few, "train")
    except Diverged:
        found = 0.0
    return Working(found, chance, len(part))


def explanation(
    condensed: CondensedSet,
    paths: Sequence[str | Path],
    data: ImageData,
    *,
    labels: str | None = None,
    experiment: int | None = None,
    network: Factory = NETWORK,
) -> str:
    """Sentences on why a set may be at chance: other readings of the same files that are not, else what to compare.

    Args:
        condensed: the set as it was read.
        paths: its files.
        data: the data.
        labels: as it was given to `read_foreign`.
        experiment: as it was given.
        network: network of `try_out`.
    """
    config = condensed.provenance.config
    better = []
    lr: float | Literal["none"] = condensed.lr or "none"
    for values in VALUES:
        if values == config["values"]:
            continue
        try:
            other = read_foreign(paths, data, values=values, decode=as_text(condensed.decode), lr=lr, labels=labels, experiment=experiment)
            works = try_out(other, data, network)
        except InputError:
            continue
        if not works.at_chance:
            better.append(f"--values {values} gives {works}")
    if better:
        return f"the images were read as {config['values']}; {' and '.join(better)}."
    return (
        f"no other reading of the values does better. Compare the order of the classes with {', '.join(condensed.spec.classes[:3])}, ...; "
        "the data set; and whether the run had diverged (its own accuracy is in its log)."
    )
