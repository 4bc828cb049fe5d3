"""`Memory`: a replay memory of condensed exemplars, class by class. Tensors in, tensors out; it knows no continual-learning library."""

import dataclasses
import hashlib
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from apps.continual.condensing import check_method, condense, settings_of
from apps.continual.exemplars import Exemplars, group_bytes, item_bytes, stored
from distill.condensed import CondensedSet, Provenance
from distill.coresets import CORESETS
from distill.errors import InputError, clipped
from distill.randomness import derived_seed, generator
from distill.records import write_whole
from distill.spec import DataSpec

# A class's share of a merged pool that stands for its past, so that a long past costs no more than this.
MAX_REPEATED = 2048


@dataclass(frozen=True)
class MemoryConfig:
    """What a memory may hold and how it is made.

    The budget is ``items`` or ``nbytes`` in all (both: both hold), shared equally among the (experience, class) groups seen so far:
    when groups arrive, the older ones are condensed again to their smaller share. ``per_class`` fixes the share instead; the memory grows
    up to the budget, if there is one, and old groups stay as they are. ``method`` is a name of `METHODS` or of a coreset, ``settings`` its
    config fields (under them: `condensing.SHORT`). ``mean`` and ``std`` are the stream's normalisation; with them uint8 storage keeps real
    images exactly, and pictures show pixels.
    """

    method: str = "dm"
    items: int | None = None
    nbytes: int | None = None
    per_class: int | None = None
    storage: Literal["float32", "uint8"] = "float32"
    seed: int = 0
    name: str = "stream"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        check_method(self.method)
        settings_of(self.method, self.settings)
        for field in ("items", "nbytes", "per_class"):
            value = getattr(self, field)
            if value is not None and not (type(value) is int and value >= 1):
                raise InputError(f"the memory's {field} is {clipped(value)}; allowed: a whole number of 1 or more, or None.")
        if self.storage not in ("float32", "uint8"):
            raise InputError(f"the memory's storage is {clipped(self.storage)!r}; allowed: float32, uint8.")
        if self.items is None and self.nbytes is None and self.per_class is None:
            raise InputError("the memory has no budget; give items, nbytes, per_class, or a budget and per_class.")
        if (self.mean is None) != (self.std is None) or len(self.mean or ()) != len(self.std or ()):
            raise InputError("mean and std of the stream must be given together, a number for each channel.")


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
        origin = Provenance(f"memory:{self.config.method}", {**dataclasses.asdict(self.config)}, self.config.seed, seconds=self.seconds)
        return CondensedSet(self.images, self.labels, spec, augmentation=augmentation, provenance=origin)

    def share(self, groups: int, shape: tuple[int, ...]) -> int:
        """Items that each of so many groups may have; `InputError` when the budget has none for them."""
        config, limits = self.config, []
        if config.items is not None:
            limits.append(config.items // groups)
        if config.nbytes is not None:
            free = config.nbytes // groups - group_bytes(shape, config.storage)
            limits.append(max(0, free) // item_bytes(shape, config.storage, self.logit_values))
        wanted = config.per_class or min(limits)
        if wanted < 1 or any(wanted > limit for limit in limits):
            budget = " and ".join(f"{n} {what}" for n, what in ((config.items, "items"), (config.nbytes, "bytes")) if n)
            raise InputError(
                f"the memory's budget of {budget} has no room for {max(1, wanted)} item{'s' if wanted > 1 else ''} in each of {groups} "
                f"classes; {'lower per_class' if config.per_class and config.per_class > 1 else 'raise it'}"
                f"{' or use storage uint8' if config.nbytes and config.storage == 'float32' else ''}."
            )
        return wanted

    def observe(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        task: int = 0,
        device: torch.device | str = "cpu",
        folder: Path | None = None,
        progress: bool | None = None,
    ) -> None:
        """Take in one experience: real images (N, C, H, W) float32 as the learner sees them, and labels (N,) int64.

        Each class becomes a group of its own, also when an earlier experience had it (another domain). With ``folder`` the memory is
        saved there after the experience, and a run that is started again goes on from what the folder holds, to the same bits.
        """
        fresh = self._next(images, labels, folder)
        if fresh is None:
            return
        number = self.experiences
        found = labels.unique(sorted=True).tolist()
        quota = self.share(len(self.groups) + len(found), tuple(images.shape[1:]))
        part = None if folder is None else folder / f"checkpoint-{number}.safetensors"
        if int(labels.bincount().max()) <= quota:  # nothing to condense: images that were condensed elsewhere, say, stay what they are
            made = [images[labels == label].detach().float() for label in found]
        else:
            made = self._condense(images, labels, quota, ("experience", number), device, part, progress)
        new = [self._group(made[place], label, task, number, int((labels == label).sum())) for place, label in enumerate(found)]
        self.groups = [*self._shrunk(quota, number, device, folder, progress), *new]
        self.experiences, self.history = number + 1, fresh
        if folder is not None:
            from apps.continual.memory_file import saved_as  # here, because that file builds memories

            write_whole(folder / f"memory-{number}.safetensors", saved_as(self))

    def merge(
        self, images: Tensor, labels: Tensor, *, task: int = 0, device: torch.device | str = "cpu", progress: bool | None = False
    ) -> None:
        """Fold a few recent images into the groups of their classes (online streams): one group a class, whatever the experience.

        A learned method goes on from the stored images; what they stood for counts with its number: they are repeated in the pool that is
        condensed until past and present weigh as their counts. "random" is a reservoir: each real image seen is as likely to be kept.
        Herding, k-center and k-means choose from stored and recent images alike.
        """
        fresh = self._next(images, labels, None)
        number = self.experiences
        held = {group.label: group for group in self.groups}
        found = labels.unique(sorted=True).tolist()
        quota = self.share(len({*held, *found}), tuple(images.shape[1:]))
        self.groups = self._shrunk(quota, number, device, None, progress)
        held = {group.label: group for group in self.groups}
        for label in found:
            recent = images[labels == label]
            old = held.get(label)
            seen = len(recent) + (old.seen if old else 0)
            kept = self._merged(old, recent, quota, (number, label), device, progress)
            held[label] = self._group(kept, label, task, old.experience if old else number, seen)
        self.groups = [held[label] for label in sorted(held)]
        self.experiences, self.history = number + 1, fresh or ""

    def with_logits(self, number: int, outputs: Tensor) -> None:
        """Give the group at this position a network's outputs (n, K) for its images."""
        self.groups[number] = dataclasses.replace(self.groups[number], logits=outputs.detach().to("cpu", torch.float32, copy=True))

    def save(self, path: str | Path) -> None:
        """One safetensors file, never pickle; `memory_file.load` reads it."""
        from apps.continual.memory_file import saved_as  # here, because that file builds memories

        write_whole(Path(path), saved_as(self))

    # Inside

    def _not_empty(self) -> None:
        if not self.groups:
            raise InputError("the memory is empty; let it observe an experience first.")

    def _next(self, images: Tensor, labels: Tensor, folder: Path | None) -> str | None:
        """The history with these images added; None when the folder had what follows from them, which is now in place."""
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
        digest = hashlib.sha256(self.history.encode())
        for tensor in (images, labels):
            digest.update(tensor.detach().cpu().contiguous().numpy().data)
        history = digest.hexdigest()
        path = None if folder is None else folder / f"memory-{self.experiences}.safetensors"
        if path is None or not path.exists():
            return history
        from apps.continual.memory_file import load  # here, because that file builds memories

        earlier = load(path)
        if earlier.history != history:
            raise InputError(f"{path}: belongs to a memory with other settings or another stream; delete it to start again.")
        held = {(group.experience, group.label): group for group in self.groups}
        for place, group in enumerate(earlier.groups):
            # Outputs belong to the run that trains, not to the file: a group that stayed as it was keeps them.
            before = held.get((group.experience, group.label))
            if before is not None and group.logits is None and torch.equal(before.values, group.values):
                earlier.groups[place] = dataclasses.replace(group, logits=before.logits)
        self.groups, self.experiences, self.history, self.seconds = earlier.groups, earlier.experiences, history, earlier.seconds
        return None

    def _group(self, images: Tensor, label: int, task: int, experience: int, seen: int) -> Exemplars:
        values, grid = stored(images, self.config.storage, self.config.mean, self.config.std)
        return Exemplars(int(label), task, experience, seen, values, grid)

    def _condense(
        self,
        images: Tensor,
        labels: Tensor,
        quota: int,
        stream: tuple[str | int, ...],
        device: torch.device | str,
        checkpoint: Path | None,
        progress: bool | None,
        initial: Tensor | None = None,
    ) -> list[Tensor]:
        """Images of each class, classes rising."""
        config, start = self.config, time.monotonic()
        made = condense(
            images.detach().float(),
            labels,
            config.method,
            quota,
            derived_seed(config.seed, "memory", *stream),
            settings=config.settings,
            name=config.name,
            device=device,
            initial=initial,
            checkpoint=checkpoint,
            progress=progress,
        )
        self.seconds += max(time.monotonic() - start, made.provenance.seconds)  # the set knows what it took before a stop
        if made.labels.is_floating_point():
            raise InputError("a memory keeps images by class, and the method made soft labels; leave soft_labels out.")
        return [made.images[made.hard_labels == place] for place in range(made.spec.num_classes)]

    def _shrunk(self, quota: int, number: int, device: torch.device | str, folder: Path | None, progress: bool | None) -> list[Exemplars]:
        """The groups within their share: those above it are condensed again, together with the others of their experience."""
        kept = list(self.groups)
        for experience in sorted({group.experience for group in kept}):
            places = [i for i, group in enumerate(kept) if group.experience == experience and len(group) > quota]
            if not places:
                continue
            places.sort(key=lambda i: kept[i].label)
            pool = torch.cat([kept[i].images for i in places])
            marks = torch.cat([torch.full((len(kept[i]),), kept[i].label) for i in places])
            part = None if folder is None else folder / f"checkpoint-{number}-{experience}.safetensors"
            made = self._condense(pool, marks, quota, ("shrink", number, experience), device, part, progress)
            for i, images in zip(places, made, strict=True):
                old = kept[i]
                kept[i] = self._group(images, old.label, old.task, old.experience, old.seen)
        return kept

    def _merged(
        self, old: Exemplars | None, recent: Tensor, quota: int, stream: tuple[int, int], device: torch.device | str, progress: bool | None
    ) -> Tensor:
        method, past = self.config.method, None if old is None else old.images
        if past is None or old is None:
            pool, initial = recent, None
        elif method == "random":
            return self._reservoir(past, old.seen, recent, quota, stream)
        elif method in CORESETS and method != "class_mean":
            pool, initial = torch.cat([past, recent]), None
        else:
            times = max(1, min(round(old.seen / len(past)), MAX_REPEATED // len(past)))
            pool = torch.cat([past.repeat(times, 1, 1, 1), recent])
            initial = torch.cat([past, recent])[:quota] if len(past) + len(recent) >= quota else None
        marks = torch.zeros(len(pool), dtype=torch.int64)
        return self._condense(pool, marks, quota, ("merge", *stream), device, None, progress, initial)[0]

    def _reservoir(self, past: Tensor, seen: int, recent: Tensor, quota: int, stream: tuple[int, int]) -> Tensor:
        """Of a sample of everything seen, as many as fall on recent images are drawn from these, the others from the stored ones."""
        draws = generator(self.config.seed, "memory", "reservoir", *stream)
        drawn = torch.randperm(seen + len(recent), generator=draws)[:quota]
        new = int((drawn >= seen).sum())
        old = min(len(drawn) - new, len(past))
        kept = past[torch.randperm(len(past), generator=draws)[:old]]
        return torch.cat([kept, recent[torch.randperm(len(recent), generator=draws)[:new]]])
