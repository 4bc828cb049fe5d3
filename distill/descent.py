"""A recipe's optimiser, with the step size of every step."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.recipe import Recipe
from distill.schedules import SCHEDULES


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
