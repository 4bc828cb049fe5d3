"""`Recipe` and `train_on`: the only training loop, used by evaluation and by every application."""

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field
from torch import Tensor, nn

from distill import augment_dc
from distill.augment import augment, for_data, strategy
from distill.batches import chunks
from distill.condensed import CondensedSet
from distill.configure import STRICT
from distill.data import ImageData
from distill.devices import sent
from distill.errors import InputError, unknown_name
from distill.fast import Compile, Precision, accelerated
from distill.labels import DEFAULT_KIND, LABEL_KINDS
from distill.mixing import mixed
from distill.networks import Factory, create, flops, has_batchnorm
from distill.randomness import generator
from distill.soft_losses import LABELLED_AT_ONCE, goal_of, in_words
from distill.spec import DataSpec
from distill.teachers import Teacher
from distill.tf32 import products


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Recipe:
    """How a network is trained on any set: the same object for condensed sets, coresets and the full data.

    Attributes:
        epochs: passes over the images.
        max_steps: limit on optimiser steps; training ends at whichever comes first.
        batch_size: images per step.
        optimiser: "sgd" or "adamw".
        lr: step size. With SGD a set's learned step size (`CondensedSet.lr`) replaces it.
        momentum: of SGD.
        weight_decay: of both optimisers.
        schedule: "step" multiplies lr by 0.1 after ``drop_epochs`` and resets the momentum, as the published code does; or "cosine",
            "constant".
        drop_epochs: see ``schedule``; None: half of the training.
        augmentation: a strategy (`distill.augment.strategy`); "auto": the set's own (`CondensedSet.augmentation`), else DSA's for the data.
        precision: "float32", "tf32" (on a GPU, see `distill.tf32`) or "bf16", in training; `evaluate` tests in float32.
        compile: "auto", "on" or "off", see `distill.fast`.
        mix: "cutmix" or "mixup" mixes half of the batches (`distill.mixing`); None: no mixing.
        milestones: fractions of all steps after which lr is multiplied by ``decay``, in place of ``schedule``.
        decay: see ``milestones``; None: 0.1.
        loss: "ce", "kl", "mse", "cosine" or "gift" (`distill.soft_losses`); None: that of the set's kind of labels; with a teacher "ce".
        temperature: of "kl"; None: 1.
        hard_weight: weight of the cross-entropy with the hard labels, added to ``loss``; None: 0.
        teacher: the network that labels the images, as a table; None: the labels of the images.
    """

    epochs: Annotated[int, Field(ge=1)] = 1001
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 256
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["step", "cosine", "constant"] = "step"
    drop_epochs: Annotated[int, Field(ge=1)] | None = None
    augmentation: str = "auto"
    precision: Precision = "float32"
    compile: Compile = "auto"
    mix: Literal["cutmix", "mixup"] | None = None
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] | None = None
    decay: Annotated[float, Field(gt=0, lt=1)] | None = None
    loss: Literal["ce", "kl", "mse", "cosine", "gift"] | None = None
    temperature: Annotated[float, Field(gt=0)] | None = None
    hard_weight: Annotated[float, Field(ge=0)] | None = None
    teacher: Teacher | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and self.loss != "kl":
            raise InputError(f"temperature is {self.temperature:g} and loss is {self.loss!r}; allowed: a temperature with loss 'kl'.")
        if self.hard_weight is not None and self.loss is None and self.teacher is None:
            raise InputError("hard_weight is added to the loss with soft labels; name a loss or a teacher, or leave it out.")

    @property
    def without_teacher(self) -> "Recipe":
        """The same recipe for images with hard labels."""
        return dataclasses.replace(self, loss=None, temperature=None, hard_weight=None, teacher=None) if self.teacher else self

    def steps(self, images: int) -> int:
        """Number of optimiser steps when training on ``images`` images."""
        everything = self.epochs * -(-images // self.batch_size)
        return min(everything, self.max_steps or everything)

    def passes(self, images: int) -> float:
        """The same as a number of epochs: 0.125 if ``max_steps`` ends training after an eighth of the images."""
        return self.steps(images) / -(-images // self.batch_size)

    def __str__(self) -> str:
        name = "AdamW" if self.optimiser == "adamw" else "SGD"
        end = f", at most {self.max_steps} steps" if self.max_steps else ""
        return (
            f"{name}, lr {self.lr:g} ({self.schedule}), batch size {self.batch_size}, {self.epochs} epochs{end}, "
            f"augmentation {self.augmentation}{f', {self.mix}' if self.mix else ''}{in_words(self)}"
        )


def _published(epochs: int, batch_size: int = 256, augmentation: str = "auto") -> Recipe:
    """`evaluate_synset` of VICO-UoE/DatasetCondensation, utils.py, which the later authors copied.

    It counts epochs from 0 to E, so E + 1 of them, and looks at its schedule [E // 2 + 1] *after* the epoch of that number: the first
    E // 2 + 2 epochs have the full step size.
    """
    return Recipe(epochs=epochs + 1, batch_size=batch_size, augmentation=augmentation, drop_epochs=epochs // 2 + 2)


PROTOCOLS: dict[str, Recipe] = {
    # VICO-UoE/DatasetCondensation, main.py and utils.py (`get_daparam`): 300 epochs, or 1,000 where the augmentation is on.
    "dc": _published(300, augmentation="none"),
    "dc-augmented": _published(1000, augmentation="dc_crop_scale_rotate"),
    # The same repository, main.py with --method DSA and main_DM.py. MTT's evaluation is "dm" at the learned step size (mtt-distillation,
    # utils.py, `evaluate_synset`).
    "dsa": _published(1000),
    "dm": _published(1000),
    # DataDistillation/DataDAM, main_DataDAM.py: its defaults, for which "ConvNet" is batch norm (utils.py, `get_network`): ConvNetBN here.
    "datadam": _published(1800, batch_size=64),
    # Settings of the paper as a user quotes them (DataDAM issue 6, not contradicted there): batch 256, and ZCA, which is the data's.
    "datadam-paper": _published(1800, batch_size=256),
    # snu-mllab/Efficient-Dataset-Condensation, argument.py and train.py; the strategy is DSA's without cutout (`protocol`).
    "idc": Recipe(epochs=1000, batch_size=64, mix="cutmix", milestones=(2 / 3, 5 / 6), decay=0.2),
    # gszfwsb/NCFM, config/: the mean over networks of the last epoch, where the authors take each network's best one.
    "ncfm": Recipe(epochs=2000, batch_size=128, optimiser="adamw", lr=0.001, mix="cutmix", milestones=(0.2, 0.4, 0.6, 0.8), decay=0.5),
    "laptop": Recipe(epochs=1001, max_steps=200, batch_size=32, optimiser="adamw", lr=0.001, schedule="cosine"),
}


def protocol(name: str, spec: DataSpec, network: Factory = "ConvNet") -> Recipe:
    """A named recipe of `PROTOCOLS`, as its authors use it for this data set and evaluation network.

    ``idc`` has no cutout, and no CutMix on MNIST. ``dc`` depends on both: MNIST is augmented and a ConvNetBN gets crops and noise, both
    for 1,000 epochs; every other data set, SVHN and FashionMNIST included, is used without augmentation for 300 (`get_daparam` of the
    authors' utils.py). Raises `InputError` for an unknown name.
    """
    if name not in PROTOCOLS:
        raise unknown_name("protocol", name, PROTOCOLS)
    augmentation = "none"
    if name == "idc":
        grey = spec.name.lower() == "mnist"  # whose formations the authors train without CutMix
        return dataclasses.replace(PROTOCOLS[name], augmentation=for_data(spec).replace("_cutout", ""), mix=None if grey else "cutmix")
    if name == "dc":
        augmentation = augment_dc.BATCHNORM if network == "ConvNetBN" else augment_dc.for_data(spec)
    return PROTOCOLS[name] if augmentation == "none" else dataclasses.replace(PROTOCOLS["dc-augmented"], augmentation=augmentation)


def train_on(
    source: CondensedSet | ImageData,
    network: Factory = "ConvNet",
    recipe: Recipe | str = "laptop",
    seeds: int | Iterable[int] = 5,
    device: torch.device | str | None = None,
    *,
    teacher: nn.Module | None = None,
) -> list[nn.Module]:
    """Train networks on a set.

    Args:
        source: a condensed set, or data, of which the training split is used.
        network: a name, or a function of the data spec that returns a module.
        recipe: a `Recipe`, or a name in `PROTOCOLS`.
        seeds: number of networks, or their seeds.
        device: where to train; None: where ``source`` is.
        teacher: the trained network of the recipe's teacher (`distill.teachers.teacher_network`), or your own, whose outputs are logits.

    Returns:
        One network per seed, in evaluation mode, on that device.

    Raises:
        InputError: for an unknown name.
    """
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    return [train_network(source, network, recipe, seed, device, teacher=teacher) for seed in seeds]


def train_network(
    source: CondensedSet | ImageData,
    network: Factory,
    recipe: Recipe | str,
    seed: int,
    device: torch.device | str | None = None,
    *,
    teacher: nn.Module | None = None,
) -> nn.Module:
    """Train one network; see `train_on`.

    The seed decides its initial weights, the order of the images and their augmentation. The loss is the recipe's, or that of the set's
    `CondensedSet.label_kind`: cross-entropy, or mean squared error for scores.
    """
    recipe = protocol(recipe, source.spec, network) if isinstance(recipe, str) else recipe
    source = source if device is None else source.to(device)
    source = source.decoded() if isinstance(source, CondensedSet) else source
    with products(recipe.precision, source.device if isinstance(source, ImageData) else source.images.device):
        return _trained(source, network, recipe, seed, teacher)


def _trained(source: CondensedSet | ImageData, network: Factory, recipe: Recipe, seed: int, teacher: nn.Module | None) -> nn.Module:
    count, where, fetch, lr = _parts(source)
    kind = source.label_kind if isinstance(source, CondensedSet) else DEFAULT_KIND
    every = (fetch(part)[0] for part in torch.arange(count, device=where).split(LABELLED_AT_ONCE))
    loss, goal = LABEL_KINDS[kind].loss, goal_of(recipe, teacher, kind, source.spec.num_classes, every, where)
    model = create(network, source.spec, generator(seed, "weights"), where)
    draws = generator(seed, "training")
    transform = strategy(resolved(recipe, source).augmentation)

    per_epoch, total = -(-count // recipe.batch_size), recipe.steps(count)
    descent = Descent(list(model.parameters()), recipe, lr, count)
    whole = has_batchnorm(model)
    run = accelerated(model, where, work_of(model, source.spec, recipe, total), recipe.precision, recipe.compile)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(total):
        place = step % per_epoch
        if place == 0:
            order = sent(torch.randperm(count, generator=draws), where)
        rows = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        images, labels = fetch(rows)
        if transform.transforms:
            images = augment(images, transform, draws)
        descent.begin(step)
        both = mixed(images, recipe.mix, draws)
        if goal is not None:
            views = images if both is None else both.images
            prepared, shares = goal.targets(views, labels, rows, both)
            for part, here in chunks(views, torch.arange(len(views), device=views.device), whole=whole):
                (goal(run(part), prepared[here], shares[here]) / len(views)).backward()
        elif both is None:
            for part, target in chunks(images, labels, whole=whole):
                (loss(run(part), target) / len(images)).backward()
        else:
            for part, here in chunks(both.images, torch.arange(len(images), device=images.device), whole=whole):
                outputs = run(part)
                own, other = loss(outputs, labels[here]), loss(outputs, labels[both.other[here]])
                ((both.share * own + (1 - both.share) * other) / len(images)).backward()
        descent.optimiser.step()
    return model.eval()


class Descent:
    """A recipe's optimiser with its step sizes.

    Args:
        parameters: what is trained.
        recipe: the recipe.
        lr: step size that the set names, which SGD takes; None: the recipe's.
        count: number of training images.
    """

    def __init__(self, parameters: Sequence[Tensor], recipe: Recipe, lr: float | None, count: int) -> None:
        per_epoch, self.total = -(-count // recipe.batch_size), recipe.steps(count)
        # Half way, in whole epochs where no limit on steps cuts them: the first (epochs + 1) // 2 of them at the full step size.
        self.drop = (recipe.epochs + 1) // 2 * per_epoch if self.total == recipe.epochs * per_epoch else (self.total + 1) // 2
        if recipe.drop_epochs is not None:
            self.drop = recipe.drop_epochs * per_epoch
        self.parameters, self.recipe = parameters, recipe
        self.lr = lr if lr and recipe.optimiser == "sgd" else recipe.lr
        self.optimiser = _optimiser(parameters, recipe, self.lr)

    def begin(self, step: int) -> None:
        """Set the step size of this step, counted from 0, and remove the gradients of the last one."""
        recipe = self.recipe
        if recipe.milestones is not None:
            passed = sum(step >= round(self.total * part) for part in recipe.milestones)
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr * (recipe.decay or 0.1) ** passed
        elif recipe.schedule == "step" and step == self.drop:
            self.optimiser = _optimiser(self.parameters, recipe, 0.1 * self.lr)
        elif recipe.schedule == "cosine":
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr * 0.5 * (1 + math.cos(math.pi * step / self.total))
        self.optimiser.zero_grad()


def resolved(recipe: Recipe, source: CondensedSet | ImageData) -> Recipe:
    """The recipe with the augmentation "auto" replaced by that of this set or data."""
    if recipe.augmentation != "auto":
        return recipe
    named = source.augmentation if isinstance(source, CondensedSet) else None
    return dataclasses.replace(recipe, augmentation=named or for_data(source.spec))


def work_of(model: nn.Module, spec: DataSpec, recipe: Recipe, steps: int) -> float:
    """Floating-point operations of ``steps`` optimiser steps: one forward and two backward passes over each image."""
    return 3.0 * flops(model, spec) * recipe.batch_size * steps


def _optimiser(parameters: Sequence[Tensor], recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    # All parameters in a few operations, which is what torch does by itself on a GPU.
    together = None if not parameters or parameters[0].device.type == "cpu" else True
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=recipe.weight_decay, foreach=together)
    return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=together)


def _parts(source: CondensedSet | ImageData) -> tuple[int, torch.device, Callable[[Tensor], tuple[Tensor, Tensor]], float | None]:
    """(number of images, device, indices -> (normalised images, labels), learned lr)."""
    if isinstance(source, CondensedSet):
        images, labels = source.images, source.labels
        return len(images), images.device, lambda index: (images[index], labels[index]), source.lr
    data = source
    return len(data.train), data.device, lambda index: (data.normalised("train", index), data.train.labels[index]), None
