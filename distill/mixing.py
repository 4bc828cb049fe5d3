"""CutMix and MixUp: a batch of images mixed with the same batch in another order, or each image with a partner."""

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
    share = float(beta(torch.tensor(share, dtype=torch.float64), alpha))
    other = sent(torch.randperm(len(images), generator=generator, device=generator.device), images.device)
    if kind == "mixup":
        return Mixed(share * images + (1 - share) * images[other], other, share)
    height, width = images.shape[-2:]
    top, bottom, left, right = rectangles(torch.tensor([share], dtype=torch.float64), torch.tensor([place]), height, width)[0].tolist()
    result = images.clone()
    result[..., top:bottom, left:right] = images[other][..., top:bottom, left:right]
    return Mixed(result, other, 1 - (bottom - top) * (right - left) / (height * width))


def beta(uniform: Tensor, alpha: float | None) -> Tensor:
    """Uniform numbers as draws of the beta distribution with both parameters ``alpha``; None: 1, as they are."""
    if alpha is None:
        return uniform
    return torch.as_tensor(scipy.special.betaincinv(alpha, alpha, uniform.double().numpy())).to(uniform.dtype)  # one is a numpy number


def rectangles(shares: Tensor, places: Tensor, height: int, width: int) -> Tensor:
    """CutMix's rectangles (n, 4) int64: top, bottom, left, right, the ends not inside; on the CPU.

    Args:
        shares: (n,) of the image itself, 0 to 1; the rectangle has the rest of the area before it is cut at the border.
        places: (n, 2) of the middle, downwards and to the right, as fractions of the sides.
        height: pixels.
        width: pixels.
    """
    sides = torch.tensor([height, width])
    half = (sides * (1 - shares.double()).sqrt()[:, None]).long() // 2
    middle = (sides * places.double()).long()
    low, high = (middle - half).clamp_min(0), torch.minimum(middle + half, sides)
    return torch.stack([low, high], 2).flatten(1)


def blended(images: Tensor, others: Tensor, shares: Tensor, holes: Tensor | None) -> tuple[Tensor, Tensor]:
    """Images (n, C, H, W) with ``others`` mixed in, each by its own numbers, and the shares (n, 1) that are left of the images.

    Args:
        images: the images.
        others: their partners, of the same shape.
        shares: (n,) of MixUp.
        holes: (n, 4) of CutMix (`rectangles`), in place of ``shares``.
    """
    if holes is None:
        weight = shares.to(images.dtype).view(-1, 1, 1, 1)
        return weight * images + (1 - weight) * others, weight.view(-1, 1)
    height, width = images.shape[-2:]
    top, bottom, left, right = holes.view(-1, 4, 1).unbind(1)
    rows, columns = torch.arange(height, device=images.device), torch.arange(width, device=images.device)
    inside = ((rows >= top) & (rows < bottom))[:, None, :, None] & ((columns >= left) & (columns < right))[:, None, None, :]
    area = ((bottom - top) * (right - left)).to(images.dtype)
    return torch.where(inside, others, images), 1 - area / (height * width)
