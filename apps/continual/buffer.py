"""`CondensedBuffer`: a `Memory` as an Avalanche storage policy (avalanche-lib 0.6).

It works where Avalanche takes an `ExemplarsBuffer`: `ReplayPlugin`, `GDumbPlugin`, `ER_ACE`, `DER` and others (see `attach`). If Avalanche
would silently replay nothing, an `InputError` is raised.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Literal, Self

import torch

from apps.continual import memory_file, resizing
from apps.continual.augmented import Transform, check_transform, made
from apps.continual.engine import avalanche
from apps.continual.exemplars import Exemplars
from apps.continual.features import as_items
from apps.continual.items import Layout, dataset_of, layout_of
from apps.continual.memory import Memory
from apps.continual.memory_config import MemoryConfig
from apps.continual.online import Batch, Queue
from apps.continual.policies import attach as attach
from apps.continual.policies import checked_device, is_der, refuse_no_replay, refuse_unfit
from apps.continual.policies import outputs as outputs
from apps.continual.protocols import Agent, AvalancheData, Experience, Strategy
from apps.continual.reading import read
from distill.errors import InputError, clipped
from distill.records import writing

_policies = avalanche("avalanche.training.storage_policy")
_utils = avalanche("avalanche.benchmarks.utils")


class CondensedBuffer(_policies.ExemplarsBuffer):  # type: ignore[misc, name-defined]
    """A replay buffer whose exemplars are condensed from each experience.

    The stream's images are read through the experience's evaluation view.

    Args:
        max_size: budget in stored items, the plugin's ``mem_size``; with ``decode`` each is replayed as several images.
        method: a condensation method or coreset.
        per_class: items per class; None: the budget is shared among the classes seen, and old classes are condensed again for new ones.
        max_bytes: budget in bytes, in addition to ``max_size``.
        storage: "float32", or "uint8" with a quarter of the bytes.
        seed: of the condensation.
        transform: augmentation of an image tensor (C, H, W), applied when items are read for training; "dsa": `Augmented`.
        device: where images are condensed; "auto": where the strategy trains.
        folder: the buffer saves itself there after each experience, and a run that is started again loads its sets from there.
        progress: show a progress bar; None: on terminals.
        num_workers: processes that read an experience whose items are not simply tensors.
        data_name: name of the data set, which decides the augmentation (digits are not flipped).
        mean: of the stream's normalisation, per channel; see `MemoryConfig`.
        std: likewise, the standard deviation.
        returning: "merge": a class that comes back (in another domain, or again) is merged into its exemplars, which count as the images
            that they stand for; "separate": it gets further exemplars.
        settings: of the method.

    Raises:
        InputError: an argument is wrong, as far as it shows without the stream.
    """

    def __init__(
        self,
        max_size: int,
        method: str = "dm",
        *,
        per_class: int | None = None,
        max_bytes: int | None = None,
        storage: str = "float32",
        seed: int = 0,
        transform: Transform | str | None = None,
        device: torch.device | str = "auto",
        folder: str | Path | None = None,
        progress: bool | None = None,
        num_workers: int = 0,
        data_name: str = "stream",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        returning: Literal["merge", "separate"] = "merge",
        **settings: object,
    ) -> None:
        if type(max_size) is not int or max_size < 1:
            raise InputError(f"max_size is {clipped(max_size)}; allowed: 1 or more items.")
        check_transform(transform)
        if progress not in (None, True, False):
            raise InputError(f"progress is {clipped(progress)!r}; allowed: True, False, or None (on terminals).")
        if type(num_workers) is not int or num_workers < 0:
            raise InputError(f"num_workers is {clipped(num_workers)!r}; allowed: 0 or more processes.")
        if folder is not None and not isinstance(folder, str | Path):
            raise InputError(f"folder is {clipped(folder)!r}; allowed: a path, or None.")
        mean, std = (tuple(values) if isinstance(values, list) else values for values in (mean, std))
        config = MemoryConfig(method, max_size, max_bytes, per_class, storage, seed, data_name, mean, std, settings, returning)  # type: ignore[arg-type]
        if folder is not None and callable(settings.get("network")):
            raise InputError("network is a function, which the files in folder cannot hold; give a network by its name, or no folder.")
        self.memory, self.transform, self.progress, self.num_workers = Memory(config), transform, progress, num_workers
        self.device = checked_device(device)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        self.learner: Agent | None = None  # a DER that this buffer is attached to, whose outputs may be missing (see `buffer`)
        self._layout: Layout | None = None  # of the stream's items, once it is known
        self._built: AvalancheData | None = None
        self._latest: int | None = None  # experiences of a memory that was taken because it was the folder's latest
        super().__init__(max_size)

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "learner": None}  # a copy of the buffer holds no network

    @classmethod
    def resume(
        cls,
        path: str | Path,
        like: Experience | AvalancheData,
        *,
        finished: int | None = None,
        transform: Transform | str | None = None,
        device: torch.device | str = "auto",
        progress: bool | None = None,
        num_workers: int = 0,
    ) -> Self:
        """The buffer of a run that was stopped, as it was after its last experience, with the settings that its file has.

        Args:
            path: the ``folder`` of that run's buffer, which the new one goes on to use; or a file.
            like: an experience or data set of the stream; the exemplars get its item layout.
            finished: experiences that the saved model has learned. A run may have been stopped after the memory of the next one was saved,
                and before its model was; without this number the folder's latest memory is taken.
            transform: of the constructor, as are the others: they are not in the file.
            device: likewise.
            progress: likewise.
            num_workers: likewise.

        Raises:
            InputError: the folder has no such memory, the file cannot be read, or ``like`` is not of a stream of its images.
        """
        path = Path(path)
        file = memory_file.last(path, finished) if path.is_dir() else path
        memory, queue = memory_file.load_online(file)
        config, folder = memory.config, path if path.is_dir() else None
        if config.items is None:
            raise InputError(f"{file}: has no budget in items, which a buffer needs; load it with apps.continual.memory_file.load.")
        buffer = cls(
            config.items,
            config.method,
            per_class=config.per_class,
            max_bytes=config.nbytes,
            storage=config.storage,
            seed=config.seed,
            transform=transform,
            device=device,
            folder=folder,
            progress=progress,
            num_workers=num_workers,
            data_name=config.name,
            mean=config.mean,
            std=config.std,
            returning=config.returning,
            **cls._of_queue(queue),
            **config.settings,
        )
        buffer.load(file, like)
        buffer._latest = memory.experiences if folder is not None and finished is None else None
        return buffer

    @property
    def max_size(self) -> int:
        """The budget in items; a smaller one is set as `resize` does."""
        assert self.memory.config.items is not None
        return self.memory.config.items

    @max_size.setter
    def max_size(self, new_size: int) -> None:
        self.resize(None, new_size)

    @property
    def nbytes(self) -> int:
        """Bytes of the stored images, labels, grids and logits."""
        return self.memory.nbytes

    @property
    def buffer(self) -> AvalancheData:
        """The exemplars as an Avalanche dataset with the stream's item layout; empty before the first update."""
        if self.learner is not None and any(group.logits is None for group in self.memory.groups):
            self._attach_logits(self.learner)  # a memory that was loaded, and saved by a strategy without outputs
        if self._built is None:
            groups = [self._dataset(group) for group in self.memory.groups] if self._layout is not None else []
            self._built = _utils.concat_datasets(groups) if groups else super().buffer
        assert self._built is not None
        return self._built

    @buffer.setter
    def buffer(self, new_buffer: object) -> None:
        raise InputError("a condensed buffer cannot be assigned; it makes its exemplars itself (post_adapt), or loads them (load).")

    @property
    def buffer_groups(self) -> dict[int, SimpleNamespace]:
        """The exemplars of each class (those of all its groups) as an object with ``buffer``, as Avalanche's balanced buffers offer it."""
        if self._layout is None:
            return {}
        datasets: dict[int, list[AvalancheData]] = {}
        for group in self.memory.groups:
            datasets.setdefault(group.label, []).append(self._dataset(group))
        return {label: SimpleNamespace(buffer=_utils.concat_datasets(parts)) for label, parts in datasets.items()}

    @property
    def buffer_datasets(self) -> list[AvalancheData]:
        """The data sets of `buffer_groups`, one per class."""
        return [group.buffer for group in self.buffer_groups.values()]

    def update(self, strategy: Strategy, **_: object) -> None:
        """Called by the plugins of Avalanche 0.6; the inherited method warns at each call and changes the process's warning filters."""
        self.post_adapt(strategy, strategy.experience)

    def update_from_dataset(self, new_data: AvalancheData, strategy: Agent | None = None) -> None:
        """Condense a data set of the stream into the memory, like an experience."""
        self._take(strategy, new_data)

    def post_adapt(self, agent: Agent, exp: Experience) -> None:
        """Condense the experience into the memory, once for each experience. One without items changes nothing."""
        refuse_unfit(agent)
        self._take(agent, exp.dataset)
        self._check_replay(agent, exp)

    def resize(self, strategy: Agent | None, new_size: int) -> None:
        """Make the budget smaller: groups above their new share are condensed again. Raises `InputError` as `resizing.resize` does."""
        resizing.resize(self.memory, new_size, device=self._device(strategy), progress=self.progress)
        self._built = None

    def save(self, path: str | Path) -> None:
        """The memory as one safetensors file."""
        memory_file.save(self.memory, path)

    def load(self, path: str | Path, like: Experience | AvalancheData) -> None:
        """Load a saved memory, for example to continue a run whose finished experiences are skipped.

        Args:
            path: a file, or the ``folder`` of a buffer, whose latest memory is loaded.
            like: an experience or data set of the stream; the exemplars get its item layout.

        Raises:
            InputError: the file cannot be read, was saved by a buffer with other settings, or ``like`` is not of a stream of its images.
        """
        path, layout = Path(path), self._checked_layout(like)
        self._loaded(memory_file.last(path) if path.is_dir() else path, layout)
        self._layout, self._built = layout, None

    # Inside

    @classmethod
    def _of_queue(cls, queue: Queue | None) -> dict[str, int]:
        """Arguments of the constructor that a file's queue gives."""
        return {}

    def _loaded(self, path: Path, layout: Layout) -> None:
        self._put(memory_file.load(path), path, layout)

    def _put(self, read: Memory, path: Path, layout: Layout) -> None:
        ours, theirs = vars(self.memory.config), vars(read.config)
        if other := [f"{name} {clipped(theirs[name], 40)}, here {clipped(ours[name], 40)}" for name in ours if ours[name] != theirs[name]]:
            raise InputError(f"{path}: was saved by a buffer with other settings ({'; '.join(other)}); make this one with the same.")
        if read.groups:
            layout.check(read.groups[0].form.shape, path)
        self.memory = read

    def _check_replay(self, agent: Agent, exp: Experience) -> None:
        refuse_no_replay(agent, self.memory.count, exp)

    def _take(self, agent: Agent | None, dataset: AvalancheData) -> None:
        if not len(dataset):
            return
        batch = read(dataset, self.num_workers)
        self._layout = layout = self._checked_layout(dataset)
        if is_der(agent):  # the outputs take bytes too
            self.memory.logit_values = outputs(agent.model, as_items(batch[0][:1], rows=layout.rows), agent.device).shape[1]
        saved_before = self._add(agent, batch)
        self._built = None
        if is_der(agent):
            self._attach_logits(agent)
        if self.folder is not None and not saved_before:
            memory_file.save(self.memory, memory_file.place(self.folder, self.memory.experiences - 1))

    def _add(self, agent: Agent | None, batch: Batch) -> bool:
        """Add an experience to the memory. True if the folder already had the memory with it."""
        images, labels, tasks = batch
        if self.folder is not None and self._latest == self.memory.experiences:
            memory_file.refuse_again(self.memory, images, labels, task=tasks, folder=self.folder)
        if self.folder is not None and memory_file.restored(self.memory, images, labels, task=tasks, folder=self.folder):
            return True
        self.memory.observe(images, labels, task=tasks, device=self._device(agent), checkpoints=self.folder, progress=self.progress)
        return False

    def _device(self, agent: Agent | None) -> torch.device | str:
        return getattr(agent, "device", "cpu") if self.device == "auto" else self.device

    def _checked_layout(self, like: Experience | AvalancheData) -> Layout:
        if (layout := layout_of(like)).rows and self.transform == "dsa":
            raise InputError("transform is 'dsa', which augments images, and the stream's items are rows (D,); leave it out.")
        return layout

    def _dataset(self, group: Exemplars) -> AvalancheData:
        assert self._layout is not None
        config, turn = self.memory.config, self.memory.experiences * 2**20 + self.memory.groups.index(group)
        then = made(self.transform, config.name, config.seed, turn)
        return dataset_of(group, self._layout, then)

    def _attach_logits(self, agent: Agent) -> None:
        """Store the current model's outputs, which DER replays, for every group that has none."""
        if self._layout is None or not self._layout.task_labels:
            raise InputError("DER unpacks items of (x, y, task label); make the stream with nc_benchmark, whose items have task labels.")
        for number, group in enumerate(self.memory.groups):
            if group.logits is None:
                self.memory.with_logits(number, outputs(agent.model, as_items(group.images, rows=self._layout.rows), agent.device))
        self._built, limit = None, self.memory.config.nbytes
        if limit is not None and self.nbytes > limit:
            raise InputError(
                f"with DER's outputs the memory takes {self.nbytes} bytes of {limit}: it was filled without them; raise max_bytes."
            )
