"""Feature rows of a frozen network in the place of images: (N, D) outside, images (N, 1, 1, D) inside a memory."""

import torch
from torch import Tensor

from distill.decode import Decode, as_text
from distill.errors import InputError, clipped
from distill.methods import METHODS
from distill.spec import MAX_SIDE


def as_images(items: Tensor) -> Tensor:
    """Rows (N, D) as images (N, 1, 1, D); images as they are. Raises `InputError` for rows of more than `MAX_SIDE` features."""
    if not isinstance(items, Tensor):
        raise InputError(f"images or rows are {clipped(type(items).__name__)}; allowed: a torch tensor (torch.from_numpy(array)).")
    if items.ndim == 2 and items.shape[1] > MAX_SIDE:
        raise InputError(f"rows of {items.shape[1]} features; allowed: at most {MAX_SIDE}.")
    return items[:, None, None] if items.ndim == 2 else items


def as_items(images: Tensor, *, rows: bool) -> Tensor:
    """Images (N, 1, 1, D) as the rows (N, D) that they stand for, where the stream has ``rows``."""
    return images.flatten(1) if rows else images


def refuse_for_rows(method: str, decode: Decode | None, shape: torch.Size) -> None:
    """Raises `InputError` for what makes sense for images only, where images of ``shape`` (N, C, H, W) are rows."""
    if shape[1:3] != (1, 1):
        return
    if method in METHODS or method == "noise":
        raise InputError(
            f"the stream's items are rows of {shape[3]} features, and method {method!r} makes images; allowed for rows: random, herding, "
            "kcenter, kmeans, class_mean."
        )
    if decode is not None:
        raise InputError(f"the stream's items are rows of {shape[3]} features, and decode {as_text(decode)!r} is of images; leave it out.")
