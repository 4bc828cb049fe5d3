"""`Recipe`: how a network is trained on any set, as a frozen table."""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from distill.configure import config_class
from distill.errors import InputError
from distill.fast import Compile, Precision
from distill.soft_losses import in_words
from distill.teachers import Teacher


@config_class
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
        schedule: "step" multiplies lr by 0.1 after ``drop_epochs`` and resets the momentum, as the published code does; or a name in
            `distill.descent.SCHEDULES`.
        drop_epochs: see ``schedule``; None: half of the training.
        augmentation: a strategy (`distill.augment.strategy`); "auto": the set's own (`CondensedSet.augmentation`), else DSA's for the data.
        precision: "float32", "tf32" (on a GPU, see `distill.tf32`) or "bf16", in training; `evaluate` tests in float32.
        compile: "auto", "on" or "off", see `distill.fast`.
        mix: "cutmix" or "mixup" mixes batches (`distill.mixing`); None: no mixing.
        mix_probability: share of the batches that ``mix`` mixes; None: 0.5.
        mix_alpha: both parameters of the beta distribution of the first image's share; None: 1, which is uniform.
        milestones: fractions of all steps after which lr is multiplied by ``decay``, in place of ``schedule``.
        decay: see ``milestones``; None: 0.1.
        loss: "ce", "kl", "mse", "cosine" or "gift" (`distill.soft_losses`); None: that of the set's kind of labels; with a teacher "ce".
        temperature: of "kl"; None: 1.
        hard_weight: weight of the cross-entropy with the hard labels, added to ``loss``; None: 0.
        teacher: the network that labels the images, as a table; None: the labels of the images.
        warmup: steps in which lr rises from 0 before the schedule "cosine"; None: 0.
        lr_end: the fraction of lr at which the schedule "cosine" ends; None: 0.
        ema: decay of an exponential moving average of the weights, from the initial ones on, which is updated after every step and is the
            trained network; None: the last weights are.
    """

    epochs: Annotated[int, Field(ge=1)] = 1001
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 256
    optimiser: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    schedule: Literal["step", "cosine", "constant", "epoch-cosine", "half-cosine", "smooth-steep"] = "step"
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
    warmup: Annotated[int, Field(ge=1)] | None = None
    lr_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    mix_probability: Annotated[float, Field(gt=0, le=1)] | None = None
    mix_alpha: Annotated[float, Field(gt=0)] | None = None
    ema: Annotated[float, Field(gt=0, lt=1)] | None = None

    def __post_init__(self) -> None:
        if self.temperature is not None and self.loss != "kl":
            raise InputError(f"temperature is {self.temperature:g} and loss is {self.loss!r}; allowed: a temperature with loss 'kl'.")
        if self.hard_weight is not None and self.loss is None and self.teacher is None:
            raise InputError("hard_weight is added to the loss with soft labels; name a loss or a teacher, or leave it out.")
        if (self.warmup or self.lr_end) and (self.schedule != "cosine" or self.milestones is not None):
            raise InputError(f"warmup and lr_end are of schedule 'cosine', and schedule is {self.schedule!r}; leave them out.")
        if (self.mix_probability or self.mix_alpha) and self.mix is None:
            raise InputError("mix_probability and mix_alpha are of mix, which is not given; name 'cutmix' or 'mixup', or leave them out.")

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
        end = f", at most {self.max_steps} step{'s' if self.max_steps > 1 else ''}" if self.max_steps else ""
        average = f", moving average of weights {self.ema:g}" if self.ema else ""
        warm = f", {self.warmup} step{'s' if self.warmup > 1 else ''} of warm-up" if self.warmup else ""
        share = f" of {self.mix_probability:.0%} of the batches" if self.mix_probability else ""
        mix = f", {self.mix}{f' ({self.mix_alpha:g})' if self.mix_alpha else ''}{share}" if self.mix else ""
        passes = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        return (
            f"{name}, lr {self.lr:g} ({self.schedule}{warm}), batch size {self.batch_size}, {passes}{end}, "
            f"augmentation {self.augmentation}{mix}{average}{in_words(self)}"
        )
