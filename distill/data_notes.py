"""Sentences about classes, values and normalisation of data that are allowed but seldom intended."""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.errors import clipped


def one_class_note(names: Sequence[str], present: Sequence[int]) -> tuple[str, ...]:
    """The note on data of a single class, for which accuracies are meaningless; nothing for other data.

    Args:
        names: class names.
        present: the classes that have training images.
    """
    if len(present) > 1:
        return ()
    name = clipped(names[present[0]])
    return (f"all training images are of one class, {name!r}: every network is right about them, so an accuracy says nothing.",)


def class_notes(names: Sequence[str], counts: Sequence[int], tested: set[int]) -> tuple[str, ...]:
    """One sentence for each kind of unusual class.

    Args:
        names: class names.
        counts: training images of each class.
        tested: the classes that have test images.
    """
    present = [label for label, count in enumerate(counts) if count]
    notes = list(one_class_note(names, present))
    empty = [label for label, count in enumerate(counts) if not count]
    if empty and len(names) > 1:
        advice = "subtract 1 from labels that start at 1" if empty == [0] else "number the classes without gaps"
        notes.append(f"{len(empty)} of {len(names)} classes have no training images ({_named(names, empty)}); {advice}, or leave them out.")
    untested = [label for label in present if label not in tested]
    if tested and untested:
        notes.append(f"{len(untested)} of {len(names)} classes have no test images ({_named(names, untested)}).")
    return tuple(notes)


def value_notes(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> tuple[str, ...]:
    """One sentence where pixels or their normalisation look as if they had another scale: 0 to 1 in place of 0 to 255, or the reverse.

    Args:
        images: of the training split, uint8 (0 to 255) or float32 (0 to 1).
        mean: a number for each channel, of pixels in [0, 1].
        std: as ``mean``.
    """
    notes, high = [], float(images.max())
    if images.dtype == torch.uint8 and high == 1:
        notes.append("training images are bytes (0 to 255), and none is above 1: they look like pixels in 0 to 1; give these as floats.")
    if images.is_floating_point() and 0 < high <= 1 / 255:
        notes.append(f"training images are floats in 0 to 1, and none is above {high:.3g}: they look divided by 255 twice; divide once.")
    if max(*map(abs, mean), *std) > 1:
        shown = f"{clipped(list(mean))} and std {clipped(list(std))}"
        notes.append(f"images are normalised with mean {shown}, which pixels in 0 to 1 cannot have: of bytes, divide both by 255.")
    return tuple(notes)


def _named(names: Sequence[str], labels: Sequence[int]) -> str:
    return ", ".join(clipped(names[label], 40) for label in labels[:5]) + (", ..." if len(labels) > 5 else "")
