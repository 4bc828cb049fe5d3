"""The networks that images are compared in: fresh ones, trained ones of any stage, and places around given weights.

Trained networks come from `RealStatistics.trajectories`, which keeps them in a disk cache; private statistics train them with noise, as a
share of their budget, or on public data.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parameters_to_vector

from distill.batches import Augment
from distill.devices import normal, sent
from distill.errors import InputError, clipped
from distill.experts import ExpertConfig, Trajectories
from distill.fast import Compile, Precision, accelerated
from distill.matching import calibration_gradients
from distill.networks import Factory, around, create, flops, has_batchnorm, parameter_count, put_weights, renew
from distill.randomness import generator as stream
from distill.shared_config import SharedConfig, trains_networks
from distill.spec import DataSpec
from distill.statistics import RealStatistics

EARLY_RANGE = (0.01, 0.09)  # of a perturbation's size, relative to the weights' (Acc-DD's code)
WALK_SNAPSHOTS = 25  # an epoch: IDC's network sees 2,000 of CIFAR-10's 50,000 images between two updates of the images
SPHERE_RADIUS = 5.0  # FedDM's (Xiong et al., CVPR 2023)


@dataclass(frozen=True)
class Received:
    """A network factory whose networks have these trained weights (P,): what a federated client received from its server."""

    network: Factory
    weights: Tensor

    def __call__(self, spec: DataSpec) -> nn.Module:
        made = create(self.network, spec, torch.Generator().manual_seed(0))
        _put(made, self.weights)
        return made


class Pool:
    """The networks of one run of a method, drawn one after the other.

    - random: freshly drawn (DC, DM).
    - early: the end of a short training, perturbed filter by filter (Acc-DD, Zhang et al., CVPR 2023).
    - blend: l * start + (1 - l) * end of one training with l uniform in [0, 1] (DANCE, Zhang et al., IJCAI 2024).
    - walk: one training followed in small steps, then the next (IDC, Kim et al., ICML 2022).
    - stages: any snapshot of any training (IDM, Zhao et al., CVPR 2023).
    - sphere: a random direction at a fixed distance from given weights (FedDM, Xiong et al., CVPR 2023).

    Where the factory is `Received`, its weights are the trained ones and nothing is trained.
    """

    def __init__(
        self,
        config: SharedConfig,
        factory: Factory,
        network: str,
        augmentation: str,
        *,
        batch_real: int,
        steps: int = 0,
    ) -> None:
        """``factory`` makes networks, ``network`` is its name for the cache, ``augmentation`` that of the trainings; ``batch_real`` real
        images per class and step are compared in them; ``steps`` is the number of steps, for the decision to compile the calibration."""
        if config.pool_draws and config.pool in ("walk", "sphere"):
            raise InputError(
                f"pool_draws fixes draws of networks, and pool {config.pool!r} takes each after the one before; leave pool_draws out, or "
                "take pool 'blend'."
            )
        self.config, self.factory, self.kind, self.batch_real, self.steps = config, factory, config.pool, batch_real, steps
        self.precision: Precision = getattr(config, "precision", "float32")  # a method's own settings, where it has them
        self.compile: Compile = getattr(config, "compile", "off")
        per_epoch = WALK_SNAPSHOTS if config.pool == "walk" else 1
        networks, epochs, lr, batch = config.pool_networks, config.pool_epochs, config.pool_lr, config.pool_batch
        self.experts = ExpertConfig(
            networks,
            epochs,
            lr,
            batch,
            network,
            augmentation,
            momentum=0.9,
            per_epoch=per_epoch,
            precision=self.precision,
            schedule=config.pool_schedule,
        )
        self.trajectories: Trajectories | None = None
        self.network: nn.Module | None = None
        self.judge: nn.Module | None = None
        self._judged: Callable[[Tensor], Tensor] | None = None  # its outputs, perhaps compiled or in bfloat16
        self.centre: Tensor | None = None
        self.source: torch.Generator | None = None  # of the last drawn network, and of what is drawn with it
        self.walk = torch.zeros(2, dtype=torch.int64)  # expert and snapshot of the walking network

    @property
    def trains(self) -> bool:
        """Whether the pool needs trained networks."""
        return trains_networks(self.config)

    def prepare(self, statistics: RealStatistics, *, progress: bool | None = None) -> None:
        """Train the networks, or find them in the cache; `draw` and `trained` do it where nobody called this."""
        if self.trains and self.trajectories is None and not isinstance(self.factory, Received):
            found = statistics.trajectories(self.experts, self.factory, progress=progress, batch_real=self.batch_real)
            if self.config.calibration and found.classes is not None and found.classes != statistics.spec.classes:
                raise InputError(
                    "calibration asks a trained network for the class of an image, and the networks were trained on data of other classes "
                    f"({clipped(found.classes[:3], 60)} ..., here {clipped(statistics.spec.classes[:3], 60)} ...); set calibration to 0."
                )
            self.trajectories = found

    def draw(self, statistics: RealStatistics, generator: torch.Generator) -> nn.Module:
        """The next network, in training mode, all parameters trainable."""
        device = statistics.device
        self.source = generator = self._source(generator)
        if self.kind == "random":
            self.network = renew(self.factory, self.network, statistics.spec, generator, device)
            return self.network
        self.prepare(statistics)
        fresh = self._fresh(statistics, generator)
        if has_batchnorm(fresh) and self.kind in ("blend", "early"):
            raise InputError(
                f"pool {self.kind} mixes weights, which networks with batch normalisation do not take (their running statistics belong to "
                "one set of weights); take a network with instance or group normalisation, or pool 'random' or 'walk'."
            )
        if self.kind == "walk":
            _put(fresh, self._walked(generator, device))
        elif self.kind == "stages":
            _put(fresh, self._stage(generator, device))
        elif self.kind == "early":
            _put(fresh, self._end(generator, device))
            perturb(fresh, generator)
        elif self.kind == "blend":
            share = float(torch.rand((), generator=generator, device=generator.device))
            start, end = self._ends(fresh, statistics, generator)
            _put(fresh, share * start + (1 - share) * end)
        else:
            if self.centre is None:
                self.centre = parameters_to_vector(fresh.parameters()).detach()
            around(fresh, self.centre, SPHERE_RADIUS, generator)
        self.network = fresh.requires_grad_(True).train()
        return self.network

    def _source(self, generator: torch.Generator) -> torch.Generator:
        """``generator``, or the stream of one of ``pool_draws`` fixed draws, which does not depend on the run's seed."""
        if not self.config.pool_draws:
            return generator
        chosen = int(torch.randint(self.config.pool_draws, (), generator=generator, device=generator.device))
        return stream(0, "pool", "draw", chosen, device=generator.device)

    def trained(self, statistics: RealStatistics, generator: torch.Generator) -> nn.Module:
        """A trained network of the pool for calibration, frozen, in training mode as all matching networks are."""
        self.prepare(statistics)
        if self.judge is None:
            self.judge = create(self._shape(), statistics.spec, stream(0, "pool", "shape"), statistics.device)
        _put(self.judge, self._end(generator, statistics.device))
        return self.judge.train().requires_grad_(False)

    def calibrated(
        self,
        gradients: list[Tensor],
        classes: list[tuple[Tensor, Tensor]],
        augment: Augment,
        statistics: RealStatistics,
        generator: torch.Generator,
        *,
        step: int,
    ) -> list[Tensor]:
        """``gradients`` of each class's images plus those of the calibration, where the config asks for it in this step."""
        weight, every = self.config.calibration, self.config.calibration_every
        if weight == 0 or step % every:
            return gradients
        network = self.trained(statistics, generator)
        if self._judged is None:
            work = 3 * flops(network, statistics.spec) * sum(len(part) for part, _ in classes) * (self.steps // every)
            self._judged = accelerated(network, statistics.device, work, self.precision, self.compile)
        _, more = calibration_gradients(self._judged, classes, augment)
        return list((torch.cat(gradients) + weight * every * torch.cat(more)).split([len(part) for part in more]))

    def _shape(self) -> Factory:
        return self.factory.network if isinstance(self.factory, Received) else self.factory

    def _fresh(self, statistics: RealStatistics, generator: torch.Generator) -> nn.Module:
        """Any network of the pool's shape; its weights are drawn only where they count."""
        if self.network is not None:
            return self.network
        if self.kind == "sphere":
            return create(
                self.factory, statistics.spec, generator if self.centre is None else stream(0, "pool", "shape"), statistics.device
            )
        return create(self._shape(), statistics.spec, stream(0, "pool", "shape"), statistics.device)

    def _expert(self, generator: torch.Generator) -> int:
        assert self.trajectories is not None
        return int(torch.randint(self.trajectories.experts, (), generator=generator, device=generator.device))

    def _end(self, generator: torch.Generator, device: torch.device) -> Tensor:
        """(P,): the end of a random training, or the received weights."""
        if isinstance(self.factory, Received):
            return sent(self.factory.weights, device)
        assert self.trajectories is not None
        return self.trajectories.weights(self._expert(generator), self.trajectories.epochs, device)

    def _ends(self, fresh: nn.Module, statistics: RealStatistics, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Start and end of one training; with received weights a fresh start."""
        device = statistics.device
        if isinstance(self.factory, Received):
            start = renew(self.factory.network, fresh, statistics.spec, generator, device)
            return parameters_to_vector(start.parameters()).detach(), sent(self.factory.weights, device)
        assert self.trajectories is not None
        expert = self._expert(generator)
        return self.trajectories.weights(expert, 0, device), self.trajectories.weights(expert, self.trajectories.epochs, device)

    def _stage(self, generator: torch.Generator, device: torch.device) -> Tensor:
        if isinstance(self.factory, Received):
            return self._end(generator, device)
        assert self.trajectories is not None
        expert = self._expert(generator)
        place = int(torch.randint(self.trajectories.epochs + 1, (), generator=generator, device=generator.device))
        return self.trajectories.weights(expert, place, device)

    def _walked(self, generator: torch.Generator, device: torch.device) -> Tensor:
        if isinstance(self.factory, Received):
            raise InputError("pool 'walk' follows a training, and a client that received one set of weights has none; take 'blend'.")
        assert self.trajectories is not None
        expert, place = self.walk.tolist()
        if place == 0:
            expert = self._expert(generator)
        weights = self.trajectories.weights(expert, place, device)
        self.walk = torch.tensor([expert, (place + 1) % (self.trajectories.epochs + 1)])
        return weights

    def state(self) -> dict[str, Tensor]:
        """The walking network's place, or the sphere's centre, for a checkpoint."""
        if self.kind == "walk":
            return {"pool.walk": self.walk}
        return {} if self.centre is None else {"pool.centre": self.centre}

    def load_state(self, state: dict[str, Tensor], device: torch.device) -> None:
        """Put `state` back."""
        if "pool.walk" in state:
            self.walk = state["pool.walk"].cpu()
        if "pool.centre" in state:
            self.centre = state["pool.centre"].to(device)


def perturb(network: nn.Module, generator: torch.Generator) -> None:
    """Move the weights along two random directions, in place: Acc-DD's augmentation of networks.

    A direction is normal noise, each filter (row of a weight tensor) scaled to the length of the network's own; biases and norms stay. Both
    are scaled by a number of random sign whose size is uniform in `EARLY_RANGE`, the same for all layers.
    """
    device = generator.device
    for _ in range(2):
        low, high = EARLY_RANGE
        size, sign = torch.rand((2,), generator=generator, device=device).tolist()
        amount = (low + (high - low) * size) * (1.0 if sign < 0.5 else -1.0)
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.ndim > 1:
                    noise = normal(tuple(parameter.shape), generator, parameter.device).flatten(1)
                    lengths = parameter.flatten(1).norm(dim=1, keepdim=True)
                    parameter.add_((noise * (lengths / noise.norm(dim=1, keepdim=True).clamp_min(1e-12))).view_as(parameter), alpha=amount)


def _put(network: nn.Module, weights: Tensor) -> None:
    """`put_weights`, once the number of trained weights is checked."""
    if weights.numel() != parameter_count(network):
        raise InputError(f"trained weights are {weights.numel()} numbers; the network has {parameter_count(network)} parameters.")
    put_weights(network, weights)
