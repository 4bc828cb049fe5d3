"""`ImageData`: real images on one device, uint8 at rest, with train, validation and test splits."""

import functools
import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError
from distill.randomness import generator
from distill.spec import DataSpec


@dataclass(frozen=True, eq=False)
class Split:
    """images (N, C, H, W) uint8 (0 to 255) or float32 (0 to 1); labels (N,) int64; both on one device. May be empty."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"images are {self.images.dtype} {tuple(self.images.shape)}; allowed: uint8 or float32 of shape (N, C, H, W).")
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}; allowed: int64 ({len(self.images)},).")

    def __len__(self) -> int:
        return len(self.labels)

    def at(self, indices: Tensor) -> "Split":
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set. Only statistics, coresets, training and expert trajectories look at its pixels; the rest sees `spec`."""

    spec: DataSpec
    train: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        for name in ("train", "validation", "test"):
            split: Split = getattr(self, name)
            if len(split) and tuple(split.images.shape[1:]) != self.spec.shape:
                raise InputError(f"{name} images are {tuple(split.images.shape[1:])}; the data spec says {self.spec.shape}.")
            if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < self.spec.num_classes:
                low, high = int(split.labels.min()), int(split.labels.max())
                raise InputError(f"{name} labels lie in {low}..{high}; allowed: 0..{self.spec.num_classes - 1}.")
        if not len(self.train):
            raise InputError(f"data {self.spec.name!r} has no training images; allowed: at least one.")

    @property
    def device(self) -> torch.device:
        return self.train.images.device

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Training images of each class (K,)."""
        return tuple(torch.bincount(self.train.labels, minlength=self.spec.num_classes).tolist())

    @property
    def classes(self) -> tuple[int, ...]:
        """The class ids that have training images."""
        return tuple(label for label, count in enumerate(self.counts) if count)

    @functools.cached_property
    def _by_class(self) -> tuple[Tensor, ...]:
        return torch.argsort(self.train.labels, stable=True).split(list(self.counts))

    def class_indices(self, label: int) -> Tensor:
        """Positions in the training split of one class's images, rising."""
        return self._by_class[label]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the spec's shape and the training images and labels; the same on every device."""
        digest = hashlib.sha256(repr((self.spec.shape, self.spec.num_classes, str(self.train.images.dtype))).encode())
        digest.update(self.train.labels.cpu().numpy().tobytes())
        digest.update(self.train.images.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def normalised(self, split: str, indices: Tensor) -> Tensor:
        """Normalised float32 images (n, C, H, W) of one split."""
        chosen: Split = getattr(self, split)
        return self.spec.normalise(chosen.images[indices])

    def to(self, device: torch.device | str) -> "ImageData":
        if torch.device(device) == self.device:
            return self
        moved = {n: Split(getattr(self, n).images.to(device), getattr(self, n).labels.to(device)) for n in ("train", "validation", "test")}
        return replace(self, **moved)

    def subset(self, classes: Iterable[int]) -> "ImageData":
        """Only the images of these classes, in all splits; label numbers and spec stay."""
        wanted = torch.tensor(sorted(set(classes)), device=self.device)
        kept = {n: getattr(self, n).at(torch.isin(getattr(self, n).labels, wanted)) for n in ("train", "validation", "test")}
        if not len(kept["train"]):
            raise InputError(f"subset of classes {wanted.tolist()} is empty; allowed: some of {list(self.classes)}.")
        return replace(self, **kept)

    @staticmethod
    def from_arrays(
        name: str,
        x_train: Any,
        y_train: Any,
        x_test: Any,
        y_test: Any,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        validation: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> "ImageData":
        """A data set from arrays.

        Images: numpy arrays N x H x W or N x H x W x C, or torch tensors N x C x H x W; uint8, or float in [0, 1]. Labels: whole numbers
        (N,). ``mean`` and ``std`` (per channel) are computed from the training images when not given. ``validation`` is the fraction of
        train that becomes the validation split, drawn class by class with ``seed``.
        """
        if not 0 <= validation < 1:
            raise InputError(f"validation is {validation}; allowed: 0 up to, not including, 1.")
        images, labels = _images(x_train, f"{name}: x_train"), _labels(y_train, f"{name}: y_train")
        test = Split(_images(x_test, f"{name}: x_test"), _labels(y_test, f"{name}: y_test"))
        for part, (x, y) in {"train": (images, labels), "test": (test.images, test.labels)}.items():
            if len(x) != len(y):
                raise InputError(f"{name}: x_{part} has {len(x)} images and y_{part} {len(y)} labels; they must be as many.")
        highest = max([int(y.max()) for y in (labels, test.labels) if len(y)], default=0)
        names = tuple(classes) if classes is not None else tuple(str(label) for label in range(highest + 1))
        if mean is None or std is None:
            mean, std = _moments(images)
        spec = DataSpec(name, *images.shape[1:], classes=names, mean=tuple(map(float, mean)), std=tuple(map(float, std)))
        kept, held = _carve(labels, validation, seed)
        train = Split(images, labels)
        data = ImageData(spec, train.at(kept), train.at(held), test)
        return data.to(device)


def _carve(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """(train, validation) positions, rising: a fraction of each class, at least one image where the class has two."""
    held = []
    draws = generator(seed, "validation")
    for label in labels.unique().tolist():
        places = (labels == label).nonzero().squeeze(1)
        count = min(max(1, round(fraction * len(places))), len(places) - 1) if fraction else 0
        held.append(places[torch.randperm(len(places), generator=draws)[:count]])
    mask = torch.zeros(len(labels), dtype=torch.bool)
    if held:
        mask[torch.cat(held)] = True
    return (~mask).nonzero().squeeze(1), mask.nonzero().squeeze(1)


def _images(array: Any, what: str) -> Tensor:
    if isinstance(array, Tensor):
        images = array.detach().cpu()
    else:
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "uf" or array.ndim not in (3, 4):
            given = f"{getattr(array, 'dtype', type(array).__name__)} {getattr(array, 'shape', '')}"
            raise InputError(f"{what} is {given}; allowed: uint8 or float arrays, N x H x W or N x H x W x C.")
        images = torch.from_numpy(np.ascontiguousarray(array[:, None] if array.ndim == 3 else array.transpose(0, 3, 1, 2)))
    if images.ndim != 4 or 0 in images.shape[1:]:
        raise InputError(f"{what} has the shape {tuple(images.shape)}; allowed: images of at least one pixel and one channel.")
    if images.dtype == torch.uint8:
        return images
    if not images.dtype.is_floating_point:
        raise InputError(f"{what} is {images.dtype}; allowed: uint8 (0 to 255), or floats from 0 to 1.")
    images = images.float()
    if images.numel() and not (bool(torch.isfinite(images).all()) and float(images.min()) >= 0 and float(images.max()) <= 1):
        raise InputError(f"{what} holds floats outside 0 to 1 (or not finite); scale them, or give uint8.")
    return images


def _labels(array: Any, what: str) -> Tensor:
    labels = array.detach().cpu().numpy() if isinstance(array, Tensor) else array
    if not isinstance(labels, np.ndarray) or labels.dtype.kind not in "iu" or labels.ndim != 1:
        given = f"{getattr(labels, 'dtype', type(labels).__name__)} {getattr(labels, 'shape', '')}"
        raise InputError(f"{what} is {given}; allowed: whole numbers of shape (N,).")
    if len(labels) and not 0 <= int(labels.min()) <= int(labels.max()) < 100_000:
        raise InputError(f"{what} lies in {labels.min()}..{labels.max()}; allowed: class numbers 0..99999.")
    return torch.from_numpy(labels.astype(np.int64))


def _moments(images: Tensor) -> tuple[list[float], list[float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], in chunks so that memory stays small."""
    if not len(images):
        raise InputError("there are no training images to compute a mean and std from; give at least one.")
    total = torch.zeros(images.shape[1], dtype=torch.float64)
    squares = torch.zeros_like(total)
    for part in images.split(2048):
        values = part.double() / (255 if images.dtype == torch.uint8 else 1)
        total += values.sum((0, 2, 3))
        squares += values.square().sum((0, 2, 3))
    count = images.numel() / images.shape[1]
    mean = total / count
    # A constant channel has no spread; 1 leaves it as it is.
    std = (squares / count - mean.square()).clamp_min(0).sqrt()
    return mean.tolist(), torch.where(std > 1e-4, std, torch.ones_like(std)).tolist()
