"""A memory's pools of images, by class, condensed together; and how a class that comes back shares its places between past and present."""

import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from apps.continual.condensing import class_by_class, condense_images
from apps.continual.exemplars import Exemplars, Key
from apps.continual.form import Form
from apps.continual.memory_config import MemoryConfig
from distill.coresets import CORESETS
from distill.errors import InputError
from distill.randomness import derived_seed

# A class's share of a pool that stands for its past, so that a long past costs no more than this.
MAX_REPEATED = 2048
IN_ORDER = ("herding", "kcenter")  # greedy: the first images of a selection are the smaller selection


def selects(config: MemoryConfig) -> bool:
    """Whether the method chooses among images, as they are stored, instead of learning from them at their full size."""
    return config.method in CORESETS


def in_order(config: MemoryConfig, group: Exemplars) -> bool:
    """Whether the first of the group's images are the smaller selection from all that it was selected from."""
    return config.method in IN_ORDER and not group.kept


def condense_pools(
    config: MemoryConfig,
    pools: Mapping[Key, Tensor],
    counts: Mapping[Key, int],
    beside: Mapping[Key, Tensor],
    stream: tuple[str | int, ...],
    *,
    form: Form,
    device: torch.device | str,
    checkpoint: Path | None = None,
    progress: bool | None,
    starts: Mapping[Key, Tensor] | None = None,
) -> tuple[dict[Key, Tensor], float]:
    """Each pool becomes parts of ``counts`` items. Methods that compare classes see the images ``beside`` too, which are not returned.

    Args:
        config: of the memory.
        pools: images (n, C, H, W), or for a method that `selects` parts (n, C, h, w).
        counts: items of each.
        beside: images of other classes.
        stream: names the random numbers.
        form: how images are stored.
        device: where it runs.
        checkpoint: a file from which a stopped condensation continues.
        progress: show a progress bar; None: on terminals.
        starts: parts from which a learned method starts.

    Returns:
        Parts by class, and the seconds that they took.

    Raises:
        InputError: the method made soft labels.
    """
    if not pools:
        return {}, 0.0
    begun, chooses = time.monotonic(), selects(config)
    alone = class_by_class(config.method, config.settings)
    others = {} if alone else {key: images for key, images in beside.items() if key not in pools}
    every = {**pools, **others}
    each = form.copies if chooses else 1  # of what is chosen or learned, in an item
    sizes = [form.items(len(others[key])) if key in others else counts[key] * each for key in every]
    first = {**(starts or {}), **{key: form.shrunk(images) for key, images in others.items()}}
    condensed = condense_images(
        torch.cat(list(every.values())).detach().float(),
        torch.arange(len(every)).repeat_interleave(torch.tensor([len(pool) for pool in every.values()])),
        config.method,
        sizes,
        derived_seed(config.seed, "memory", *stream),
        settings=None if chooses else config.settings,
        name=config.name,
        device=device,
        starts={place: form.rows(first[key]) for place, key in enumerate(every) if key in first},
        checkpoint=checkpoint,
        progress=progress,
    )
    if condensed.labels.is_floating_point():
        raise InputError("a memory keeps images by class, and the method made soft labels; leave soft_labels out.")
    made = {key: condensed.images[condensed.hard_labels == place] for place, key in enumerate(pools)}
    seconds = max(time.monotonic() - begun, condensed.provenance.seconds)  # the set knows what it took before a stop
    return made if chooses else {key: form.parted(rows) for key, rows in made.items()}, seconds


def places_of_recent(places: int, seen: int, recent: int, draws: torch.Generator) -> int:
    """How many of a class's places its recent images get: as many as fall on them in a uniform draw from all ``seen`` and recent ones."""
    return min(int((torch.randperm(seen + recent, generator=draws)[:places] >= seen).sum()), recent)


def interleaved(past: Tensor, recent: Tensor) -> Tensor:
    """Both (n, C, h, w), each in its order, so that every beginning of the result has them in the same proportion."""
    ranks = [(torch.arange(len(part)) + 0.5) / max(1, len(part)) for part in (past, recent)]
    return torch.cat([past, recent])[torch.cat(ranks).argsort(stable=True)]


def weighed(past: Tensor, seen: int, recent: Tensor, draws: torch.Generator) -> Tensor:
    """The pool of a class that came back: ``past`` repeated until it counts as the ``seen`` images that it stands for, and ``recent``.

    Past a limit (`MAX_REPEATED`) it is not repeated further, and recent images are drawn instead, so that their proportion stays.
    """
    times = max(1, min(round(seen / len(past)), MAX_REPEATED // len(past)))
    kept = max(1, round(len(recent) * times * len(past) / seen))
    if kept < len(recent) and 2 * times * len(past) < 2 * seen - len(past):  # short by more than rounding to whole repetitions
        recent = recent[torch.randperm(len(recent), generator=draws)[:kept].sort().values]
    return torch.cat([past.repeat(times, 1, 1, 1), recent])
