"""Images as 8-bit codes: each channel is rounded to 256 evenly spaced values, ``low + step * code``.

A set's file, a memory's exemplars and a federated upload store their images like this. They differ in the precision of their grid only.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

Grid = tuple[tuple[float, float], ...]  # (low, step) of each channel
LEVELS = 256
MIN_STEP = 1e-12  # of a channel with one value


def grid_of(images: Tensor, precision: torch.dtype = torch.float64) -> Tensor:
    """The grid from each channel's lowest to its highest value.

    Args:
        images: (N, C, H, W) float32, finite, on any device.
        precision: of the arithmetic and the grid, float64 or float32.

    Returns:
        (C, 2): low and step of each channel, on the images' device.
    """
    values = images.detach().to(precision)
    low, high = values.amin((0, 2, 3)), values.amax((0, 2, 3))
    last = torch.tensor(LEVELS - 1, dtype=precision, device=images.device)
    return torch.stack([low, ((high - low) / last).clamp_min(MIN_STEP)], 1)


def pairs(grid: Tensor) -> Grid:
    """A grid (C, 2) as numbers."""
    return tuple((low, step) for low, step in grid.tolist())


def encode(images: Tensor, grid: Tensor | Sequence[tuple[float, float]]) -> Tensor:
    """The nearest code of each value.

    Args:
        images: (..., C, H, W) float32.
        grid: (C, 2), whose precision is that of the arithmetic, or a (low, step) pair for each channel (float64).

    Returns:
        (..., C, H, W) uint8; values outside the grid get its first or last code.
    """
    low, step = _columns(grid, images.device)
    return ((images.to(low.dtype) - low) / step).round().clamp(0, LEVELS - 1).to(torch.uint8)


def decode(codes: Tensor, grid: Tensor | Sequence[tuple[float, float]]) -> Tensor:
    """Codes (..., C, H, W) back to images of the same shape: float64 arithmetic, float32 result."""
    low, step = _columns(grid, codes.device)
    return (low.double() + step.double() * codes.double()).float()


def _columns(grid: Tensor | Sequence[tuple[float, float]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Low and step, each (C, 1, 1)."""
    table = grid.to(device) if isinstance(grid, Tensor) else torch.tensor(grid, dtype=torch.float64, device=device)
    return table[:, 0].view(-1, 1, 1), table[:, 1].view(-1, 1, 1)
