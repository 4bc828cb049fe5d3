"""Differentiable Siamese augmentation (Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021).

A strategy is written as transform names joined by ``_``, for example ``color_crop_flip``. Each call draws one of them uniformly. The prefix
``dc_`` is the evaluation augmentation of "Dataset Condensation" instead, which draws one for each image (augment_dc.py); ``all_`` applies
all of them in this order, among them ``resized``, a random resized crop (resized_crops.py).
`draw` makes explicit `Parameters`; `apply` is a pure function of images and parameters. The same parameters on real and synthetic images
are the Siamese augmentation. Every transform is twice differentiable and (but for the ``dc_`` fill, a mean over the images given) treats
each image by itself, so a batch may be split into chunks. Images that are not square are rotated without distortion: DSA's code
rotates them in coordinates from -1 to 1 on both axes, which shears them.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill import augment_dc, resized_crops
from distill.data_sets import DATA_SETS
from distill.devices import sent
from distill.errors import InputError, a_kind, unknown_name
from distill.spec import DataSpec

DSA = "color_crop_cutout_flip_scale_rotate"
DSA_DIGITS = "color_crop_cutout_scale_rotate"

_DSA_NAMES = ("color", "crop", "cutout", "flip", "scale", "rotate")
_COLUMNS = {"color": 3, "crop": 2, "cutout": 4, "flip": 1, "scale": 2, "rotate": 1, "resized": 4}  # numbers of a transform


@dataclass(frozen=True)
class Ranges:
    """Ranges of the transforms. The defaults are DSA's."""

    brightness: float = 0.5  # added, between minus and plus this
    saturation: tuple[float, float] = (0.0, 2.0)  # factor about the mean of a pixel's channels
    contrast: tuple[float, float] = (0.5, 1.5)  # factor about the image's mean
    crop: float = 0.125  # largest shift, as a fraction of the side
    cutout: float = 0.5  # side of the hole, as a fraction of the side
    flip: float = 0.5  # probability
    scale: tuple[float, float] = (1 / 1.2, 1.2)  # step between sampled pixels; above 1 the image shrinks
    rotate: float = 15.0  # degrees, between minus and plus this


DSA_RANGES = Ranges()


@dataclass(frozen=True)
class Strategy:
    """Names of transforms, of which one is drawn each time (DSA's "Siamese" strategy), and their ranges; ``dc``: see augment_dc.py;
    ``every``: all are applied, one after the other."""

    transforms: tuple[str, ...]
    ranges: Ranges = DSA_RANGES
    dc: bool = False
    every: bool = False


@dataclass(frozen=True)
class Parameters:
    """One transform and its numbers: ``values`` is (1, P), shared by all images, or (N, P), a row for each image.

    Columns: color (brightness, saturation, contrast); crop (rows, columns) of the shift; cutout (top, left, height, width); flip (1 or 0);
    scale (vertical, horizontal step); rotate (degrees). Of a ``dc_`` strategy ``transform`` is the strategy's text, the columns are
    `augment_dc.draw`'s, and ``noise_seed`` makes the noise. Of an ``all_`` strategy it is the text, too, with all transforms' columns;
    resized (top, left, height, width).
    """

    transform: str
    values: Tensor
    noise_seed: int = 0


def strategy(text: str) -> Strategy:
    """Parse ``"none"``, ``""``, ``"color_crop"`` or ``"dc_crop_noise"``. Raises `InputError` for an unknown or repeated transform."""
    if text in ("none", ""):
        return Strategy(())
    if not isinstance(text, str):
        raise InputError(f"augmentation is {a_kind(text)}; give a text such as {DSA!r} or 'none'.")
    prefix = next((prefix for prefix in ("dc_", "all_") if text.startswith(prefix)), "")
    transforms = tuple(text.removeprefix(prefix).split("_"))
    for name in transforms:
        if name not in (allowed := {"": _DSA_NAMES, "dc_": augment_dc.NAMES, "all_": tuple(_COLUMNS)}[prefix]):
            raise unknown_name(f"{prefix} augmentation".lstrip(), name, allowed)
    if len(set(transforms)) < len(transforms):
        raise InputError(f"augmentation {text[:80]!r} names a transform twice; name each at most once.")
    return Strategy(transforms, dc=prefix == "dc_", every=prefix == "all_")


def for_data(spec: DataSpec) -> str:
    """DSA's strategy for a data set, by the entry of its name in `DATA_SETS`: digits are not flipped.

    The authors' digits are MNIST and SVHN; digits and USPS are treated alike. For a folder of digits, which is not known to be one, set
    ``augmentation = "color_crop_cutout_scale_rotate"`` (`DSA_DIGITS`).
    """
    known = DATA_SETS.get(spec.name.lower())
    return DSA if known is None or known.flips else DSA_DIGITS


def draw(strategy: Strategy, generator: torch.Generator, height: int, width: int, count: int | None = None) -> Parameters:
    """Draw one transform of a strategy and its parameters.

    Args:
        strategy: the transforms.
        generator: source of the random draws. One on a GPU makes the host wait for it once; a CPU generator avoids that.
        height: of the images, pixels.
        width: of the images, pixels.
        count: None: one row of parameters, shared by all images; N: a row for each of N images.
    """
    if not strategy.transforms:
        return Parameters("none", torch.zeros(1, 0))
    device, ranges, rows = generator.device, strategy.ranges, 1 if count is None else count
    choice, noise_seed = torch.randint(2**62, (2,), generator=generator, device=device).tolist()
    if strategy.dc:
        values = augment_dc.draw(strategy.transforms, rows, height, width, generator)
        return Parameters("dc_" + "_".join(strategy.transforms), values, noise_seed)
    if strategy.every:
        each = [draw(Strategy((name,), ranges), generator, height, width, count).values for name in strategy.transforms]
        return Parameters("all_" + "_".join(strategy.transforms), torch.cat(each, dim=1))
    transform = strategy.transforms[choice % len(strategy.transforms)]
    if transform == "resized":
        return Parameters(transform, resized_crops.boxes(rows, height, width, generator))

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(rows, generator=generator, device=device, dtype=torch.float32)

    def whole(low: int, high: int) -> Tensor:
        return torch.randint(low, high + 1, (rows,), generator=generator, device=device).to(torch.float32)

    if transform == "color":
        columns = [uniform(-ranges.brightness, ranges.brightness), uniform(*ranges.saturation), uniform(*ranges.contrast)]
    elif transform == "crop":
        columns = [whole(-most, most) for most in (_part(ranges.crop, height), _part(ranges.crop, width))]
    elif transform == "cutout":
        hole = _part(ranges.cutout, height), _part(ranges.cutout, width)
        # The centre of an even hole lies between pixels, so it has one more place; the hole may hang over the border.
        corners = [whole(0, side - cut % 2) - cut // 2 for side, cut in zip((height, width), hole, strict=True)]
        columns = [*corners, *(torch.full((rows,), float(cut), device=device) for cut in hole)]
    elif transform == "flip":
        columns = [(uniform(0.0, 1.0) < ranges.flip).to(torch.float32)]
    elif transform == "scale":
        columns = [uniform(*ranges.scale), uniform(*ranges.scale)]
    else:
        columns = [uniform(-ranges.rotate, ranges.rotate)]
    return Parameters(transform, torch.stack(columns, dim=1))


def _part(fraction: float, side: int) -> int:
    return int(fraction * side + 0.5)


def apply(images: Tensor, parameters: Parameters) -> Tensor:
    """The transformed images, (N, C, H, W) like ``images`` and on their device; affine in them, so differentiable to any order.

    Raises `InputError` when the images are not (N, C, H, W) floats or when there are parameters for another number of images.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise InputError(f"augmentation needs float images (N, C, H, W); got {images.dtype} of shape {tuple(images.shape)}.")
    if parameters.transform == "none":
        return images
    if len(parameters.values) not in (1, len(images)):
        raise InputError(f"augmentation parameters are for {len(parameters.values)} images, but {len(images)} images were given.")
    # Coordinates keep float32 precision when the images have less.
    values = sent(parameters.values.to(torch.promote_types(images.dtype, torch.float32)), images.device)
    if parameters.transform == "color":
        return _color(images, values.to(images.dtype))
    if parameters.transform.startswith("dc_"):
        return augment_dc.apply(images, strategy(parameters.transform).transforms, values, parameters.noise_seed)
    if parameters.transform.startswith("all_"):
        names = strategy(parameters.transform).transforms
        for name, part in zip(names, parameters.values.split([_COLUMNS[name] for name in names], dim=1), strict=True):
            images = apply(images, Parameters(name, part))
        return images
    if parameters.transform == "resized":
        return resized_crops.resized(images, values.expand(len(images), -1))
    if parameters.transform == "crop":
        return _crop(images, values)
    if parameters.transform == "rotate":
        return _rotate(images, values)
    if parameters.transform == "cutout":
        return _cutout(images, values)
    if parameters.transform == "flip":
        return torch.where(values.view(-1, 1, 1, 1) > 0, images.flip(3), images)
    if parameters.transform == "scale":
        return _scale(images, values)
    raise unknown_name("transform", parameters.transform, {*_DSA_NAMES, "none"})


def effects(parameters: Parameters) -> Tensor:
    """(1 or N, 13) float64, on the CPU: the parameters of any transform as one of colour, then of a map of places, then of a hole.

    Brightness, saturation, contrast; a pixel's place in the image from its own, measured downwards and to the right from the centre: the
    row's factors and shift, the column's factors and shift; the hole's top, left, height, width. What a transform does not do is the
    identity. Raises `InputError` for a ``dc_`` strategy, whose fill is a mean over a batch, and an ``all_`` strategy.
    """
    transform, values = parameters.transform, parameters.values.to("cpu", torch.float64)
    result = torch.tensor(_IDENTITY, dtype=torch.float64).repeat(len(values), 1)
    if transform == "color":
        result[:, 0:3] = values
    elif transform == "crop":
        result[:, 5], result[:, 8] = values.unbind(1)
    elif transform == "scale":
        result[:, 3], result[:, 7] = values.unbind(1)
    elif transform == "rotate":
        angle = torch.deg2rad(values[:, 0])
        result[:, 3], result[:, 4], result[:, 6], result[:, 7] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    elif transform == "flip":
        result[:, 7] = 1 - 2 * values[:, 0]
    elif transform == "cutout":
        result[:, 9:13] = values
    elif transform != "none":
        raise InputError(f"a batch of several classes cannot be transformed by {transform[:80]!r} at once; transform each class by itself.")
    return result


_IDENTITY = (0.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0)


def apply_effects(images: Tensor, rows: Tensor) -> Tensor:
    """Images (N, C, H, W) under `effects` of any transforms, a row for each image (N, 13), in a few large operations.

    The same as `apply` image by image, up to rounding.
    """
    rows = sent(rows.to(torch.promote_types(images.dtype, torch.float32)), images.device)
    down, right = _centred(images, rows)
    places = rows[:, 3:9].reshape(-1, 6, 1, 1).unbind(1)
    images = _color(images, rows[:, 0:3].to(images.dtype))
    down, right = places[0] * down + places[1] * right + places[2], places[3] * down + places[4] * right + places[5]
    images = _sample(images, down, right, at_once=True)
    return _cutout(images, rows[:, 9:13])


def augment(images: Tensor, strategy: Strategy, generator: torch.Generator) -> Tensor:
    """For learners: one transform for the batch (``dc_``: one for each image), its parameters drawn for each image; images (N, C, H, W)."""
    height, width = images.shape[-2:]
    return apply(images, draw(strategy, generator, height, width, count=len(images)))


def _color(images: Tensor, values: Tensor) -> Tensor:
    brightness, saturation, contrast = values.view(-1, 3, 1, 1, 1).unbind(1)
    images = images + brightness
    grey = images.mean(1, keepdim=True)
    images = grey + saturation * (images - grey)
    level = images.mean((1, 2, 3), keepdim=True)
    return level + contrast * (images - level)


def _crop(images: Tensor, values: Tensor) -> Tensor:
    """Output pixel (i, j) is input pixel (i + rows, j + columns), or zero outside."""
    count, channels, height, width = images.shape
    shifts = values.long()
    rows = torch.arange(height, device=images.device) + shifts[:, :1]
    columns = torch.arange(width, device=images.device) + shifts[:, 1:]
    inside = _between(rows, height)[:, None, :, None] & _between(columns, width)[:, None, None, :]
    moved = images.gather(2, rows.clamp(0, height - 1)[:, None, :, None].expand(count, channels, height, width))
    moved = moved.gather(3, columns.clamp(0, width - 1)[:, None, None, :].expand(count, channels, height, width))
    return torch.where(inside, moved, 0.0)


def _cutout(images: Tensor, values: Tensor) -> Tensor:
    top, left, tall, wide = values.unsqueeze(2).unbind(1)
    rows = _between(torch.arange(images.shape[2], device=images.device) - top, tall)
    columns = _between(torch.arange(images.shape[3], device=images.device) - left, wide)
    return torch.where(rows[:, None, :, None] & columns[:, None, None, :], 0.0, images)


def _scale(images: Tensor, values: Tensor) -> Tensor:
    down, right = _centred(images, values)
    return _sample(images, down * values[:, 0].view(-1, 1, 1), right * values[:, 1].view(-1, 1, 1))


def _rotate(images: Tensor, values: Tensor) -> Tensor:
    down, right = _centred(images, values)
    angle = torch.deg2rad(values).view(-1, 1, 1)
    sine, cosine = angle.sin(), angle.cos()
    return _sample(images, sine * right + cosine * down, cosine * right - sine * down)


def _between(position: Tensor, end: Tensor | int) -> Tensor:
    return (position >= 0) & (position < end)


def _centred(images: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Each pixel's place measured from the image's centre, in pixels: (1, H, 1) downwards and (1, 1, W) to the right."""
    down, right = (torch.arange(side, device=like.device, dtype=like.dtype) - (side - 1) / 2 for side in images.shape[2:])
    return down.view(1, -1, 1), right.view(1, 1, -1)


def _sample(images: Tensor, down: Tensor, right: Tensor, *, at_once: bool | None = None) -> Tensor:
    """Bilinear interpolation at (1 or N, H, W) places measured from the centre, zero outside; the four neighbours one after the other or
    ``at_once``, as on a GPU.

    The values are `torch.nn.functional.grid_sample`'s; that function has no second derivative and no deterministic gradient on a GPU.
    """
    count, channels, height, width = images.shape
    shape = (max(len(down), len(right)), height, width)
    rows, columns = (down + (height - 1) / 2).expand(shape), (right + (width - 1) / 2).expand(shape)
    flat = images.flatten(2)
    (down_places, down_weights), (right_places, right_weights) = _neighbours(rows, height), _neighbours(columns, width)
    weights = (down_weights[:, None] * right_weights).flatten(0, 1).flatten(2).to(images.dtype)
    places = (down_places[:, None] * width + right_places).flatten(0, 1).flatten(2)
    if images.device.type != "cpu" if at_once is None else at_once:
        picked = flat.gather(2, places.transpose(0, 1).flatten(1)[:, None].expand(count, channels, -1))
        return (picked.view(count, channels, 4, -1) * weights.transpose(0, 1)[:, None]).sum(2).view_as(images)
    total = torch.zeros_like(flat)
    for place, weight in zip(places, weights, strict=True):
        total = total + flat.gather(2, place[:, None].expand(count, channels, -1)) * weight[:, None]
    return total.view_as(images)


def _neighbours(position: Tensor, end: int) -> tuple[Tensor, Tensor]:
    """The whole numbers before and after each position, cut to 0..end - 1, and their weights (zero where they were cut): (2, ...) each."""
    first = position.floor()
    after = first + 1
    both = torch.stack([first, after])
    weights = torch.stack([after - position, position - first]) * _between(both, end)
    return both.clamp(0, end - 1).long(), weights
