"""CAFE: make the mean activations of several layers alike, and let the class means of synthetic features classify real ones.

Wang et al., "CAFE: Learning to Condense Dataset by Aligning Features", CVPR 2022. Networks train on the synthetic images between two
updates, as in gm.py. The authors end these trainings by rules that read accuracies on real images; here their lengths are fixed.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import skip_init

from distill import sharding
from distill.configure import config_class
from distill.matching import class_mean_gradients, synthetic_means
from distill.methods.gm import GM, GMConfig
from distill.methods.presets import Paper, Presets
from distill.methods.siamese import shared_draws
from distill.networks import activations, embed
from distill.statistics import RealStatistics

PRESETS = Presets(
    paper=lambda data, ipc: Paper("kaiwang960112/CAFE, distill.py", protocol="dc"),
    short={"iterations": 60, "outer_steps": 1, "batch_real": 64, "initial": "real"},
    digits={"iterations": 100, "outer_steps": 1, "batch_real": 64, "initial": "real", "network": "ConvNetW32"},
    memory={"iterations": 60, "outer_steps": 1, "inner_epochs": 1, "batch_real": 64, "network": "ConvNetW32", "initial": "real"},
    sweep={"batch_real": 64},
    cost=4,
    published_ipc={"": 50},
    above="take dm",
)
STEP_SIZE = (
    "CAFE's loss sums squared differences over all activations of a layer, so its scale grows with the size of the maps; the authors take "
    "lr_img=0.1."
)


@config_class
class CAFEConfig(GMConfig):
    """Defaults are those of the authors' code, with a fixed number of updates for each network.

    Attributes:
        layer_weights: of the mean activations of the first layers, the last of them for all further ones.
        discrimination: weight of the cross-entropy of real features against the class means of synthetic ones.
    """

    iterations: Annotated[int, Field(ge=1)] = 2000
    outer_steps: Annotated[int, Field(ge=1)] | None = 10
    inner_epochs: Annotated[int, Field(ge=0)] | None = 1
    layer_weights: tuple[Annotated[float, Field(ge=0)], ...] = (0.1, 0.1, 1.0)
    discrimination: Annotated[float, Field(ge=0)] = 0.01


class Head(nn.Module):
    """A classifier of a network's features whose rows are class means; only they are parameters that train."""

    def __init__(self, network: nn.Module, means: Tensor) -> None:
        super().__init__()
        self.features = (network,)  # in a tuple, so that its weights are not this module's parameters
        self.rows = skip_init(nn.Linear, means.shape[1], len(means), bias=False, device=means.device)  # draws nothing
        self.rows.weight = nn.Parameter(means.detach().clone())

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            features = embed(self.features[0], images)
        outputs: Tensor = self.rows(features)
        return outputs


class CAFE(GM):
    """One step: one image update; every ``outer_steps`` of them a new network, trained on the images in between."""

    presets, matches = PRESETS, "gradients"
    config: CAFEConfig
    ids: Tensor | None = None  # (K,) the classes, on the device

    def aligned(self, network: nn.Module, images: Tensor) -> Tensor:
        """(N, D): the activations of all layers and the features, each times the root of its weight in the loss, side by side.

        The features count twice: as the last layer of the alignment, and as the authors' centres.
        """
        *maps, features = activations(network, images)
        weights = self.config.layer_weights
        parts = [weights[min(place, len(weights) - 1)] ** 0.5 * part.flatten(1) for place, part in enumerate(maps)]
        return torch.cat([*parts, 2**0.5 * features], 1)

    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """One image update; returns ``loss``, summed over classes, and its part ``discrimination`` (0-dimensional)."""
        place = self.steps_done % self.outer_steps
        if place == 0 or self.config.pool == "walk":
            self.network = self.pool.draw(statistics, generator)
        assert self.network is not None
        network = self.network.train()
        self.batches.renew(statistics, lambda images: embed(network, images), self.config.batch_real, generator, step=self.steps_done)
        augment = shared_draws(self.strategy, statistics, generator)

        def view(images: Tensor) -> Tensor:
            return self.aligned(network, images)

        real = statistics.class_means(view, self.config.batch_real, augment, generator)
        classes = self.synthetic.per_class()
        images = [part for part, _ in classes]
        loss, gradients = class_mean_gradients(view, real, images, augment, joint=False, flipped=self.config.flipped)
        entropy = torch.zeros_like(loss)
        if self.config.discrimination > 0:
            if self.ids is None:
                self.ids = torch.tensor(statistics.classes, device=loss.device)

            def features(images: Tensor) -> Tensor:
                return embed(network, images)

            means = synthetic_means(features, images, augment)
            rows = means.new_zeros((statistics.spec.num_classes, means.shape[1])).index_copy(0, self.ids, means)
            of_rows = statistics.class_gradients(Head(network, rows), self.config.batch_real, augment, generator)
            own = torch.stack([part for gradients_of in of_rows for part in gradients_of]).sum(0)  # of this process's classes
            slope = self.config.batch_real * sharding.summed([own])[0][self.ids]
            entropy = (means * slope).sum()

            def weighted(slope: Tensor, means: Tensor) -> Tensor:
                return self.config.discrimination * (means * slope).sum()

            _, more = class_mean_gradients(features, slope, images, augment, joint=False, distance=weighted)
            gradients = list((torch.cat(gradients) + torch.cat(more)).split([len(part) for part in images]))
        gradients = self.pool.calibrated(gradients, classes, augment, statistics, generator, step=self.synthetic.updates)
        self.synthetic.descend(gradients, self.lr_img, self.config.momentum)

        self.steps_done += 1
        if place < self.outer_steps - 1 and self.config.pool != "walk":
            self._train(network.train(), generator)
        return {"loss": loss, "discrimination": entropy}
