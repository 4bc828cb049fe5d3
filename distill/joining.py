"""The union of condensed sets: what must agree, and what becomes of the rest."""

from collections.abc import Sequence

import torch

from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.labels import DEFAULT_KIND
from distill.set_file import Provenance


def concat(sets: Sequence[CondensedSet]) -> CondensedSet:
    """See `CondensedSet.concat`."""
    if not sets:
        raise InputError("concat was given no sets; allowed: one or more.")
    first = sets[0]
    for other in sets[1:]:
        _check_alike(first, other)
    soft = any(s.labels.dtype != torch.int64 for s in sets)
    kinds = sorted({s.label_kind for s in sets})
    if len(kinds) > 1:
        raise InputError(f"concat: the label kinds differ ({', '.join(kinds)}; class numbers are {DEFAULT_KIND}); allowed: one kind.")
    labels = [torch.nn.functional.one_hot(s.labels, s.spec.num_classes).float() if soft and s.labels.ndim == 1 else s.labels for s in sets]
    parts = [{"method": s.provenance.method, "seed": s.provenance.seed, "dp": s.provenance.dp} for s in sets]
    joined = CondensedSet(
        images=torch.cat([s.images for s in sets]),
        labels=torch.cat(labels),
        spec=first.spec,
        lr=first.lr if len({s.lr for s in sets}) == 1 else None,
        augmentation=first.augmentation if len({s.augmentation for s in sets}) == 1 else None,
        provenance=Provenance("union", {"parts": parts}, seconds=sum(s.provenance.seconds for s in sets)),
        whitening=first.whitening,
        label_kind=first.label_kind,
        step_sizes=first.step_sizes,
        start_weights=first.start_weights,
    )
    return joined.made_for(label for one in sets for label in one.classes)


def _check_alike(first: CondensedSet, other: CondensedSet) -> None:
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
