"""CutMix and MixUp: a batch of images mixed with the same batch in another order."""

from typing import NamedTuple

import scipy.special
import torch
from torch import Tensor

from distill.devices import sent

PROBABILITY = 0.5  # of a batch to be mixed (Kim et al., IDC, train.py)


class Mixed(NamedTuple):
    """Mixed images (N, C, H, W), the other image of each (N,), and the share of the first, 0 to 1: the loss is mixed alike."""

    images: Tensor
    other: Tensor
    share: float


def mixed(
    images: Tensor, kind: str | None, generator: torch.Generator, *, probability: float | None = None, alpha: float | None = None
) -> Mixed | None:
    """The batch mixed with a ``probability`` (None: `PROBABILITY`), else None.

    "cutmix" pastes a rectangle of the other image whose area is one minus a random share, cut at the border, and counts the pixels that
    are left (Yun et al., ICCV 2019). "mixup" adds pixels with the share as weight (Zhang et al., ICLR 2018). The share has the beta
    distribution with both parameters ``alpha``; None: 1, which is uniform.
    """
    if kind is None:
        return None
    chance, share, *place = torch.rand((4,), generator=generator, device=generator.device).tolist()
    if chance >= (PROBABILITY if probability is None else probability):
        return None
    share = share if alpha is None else float(scipy.special.betaincinv(alpha, alpha, share))
    other = sent(torch.randperm(len(images), generator=generator, device=generator.device), images.device)
    if kind == "mixup":
        return Mixed(share * images + (1 - share) * images[other], other, share)
    height, width = images.shape[-2:]
    side = (1 - share) ** 0.5
    (top, bottom), (left, right) = (_cut(size, side, middle) for size, middle in zip((height, width), place, strict=True))
    result = images.clone()
    result[..., top:bottom, left:right] = images[other][..., top:bottom, left:right]
    return Mixed(result, other, 1 - (bottom - top) * (right - left) / (height * width))


def _cut(size: int, part: float, middle: float) -> tuple[int, int]:
    """Ends of an interval of ``part`` of ``size`` around a uniform ``middle``, cut at the border."""
    half, centre = int(size * part) // 2, int(size * middle)
    return max(0, centre - half), min(size, centre + half)
