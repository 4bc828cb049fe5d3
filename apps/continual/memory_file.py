"""A memory's file: safetensors with a JSON header, checked as if it came from anybody; never pickle."""

import dataclasses
import json
from pathlib import Path
from typing import Annotated, Any

import pydantic
import safetensors
import safetensors.torch
from pydantic import Field

from apps.continual.exemplars import Exemplars
from apps.continual.memory import Memory, MemoryConfig
from distill.errors import InputError, clipped

FORMAT = 1
MAX_FILE_BYTES = 1 << 32
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class _Group:
    label: Annotated[int, Field(ge=0)]
    task: int
    experience: Annotated[int, Field(ge=0)]
    seen: Annotated[int, Field(ge=1)]
    grid: tuple[tuple[float, float], ...] | None


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class _Header:
    format: int
    config: MemoryConfig
    experiences: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0)]
    history: str
    logit_values: Annotated[int, Field(ge=0)]
    groups: tuple[_Group, ...]


def saved_as(memory: Memory) -> bytes:
    """The file's content: tensors ``values.<i>`` and ``logits.<i>`` of each group, and a JSON header under the key ``memory``."""
    header: dict[str, Any] = {
        "format": FORMAT,
        "config": dataclasses.asdict(memory.config),
        "experiences": memory.experiences,
        "seconds": memory.seconds,
        "history": memory.history,
        "logit_values": memory.logit_values,
        "groups": [{"label": g.label, "task": g.task, "experience": g.experience, "seen": g.seen, "grid": g.grid} for g in memory.groups],
    }
    tensors = {f"values.{i}": group.values.contiguous() for i, group in enumerate(memory.groups)}
    tensors |= {f"logits.{i}": group.logits.contiguous() for i, group in enumerate(memory.groups) if group.logits is not None}
    return safetensors.torch.save(tensors, {"memory": json.dumps(header, allow_nan=False, sort_keys=True)})


def load(path: str | Path) -> Memory:
    """The memory in a file; `InputError`, one line, when it cannot be read or is not what it says."""
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            raise InputError(f"{path}: {size} bytes; allowed: at most {MAX_FILE_BYTES}.")
        with safetensors.safe_open(path, framework="pt") as file:
            header = pydantic.TypeAdapter(_Header).validate_json((file.metadata() or {})["memory"])
            names = {f"values.{i}" for i in range(len(header.groups))}
            found = set(file.keys())
            if not names <= found or not found - names <= {f"logits.{i}" for i in range(len(header.groups))}:
                raise InputError(f"{path}: holds the tensors {clipped(sorted(found))}; its header says {len(header.groups)} groups.")
            tensors = {name: file.get_tensor(name) for name in found}
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80] or "it"
        raise InputError(f"{path}: the header does not fit: {where}: {first['msg'][:120]}.") from None
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is not a memory's file ({clipped(error, 120)}).") from None
    if header.format != FORMAT:
        raise InputError(f"{path}: format {header.format}; allowed: {FORMAT} (made by another version of this toolkit).")
    made = Memory(header.config)
    made.experiences, made.seconds, made.history = header.experiences, header.seconds, header.history
    made.logit_values = header.logit_values
    try:
        made.groups = [
            Exemplars(g.label, g.task, g.experience, g.seen, tensors[f"values.{i}"], g.grid, tensors.get(f"logits.{i}"))
            for i, g in enumerate(header.groups)
        ]
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    if any(not bool(group.images.isfinite().all()) for group in made.groups):
        raise InputError(f"{path}: holds values that are not finite.")
    if len({tuple(group.values.shape[1:]) for group in made.groups}) > 1:
        raise InputError(f"{path}: its groups have images of different shapes.")
    return made
