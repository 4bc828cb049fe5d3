"""A file of another party, by its content: what `torch.save` wrote, or numpy's ``.npz`` and ``.npy``."""

import math
import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError, clipped
from distill.foreign.torch_files import MAX_FILE_BYTES, MAX_RECORDS, read_torch

MAX_RATIO = 100  # of stated bytes to the file's: images compress to a half, a bomb to a thousandth
SMALL_BYTES = 64 << 20  # stated bytes that are read whatever the ratio is
_NPY = b"\x93NUMPY"
_LEGACY = bytes.fromhex("80028a0a6cfc9c46f9206aa850192e")  # torch.save before version 1.6


def read_file(path: Path) -> object:
    """The content: tensors, arrays, lists, dicts, numbers, texts. Raises `InputError`, one line that names the file."""
    try:
        if not path.is_file():
            raise InputError(f"{path}: is not a file; give the files that the authors' script saved.")
        if (size := path.stat().st_size) > MAX_FILE_BYTES:
            raise InputError(f"{path}: {size} bytes; allowed: at most {MAX_FILE_BYTES}.")
        with path.open("rb") as file:
            start = file.read(16)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    if start.startswith(b"PK"):
        return read_npz(path) if _is_npz(path) else read_torch(path)
    if start.startswith(_NPY):
        with path.open("rb") as file:
            return _array(file, size, str(path))
    if start.startswith(_LEGACY):
        raise InputError(f"{path}: was saved by torch before version 1.6; load it where you trust it and save it again with torch.save.")
    if start[:1] == b"\x80":
        raise InputError(f"{path}: is a pickle, which can execute anything and is not read; save tensors with torch.save, or an .npz.")
    raise InputError(f"{path}: is no file of torch.save and no .npz or .npy; allowed: these.")


def read_npz(path: Path) -> dict[str, NDArray[np.generic]]:
    """The arrays of an ``.npz`` by name; numbers and texts only, and no more bytes than `MAX_RATIO` times the file's."""
    try:
        size, arrays = path.stat().st_size, dict[str, NDArray[np.generic]]()
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if len(entries) > MAX_RECORDS or total > min(MAX_FILE_BYTES, max(SMALL_BYTES, MAX_RATIO * size)):
                raise InputError(f"{path}: its {len(entries)} arrays claim {total} bytes in a file of {size}; it is not unpacked.")
            for entry in entries:
                with archive.open(entry) as file:
                    arrays[entry.filename.removesuffix(".npy")] = _array(file, entry.file_size, f"{path}: {clipped(entry.filename)}")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, RuntimeError, zlib.error) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {clipped(error)}).") from None
    return arrays


def _is_npz(path: Path) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(".npy") for name in archive.namelist()[:MAX_RECORDS])
    except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError):
        return False


def _array(file: IO[bytes], size: int, what: str) -> NDArray[np.generic]:
    """One array of numpy's format, whose stated shape must take the ``size`` bytes that there are."""
    try:
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        shape, by_column, dtype = read(file)
    except (ValueError, TypeError, KeyError, EOFError, SyntaxError, RecursionError, MemoryError) as error:
        raise InputError(f"{what}: damaged, or no array of numpy ({type(error).__name__}: {clipped(error)}).") from None
    if dtype.hasobject or dtype.kind not in "biufU" or not dtype.itemsize:
        raise InputError(f"{what}: an array of {clipped(dtype)}; allowed: numbers and texts.")
    body = file.read(size)
    if not body or any(n < 0 for n in shape) or math.prod(shape) * dtype.itemsize != len(body):
        raise InputError(f"{what}: claims {clipped(dtype)} of shape {clipped(shape)} and has {len(body)} bytes.")
    array: NDArray[np.generic] = np.frombuffer(body, dtype).reshape(shape, order="F" if by_column else "C").copy()
    return array
