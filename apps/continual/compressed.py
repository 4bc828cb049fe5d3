"""Compressed real images as a memory: the baseline at equal bytes that synthetic exemplars must beat (Wang et al., MRDC, ICLR 2022).

Several compressed images fit where one float32 image does. Which images are kept is left to chance.
"""

import io
import math
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from apps.continual.exemplars import Exemplars, Key, by_class, checked
from apps.continual.form import LABEL_BYTES, Form
from distill.condensed import CondensedSet, Provenance
from distill.errors import InputError
from distill.quantise import Grid, decode, encode
from distill.randomness import generator
from distill.spec import DataSpec

LENGTH_BYTES = 4  # of an item's number of bytes, which differs from item to item


@dataclass(frozen=True)
class Codec:
    """How a uint8 image (H, W, C) becomes bytes and, with its shape, an image again."""

    encode: Callable[[np.ndarray], bytes]
    decode: Callable[[bytes, tuple[int, ...]], np.ndarray]


def _zlib(image: np.ndarray) -> bytes:
    return zlib.compress(np.ascontiguousarray(image).tobytes(), 9)


def _from_zlib(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    return np.frombuffer(zlib.decompress(data), np.uint8).reshape(shape)


def _picture(**options: object) -> Callable[[np.ndarray], bytes]:
    def compressed(image: np.ndarray) -> bytes:
        file = io.BytesIO()
        Image.fromarray(image[..., 0] if image.shape[2] == 1 else image).save(file, **options)  # type: ignore[arg-type]
        return file.getvalue()

    return compressed


def _from_picture(data: bytes, shape: tuple[int, ...]) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as picture:
        return np.asarray(picture.convert("L" if shape[2] == 1 else "RGB")).reshape(shape)


CODECS = {
    "zlib": Codec(_zlib, _from_zlib),  # lossless
    "jpeg50": Codec(_picture(format="JPEG", quality=50, optimize=True), _from_picture),
    "webp50": Codec(_picture(format="WEBP", quality=50, method=6), _from_picture),
}
COMPRESSED = {f"random-{name}": name for name in CODECS}  # as a study names these memories


class CompressedMemory:
    """Random real images of each class, compressed, as many as fit into a class's bytes.

    An image costs its bytes, their number and a label.

    Args:
        codec: a name in `CODECS`.
        class_bytes: of each class of each experience.
        mean: of the stream's normalisation, per channel: pixels are compressed, and a learner gets them normalised.
        std: likewise, the standard deviation.
        seed: of the choice.

    Raises:
        InputError: the codec is unknown, or a number is out of range.
    """

    def __init__(self, codec: str, class_bytes: int, mean: Sequence[float], std: Sequence[float], seed: int = 0) -> None:
        if codec not in CODECS:
            raise InputError(f"codec {codec!r} is not known; allowed: {', '.join(CODECS)}.")
        if class_bytes < 1:
            raise InputError(f"class_bytes is {class_bytes}; allowed: 1 or more.")
        if not len(mean) == len(std) > 0 or not all(math.isfinite(m) for m in mean) or not all(0 < s < math.inf for s in std):
            raise InputError(f"mean is {tuple(mean)} and std {tuple(std)}; allowed: a finite mean and a std above 0 for each channel.")
        self.codec, self.class_bytes, self.seed, self.experiences = codec, class_bytes, seed, 0
        self.grid: Grid = tuple((-m / s, 1 / (255 * s)) for m, s in zip(mean, std, strict=True))
        self.shape: tuple[int, ...] = ()  # (C, H, W), known from the first experience on
        self.items: dict[tuple[int, Key], list[bytes]] = {}  # by (experience, (task, label))

    def __len__(self) -> int:
        """Number of images."""
        return sum(map(len, self.items.values()))

    @property
    def nbytes(self) -> int:
        """Bytes of all images, their sizes and labels."""
        return sum(_size(data) for group in self.items.values() for data in group)

    def observe(self, images: Tensor, labels: Tensor, *, task: int | Tensor = 0) -> None:
        """Take in one experience: normalised images (N, C, H, W), labels (N,) and one task or tasks (N,). Raises `InputError`."""
        tasks = checked(images, labels, task, self.shape or None, tuple(low for low, _ in self.grid))
        self.shape = tuple(images.shape[1:])
        for key, pool in by_class(images, labels, tasks).items():
            draws = generator(self.seed, "compressed", self.experiences, *key)
            group, left = [], self.class_bytes
            for place in torch.randperm(len(pool), generator=draws).tolist():
                data = CODECS[self.codec].encode(encode(pool[place], self.grid).permute(1, 2, 0).numpy())
                left -= _size(data)
                if left < 0:  # the first that does not fit ends it: taking smaller ones instead would prefer plain images
                    break
                group.append(data)
            if not group:
                raise InputError(f"{self.class_bytes} bytes have no room for one {self.codec} image of class {key[1]}; raise the budget.")
            self.items[self.experiences, key] = group
        self.experiences += 1

    def groups(self) -> list[Exemplars]:
        """The images of each class of each experience, as a learner sees them."""
        channels, height, width = self.shape or (0, 0, 0)
        found = []
        for (experience, (task, label)), group in self.items.items():
            codes = torch.stack([torch.tensor(CODECS[self.codec].decode(data, (height, width, channels))) for data in group])
            values = decode(codes.permute(0, 3, 1, 2), self.grid)
            found.append(Exemplars(label, task, experience, len(group), values.contiguous(), Form(self.shape), kept=True))
        return found

    def condensed(self, spec: DataSpec) -> CondensedSet:
        """All images as one set of the data set ``spec``, in whose normalised space the stream's images must be."""
        groups = self.groups()
        if not groups:
            raise InputError("the memory is empty; let it observe an experience first.")
        labels = torch.cat([torch.full((group.count,), group.label) for group in groups])
        origin = Provenance(f"memory:random-{self.codec}", {"bytes": self.nbytes}, self.seed)
        return CondensedSet(torch.cat([group.values for group in groups]), labels, spec, provenance=origin)


def _size(data: bytes) -> int:
    return len(data) + LENGTH_BYTES + LABEL_BYTES
