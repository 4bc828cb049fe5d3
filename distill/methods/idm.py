"""IDM: distribution matching in a queue of networks at several stages of training, with a cross-entropy that grows with their accuracy.

Zhao et al., "Improved Distribution Matching for Dataset Condensation", CVPR 2023. The loss of means and the loop are dm.py's.
"""

from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.configure import config_class
from distill.matching import calibration_gradients, class_mean_gradients
from distill.methods.dm import DM, DMConfig
from distill.methods.presets import Paper, Presets
from distill.methods.siamese import shared_draws
from distill.networks import embed_and_logits, has_batchnorm
from distill.shared_config import PoolKind
from distill.statistics import RealStatistics

PRESETS = Presets(
    paper=lambda data, ipc: Paper("uitrbn/IDM, command.txt and IDM_cifar10.py", protocol="dsa", settings=weight(data, ipc)),
    short={"iterations": 500, "lr_img": 5.0, "batch_real": 128, "pool_networks": 2, "pool_epochs": 2},
    digits={"iterations": 100, "lr_img": 5.0, "batch_real": 64, "network": "ConvNetW32", "decode": "none", "pool_networks": 2},
    memory={
        "decode": "none",
        "iterations": 60,
        "lr_img": 5.0,
        "batch_real": 64,
        "network": "ConvNetW32",
        "pool_networks": 1,
        "pool_epochs": 1,
    },
    client={"augmentation": "none", "iterations": 100, "lr_img": 5.0, "batch_real": 128},
    sweep={"batch_real": 32},
    cost=3,
    published_ipc={"": 50},
    above="compare decode 'formation:2' and 'none' on validation images",
)
STEP_SIZE = "IDM's loss is DM's plus a weighted cross-entropy; its authors take lr_img=0.2 for normalised pixels, one update a class."


def weight(data: str, ipc: int) -> dict[str, float]:
    """The authors' ``entropy_weight`` (and at one image a class their batch) for a data set and number of images a class."""
    table = {"cifar10": (0.5, 0.5, 0.1), "cifar100": (0.5, 0.1, 0.1)}
    row = table.get(data, (0.5, 0.5, 0.1))
    found: dict[str, float] = {"entropy_weight": row[0 if ipc < 10 else 1 if ipc < 50 else 2]}
    return found if ipc > 1 else {**found, "batch_real": 5000}


@config_class
class IDMConfig(DMConfig):
    """Defaults are those of the authors' commands.

    ``entropy_weight`` times the network's accuracy on real images in percent, as their code has it, weighs the cross-entropy. The queue is
    the pool: each step takes any snapshot of any of its trainings. Their networks train between two steps; here they are trained before.
    """

    iterations: Annotated[int, Field(ge=1)] = 20_000
    lr_img: Annotated[float, Field(gt=0)] | None = 0.2
    decode: str = "formation:2"
    updates: Literal["together", "per_class"] = "per_class"
    pool: PoolKind = "stages"
    pool_networks: Annotated[int, Field(ge=1)] = 100
    pool_epochs: Annotated[int, Field(ge=1)] = 10
    entropy_weight: Annotated[float, Field(ge=0)] = 0.5


class IDM(DM):
    """One step: a network of any stage, its accuracy on a real batch, one image update."""

    presets = PRESETS
    config: IDMConfig
    own_column: Tensor | None = None  # (K, 1): each class's place among the outputs

    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """One iteration; returns ``loss``, summed over classes, and the network's ``accuracy`` in percent (0-dimensional)."""
        network = self._network(statistics, generator)
        self.batches.renew(statistics, self.real_features, self.config.batch_real, generator, step=self.synthetic.updates)
        augment = shared_draws(self.strategy, statistics, generator)
        joint, width = has_batchnorm(network), statistics.spec.num_classes

        def embedding(images: Tensor) -> Tensor:
            return self.with_predictions(network, images, width)

        both = statistics.class_means(embedding, self.config.batch_real, augment, generator, joint=joint)
        real, predicted = both[:, :-width], both[:, -width:]
        if self.own_column is None:
            self.own_column = torch.tensor(statistics.classes, device=both.device)[:, None]
        accuracy = 100 * predicted.gather(1, self.own_column).mean()
        classes = self.synthetic.per_class()
        images = [part for part, _ in classes]
        loss, gradients = class_mean_gradients(self.view, real, images, augment, joint=joint, flipped=self.config.flipped)
        entropy, more = calibration_gradients(network, classes, augment)
        factor = self.config.entropy_weight * accuracy
        gradients = [torch.cat(gradients) + factor * torch.cat(more)]
        gradients = self.pool.calibrated(gradients, classes, augment, statistics, generator, step=self.synthetic.updates)
        self.synthetic.descend(gradients, self.lr_img, self.config.momentum)
        return {"loss": loss + factor * entropy, "accuracy": accuracy}

    def with_predictions(self, network: nn.Module, images: Tensor, classes: int) -> Tensor:
        """(N, D + K): what is compared, and the predicted class as zeros and a one, so that class means hold the network's accuracy."""
        both = embed_and_logits(network, images)
        features = both if self.config.logits else both[:, :-classes]
        return torch.cat([features, F.one_hot(both[:, -classes:].argmax(1), classes).to(features)], 1)
