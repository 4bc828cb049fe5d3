"""What is in a ``.pt`` file of another party: tensors and plain numbers, or one line that says what else it holds.

Limits apply before torch reads the file. The archive is not compressed and states no more bytes than the file has. Its pickle holds only
what `torch.save` writes for tensors, numbers and the numpy scalars of VICO's ``accs_all_exps`` (`distill.foreign.pickles`): every storage
has the bytes that the pickle states for it, which torch checks only since version 2.10. What is left goes to `torch.load` with
``weights_only=True``. No function of numpy runs: scalars are decoded by `_scalar`.
"""

import io
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from distill.errors import InputError, clipped
from distill.foreign.pickles import ONLY, SCALARS, check_pickle

MAX_FILE_BYTES = 4 << 30
MAX_PICKLE_BYTES = 1 << 20  # of the structure, without the tensors' values
MAX_RECORDS = 10_000

_FORMATS = {
    "f8": "d",
    "f4": "f",
    "f2": "e",
    "i8": "q",
    "i4": "i",
    "i2": "h",
    "i1": "b",
    "u8": "Q",
    "u4": "I",
    "u2": "H",
    "u1": "B",
    "b1": "?",
}


class _Dtype:
    """Stands for ``numpy.dtype`` in a file: its code, for example "f8". The state that follows is not used; all are little-endian."""

    def __init__(self, code: str, *_: object) -> None:
        self.code = code

    def __setstate__(self, state: object) -> None:
        if not isinstance(state, tuple) or state[1:2] not in (("<",), ("|",)):
            raise ValueError("a numpy scalar that is not little-endian")


def _scalar(dtype: object, data: object) -> float | int | bool:
    """A numpy scalar as a plain number; raises `ValueError` for anything else."""
    if not isinstance(dtype, _Dtype) or dtype.code not in _FORMATS or not isinstance(data, bytes):
        raise ValueError("a numpy scalar that is not a number")
    (value,) = struct.unpack(f"<{_FORMATS[dtype.code]}", data)
    assert isinstance(value, float | int)
    return value


def read_torch(path: Path) -> object:
    """The content of a file that `torch.save` wrote (torch 1.6 or later): tensors, lists, tuples, dicts, numbers, texts.

    Tensors are on the CPU. Raises `InputError`, one line that names the file; nothing in the file is executed.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            records = _records(archive)
            pickled = records.pop("data.pkl", None)
            if pickled is None:
                raise InputError("holds no data.pkl; allowed: a file that torch.save wrote.")
            check_pickle(pickled, {name: len(data) for name, data in records.items()})
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError, ValueError, KeyError, IndexError) as error:
        raise InputError(f"{path}: damaged, or not a file of torch.save ({type(error).__name__}: {clipped(error)}).") from None
    return _loaded(path, {**records, "data.pkl": pickled})


def _records(archive: zipfile.ZipFile) -> dict[str, bytes]:
    """The entries that are read, by their names below the archive's folder; checked before any of them is."""
    entries = archive.infolist()
    size = Path(archive.filename or "").stat().st_size
    names = [entry.filename.partition("/")[2] for entry in entries]
    if len(entries) > MAX_RECORDS or len(set(names)) < len(names) or len({entry.filename.partition("/")[0] for entry in entries}) > 1:
        raise InputError(f"{len(entries)} entries that torch.save does not write so; allowed: one folder, each name once.")
    packed = [entry.filename for entry in entries if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1]
    if packed:
        raise InputError(f"entry {clipped(packed[0])!r} is compressed or encrypted, which torch.save never does.")
    if (total := sum(entry.file_size for entry in entries)) > size:
        raise InputError(f"its entries claim {total} bytes, and the file has {size}.")
    wanted = {
        name: entry
        for name, entry in zip(names, entries, strict=True)
        if name in ("data.pkl", "version", "byteorder") or name.startswith("data/")
    }
    if (structure := wanted.get("data.pkl")) is not None and structure.file_size > MAX_PICKLE_BYTES:
        raise InputError(f"its structure takes {structure.file_size} bytes; allowed: at most {MAX_PICKLE_BYTES}.")
    return {name: archive.read(entry) for name, entry in wanted.items()}


def _loaded(path: Path, records: Mapping[str, bytes]) -> object:
    """The records through `torch.load`, as an archive that is written anew: every reader of it finds the same entries."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as whole:
        for name, data in records.items():
            whole.writestr(f"archive/{name}", data)
    archive.seek(0)
    known: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (_Dtype, "numpy.dtype"),
        *((_scalar, name) for name in SCALARS),
    ]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")
            content: object = torch.load(archive, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise many types
        reason = clipped(" ".join(str(error).split()))
        raise InputError(f"{path}: torch.load refuses it ({type(error).__name__}: {reason}); {ONLY}") from None
    return content
