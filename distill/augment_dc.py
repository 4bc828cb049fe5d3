"""The augmentation with which "Dataset Condensation" trains its evaluation networks (Zhao, Mopuri and Bilen, ICLR 2021).

It is `augment` and `get_daparam` of the authors' code (VICO-UoE/DatasetCondensation, utils.py), which differs from DSA's: **each image**
chooses its transform, crops and turns are filled with the mean of the whole batch, images are scaled to whole pixels by the nearest
pixel, and turned by whole degrees with cubic splines. The authors call scipy image by image; here the same numbers are tensor operations
on any device, and affine in the images, so they can be differentiated. Two things go beyond the authors' code, which knows squares of 28
and 32 pixels only: a crop moves by an eighth of the side (theirs: 4 pixels), and the width is scaled from the width (theirs: the height).
"""

import functools

import numpy as np
import torch
from torch import Tensor

from distill.data_sets import DATA_SETS
from distill.spec import DataSpec

NAMES = ("crop", "scale", "rotate", "noise")
# `get_daparam`, for an evaluation network called ConvNetBN on any data.
BATCHNORM = "dc_crop_noise"

_CROP = 0.125  # of the side: 4 pixels of 28 and of 32
_SCALE = 0.2
_DEGREES = 45
_NOISE = 0.001


def for_data(spec: DataSpec) -> str:
    """What the authors use for a data set: ``"dc_crop_scale_rotate"`` for MNIST; all others, SVHN and FashionMNIST too, are used as they
    are (``"none"``)."""
    known = DATA_SETS.get(spec.name.lower())
    return "none" if known is None else known.dc_augmentation


def draw(transforms: tuple[str, ...], count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """(count, 6), a row for each image: the transform it chooses (its place in `NAMES`), the crop's shift down and right (-4 to 3 pixels),
    the scaled height and width (pixels), and the turn (whole degrees from -45 to 44)."""
    device = generator.device

    def whole(low: int, end: int) -> Tensor:
        return torch.randint(low, max(low + 1, end), (count,), generator=generator, device=device)

    allowed = torch.tensor([NAMES.index(name) for name in transforms], device=device)
    most = [int(_CROP * side + 0.5) for side in (height, width)]
    shift = [whole(-pad, pad) for pad in most]
    size = [
        (side * (1 - _SCALE + 2 * _SCALE * torch.rand(count, generator=generator, device=device))).long().clamp_min(1)
        for side in (height, width)
    ]
    columns = [allowed[whole(0, len(transforms))], *shift, *size, whole(-_DEGREES, _DEGREES)]
    return torch.stack(columns, dim=1).to(torch.float32)


def apply(images: Tensor, transforms: tuple[str, ...], values: Tensor, noise_seed: int) -> Tensor:
    """Each image (N, C, H, W) under the transform of its row of ``values`` (1 or N, 6); the fill is the mean of these images.

    On a GPU all of ``transforms`` are computed for all images and one is kept: the host need not know which one.
    """
    means = images.mean((0, 2, 3)).view(1, -1, 1, 1)

    def moved(name: str, images: Tensor, values: Tensor) -> Tensor:
        if name == "crop":
            return _crop(images - means, values[:, 1:3].long()) + means
        if name == "scale":
            return _scale(images, values[:, 3:5].long())
        if name == "rotate":
            return _rotate(images - means.mean(), values[:, 5]) + means.mean()
        return _noise(images, noise_seed, len(values))

    result = images
    for name in transforms:
        chosen = values[:, 0] == NAMES.index(name)
        if images.device.type == "cpu" and len(values) == len(images):
            (places,) = chosen.nonzero(as_tuple=True)
            result = result.index_copy(0, places, moved(name, images[places], values[places])) if len(places) else result
        else:
            result = torch.where(chosen.view(-1, 1, 1, 1), moved(name, images, values), result)
    return result


def _pick(images: Tensor, rows: Tensor, columns: Tensor, inside_rows: Tensor, inside_columns: Tensor) -> Tensor:
    """Pixels at (1 or N, H) rows and (1 or N, W) columns of each image, zero where these are not inside."""
    count, channels, height, width = images.shape
    picked = images.gather(2, rows.clamp(0, height - 1)[:, None, :, None].expand(count, channels, -1, width))
    picked = picked.gather(3, columns.clamp(0, width - 1)[:, None, None, :].expand(count, channels, picked.shape[2], -1))
    return torch.where(inside_rows[:, None, :, None] & inside_columns[:, None, None, :], picked, 0.0)


def _crop(images: Tensor, shift: Tensor) -> Tensor:
    """Output pixel (i, j) is input pixel (i + down, j + right), or zero outside."""
    places = [torch.arange(side, device=images.device) + by[:, None] for side, by in zip(images.shape[2:], shift.T, strict=True)]
    inside = [(place >= 0) & (place < side) for side, place in zip(images.shape[2:], places, strict=True)]
    return _pick(images, *places, *inside)


def _scale(images: Tensor, size: Tensor) -> Tensor:
    """The image resized to ``size`` by the nearest pixel, put into the middle of a square of zeros, and the middle of that cut out."""
    canvas = size.amax(1).clamp_min(max(images.shape[2:]))
    places, inside = [], []
    for side, scaled in zip(images.shape[2:], size.T, strict=True):
        start = (canvas - side) // 2 - (canvas - scaled) // 2
        place = torch.arange(side, device=images.device) + start[:, None]
        # As torch.nn.functional.interpolate counts, in single precision.
        ratio = (side / scaled.to(torch.float64)).to(torch.float32)
        places.append((place * ratio[:, None]).floor().long())
        inside.append((place >= 0) & (place < scaled[:, None]))
    return _pick(images, *places, *inside)


def _rotate(images: Tensor, degrees: Tensor) -> Tensor:
    """`scipy.ndimage.rotate` (cubic splines, zero outside), whose larger result is cut to its middle."""
    height, width = images.shape[2:]
    angle = torch.deg2rad(degrees.to(torch.float64)).view(-1, 1, 1)
    cosine, sine = angle.cos(), angle.sin()
    # The rotated image's sides; the cut starts at whole pixels, so where a side grows by an odd number the centre moves by half a pixel.
    tall, wide = (
        (height * cosine.abs() + width * sine.abs() + 0.5 + 1e-9).floor(),
        (width * cosine.abs() + height * sine.abs() + 0.5 + 1e-9).floor(),
    )
    down, right = (torch.arange(side, dtype=torch.float64, device=images.device) for side in (height, width))
    down = down.view(1, -1, 1) + ((tall - height) / 2).trunc() - (tall - 1) / 2
    right = right.view(1, 1, -1) + ((wide - width) / 2).trunc() - (wide - 1) / 2
    rows, columns = cosine * down + sine * right + (height - 1) / 2, cosine * right - sine * down + (width - 1) / 2
    return _spline(images, rows, columns)


def _spline(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Cubic spline interpolation at (1 or N, H, W) places in pixels, images mirrored at their borders; zero at places outside."""
    count, channels, height, width = images.shape
    edge = 1e-9  # a whole number of degrees may put a pixel on the border itself
    inside = (rows > -edge) & (rows < height - 1 + edge) & (columns > -edge) & (columns < width - 1 + edge)
    matrices = _coefficients(height, images.dtype, images.device), _coefficients(width, images.dtype, images.device)
    flat = (matrices[0] @ images @ matrices[1].T).flatten(2)
    top, left = rows.floor(), columns.floor()
    down, right = (
        [(_cubic(at - start - i).to(images.dtype), _mirrored(start.long() + i, side)) for i in range(-1, 3)]
        for at, start, side in ((rows, top, height), (columns, left, width))
    )
    total = torch.zeros_like(images)
    for row_weight, row in down:
        for column_weight, column in right:
            place = (row * width + column).flatten(1)[:, None].expand(count, channels, -1)
            total = total + flat.gather(2, place).view_as(images) * (row_weight * column_weight)[:, None]
    return torch.where(inside[:, None], total, 0.0)


def _cubic(distance: Tensor) -> Tensor:
    """The cubic B-spline."""
    far = distance.abs()
    return torch.where(far < 1, 2 / 3 - far**2 + far**3 / 2, (2 - far).clamp_min(0) ** 3 / 6)


def _mirrored(place: Tensor, side: int) -> Tensor:
    """Places beyond the border, mirrored about the outermost pixel."""
    if side == 1:
        return torch.zeros_like(place)
    place = place.abs() % (2 * side - 2)
    return torch.where(place >= side, 2 * side - 2 - place, place)


@functools.lru_cache(maxsize=64)
def _coefficients(side: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(side, side): the matrix from pixels to the coefficients of the cubic spline through them, mirrored at the borders."""
    matrix = np.zeros((side, side))
    places = _mirrored(torch.arange(-1, side + 1), side).numpy()
    for i in range(side):
        for place, weight in zip(places[i : i + 3], (1 / 6, 2 / 3, 1 / 6), strict=True):
            matrix[i, place] += weight
    return torch.from_numpy(np.linalg.inv(matrix)).to(device, dtype)


def _noise(images: Tensor, seed: int, count: int) -> Tensor:
    generator = torch.Generator(images.device).manual_seed(seed)
    shape = (count, *images.shape[1:])
    return images + _NOISE * torch.randn(shape, generator=generator, device=images.device, dtype=images.dtype)
