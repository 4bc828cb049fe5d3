"""`Memory`: a replay memory of condensed exemplars, class by class. Tensors in, tensors out; it knows no continual-learning library."""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from apps.continual.condensing import class_by_class
from apps.continual.exemplars import Exemplars, Key, by_class, checked, reservoir, stored
from apps.continual.features import as_images, refuse_for_rows
from apps.continual.form import Form
from apps.continual.memory_config import MemoryConfig as MemoryConfig
from apps.continual.pools import condense_pools, in_order, interleaved, places_of_recent, selects, weighed
from distill.condensed import CondensedSet, Provenance
from distill.errors import InputError
from distill.methods import METHODS
from distill.randomness import generator
from distill.spec import DataSpec


class Memory:
    """Exemplars of the classes seen so far, within a budget."""

    def __init__(self, config: MemoryConfig) -> None:
        self.config = config
        self.groups: list[Exemplars] = []
        self.experiences = 0  # updates so far
        self.seconds = 0.0  # spent condensing
        self.logit_values = 0  # outputs stored beside each item (DER); counted in the byte budget
        named = {key: value for key, value in dataclasses.asdict(config).items() if (key, value) != ("returning", "merge")}
        self.history = hashlib.sha256(json.dumps(named, sort_keys=True, default=str).encode()).hexdigest()

    def __len__(self) -> int:
        """Number of stored items."""
        return sum(map(len, self.groups))

    @property
    def count(self) -> int:
        """Number of images that a learner gets; with a decode more than the items."""
        return sum(group.count for group in self.groups)

    def form(self, shape: tuple[int, ...]) -> Form:
        """How images of this shape (C, H, W) are stored. Raises `InputError` where the settings' decode does not take them."""
        return Form(tuple(shape), self.config.decode)

    @property
    def nbytes(self) -> int:
        """Bytes of all images, labels, grids and logits."""
        return sum(group.nbytes for group in self.groups)

    @property
    def kept(self) -> int:
        """Items that are images of the stream in the memory's form: their classes had no more than their share. Coresets are real too."""
        return sum(len(group) for group in self.groups if group.kept)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W) float32, as a learner sees them (decoded), group after group."""
        self._not_empty()
        return torch.cat([group.images for group in self.groups])

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""
        self._not_empty()
        return torch.cat([torch.full((group.count,), group.label) for group in self.groups])

    def condensed(self, spec: DataSpec, augmentation: str | None = None) -> CondensedSet:
        """All images as one plain set of the data set ``spec``, in whose normalised space the stream's images must be."""
        stated = {**dataclasses.asdict(self.config), "kept": self.kept}
        origin = Provenance(f"memory:{self.config.method}", stated, self.config.seed, seconds=self.seconds)
        return CondensedSet(self.images, self.labels, spec, augmentation=augmentation, provenance=origin)

    def shares(self, groups: int, shape: tuple[int, ...]) -> list[int]:
        """`MemoryConfig.shares` of images of this shape."""
        return self.config.shares(groups, self.form(shape), self.logit_values, self._returned(groups))

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
        """Take in one experience: images (N, C, H, W) or rows (N, D), float32, as seen by the learner, labels (N,) int64, task or tasks.

        Each class of each task becomes a group. Where an earlier experience had one of them (another domain, repetition), the experience is
        merged (`merge`), unless the config's ``returning`` keeps groups separate. A class whose images all
        fit its share keeps them; the others are condensed together. With the folder ``checkpoints`` a stopped
        condensation continues to the same bits (`memory_file.observe` saves the memory there too).
        """
        tasks = self.checked(images := as_images(images), labels, task)
        came = set(zip(tasks.tolist(), labels.tolist(), strict=True))
        if self.config.returning == "merge" and came & {(group.task, group.label) for group in self.groups}:
            self.merge(images, labels, task=tasks, device=device, checkpoints=checkpoints, progress=progress)
            return
        history, number = self.history_with(images, labels, tasks), self.experiences
        pools, form = by_class(images, labels, tasks), self.form(images.shape[1:])
        shares = self.shares(len(self.groups) + len(pools), form.shape)
        counts = dict(zip(pools, shares[len(self.groups) :], strict=True))
        parts = {key: form.shrunk(pool) for key, pool in pools.items()}
        # Nothing to condense: images that were condensed elsewhere, say, stay what they are.
        few = {key: part for key, part in parts.items() if form.items(len(part)) <= counts[key]}
        if self.config.method == "noise" or (self._selects and len(few) < len(pools)):
            few = {}  # noise keeps no real image, and those of the other coresets are real in any case
        large = {key: pool for key, pool in (parts if self._selects else pools).items() if key not in few}
        part = None if checkpoints is None else checkpoints / f"checkpoint-{number}.safetensors"
        beside = {key: pools[key] for key in few} if len(pools) > 1 else self._known()
        named = "experience", number
        condensed = self._condense(large, counts, beside, named, form=form, device=device, checkpoint=part, progress=progress)
        new = [self._group({**condensed, **few}[key], form, key, number, len(pool), kept=key in few) for key, pool in pools.items()]
        self.groups = [*self.shrunk(shares, new, number, device=device, folder=checkpoints, progress=progress), *new]
        self.experiences, self.history = number + 1, history

    def merge(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        task: int | Tensor = 0,
        device: torch.device | str = "cpu",
        checkpoints: Path | None = None,
        progress: bool | None = False,
    ) -> None:
        """Fold recent images into the groups of their classes (online streams): one group a task and class, whatever the experience.

        Past and present weigh as the numbers of images that they stand for. A learned method starts from the stored images, which are
        repeated in the pool that is condensed (`weighed`), and so does a class's mean. A method that compares classes (gradients,
        trajectories) sees all that are known, those without recent images as they are stored; these stay untouched. "random" is a
        reservoir: each real image that was merged is as likely to be kept. The other coresets divide a class's places as a reservoir does,
        and choose among stored and among recent images. ``checkpoints`` is a folder as in `observe`.
        """
        tasks = self.checked(images := as_images(images), labels, task)
        history, number = self.history_with(images, labels, tasks), self.experiences
        groups, came, form = self._merged_groups(), by_class(images, labels, tasks), self.form(images.shape[1:])
        keys = list(groups | came)
        counts = dict(zip(keys, self.shares(len(keys), form.shape), strict=True))
        past, recent = {key: group.parts for key, group in groups.items()}, {key: form.shrunk(pool) for key, pool in came.items()}
        parts_of = {key: torch.cat([part[key] for part in (past, recent) if key in part]) for key in keys}
        seen = (past, recent) if self._selects else ({key: group.images for key, group in groups.items()}, came)
        images_of = {key: torch.cat([part[key] for part in seen if key in part]) for key in keys}
        items = {key: form.items(len(parts)) for key, parts in parts_of.items()}
        fits = {key for key in keys if items[key] <= counts[key] and (key not in groups or groups[key].kept)}
        kept = set[Key]() if self.config.method == "noise" else fits
        changed = [key for key in keys if key not in kept and (key in recent or items[key] > counts[key])]
        pools, starts, condensed = {key: images_of[key] for key in changed}, dict[Key, Tensor](), dict[Key, Tensor]()
        draws = {key: generator(self.config.seed, "memory", "reservoir", number, *key) for key in changed}
        for key in [key for key in changed if key in groups]:
            places = counts[key] * form.copies
            if self.config.method == "random" and key in recent:
                condensed[key] = reservoir(past[key], groups[key].seen, recent[key], places, draws[key])
            elif in_order(self.config, groups[key]) and key not in recent:
                condensed[key] = past[key][:places]
            elif self.config.method in METHODS or self.config.method == "class_mean":
                before, after = images_of[key].tensor_split([len(past[key])])
                pools[key] = weighed(before, groups[key].seen, after, draws[key])
                starts[key] = parts_of[key][:places]
            elif key in recent and self.config.method != "noise":
                new = places_of_recent(places, groups[key].seen, len(recent[key]), draws[key])
                stay = self._chosen(groups[key], min(places - new, len(past[key])), number)
                condensed[key] = interleaved(stay, self._first(recent[key], new, key, number))
        pools = {key: pool for key, pool in pools.items() if key not in condensed}
        counts = {key: min(count, items[key]) for key, count in counts.items()}
        named, file = ("merge", number), None if checkpoints is None else checkpoints / f"checkpoint-{number}.safetensors"
        condensed |= self._condense(
            pools, counts, images_of, named, form=form, device=device, checkpoint=file, progress=progress, starts=starts
        )
        self.groups = []
        for key in keys:
            old, more = groups.get(key), len(recent.get(key, ()))
            if old is not None and key not in condensed and not more:
                self.groups.append(old)
            else:
                first, seen_before = (number, 0) if old is None else (old.experience, old.seen)
                self.groups.append(self._group(condensed.get(key, parts_of[key]), form, key, first, seen_before + more, kept=key in kept))
        self.experiences, self.history = number + 1, history

    def with_logits(self, number: int, outputs: Tensor) -> None:
        """Give the group at this position a network's outputs (n, K) for its images."""
        self.groups[number] = dataclasses.replace(self.groups[number], logits=outputs.detach().to("cpu", torch.float32, copy=True))

    def checked(self, images: Tensor, labels: Tensor, task: int | Tensor) -> Tensor:
        """The tasks (N,) of an experience; `InputError` unless it fits the memory."""
        refuse_for_rows(self.config.method, self.config.decode, images.shape)
        return checked(images, labels, task, self.groups[0].form.shape if self.groups else None, self.config.mean)

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
            'returning="merge" joins them)'
        )

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
                pool, seen = torch.cat([old.parts, group.parts]), old.seen + group.seen
                group = self._group(pool, group.form, key, old.experience, seen, kept=old.kept and group.kept)
            groups[key] = group
        return groups

    @property
    def _selects(self) -> bool:
        return selects(self.config)

    def _chosen(self, group: Exemplars, count: int, turn: int) -> Tensor:
        """Some of a group's parts, chosen by the coreset."""
        if in_order(self.config, group):
            return group.parts[:count]
        return self._first(group.parts, count, (group.task, group.label), turn, "past")

    def _first(self, parts: Tensor, count: int, key: Key, turn: int, *named: str) -> Tensor:
        """The coreset's choice among parts, in its order."""
        if count in (0, len(parts)):
            return parts[:count]
        plain = Form(tuple(parts.shape[1:]))  # a part is chosen for itself, however many make an item
        return self._condense({key: parts}, {key: count}, {}, ("merge", turn, *key, *named), form=plain, device="cpu", progress=False)[key]

    def _group(self, parts: Tensor, form: Form, key: Key, experience: int, seen: int, *, kept: bool = False) -> Exemplars:
        values, grid = stored(parts, self.config.storage, self.config.mean, self.config.std)
        return Exemplars(key[1], key[0], experience, seen, values, form, grid, kept=kept)

    def _condense(
        self,
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
    ) -> dict[Key, Tensor]:
        """`condense_pools`, whose seconds are added."""
        made, seconds = condense_pools(
            self.config, pools, counts, beside, stream,
            form=form, device=device, checkpoint=checkpoint, progress=progress, starts=starts,
        )  # fmt: skip
        self.seconds += seconds
        return made

    def shrunk(
        self,
        shares: list[int],
        new: list[Exemplars],
        turn: int | str,
        *,
        device: torch.device | str,
        folder: Path | None,
        progress: bool | None,
    ) -> list[Exemplars]:
        """The groups within their shares: those above are condensed again, together with the others of their experience.

        Where classes came alone and the method compares them, they are condensed together. ``new`` are groups that come, ``turn`` names the
        random numbers; the memory is not changed.
        """
        kept, parts = list(self.groups), dict[int | str, list[int]]()
        for i in sorted(range(len(kept)), key=lambda i: (kept[i].experience, kept[i].task, kept[i].label)):
            if len(kept[i]) > shares[i]:
                parts.setdefault(kept[i].experience, []).append(i)
        alone = [places[0] for places in parts.values() if len(places) == 1]
        several = 1 < len(alone) == len({(kept[i].task, kept[i].label) for i in alone})
        if several and not class_by_class(self.config.method, self.config.settings):
            parts = {name: places for name, places in parts.items() if len(places) > 1} | {"alone": alone}
        for name, places in parts.items():
            keys = {(kept[i].task, kept[i].label): i for i in places}
            form = kept[places[0]].form
            first = {key: kept[i].parts[: shares[i] * form.copies] for key, i in keys.items()}
            cut = {key: first[key] for key, i in keys.items() if in_order(self.config, kept[i])}
            pools = {key: kept[i].parts if self._selects else kept[i].images for key, i in keys.items() if key not in cut}
            # Rows start from rows: an image that is drawn from its own class would be shrunk a second time.
            starts = {key: first[key] for key in pools} if form.decode is not None else {}
            part = None if folder is None else folder / f"checkpoint-{turn}-{name}.safetensors"
            counts = {key: shares[i] for key, i in keys.items()}
            beside = {**self._known(), **{(group.task, group.label): group.images for group in new}} if len(keys) == 1 else {}
            named = "shrink", turn, name
            condensed = cut | self._condense(
                pools, counts, beside, named, form=form, device=device, checkpoint=part, progress=progress, starts=starts
            )
            for key, i in keys.items():
                kept[i] = self._group(condensed[key], form, key, kept[i].experience, kept[i].seen)
        return kept
