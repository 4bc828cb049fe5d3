"""The file of a condensed set: one safetensors file with a JSON header, read as if it came from anybody; never pickle."""

import dataclasses
import json
import math
import struct
from collections.abc import Sequence
from dataclasses import field
from typing import Annotated, Any

import pydantic
import safetensors.torch
import torch
from torch import Tensor

from distill.errors import InputError
from distill.spec import DataSpec

FORMAT = 1
FORMAT_WITH_KIND = 2  # with the key label_kind, for soft labels that are not probabilities
MAX_FILE_BYTES = 1 << 30  # of bytes that another party sent
# Of a file that the user names, and so of what `CondensedSet.save` writes: 200 classes x 200 images of 64 px are 2 GB.
MAX_OWN_BYTES = 16 << 30
MAX_HEADER_BYTES = 4 << 20
_DTYPES = {"F32": 4, "U8": 1, "I64": 8}


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class Provenance:
    """Where a set comes from: enough to make it again, and its privacy statement if there is one.

    ``dp`` is None, or what a private statistics object states about its releases; it is never invented or merged by the core.
    """

    method: str
    config: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    fingerprint: str | None = None
    versions: dict[str, str] = field(default_factory=dict)
    seconds: Annotated[float, pydantic.Field(ge=0)] = 0.0
    dp: dict[str, Any] | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class Header:
    format: int
    spec: DataSpec
    lr: float | None
    augmentation: str | None
    provenance: Provenance
    quantisation: tuple[tuple[float, float], ...] | None
    label_kind: str | None = None


def _check_layout(data: bytes, max_bytes: int) -> None:
    """Header length, tensor names, dtypes and sizes, before safetensors allocates anything."""
    if len(data) > max_bytes:
        raise InputError(f"{len(data)} bytes; allowed: at most {max_bytes}.")
    length = struct.unpack("<Q", data[:8])[0] if len(data) >= 8 else 0
    if not 2 <= length <= MAX_HEADER_BYTES or 8 + length > len(data):
        raise InputError("not a condensed set: no safetensors header, or the file is cut off.")
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")["distill"]
        names, body = sorted(header), len(data) - 8 - length
        if not isinstance(metadata, str) or names not in (["images", "labels"], ["images", "labels", "whitening_matrix", "whitening_mean"]):
            raise InputError(f"holds the tensors {str(names)[:80]}; allowed: images and labels, with a 'distill' header.")
        for name in names:
            dtype, shape = header[name]["dtype"], header[name]["shape"]
            if (
                dtype not in _DTYPES
                or len(shape) > 4
                or not all(type(n) is int and 0 <= n <= body for n in shape)
                or math.prod(shape) * _DTYPES[dtype] > body
            ):
                raise InputError(f"tensor {name} claims {str(dtype)[:20]} {str(shape)[:60]}, which the file cannot hold.")
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"not a condensed set: damaged header ({type(error).__name__}: {str(error)[:80]}).") from None


def parse(data: bytes, max_bytes: int = MAX_FILE_BYTES) -> tuple[dict[str, Tensor], Header]:
    """The file's tensors and header, checked before anything of the claimed size is allocated; `InputError` for anything else."""
    _check_layout(data, max_bytes)
    try:
        tensors = safetensors.torch.load(data)
        with_metadata = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]["distill"]
        header = pydantic.TypeAdapter(Header).validate_json(with_metadata)
        json.dumps(dataclasses.asdict(header.provenance), allow_nan=False)  # what was read can be saved again
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        where = ".".join(map(str, first["loc"]))[:80] or "it"
        raise InputError(
            f"the header does not fit: {where}: {first['msg'][:100]} (given {ascii(str(first['input'])[:60])[:80]})."
        ) from None
    except (safetensors.SafetensorError, ValueError, KeyError, TypeError, RecursionError, RuntimeError) as error:
        raise InputError(f"not a condensed set: {str(error)[:120]}.") from None
    if header.format not in (FORMAT, FORMAT_WITH_KIND):
        raise InputError(
            f"format {str(header.format)[:20]}; allowed: {FORMAT} or {FORMAT_WITH_KIND} (made by another version of this toolkit)."
        )
    if (header.format == FORMAT_WITH_KIND) != (header.label_kind is not None):
        raise InputError(f"format {header.format} and label_kind {header.label_kind!r:.40}; allowed: 2 with a label_kind, 1 without.")
    return tensors, header


def check_size(count: int, spec: DataSpec, label_values: int = 1, per_value: int = 4) -> None:
    """`InputError` where a set of ``count`` images would be larger than its file may be.

    ``label_values`` is the number of values of a label, ``per_value`` the bytes of a pixel's channel.
    """
    size = count * (math.prod(spec.shape) * per_value + 8 * label_values)
    if size > MAX_OWN_BYTES:
        raise InputError(
            f"{count} images of {' x '.join(map(str, spec.shape))} are a file of {size / 1e9:.3g} GB; allowed: at most "
            f"{MAX_OWN_BYTES / 1e9:.3g} GB. Ask for fewer images a class (ipc), or smaller images."
        )
    names = sum(len(json.dumps(name)) + 2 for name in spec.classes)
    if names > MAX_HEADER_BYTES // 2:
        raise InputError(f"the class names take {names} bytes; a set's file has room for {MAX_HEADER_BYTES // 2}: give shorter names.")


def loadable(data: bytes) -> bytes:
    """A file's bytes as they are; `InputError` where `CondensedSet.load` would refuse them for their size."""
    header = struct.unpack("<Q", data[:8])[0]
    for what, size, most in (
        ("file", len(data), MAX_OWN_BYTES),
        ("header, with the provenance and the class names,", header, MAX_HEADER_BYTES),
    ):
        if size > most:
            raise InputError(f"the set's {what} takes {size} bytes; allowed: at most {most}.")
    return data


def encode(images: Tensor, grid: Sequence[tuple[float, float]]) -> Tensor:
    """Images (N, C, H, W) as uint8 codes: the nearest of 256 values a channel, low + step * code."""
    low, step = _grid(images, grid)
    return ((images.double() - low) / step).round().clamp(0, 255).to(torch.uint8)


def decode(codes: Tensor, grid: Sequence[tuple[float, float]]) -> Tensor:
    """Codes back to images, float32."""
    low, step = _grid(codes, grid)
    return (low + step * codes.double()).float()


def _grid(like: Tensor, grid: Sequence[tuple[float, float]]) -> tuple[Tensor, Tensor]:
    pairs = torch.tensor(grid, dtype=torch.float64, device=like.device)
    return pairs[:, 0].view(1, -1, 1, 1), pairs[:, 1].view(1, -1, 1, 1)
