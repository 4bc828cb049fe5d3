"""DataDAM, attention matching: distribution matching of spatial attention maps and of the last features.

Sajedi, Khaki, Amjadian, Liu, Lawryshyn and Plataniotis, "DataDAM: Efficient Dataset Distillation with Attention Matching", ICCV 2023.
"""

from typing import Annotated, Literal, NamedTuple

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.augment import for_data, strategy
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.errors import InputError
from distill.fast import Compile, Precision, accelerated
from distill.matching import class_mean_gradients
from distill.methods.presets import Paper, Presets
from distill.methods.siamese import shared_draws
from distill.networks import Factory, activations, flops, has_batchnorm
from distill.pool import Pool
from distill.real_batches import RealBatches
from distill.shared_config import SharedConfig
from distill.statistics import RealStatistics
from distill.synthetic import Initial, Synthetic


class Form(NamedTuple):
    iterations: int
    power: float
    weight: float
    batch_real: int
    network: str


# Values of the paper's table and of the released code where they differ. The paper gives no batch size; users of the code use 256.
FORMS = {
    "paper": Form(8000, 4.0, 1.0, 256, "ConvNet"),
    "released": Form(20_000, 1.0, 100.0, 64, "ConvNetBN"),
}


def _paper(data: str, ipc: int) -> Paper:
    source = "DataDistillation/DataDAM, the paper's settings as quoted in issue 6"
    return Paper(source, protocol="datadam-paper", zca=data in ("cifar10", "cifar100"))


def _released(data: str, ipc: int) -> Paper:
    # Its network called ConvNet is batch norm, the evaluation network too (utils.py, `get_network`).
    source = "DataDistillation/DataDAM, main_DataDAM.py and utils.py"
    return Paper(source, protocol="datadam", network="ConvNetBN", settings={"form": "released"})


PRESETS = Presets(
    paper=_paper,
    released=_released,
    short={"iterations": 300, "lr_img": 3.0, "weight": 100.0},
    digits={"iterations": 150, "lr_img": 5.0, "weight": 100.0, "batch_real": 64, "network": "ConvNetW32"},
    memory={"iterations": 100, "lr_img": 5.0, "batch_real": 64, "network": "ConvNetW32"},
    sweep={"batch_real": 32},
    cost=2,
    # Its tables end at 50 images a class; the released code reads first images for up to 200 (main_DataDAM.py, --init smart).
    published_ipc={"cifar10": 200, "cifar100": 200, "": 50},
    above="compare lr_img 1 and 10 on validation images",
)
STEP_SIZE = (
    "DataDAM's loss compares attention maps of length 1, times its weight (1 in the paper, 100 in the released code), so its gradients are "
    "smaller than DM's and the step size goes with 1 / weight; lr_img is 1 up to 50 images a class and 10 above."
)


@config_class
class DataDAMConfig(SharedConfig):
    """Settings of DataDAM.

    Attributes:
        form: defaults of the fields that are None: "paper" (instance norm, p = 4, 8,000 iterations) or "released" (the code: batch norm,
            p = 1, 20,000 iterations, loss times 100).
        iterations: number of steps.
        power: p of the attention maps.
        layers: activations that are matched, counted from 0; None: all but the last.
        feature_weight: lambda; None: 0.01 up to 32 x 32 pixels, 0.02 above.
        weight: factor of the loss.
        lr_img: step size of the images; None: 1 up to 50 images per class, 10 above (main_DataDAM.py, for every data set).
        momentum: of the images.
        batch_real: real images per class and step.
        network: matching network.
        augmentation: strategy; "auto": DSA's for the data.
        initial: initialisation of the images.
        precision: as DM's.
        compile: see `distill.fast`.
    """

    form: Literal["paper", "released"] = "paper"
    iterations: Annotated[int, Field(ge=1)] | None = None
    power: Annotated[float, Field(gt=0)] | None = None
    layers: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    feature_weight: Annotated[float, Field(ge=0)] | None = None
    weight: Annotated[float, Field(gt=0)] | None = None
    lr_img: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_real: Annotated[int, Field(ge=1)] | None = None
    network: str | None = None
    augmentation: str = "auto"
    initial: Initial = "real"
    precision: Precision = "float32"
    compile: Compile = "auto"

    def __post_init__(self) -> None:
        for name, value in FORMS[self.form]._asdict().items():
            if getattr(self, name) is None:
                object.__setattr__(self, name, value)  # records must hold the values that are used


def attention(activation: Tensor, power: float) -> Tensor:
    """Spatial attention (N, H * W) of an activation (N, C, H, W): sum over channels of |a|^p, scaled to length 1 (eq. 2 and 3)."""
    return F.normalize(activation.abs().pow(power).sum(1).flatten(1))


class DataDAM:
    """One step: a new random network, one image update."""

    presets, matches = PRESETS, "features"

    def __init__(self, config: DataDAMConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        form = FORMS[config.form]
        self.config = config
        self.power, self.weight = config.power or form.power, config.weight or form.weight
        self.batch_real = config.batch_real or form.batch_real
        self.factory: Factory = network or config.network or form.network
        self.network: nn.Module | None = None
        self.augmentation = for_data(initial.spec) if config.augmentation == "auto" else config.augmentation
        self.strategy = strategy(self.augmentation)
        self.lr_img = config.lr_img or (1.0 if initial.ipc <= 50 else 10.0)
        small = max(initial.spec.shape[1:]) <= 32
        self.feature_weight = (0.01 if small else 0.02) if config.feature_weight is None else config.feature_weight
        self.total_steps = config.iterations or form.iterations
        self.synthetic = Synthetic(initial, config, self.total_steps)
        self.batches = RealBatches(config.real_batches)
        name = config.network or form.network or "ConvNet"
        self.pool = Pool(config, self.factory, name, self.augmentation, batch_real=self.batch_real, steps=self.total_steps)

    @property
    def condensed(self) -> CondensedSet:
        """The set in its current state."""
        return self.synthetic.to_set(self.augmentation)

    def matched(self, network: nn.Module, images: Tensor) -> Tensor:
        """Attention maps of the chosen layers and features, each times the square root of its weight in the loss, concatenated: (N, D).

        The squared distance of class means is then the weighted loss, so that only class means of real data are needed.
        """
        *outputs, features = activations(network, images)
        maps = [output for output in outputs if output.ndim == 4]
        layers = range(max(1, len(maps) - 1)) if self.config.layers is None else self.config.layers
        if any(layer >= len(maps) for layer in layers):
            raise InputError(f"DataDAM was to match the layers {list(layers)}; the network has {len(maps)} activations with spatial maps.")
        parts = [attention(maps[layer], self.power) for layer in layers]
        return torch.cat([self.weight**0.5 * part for part in parts] + [(self.weight * self.feature_weight) ** 0.5 * features], 1)

    def prepare(self, statistics: RealStatistics, *, progress: bool | None = None) -> None:
        """Train the pool's networks, or find them in the cache."""
        self.pool.prepare(statistics, progress=progress)

    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """One iteration of algorithm 1; returns ``loss``, summed over classes (0-dimensional)."""
        network = self._network(statistics, generator)
        augment = shared_draws(self.strategy, statistics, generator)
        joint = has_batchnorm(network)
        self.batches.renew(statistics, self.real_view, self.batch_real, generator, step=self.synthetic.updates)
        real = statistics.class_means(self.real_view, self.batch_real, augment, generator, joint=joint)
        classes = self.synthetic.per_class()
        images = [part for part, _ in classes]
        loss, gradients = class_mean_gradients(self.view, real, images, augment, joint=joint, flipped=self.config.flipped)
        gradients = self.pool.calibrated(gradients, classes, augment, statistics, generator, step=self.synthetic.updates)
        self.synthetic.descend(gradients, self.lr_img, self.config.momentum)
        return {"loss": loss}

    def _network(self, statistics: RealStatistics, generator: torch.Generator) -> nn.Module:
        """This step's network, frozen; `view` and `real_view` are its features of synthetic and of real images."""
        network = self.pool.draw(statistics, generator).train().requires_grad_(False)
        if network is not self.network:
            stays = isinstance(self.factory, str) or self.config.pool != "random"  # compiling for one step is never worth it
            each = flops(network, statistics.spec) * self.total_steps if stays else 0
            work = each * self.batch_real * len(statistics.classes)

            def view(images: Tensor) -> Tensor:
                return self.matched(network, images)

            config, device = self.config, statistics.device
            backward = 3 * each * len(self.synthetic.labels) * (2 if config.flipped else 1)
            compile = config.compile if stays else "off"
            self.view = accelerated(view, device, backward, config.precision, compile)
            self.real_view = accelerated(view, device, work, config.precision, compile)
            self.network = network
        return network

    def state(self) -> dict[str, Tensor]:
        """Images and velocity, and the pool's place."""
        return {**self.synthetic.state(), **self.pool.state(), **self.batches.state()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        self.synthetic.load_state(state)
        self.pool.load_state(state, self.synthetic.stored.device)
        self.batches.load_state(state)
