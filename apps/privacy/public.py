"""What a private run may know beforehand: published sizes and normalisations, public probe images, public initial sets."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.privacy.accounting import Steps
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.data_sets import DATA_SETS
from distill.errors import InputError, clipped
from distill.randomness import generator
from distill.spec import DataSpec


def public_size(spec: DataSpec, given: int | None) -> int:
    """The number of examples that is publicly known; `InputError` where none is. A name alone (a folder's, say) makes no data public."""
    known = DATA_SETS.get(spec.name) if spec.population_origin == "published" else None
    population = given or (known.size if known else None)
    if population is None or population < 1:
        raise InputError(
            f"data {spec.name!r} has no publicly known size; give population=, a round number that is public. "
            "The true count of private examples is private itself."
        )
    return population


def check_target(epsilon: float, delta: float, population: int) -> None:
    """`InputError` unless (epsilon, delta) is a meaningful guarantee for ``population`` examples."""
    if not (isinstance(epsilon, int | float) and 0 < epsilon < float("inf")):
        raise InputError(f"epsilon is {str(epsilon)[:40]}; allowed: a positive number (1 is strong, 10 is weak).")
    if delta >= 1 / population:
        raise InputError(f"delta is {delta}; allowed: below 1 / population = {1 / population:.2g}, or one example could be revealed.")


def check_normalisation(data: ImageData) -> None:
    """`InputError` when the pixels' normalisation or the class list was computed from the private images: an unaccounted release.

    The spec's origins decide, never a comparison of numbers: those of a part of the images, or rounded ones, tell as much. A list of
    classes tells as well: without the only image of the last class it would be shorter.
    """
    if data.whitening is not None:
        raise InputError("refused, because it has no privacy guarantee: whitening fitted on the images; leave zca out.")
    spec, from_images = data.spec, []
    if spec.normalisation_origin == "computed":
        from_images.append("the normalisation (mean and std) was computed from its images")
    if spec.classes_origin == "computed":
        from_images.append("the class list was computed from its labels or folders")
    if from_images:
        numbers = ", ".join(["0.5"] * min(spec.channels, 4))
        parts = (f"mean{{0}}[{numbers}]", f"std{{0}}[{numbers}]", 'classes{0}["NAME", ...]')
        raise InputError(
            f"refused for data {clipped(spec.name)!r}, because it has no privacy guarantee: {', and '.join(from_images)}. "
            f"Give public ones: [data] {', '.join(parts).format(' = ')}, or load(..., {', '.join(parts).format('=')})."
        )


def check_class_list(classes: Sequence[int] | None, spec: DataSpec) -> tuple[int, ...]:
    """The classes of a release; `InputError` for one that is listed twice: its examples would be in two sums, and move them further."""
    if classes is None:
        return tuple(range(spec.num_classes))
    listed = tuple(classes)
    good = all(isinstance(label, int) and not isinstance(label, bool) and 0 <= label < spec.num_classes for label in listed)
    if not listed or not good or len(set(listed)) != len(listed):
        raise InputError(f"classes is {clipped(listed)}; allowed: different whole numbers from 0 to {spec.num_classes - 1}, at least one.")
    return listed


def check_start(start: CondensedSet, data: ImageData, public: str | None, account: str, history: list[Steps]) -> str:
    """Where the first images come from, in words; `InputError` when they may come from the private images without a release."""
    origin = start.provenance
    if origin.method == "initial:noise":
        return "noise"
    statement = origin.dp or {}
    if statement.get("account") == account and is_part(statement.get("history"), history):
        return f"{clipped(origin.method)}, from releases of the same account"
    if public is None or origin.fingerprint == data.fingerprint:
        raise InputError(
            f"refused, because it has no privacy guarantee: an initial set made by {clipped(origin.method)!r}, which may come from private "
            'images; use initial="noise", or a public set, and name where it is from: PrivateStatistics(..., public_start="...").'
        )
    spec, images = data.spec, start.decoded().images.to(data.device)
    for part in torch.arange(len(data.train), device=data.device).split(4096):
        near = torch.cdist(images.flatten(1), spec.normalise(data.train.images[part]).flatten(1)).min()
        if float(near) < 1e-3:
            raise InputError("refused: the initial set, said to be public, holds a copy of a private image; give another one.")
    return f"public: {clipped(public)}"


def is_part(theirs: object, ours: list[Steps]) -> bool:
    """Whether a stated history is the beginning of this account."""
    if not isinstance(theirs, list) or not 0 < len(theirs) <= len(ours):
        return False
    *first, last = theirs
    mine = ours[len(first)]
    return first == [list(step) for step in ours[: len(first)]] and last[:2] == [*mine[:2]] and last[2] <= mine.times


def probe_images(spec: DataSpec, count: int = 3) -> Tensor:
    """(count, C, H, W) smooth random images, always the same: what functions are tried on before private images are."""
    return smooth_images(spec, count, generator(0, "privacy", "probe"))


def smooth_images(spec: DataSpec, count: int, draws: torch.Generator) -> Tensor:
    """(count, C, H, W): standard normal values on a 4 x 4 grid, interpolated."""
    low = torch.randn(count, spec.channels, 4, 4, generator=draws)
    return F.interpolate(low, size=(spec.height, spec.width), mode="bilinear", align_corners=False)
