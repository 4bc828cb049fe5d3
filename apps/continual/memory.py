"""`Memory`: a replay memory of condensed exemplars, class by class. Tensors in, tensors out; it knows no continual-learning library."""

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from apps.continual.condensing import class_by_class, condense_images
from apps.continual.exemplars import Exemplars, Key, by_class, group_bytes, item_bytes, reservoir, stored
from apps.continual.memory_config import MemoryConfig as MemoryConfig
from distill.condensed import CondensedSet, Provenance
from distill.coresets import CORESETS
from distill.errors import InputError, clipped
from distill.methods import METHODS
from distill.randomness import derived_seed, generator
from distill.spec import DataSpec

# A class's share of a merged pool that stands for its past, so that a long past costs no more than this.
MAX_REPEATED = 2048
MAX_LABEL = 2**31 - 1
IN_ORDER = ("herding", "kcenter")  # greedy: the first images of a selection are the smaller selection


class Memory:
    """Exemplars of the classes seen so far, within a budget."""

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self.groups: list[Exemplars] = []
        self.experiences = 0  # updates so far
        self.seconds = 0.0  # spent condensing
        self.logit_values = 0  # outputs stored beside each item (DER); counted in the byte budget
        self.history = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True, default=str).encode()).hexdigest()

    def __len__(self) -> int:
        return sum(map(len, self.groups))

    @property
    def nbytes(self) -> int:
        """Bytes of all images, labels, grids and logits."""
        return sum(group.nbytes for group in self.groups)

    @property
    def kept(self) -> int:
        """Items that are images of the stream as they came: their classes had no more than their share. Selected coresets are real too."""
        return sum(len(group) for group in self.groups if group.kept)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) float32, group after group."""
        self._not_empty()
        return torch.cat([group.images for group in self.groups])

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        self._not_empty()
        return torch.cat([torch.full((len(group),), group.label) for group in self.groups])

    def condensed(self, spec: DataSpec, augmentation: str | None = None) -> CondensedSet:
        """All of it as one condensed set of the data set ``spec``, in whose normalised space the stream's images must be."""
        stated = {**dataclasses.asdict(self.config), "kept": self.kept}
        origin = Provenance(f"memory:{self.config.method}", stated, self.config.seed, seconds=self.seconds)
        return CondensedSet(self.images, self.labels, spec, augmentation=augmentation, provenance=origin)

    def shares(self, groups: int, shape: tuple[int, ...]) -> list[int]:
        """Items for each of ``groups`` groups, the oldest first; `InputError` when the budget has none for one of them.

        What does not divide is dealt out, one item more for each of the oldest groups. A group's share never grows as others come.
        """
        config, limits = self.config, []
        if config.items is not None:
            limits.append(config.items)
        if config.nbytes is not None:
            free = config.nbytes - groups * group_bytes(shape, config.storage)
            limits.append(max(0, free) // item_bytes(shape, config.storage, self.logit_values))
        share = config.per_class or min(limits) // groups
        if share < 1 or any(share * groups > limit for limit in limits):
            budget = " and ".join(f"{n} {what}" for n, what in ((config.items, "items"), (config.nbytes, "bytes")) if n)
            raise InputError(
                f"the memory's budget of {budget} has no room for {max(1, share)} item{'s' if share > 1 else ''} in each of {groups} "
                f"classes; {'lower per_class' if config.per_class and config.per_class > 1 else 'raise it'}"
                f"{' or use storage uint8' if config.nbytes and config.storage == 'float32' else ''}{self._returned(groups)}."
            )
        if config.per_class:
            return [share] * groups
        return [share + (place < min(limits) % groups) for place in range(groups)]

    def share(self, groups: int, shape: tuple[int, ...]) -> int:
        """The least of `shares`."""
        return self.shares(groups, shape)[-1]

    def observe(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        task: int | Tensor = 0,
        device: torch.device | str = "cpu",
        checkpoints: Path | None = None,
        progress: bool | None = None,
    ) -> None:
        """Take in one experience: real images (N, C, H, W) float32 as the learner sees them, labels (N,) int64, one task or tasks (N,).

        Each class of each task becomes a separate group, also when an earlier experience had it (another domain). A class with no more
        images than its share keeps them unchanged; the others are condensed together. With the folder ``checkpoints`` a stopped
        condensation continues to the same bits (`memory_file.observe` saves the memory there too).
        """
        tasks = self.checked(images, labels, task)
        history, number = self.history_with(images, labels, tasks), self.experiences
        pools = by_class(images, labels, tasks)
        shares = self.shares(len(self.groups) + len(pools), tuple(images.shape[1:]))
        counts = dict(zip(pools, shares[len(self.groups) :], strict=True))
        # Nothing to condense: images that were condensed elsewhere, say, stay what they are.
        few = {key: pool for key, pool in pools.items() if len(pool) <= counts[key]}
        if self.config.method in CORESETS and len(few) < len(pools):
            few = {}  # a coreset's images are real in any case
        large = {key: pool for key, pool in pools.items() if key not in few}
        part = None if checkpoints is None else checkpoints / f"checkpoint-{number}.safetensors"
        beside = few if len(pools) > 1 else self._known()
        condensed = self._condense(large, counts, beside, ("experience", number), device=device, checkpoint=part, progress=progress)
        new = [self._group({**condensed, **few}[key], key, number, len(pool), kept=key in few) for key, pool in pools.items()]
        self.groups = [*self._shrunk(shares, new, number, device=device, folder=checkpoints, progress=progress), *new]
        self.experiences, self.history = number + 1, history

    def merge(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        task: int | Tensor = 0,
        device: torch.device | str = "cpu",
        progress: bool | None = False,
    ) -> None:
        """Fold a few recent images into the groups of their classes (online streams): one group a task and class, whatever the experience.

        A learned method starts from the stored images, which count as the images that they stand for: they are repeated in the pool that is
        condensed until past and present weigh as their counts. A method that compares classes (gradients, trajectories) sees all that are
        known, those without recent images as they are stored; these stay untouched. "random" is a reservoir: each real image that was
        merged is as likely to be kept. Herding, k-center and k-means choose from stored and recent images alike.
        """
        tasks = self.checked(images, labels, task)
        history, number = self.history_with(images, labels, tasks), self.experiences
        groups, recent = self._merged_groups(), by_class(images, labels, tasks)
        keys = list(groups | recent)
        counts = dict(zip(keys, self.shares(len(keys), tuple(images.shape[1:])), strict=True))
        past = {key: group.images for key, group in groups.items()}
        images_of = {key: torch.cat([part[key] for part in (past, recent) if key in part]) for key in keys}
        kept = {key for key in keys if len(images_of[key]) <= counts[key] and (key not in groups or groups[key].kept)}
        changed = [key for key in keys if key not in kept and (key in recent or len(images_of[key]) > counts[key])]
        pools, starts, condensed = {key: images_of[key] for key in changed}, dict[Key, Tensor](), dict[Key, Tensor]()
        for key in [key for key in changed if key in groups]:
            if self.config.method == "random" and key in recent:
                draws = generator(self.config.seed, "memory", "reservoir", number, *key)
                condensed[key] = reservoir(past[key], groups[key].seen, recent[key], counts[key], draws)
            elif self._in_order(groups[key]) and key not in recent:
                condensed[key] = past[key][: counts[key]]
            elif self.config.method in METHODS or self.config.method == "class_mean":
                times = max(1, min(round(groups[key].seen / len(past[key])), MAX_REPEATED // len(past[key])))
                pools[key] = torch.cat([past[key].repeat(times, 1, 1, 1), images_of[key][len(past[key]) :]])
                starts[key] = images_of[key][: counts[key]]
        pools = {key: pool for key, pool in pools.items() if key not in condensed}
        counts = {key: min(count, len(images_of[key])) for key, count in counts.items()}
        condensed |= self._condense(pools, counts, images_of, ("merge", number), device=device, progress=progress, starts=starts)
        self.groups = []
        for key in keys:
            old, more = groups.get(key), len(recent.get(key, ()))
            if old is not None and key not in condensed and not more:
                self.groups.append(old)
            else:
                first, seen = (number, 0) if old is None else (old.experience, old.seen)
                self.groups.append(self._group(condensed.get(key, images_of[key]), key, first, seen + more, kept=key in kept))
        self.experiences, self.history = number + 1, history

    def with_logits(self, number: int, outputs: Tensor) -> None:
        """Give the group at this position a network's outputs (n, K) for its images."""
        self.groups[number] = dataclasses.replace(self.groups[number], logits=outputs.detach().to("cpu", torch.float32, copy=True))

    def checked(self, images: Tensor, labels: Tensor, task: int | Tensor) -> Tensor:
        """The tasks (N,) of an experience; `InputError` unless it fits the memory."""
        if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
            raise InputError(
                f"an experience has images {tuple(images.shape)} and labels {tuple(labels.shape)}; allowed: (N, C, H, W) and (N,)."
            )
        if self.groups and images.shape[1:] != self.groups[0].values.shape[1:]:
            ours = tuple(self.groups[0].values.shape[1:])
            raise InputError(
                f"an experience has images of {tuple(images.shape[1:])}; the memory holds {ours}: one memory, one image shape."
            )
        if self.config.mean is not None and len(self.config.mean) != images.shape[1]:
            raise InputError(f"mean and std have {len(self.config.mean)} channels and the stream's images {images.shape[1]}.")
        if not bool(torch.isfinite(images).all()):
            raise InputError("an experience's images hold values that are not finite; allowed: finite numbers only.")
        tasks = task if isinstance(task, Tensor) else torch.full(labels.shape, task)
        for what, tensor in (("labels", labels), ("tasks", tasks)):
            if tensor.dtype != torch.int64 or tensor.shape != labels.shape or not 0 <= int(tensor.min()) <= int(tensor.max()) <= MAX_LABEL:
                kind = f"{clipped(tensor.dtype)} {tuple(tensor.shape)} from {tensor.min()} to {tensor.max()}"
                raise InputError(f"an experience's {what} are {kind}; allowed: int64 (N,), 0 to {MAX_LABEL}.")
        return tasks.cpu()

    def history_with(self, images: Tensor, labels: Tensor, tasks: Tensor, history: str | None = None) -> str:
        """What names this memory's past (or ``history``) with one more experience: other images, other text."""
        digest = hashlib.sha256((history or self.history).encode())
        for tensor in (images, labels, *([tasks] if tasks.any() else [])):
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        return digest.hexdigest()

    # Inside

    def _not_empty(self) -> None:
        if not self.groups:
            raise InputError("the memory is empty; let it observe an experience first.")

    def _returned(self, groups: int) -> str:
        """A hint for a budget that classes which came back have used up."""
        keys = [(group.task, group.label) for group in self.groups]
        if len(set(keys)) == len(keys):
            return ""
        return (
            f" (a class counts again in each experience that brings it: {groups} groups of {len(set(keys))} classes or more so far; "
            "the online form merges them: OnlineCondensedBuffer(..., every=1), Memory.merge)"
        )

    def _in_order(self, group: Exemplars) -> bool:
        """Whether the first of the group's images are the smaller selection from all that it was selected from."""
        return self.config.method in IN_ORDER and not group.kept

    def _known(self) -> dict[Key, Tensor]:
        """The stored images of each class known."""
        return {key: group.images for key, group in self._merged_groups().items()}

    def _merged_groups(self) -> dict[Key, Exemplars]:
        """One group a task and class: those of a class that came back are joined."""
        groups: dict[Key, Exemplars] = {}
        for group in self.groups:
            key = group.task, group.label
            old = groups.get(key)
            if old is not None:
                pool, seen = torch.cat([old.images, group.images]), old.seen + group.seen
                group = self._group(pool, key, old.experience, seen, kept=old.kept and group.kept)
            groups[key] = group
        return groups

    def _group(self, images: Tensor, key: Key, experience: int, seen: int, *, kept: bool = False) -> Exemplars:
        values, grid = stored(images, self.config.storage, self.config.mean, self.config.std)
        return Exemplars(key[1], key[0], experience, seen, values, grid, kept=kept)

    def _condense(
        self,
        pools: Mapping[Key, Tensor],
        counts: Mapping[Key, int],
        beside: Mapping[Key, Tensor],
        stream: tuple[str | int, ...],
        *,
        device: torch.device | str,
        checkpoint: Path | None = None,
        progress: bool | None,
        starts: Mapping[Key, Tensor] | None = None,
    ) -> dict[Key, Tensor]:
        """Each pool's images become ``counts`` of them. Methods that compare classes see those ``beside`` too, which are not returned."""
        if not pools:
            return {}
        config, begun = self.config, time.monotonic()
        others = {} if class_by_class(config.method) else {key: images for key, images in beside.items() if key not in pools}
        every = {**pools, **others}
        sizes = [len(others[key]) if key in others else counts[key] for key in every]
        first = {**(starts or {}), **others}
        condensed = condense_images(
            torch.cat(list(every.values())).detach().float(),
            torch.arange(len(every)).repeat_interleave(torch.tensor([len(pool) for pool in every.values()])),
            config.method,
            sizes,
            derived_seed(config.seed, "memory", *stream),
            settings=config.settings,
            name=config.name,
            device=device,
            starts={place: first[key] for place, key in enumerate(every) if key in first},
            checkpoint=checkpoint,
            progress=progress,
        )
        self.seconds += max(time.monotonic() - begun, condensed.provenance.seconds)  # the set knows what it took before a stop
        if condensed.labels.is_floating_point():
            raise InputError("a memory keeps images by class, and the method made soft labels; leave soft_labels out.")
        return {key: condensed.images[condensed.hard_labels == place] for place, key in enumerate(pools)}

    def _shrunk(
        self, shares: list[int], new: list[Exemplars], turn: int, *, device: torch.device | str, folder: Path | None, progress: bool | None
    ) -> list[Exemplars]:
        """The groups within their shares: those above are condensed again, together with the others of their experience.

        Where classes came alone and the method compares them, they are condensed together.
        """
        kept, parts = list(self.groups), dict[int | str, list[int]]()
        for i in sorted(range(len(kept)), key=lambda i: (kept[i].experience, kept[i].task, kept[i].label)):
            if len(kept[i]) > shares[i]:
                parts.setdefault(kept[i].experience, []).append(i)
        alone = [places[0] for places in parts.values() if len(places) == 1]
        several = 1 < len(alone) == len({(kept[i].task, kept[i].label) for i in alone})
        if several and not class_by_class(self.config.method):
            parts = {name: places for name, places in parts.items() if len(places) > 1} | {"alone": alone}
        for name, places in parts.items():
            keys = {(kept[i].task, kept[i].label): i for i in places}
            cut = {key: kept[i].images[: shares[i]] for key, i in keys.items() if self._in_order(kept[i])}
            pools = {key: kept[i].images for key, i in keys.items() if key not in cut}
            part = None if folder is None else folder / f"checkpoint-{turn}-{name}.safetensors"
            counts = {key: shares[i] for key, i in keys.items()}
            beside = {**self._known(), **{(group.task, group.label): group.images for group in new}} if len(keys) == 1 else {}
            condensed = cut | self._condense(
                pools, counts, beside, ("shrink", turn, name), device=device, checkpoint=part, progress=progress
            )
            for key, i in keys.items():
                kept[i] = self._group(condensed[key], key, kept[i].experience, kept[i].seen)
        return kept
