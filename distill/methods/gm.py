"""GM, gradient matching (also called DC): match the network gradients of synthetic and real images.

Zhao, Mopuri and Bilen, "Dataset Condensation with Gradient Matching", ICLR 2021. DSA is the same with Siamese augmentation (dsa.py).
"""

from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from distill import sharding
from distill.augment import apply, draw, for_data, strategy
from distill.batches import Augment, augmented, mean_gradient
from distill.class_gradients import gradient_groups, matched, together
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.devices import sent
from distill.fast import Compile, Fast, Precision
from distill.matching import shown, shown_labels
from distill.methods.presets import Paper, Presets
from distill.methods.siamese import shared_draws
from distill.networks import Factory, embed, flops, has_batchnorm, renew
from distill.pool import Pool
from distill.real_batches import RealBatches
from distill.shared_config import SharedConfig, learner_strategy
from distill.statistics import RealStatistics
from distill.synthetic import Initial, Synthetic

# The authors' table of image updates per network (ipc: inner epochs between them); the number of image updates is ipc itself
# (VICO-UoE/DatasetCondensation, utils.py, `get_loops`). 100 is the author's answer to a user (its issue 2).
INNER_EPOCHS = {1: 1, 10: 50, 20: 25, 30: 20, 40: 15, 50: 10, 100: 2}
# Above: for 100 to 1,000 images a class the author took the better of (50, 10) and (20, 25), from real images (issue 2).
LARGE_LOOPS = (50, 10)
# The step size of the images; the readme wants the smaller one for an MLP.
LR_IMG, LR_IMG_MLP = 0.1, 0.01


Distance = Literal["layerwise", "mse", "cosine", "convolutions-mse", "convolutions-l1"]

PRESETS = Presets(
    paper=lambda data, ipc: Paper("VICO-UoE/DatasetCondensation, main.py and utils.py", protocol="dc"),
    short={"iterations": 60, "outer_steps": 1, "lr_img": 0.5, "batch_real": 64, "initial": "real"},
    digits={"iterations": 100, "lr_img": 0.5, "initial": "real", "network": "ConvNetW32"},
    memory={
        "iterations": 60,
        "outer_steps": 1,
        "inner_epochs": 1,
        "lr_img": 0.5,
        "batch_real": 64,
        "network": "ConvNetW32",
        "initial": "real",
    },
    sweep={"batch_real": 64},
    cost=4,
    published_ipc={"": 50},
    above="start from real images (initial = 'real') with outer_steps 50, inner_epochs 10 or 20, 25, or take dm",
    batchnorm_at_50=True,
)
STEP_SIZE = (
    "GM's loss is a sum of cosine distances over classes, layers and their output units, so it does not depend on the scale of the "
    "gradients; the authors take lr_img=0.1 with as many image updates as images a class for each network."
)


@config_class
class GMConfig(SharedConfig):
    """Settings of GM. Defaults are those of the paper's code.

    Attributes:
        iterations: number of networks.
        outer_steps: image updates per network; None: by the authors' table, the number of images per class, or 50 above 100 images.
        inner_epochs: training of the network on the synthetic set between two image updates; None: interpolated from the table,
            or 10 above 100 images per class.
        lr_img: step size of the images; None: 0.1, for the network "MLP" 0.01.
        momentum: of the images.
        lr_net: step size of the network.
        batch_real: real images per class and step.
        batch_train: images per step of the network's training.
        distance: of gradients, see `distill.matching.gradient_distance`.
        network: matching network.
        augmentation: strategy.
        initial: initialisation of the images.
        precision: "bf16" applies to the real images only, "tf32" (`distill.tf32`) to the whole step.
        compile: see `distill.fast`.
    """

    iterations: Annotated[int, Field(ge=1)] = 1000
    outer_steps: Annotated[int, Field(ge=1)] | None = None
    inner_epochs: Annotated[int, Field(ge=0)] | None = None
    lr_img: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    lr_net: Annotated[float, Field(gt=0)] = 0.01
    batch_real: Annotated[int, Field(ge=1)] = 256
    batch_train: Annotated[int, Field(ge=1)] = 256
    distance: Distance = "layerwise"
    network: str = "ConvNet"
    augmentation: str = "none"
    initial: Initial = "noise"
    precision: Precision = "float32"
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        if self.lr_img is None:  # records must hold the value that is used
            object.__setattr__(self, "lr_img", LR_IMG_MLP if self.network == "MLP" else LR_IMG)


def loops(config: GMConfig, ipc: int) -> tuple[int, int]:
    """(outer_steps, inner_epochs) of a configuration at this IPC."""
    table = round(float(np.interp(ipc, list(INNER_EPOCHS), list(INNER_EPOCHS.values()))))
    outer, inner = LARGE_LOOPS if ipc > max(INNER_EPOCHS) else (ipc, table)
    return config.outer_steps or outer, inner if config.inner_epochs is None else config.inner_epochs


class GM:
    """One step: one image update; every ``outer_steps`` of them a new random network, trained on the images in between."""

    presets, matches = PRESETS, "gradients"
    holds_class_gradients = True  # classes x parameters at once, see `distill.estimate.check_memory`

    def __init__(self, config: GMConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        self.config = config
        self.factory: Factory = network or config.network
        self.network: nn.Module | None = None
        self.real_side: Fast | None = None
        self.augmentation = for_data(initial.spec) if config.augmentation == "auto" else config.augmentation
        self.strategy = strategy(self.augmentation)
        self.outer_steps, self.inner_epochs = loops(config, initial.ipc)
        self.total_steps = config.iterations * self.outer_steps
        self.lr_img = config.lr_img or LR_IMG
        self.synthetic = Synthetic(initial, config, self.total_steps)
        self.pool = Pool(config, self.factory, config.network, self.augmentation, batch_real=config.batch_real, steps=self.total_steps)
        self.batches = RealBatches(config.real_batches)
        self.steps_done = 0

    @property
    def condensed(self) -> CondensedSet:
        """The set in its current state. Without augmentation, as GM is published, it names no augmentation for training on it."""
        return self.synthetic.to_set(learner_strategy(self.config, self.augmentation))

    def prepare(self, statistics: RealStatistics, *, progress: bool | None = None) -> None:
        """Train the pool's networks, or find them in the cache."""
        self.pool.prepare(statistics, progress=progress)

    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """One pass of algorithm 1's inner block; returns ``loss``, summed over classes (0-dimensional)."""
        place = self.steps_done % self.outer_steps
        if place == 0 or self.config.pool == "walk":
            self.network = self.pool.draw(statistics, generator)
        assert self.network is not None
        network = self.network.train()
        if self.real_side is None or self.real_side.network is not network:
            self.real_side = self._real_side(network, statistics)
        if has_batchnorm(network):
            statistics.warm_batchnorm(network, 16, generator)

        self.batches.renew(statistics, lambda images: embed(network, images), self.config.batch_real, generator, step=self.steps_done)
        augment = shared_draws(self.strategy, statistics, generator)
        together = self.compares_together(place, statistics)
        real = statistics.class_gradients(self.real_side, self.config.batch_real, augment, generator, together=together)
        classes = self.synthetic.per_class()
        total, gradients = self.compared(network, real, classes, augment, statistics, generator)
        gradients = self.pool.calibrated(gradients, classes, augment, statistics, generator, step=self.synthetic.updates)
        self.synthetic.descend(gradients, self.lr_img, self.config.momentum)

        self.steps_done += 1
        # The published loop does not train the network after its last image update: that network is thrown away.
        # A network that walks through a training on real data is not trained on the images.
        if place < self.outer_steps - 1 and self.config.pool != "walk":
            self._train(network.train(), generator)
        return {"loss": total}

    def compares_together(self, place: int, statistics: RealStatistics) -> bool:
        """Whether this image update, the ``place``-th of its network, compares one gradient of all classes. GM compares each class's."""
        return False

    def compared(
        self,
        network: nn.Module,
        real: list[list[Tensor]],
        classes: list[tuple[Tensor, Tensor]],
        augment: Augment,
        statistics: RealStatistics,
        generator: torch.Generator,
    ) -> tuple[Tensor, list[Tensor]]:
        """The loss, summed over classes, and its gradient for each class's images; ``real`` are gradients by class and parameter.

        A method that compares something else as well asks ``statistics`` for it.
        """
        images = [part for part, _ in classes]
        counts = [len(part) * (2 if self.config.flipped else 1) for part in images]
        total = images[0].new_zeros(())
        gradients: dict[int, Tensor] = {}
        own = sharding.own(range(len(classes)))
        for group in gradient_groups(network, images[0], own, [counts[c] for c in own]):
            parts, several = [images[c] for c in group], [counts[c] for c in group]
            seen = augmented(augment, shown(parts, flipped=self.config.flipped), group, several)
            labels = shown_labels([classes[c][1] for c in group], flipped=self.config.flipped)
            of_group = [real[c] for c in group]
            loss, found = matched(network, of_group, seen, labels, several, distance=self.config.distance, leaves=parts)
            for c, gradient in zip(group, found, strict=True):
                gradients[c] = gradient
            total += loss
        return sharding.summed_by_class(total, gradients, images)

    def _real_side(self, network: nn.Module, statistics: RealStatistics) -> Fast:
        """The network for real images, which need first derivatives only, so that it may be compiled."""
        config = self.config
        # Compiling for a few steps is never worth it, and what is mapped over classes is not compiled.
        stays = isinstance(self.factory, str) and not together(network, statistics.device)
        work = 3 * flops(network, statistics.spec) * config.batch_real * len(statistics.classes) * self.total_steps if stays else 0
        return Fast(network, statistics.device, work, config.precision, config.compile if stays else "off")

    def _train(self, network: nn.Module, generator: torch.Generator) -> None:
        """``inner_epochs`` of plain SGD (no momentum) on the synthetic images."""
        images, labels = self.synthetic.images, self.synthetic.labels
        _, height, width = images.shape[1:]
        parameters = [p for p in network.parameters() if p.requires_grad]
        for _ in range(self.inner_epochs):
            order = torch.randperm(len(images), generator=generator, device=generator.device)
            for batch in sent(order, images.device).split(self.config.batch_train):
                part = images[batch]
                if self.strategy.transforms:
                    part = apply(part, draw(self.strategy, generator, height, width, len(part)))
                gradients = mean_gradient(network, part, labels[batch])
                with torch.no_grad():
                    for parameter, gradient in zip(parameters, gradients, strict=True):
                        parameter.sub_(gradient, alpha=self.config.lr_net)

    def state(self) -> dict[str, Tensor]:
        """Images, velocity, image updates done, and the network that is being trained."""
        network = {f"network.{name}": value for name, value in self.network.state_dict().items()} if self.network else {}
        return {
            **self.synthetic.state(),
            **self.pool.state(),
            **self.batches.state(),
            "steps_done": torch.tensor(self.steps_done),
            **network,
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        self.synthetic.load_state(state)
        self.pool.load_state(state, self.synthetic.stored.device)
        self.batches.load_state(state)
        self.steps_done = int(state["steps_done"])
        saved = {name.removeprefix("network."): value for name, value in state.items() if name.startswith("network.")}
        if saved:  # interrupted between two image updates of one network; any new one of the same shape gets its weights
            device = self.synthetic.stored.device
            self.network = renew(self.factory, None, self.synthetic.template.spec, torch.Generator(device), device)
            self.network.load_state_dict(saved)
