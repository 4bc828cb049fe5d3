"""Checks of condensed sets that are joined."""

from distill.decode import as_text
from distill.errors import InputError
from distill.set_file import Stored


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
    for name in ("step_sizes", "start_weights"):
        ours, theirs = getattr(first, name), getattr(other, name)
        if (ours is not None or theirs is not None) and not (ours and ours.same_as(theirs)):
            raise InputError(
                f"concat: the sets' {name} differ, and a union has one training; leave them out: dataclasses.replace(set, {name}=None)."
            )
    if first.step_sizes is not None and first.step_sizes.batches is not None:
        raise InputError("concat: step_sizes name the images of each step; leave them out: dataclasses.replace(set, step_sizes=None).")
