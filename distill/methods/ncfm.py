"""NCFM: match characteristic functions of features in blended, trained networks.

Wang et al., "Dataset Distillation with Neural Characteristic Function: A Minmax Perspective", CVPR 2025. The loop is dance.py's; the loss
compares class means of cosines and sines of random projections (`distill.matching.characteristic_distance`). The network that samples
frequencies, which the authors' configurations leave out, is left out here, too.
"""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.batches import Embed, Staged
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.devices import normal
from distill.matching import characteristic_distance, mean_distance, phases
from distill.methods.dance import DANCE, DANCEConfig
from distill.methods.presets import Paper, Presets
from distill.networks import Factory
from distill.statistics import RealStatistics

SCALE = 300.0  # of the loss, in the authors' code

PRESETS = Presets(
    paper=lambda data, ipc: Paper("gszfwsb/NCFM, NCFM/NCFM.py and config/", protocol="ncfm"),
    short={"iterations": 500, "pool_networks": 2, "pool_epochs": 2, "frequencies": 512},
    digits={
        "iterations": 100,
        "batch_real": 64,
        "network": "ConvNetW32",
        "decode": "none",
        "augmentation": "auto",
        "pool_networks": 2,
        "frequencies": 256,
    },
    memory={
        "decode": "none",
        "clamp": False,
        "iterations": 60,
        "batch_real": 64,
        "network": "ConvNetW32",
        "pool_networks": 1,
        "pool_epochs": 1,
        "frequencies": 256,
    },
    client={"augmentation": "none", "iterations": 100, "batch_real": 128, "frequencies": 256},
    sweep={"batch_real": 32},
    cost=3,
    published_ipc={"": 50},
    above="compare decode 'formation:2' and 'none' on validation images: the formation loses at many images a class",
)
STEP_SIZE = "NCFM's images are updated by Adam, so that lr_img is the step of a pixel: the authors take 0.01 for pixels in [0, 1]."


@config_class
class NCFMConfig(DANCEConfig):
    """Defaults are those of the authors' configurations, without decay and without halving of the step size.

    Attributes:
        distance: "cf", the characteristic functions' distance, or "mmd", the squared distance of the same class means: an estimate of the
            maximum mean discrepancy under a Gaussian kernel, which M3D compares (Zhang et al., AAAI 2024; its settings are not published).
        frequencies: number of random projections, drawn anew in each step.
        bandwidth: standard deviation of the frequencies; one over the width of the kernel.
        amplitude: weight of the difference of amplitudes against that of phases, which has one minus it.
        lr_img: of Adam, for normalised pixels; None is 0.01 for pixels in [0, 1].
    """

    iterations: Annotated[int, Field(ge=1)] = 20_000
    batch_real: Annotated[int, Field(ge=1)] = 1024
    optimizer: Literal["sgd", "adam"] = "adam"
    updates: Literal["together", "per_class"] = "together"
    distance: Literal["cf", "mmd"] = "cf"
    frequencies: Annotated[int, Field(ge=1)] = 4096
    bandwidth: Annotated[float, Field(gt=0)] = 1.0
    amplitude: Annotated[float, Field(ge=0, le=1)] = 0.5


class NCFM(DANCE):
    """Characteristic functions of features in blended trained networks, at new frequencies in each step."""

    presets = PRESETS
    norm = 1.0
    config: NCFMConfig

    def __init__(self, config: NCFMConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        super().__init__(config, initial, network)
        mean_std = sum(initial.spec.std) / len(initial.spec.std)
        self.lr_img = config.lr_img or 0.01 / mean_std
        self.width: int | None = None
        self.projections = torch.empty(0)

    def _network(self, statistics: RealStatistics, generator: torch.Generator) -> nn.Module:
        """This step's network, and its frequencies (D, k)."""
        network = super()._network(statistics, generator)
        generator = self.pool.source or generator
        if self.width is None:
            with torch.no_grad():
                self.width = self.features(network, self.synthetic.images[:2]).shape[1]
        self.projections = self.config.bandwidth * normal((self.width, self.config.frequencies), generator, statistics.device)
        return network

    def seen(self, features: Tensor) -> Tensor:
        """Cosines and sines at this step's frequencies, (N, 2 k), each row of length 1."""
        return phases(features, self.projections)

    def real_embedding(self) -> Embed:
        """Projects the features of a batch at once: twice as fast as in the pieces in which the network computes them."""
        return Staged(self.real_features, self.seen)

    def distance(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """The configured distance, times `SCALE` as in the authors' code."""
        if self.config.distance == "mmd":
            return SCALE * mean_distance(real, synthetic)
        return SCALE * characteristic_distance(real, synthetic, self.config.amplitude)
