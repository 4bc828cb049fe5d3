"""SSD: gradient matching in a network that trains on the real data, with distances to other stored images kept, for replay memories.

Gu et al., "Summarizing Stream Data for Memory-Constrained Online Continual Learning", AAAI 2024, and its code (vimar-gu/SSD). The loop is
gm.py's. The network takes a step on the real images after each image update; in a memory these are the recent images of the stream and the
stored images of all other classes. The second term compares distances between the features of a class's images and those of stored images:
their mean over real images with their mean over synthetic ones. What the authors' distance is exactly could not be verified; here it is
Euclidean, of features of length 1, and its absolute differences are averaged over stored images. Differences: a new network after
``outer_steps`` updates, where the authors' network stays for the stream.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.batches import Augment, augmented
from distill.class_gradients import mean_over_classes
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.devices import sent
from distill.errors import InputError
from distill.matching import shown
from distill.methods.gm import GM, Distance, GMConfig
from distill.methods.idc import image_step
from distill.methods.presets import Presets
from distill.networks import Factory, embed
from distill.statistics import RealStatistics
from distill.synthetic import Initial

PRESETS = Presets(
    short={"iterations": 6, "outer_steps": 20, "batch_real": 64},
    digits={"iterations": 5, "outer_steps": 20, "batch_real": 64, "network": "ConvNetW32"},
    # A memory does not know the variance of its stream's pixels: IDC's rule at ten images and a variance of 0.1.
    memory={"iterations": 2, "outer_steps": 20, "batch_real": 64, "network": "ConvNetW32", "lr_img": 0.05},
    sweep={"batch_real": 64},
    cost=5,
    published_ipc={"": 10},  # a memory of 1,000 images of 100 classes
    above="take herding: real images are enough where there are many",
)
STEP_SIZE = (
    "SSD's first term is a sum of squared differences of gradients, so its scale goes with them; its authors take lr_img 0.004 at ten "
    "images a class. None is IDC's rule, 0.005 times ipc / 10 over the variance of the pixels."
)


@config_class
class SSDConfig(GMConfig):
    """As `GMConfig`, with the authors' distance, momentum and augmentation.

    Attributes:
        inner_epochs: steps of the network on the real images between two image updates.
        relation: weight of the distances to stored images; 0 leaves the term out.
        anchors: stored images that distances go to, drawn for each image update.
    """

    iterations: Annotated[int, Field(ge=1)] = 10
    outer_steps: Annotated[int, Field(ge=1)] | None = 100
    inner_epochs: Literal[0, 1] = 1
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    distance: Distance = "convolutions-mse"
    augmentation: str = "color_crop"
    initial: Initial = "real"
    relation: Annotated[float, Field(ge=0)] = 1.0
    anchors: Annotated[int, Field(ge=1)] = 10

    def __post_init__(self) -> None:
        """The step size depends on the data, which the config does not know."""


class SSD(GM):
    """Gradient matching and distances to stored images, in a network that trains on the real data."""

    presets = PRESETS
    config: SSDConfig

    def __init__(self, config: SSDConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        super().__init__(config, initial, network)
        self.lr_img = config.lr_img or image_step(initial.spec, initial.ipc, config.distance)

    def prepare(self, statistics: RealStatistics, *, progress: bool | None = None) -> None:
        """As GM's. Raises `InputError` for private statistics with ``relation``: an account plans one release a step."""
        if self.config.relation and statistics.privacy is not None:
            raise InputError(
                f"relation is {self.config.relation:g}, which needs a second release of private data in each step; allowed: relation = 0."
            )
        super().prepare(statistics, progress=progress)

    def compared(
        self,
        network: nn.Module,
        real: list[list[Tensor]],
        classes: list[tuple[Tensor, Tensor]],
        augment: Augment,
        statistics: RealStatistics,
        generator: torch.Generator,
    ) -> tuple[Tensor, list[Tensor]]:
        """GM's loss and gradients, and those of the distances to stored images. The network's next step is taken from ``real``."""
        loss, gradients = super().compared(network, real, classes, augment, statistics, generator)
        self._next = mean_over_classes(network, real)
        if not self.config.relation:
            return loss, gradients
        anchors = self._anchors(network, generator)
        wanted = statistics.class_means(lambda images: distances(network, images, anchors), self.config.batch_real, augment, generator)
        leaves, counts = [images for images, _ in classes], [len(images) for images, _ in classes]
        several = [count * (2 if self.config.flipped else 1) for count in counts]
        seen = augmented(augment, shown(leaves, flipped=self.config.flipped), list(range(len(classes))), several)
        found = torch.stack([part.mean(0) for part in distances(network, seen, anchors).split(several)])
        relation = self.config.relation * (wanted - found).abs().mean(1).sum()
        more = torch.autograd.grad(relation, leaves)
        return loss + relation.detach(), [a + b for a, b in zip(gradients, more, strict=True)]

    def _anchors(self, network: nn.Module, generator: torch.Generator) -> Tensor:
        """Features (A, D) of length 1 of stored images of all classes."""
        images = self.synthetic.images
        drawn = torch.randperm(len(images), generator=generator, device=generator.device)[: self.config.anchors]
        with torch.no_grad():
            return F.normalize(embed(network, images[sent(drawn, images.device)]))

    def _train(self, network: nn.Module, generator: torch.Generator) -> None:
        """A step of plain SGD on the real images that the synthetic ones were just compared with, all classes alike."""
        if self.config.inner_epochs:
            with torch.no_grad():
                for parameter, gradient in zip((p for p in network.parameters() if p.requires_grad), self._next, strict=True):
                    parameter.sub_(gradient, alpha=self.config.lr_net)


def distances(network: nn.Module, images: Tensor, anchors: Tensor) -> Tensor:
    """Euclidean distances (N, A) of the features of images (N, C, H, W), of length 1, to ``anchors`` (A, D) of length 1."""
    # Not by a matrix product, which loses small distances; where an image is an anchor, `cdist` has the slope 0.
    return torch.cdist(F.normalize(embed(network, images)), anchors, compute_mode="donot_use_mm_for_euclid_dist")
