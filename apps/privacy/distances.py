"""Distances between images, and the nearest of many."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

# (points (n, ...), others (m, ...)) -> (n, m), smaller for what looks more alike.
Distance = Callable[[Tensor, Tensor], Tensor]
# Positions (m,) -> images (m, ...) in the space of a distance.
Fetch = Callable[[Tensor], Tensor]
AT_ONCE = 1024


def root_mean_square(points: Tensor, others: Tensor) -> Tensor:
    """(n, m): root of the mean squared difference over all values."""
    # Without matrix products, whose rounding hides that a copy is one.
    apart: Tensor = torch.cdist(points.flatten(1), others.flatten(1), compute_mode="donot_use_mm_for_euclid_dist")
    return apart / float(points[0].numel() ** 0.5)


def structure(points: Tensor, others: Tensor, window: int = 7) -> Tensor:
    """(n, m): 1 - mean SSIM (Wang, Bovik, Sheikh and Simoncelli, 2004, equation 13) of pixels in [0, 1].

    Uniform windows that lie inside the image, sample covariances, K1 = 0.01 and K2 = 0.03; an image smaller than the window is one window.
    """
    height, width = min(window, points.shape[2]), min(window, points.shape[3])
    count = height * width
    sample = count / max(1, count - 1)

    def mean(images: Tensor) -> Tensor:
        return F.avg_pool2d(F.avg_pool2d(images, (height, 1), 1), (1, width), 1)

    def moments(images: Tensor) -> tuple[Tensor, Tensor]:
        means = mean(images)
        return means, sample * (mean(images.square()) - means.square())

    c1, c2 = 0.01**2, 0.03**2
    mean_y, spread_y = moments(others)
    distances = points.new_empty(len(points), len(others))
    for place, point in enumerate(points):
        mean_x, spread_x = moments(point[None])
        joint = sample * (mean(point[None] * others) - mean_x * mean_y)
        top = (2 * mean_x * mean_y + c1) * (2 * joint + c2)
        bottom = (mean_x.square() + mean_y.square() + c1) * (spread_x + spread_y + c2)
        distances[place] = 1 - (top / bottom).flatten(1).mean(1)
    return distances


@dataclass(frozen=True)
class Nearest:
    """For each point its smallest and second smallest distance (n,), and the position of the nearest (n,)."""

    distance: Tensor
    second: Tensor
    position: Tensor


def nearest(points: Tensor, fetch: Fetch, positions: Tensor, distance: Distance) -> Nearest:
    """Among the images at ``positions`` (m,), at least one."""
    best: list[Tensor] = []
    where: list[Tensor] = []
    for part in positions.split(AT_ONCE):
        distances, place = distance(points, fetch(part)).topk(min(2, len(part)), dim=1, largest=False)
        best.append(distances)
        where.append(part[place])
    distances, order = torch.cat(best, 1).sort(dim=1, stable=True)
    chosen = torch.cat(where, 1).gather(1, order)
    second = distances[:, 1] if distances.shape[1] > 1 else torch.full_like(distances[:, 0], float("inf"))
    return Nearest(distances[:, 0], second, chosen[:, 0])
