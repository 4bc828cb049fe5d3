"""`CondensedBuffer`: a `Memory` as an Avalanche storage policy (avalanche-lib 0.6), and its online form.

It works where Avalanche takes an `ExemplarsBuffer`: `ReplayPlugin`, `GDumbPlugin`, `ER_ACE`, `DER` and others (see `attach`). Where
Avalanche would go on without replaying anything, an `InputError` says so.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from apps.continual import memory_file
from apps.continual.engine import avalanche
from apps.continual.items import Transform, dataset_of, has_task_labels, read
from apps.continual.memory import Memory
from apps.continual.memory_config import MemoryConfig
from apps.continual.online import Batch, Queue
from apps.continual.policies import attach as attach
from apps.continual.policies import is_der, refuse_no_replay, refuse_unfit, trains_on_the_buffer
from apps.continual.policies import outputs as outputs
from distill.errors import InputError, clipped
from distill.records import writing

_policies = avalanche("avalanche.training.storage_policy")
_utils = avalanche("avalanche.benchmarks.utils")


class CondensedBuffer(_policies.ExemplarsBuffer):  # type: ignore[misc, name-defined]
    """A replay buffer whose exemplars are condensed from each experience.

    ``max_size`` is the budget in items (the plugin's ``mem_size``), ``max_bytes`` one in bytes, ``per_class`` a fixed share; without it the
    budget is shared among the classes seen, and old classes are condensed again when new ones come. ``method`` is any condensation
    method or coreset, ``settings`` are its settings; ``storage`` "uint8" takes a quarter of the bytes. ``transform`` augments items
    when they are read for training. ``device`` "auto" condenses where the strategy trains. With ``folder`` the buffer saves itself after
    each experience, and a run that is started again finds its sets there. ``data_name`` (digits are not flipped), ``mean`` and ``std``
    describe the stream; see `MemoryConfig`. All else about the stream is read from the experience's evaluation view. Raises `InputError`
    for whatever is wrong without a look at the stream.
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
        transform: Transform | None = None,
        device: torch.device | str = "auto",
        folder: str | Path | None = None,
        progress: bool | None = None,
        data_name: str = "stream",
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        **settings: Any,
    ) -> None:
        if type(max_size) is not int or max_size < 1:
            raise InputError(f"max_size is {clipped(max_size)}; allowed: 1 or more items.")
        if transform is not None and not callable(transform):
            raise InputError(f"transform is {clipped(transform)!r}; allowed: a function of an image tensor (C, H, W), or None.")
        if progress not in (None, True, False):
            raise InputError(f"progress is {clipped(progress)!r}; allowed: True, False, or None (on terminals).")
        if folder is not None and not isinstance(folder, str | Path):
            raise InputError(f"folder is {clipped(folder)!r}; allowed: a path, or None.")
        mean, std = (tuple(values) if isinstance(values, list) else values for values in (mean, std))
        config = MemoryConfig(method, max_size, max_bytes, per_class, storage, seed, data_name, mean, std, settings)  # type: ignore[arg-type]
        if folder is not None and callable(settings.get("network")):
            raise InputError("network is a function, which the files in folder cannot hold; give a network by its name, or no folder.")
        self.memory, self.transform, self.progress = Memory(config), transform, progress
        self.device = _device(device)
        self.folder = None if folder is None else Path(folder)
        if self.folder is not None:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
        self.learner: Any = None  # a DER that this buffer is attached to, which may have outputs to give (see `buffer`)
        self._layout: Any = None  # the stream's dataset class: its items have task labels, or not
        self._tensor_labels = False
        self._built: Any = None
        super().__init__(max_size)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "learner": None}  # a copy of the buffer takes no network along

    @property
    def max_size(self) -> int:
        """The budget in items; it cannot be changed."""
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
    def buffer(self) -> Any:
        """The exemplars as an Avalanche dataset with the stream's item layout; empty before the first update."""
        if self.learner is not None and any(group.logits is None for group in self.memory.groups):
            self._attach_logits(self.learner)  # a memory that was loaded, and saved by a strategy without outputs
        if self._built is None:
            groups = [self._dataset(group) for group in self.memory.groups] if self._layout is not None else []
            self._built = _utils.concat_datasets(groups) if groups else super().buffer
        return self._built

    @buffer.setter
    def buffer(self, new_buffer: Any) -> None:
        raise InputError("a condensed buffer cannot be assigned; it makes its exemplars itself (post_adapt), or loads them (load).")

    @property
    def buffer_groups(self) -> dict[int, Any]:
        """The exemplars of each class (those of all its groups) as an object with ``buffer``, as Avalanche's balanced buffers offer it."""
        if self._layout is None:
            return {}
        found: dict[int, list[Any]] = {}
        for group in self.memory.groups:
            found.setdefault(group.label, []).append(self._dataset(group))
        return {label: SimpleNamespace(buffer=_utils.concat_datasets(parts)) for label, parts in found.items()}

    @property
    def buffer_datasets(self) -> list[Any]:
        """The data sets of `buffer_groups`, one a class."""
        return [group.buffer for group in self.buffer_groups.values()]

    def update(self, strategy: Any, **_: Any) -> None:
        """What 0.6's plugins call; the inherited one warns at each call and changes the process's warning filters."""
        self.post_adapt(strategy, strategy.experience)

    def update_from_dataset(self, new_data: Any, strategy: Any = None) -> None:
        """Condense a data set of the stream into the memory, as if it were an experience."""
        self._take(strategy, new_data)

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Condense the experience into the memory, once for each experience. One without items changes nothing."""
        refuse_unfit(agent)
        self._take(agent, exp.dataset)
        self._check_replay(agent, exp)

    def resize(self, strategy: Any, new_size: int) -> None:
        """A condensed set is not cut: `InputError` unless the size stays."""
        if new_size != self.max_size:
            raise InputError(
                f"a condensed buffer of {self.max_size} items cannot become one of {clipped(new_size)}: its images were "
                "optimised together; make a buffer of the size you need (without per_class its shares shrink by condensing again)."
            )

    def save(self, path: str | Path) -> None:
        """The memory as one safetensors file."""
        memory_file.save(self.memory, path)

    def load(self, path: str | Path, like: Any) -> None:
        """Take a saved memory's exemplars; ``like`` is an experience (or dataset) of the stream, whose item layout they get.

        ``path`` is a file, or a buffer's ``folder``, of which the latest memory is taken: the way to go on where finished experiences are
        skipped. Raises `InputError` for a file of a buffer with other settings, and names them.
        """
        path = Path(path)
        self._loaded(memory_file.last(path) if path.is_dir() else path)
        self._built = None
        self._learn_layout(getattr(like, "dataset", like))

    # Inside

    def _loaded(self, path: Path) -> None:
        self._put(memory_file.load(path), path)

    def _put(self, read: Memory, path: Path) -> None:
        ours, theirs = vars(self.memory.config), vars(read.config)
        if other := [f"{name} {clipped(theirs[name], 40)}, here {clipped(ours[name], 40)}" for name in ours if ours[name] != theirs[name]]:
            raise InputError(f"{path}: was saved by a buffer with other settings ({'; '.join(other)}); make this one with the same.")
        self.memory = read

    def _check_replay(self, agent: Any, exp: Any) -> None:
        refuse_no_replay(agent, len(self.memory), exp)

    def _take(self, agent: Any, dataset: Any) -> None:
        if not len(dataset):
            return
        batch = read(dataset)
        self._learn_layout(dataset)
        if is_der(agent):  # the outputs take bytes too
            self.memory.logit_values = outputs(agent.model, batch[0][:1], agent.device).shape[1]
        found = self._add(agent, batch)
        self._built = None
        if is_der(agent):
            self._attach_logits(agent)
        if self.folder is not None and not found:
            memory_file.save(self.memory, memory_file.place(self.folder, self.memory.experiences - 1))

    def _add(self, agent: Any, batch: Batch) -> bool:
        """Whether the folder had the memory with this experience already."""
        images, labels, tasks = batch
        if self.folder is not None and memory_file.restored(self.memory, images, labels, task=tasks, folder=self.folder):
            return True
        self.memory.observe(images, labels, task=tasks, device=self._device(agent), checkpoints=self.folder, progress=self.progress)
        return False

    def _device(self, agent: Any) -> torch.device | str:
        return getattr(agent, "device", "cpu") if self.device == "auto" else self.device

    def _learn_layout(self, dataset: Any) -> None:
        self._layout, self._tensor_labels = type(dataset), isinstance(dataset.eval()[0][1], Tensor)

    def _dataset(self, group: Any) -> Any:
        return dataset_of(group, self._layout, tensor_labels=self._tensor_labels, transform=self.transform)

    def _attach_logits(self, agent: Any) -> None:
        """DER replays a network's outputs: those of the model as it is now, for every group that has none."""
        if not has_task_labels(self._layout):
            raise InputError("DER unpacks items of (x, y, task label); make the stream with nc_benchmark, whose items have task labels.")
        for number, group in enumerate(self.memory.groups):
            if group.logits is None:
                self.memory.with_logits(number, outputs(agent.model, group.images, agent.device))
        self._built, limit = None, self.memory.config.nbytes
        if limit is not None and self.nbytes > limit:
            raise InputError(
                f"with DER's outputs the memory takes {self.nbytes} bytes of {limit}: it was filled without them; raise max_bytes."
            )


class OnlineCondensedBuffer(CondensedBuffer):
    """The same for online streams, where an experience is a handful of items: recent items wait in a queue and are condensed together.

    Every ``every`` mini-experiences, and earlier when ``queue`` items wait, they are merged into the exemplars of their classes and tasks
    (`Memory.merge`). What waits in the queue is real images, is not replayed and counts neither as items nor in ``nbytes``; `queue_nbytes`
    says what it takes. Nothing is dropped: call `flush` at the end of the stream. The queue and its clock are part of the saved file.
    ``every=1`` is for classes that come back in ordinary experiences (domains, repetition).
    """

    def __init__(self, max_size: int, method: str = "dm", *, queue: int = 64, every: int = 6, **options: Any) -> None:
        if options.get("folder") is not None:
            raise InputError("an online buffer cannot save itself for each mini-experience; leave folder out and call save.")
        self.queue = Queue(queue, every)
        super().__init__(max_size, method, **options)

    @property
    def queue_nbytes(self) -> int:
        """Bytes of the real images that wait; not part of `nbytes`."""
        return self.queue.nbytes

    def flush(self, agent: Any = None) -> None:
        """Merge what waits: at the end of the stream, or before the exemplars are used elsewhere. DER's outputs need ``agent``."""
        if agent is None and self.memory.logit_values and len(self.queue):
            agent = self.learner
            if agent is None:
                raise InputError("the buffer stores a network's outputs (DER) with its items; call flush(strategy).")
        with self.queue.kept_if_it_fails():
            self._merge(agent, self.queue.flush())
        self._built = None
        if is_der(agent):
            self._attach_logits(agent)

    def save(self, path: str | Path) -> None:
        """The memory, the real images that wait in the queue, and the queue's clock, as one safetensors file."""
        memory_file.save(self.memory, path, self.queue)

    def _loaded(self, path: Path) -> None:
        read, queue = memory_file.load_online(path)
        if queue is not None and (queue.size, queue.every) != (self.queue.size, self.queue.every):
            ours = f"queue={self.queue.size}, every={self.queue.every}"
            raise InputError(f"{path}: was saved with queue={queue.size}, every={queue.every}; here: {ours}; make this one with the same.")
        self._put(read, path)
        self.queue = queue or Queue(self.queue.size, self.queue.every)

    def _add(self, agent: Any, batch: Batch) -> bool:
        self.memory.checked(*batch)
        with self.queue.kept_if_it_fails():
            ready = self.queue.add(*batch)
            if ready is None and not self.memory.groups and trains_on_the_buffer(agent):
                ready = self.queue.flush()
            self._merge(agent, ready)
        return False

    def _merge(self, agent: Any, ready: Batch | None) -> None:
        if ready is not None:
            progress = False if self.progress is None else self.progress
            self.memory.merge(*ready[:2], task=ready[2], device=self._device(agent), progress=progress)

    def _check_replay(self, agent: Any, exp: Any) -> None:
        """The first mini-experiences find an empty buffer; what can never be enough is refused at once."""
        refuse_no_replay(agent, self.max_size, exp)


def _device(given: Any) -> torch.device | str:
    """`InputError` unless it is "auto" or a device that is here."""
    if given == "auto":
        return "auto"
    try:
        device = torch.device(given)
    except (RuntimeError, TypeError):
        raise InputError(f'device is {clipped(given)!r}; allowed: "auto", "cpu", "cuda" or a torch.device.') from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device is {clipped(given)!r}, and torch finds no GPU here; allowed: cpu, auto.")
    try:
        torch.zeros(1, device=device).item()  # "meta" has no values, and others are not in every build of torch
    except (RuntimeError, NotImplementedError, AssertionError):
        raise InputError(f"device is {clipped(given)!r}, on which torch cannot compute here; allowed: cpu, auto.") from None
    return device
