"""One cell of a comparison: a memory under a budget, filled by a stream, and a learner that has nothing else of the past.

A unit is (budget, method, storage, order); `fill_memories` makes its memory after each experience, `rows` an accuracy matrix row by row.
"""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from apps.continual.compressed import COMPRESSED, CompressedMemory
from apps.continual.condensing import decode_of
from apps.continual.engine import avalanche
from apps.continual.form import Form
from apps.continual.labels import LABELLED, label_bytes, labelled_memories
from apps.continual.memory import Memory, MemoryConfig
from apps.continual.memory_file import load, observe, save
from apps.continual.online import online_memories
from apps.continual.protocols import ReplayBuffer
from apps.continual.strategies import Training, joint, learn, scratch
from apps.continual.streams import experience_tensors, reservoir
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import Accuracy
from distill.networks import Factory
from distill.randomness import derived_seed
from distill.records import Json
from distill.spec import DataSpec
from distill.teachers import Teacher
from distill.train import Recipe

RESERVOIR = "reservoir"  # no memory by class: Vitter's, over all images seen
DECODED = "-decoded"  # a memory's name after its method's, where the study compares it with one that is stored plainly


@dataclass(frozen=True)
class Budget:
    """The budget of one class: ``count`` stored items, or the bytes of ``count`` float32 images with their labels (2.6, for example)."""

    kind: Literal["items", "bytes"]
    count: float

    @property
    def name(self) -> str:
        """The budget in the names of a record, for example ``items3`` or ``bytes1``."""
        return f"{self.kind}{self.count}"

    def per_class(self, form: Form, storage: str) -> int:
        """The number of stored items per class.

        Args:
            form: how images are stored.
            storage: "float32" or "uint8".

        Raises:
            InputError: the budget has no room for one item.
        """
        if self.kind == "items":
            return int(self.count)
        free = self.count * Form(form.shape).item_bytes("float32") - form.group_bytes(storage)
        count = int(free // form.item_bytes(storage))
        if count < 1:
            raise InputError(f"the bytes of {self.count} float32 images have no room for one {storage} item; raise bytes_of.")
        return count


@dataclass(frozen=True)
class Online:
    """An online stream: ``mini`` images at a time, a ``queue`` of recent images, condensed every ``every`` mini-batches."""

    mini: int
    queue: int
    every: int


@dataclass(frozen=True)
class Unit:
    """One memory of a study. ``method`` is a method or coreset, with or without `DECODED` and then `LABELLED` (with a ``teacher``),
    `RESERVOIR`, or a name in `COMPRESSED`."""

    budget: Budget
    method: str
    storage: str
    order: int
    shrinking: bool
    settings: dict[str, object]
    seed: int
    online: Online | None = None
    teacher: Teacher | None = None
    returning: Literal["merge", "separate"] = "merge"

    @property
    def name(self) -> str:
        """The unique name of this memory in its study: budget, method, storage, class order."""
        return f"{self.budget.name}-{self.method}-{self.storage}-order{self.order}"

    @property
    def plain(self) -> "Unit":
        """The memory of the same images without a teacher's labels."""
        return dataclasses.replace(self, method=self.method.removesuffix(LABELLED), teacher=None)

    def config(self, spec: DataSpec, groups: int) -> MemoryConfig:
        """The memory's settings on a stream with ``groups`` groups (class by experience) in total."""
        method = self.plain.method.removesuffix(DECODED)
        share = self.budget.per_class(Form(spec.shape, decode_of(method, self.settings)), self.storage)
        return MemoryConfig(
            method,
            items=share * groups,
            per_class=None if self.shrinking else share,
            storage=self.storage,  # type: ignore[arg-type]
            seed=derived_seed(self.seed, "order", self.order),
            name=spec.name,
            mean=spec.mean,
            std=spec.std,
            settings=self.settings,
            returning=self.returning,
        )

    def groups(self, stream: Sequence[ImageData]) -> int:
        """The number of groups that the memory has at the end of this stream."""
        every = [label for data in stream for label in data.classes]
        return len(set(every)) if self.returning == "merge" or self.online else len(every)


def fill_memories(unit: Unit, stream: Sequence[ImageData], folder: Path, *, progress: bool | None = None) -> list[Memory]:
    """The unit's memory after each experience.

    Args:
        unit: the memory.
        stream: its experiences.
        folder: memories that it already has are read; a stopped condensation is continued.
        progress: show a progress bar; None: on terminals.
    """
    config = unit.config(stream[0].spec, unit.groups(stream))
    paths = [folder / f"memory-{number}.safetensors" for number in range(len(stream))]
    if not all(path.exists() for path in paths):
        experiences = [experience_tensors(data) for data in stream]
        if unit.online is None:
            memory = Memory(config)
            for images, labels in experiences:
                observe(memory, images.cpu(), labels.cpu(), device=stream[0].device, folder=folder, progress=progress)
        else:
            passing = online_memories(experiences, config, **vars(unit.online), seed=config.seed, device=stream[0].device)
            for path, memory in zip(paths, passing, strict=True):
                save(memory, path)
    return [load(path) for path in paths]


def reservoirs(unit: Unit, stream: Sequence[ImageData]) -> list[CondensedSet]:
    """The reservoir after each experience, as large as the other memories are at the end."""
    items = unit.budget.per_class(Form(stream[0].spec.shape), unit.storage) * unit.groups(stream)
    return [reservoir(stream[: number + 1], items, derived_seed(unit.seed, "order", unit.order)) for number in range(len(stream))]


def compressed_memory(unit: Unit, spec: DataSpec) -> CompressedMemory:
    """An empty memory of a unit whose method is in `COMPRESSED`: the bytes of its budget for each class of each experience."""
    class_bytes = int(unit.budget.count * Form(spec.shape).item_bytes("float32"))
    return CompressedMemory(COMPRESSED[unit.method], class_bytes, spec.mean, spec.std, derived_seed(unit.seed, "order", unit.order))


def sizes(unit: Unit, stream: Sequence[ImageData], folder: Path, *, progress: bool | None = None) -> list[dict[str, Json]]:
    """Items, bytes and seconds spent condensing, after each experience; see `fill_memories`. Labels count as bytes, not as seconds."""
    if unit.method == RESERVOIR:  # one grid for all images
        form = Form(stream[0].spec.shape)
        size, grid = form.item_bytes(unit.storage), form.group_bytes(unit.storage)
        return [{"items": len(kept), "bytes": len(kept) * size + grid, "seconds": 0.0} for kept in reservoirs(unit, stream)]
    if unit.method in COMPRESSED:
        memory, found = compressed_memory(unit, stream[0].spec), list[dict[str, Json]]()
        for data in stream:
            memory.observe(*experience_tensors(data))
            found.append({"items": len(memory), "bytes": memory.nbytes, "seconds": 0.0})
        return found
    memories = fill_memories(unit.plain, stream, folder, progress=progress)
    more = [label_bytes(memory, stream) if unit.teacher else 0 for memory in memories]
    return [{"items": len(m), "bytes": m.nbytes + size, "seconds": m.seconds} for m, size in zip(memories, more, strict=True)]


def held(unit: Unit, stream: Sequence[ImageData], folder: Path, device: str) -> list[CondensedSet]:
    """The memory after each experience, as sets of the stream's spec on ``device``; see `fill_memories`."""
    spec = stream[0].spec
    if unit.method == RESERVOIR:
        return reservoirs(unit, stream)
    if unit.method in COMPRESSED:
        memory, found = compressed_memory(unit, spec), list[CondensedSet]()
        for data in stream:
            memory.observe(*experience_tensors(data))
            found.append(memory.condensed(spec).to(device))
        return found
    memories = fill_memories(unit.plain, stream, folder, progress=False)
    if unit.teacher is not None:
        return labelled_memories(memories, stream, unit.teacher)
    return [memory.condensed(spec).to(device) for memory in memories]


def rows(
    strategy: str,
    unit: Unit | None,
    stream: Sequence[ImageData],
    sets: Sequence[CondensedSet],
    *,
    folder: Path,
    network: Factory,
    recipe: Recipe,
    training: Training,
    seed: int,
    split: str = "test",
    first: int = 0,
    mini: int | None = None,
) -> Iterator[tuple[int, list[float]]]:
    """Train one learner on the stream and yield the rows of its accuracy matrix.

    Args:
        strategy: one of `STRATEGIES`, or "last", which is "scratch" on the last memory. "joint" and "last" have only the last row.
        unit: the memory; None for a strategy without one.
        stream: the experiences.
        sets: the memory's sets after each experience.
        folder: the memory's files.
        network: name or function.
        recipe: of "scratch", "last" and "joint".
        training: of Avalanche's strategies.
        seed: of weights and batches.
        split: the split that accuracy is measured on.
        first: number of rows that are known. "scratch" leaves them out; Avalanche's learners start again, because they keep their weights.
        mini: images at a time in an online stream; None: whole experiences.

    Yields:
        (position of the experience, accuracies in percent on the test images of every experience).
    """
    if strategy == "joint":
        yield len(stream) - 1, joint(stream, network, recipe, seed, split)
    elif strategy == "last":
        (row,) = scratch([sets[-1]], stream, network, recipe, derived_seed(seed, len(sets) - 1), split)
        yield len(stream) - 1, row
    elif strategy == "scratch":
        for number in range(first, len(stream)):
            (row,) = scratch([sets[number]], stream, network, recipe, derived_seed(seed, number), split)
            yield number, row
    else:
        buffer, smallest = None, 0
        if unit is not None:
            buffer, smallest = _buffer(unit, stream, folder, training.exemplar_transform), len(sets[0])
        yield from enumerate(learn(strategy, stream, network, training, seed, buffer=buffer, smallest=smallest, split=split, mini=mini))


def _buffer(unit: Unit, stream: Sequence[ImageData], folder: Path, transform: str | None) -> ReplayBuffer:
    from apps.continual.buffer import CondensedBuffer  # here: it imports Avalanche
    from apps.continual.online_buffer import OnlineCondensedBuffer

    groups = unit.groups(stream)
    if unit.method == RESERVOIR:
        items = unit.budget.per_class(Form(stream[0].spec.shape), unit.storage) * groups
        reservoir_buffer: ReplayBuffer = avalanche("avalanche.training.storage_policy").ReservoirSamplingBuffer(items)
        return reservoir_buffer
    if unit.method in COMPRESSED:
        from apps.continual.compressed_buffer import CompressedBuffer

        empty, items, spec = compressed_memory(unit, stream[0].spec), math.ceil(unit.budget.count) * groups, stream[0].spec
        return CompressedBuffer(
            items,
            empty.codec,
            class_bytes=empty.class_bytes,
            mean=spec.mean,
            std=spec.std,
            seed=empty.seed,
            transform=transform,
            data_name=spec.name,
        )
    config = unit.config(stream[0].spec, groups)
    assert config.items is not None
    options: dict[str, Any] = {"per_class": config.per_class, "storage": config.storage, "seed": config.seed, "progress": False}
    options["transform"] = transform
    options |= {"data_name": config.name, "mean": config.mean, "std": config.std, "returning": unit.returning, **config.settings}
    if unit.online is not None:
        return OnlineCondensedBuffer(config.items, config.method, queue=unit.online.queue, every=unit.online.every, **options)
    # The folder already has the memories, which do not depend on the strategy: they are read, not condensed again.
    return CondensedBuffer(config.items, config.method, folder=folder, **options)


def interval(values: Sequence[float]) -> dict[str, Json]:
    """Mean and 95 % interval over class orders (Student's t), not limited to 0..100, because forgetting may be negative.

    One class order has no interval: ``low`` and ``high`` are None.
    """
    accuracy = Accuracy(tuple(values))
    width = accuracy.half_width if len(values) > 1 else None
    low, high = (None, None) if width is None else (accuracy.mean - width, accuracy.mean + width)
    return {"mean": accuracy.mean, "low": low, "high": high, "values": list(values)}
