"""The Siamese rule: a class's real and synthetic images go through one and the same random transform."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from distill.augment import Parameters, Strategy, apply, apply_effects, draw, effects
from distill.statistics import RealStatistics


class Shared:
    """One transform a class: called with (images of one class, its position), or by `many` with images of several classes."""

    def __init__(self, draws: Sequence[Parameters]) -> None:
        self.draws = draws
        self.separate = any(one.transform.startswith(("dc_", "all_")) for one in draws)  # see `effects`
        self.nothing = all(one.transform == "none" for one in draws)
        self.rows: Tensor | None = None

    def __call__(self, images: Tensor, position: int) -> Tensor:
        return apply(images, self.draws[position])

    def many(self, images: Tensor, positions: Sequence[int], counts: Sequence[int]) -> Tensor:
        """Images of the classes at ``positions``, ``counts`` of each one after the other, in a number of operations that is independent
        of the number of classes, unless the strategy is a ``dc_`` or ``all_`` one."""
        if self.nothing:
            return images
        if self.separate:
            return torch.cat([self(part, place) for part, place in zip(images.split(list(counts)), positions, strict=True)])
        if self.rows is None:
            self.rows = torch.cat([effects(one) for one in self.draws])
        classes = torch.tensor(list(positions)).repeat_interleave(torch.tensor(list(counts)))
        return apply_effects(images, self.rows[classes])


def shared_draws(strategy: Strategy, statistics: RealStatistics, generator: Generator) -> Shared:
    """New parameters for each class, fixed for one step: Zhao and Bilen, ICML 2021, eq. 6."""
    _, height, width = statistics.spec.shape
    return Shared([draw(strategy, generator, height, width, None) for _ in statistics.classes])
