"""`CondensedBuffer`: a `Memory` as an Avalanche storage policy (avalanche-lib 0.6), and its online form.

It works where Avalanche takes an `ExemplarsBuffer`: `ReplayPlugin`, `GDumbPlugin`, `ER_ACE`, `DER` (see `attach`). Where Avalanche would
go on without replaying anything, an `InputError` says so.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from apps.continual.engine import avalanche
from apps.continual.exemplars import Exemplars, Grid, decode
from apps.continual.memory import Memory, MemoryConfig
from apps.continual.memory_file import load
from apps.continual.online import Queue
from distill.errors import InputError

_policies = avalanche("avalanche.training.storage_policy")
_utils = avalanche("avalanche.benchmarks.utils")
_attributes = avalanche("avalanche.benchmarks.utils.data_attribute")
_training = avalanche("avalanche.training")
_plugins = avalanche("avalanche.training.plugins")

Transform = Callable[[Tensor], Tensor]


class _Items(Dataset):  # type: ignore[type-arg]
    """(values, label) of one group; the values stay as they are stored, the label is of the stream's kind (a collate mixes no kinds)."""

    def __init__(self, group: Exemplars, tensor_labels: bool) -> None:
        self.values, self.label = group.values, torch.tensor(group.label) if tensor_labels else group.label
        self.targets = [group.label] * len(group)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | int]:
        return self.values[index], self.label


class _Restored:
    """A stored item as the learner sees it: dequantised, then through the user's own transform."""

    def __init__(self, grid: Grid | None, then: Transform | None) -> None:
        self.grid, self.then = grid, then

    def __call__(self, values: Tensor) -> Tensor:
        images = values if self.grid is None else decode(values, self.grid)
        return images if self.then is None else self.then(images)


class CondensedBuffer(_policies.ExemplarsBuffer):  # type: ignore[misc, name-defined]
    """A replay buffer whose exemplars are condensed from each experience.

    ``max_size`` is the budget in items (the plugin's ``mem_size``), ``max_bytes`` one in bytes, ``per_class`` a fixed share; without it the
    budget is shared among the classes seen, and old classes are condensed again when new ones come. ``method`` is any condensation
    method or coreset, ``settings`` are its settings; ``storage`` "uint8" takes a quarter of the bytes. ``transform`` augments items
    when they are read for training. ``device`` "auto" condenses where the strategy trains. With ``folder`` the buffer saves itself after
    each experience, and a run that is started again finds its sets there. ``data_name`` (digits are not flipped), ``mean`` and ``std``
    describe the stream; see `MemoryConfig`. All else about the stream is read from the experience's evaluation view.
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
        if not isinstance(max_size, int) or max_size < 1:
            raise InputError(f"max_size is {max_size!r}; allowed: 1 or more items.")
        super().__init__(max_size)
        self.memory = Memory(
            MemoryConfig(method, max_size, max_bytes, per_class, storage, seed, data_name, mean, std, settings)  # type: ignore[arg-type]
        )
        self.transform, self.device, self.progress = transform, device, progress
        self.folder = None if folder is None else Path(folder)
        self._layout: Any = None  # the stream's dataset class: its items have task labels, or not
        self._tensor_labels = False
        self._built: Any = None

    @property
    def nbytes(self) -> int:
        """Bytes of the stored images, labels, grids and logits."""
        return self.memory.nbytes

    @property
    def buffer(self) -> Any:
        """The exemplars as an Avalanche dataset with the stream's item layout; empty before the first update."""
        if self._built is None:
            groups = [self._dataset(group) for group in self.memory.groups] if self._layout is not None else []
            self._built = _utils.concat_datasets(groups) if groups else super().buffer
        return self._built

    @buffer.setter
    def buffer(self, new_buffer: Any) -> None:
        raise InputError("a condensed buffer cannot be assigned; it makes its exemplars itself (post_adapt), or loads them (load).")

    def update(self, strategy: Any, **_: Any) -> None:
        """What 0.6's plugins call; the inherited one warns at each call and changes the process's warning filters."""
        self.post_adapt(strategy, strategy.experience)

    def post_adapt(self, agent: Any, exp: Any) -> None:
        """Condense the experience into the memory, once for each experience."""
        _refuse_unfit(agent)
        images, labels, task = self._taken(exp)
        der = isinstance(agent, _training.DER)
        if der:  # the outputs take bytes too
            self.memory.logit_values = outputs(agent.model, images[:1], agent.device).shape[1]
        self._take(agent, images, labels, task)
        self._built = None
        if der:
            self._attach_logits(agent)
        self._check_replay(agent, exp)

    def resize(self, strategy: Any, new_size: int) -> None:
        """A condensed set is not cut: `InputError` unless the size stays."""
        if new_size != self.max_size:
            raise InputError(
                f"a condensed buffer of {self.max_size} items cannot become one of {new_size}: its images were "
                "optimised together; make a buffer of the size you need (without per_class its shares shrink by condensing again)."
            )

    def save(self, path: str | Path) -> None:
        """The memory as one safetensors file."""
        self.memory.save(path)

    def load(self, path: str | Path, like: Any) -> None:
        """Take a saved memory's exemplars; ``like`` is an experience (or dataset) of the stream, whose item layout they get."""
        read = load(path)
        if read.config != self.memory.config:
            raise InputError(f"{path}: was saved by a buffer with other settings; make this one with the same.")
        self.memory, self._built = read, None
        self._learn_layout(getattr(like, "dataset", like))

    # Inside

    def _check_replay(self, agent: Any, exp: Any) -> None:
        _refuse_no_replay(agent, len(self.memory), exp)

    def _take(self, agent: Any, images: Tensor, labels: Tensor, task: int) -> None:
        self.memory.observe(images, labels, task=task, device=self._device(agent), folder=self.folder, progress=self.progress)

    def _device(self, agent: Any) -> torch.device | str:
        return getattr(agent, "device", "cpu") if self.device == "auto" else self.device

    def _taken(self, exp: Any) -> tuple[Tensor, Tensor, int]:
        """Images (N, C, H, W), labels (N,) and the task label of an experience, seen through its evaluation transforms."""
        self._learn_layout(exp.dataset)
        dataset = exp.dataset.eval()
        first = dataset[0][0]
        if not isinstance(first, Tensor) or not first.is_floating_point() or first.ndim != 3:
            given = f"{first.dtype} {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
            raise InputError(
                f"the stream's items are {given} in the evaluation view; a condensed buffer needs float tensors (C, H, W): "
                "put ToTensor (and Normalize) into the benchmark's evaluation transform."
            )
        tasks = {int(t) for t in getattr(dataset, "targets_task_labels", [0])}
        if len(tasks) > 1:
            raise InputError(f"the experience mixes the task labels {sorted(tasks)[:10]}; a condensed buffer takes one task an experience.")
        # One by one: a loader would draw from the global generator.
        images = torch.stack([dataset[i][0] for i in range(len(dataset))]).detach().to("cpu", torch.float32)
        return images, torch.tensor([int(y) for y in dataset.targets]), tasks.pop()

    def _learn_layout(self, dataset: Any) -> None:
        self._layout, self._tensor_labels = type(dataset), isinstance(dataset.eval()[0][1], Tensor)

    def _dataset(self, group: Exemplars) -> Any:
        groups = _utils.TransformGroups(
            {"train": _Restored(group.grid, self.transform), "eval": _Restored(group.grid, None)}  # y is left alone
        )
        items = _Items(group, self._tensor_labels)
        described = [_attributes.DataAttribute(items.targets, "targets")]
        if _has_task_labels(self._layout):
            described.append(_attributes.TaskLabels([group.task] * len(group)))
        if group.logits is not None:
            described.append(_attributes.TensorDataAttribute(list(group.logits), "logits", use_in_getitem=True))
        return self._layout([items], data_attributes=described, transform_groups=groups)

    def _attach_logits(self, agent: Any) -> None:
        """DER replays a network's outputs: those of the model as it is now, for every group that has none."""
        if not _has_task_labels(self._layout):
            raise InputError("DER unpacks items of (x, y, task label); make the stream with nc_benchmark, whose items have task labels.")
        for number, group in enumerate(self.memory.groups):
            if group.logits is None:
                self.memory.with_logits(number, outputs(agent.model, group.images, agent.device))


class OnlineCondensedBuffer(CondensedBuffer):
    """The same for online streams, where an experience is a handful of items: recent items wait in a queue and are condensed together.

    Every ``every`` mini-experiences the ``queue`` most recent items are merged into the exemplars of their classes (`Memory.merge`). What
    waits in the queue is not replayed and counts neither as items nor in ``nbytes``; `queue_nbytes` says what it takes.
    """

    def __init__(self, max_size: int, method: str = "dm", *, queue: int = 64, every: int = 6, **options: Any) -> None:
        if options.get("folder") is not None:
            raise InputError("an online buffer cannot save itself for each mini-experience; leave folder out and call save.")
        super().__init__(max_size, method, **options)
        self.queue = Queue(queue, every)

    @property
    def queue_nbytes(self) -> int:
        """Bytes of the real images that wait; not part of `nbytes`."""
        return self.queue.nbytes

    def _take(self, agent: Any, images: Tensor, labels: Tensor, task: int) -> None:
        ready = self.queue.add(images, labels)
        if ready is not None:
            progress = False if self.progress is None else self.progress
            self.memory.merge(*ready, task=task, device=self._device(agent), progress=progress)

    def _check_replay(self, agent: Any, exp: Any) -> None:
        """The first mini-experiences find an empty buffer; what can never be enough is refused at once."""
        _refuse_no_replay(agent, self.max_size, exp)


def attach(strategy: Any, buffer: CondensedBuffer) -> Any:
    """Make a strategy (or plugin) use this buffer, where it has a storage policy of its own making; returns what was given.

    For `ER_ACE`, `DER`, `GDumbPlugin`, or a strategy that has one of the replay plugins. `InputError` where there is nothing to replace.
    """
    _refuse_unfit(strategy)
    holders = [part for part in (strategy, *getattr(strategy, "plugins", ())) if hasattr(part, "storage_policy")]
    if len(holders) != 1:
        raise InputError(
            f"{type(strategy).__name__} has {len(holders)} storage policies; attach works with ER_ACE, DER, GDumbPlugin, ReplayPlugin or a "
            "strategy with one of these plugins (iCaRL, generative replay, GEM and A-GEM keep memories of another kind)."
        )
    holders[0].storage_policy = buffer
    holders[0].mem_size = buffer.max_size
    return strategy


@torch.no_grad()
def outputs(model: nn.Module, images: Tensor, device: torch.device | str, size: int = 256) -> Tensor:
    """A model's outputs (n, K) in evaluation mode, on the CPU; the model stays in the mode it was in."""
    training = model.training
    model.eval()
    found = torch.cat([model(part.to(device)).cpu().float() for part in images.split(size)])
    model.train(training)
    return found


def _has_task_labels(layout: Any) -> bool:
    aware = avalanche("avalanche.benchmarks.utils.classification_dataset").TaskAwareClassificationDataset
    return layout is not None and issubclass(layout, aware)


def _refuse_unfit(agent: Any) -> None:
    """What cannot work with any storage policy, or only seems to."""
    if isinstance(agent, _training.ICaRL):
        raise InputError(
            "ICaRL keeps its own exemplars and never reads a storage policy; use Naive with ReplayPlugin, ER_ACE, DER or GDumb."
        )
    if isinstance(agent, _training.DER):
        heads = avalanche("avalanche.models.dynamic_modules")
        if any(isinstance(m, heads.IncrementalClassifier | heads.MultiHeadClassifier) for m in agent.model.modules()):
            raise InputError("DER compares stored outputs with later ones, and this model's head grows; use a head for all classes.")


def _refuse_no_replay(agent: Any, items: int, exp: Any) -> None:
    """ER_ACE and DER make their replay loader only for a buffer of at least a batch, and otherwise train on without a word."""
    name = type(agent).__name__
    starts = isinstance(agent, _training.DER) or (isinstance(agent, _training.ER_ACE) and exp.current_experience > 0)
    if starts and items < agent.batch_size_mem:
        raise InputError(
            f"{name} would replay nothing: the buffer holds {items} items and batch_size_mem is {agent.batch_size_mem}, and it makes "
            f"full batches only; give {name} batch_size_mem={items} or less, or the buffer more items."
        )
