"""Random resized crops: a rectangle of each image, resized to the image's own size, as torchvision's RandomResizedCrop has it.

Resizing is one matrix product down and one to the right, so that it is differentiable to any order, and every image may have another
rectangle. Crops are at most as large as the image, where torchvision's antialiasing changes nothing.
"""

import math

import torch
from torch import Tensor

AREA, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # of the image's area; width by height
TRIES = 10


def boxes(
    count: int, height: int, width: int, generator: torch.Generator, *, ratio: tuple[float, float] = RATIO, area: tuple[float, float] = AREA
) -> Tensor:
    """(count, 4) float32: top, left, height and width of rectangles in whole pixels, on the generator's device.

    The area is uniform, the ratio of the sides log-uniform, the place uniform. The first of ten draws that fits counts; where none does,
    the largest rectangle in the middle that has a ratio in the range.

    Args:
        count: number of rectangles.
        height: of the images, pixels.
        width: of the images, pixels.
        generator: source of the random draws.
        ratio: smallest and largest width by height.
        area: smallest and largest part of the image.
    """
    device = generator.device
    first, second, down, right = torch.rand((4, TRIES, count), generator=generator, device=device)
    part = height * width * (area[0] + (area[1] - area[0]) * first)
    shape = torch.exp(math.log(ratio[0]) + math.log(ratio[1] / ratio[0]) * second)
    tall, wide = (part / shape).sqrt().round(), (part * shape).sqrt().round()
    fits = (tall >= 1) & (tall <= height) & (wide >= 1) & (wide <= width)
    chosen = fits.to(torch.uint8).argmax(0, keepdim=True)
    tall, wide, down, right = (rows.gather(0, chosen)[0] for rows in (tall, wide, down, right))
    top, left = (down * (height - tall + 1)).floor(), (right * (width - wide + 1)).floor()
    found = torch.stack([top, left, tall, wide], 1)
    return torch.where(fits.any(0)[:, None], found, _middle(height, width, ratio).to(device))


def _middle(height: int, width: int, ratio: tuple[float, float]) -> Tensor:
    tall, wide = height, width
    if width / height < ratio[0]:
        tall = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return torch.tensor([(height - tall) // 2, (width - wide) // 2, tall, wide], dtype=torch.float32)


def resized(images: Tensor, boxes: Tensor) -> Tensor:
    """The rectangles ``boxes`` (N, 4) of images (N, C, H, W), each resized to H x W by bilinear interpolation."""
    height, width = images.shape[-2:]
    boxes = boxes.to(images)
    rows = _weights(boxes[:, 0], boxes[:, 2], height)
    columns = _weights(boxes[:, 1], boxes[:, 3], width)
    return torch.einsum("nij,ncjk,nlk->ncil", rows, images, columns)


def _weights(start: Tensor, length: Tensor, size: int) -> Tensor:
    """(N, size, size): weights of the source's pixels for each of the result's, between pixels ``start`` and ``start + length - 1``."""
    places = torch.arange(size, device=start.device, dtype=start.dtype)
    inside = ((places + 0.5) * (length / size)[:, None] - 0.5).clamp_min(0).minimum(length[:, None] - 1)
    return (1 - ((start[:, None] + inside)[:, :, None] - places).abs()).clamp_min(0)
