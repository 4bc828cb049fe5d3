"""One experience's images become a few: any method or coreset, on plain tensors that are used as they are."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.condensed import CondensedSet
from distill.configure import configure
from distill.coresets import CORESETS, select
from distill.data import ImageData, Split
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.methods.presets import matched_by, presets_of
from distill.networks import check_name
from distill.randomness import generator
from distill.run import condense
from distill.spec import DataSpec
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set

SPARE = "no class"  # the second output of a network where one class is all that is known


def check_method(method: str) -> None:
    """`InputError` unless ``method`` is a condensation method or a coreset."""
    if method not in (*METHODS, *CORESETS):
        raise unknown_name("memory's method", method, (*METHODS, *CORESETS))


def class_by_class(method: str) -> bool:
    """Whether each class is condensed for itself. Other methods, and those that do not say what they match, may compare classes: alone, a
    class would teach them nothing."""
    return method in CORESETS or matched_by(METHODS[method][1]) == "features"


def settings_of(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that `condense_images` uses: those of the method's `Presets.memory` under the given ones. A coreset takes none."""
    check_method(method)
    if method in CORESETS and given:
        raise InputError(f"setting {next(iter(given))!r} was given for the coreset {method!r}; coresets take no settings.")
    if method in CORESETS:
        return {}
    return {**presets_of(METHODS[method][1]).memory, **given}


def check_settings(method: str, given: dict[str, Any]) -> None:
    """`InputError` for a setting that the method does not have, a value that it does not take, and a network that is not listed."""
    chosen = settings_of(method, given)
    if method in CORESETS:
        return
    network = chosen.get("network")
    if callable(network):
        del chosen["network"]
    made = configure(METHODS[method][0], chosen, f"the memory's method {method!r}")
    if not callable(network):
        check_name(made.network)
    if getattr(made, "soft_labels", False):
        raise InputError("a memory keeps images by class, and the method would make soft labels; leave soft_labels out.")


def condense_images(
    images: Tensor,
    labels: Tensor,
    method: str,
    ipc: int | Sequence[int],
    seed: int,
    *,
    settings: dict[str, Any] | None = None,
    name: str = "stream",
    device: torch.device | str = "cpu",
    starts: Mapping[int, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: bool | None = None,
) -> CondensedSet:
    """At most ``ipc`` images a class (or counts by class, classes rising) for ``images`` (N, C, H, W) float32 with ``labels`` (N,) int64.

    The images are in whatever space the learner sees them; so is the result (on the CPU), whose spec has mean 0 and std 1 and names the
    classes by their labels (position in the spec = rank of the label). Matching networks have one output for each class given here, and a
    spare one where that is a single class and not `class_by_class`: with one output there is no loss, and a gradient
    method would give its first images back. ``name`` decides the augmentation where it is "auto" (digits are not flipped). ``starts`` has
    images, as many as the class shall have, for classes (by position) that a method does not start by its own choice. With ``checkpoint``
    a stopped condensation continues to the same bits.
    """
    if (
        images.ndim != 4
        or images.dtype != torch.float32
        or labels.dtype != torch.int64
        or labels.shape != images.shape[:1]
        or not len(images)
    ):
        raise InputError(
            f"images are {images.dtype} {tuple(images.shape)} with labels {labels.dtype} {tuple(labels.shape)}; "
            "allowed: float32 (N, C, H, W) and int64 (N,), N at least 1."
        )
    if not bool(torch.isfinite(images).all()):
        raise InputError("images hold values that are not finite; allowed: finite numbers only.")
    found, positions = labels.unique(sorted=True, return_inverse=True)
    channels, height, width = images.shape[1:]
    names = tuple(str(int(c)) for c in found)
    if len(names) == 1 and not class_by_class(method):
        names += (SPARE,)
    spec = DataSpec(name, channels, height, width, names, (0.0,) * channels, (1.0,) * channels)
    whole = Split(images, positions)
    nothing = whole.at(torch.zeros(0, dtype=torch.int64))
    data = ImageData(spec, whole, nothing, nothing).to(device)
    counts = [ipc] * len(found) if isinstance(ipc, int) else list(ipc)
    same = counts[0] if len(set(counts)) == 1 else None
    if method in CORESETS:
        return select(data, method, same or counts, generator(seed, "coreset", method, same or str(counts))).to("cpu")
    chosen = settings_of(method, settings or {})
    start: Any = chosen.pop("initial", None)
    if starts:
        start = _first(data, method, start, counts, starts, seed)
    made = condense(
        data,
        method,
        ipc=same or dict(enumerate(counts)),
        seed=seed,
        initial=start,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        progress=progress,
        more_images_than_data=True,  # an experience may hold fewer images than its share of the memory
        **chosen,
    )
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return made.to("cpu")


def _first(data: ImageData, method: str, kind: str | None, counts: Sequence[int], starts: Mapping[int, Tensor], seed: int) -> CondensedSet:
    """The method's own first images, with those of ``starts`` in the place of their classes'."""
    kind = kind or METHODS[method][0]().initial
    sizes = [*counts, *[0] * (data.spec.num_classes - len(counts))]
    first = initial_set(ExactStatistics(data), kind, sizes, generator(seed, "first", method, device=data.device))
    images = first.images.clone()
    for place, given in starts.items():
        images[first.labels == place] = given.to(images)
    return CondensedSet(images, first.labels, data.spec)
