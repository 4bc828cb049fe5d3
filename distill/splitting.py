"""Part of each class's images kept apart, for validation or for tests."""

import torch
from torch import Tensor

from distill.errors import InputError


def check_fraction(fraction: float) -> None:
    """Raises `InputError` unless this is a number of at least 0 and below 1."""
    if not isinstance(fraction, int | float) or not 0 <= fraction < 1:
        raise InputError(f"validation is {str(fraction)[:40]}; allowed: a fraction from 0 up to, not including, 1.")


def carve(labels: Tensor, fraction: float, draws: torch.Generator) -> tuple[Tensor, Tensor]:
    """Divide the images class by class.

    Args:
        labels: (N,) int64.
        fraction: the share of each class that is kept apart, from 0 to below 1.
        draws: chooses the images.

    Returns:
        Positions of the images that stay and of those that are kept apart, each rising. Of a class with two images or more at least one
        is kept apart, and never all.
    """
    apart = torch.zeros(len(labels), dtype=torch.bool)
    for places in torch.split(torch.argsort(labels, stable=True), torch.bincount(labels).tolist()):
        if len(places):
            count = min(max(1, round(fraction * len(places))), len(places) - 1)
            apart[places[torch.randperm(len(places), generator=draws)[:count]]] = True
    return (~apart).nonzero().squeeze(1), apart.nonzero().squeeze(1)
