"""Normalisation and class names that the user gives for data read from files, in place of those in the files."""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from distill.data import SPLITS, ImageData, Split
from distill.errors import InputError, clipped


def with_given(
    data: ImageData, mean: Sequence[float] | None = None, std: Sequence[float] | None = None, classes: Sequence[str] | None = None
) -> ImageData:
    """The same images with this normalisation and these class names; None leaves what was read unchanged.

    Args:
        mean: one number per channel, of pixels in [0, 1]; given with `std` or not at all, because the other one would stay computed.
        std: likewise.
        classes: class names in the order of the labels. Each class that has images in any split must be in the list; it may have more.

    Raises `InputError` for numbers that do not fit the channels, are not finite, or a std that is not positive; for names that are no
    list of different texts; and for images of a class that the list leaves out.
    """
    changed = _renamed(_normalised(data, mean, std), classes)
    if changed is data:
        return data
    before = data.own_notes()
    return replace(changed, notes=(*changed.own_notes(), *(note for note in data.notes if note not in before)))


def _normalised(data: ImageData, mean: Sequence[float] | None, std: Sequence[float] | None) -> ImageData:
    if mean is None and std is None:
        return data
    if mean is None or std is None:
        one, other = ("std", "mean") if mean is None else ("mean", "std")
        raise InputError(f"{one} is given without {other}; give both, or neither.")
    for name, numbers in (("mean", mean), ("std", std)):
        good = isinstance(numbers, list | tuple) and len(numbers) == data.spec.channels and all(map(_number, numbers))
        if not good or (name == "std" and not all(1e-6 <= value <= 1e6 for value in numbers)):
            positive = "a positive number" if name == "std" else "a finite number"
            raise InputError(
                f"data {data.spec.name!r}: {name} is {clipped(numbers)}; allowed: a list of {positive} for each of {data.spec.channels} "
                f"channel{'' if data.spec.channels == 1 else 's'}, for pixels in [0, 1]."
            )
    spec = replace(data.spec, mean=tuple(map(float, mean)), std=tuple(map(float, std)), normalisation_origin="given")
    return replace(data, spec=spec)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= 1e6 and math.isfinite(value)


def _renamed(data: ImageData, classes: Sequence[str] | None) -> ImageData:
    if classes is None:
        return data
    if not isinstance(classes, list | tuple) or not classes or not all(isinstance(name, str) for name in classes):
        raise InputError(f"classes is {clipped(classes)}; allowed: a list of class names, in the order of the labels.")
    if len(set(classes)) != len(classes):
        raise InputError(f"classes is {clipped(list(classes))}; allowed: different names, each once.")
    place, names = {name: number for number, name in enumerate(classes)}, data.spec.classes
    present = sorted({label for part in SPLITS for label in getattr(data, part).labels.unique().tolist()})
    missing = [names[label] for label in present if names[label] not in place]
    if missing:
        raise InputError(
            f"data {data.spec.name!r} have images of the class {clipped(missing[0], 80)!r}, which is not in classes = "
            f"{clipped(list(classes))}; name every class that has images, or take those images away."
        )
    number = torch.tensor([place.get(name, 0) for name in names], device=data.device)
    train, validation, test = (Split(split.images, number[split.labels]) for split in (data.train, data.validation, data.test))
    spec = replace(data.spec, classes=tuple(classes), classes_origin="given")
    return replace(data, spec=spec, train=train, validation=validation, test=test)
