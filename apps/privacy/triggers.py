"""What is planted in images: a patch, or a perturbation of all pixels that nobody sees."""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import InputError
from distill.spec import DataSpec, column

INVISIBLE = 8 / 255  # largest change of a pixel in [0, 1]


class Planted(Protocol):
    """A trigger.

    Attributes:
        pixels: what an optimisation changes.
        low, high: range of ``pixels``.
    """

    @property
    def pixels(self) -> Tensor: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...

    def on(self, images: Tensor, spec: DataSpec) -> Tensor:
        """Normalised images (n, C, H, W) with the trigger; differentiable in ``pixels``."""
        ...

    def in_files(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) as a data set holds them, pixels uint8 or in [0, 1], with the trigger."""
        ...

    def moved(self, pixels: Tensor) -> Self:
        """The same with other ``pixels``."""
        ...


@dataclass(frozen=True)
class Trigger:
    """A patch of pixels (C, h, w) in [0, 1] and the place of its upper left corner."""

    pixels: Tensor
    row: int
    column: int
    low: float = 0.0
    high: float = 1.0

    def on(self, images: Tensor, spec: DataSpec) -> Tensor:
        """The patch in the place of what is there."""
        _, height, width = self.pixels.shape
        patch = spec.normalise(self.pixels[None].to(images.device))[0]
        where = (self.column, spec.width - self.column - width, self.row, spec.height - self.row - height)
        mask = F.pad(torch.ones_like(patch), where)
        return images * (1 - mask) + F.pad(patch, where)

    def in_files(self, images: Tensor) -> Tensor:
        """The same in files' pixels."""
        _, height, width = self.pixels.shape
        made = images.clone()
        pixels = (self.pixels * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else self.pixels
        made[:, :, self.row : self.row + height, self.column : self.column + width] = pixels.to(images.device)
        return made

    def moved(self, pixels: Tensor) -> "Trigger":
        """The patch with other pixels, at the same place."""
        return Trigger(pixels, self.row, self.column, self.low, self.high)


@dataclass(frozen=True)
class Perturbation:
    """An image (C, H, W) that is added to pixels in [0, 1], none of them larger than `INVISIBLE`; the sum stays in [0, 1].

    In the place of the optimised noise of Li et al., "Invisible Backdoor Attacks on Deep Neural Networks via Steganography and
    Regularization" (IEEE TDSC, 2021), whose size a penalty keeps small: here it is a bound.
    """

    pixels: Tensor
    low: float = -INVISIBLE
    high: float = INVISIBLE

    def on(self, images: Tensor, spec: DataSpec) -> Tensor:
        """The images with the perturbation added."""
        mean, std = (column(values, images.dtype, images.device) for values in (spec.mean, spec.std))
        return (torch.clamp(images * std + mean + self.pixels.to(images.device), 0.0, 1.0) - mean) / std

    def in_files(self, images: Tensor) -> Tensor:
        """The same in files' pixels."""
        whole = images.dtype == torch.uint8
        found = torch.clamp((images.float() / 255 if whole else images) + self.pixels.to(images.device), 0.0, 1.0)
        return (found * 255).round().to(torch.uint8) if whole else found

    def moved(self, pixels: Tensor) -> "Perturbation":
        """One with other pixels."""
        return Perturbation(pixels, self.low, self.high)


def white_square(spec: DataSpec, size: int = 2) -> Trigger:
    """A white square in the lower right corner; `InputError` unless it is smaller than the image."""
    if not 0 < size < min(spec.height, spec.width):
        raise InputError(f"trigger size is {size}; allowed: 1 to {min(spec.height, spec.width) - 1} for these images.")
    return Trigger(torch.ones(spec.channels, size, size), spec.height - size, spec.width - size)


def invisible(spec: DataSpec, draws: torch.Generator) -> Perturbation:
    """A first perturbation: each number is the bound with a random sign."""
    return Perturbation(INVISIBLE * (2 * torch.randint(2, spec.shape, generator=draws) - 1).float())


def stamped(images: Tensor, trigger: Planted, spec: DataSpec) -> Tensor:
    """Normalised images (n, C, H, W) with the trigger on them; differentiable in its pixels."""
    return trigger.on(images, spec)
