"""Condensing the images of one experience with any method or coreset, as tensors in the learner's space."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.condensed import CondensedSet
from distill.configure import configure
from distill.coresets import CORESETS, select
from distill.data import ImageData, Split
from distill.decode import Decode, from_text
from distill.distiller import Config
from distill.errors import InputError, clipped, unknown_name
from distill.methods import METHODS
from distill.methods.presets import matched_by, presets_of
from distill.networks import check_name
from distill.randomness import generator
from distill.run import condense
from distill.shared_config import SharedConfig, trains_networks
from distill.spec import DataSpec
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set

SPARE = "no class"  # the second output of a network where one class is all that is known


def check_method(method: str) -> None:
    """`InputError` unless ``method`` is a condensation method or a coreset."""
    if method not in (*METHODS, *CORESETS):
        raise unknown_name("memory's method", method, (*METHODS, *CORESETS))


def class_by_class(method: str, settings: Mapping[str, object] | None = None) -> bool:
    """Whether the method condenses each class independently.

    Other methods, and those that do not state what they match, may compare classes and need several. So does a pool of trained networks,
    which learn to tell the classes apart.
    """
    if method in CORESETS:
        return True
    config = _configured(method, settings_of(method, settings or {}))
    return matched_by(METHODS[method][1]) == "features" and not (isinstance(config, SharedConfig) and trains_networks(config))


def settings_of(method: str, chosen: Mapping[str, object]) -> dict[str, Any]:
    """The settings of a memory's method: ``chosen`` over the method's `Presets.memory`. A coreset has none but ``decode``."""
    check_method(method)
    if method not in CORESETS:
        return {**presets_of(METHODS[method][1]).memory, **chosen}
    if other := [name for name in chosen if name != "decode"]:
        raise InputError(f"setting {other[0]!r} was given for the coreset {method!r}; coresets take no settings but decode.")
    return dict(chosen)


def decode_of(method: str, settings: Mapping[str, object]) -> Decode | None:
    """How a memory with these settings stores its images. Raises `InputError`."""
    chosen = settings_of(method, settings)
    if method not in CORESETS:
        return from_text(getattr(_configured(method, chosen), "decode", "none"))
    given = chosen.get("decode", "none")
    if not isinstance(given, str):
        raise InputError(f"decode is {clipped(given)!r}; allowed: text such as 'none' or 'formation:2'.")
    decode = from_text(given)
    if decode is not None and method in ("class_mean", "noise"):
        raise InputError(f"{method} stores no real images, and a decode's rows hold real or learned ones; leave decode out.")
    return decode


def _configured(method: str, chosen: Mapping[str, object]) -> Config:
    """The method's config; a network that is a function is left out."""
    named = {name: value for name, value in chosen.items() if not (name == "network" and callable(value))}
    config: Config = configure(METHODS[method][0], named, f"the memory's method {method!r}")
    return config


def check_settings(method: str, settings: Mapping[str, object]) -> None:
    """Check the settings of a method.

    Raises:
        InputError: the method has no such setting, a value is out of range, the network is unknown, or the labels would be soft.
    """
    chosen = settings_of(method, settings)
    decode_of(method, settings)
    if method in CORESETS:
        return
    config = _configured(method, chosen)
    if not callable(chosen.get("network")):
        check_name(config.network)
    if getattr(config, "clamp", False):
        raise InputError("a memory's images are in the learner's space, which has no range of pixels; leave clamp at false.")
    if getattr(config, "soft_labels", False):
        raise InputError("a memory keeps images by class, and the method would make soft labels; leave soft_labels out.")


def condense_images(
    images: Tensor,
    labels: Tensor,
    method: str,
    ipc: int | Sequence[int],
    seed: int,
    *,
    settings: Mapping[str, object] | None = None,
    name: str = "stream",
    device: torch.device | str = "cpu",
    starts: Mapping[int, Tensor] | None = None,
    checkpoint: Path | None = None,
    progress: bool | None = None,
) -> CondensedSet:
    """Condense the images of one experience.

    The result is in the space of ``images``; its spec has mean 0 and std 1, and its classes are named by their labels (position in the
    spec = rank of the label). Matching networks have one output per class, and a spare one for a single class unless the method is
    `class_by_class`: with one output the loss is constant, a gradient method would return its initial images, and no network would be
    trained. With the setting ``decode`` the result holds stored rows.

    Args:
        images: (N, C, H, W) float32, as the learner sees them.
        labels: (N,) int64.
        method: a method or coreset.
        ipc: most images (stored rows) per class, or one number per class in the order of the labels.
        seed: of the method.
        settings: of the method, over its preset for memories. None for a coreset, whose images are selected as they are given.
        name: of the data, which decides the augmentation "auto" (digits are not flipped).
        device: where it runs.
        starts: initial images or stored rows of classes, by position, as many as the class gets; others start as the method does.
        checkpoint: a file from which a stopped condensation continues to the same bits.
        progress: show a progress bar; None: on terminals.

    Returns:
        The condensed set, on the CPU.

    Raises:
        InputError: shapes, types or values do not fit.
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
    classes, positions = labels.unique(sorted=True, return_inverse=True)
    channels, height, width = images.shape[1:]
    names = tuple(str(int(c)) for c in classes)
    if method in CORESETS and settings:
        raise InputError(f"settings were given for the coreset {method!r}; give it images in the form in which they are stored.")
    if len(names) == 1 and not class_by_class(method, settings):
        names += (SPARE,)
    spec = DataSpec(name, channels, height, width, names, (0.0,) * channels, (1.0,) * channels)
    whole = Split(images, positions)
    nothing = whole.at(torch.zeros(0, dtype=torch.int64))
    data = ImageData(spec, whole, nothing, nothing).to(device)
    counts = [ipc] * len(classes) if isinstance(ipc, int) else list(ipc)
    same = counts[0] if len(set(counts)) == 1 else None
    if method in CORESETS:
        return select(data, method, same or counts, generator(seed, "coreset", method, same or str(counts))).to("cpu")
    chosen = settings_of(method, settings or {})
    start = chosen.pop("initial", None)
    if starts:
        start = _first(data, method, start, counts, starts, seed, decode_of(method, settings or {}))
    condensed = condense(
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
    return condensed.to("cpu")


def _first(
    data: ImageData, method: str, kind: str | None, counts: Sequence[int], starts: Mapping[int, Tensor], seed: int, decode: Decode | None
) -> CondensedSet:
    """The method's initial rows, with those of ``starts`` for their classes."""
    kind = kind or METHODS[method][0]().initial
    sizes = [*counts, *[0] * (data.spec.num_classes - len(counts))]
    first = initial_set(ExactStatistics(data), kind, sizes, generator(seed, "first", method, device=data.device), decode)
    images = first.images.clone()
    for place, images_of in starts.items():
        images[first.labels == place] = images_of.to(images)
    return CondensedSet(images, first.labels, data.spec, decode=decode)
