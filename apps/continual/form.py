"""`Form`: how a memory stores the images of its stream, and the bytes that an item takes."""

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from distill.decode import Decode, as_text
from distill.errors import InputError
from distill.spec import DataSpec

LABEL_BYTES = 8  # an int64 for each item, as a condensed set's file stores it
GRID_BYTES = 8  # low and step of each channel, two float32


@dataclass(frozen=True)
class Form:
    """How images of one shape are stored: plainly, or as parts of the rows of a decode (`distill.decode`).

    A part is one image as it is stored, and ``copies`` of them are one stored item. Parts are chosen, joined and given up one by one, so
    that no image is enlarged and shrunk again when a memory changes.

    Attributes:
        shape: of an image, (C, H, W).
        decode: of a stored item; None: an item is an image.

    Raises:
        InputError: images of this shape cannot be stored so. Padding is grey, which a learner's space does not know.
    """

    shape: tuple[int, ...]
    decode: Decode | None = None

    def __post_init__(self) -> None:
        if self.decode is None:
            return
        self.decode.stored_shape(self.spec)
        if self.decode.pads(self.spec):
            raise InputError(
                f"{as_text(self.decode)} pads images of {self.shape[1]} x {self.shape[2]} pixels with grey, and which value is grey is not "
                "known in a learner's space; take a factor that divides both sides."
            )

    @functools.cached_property
    def spec(self) -> DataSpec:
        """Of the learner's space: mean 0, std 1."""
        channels, height, width = self.shape
        return DataSpec("memory", channels, height, width, ("0",), (0.0,) * channels, (1.0,) * channels)

    @property
    def copies(self) -> int:
        """Images of a stored item."""
        return 1 if self.decode is None else self.decode.copies

    @functools.cached_property
    def part_shape(self) -> tuple[int, ...]:
        """(C, h, w) of one image as it is stored."""
        if self.decode is None:
            return self.shape
        row = torch.empty((1, *self.decode.stored_shape(self.spec)), device="meta")  # no memory for a shape that a file states
        return tuple(self.decode.parted(row, self.spec).shape[1:])

    def items(self, parts: int) -> int:
        """Stored items that this number of images takes; the last one may have fewer than `copies`."""
        return -(-parts // self.copies)

    def shrunk(self, images: Tensor) -> Tensor:
        """Images (n, C, H, W) as parts (n, C, h, w)."""
        return images if self.decode is None else self.decode.shrunk(images, self.spec)

    def enlarged(self, parts: Tensor) -> Tensor:
        """Parts (n, C, h, w) as images (n, C, H, W)."""
        return parts if self.decode is None else self.decode.enlarged(parts, self.spec)

    def rows(self, parts: Tensor) -> Tensor:
        """Parts (n, C, h, w) as stored rows; the last one is filled with the first parts."""
        if self.decode is None:
            return parts
        places = torch.arange(self.items(len(parts)) * self.copies, device=parts.device) % len(parts)
        return self.decode.joined(parts[places], self.spec)

    def parted(self, rows: Tensor) -> Tensor:
        """Stored rows as parts (n, C, h, w), `copies` of each row."""
        return rows if self.decode is None else self.decode.parted(rows, self.spec)

    def item_bytes(self, storage: str, logits: int = 0) -> int:
        """Bytes of a stored item with its label, and with this number of outputs for each of its images (DER)."""
        return self.copies * (math.prod(self.part_shape) * (1 if storage == "uint8" else 4) + 4 * logits) + LABEL_BYTES

    def group_bytes(self, storage: str) -> int:
        """Bytes that a class takes in addition to its items."""
        return GRID_BYTES * self.shape[0] if storage == "uint8" else 0
