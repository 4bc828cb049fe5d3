"""A user's arrays, checked and copied: images to (N, C, H, W) tensors, labels of any common form to class numbers."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill.errors import InputError, a_kind
from distill.spec import MAX_CLASSES

Images = Tensor | NDArray[np.generic]
Labels = Tensor | NDArray[np.generic] | Sequence[object]


def image_tensor(array: object, what: str) -> Tensor:
    """Images as `ImageData.from_arrays` takes them, to uint8 or float32 (N, C, H, W). Raises `InputError`, which calls them ``what``."""
    channels_first = isinstance(array, Tensor)
    if isinstance(array, Tensor):
        array = (array.detach().float() if array.is_floating_point() else array.detach()).cpu().numpy()
    if not isinstance(array, np.ndarray) or array.ndim not in (3, 4) or not (array.dtype == np.uint8 or array.dtype.kind == "f"):
        raise InputError(
            f"{what} is {_kind(array)}; allowed: uint8 (0 to 255) or float (0 to 1), numpy N x H x W (x C) or torch N (x C) x H x W"
            f"{_image_hint(array)}."
        )
    shape = array.shape
    if array.ndim == 3:
        array = array[:, None]
    else:
        here, there = (shape[1], shape[3]) if channels_first else (shape[3], shape[1])
        if here > 4 and there in (1, 3):
            order = "(0, 3, 1, 2)" if channels_first else "(0, 2, 3, 1)"
            call = "permute" if channels_first else "transpose"
            raise InputError(
                f"{what} has the shape {shape}: channels go last in a numpy array and first in a torch tensor; permute it: x.{call}{order}."
            )
        array = array if channels_first else np.moveaxis(array, 3, 1)
    if 0 in array.shape[1:]:
        raise InputError(f"{what} has the shape {shape}; allowed: images of at least one pixel and one channel.")
    # NaN fails both comparisons.
    if array.dtype != np.uint8 and array.size and not (array.min() >= 0 and array.max() <= 1):
        bytes_as_floats = array.min() >= 0 and 1 < array.max() <= 255
        do = "divide them by 255" if bytes_as_floats else "scale them"
        raise InputError(f"{what} holds floats outside 0 to 1 (or not finite): {array.min():g} to {array.max():g}; {do}, or give uint8.")
    return torch.from_numpy(np.array(array, dtype=np.uint8 if array.dtype == np.uint8 else np.float32, order="C"))


def class_numbers(array: object, what: str) -> Tensor:
    """Labels to int64 (N,): whole numbers of any type (floats too, if whole), a list of them, a column (N, 1), or one-hot rows (N, K).

    Raises `InputError`, which calls them ``what``, for anything else: text, probabilities, several labels an image.
    """
    values = (array.detach().float() if array.is_floating_point() else array.detach()).cpu().numpy() if isinstance(array, Tensor) else array
    if isinstance(values, list | tuple):
        try:
            values = np.asarray(values)
        except ValueError:
            values = array
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf" or values.ndim not in (1, 2):
        text = isinstance(values, np.ndarray) and values.dtype.kind in "USO"
        do = "; number the classes: classes, y = np.unique(y, return_inverse=True)" if text else ""
        uneven = " with rows of unequal length" if isinstance(values, list | tuple) else ""
        raise InputError(f"{what} is {_kind(values)}{uneven}; allowed: an array, tensor or list of whole numbers of shape (N,){do}.")
    labels = values[:, 0] if values.ndim == 2 and values.shape[1] == 1 else values
    if labels.ndim == 2:
        if not (labels.shape[1] and bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(1) == 1).all())):
            raise InputError(
                f"{what} is {_kind(values)}; allowed: one whole number an image, (N,), or one-hot rows; of probabilities give y.argmax(1). "
                "Multi-label targets, several classes an image, are not supported."
            )
        labels = labels.argmax(1)
    if labels.dtype.kind == "f":
        broken = labels[~(np.isfinite(labels) & (labels == np.floor(labels)))]
        if len(broken):
            raise InputError(f"{what} is {_kind(values)} and holds {broken[0]:g}; allowed: whole numbers of shape (N,), the class of each.")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < MAX_CLASSES:
        raise InputError(f"{what} lies in {labels.min()}..{labels.max()}; allowed: class numbers 0..{MAX_CLASSES - 1}.")
    return torch.from_numpy(labels.astype(np.int64))


def moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], in chunks so that memory stays small.

    uint8 pixels are summed as whole numbers, so every machine finds the same bits.
    """
    whole = images.dtype == torch.uint8
    total = torch.zeros(images.shape[1], dtype=torch.int64 if whole else torch.float64)
    squares = torch.zeros_like(total)
    for part in torch.split(images, max(1, (1 << 22) // images[0].numel())):
        values = part.to(total.dtype)
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count, scale = images.numel() / images.shape[1], 255.0 if whole else 1.0
    mean = total.double() / count
    std = (squares.double() / count - mean.square()).clamp_min(0).sqrt() / scale
    # A constant channel has no spread; it is divided by 1.
    return (mean / scale).tolist(), torch.where(std > 1e-4, std, torch.ones_like(std)).tolist()


def _kind(array: object) -> str:
    """For a message: ``uint8 (12, 4, 4)`` for an array, ``a list`` for a value without a dtype."""
    shape = getattr(array, "shape", None)
    return str(getattr(array, "dtype", None) or a_kind(array)) + ("" if shape is None else f" {tuple(shape)}")


def _image_hint(array: object) -> str:
    if isinstance(array, np.ndarray) and array.ndim == 2:
        return "; give flat rows their shape: x.reshape(len(x), height, width, channels)"
    if isinstance(array, np.ndarray) and array.dtype.kind in "iu" and array.size and array.min() >= 0 and array.max() <= 255:
        return "; these fit: x.astype(np.uint8)"
    return ""
