"""Condensed sets that are joined: what must agree, and their labels and views together."""

import functools
from collections.abc import Sequence
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.decode import as_text
from distill.errors import InputError
from distill.labels import DEFAULT_KIND
from distill.set_file import Stored
from distill.views import Views


class Labelled(Stored, Protocol):
    """A set as far as its labels are joined here."""

    @property
    def labels(self) -> Tensor: ...


def joined_labels(sets: Sequence[Labelled]) -> Tensor:
    """The labels of all sets, hard ones as one-hot rows if any set has soft labels. Raises `InputError` unless the sets can be joined."""
    for other in sets[1:]:
        check_alike(sets[0], other)
    soft = any(one.labels.is_floating_point() for one in sets)
    kinds = sorted({one.label_kind for one in sets})
    if len(kinds) > 1:
        raise InputError(f"concat: the label kinds differ ({', '.join(kinds)}; class numbers are {DEFAULT_KIND}); allowed: one kind.")
    return torch.cat([F.one_hot(one.labels, one.spec.num_classes).float() if soft and one.labels.ndim == 1 else one.labels for one in sets])


def joined_views(sets: Sequence[Stored]) -> Views | None:
    """The views of all sets, of which all have some or none."""
    stored = [one.views for one in sets if one.views is not None]
    return functools.reduce(Views.joined, stored) if stored else None


def check_alike(first: Stored, other: Stored) -> None:
    """Raises `InputError` unless the sets agree on their spec, decode, whitening, step sizes and start weights."""
    if first.decode != other.decode:
        ours, theirs = as_text(first.decode), as_text(other.decode)
        raise InputError(f"concat: the images are stored in different forms ({ours} and {theirs}); join their decoded() sets.")
    for name in ("channels", "height", "width", "classes", "mean", "std"):
        ours, theirs = getattr(first.spec, name), getattr(other.spec, name)
        if ours != theirs:
            raise InputError(f"concat: {name} differ ({str(ours)[:60]} and {str(theirs)[:60]}); sets must agree on their spec.")
    if (first.whitening is not None or other.whitening is not None) and not (first.whitening and first.whitening.same_as(other.whitening)):
        raise InputError("concat: the sets are whitened differently; only sets of one white space can be joined.")
    if (first.views is None) != (other.views is None):
        raise InputError("concat: one set has stored views and another has none; leave them out: dataclasses.replace(set, views=None).")
    for name in ("step_sizes", "start_weights"):
        ours, theirs = getattr(first, name), getattr(other, name)
        if (ours is not None or theirs is not None) and not (ours and ours.same_as(theirs)):
            raise InputError(
                f"concat: the sets' {name} differ, and a union has one training; leave them out: dataclasses.replace(set, {name}=None)."
            )
    if first.step_sizes is not None and first.step_sizes.batches is not None:
        raise InputError("concat: step_sizes name the images of each step; leave them out: dataclasses.replace(set, step_sizes=None).")
