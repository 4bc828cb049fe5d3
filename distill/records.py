"""Files of a run: complete or absent, JSON lines, and facts about the machine."""

import contextlib
import errno
import importlib.metadata
import json
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import torch

from distill.devices import has_bfloat16
from distill.errors import CannotWrite as CannotWrite
from distill.errors import InputError

NO_ROOM = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC), errno.EFBIG)
Json: TypeAlias = bool | int | float | str | list["Json"] | dict[str, "Json"] | None  # what a JSON file holds
PACKAGES = ("torch", "torchvision", "numpy", "scipy", "scikit-learn", "safetensors", "distill-apps")


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an `OSError` inside the block into `CannotWrite`, one line with the path and what to do."""
    try:
        yield
    except OSError as error:
        do = "make room there" if error.errno in NO_ROOM else "give a place that can be written"
        raise CannotWrite(f"{path}: cannot be written ({error.strerror or error}); {do}.") from None


def write_whole(path: Path, data: bytes | str) -> None:
    """Write a file completely or not at all: to a temporary file, flushed to the disk, then renamed.

    Missing parent folders are created. Raises `CannotWrite` if the disk is full, the path cannot be written, or it is a folder; an existing
    file is then unchanged.
    """
    if not path.name or path.is_dir():  # "." and "/" have no name
        raise CannotWrite(f"{path}: is a folder; give a file's name.")
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                file.write(data.encode() if isinstance(data, str) else data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        finally:
            with contextlib.suppress(OSError):  # it may never have been created
                part.unlink(missing_ok=True)


def write_json(path: Path, value: object) -> None:
    """Write JSON with keys in the given order, and null for numbers that are not finite."""
    write_whole(path, json.dumps(_plain(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """The parsed file. Raises `InputError` if it is missing or damaged."""
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: is not valid JSON ({error}).") from None


def append_line(path: Path, event: Mapping[str, object]) -> None:
    """Append one JSON object as a line; the file must have a single writer. Raises `CannotWrite` as `write_whole` does."""
    line = json.dumps(_plain(event), allow_nan=False) + "\n"
    with writing(path), path.open("ab+") as file:
        _cut_to_whole_lines(file)
        file.write(line.encode())


def _cut_to_whole_lines(file: BinaryIO) -> None:
    """Remove an incomplete last line (the process was killed, or the disk full), which the next line would be joined to."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - 65536)
        file.seek(start)
        block = file.read(end - start)
        if (place := block.rfind(b"\n")) >= 0:
            end = start + place + 1
            break
        end = start
    if end < file.seek(0, os.SEEK_END):
        file.truncate(end)


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, without an incomplete last line."""
    if not path.exists():
        return
    with path.open() as file:
        for line in file:
            with contextlib.suppress(ValueError):
                value = json.loads(line)
                if line.endswith("\n") and isinstance(value, dict):
                    yield value


def write_json_lines(path: Path, events: Sequence[Mapping[str, object]]) -> None:
    """Replace a JSON-lines file, completely or not at all."""
    write_whole(path, "".join(json.dumps(_plain(event), allow_nan=False) + "\n" for event in events))


def peak_memory_bytes() -> int:
    """Largest resident size of this process, or of one of its worker processes that have ended, in bytes."""
    try:
        import resource
    except ImportError:  # Windows, where the sizes of ended workers are unknown
        import psutil

        memory = psutil.Process().memory_info()
        return int(getattr(memory, "peak_wset", memory.rss))
    unit = 1 if sys.platform == "darwin" else 1024
    # getrusage includes what the parent held when it started a process, which is too much for this one but right for workers.
    workers = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * unit
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return max(workers, int(line.split()[1]) * 1024)
    return max(workers, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)


def environment(device: str) -> dict[str, Json]:
    """Versions and hardware, to interpret results later."""
    cuda = torch.cuda.get_device_name(0) if device.startswith("cuda") else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": os.cpu_count() or 1,
        "torch_threads": torch.get_num_threads(),
        "bfloat16": has_bfloat16(device.partition(":")[0]),
        "device": device,
        "gpu": cuda,
        "packages": dict(versions()),
    }


def versions() -> dict[str, str]:
    """Versions of the packages that numbers depend on."""
    installed = {}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, torch.Tensor):
        return _plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
