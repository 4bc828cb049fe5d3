"""`DataSpec`: the facts about a data set that every package needs, without its pixels."""

import functools
import math
from dataclasses import dataclass, field
from typing import Literal, TypedDict, get_args

import torch
from torch import Tensor

from distill.errors import InputError, clipped

# Limits for specs that come from other parties; far above every data set this toolkit is meant for.
MAX_CHANNELS = 64
MAX_SIDE = 4096
MAX_CLASSES = 100_000
MAX_NAME = 200
Origin = Literal["published", "given", "computed"]
ORIGINS: tuple[Origin, ...] = get_args(Origin)


class GivenFacts(TypedDict, total=False):
    """Facts about the data that its user gave, in place of computed ones."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    classes: tuple[str, ...]


@dataclass(frozen=True)
class DataSpec:
    """Shape, class names and normalisation of a data set. Raises `InputError` if a field is out of range.

    The origins state where facts come from: "published" (known of a public data set), "given" (by the user, who states that they are
    public) or "computed" (from the images, their labels or their folders' names). Computed facts may not leave a private run
    (apps/privacy/public.py). Two specs are equal, and have one hash, whatever their origins. The origins in a spec from another party
    are that party's statement.

    Attributes:
        name: of the data set.
        channels: of an image.
        height: of an image, pixels.
        width: of an image, pixels.
        classes: class names, in the order of the labels.
        mean: per channel, of pixels in [0, 1].
        std: per channel, of pixels in [0, 1].
        normalisation_origin: of mean and std.
        classes_origin: of the class names.
        population_origin: of the number of training images.
    """

    name: str
    channels: int
    height: int
    width: int
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    normalisation_origin: Origin = field(default="computed", compare=False, repr=False)
    classes_origin: Origin = field(default="computed", compare=False, repr=False)
    population_origin: Origin = field(default="computed", compare=False, repr=False)

    def __post_init__(self) -> None:
        def check(good: bool, field: str, allowed: str) -> None:
            if not good:
                raise InputError(f"data spec: {field} is {clipped(getattr(self, field))!r}; allowed: {allowed}.")

        check(_text(self.name) and len(self.name) > 0, "name", f"1 to {MAX_NAME} characters")
        check(_whole(self.channels) and 1 <= self.channels <= MAX_CHANNELS, "channels", f"1 to {MAX_CHANNELS}")
        check(_whole(self.height) and 1 <= self.height <= MAX_SIDE, "height", f"1 to {MAX_SIDE}")
        check(_whole(self.width) and 1 <= self.width <= MAX_SIDE, "width", f"1 to {MAX_SIDE}")
        check(1 <= len(self.classes) <= MAX_CLASSES, "classes", f"1 to {MAX_CLASSES} names")
        check(all(map(_text, self.classes)), "classes", f"names of at most {MAX_NAME} characters that UTF-8 can store")
        for name in ("mean", "std"):
            numbers = getattr(self, name)
            check(len(numbers) == self.channels and all(_finite(v) for v in numbers), name, f"{self.channels} finite numbers")
        check(all(1e-6 <= v <= 1e6 for v in self.std), "std", "numbers from 1e-6 to 1e6")
        for name in ORIGIN_FIELDS:
            check(getattr(self, name) in ORIGINS, name, ", ".join(ORIGINS))

    @property
    def facts(self) -> dict[str, object]:
        """The fields that make two specs equal: all but the origins."""
        return {name: value for name, value in vars(self).items() if name not in ORIGIN_FIELDS}

    @property
    def origins(self) -> dict[str, Origin]:
        """Where "normalisation", "classes" and "population" come from."""
        return {name.removesuffix("_origin"): getattr(self, name) for name in ORIGIN_FIELDS}

    @property
    def given(self) -> "GivenFacts":
        """What was given of mean, std and classes, as `distill.load` takes it."""
        facts: GivenFacts = {"mean": self.mean, "std": self.std} if self.normalisation_origin == "given" else {}
        return {**facts, "classes": self.classes} if self.classes_origin == "given" else facts

    @property
    def num_classes(self) -> int:
        """K, the number of class names."""
        return len(self.classes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)."""
        return self.channels, self.height, self.width

    @property
    def bounds(self) -> tuple[float, float]:
        """The lowest and highest normalised value of pixels in [0, 1], over all channels."""
        ends = [((0 - mean) / std, (1 - mean) / std) for mean, std in zip(self.mean, self.std, strict=True)]
        return min(low for low, _ in ends), max(high for _, high in ends)

    def normalise(self, images: Tensor) -> Tensor:
        """Normalise images (N, C, H, W), uint8 (0 to 255) or float (0 to 1), to float32."""
        scaled = images.to(torch.float32) / 255.0 if images.dtype == torch.uint8 else images.to(torch.float32)
        mean, std = self._columns(scaled)
        return (scaled - mean) / std

    def denormalise(self, images: Tensor) -> Tensor:
        """Normalised images (N, C, H, W) back to pixels in [0, 1], clipped."""
        mean, std = self._columns(images)
        return (images * std + mean).clamp(0.0, 1.0)

    def _columns(self, like: Tensor) -> tuple[Tensor, Tensor]:
        return column(self.mean, like.dtype, like.device), column(self.std, like.dtype, like.device)


@functools.lru_cache(maxsize=64)
def column(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A number a channel, (1, C, 1, 1), kept on the device: a GPU waits for the host wherever such a tensor is made."""
    return torch.tensor(values, dtype=dtype, device=device).view(1, -1, 1, 1)


ORIGIN_FIELDS = ("normalisation_origin", "classes_origin", "population_origin")


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _finite(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _text(value: object) -> bool:
    """Whether this is a text that can be written to a file: lone surrogates, from file names that are not UTF-8, cannot."""
    if not isinstance(value, str) or len(value) > MAX_NAME:
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True
