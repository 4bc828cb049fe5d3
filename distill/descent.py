"""A recipe's optimiser, with the step size of every step."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from distill.recipe import Recipe


def _falling(part: float) -> float:
    """Half a cosine wave, from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * part))


def _smooth_steep(part: float) -> float:
    return _falling(part / 2) if part <= 5 / 6 else _falling(5 / 12) * (1 - part)


# What a step size is multiplied with, as a function of the part of the training that is over, 0 to below 1: in steps, or in whole epochs,
# where the authors' schedulers are advanced once an epoch. "step" is `Descent`'s own: it resets the momentum, too.
SCHEDULES: dict[str, tuple[Callable[[float], float], bool]] = {
    "constant": (lambda part: 1.0, False),
    "cosine": (_falling, False),
    # VILA-Lab/SRe2L, small_dataset/relabel_cifar.py: CosineAnnealingLR.
    "epoch-cosine": (_falling, True),
    # LINs-lab/RDED, validation/main.py: the first half of a cosine over twice the epochs, which ends at half the step size.
    "half-cosine": (lambda part: _falling(part / 2), True),
    # shaoshitong/EDC, train/direct_train.py, "cos2" at st 2: the same for five sixths of the epochs, then a line to 0 from a sixth of it.
    "smooth-steep": (_smooth_steep, True),
}


class Descent:
    """A recipe's optimiser with its step sizes.

    Args:
        parameters: what is trained.
        recipe: the recipe.
        lr: step size that the set names, which SGD takes; None: the recipe's.
        count: number of training images.
    """

    def __init__(self, parameters: Sequence[Tensor], recipe: Recipe, lr: float | None, count: int) -> None:
        self.per_epoch, self.total = -(-count // recipe.batch_size), recipe.steps(count)
        whole = self.total == recipe.epochs * self.per_epoch  # no limit on steps cuts an epoch
        # Half way, if possible in whole epochs: the first (epochs + 1) // 2 of them at the full step size.
        self.drop = (recipe.epochs + 1) // 2 * self.per_epoch if whole else (self.total + 1) // 2
        if recipe.drop_epochs is not None:
            self.drop = recipe.drop_epochs * self.per_epoch
        # If possible in whole epochs, rounded down.
        parts = recipe.milestones or ()
        self.milestones = [int(recipe.epochs * part + 1e-9) * self.per_epoch if whole else round(self.total * part) for part in parts]
        self.parameters, self.recipe = parameters, recipe
        self.lr = lr if lr and recipe.optimiser == "sgd" else recipe.lr
        self.optimiser = _optimiser(parameters, recipe, self.lr)

    def begin(self, step: int) -> None:
        """Set the step size of this step, counted from 0, and remove the gradients of the last one."""
        recipe = self.recipe
        if recipe.milestones is not None:
            passed = sum(step >= milestone for milestone in self.milestones)
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr * (recipe.decay or 0.1) ** passed
        elif recipe.schedule == "step" and step == self.drop:
            self.optimiser = _optimiser(self.parameters, recipe, 0.1 * self.lr)
        elif recipe.schedule != "step":
            for group in self.optimiser.param_groups:
                group["lr"] = self.lr * self._factor(step)
        self.optimiser.zero_grad()

    def _factor(self, step: int) -> float:
        """What the schedule multiplies the step size with; a warm-up is counted apart from it (optax, as FRePo's evaluation has it)."""
        falling, by_epoch = SCHEDULES[self.recipe.schedule]
        warmup, end = self.recipe.warmup or 0, self.recipe.lr_end or 0.0
        if step < warmup:
            return step / warmup
        if by_epoch:
            return falling(step // self.per_epoch * self.per_epoch / self.total)
        return end + (1 - end) * falling((step - warmup) / max(1, self.total - warmup))


def _optimiser(parameters: Sequence[Tensor], recipe: Recipe, lr: float) -> torch.optim.Optimizer:
    # All parameters in a few operations, which is what torch does by itself on a GPU.
    together = None if not parameters or parameters[0].device.type == "cpu" else True
    if recipe.optimiser == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=recipe.weight_decay, foreach=together)
    return torch.optim.SGD(parameters, lr=lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay, foreach=together)
