"""DM, distribution matching: make the mean feature of a class's images that of its real images, in random untrained networks.

Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023.
"""

from typing import Annotated

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn

from distill.augment import for_data, strategy
from distill.condensed import CondensedSet
from distill.matching import mean_distance
from distill.methods.siamese import shared_draws
from distill.networks import Factory, embed, has_batchnorm, renew
from distill.statistics import RealStatistics
from distill.synthetic import Initial, Synthetic


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class DMConfig:
    """Defaults are those of the paper's code. ``lr_img`` None means 1 up to 50 images a class and 10 above; ``augmentation`` "auto" is
    DSA's strategy for the data (no flips for digits)."""

    iterations: Annotated[int, Field(ge=1)] = 20_000
    lr_img: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_real: Annotated[int, Field(ge=1)] = 256
    network: str = "ConvNet"
    augmentation: str = "auto"
    initial: Initial = "real"


class DM:
    """One step: a new random network, one image update."""

    def __init__(self, config: DMConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        self.config = config
        self.synthetic = Synthetic.start(initial)
        self.factory: Factory = network or config.network
        self.network: nn.Module | None = None
        self.augmentation = for_data(initial.spec) if config.augmentation == "auto" else config.augmentation
        self.strategy = strategy(self.augmentation)
        self.lr_img = config.lr_img or (1.0 if initial.ipc <= 50 else 10.0)
        self.total_steps = config.iterations

    @property
    def condensed(self) -> CondensedSet:
        return self.synthetic.to_set(self.augmentation)

    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """One iteration of algorithm 1; returns ``loss``, summed over classes (0-dimensional)."""
        self.network = renew(self.factory, self.network, statistics.spec, generator, statistics.device)
        network = self.network.train()
        augment = shared_draws(self.strategy, statistics, generator)
        joint = has_batchnorm(network)

        def features(images: Tensor) -> Tensor:
            return embed(network, images)

        real = statistics.class_means(features, self.config.batch_real, augment, generator, joint)
        images = [part for part, _ in self.synthetic.per_class()]
        # Classes do not meet in the loss, so a class at a time is exact and keeps memory to one class; BatchNorm needs them together,
        # and a GPU wants few large kernels.
        together = joint or statistics.device.type != "cpu"
        groups = [range(len(images))] if together else [range(c, c + 1) for c in range(len(images))]
        losses: list[Tensor] = []
        gradients: list[Tensor] = []
        for group in groups:
            batch = torch.cat([augment(images[c], c) for c in group])
            means = torch.stack([part.mean(0) for part in features(batch).split([len(images[c]) for c in group])])
            loss = mean_distance(real[group.start : group.stop], means)
            gradients += torch.autograd.grad(loss, [images[c] for c in group])
            losses.append(loss.detach())
        self.synthetic.descend(gradients, self.lr_img, self.config.momentum)
        return {"loss": torch.stack(losses).sum()}

    def state(self) -> dict[str, Tensor]:
        return self.synthetic.state()

    def load_state(self, state: dict[str, Tensor]) -> None:
        self.synthetic.load_state(state)
