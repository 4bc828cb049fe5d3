"""Coresets choose the same images whatever rounding says."""

import torch

from distill.coresets import clustered
from distill.randomness import generator


def test_the_first_of_two_equally_near_images_is_taken() -> None:
    """Features that differ by rounding, as those of a compiled network do, give the same choice."""
    rows = torch.randn(3, 20, generator=generator(0, "centres")).repeat_interleave(2, 0) * 10
    rows += torch.randn(6, 20, generator=generator(0, "pairs"))
    noise = [1e-7 * torch.randn(6, 20, generator=generator(seed, "rounding")) for seed in range(20)]
    picks = [sorted(clustered(rows + part, 3, generator(0, "kmeans")).tolist()) for part in noise]
    assert picks == [[0, 2, 4]] * 20
