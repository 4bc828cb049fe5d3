"""The Siamese rule: a class's real and synthetic images go through one and the same random transform."""

from torch import Generator, Tensor

from distill.augment import Strategy, apply, draw
from distill.batches import Augment
from distill.statistics import RealStatistics


def shared_draws(strategy: Strategy, statistics: RealStatistics, generator: Generator) -> Augment:
    """New parameters for each class, fixed for one step: Zhao and Bilen, ICML 2021, eq. 6."""
    _, height, width = statistics.spec.shape
    draws = [draw(strategy, generator, height, width, None) for _ in statistics.classes]

    def augment(images: Tensor, position: int) -> Tensor:
        return apply(images, draws[position])

    return augment
