"""MTT, matching training trajectories: a student trained for some steps on the images must reach the weights of an expert epochs later.

Cazenavette, Wang, Torralba, Efros and Zhu, "Dataset Distillation by Matching Training Trajectories", CVPR 2022. The image gradient is the
exact one through all steps of the student, at constant memory (distill/adjoint.py).
"""

import itertools
from collections.abc import Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from distill import sharding
from distill.adjoint import Matched, Student, Views, matching_gradient
from distill.augment import Parameters, apply, apply_effects, draw, effects, for_data, strategy
from distill.batches import chunk_size, group_size
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.devices import sent
from distill.errors import InputError
from distill.experts import ExpertConfig, Trajectories
from distill.fast import Compile, compile_mode, worth
from distill.methods.mtt_table import paper
from distill.methods.presets import Presets
from distill.networks import Factory, create, flops
from distill.randomness import generator as stream
from distill.shared_config import ImageConfig
from distill.statistics import RealStatistics
from distill.synthetic import Initial, Synthetic

# From this number of student steps on, compiling saves more than the 4 to 35 s that it takes.
WORTH_STUDENT_STEPS = 5000
# On a GPU the views of several steps are made at once, for this many times the images of a forward pass: they have no activations.
VIEW_BATCHES = 8
# Lower limit of the learned step size, which must stay positive.
MIN_LR = 1e-6


PRESETS = Presets(
    paper=paper,
    short={
        "network": "ConvNetW32",
        "initial": "kmeans",
        "experts": 10,
        "max_start_epoch": 3,
        "expert_epochs": 1,
        "syn_steps": 80,
        "iterations": 500,
        "lr_img": 60.0,
        "max_norm": 0.04,
        "lr_init": 0.027,
        "lr_lr": 1e-6,
    },
    # An epoch is 6 batches of 256 there.
    digits={
        "iterations": 150,
        "syn_steps": 15,
        "expert_epochs": 2,
        "max_start_epoch": 4,
        "lr_img": 300.0,
        "experts": 5,
        "expert_lr": 0.02,
        "batch_real": 64,
        "network": "ConvNetW32",
    },
    memory={"network": "ConvNetW32", "experts": 4, "max_start_epoch": 3, "syn_steps": 10, "iterations": 100, "lr_img": 100.0},
    sweep={"experts": 2, "max_start_epoch": 2},
    cost=5,
    # Tables end at 50 images a class; at 500 and 1,000 later papers find its gain gone (Guo et al., ICLR 2024).
    published_ipc={"": 50},
    above="start later in the experts' training (a larger max_start_epoch), or take dm",
)
STEP_SIZE = (
    "MTT's loss is divided by the squared distance that the expert went, and its gradient reaches an image through the student's learned "
    "step size (0.001 to 0.01), so it is small and lr_img is large: the authors take 100 to 1000, and more where students take fewer steps."
)


@config_class
class MTTConfig(ImageConfig):
    """Settings of MTT. Defaults are the authors' for CIFAR-10 at 10 images per class without ZCA; other data need others
    (`distill.methods.mtt_table`).

    ZCA is a property of the data (``data.whitened()``).

    Attributes:
        iterations: number of steps.
        syn_steps: SGD steps of the student.
        expert_epochs: epochs of the expert from the start to the target.
        max_start_epoch: the start is a random expert epoch from 0 to this one, **both included**, as in algorithm 1 of the paper
            (t <= T+). The authors' code excludes it (distill.py: ``np.random.randint(0, args.max_start_epoch)``): their 15 is 14 here.
        lr_img: step size of the images.
        lr_lr: step size of the learned step size.
        lr_init: initial value of the learned step size.
        momentum: of images, step size and labels.
        max_norm: gradients of the images above this norm are scaled down, and those of the step size and labels by the same factor;
            None, as published: no limit.
        batch_syn: synthetic images per student step; None: all.
        soft_labels: learn the labels, from an expert's predictions on the initial images (Guo et al., ICLR 2024).
        lr_label: step size of the labels.
        network: of student and experts.
        augmentation: strategy; "auto": DSA's for the data.
        initial: initialisation of the images.
        experts: number of experts, see `ExpertConfig` for their fields.
        expert_lr: step size of the experts.
        batch_real: batch size of the experts.
        expert_snapshots: how their weights are stored.
        expert_seed: of the experts.
        compile: see `distill.fast`.
    """

    iterations: Annotated[int, Field(ge=1)] = 5000
    syn_steps: Annotated[int, Field(ge=1)] = 30
    expert_epochs: Annotated[int, Field(ge=1)] = 2
    max_start_epoch: Annotated[int, Field(ge=0)] = 14
    lr_img: Annotated[float, Field(gt=0)] = 1000.0
    lr_lr: Annotated[float, Field(ge=0)] = 1e-5
    lr_init: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.5
    max_norm: Annotated[float, Field(gt=0)] | None = None
    batch_syn: Annotated[int, Field(ge=1)] | None = None
    soft_labels: bool = False
    lr_label: Annotated[float, Field(gt=0)] = 5.0
    network: str = "ConvNet"
    augmentation: str = "auto"
    initial: Initial = "real"
    experts: Annotated[int, Field(ge=1)] = 100
    expert_lr: Annotated[float, Field(gt=0)] = 0.01
    batch_real: Annotated[int, Field(ge=1)] = 256
    expert_snapshots: Literal["float32", "bf16"] = "float32"
    expert_seed: Annotated[int, Field(ge=0)] = 0
    compile: Compile = "auto"


def shortened(gradients: Matched, max_norm: float) -> Matched:
    """Scale all gradients by one factor so that the norm of the images' gradient is at most ``max_norm``; to zero if it is not finite.

    If a student's steps are unstable (step size times curvature of the loss above 2) the exact gradient grows exponentially backwards
    through the steps: one in a few hundred is a thousand times as long as the others, and reverses their progress.
    """
    length = gradients.images.norm()
    scale = torch.where(length.isfinite(), (max_norm / length.clamp_min(1e-30)).clamp_max(1.0), 0.0)
    images, lr = (torch.nan_to_num(value) * scale for value in (gradients.images, gradients.lr))
    return Matched(gradients.loss, images, None if gradients.labels is None else torch.nan_to_num(gradients.labels) * scale, lr)


def one_by_one(batches: Sequence[Tensor], draws: Sequence[Parameters]) -> Views:
    """The batch of each step: images at these indices under this transform, with its labels."""

    def views(steps: Sequence[int], images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        places = [sent(batches[step], images.device) for step in steps]
        return [(apply(images[place], draws[step]), labels[place]) for step, place in zip(steps, places, strict=True)]

    return views


def together(batches: Sequence[Tensor], draws: Sequence[Parameters], images: Tensor) -> Views:
    """The same up to rounding, the batches of several steps in one operation each: for a GPU, which all indices are sent to at once."""
    if any(one.transform.startswith(("dc_", "all_")) for one in draws):  # which `effects` does not take
        return one_by_one(batches, draws)
    sizes = [len(batch) for batch in batches]
    ends = [0, *itertools.accumulate(sizes)]
    places = sent(torch.cat(list(batches)), images.device)
    nothing = all(one.transform == "none" for one in draws)
    rows = None if nothing else sent(torch.cat([effects(one) for one in draws]).to(images.dtype), images.device)

    def views(steps: Sequence[int], images: Tensor, labels: Tensor) -> list[tuple[Tensor, Tensor]]:
        here, several = slice(ends[steps[0]], ends[steps[-1] + 1]), [sizes[step] for step in steps]
        x, y = images[places[here]], labels[places[here]]
        x = x if rows is None else apply_effects(x, rows[here])
        return list(zip(x.split(several), y.split(several), strict=True))

    return views


class MTT:
    """One step: one expert segment, one student, one update of images, step size and (if soft) labels."""

    presets, matches = PRESETS, "trajectories"

    def __init__(self, config: MTTConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        self.config = config
        self.synthetic = Synthetic(initial, config, config.iterations)
        self.factory: Factory = network or config.network
        self.augmentation = for_data(initial.spec) if config.augmentation == "auto" else config.augmentation
        self.strategy = strategy(self.augmentation)
        self.total_steps = config.iterations
        self.trajectories: Trajectories | None = None
        device = self.synthetic.stored.device
        self.lr = torch.tensor(initial.lr or config.lr_init, device=device)
        self.lr_velocity = torch.zeros_like(self.lr)
        if config.soft_labels and initial.decode is not None:
            raise InputError("mtt learns one label an image, and a decoded set stores one for several; leave out soft_labels or decode.")
        soft = initial.labels.is_floating_point()
        if soft and not config.soft_labels:
            raise InputError("the initial set has soft labels and soft_labels is false; set it to true.")
        # Soft labels are learned as logits, so that they stay probabilities.
        self.logits = self.synthetic.labels.clamp_min(1e-4).log() if soft else None
        self.label_velocity: Tensor | None = None

    @property
    def condensed(self) -> CondensedSet:
        """The set in its current state, with its learned step size."""
        labels = None if self.logits is None else self.logits.softmax(1)
        return self.synthetic.to_set(self.augmentation, lr=float(self.lr), labels=labels)

    def prepare(self, statistics: RealStatistics, *, progress: bool | None = None) -> None:
        """Train the experts, or find them in the cache; the first `step` does it if this was not called."""
        if sharding.count() > 1:
            raise InputError("mtt has no classes to share out between processes; run it without torchrun.")
        if statistics.spec.num_classes < 2:
            raise InputError(
                "mtt cannot condense data of one class: a network with one output has loss 0, its experts never move, and the distance is "
                "0 / 0. Give data of two classes or more, or use dm."
            )
        c = self.config
        expert_config = ExpertConfig(
            c.experts,
            c.max_start_epoch + c.expert_epochs,
            c.expert_lr,
            c.batch_real,
            c.network,
            self.augmentation,
            c.expert_snapshots,
            c.expert_seed,
        )
        self.trajectories = statistics.trajectories(expert_config, self.factory, progress=progress)
        device = self.synthetic.stored.device
        network = create(self.factory, statistics.spec, stream(0, "mtt", "shape"), device)  # weights are set in every step
        work = 12.0 * flops(network, statistics.spec) * min(c.batch_syn or 10**9, len(self.synthetic.labels)) * c.syn_steps * c.iterations
        # A student on few images waits for Python more than for arithmetic: compiled, a step is 9 ms shorter (10 images, width 32).
        many = c.compile in ("auto", "no-graphs") and c.syn_steps * c.iterations >= WORTH_STUDENT_STEPS
        self.student = Student(network, compile=many or worth(device, work, c.compile), mode=compile_mode(device, c.compile))
        if c.soft_labels and self.logits is None:
            with torch.no_grad():
                weights = self.trajectories.weights(0, self.trajectories.epochs, device)
                images = self.synthetic.images
                self.logits = torch.cat([self.student.logits(weights, part) for part in images.split(chunk_size(images))])
        if self.logits is not None and self.label_velocity is None:
            self.label_velocity = torch.zeros_like(self.logits)

    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """One iteration of algorithm 1; returns ``loss`` (the normalised distance) and ``lr``, 0-dimensional."""
        if self.trajectories is None:
            self.prepare(statistics)
        assert self.trajectories is not None
        c, device, images = self.config, self.synthetic.stored.device, self.synthetic.images
        expert, epoch = (
            int(torch.randint(high, (), generator=generator, device=generator.device))
            for high in (self.trajectories.experts, c.max_start_epoch + 1)
        )
        start = self.trajectories.weights(expert, epoch, device)
        target = self.trajectories.weights(expert, epoch + c.expert_epochs, device)
        batches = self._batches(generator)
        draws = [self._draw(generator, len(batch)) for batch in batches]
        views = together(batches, draws, images) if device.type != "cpu" else one_by_one(batches, draws)
        at_once = max(1, VIEW_BATCHES * group_size(images) // max(map(len, batches)))

        labels = self.synthetic.labels if self.logits is None else self.logits.softmax(1)
        gradients = matching_gradient(self.student, start, target, images, labels, self.lr, steps=c.syn_steps, views=views, at_once=at_once)
        if c.max_norm is not None:
            gradients = shortened(gradients, c.max_norm)
        self.synthetic.descend([gradients.images], c.lr_img, c.momentum)
        self.lr_velocity.mul_(c.momentum).add_(gradients.lr)
        self.lr = (self.lr - c.lr_lr * self.lr_velocity).clamp_min(MIN_LR)
        if self.logits is not None and gradients.labels is not None and self.label_velocity is not None:
            # Through the softmax: dL/dlogits = p * (dL/dp - sum of p * dL/dp).
            inner = (labels * gradients.labels).sum(1, keepdim=True)
            self.label_velocity.mul_(c.momentum).add_(labels * (gradients.labels - inner))
            self.logits = self.logits - c.lr_label * self.label_velocity
        return {"loss": gradients.loss, "lr": self.lr}

    def _batches(self, generator: torch.Generator) -> list[Tensor]:
        """The indices of each step, on the host: all images, or consecutive batches of random orders."""
        count = len(self.synthetic.labels)
        size = min(self.config.batch_syn or count, count)
        batches: list[Tensor] = []
        while len(batches) < self.config.syn_steps:
            order = torch.randperm(count, generator=generator, device=generator.device)
            batches += order.split(size)
        return batches[: self.config.syn_steps]

    def _draw(self, generator: torch.Generator, count: int) -> Parameters:
        return draw(self.strategy, generator, *self.synthetic.spec.shape[1:], count)

    def state(self) -> dict[str, Tensor]:
        """Images, the learned step size, soft labels where they are learned, and their velocities."""
        soft = {"logits": self.logits, "label_velocity": self.label_velocity}
        return {
            **self.synthetic.state(),
            "lr": self.lr,
            "lr_velocity": self.lr_velocity,
            **{name: value for name, value in soft.items() if value is not None},
        }

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        self.synthetic.load_state(state)
        device = self.synthetic.stored.device
        self.lr, self.lr_velocity = state["lr"].to(device), state["lr_velocity"].to(device)
        if "logits" in state:
            self.logits = state["logits"].to(device)
        if "label_velocity" in state:
            self.label_velocity = state["label_velocity"].to(device)
