"""What is in a ``.pt`` file of another party: tensors and plain numbers, or one line that says what else it holds.

Three limits apply before torch reads the file. The archive is not compressed and states no more bytes than the file has. Its pickle holds
only the instructions and names below, which `torch.save` writes for tensors, numbers and the numpy scalars of VICO's ``accs_all_exps``.
Every storage has the bytes that the pickle states for it, which torch checks only since version 2.10. What is left goes to
`torch.load` with ``weights_only=True``. No function of numpy runs: scalars are decoded by `_scalar`.
"""

import io
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from distill.errors import InputError, clipped

MAX_FILE_BYTES = 4 << 30
MAX_PICKLE_BYTES = 1 << 20  # of the structure, without the tensors' values
MAX_TEXT = 1024  # characters of one name or number in it
MAX_RECORDS = 10_000

_ITEM_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": size for name, size in _ITEM_BYTES.items()}
# A scalar's function moved with numpy 2, and files have the name of their time.
_SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
_GLOBALS = {
    *_STORAGES,
    *_SCALARS,
    "numpy.dtype",
    "_codecs.encode",
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
}
_PUTS = ("BINPUT", "LONG_BINPUT")
_GETS = ("BINGET", "LONG_BINGET")
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
_OPCODES = {
    *(*_PUTS, *_GETS, *_NUMBERS, "BINFLOAT", "BINUNICODE", "GLOBAL", "REDUCE", "BUILD", "BINPERSID", "PROTO", "STOP", "MARK", "NONE"),
    *("NEWTRUE", "NEWFALSE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"),
    *("APPEND", "APPENDS", "SETITEM", "SETITEMS"),
}
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
_ONLY = "allowed: tensors, lists, dicts and plain numbers; load it where you trust it and save only these."


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
            _check(pickled, {name: len(data) for name, data in records.items()})
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


def _check(pickled: bytes, sizes: Mapping[str, int]) -> None:
    """Raises `InputError` unless the pickle has only known instructions and names, and each storage the bytes that it states.

    Args:
        pickled: the structure; it is parsed, not executed.
        sizes: bytes of each record of the archive.
    """
    recent: list[tuple[str, object]] = []  # what was pushed, the newest last
    memo: dict[object, tuple[str, object]] = {}
    for opcode, value, _ in pickletools.genops(pickled):
        name = opcode.name
        if name not in _OPCODES:
            raise InputError(f"its pickle has the instruction {name}, which torch.save does not write for tensors; {_ONLY}")
        if name in _PUTS:
            memo[value] = recent[-1]
            continue
        if name == "GLOBAL":
            value = str(value).replace(" ", ".")
            if value not in _GLOBALS:
                raise InputError(f"holds {clipped(value)}, which was not executed; {_ONLY}")
        elif name in ("BINUNICODE", "LONG1") and len(str(value)) > MAX_TEXT:
            raise InputError(f"holds a text or number of {len(str(value))} characters; allowed: at most {MAX_TEXT}.")
        elif name == "BINPERSID":
            _check_storage(recent[-7:], sizes)
        recent.append(memo[value] if name in _GETS else (name, value))
        del recent[:-8]


def _check_storage(pushed: list[tuple[str, object]], sizes: Mapping[str, int]) -> None:
    """What stands before a storage: mark, "storage", type, record, device, number of elements, tuple."""
    kinds = [name for name, _ in pushed]
    values = [value for _, value in pushed]
    literal = kinds[:5] == ["MARK", "BINUNICODE", "GLOBAL", "BINUNICODE", "BINUNICODE"] and kinds[-1] == "TUPLE"
    if not literal or kinds[5] not in _NUMBERS or values[1] != "storage" or values[2] not in _STORAGES:
        raise InputError("a tensor's storage is described in a way that torch.save does not write.")
    record, count = f"data/{values[3]}", values[5]
    assert isinstance(count, int)
    if (claimed := count * _STORAGES[str(values[2])]) != sizes.get(record):
        raise InputError(f"a tensor claims {claimed} bytes, and its record {clipped(record)!r} has {sizes.get(record, 'none')}.")


def _loaded(path: Path, records: Mapping[str, bytes]) -> object:
    """The records through `torch.load`, as an archive that is written anew: every reader of it finds the same entries."""
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as whole:
        for name, data in records.items():
            whole.writestr(f"archive/{name}", data)
    archive.seek(0)
    known: list[Callable[..., object] | tuple[Callable[..., object], str]] = [
        (_Dtype, "numpy.dtype"),
        *((_scalar, name) for name in _SCALARS),
    ]
    try:
        with warnings.catch_warnings(), torch.serialization.safe_globals(known):
            warnings.simplefilter("ignore")
            content: object = torch.load(archive, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged pickles raise many types
        reason = clipped(" ".join(str(error).split()))
        raise InputError(f"{path}: torch.load refuses it ({type(error).__name__}: {reason}); {_ONLY}") from None
    return content
