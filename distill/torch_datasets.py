"""A torch `Dataset` read in one pass, checked, as the arrays that `ImageData.from_arrays` takes."""

from collections.abc import Sized
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError, a_kind, clipped
from distill.image_files import MAX_ARRAY_BYTES

IMAGE_KEYS, LABEL_KEYS = ("image", "img"), ("label", "labels")
_GREY, _COLOUR = ("1", "L", "LA"), ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")


class MapDataset(Protocol):
    """A torch `Dataset` with numbered items, (image, label) pairs or dicts. It also needs a length, which torch's type does not have."""

    def __getitem__(self, index: int, /) -> object: ...


def read(dataset: MapDataset, what: str) -> tuple[Tensor, Tensor]:
    """Read a map-style dataset.

    Args:
        dataset: items are pairs (image, label), or dicts with one of `IMAGE_KEYS` and one of `LABEL_KEYS`. An image is a PIL image, a
            tensor (C, H, W) or (H, W), or a numpy array (H, W, C) or (H, W): uint8, or float in [0, 1].
        what: begins the messages of errors.

    Returns:
        Images (N, C, H, W), uint8 or float32, and labels (N,) int64.

    Raises:
        InputError: for an item that cannot be read or does not fit.
    """
    if not (isinstance(dataset, Sized) and hasattr(dataset, "__getitem__")):
        raise InputError(f"{what} is {a_kind(dataset)}; allowed: a dataset with a length and items, Dataset[i] of (image, label).")
    images: Tensor | None = None
    labels = torch.zeros(len(dataset), dtype=torch.int64)
    for place in range(len(dataset)):
        where = f"{what}: item {place}"
        try:
            item = dataset[place]
        except Exception as error:  # raised by the dataset's own code
            raise InputError(f"{where} cannot be read ({type(error).__name__}: {clipped(error)}).") from error
        image, label = _pair(item, where)
        pixels = _pixels(image, where)
        if images is None:
            if len(dataset) * pixels.numel() * pixels.element_size() > MAX_ARRAY_BYTES:
                raise InputError(f"{what}: {len(dataset)} images of {_text(pixels)} take more than {MAX_ARRAY_BYTES} bytes; resize them.")
            images = torch.empty((len(dataset), *pixels.shape), dtype=pixels.dtype)
        if pixels.shape != images.shape[1:] or pixels.dtype != images.dtype:
            raise InputError(
                f"{where} is {_text(pixels)} and item 0 {_text(images[0])}; allowed: one size and type; use Resize as transform."
            )
        images[place] = pixels
        labels[place] = _label(label, where)
    if images is None:
        return torch.zeros((0, 1, 1, 1), dtype=torch.uint8), labels
    return images, labels


def class_names(dataset: object) -> tuple[str, ...] | None:
    """The class names of torchvision (``classes``) or Hugging Face (``features["label"].names``) datasets; None where there are none."""
    dataset = innermost(dataset)
    names = getattr(dataset, "classes", None)
    features = getattr(dataset, "features", None)
    if names is None and features is not None and hasattr(features, "get"):
        names = next((getattr(features.get(key), "names", None) for key in LABEL_KEYS if features.get(key) is not None), None)
    good = isinstance(names, list | tuple) and names and all(isinstance(name, str) for name in names)
    return tuple(names) if good and names else None


def innermost(dataset: object) -> object:
    """The dataset inside torch's `Subset`."""
    while isinstance(dataset, torch.utils.data.Subset):
        dataset = dataset.dataset
    return dataset


def _pair(item: object, where: str) -> tuple[object, object]:
    if isinstance(item, dict):
        keys = [next((key for key in known if key in item), None) for known in (IMAGE_KEYS, LABEL_KEYS)]
        if None in keys:
            raise InputError(
                f"{where} has the keys {clipped(', '.join(map(str, item)))}; allowed: one of {', '.join(IMAGE_KEYS)} and one of "
                f"{', '.join(LABEL_KEYS)}; rename the columns."
            )
        return item[keys[0]], item[keys[1]]
    if not isinstance(item, tuple | list) or len(item) != 2:
        size = f" of {len(item)}" if isinstance(item, tuple | list) else ""
        raise InputError(f"{where} is {a_kind(item)}{size}; allowed: (image, label), or a dict with image and label.")
    return item[0], item[1]


def _pixels(image: object, where: str) -> Tensor:
    mode = getattr(image, "mode", None)
    if isinstance(mode, str) and hasattr(image, "convert"):
        if mode not in (*_GREY, *_COLOUR):
            raise InputError(f"{where} has pixels of mode {clipped(mode)}; allowed: 8 bits a channel; convert it.")
        # Pillow warns about palettes with transparent entries unless they are converted to RGBA first.
        image = np.array((image.convert("RGBA") if mode in ("P", "PA") else image).convert("L" if mode in _GREY else "RGB"))
    if isinstance(image, np.ndarray) and image.ndim == 3:
        image = np.moveaxis(image, 2, 0)
    if isinstance(image, np.ndarray) and (image.dtype == np.uint8 or image.dtype.kind == "f"):
        image = torch.from_numpy(np.ascontiguousarray(image))
    if not isinstance(image, Tensor) or image.ndim not in (2, 3) or not (image.dtype == torch.uint8 or image.is_floating_point()):
        kind = (
            f"{str(image.dtype).removeprefix('torch.')} {tuple(image.shape)}" if isinstance(image, Tensor | np.ndarray) else a_kind(image)
        )
        raise InputError(
            f"{where}: its image is {kind}; allowed: a PIL image, or uint8 or float of shape (C, H, W) as tensor, (H, W, C) as numpy array."
        )
    pixels = image.detach().cpu() if image.ndim == 3 else image.detach().cpu()[None]
    if pixels.dtype == torch.uint8:
        return pixels
    pixels = pixels.float()
    if pixels.numel() and not (float(pixels.min()) >= 0 and float(pixels.max()) <= 1):  # NaN fails both comparisons
        low, high = float(pixels.min()), float(pixels.max())
        raise InputError(
            f"{where} holds floats outside 0 to 1 (or not finite): {low:g} to {high:g}; leave Normalize out of its transform, the toolkit "
            "normalises by itself."
        )
    return pixels


def _label(label: object, where: str) -> int:
    value = label
    if isinstance(label, Tensor | np.generic | np.ndarray) and (label.numel() if isinstance(label, Tensor) else label.size) == 1:
        value = label.item()
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
        raise InputError(f"{where}: its label is {a_kind(label)}, {clipped(label, 40)}; allowed: one class number from 0.")
    return value


def _text(pixels: Tensor) -> str:
    return f"{str(pixels.dtype).removeprefix('torch.')} {tuple(pixels.shape)}"
