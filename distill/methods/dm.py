"""DM, distribution matching: match the mean features of synthetic and real images of each class, in random untrained networks.

Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023.
"""

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn

from distill.augment import for_data, strategy
from distill.batches import Embed
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.errors import InputError
from distill.fast import Compile, Precision, accelerated
from distill.matching import class_mean_gradients, mean_distance
from distill.methods.presets import Paper, Presets
from distill.methods.siamese import shared_draws
from distill.networks import Factory, around, create, embed, embed_and_logits, flops, has_batchnorm
from distill.pool import Pool
from distill.real_batches import RealBatches
from distill.shared_config import SharedConfig, learner_strategy
from distill.spec import DataSpec
from distill.statistics import RealStatistics
from distill.synthetic import Initial, Synthetic

PRESETS = Presets(
    paper=lambda data, ipc: Paper("VICO-UoE/DatasetCondensation, main_DM.py and readme.md"),
    short={"iterations": 300, "lr_img": 10.0},
    digits={"iterations": 150, "lr_img": 5.0, "batch_real": 64, "network": "ConvNetW32"},
    memory={"iterations": 100, "lr_img": 5.0, "batch_real": 64, "network": "ConvNetW64"},
    # FedDM's clients (Xiong et al., CVPR 2023).
    client={"logits": True, "radius": 5.0, "lr_img": 1.0, "batch_real": 256, "iterations": 1000, "augmentation": "none"},
    sweep={"batch_real": 32},
    cost=1,
    # The readme of VICO-UoE/DatasetCondensation: step size 10 for CIFAR-10 at 100 to 1,250 images a class, and 1 for CIFAR-100 up to 125.
    published_ipc={"cifar10": 1250, "cifar100": 125, "": 50},
    above="compare lr_img 1 and 10 on validation images",
    batchnorm_at_50=True,
)


def image_step(spec: DataSpec, ipc: int) -> float:
    """The authors' step size of the images: 1 up to 50 images per class, above it 10, on CIFAR-100 always 1. They give none for other data
    sets, which are treated as CIFAR-10."""
    return 1.0 if ipc <= 50 or spec.name.lower() == "cifar100" else 10.0


STEP_SIZE = (
    "DM's loss is the sum over classes of the squared distance of mean features, so its scale grows with the number of features and falls "
    "with 1 / ipc for each image; the authors take lr_img=1 up to 50 images a class and 10 above (on CIFAR-100 1)."
)


@config_class
class DMConfig(SharedConfig):
    """Settings of DM. Defaults are those of the paper's code.

    Attributes:
        iterations: number of steps.
        lr_img: step size of the images; None: see `image_step`.
        momentum: of the images.
        batch_real: real images per class and step.
        network: matching network.
        augmentation: strategy; "auto": DSA's for the data (no flips for digits).
        initial: initialisation of the images.
        logits: match the network's outputs as well as its features, as FedDM does (Xiong et al., CVPR 2023).
        radius: instead of drawing a new network in each step, move one network to a random point at this distance in weight space, as
            FedDM does.
        precision: of the networks' forward and backward passes; "bf16" is bfloat16 under autocast, with float32 weights and images;
            "tf32" see `distill.tf32`.
        compile: see `distill.fast`.
    """

    iterations: Annotated[int, Field(ge=1)] = 20_000
    lr_img: Annotated[float, Field(gt=0)] | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    batch_real: Annotated[int, Field(ge=1)] = 256
    network: str = "ConvNet"
    augmentation: str = "auto"
    initial: Initial = "real"
    logits: bool = False
    radius: Annotated[float, Field(ge=0)] | None = None
    precision: Precision = "float32"
    compile: Compile = "auto"


class DM:
    """One step: a new random network, one image update."""

    presets, matches = PRESETS, "features"
    norm: float | None = None  # length of every row of `seen`, where it is known

    def __init__(self, config: DMConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        self.config = config
        if config.radius is not None and (config.pool != "random" or config.pool_draws):
            raise InputError(f"radius keeps one network and pool {config.pool!r} draws others; leave one of the two out.")
        self.synthetic = Synthetic(initial, config, config.iterations)
        self.factory: Factory = network or config.network
        self.network: nn.Module | None = None
        self.centre: Tensor | None = None
        self.augmentation = for_data(initial.spec) if config.augmentation == "auto" else config.augmentation
        self.strategy = strategy(self.augmentation)
        self.batches = RealBatches(config.real_batches)
        self.pool = Pool(config, self.factory, config.network, self.augmentation, batch_real=config.batch_real, steps=config.iterations)
        self.lr_img = config.lr_img or image_step(initial.spec, initial.ipc)
        self.total_steps = config.iterations

    @property
    def condensed(self) -> CondensedSet:
        """The set in its current state."""
        return self.synthetic.to_set(learner_strategy(self.config, self.augmentation))

    def prepare(self, statistics: RealStatistics, *, progress: bool | None = None) -> None:
        """Train the pool's networks, or find them in the cache."""
        self.pool.prepare(statistics, progress=progress)

    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """One iteration of algorithm 1; returns ``loss``, summed over classes (0-dimensional)."""
        network = self._network(statistics, generator)
        self.batches.renew(statistics, self.real_features, self.config.batch_real, generator, step=self.synthetic.updates)
        augment = shared_draws(self.strategy, statistics, generator)
        joint = has_batchnorm(network)
        known = {} if self.norm is None else {"norm": self.norm}
        real = statistics.class_means(self.real_embedding(), self.config.batch_real, augment, generator, joint=joint, **known)
        classes = self.synthetic.per_class()
        images = [part for part, _ in classes]
        flipped, distance = self.config.flipped, self.distance
        loss, gradients = class_mean_gradients(self.view, real, images, augment, joint=joint, flipped=flipped, distance=distance)
        gradients = self.pool.calibrated(gradients, classes, augment, statistics, generator, step=self.synthetic.updates)
        self.synthetic.descend(gradients, self.lr_img, self.config.momentum)
        return {"loss": loss}

    def features(self, network: nn.Module, images: Tensor) -> Tensor:
        """(N, D) of images (N, C, H, W): what is compared, but for what `seen` makes of it."""
        return embed_and_logits(network, images) if self.config.logits else embed(network, images)

    def seen(self, features: Tensor) -> Tensor:
        """(N, D') of features (N, D), the same for real and synthetic images; DM compares the features themselves."""
        return features

    def view(self, images: Tensor) -> Tensor:
        """What is compared of synthetic images, in this step's network."""
        return self.seen(self.synthetic_features(images))

    def real_view(self, images: Tensor) -> Tensor:
        """The same of real images, perhaps compiled or in bfloat16."""
        return self.seen(self.real_features(images))

    def real_embedding(self) -> Embed:
        """`real_view` as the statistics compute it; a method may compute it in two stages (`distill.batches.Staged`)."""
        return self.real_view

    def distance(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """The loss of class means (K, D') of both sides, summed over classes (scalar)."""
        return mean_distance(real, synthetic)

    def _network(self, statistics: RealStatistics, generator: torch.Generator) -> nn.Module:
        """This step's network, frozen; `view` and `real_view` are its features of synthetic and of real images."""
        config, device = self.config, statistics.device
        if config.radius is None:
            network = self.pool.draw(statistics, generator)
        else:
            # Its weights are set below; a resumed run, which has the centre, must not draw them again.
            first = generator if self.centre is None else torch.Generator()
            network = self.network or create(self.factory, statistics.spec, first, device)
            if self.centre is None:
                self.centre = torch.nn.utils.parameters_to_vector(network.parameters()).detach().clone()
            around(network, self.centre, config.radius, generator)
        network.train().requires_grad_(False)
        if network is not self.network:
            stays = (
                isinstance(self.factory, str) or config.pool != "random" or config.radius is not None
            )  # compiling for one step is never worth it
            each = flops(network, statistics.spec) * self.total_steps if stays else 0
            work = each * config.batch_real * len(statistics.classes)
            backward = 3 * each * len(self.synthetic.labels) * (2 if config.flipped else 1)
            compile = config.compile if stays else "off"

            def features(images: Tensor) -> Tensor:
                return self.features(network, images)

            self.real_features = accelerated(features, device, work, config.precision, compile)
            self.synthetic_features = accelerated(features, device, backward, config.precision, compile)
            self.network = network
        return network

    def state(self) -> dict[str, Tensor]:
        """Images, velocity and (with ``radius``) the centre (P,)."""
        return {
            **self.synthetic.state(),
            **self.pool.state(),
            **self.batches.state(),
            **({} if self.centre is None else {"centre": self.centre}),
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        self.synthetic.load_state(state)
        self.pool.load_state(state, self.synthetic.stored.device)
        self.batches.load_state(state)
        if "centre" in state:
            self.centre = state["centre"].to(self.synthetic.stored.device)
