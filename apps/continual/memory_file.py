"""A memory's file: safetensors with a JSON header, checked as if it came from anybody; never pickle. And a folder of them."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Annotated

import pydantic
import safetensors
import safetensors.torch
import torch
from pydantic import Field
from torch import Tensor

from apps.continual.exemplars import Exemplars
from apps.continual.form import Form
from apps.continual.memory import Memory
from apps.continual.memory_config import MemoryConfig
from apps.continual.online import Queue
from distill.configure import config_class
from distill.decode import as_text
from distill.errors import InputError, clipped
from distill.records import write_whole

FORMAT = 2  # 1 knew neither a queue nor images that were kept as they came; it stays readable
DECODED = 3  # of a memory with a decode, which earlier versions do not know
MAX_FILE_BYTES = 1 << 32
WAITING = ("queue.images", "queue.labels", "queue.tasks")


@config_class
class _Group:
    label: Annotated[int, Field(ge=0)]
    task: int
    experience: Annotated[int, Field(ge=0)]
    seen: Annotated[int, Field(ge=1)]
    grid: tuple[tuple[float, float], ...] | None
    kept: bool = False


@config_class
class _Queue:
    size: Annotated[int, Field(ge=1)]
    every: Annotated[int, Field(ge=1)]
    calls: Annotated[int, Field(ge=0)]
    waiting: bool


@config_class
class _Header:
    format: int
    config: MemoryConfig
    experiences: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    history: str
    logit_values: Annotated[int, Field(ge=0)]
    groups: tuple[_Group, ...]
    queue: _Queue | None = None
    shape: tuple[int, int, int] | None = None  # of a decoded image; what is stored does not show it


def save(memory: Memory, path: str | Path, queue: Queue | None = None) -> None:
    """One safetensors file; with an online form's ``queue`` also the real images that wait in it, and its clock.

    `InputError` for a memory whose network is a function: a file cannot hold it.
    """
    write_whole(Path(path), saved_as(memory, queue))


def saved_as(memory: Memory, queue: Queue | None = None) -> bytes:
    """The file's content: tensors ``values.<i>`` and ``logits.<i>`` of each group, ``queue.*``, and a JSON header under ``memory``."""
    if callable(memory.config.settings.get("network")):
        raise InputError("the memory's network is a function, which a file cannot hold; give a network by its name.")
    waiting = None if queue is None else queue.waiting
    header: dict[str, object] = {
        "format": FORMAT if memory.config.decode is None else DECODED,
        "config": dataclasses.asdict(memory.config),
        "experiences": memory.experiences,
        "seconds": memory.seconds,
        "history": memory.history,
        "logit_values": memory.logit_values,
        "groups": [
            {name: getattr(group, name) for name in [field.name for field in dataclasses.fields(_Group)]} for group in memory.groups
        ],
    }
    if memory.config.decode is not None and memory.groups:
        header["shape"] = memory.groups[0].form.shape
    if queue is not None:
        header["queue"] = {"size": queue.size, "every": queue.every, "calls": queue.calls, "waiting": waiting is not None}
    tensors = {f"values.{i}": group.values.contiguous() for i, group in enumerate(memory.groups)}
    tensors |= {f"logits.{i}": group.logits.contiguous() for i, group in enumerate(memory.groups) if group.logits is not None}
    tensors |= {name: tensor.contiguous() for name, tensor in zip(WAITING, waiting or (), strict=waiting is not None)}
    return safetensors.torch.save(tensors, {"memory": json.dumps(header, allow_nan=False, sort_keys=True)})


def load(path: str | Path) -> Memory:
    """The memory in a file; `InputError`, one line, when it cannot be read or is not what it says, or real images wait in its queue."""
    memory, queue = load_online(path)
    if queue is not None and queue.waiting is not None:
        count = len(queue.waiting[0])
        raise InputError(f"{path}: {count} images wait in its queue and would be lost; load it into an OnlineCondensedBuffer.")
    return memory


def load_online(path: str | Path) -> tuple[Memory, Queue | None]:
    """The memory in a file, and the queue that was saved with it, if there was one. Raises `InputError` as `load` does."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {size} bytes; allowed: at most {MAX_FILE_BYTES}.")
        with safetensors.safe_open(path, framework="pt") as file:
            header = pydantic.TypeAdapter(_Header).validate_json((file.metadata() or {})["memory"])
            names, stored = _names(header), set(file.keys())
            if not names <= stored or not stored - names <= {f"logits.{i}" for i in range(len(header.groups))}:
                raise InputError(f"{path}: holds the tensors {clipped(sorted(stored))}; its header says {len(header.groups)} groups.")
            tensors = {name: file.get_tensor(name) for name in stored}
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80] or "it"
        raise InputError(f"{path}: the header does not fit: {where}: {first['msg'][:120]}.") from None
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is not a memory's file ({clipped(error, 120)}).") from None
    if header.format not in (1, FORMAT, DECODED):
        raise InputError(f"{path}: format {header.format}; allowed: 1 to {DECODED} (made by another version of this toolkit).")
    memory = Memory(header.config)
    memory.experiences, memory.seconds, memory.history = header.experiences, header.seconds, header.history
    memory.logit_values = header.logit_values
    try:
        form = _form(header, tensors)
        memory.groups = [
            Exemplars(g.label, g.task, g.experience, g.seen, tensors[f"values.{i}"], form, g.grid, tensors.get(f"logits.{i}"), g.kept)
            for i, g in enumerate(header.groups)
        ]
        queue = _queue(header.queue, memory, tensors)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if any(not bool(group.images.isfinite().all()) for group in memory.groups):
        raise InputError(f"{path}: holds values that are not finite.")
    return memory, queue


def _names(header: _Header) -> set[str]:
    """The tensors that a file must hold."""
    waiting = WAITING if header.queue is not None and header.queue.waiting else ()
    return {*(f"values.{i}" for i in range(len(header.groups))), *waiting}


def _form(header: _Header, tensors: dict[str, Tensor]) -> Form:
    """How the file's images are stored. Raises `InputError` where header and tensors disagree, or what decodes is too large."""
    decode, values = header.config.decode, [tensors[f"values.{i}"] for i in range(len(header.groups))]
    if (decode is None) == (header.format == DECODED) or (header.shape is not None) != (decode is not None and bool(values)):
        raise InputError(f"format {header.format} with decode {as_text(decode)} and image shape {header.shape}, which do not go together.")
    if header.shape is None:
        return Form(tuple(values[0].shape[1:]) if values else ())
    form = Form(header.shape, decode)
    size = 4 * math.prod(header.shape) * sum(len(part) for part in values if part.ndim)
    if size > MAX_FILE_BYTES:
        raise InputError(f"decodes to {size} bytes; allowed: at most {MAX_FILE_BYTES}.")
    return form


def _queue(header: _Queue | None, memory: Memory, tensors: dict[str, Tensor]) -> Queue | None:
    if header is None:
        return None
    queue = Queue(header.size, header.every)
    queue.calls = header.calls
    if header.waiting:
        images, labels, tasks = (tensors[name] for name in WAITING)
        memory.checked(images, labels, tasks)
        if images.dtype != torch.float32 or len(images) >= header.size or not bool(images.isfinite().all()):
            raise InputError(
                f"its queue of {header.size} holds {clipped(images.dtype)} {tuple(images.shape)}; allowed: finite float32, fewer."
            )
        queue.waiting = images, labels, tasks
    if queue.calls >= queue.every:
        raise InputError(f"its queue has waited for {queue.calls} calls and is handed out every {queue.every}.")
    return queue


# A folder that has a memory's file for each experience: memory-0, memory-1, ... They stay; nothing deletes them.


def observe(
    memory: Memory,
    images: Tensor,
    labels: Tensor,
    *,
    folder: Path,
    task: int | Tensor = 0,
    device: torch.device | str = "cpu",
    progress: bool | None = None,
) -> None:
    """`Memory.observe`, saved in ``folder`` after the experience; a run that is started again continues from the folder's files, to the
    same bits."""
    if not restored(memory, images, labels, folder=folder, task=task):
        memory.observe(images, labels, task=task, device=device, checkpoints=folder, progress=progress)
        save(memory, place(folder, memory.experiences - 1))


def place(folder: Path, experience: int) -> Path:
    """Where the memory after this experience (counted from 0) lies."""
    return folder / f"memory-{experience}.safetensors"


def last(folder: Path, finished: int | None = None) -> Path:
    """The file of the folder's latest experience, or of that after which ``finished`` are; `InputError` when it has none."""
    if finished is not None:
        if type(finished) is not int or finished < 1:
            raise InputError(
                f"finished is {clipped(finished)}; allowed: 1 or more experiences (before the first there is nothing to resume)."
            )
        if not place(folder, finished - 1).exists():
            raise InputError(f"{folder}: has no {place(folder, finished - 1).name}, the memory after {finished} experiences.")
        return place(folder, finished - 1)
    paths = {path: path.stem.partition("-")[2] for path in folder.glob("memory-*.safetensors")}
    numbered = {int(number): path for path, number in paths.items() if number.isdecimal()}
    if not numbered:
        raise InputError(f"{folder}: has no memory-<number>.safetensors; allowed: a memory's file, or the folder of a buffer.")
    return numbered[max(numbered)]


def refuse_again(memory: Memory, images: Tensor, labels: Tensor, *, task: int | Tensor, folder: Path) -> None:
    """`InputError` where this experience is the one that the memory, the folder's latest, has already: the model was saved before it."""
    count = memory.experiences
    if count > 1 and not place(folder, count - 2).exists():
        return  # deleted: it cannot be told
    before = load(place(folder, count - 2)) if count > 1 else Memory(memory.config)
    if memory.history_with(images, labels, memory.checked(images, labels, task), before.history) == memory.history:
        how = f"call resume(..., finished={count - 1}), with the model's number" if count > 1 else "start again"
        raise InputError(f"{folder}: the memory after {count} experiences has this one already, and the model has not; {how}.")


def restored(memory: Memory, images: Tensor, labels: Tensor, *, folder: Path, task: int | Tensor = 0) -> bool:
    """Put in place what the folder has for the memory after this experience; False when it has nothing yet.

    Outputs (DER) belong to the run that trains, not to the file: a group that stayed as it was keeps them. Where finished experiences
    were skipped and this one is in the folder too, the files' outputs are taken. Otherwise `InputError` names how to continue.
    """
    tasks = memory.checked(images, labels, task)
    path = place(folder, memory.experiences)
    if not path.exists():
        return False
    earlier, skipped = load(path), False
    if earlier.history != memory.history_with(images, labels, tasks):
        other = [f.name for f in dataclasses.fields(MemoryConfig) if getattr(earlier.config, f.name) != getattr(memory.config, f.name)]
        start = f"{path}: belongs to a memory with other settings or another stream"
        if other:
            raise InputError(f"{start} (its {clipped(', '.join(other))} differ); give those, or delete it to start again.")
        saved = _after_skipping(memory, images, labels, tasks, folder) if not memory.experiences else None
        if saved is None:
            raise InputError(
                f"{start}; where finished experiences are skipped, take up the memory after them first: call "
                f"load('{clipped(last(folder), 200)}', like=experience); to start again, give an empty folder."
            )
        earlier, skipped = saved, True
    groups = {(group.experience, group.task, group.label): group for group in memory.groups}
    for number, group in enumerate(earlier.groups):
        before = groups.get((group.experience, group.task, group.label))
        if not skipped:
            same = before is not None and torch.equal(before.values, group.values)
            earlier.groups[number] = dataclasses.replace(group, logits=before.logits if before is not None and same else None)
    memory.groups, memory.experiences, memory.history, memory.seconds = (
        earlier.groups,
        earlier.experiences,
        earlier.history,
        earlier.seconds,
    )
    return True


def _after_skipping(memory: Memory, images: Tensor, labels: Tensor, tasks: Tensor, folder: Path) -> Memory | None:
    """The folder's memory after this experience, if there is one: its history is that of another file with the experience added."""
    number = 1
    while place(folder, number).exists():
        later = load(place(folder, number))
        if later.history == memory.history_with(images, labels, tasks, load(place(folder, number - 1)).history):
            return later if later.config == memory.config else None
        number += 1
    return None
