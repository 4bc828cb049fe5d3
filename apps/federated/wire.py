"""What goes over the wire: condensed sets and weights as named arrays in numpy's file format, and their check on arrival.

Everything that arrives is hostile until it has passed here: no pickle, no zip, no size is believed before the bytes are there. Each refusal
is an `InputError` of one line.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from distill import quantise
from distill.condensed import CondensedSet, Provenance
from distill.decode import Decode
from distill.errors import InputError, clipped
from distill.labels import DEFAULT_KIND, LABEL_KINDS
from distill.spec import DataSpec

Pixels = Literal["uint8", "float16", "float32"]
Arrays = dict[str, NDArray[np.generic]]

# Synthetic pixels may leave the range of real ones, by this many times its length on each side.
OVERSHOOT = 4.0
MAX_WEIGHT = 1e6
# What names, headers and small facts of a message may take beside its arrays.
ROOM_BYTES = 1 << 16
_HEADER = re.compile(
    rb"\{'descr': '([<|][a-z][0-9]{1,2})', 'fortran_order': False, 'shape': \(((?:[0-9]{1,12}, ?)*(?:[0-9]{1,12})?)\), \} *\n"
)
_DTYPES = {b"|u1": "uint8", b"<u2": "uint16", b"<i4": "int32", b"<i8": "int64", b"<f2": "float16", b"<f4": "float32"}
_COMPACT = {"uint8": 1 << 8, "uint16": 1 << 16, "int32": 1 << 31}


@dataclass(frozen=True)
class Limits:
    """What the server asked for: labels in ``classes``, at most ``per_class`` images of each, pixels as ``pixels``.

    ``form`` is how images are stored (None: plainly), which both sides know from the run's settings, so that nothing in a message names it.
    """

    spec: DataSpec
    classes: tuple[int, ...]
    per_class: int
    pixels: Pixels = "uint8"
    form: Decode | None = None

    @property
    def row_shape(self) -> tuple[int, ...]:
        """Shape of one stored image."""
        return self.spec.shape if self.form is None else self.form.stored_shape(self.spec)


def upload_bytes(limits: Limits) -> int:
    """The most bytes that the arrays of an honest upload can have, with room for names and headers."""
    count, pixels = limits.per_class * len(limits.classes), math.prod(limits.row_shape)
    return count * (pixels * np.dtype(limits.pixels).itemsize + 2 * limits.spec.num_classes + 8) + 8 * limits.spec.channels + ROOM_BYTES


def parse_npy(data: object, what: str) -> NDArray[np.number]:
    """A plain little-endian, C-ordered array from the bytes that ``numpy.save`` makes; a read-only view of them, nothing is allocated."""
    if not isinstance(data, bytes) or data[:8] != b"\x93NUMPY\x01\x00" or len(data) < 10:
        raise InputError(f"{what}: is not a plain numpy array; allowed: the bytes of numpy.save, version 1.0.")
    length = int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data, 10, 10 + length)
    if header is None or header[1] not in _DTYPES:
        raise InputError(f"{what}: has an array header that is not allowed; allowed: {', '.join(_DTYPES.values())}, C order.")
    dtype, shape, body = (
        np.dtype(header[1].decode()),
        tuple(int(n) for n in header[2].replace(b" ", b"").split(b",") if n),
        len(data) - 10 - length,
    )
    size = dtype.itemsize
    for side in shape:
        size *= side
    if len(shape) > 8 or size != body:
        raise InputError(f"{what}: says {dtype} {clipped(shape)} and holds {body} bytes; allowed: exactly as many as it says.")
    return np.frombuffer(data, dtype, offset=10 + length).reshape(shape)


# Condensed sets


def encode(condensed: CondensedSet, pixels: Pixels = "uint8") -> Arrays:
    """``images`` as ``pixels`` (uint8 with a ``grid`` (C, 2) of low and step), ``labels`` in the smallest type (float16 when soft)."""
    if condensed.whitening is not None:
        raise InputError("whitened images cannot be uploaded: their space is this client's own; use data without zca.")
    if condensed.label_kind != DEFAULT_KIND:
        raise InputError(f"labels of kind {condensed.label_kind!r} cannot be uploaded; allowed: class numbers or probabilities.")
    if condensed.views is not None:
        raise InputError("stored views cannot be uploaded; leave them out: dataclasses.replace(set, views=None).")
    if condensed.decode is not None and not condensed.decode.pixels and pixels == "uint8":
        raise InputError(f'{condensed.decode.kind} rows are no pixels and cannot be uploaded as uint8; take pixels = "float16".')
    images = condensed.images.detach().cpu()
    arrays: Arrays = {}
    if pixels == "uint8":
        grid = quantise.grid_of(images, torch.float32)
        arrays |= {"images": quantise.encode(images, grid).numpy(), "grid": grid.numpy()}
    else:
        arrays["images"] = images.numpy().astype(pixels)
    labels = condensed.labels.cpu().numpy()
    if labels.dtype.kind == "f":
        arrays["labels"] = labels.astype(np.float16)
    else:
        arrays["labels"] = labels.astype(next(name for name, end in _COMPACT.items() if condensed.spec.num_classes <= end))
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def decode(parts: Mapping[str, bytes], limits: Limits) -> CondensedSet:
    """The condensed set in an upload, or `InputError`."""
    spec, wanted = limits.spec, {"images", "labels"} | ({"grid"} if limits.pixels == "uint8" else set())
    if len(parts) > 8 or set(parts) != wanted:
        raise InputError(f"the upload holds the arrays {clipped(sorted(map(str, parts))[:8])}; allowed: {', '.join(sorted(wanted))}.")
    most = limits.per_class * len(limits.classes)
    raw, labels = parse_npy(parts["images"], "images"), parse_npy(parts["labels"], "labels")
    if str(raw.dtype) != limits.pixels or raw.shape[1:] != limits.row_shape or raw.ndim != len(limits.row_shape) + 1:
        shape = ", ".join(map(str, limits.row_shape))
        raise InputError(f"images are {raw.dtype} {clipped(raw.shape)}; allowed: {limits.pixels} of shape (N, {shape}).")
    if not 1 <= len(raw) <= most:
        raise InputError(f"{len(raw)} images; allowed: 1 to {most}, as {limits.per_class} a class were asked for.")
    if limits.pixels == "uint8":
        grid = parse_npy(parts["grid"], "grid")
        if grid.dtype != np.float32 or grid.shape != (spec.channels, 2) or not np.isfinite(grid).all() or not (grid[:, 1] > 0).all():
            raise InputError(f"grid is {grid.dtype} {clipped(grid.shape)}; allowed: float32 ({spec.channels}, 2), finite, steps above 0.")
        images = quantise.decode(torch.tensor(raw), torch.tensor(grid)).numpy()
    else:
        images = raw.astype(np.float32)
    if not np.isfinite(images).all():
        raise InputError("images hold values that are not finite; allowed: finite numbers only.")
    below, above = pixel_range(spec)
    seen = images if limits.form is None else limits.form.decoded(torch.from_numpy(images), spec).numpy()
    if not ((seen >= below[:, None, None] - 1e-3) & (seen <= above[:, None, None] + 1e-3)).all():
        raise InputError(f"images lie in {seen.min():.3g}..{seen.max():.3g}; allowed: {below.min():.3g}..{above.max():.3g} (normalised).")
    hard = _labels(labels, len(images), spec.num_classes)
    counts = np.bincount(hard.argmax(1) if hard.ndim == 2 else hard, minlength=spec.num_classes)
    foreign = [int(c) for c in np.flatnonzero(counts) if int(c) not in limits.classes]
    if foreign:
        raise InputError(f"images of class {foreign[0]}; allowed: the classes that were asked for, {clipped(list(limits.classes))}.")
    if counts.max() > limits.per_class:
        raise InputError(f"{counts.max()} images of class {counts.argmax()}; allowed: {limits.per_class} a class.")
    made = torch.from_numpy(np.array(hard))
    return CondensedSet(torch.from_numpy(images), made, spec, provenance=Provenance("upload"), decode=limits.form)


def _labels(labels: NDArray[np.generic], count: int, classes: int) -> NDArray[np.generic]:
    """int64 (N,), or float32 (N, K) soft labels that are probabilities."""
    if labels.dtype == np.float16:
        if labels.shape != (count, classes):
            raise InputError(f"soft labels have the shape {clipped(labels.shape)}; allowed: ({count}, {classes}).")
        soft = labels.astype(np.float32)
        if not np.isfinite(soft).all() or LABEL_KINDS[DEFAULT_KIND].fault(torch.from_numpy(soft)):
            raise InputError("soft labels are no probabilities; allowed: numbers of at least 0 that add up to 1 for each image.")
        return soft
    if labels.dtype.kind not in "iu" or labels.shape != (count,):
        raise InputError(f"labels are {labels.dtype} {clipped(labels.shape)}; allowed: whole numbers of shape ({count},).")
    if labels.min() < 0 or labels.max() >= classes:
        raise InputError(f"labels lie in {labels.min()}..{labels.max()}; allowed: 0..{classes - 1}.")
    return labels.astype(np.int64)


def pixel_range(spec: DataSpec) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """(lowest, highest) normalised value per channel (C,) that an upload may hold."""
    mean, std = np.array(spec.mean, np.float32), np.array(spec.std, np.float32)
    return (-OVERSHOOT - mean) / std, (1 + OVERSHOOT - mean) / std


def within_range(condensed: CondensedSet) -> Tensor:
    """The set's images, clipped to what the server accepts; rows that are no pixels stay as they are."""
    if condensed.decode is not None and not condensed.decode.pixels:
        return condensed.images
    low, high = (torch.from_numpy(v).to(condensed.images.device).view(1, -1, 1, 1) for v in pixel_range(condensed.spec))
    return condensed.images.clamp(low, high)


# Weights


def encode_weights(weights: Mapping[str, Tensor]) -> Arrays:
    """A state dict as arrays of the same names."""
    # np.ascontiguousarray would make a scalar (BatchNorm's counter) one-dimensional.
    return {name: np.array(value.detach().cpu().numpy(), order="C") for name, value in weights.items()}


def decode_weights(parts: Mapping[str, bytes], like: Mapping[str, Tensor], what: str = "weights") -> dict[str, Tensor]:
    """A state dict with exactly the names, types and shapes of ``like``, finite and of sane size, or `InputError`."""
    if set(parts) != set(like):
        odd = sorted(str(name)[:40] for name in set(parts) ^ set(like))
        raise InputError(f"{what}: the arrays differ from the network's in {clipped(odd[:3])}; allowed: the network's own names.")
    found = {}
    for name, mine in like.items():
        array = parse_npy(parts[name], f"{what} {name}")
        if array.dtype != mine.detach().cpu().numpy().dtype or array.shape != tuple(mine.shape):
            raise InputError(f"{what} {name}: {array.dtype} {clipped(array.shape)}; allowed: {mine.dtype} {tuple(mine.shape)}.")
        if array.dtype.kind == "f" and not (np.abs(array) <= MAX_WEIGHT).all():  # not-a-number fails it too
            raise InputError(f"{what} {name}: values that are not finite or above {MAX_WEIGHT:g}; allowed: finite weights.")
        found[name] = torch.from_numpy(np.array(array))
    return found
