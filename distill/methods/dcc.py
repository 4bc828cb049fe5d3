"""DCC and DSAC: gradient matching of all classes together, so that differences between classes count.

Lee et al., "Dataset Condensation with Contrastive Signals", ICML 2022. The loop is gm.py's; DCC compares the gradient of the full
synthetic set with the mean of the classes' real gradients, DSAC does so under DSA's augmentation.
"""

import dataclasses
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.batches import Augment
from distill.class_gradients import matched
from distill.configure import config_class
from distill.matching import shown, shown_labels
from distill.methods import dsa, gm
from distill.methods.presets import Paper
from distill.statistics import RealStatistics
from distill.synthetic import Initial

PRESETS = dataclasses.replace(gm.PRESETS, paper=lambda data, ipc: Paper("Saehyung-Lee/DCC, main.py", protocol="dc"))
DSAC_PRESETS = dataclasses.replace(dsa.PRESETS, paper=lambda data, ipc: Paper("Saehyung-Lee/DCC, main.py --method DSA", protocol="dsa"))
STEP_SIZE = "DCC's loss is a sum of cosine distances over layers and their output units, once for all classes; its authors take lr_img=0.1."


@config_class
class DCCConfig(gm.GMConfig):
    """As `GMConfig`, from real images. The classes are compared one by one in the first ``warm_updates`` image updates of each of the first
    ``warm_networks`` networks, and together afterwards (the authors' code)."""

    initial: Initial = "real"
    warm_networks: Annotated[int, Field(ge=0)] = 250
    warm_updates: Annotated[int, Field(ge=0)] = 10


@config_class
class DSACConfig(DCCConfig):
    """As `DCCConfig`, with DSA's strategy for the data."""

    augmentation: str = "auto"


class DCC(gm.GM):
    """Gradient matching of all classes together, after a first phase class by class."""

    presets = PRESETS
    config: DCCConfig

    def compares_together(self, place: int, statistics: RealStatistics) -> bool:
        """After the first phase, which is class by class. A private run has none, whose releases would be further ones."""
        return (
            statistics.privacy is not None
            or self.steps_done // self.outer_steps >= self.config.warm_networks
            or place >= self.config.warm_updates
        )

    def compared(
        self,
        network: nn.Module,
        real: list[list[Tensor]],
        classes: list[tuple[Tensor, Tensor]],
        augment: Augment,
        statistics: RealStatistics,
        generator: torch.Generator,
    ) -> tuple[Tensor, list[Tensor]]:
        """One distance for all classes, whose images go through one and the same transform."""
        if len(real) > 1:
            return super().compared(network, real, classes, augment, statistics, generator)
        leaves, flipped = [images for images, _ in classes], self.config.flipped
        images = augment(torch.cat([shown([part], flipped=flipped) for part in leaves]), 0)
        labels = torch.cat([shown_labels([part], flipped=flipped) for _, part in classes])
        loss, gradients = matched(network, real, images, labels, [len(images)], distance=self.config.distance, leaves=leaves)
        return loss, list(gradients)


class DSAC(DCC):
    """The same as DCC with the augmentation of DSA."""

    presets = DSAC_PRESETS
