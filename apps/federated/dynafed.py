"""DynaFed: the server distils a pseudo set from its own sequence of averaged models, and fine-tunes every later average on it. No Flower.

Pi et al., "DynaFed: Tackling Client Data Heterogeneity with Global Dynamics", CVPR 2023. Clients do nothing new and send nothing more. Of
MTT's loss (Cazenavette et al., CVPR 2022, eq. 2) the expert is the trajectory of the federation's models w_0 ... w_L: a student that starts
at w_s must reach the mean of a few later models, which oscillates less than one of them. Defaults are those of the authors' code. Where the
later models are drawn from is our reading: rounds s + 1 to s + 2 ``ahead`` - 1, on average ``ahead`` rounds later. Differentially private
averages stay so, since the set is made of the averages alone.
"""

from collections.abc import Mapping, Sequence
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from apps.federated.received import network_with
from distill.adjoint import Student, matching_gradient, stepwise
from distill.condensed import CondensedSet, Provenance
from distill.configure import config_class
from distill.errors import InputError
from distill.networks import Factory, create
from distill.spec import DataSpec
from distill.train import Recipe, train_network

MIN_LR = 1e-6  # of the learned step size, which must stay positive


@config_class
class DynaFedConfig:
    """``[dynafed]``.

    Attributes:
        rounds: models w_0 ... w_L of this many rounds are the trajectory (L); later rounds are fine-tuned.
        ipc: images of the pseudo set for each class.
        iterations: of its synthesis.
        syn_steps: SGD steps of the student, each on the whole set.
        ahead: rounds from a student's start to its target, on average.
        targets: models whose mean is the target.
        max_start: latest start.
        lr_img: Adam's step size of the images.
        lr_label: of the labels, which are learned as logits.
        lr_lr: of the student's step size.
        lr_init: initial value of the student's step size.
        tune_steps: Adam steps of an average on the set.
        tune_lr: their step size.
    """

    rounds: Annotated[int, Field(ge=1)] = 25
    ipc: Annotated[int, Field(ge=1)] = 15
    iterations: Annotated[int, Field(ge=1)] = 3000
    syn_steps: Annotated[int, Field(ge=1)] = 20
    ahead: Annotated[int, Field(ge=1)] = 3
    targets: Annotated[int, Field(ge=1)] = 2
    max_start: Annotated[int, Field(ge=0)] = 50
    lr_img: Annotated[float, Field(gt=0)] = 0.05
    lr_label: Annotated[float, Field(gt=0)] = 0.01
    lr_lr: Annotated[float, Field(ge=0)] = 1e-5
    lr_init: Annotated[float, Field(gt=0)] = 0.04
    tune_steps: Annotated[int, Field(ge=1)] = 20
    tune_lr: Annotated[float, Field(gt=0)] = 1e-4

    def __post_init__(self) -> None:
        window = 2 * self.ahead - 1
        if window > self.rounds:
            raise InputError(f"dynafed.ahead is {self.ahead} and rounds {self.rounds}; allowed: at most {(self.rounds + 1) // 2} ahead.")
        if self.targets > window:
            raise InputError(f"dynafed.targets is {self.targets}; allowed: at most {window}, the models that are {self.ahead} ahead.")


def segment(trajectory: Sequence[Tensor], config: DynaFedConfig, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """A student's start, and its target: the mean of ``config.targets`` different later models.

    Args:
        trajectory: flat weights (P,) of w_0 ... w_L.
        config: see there.
        draws: of the start and the targets.
    """
    window = 2 * config.ahead - 1
    latest = min(config.max_start, len(trajectory) - 1 - window)
    start = int(torch.randint(latest + 1, (), generator=draws))
    later = torch.randperm(window, generator=draws)[: config.targets].tolist()
    return trajectory[start], torch.stack([trajectory[start + 1 + place] for place in later]).mean(0)


def pseudo_set(
    trajectory: Sequence[Tensor], config: DynaFedConfig, spec: DataSpec, network: Factory, draws: torch.Generator, device: str = "cpu"
) -> CondensedSet:
    """The set on which students go where the federation's models went.

    Args:
        trajectory: flat weights (P,) of w_0 ... w_L.
        config: see there.
        spec: of the data.
        network: whose weights they are.
        draws: of the first images, which are noise, and of segments.
        device: that it is computed on.

    Returns:
        ``ipc`` images a class with soft labels, normalised, and the learned step size.
    """
    count = config.ipc * spec.num_classes
    images = torch.randn((count, *spec.shape), generator=draws).to(device)
    logits, lr = torch.zeros(count, spec.num_classes, device=device), torch.tensor(config.lr_init, device=device)
    student = Student(create(network, spec, torch.Generator().manual_seed(0), torch.device(device)))
    adam = torch.optim.Adam(
        [
            {"params": [images], "lr": config.lr_img},
            {"params": [logits], "lr": config.lr_label},
            {"params": [lr], "lr": config.lr_lr},
        ]
    )
    for _ in range(config.iterations):
        start, target = (weights.to(device) for weights in segment(trajectory, config, draws))
        labels = logits.softmax(1)
        found = matching_gradient(student, start, target, images, labels, lr, stepwise(lambda step, x, y: (x, y)), steps=config.syn_steps)
        assert found.labels is not None
        through = labels * (found.labels - (labels * found.labels).sum(1, keepdim=True))  # of the softmax
        if not all(bool(part.isfinite().all()) for part in (found.images, through, found.lr)):
            continue  # the steps of this student were too long for its curvature, and say nothing about the images
        images.grad, logits.grad, lr.grad = found.images, through, found.lr
        adam.step()
        lr.clamp_(min=MIN_LR)
    return CondensedSet(images.cpu(), logits.softmax(1).cpu(), spec, lr=float(lr), provenance=Provenance("dynafed"))


def tuned(weights: Mapping[str, Tensor], pseudo: CondensedSet, config: DynaFedConfig, network: Factory, seed: int) -> dict[str, Tensor]:
    """The weights after Adam steps of cross-entropy on the whole pseudo set."""
    recipe = Recipe(
        epochs=config.tune_steps,
        max_steps=config.tune_steps,
        batch_size=len(pseudo),
        optimiser="adamw",
        lr=config.tune_lr,
        weight_decay=0.0,  # without it AdamW is Adam
        schedule="constant",
        augmentation="none",
    )
    trained = train_network(pseudo, network_with(network, weights), recipe, seed)
    return {name: value.detach().cpu() for name, value in trained.state_dict().items()}
