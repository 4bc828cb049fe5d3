"""The pickle inside a ``.pt`` of another party, followed instruction by instruction on a stack of descriptions; nothing is executed.

`torch.load` with ``weights_only=True`` builds only objects of known types, but builds them as often and as large as the pickle says: bytes
that are encoded a hundred times, tensors larger than their storage, keys that are tuples in tuples without end. What `torch.save` writes
for tensors, numbers and texts has none of these, and is all that is let through.
"""

import pickletools
from collections.abc import Callable, Mapping
from typing import NamedTuple

from distill.errors import InputError, clipped

MAX_TEXT = 1024  # characters of one name or number
MAX_SIDES = 8  # dimensions of a tensor
MAX_DEPTH = 32  # of tuples in tuples
_ITEM_BYTES = {
    "Double": 8, "Float": 4, "Half": 2, "BFloat16": 2, "Long": 8, "Int": 4, "Short": 2, "Char": 1, "Byte": 1, "Bool": 1
}  # fmt: skip
_STORAGES = {f"torch.{name}Storage": size for name, size in _ITEM_BYTES.items()}
# A scalar's function moved with numpy 2, and files have the name of their time.
SCALARS = ("numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar")
ONLY = "allowed: tensors, lists, dicts and plain numbers; load it where you trust it and save only these."
_NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1")
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_PLAIN = (*_NUMBERS, "BINFLOAT", "BINUNICODE", "NONE", "NEWTRUE", "NEWFALSE", "EMPTY_LIST", "EMPTY_DICT", "MARK")


class _Node(NamedTuple):
    """What lies on the stack: ``kind`` is the instruction or name that made it, ``value`` its number, text or name, ``items`` a tuple's
    entries, with the depth of its tuples in tuples as ``value``."""

    kind: str
    value: object = None
    items: tuple["_Node", ...] = ()


def check_pickle(pickled: bytes, sizes: Mapping[str, int]) -> None:
    """Raises `InputError` unless the pickle has only what `torch.save` writes for tensors, numbers, texts, lists, dicts and numpy scalars.

    Args:
        pickled: the structure; it is parsed, not executed.
        sizes: bytes of each record of the archive. A tensor lies inside its storage, and a storage has its record's bytes.
    """
    stack: list[_Node] = []
    memo: dict[object, _Node] = {}
    for opcode, value, _ in pickletools.genops(pickled):
        name = opcode.name
        if name in ("BINUNICODE", "LONG1") and len(str(value)) > MAX_TEXT:
            raise InputError(f"holds a text or number of {len(str(value))} characters; allowed: at most {MAX_TEXT}.")
        if name in ("PROTO", "STOP"):
            continue
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[value] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[value])
        elif name in _PLAIN:
            stack.append(_Node(name, value))
        elif name == "GLOBAL":
            stack.append(_Node(name, _known(str(value).replace(" ", "."))))
        elif name == "TUPLE":
            stack.append(_tuple(_marked(stack)))
        elif name in _TUPLES:
            stack.append(_tuple(_taken(stack, _TUPLES[name])))
        elif name in ("APPEND", "APPENDS"):
            _taken(stack, 1) if name == "APPEND" else _marked(stack)
            _wants(stack[-1].kind == "EMPTY_LIST", "a list")
        elif name in ("SETITEM", "SETITEMS"):
            pairs = _taken(stack, 2) if name == "SETITEM" else _marked(stack)
            _wants(stack[-1].kind in ("EMPTY_DICT", "collections.OrderedDict") and len(pairs) % 2 == 0, "a dict")
            # Python computes a key's hash, and a tuple's hash calls itself for each tuple in it.
            _wants(all(key.kind in ("BINUNICODE", *_NUMBERS) for key in pairs[::2]), "a dict's key, which is a text or a whole number,")
        elif name == "BINPERSID":
            stack.append(_storage(stack.pop(), sizes))
        elif name == "REDUCE":
            arguments, function = stack.pop(), stack.pop()
            _wants(function.kind == "GLOBAL" and arguments.kind == "TUPLE", "an object")
            _CALLS.get(str(function.value), _no_call)(arguments.items)
            stack.append(_Node(str(function.value)))
        elif name == "BUILD":
            stack.pop()
            _wants(stack[-1].kind == "numpy.dtype", "an object's state")
        else:
            raise InputError(f"its pickle has the instruction {name}, which torch.save does not write for tensors; {ONLY}")


def _wants(good: bool, what: str) -> None:
    if not good:
        raise InputError(f"{what} is described in a way that torch.save does not write; {ONLY}")


def _taken(stack: list[_Node], count: int) -> tuple[_Node, ...]:
    """The topmost entries, taken from the stack."""
    if count > len(stack):
        raise IndexError("too few entries on the pickle's stack")
    found = tuple(stack[len(stack) - count :])
    del stack[len(stack) - count :]
    return found


def _marked(stack: list[_Node]) -> tuple[_Node, ...]:
    """What was pushed since the last mark, taken from the stack with it."""
    place = max(number for number, node in enumerate(stack) if node.kind == "MARK")
    found = tuple(stack[place + 1 :])
    del stack[place:]
    return found


def _tuple(items: tuple[_Node, ...]) -> _Node:
    depth = 1 + max((node.value for node in items if node.kind == "TUPLE" and isinstance(node.value, int)), default=0)
    _wants(depth <= MAX_DEPTH, f"a tuple of more than {MAX_DEPTH} tuples in tuples")
    return _Node("TUPLE", depth, items)


def _known(name: str) -> str:
    if name not in _CALLS and name not in _STORAGES:
        raise InputError(f"holds {clipped(name)}, which was not executed; {ONLY}")
    return name


def _storage(described: _Node, sizes: Mapping[str, int]) -> _Node:
    """A storage: ("storage", type, record, device, number of elements)."""
    kinds, values = [node.kind for node in described.items], [node.value for node in described.items]
    literal = kinds[:4] == ["BINUNICODE", "GLOBAL", "BINUNICODE", "BINUNICODE"] and len(kinds) == 5 and kinds[4] in _NUMBERS
    if not literal or values[0] != "storage" or values[1] not in _STORAGES:
        raise InputError("a tensor's storage is described in a way that torch.save does not write.")
    record, count = f"data/{values[2]}", values[4]
    assert isinstance(count, int)
    if (claimed := count * _STORAGES[str(values[1])]) != sizes.get(record):
        raise InputError(f"a tensor claims {claimed} bytes, and its record {clipped(record)!r} has {sizes.get(record, 'none')}.")
    return _Node("STORAGE", count)


def _tensor(items: tuple[_Node, ...]) -> None:
    """(storage, offset, size, stride, requires_grad, hooks): inside its storage, without hooks."""
    kinds = [node.kind for node in items]
    plain = kinds[:1] == ["STORAGE"] and kinds[1:4] == [*_numbers(items[1:2]), "TUPLE", "TUPLE"] and len(items) == 6
    _wants(plain and kinds[5] == "collections.OrderedDict", "a tensor")
    size, stride = ([node.value for node in part.items if node.kind in _NUMBERS] for part in items[2:4])
    sides = [(n, step) for n, step in zip(size, stride, strict=True) if isinstance(n, int) and isinstance(step, int)]
    _wants(len(sides) == len(items[2].items) == len(items[3].items) <= MAX_SIDES, "a tensor's shape")
    offset, count = items[1].value, items[0].value
    assert isinstance(offset, int)
    assert isinstance(count, int)
    last = offset + sum((n - 1) * step for n, step in sides)
    empty = any(n == 0 for n, _ in sides)
    if min([offset, *(number for side in sides for number in side)]) < 0 or (not empty and last >= count):
        raise InputError(f"a tensor of shape {clipped(tuple(size))} does not lie in its storage of {count} values.")


def _numbers(items: tuple[_Node, ...]) -> list[str]:
    return [node.kind for node in items if node.kind in _NUMBERS]


def _encoded(items: tuple[_Node, ...]) -> None:
    """Bytes, which pickles of this protocol write as a text and its encoding."""
    _wants([node.kind for node in items] == ["BINUNICODE"] * 2 and items[1].value == "latin1", "a row of bytes")


def _empty(items: tuple[_Node, ...]) -> None:
    _wants(not items, "a dict")


def _any(items: tuple[_Node, ...]) -> None:
    """Checked when it is built: `distill.foreign.torch_files` puts own functions in these places."""


def _parameter(items: tuple[_Node, ...]) -> None:
    kinds = [node.kind for node in items]
    _wants(kinds[:1] == ["torch._utils._rebuild_tensor_v2"] and kinds[2:] == ["collections.OrderedDict"], "a parameter")


def _no_call(items: tuple[_Node, ...]) -> None:
    _wants(False, "an object")


_CALLS: dict[str, Callable[[tuple[_Node, ...]], None]] = {
    **dict.fromkeys((*SCALARS, "numpy.dtype"), _any),
    "_codecs.encode": _encoded,
    "collections.OrderedDict": _empty,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": _parameter,
}
