"""Plain values in, a frozen config dataclass out; each mistake is one line that names the key, what was given and what is allowed."""

import dataclasses
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TypeVar

import annotated_types
import pydantic

from distill.errors import InputError, unknown_name

# Of every config dataclass: no unknown field, no conversion of types, no infinity and no not-a-number.
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

T = TypeVar("T")

LARGEST = 2**53  # of whole numbers: beyond it JSON readers and floats no longer tell neighbours apart


def configure(kind: type[T], values: Mapping[str, object], where: str) -> T:
    """An instance of the pydantic dataclass ``kind`` from a (nested) mapping, checked strictly.

    ``where`` opens the message, for example ``"study.toml: [method]"``. The fields that ``kind.DIFFERENT`` names are lists without
    repetitions. Raises `InputError`.
    """
    text = _as_json(values, where)
    if path := _too_large(values):
        raise InputError(f"{where}: key {'.'.join(path)[:80]!r} is a whole number too large; allowed: at most {LARGEST}.")
    try:
        # Through JSON: there strict mode takes a list for a tuple, which is all that TOML has, and still no "3" for 3.
        made = pydantic.TypeAdapter(kind).validate_json(text)
    except pydantic.ValidationError as error:
        raise _one_line(kind, error, where) from None
    for name in getattr(kind, "DIFFERENT", ()):
        listed = getattr(made, name)
        if listed is not None and len(set(listed)) < len(listed):
            raise InputError(f"{where}: key {name!r} is {quoted(list(listed))}; allowed: different ones, each once.")
    return made


def _as_json(values: Mapping[str, object], where: str) -> str:
    parts = {}
    for key, value in values.items():
        try:
            parts[json.dumps(key)] = json.dumps(value, default=_refuse)
        except (TypeError, RecursionError, ValueError) as error:
            raise InputError(f"{where}: key {str(key)[:80]!r}: {str(error)[:200]}") from None
    return "{" + ", ".join(f"{key}: {text}" for key, text in parts.items()) + "}"


def _refuse(value: object) -> None:
    raise TypeError(f"a value of type {type(value).__name__} ({str(value)[:60]!r}) is not allowed; use numbers, text, true/false or lists.")


def _one_line(kind: type, error: pydantic.ValidationError, where: str) -> InputError:
    first = error.errors(include_url=False, include_context=False)[0]
    path = [part for part in first["loc"] if isinstance(part, str | int)]
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _owner(kind, path[:-1])
        at = ".".join(map(str, path[:-1]))
        return unknown_name(f"{where}{': ' + at if at else ''}: key", path[-1], [f.name for f in dataclasses.fields(owner)])
    if not path:  # text that is not Unicode, or nested too deeply
        return InputError(f"{where}: {first['msg'][:200]}; use plain text, numbers, true/false or lists.")
    names = [part for part in path if _is_field(part)] or path
    key = ".".join(map(str, names))
    allowed = allowed_values(kind, [str(part) for part in names])
    if first["type"] in ("missing", "missing_argument"):
        return InputError(f"{where}: key {key!r} is missing; allowed: {allowed}.")
    given = quoted(first["input"])
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        options = [part.strip().strip("'") for part in allowed.split(",")]
        return unknown_name(f"{where}: key {key!r}: value", first["input"], options)
    return InputError(f"{where}: key {key!r} is {given}; allowed: {allowed}.")


def quoted(value: object) -> str:
    """A value for a message, cut to 80 characters: texts in quotes, so that "3" is not taken for 3."""
    try:
        return json.dumps(value, default=str)[:80]
    except (ValueError, RecursionError):  # a number of thousands of digits, a table in a table in a table
        return "too long to show"


def _too_large(value: object, path: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """Where in a nested value a whole number is beyond `LARGEST`; None when nowhere."""
    if isinstance(value, int) and abs(value) > LARGEST:
        return path
    if isinstance(value, Mapping):
        return next((found for key, inner in value.items() if (found := _too_large(inner, (*path, str(key))))), None)
    if isinstance(value, list | tuple):
        return next((found for inner in value if (found := _too_large(inner, path))), None)
    return None


def _is_field(part: object) -> bool:
    return isinstance(part, str) and not part.startswith(("function-", "constrained-", "nullable", "tuple[", "literal["))


def _owner(kind: type, path: Sequence[str | int]) -> type:
    """The dataclass that a path of field names leads to."""
    for part in path:
        hints = typing.get_type_hints(kind)
        for option in _options(hints.get(str(part))):
            if dataclasses.is_dataclass(option):
                kind = typing.cast(type, option)
    return kind


def allowed_values(kind: type, path: list[str]) -> str:
    """A short text of what a field takes: ``a whole number of 1 or more, or nothing``."""
    owner = _owner(kind, path[:-1])
    hint = typing.get_type_hints(owner, include_extras=True).get(path[-1]) if path else None
    return (
        " or ".join(dict.fromkeys(_describe(option) for option in _options(hint, extras=True)))
        if hint is not None
        else "a value of another kind"
    )


def _options(hint: object, *, extras: bool = False) -> list[object]:
    if typing.get_origin(hint) is typing.Annotated and not extras:
        hint = typing.get_args(hint)[0]
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [option for part in typing.get_args(hint) for option in _options(part, extras=extras)]
    return [hint]


_NAMES: dict[object, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "nothing (leave it out)",
}


def _describe(hint: object) -> str:
    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        limits = [text for extra in extras for text in _limits(extra)]
        return _describe(base) + (" " + " and ".join(limits) if limits else "")
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(repr(value) for value in typing.get_args(hint))
    if typing.get_origin(hint) in (tuple, list):
        inner = [part for part in typing.get_args(hint) if part is not Ellipsis]
        return "a list of " + " and ".join(dict.fromkeys(_describe(part) for part in inner))
    if typing.get_origin(hint) is dict or dataclasses.is_dataclass(hint):
        return "a table"
    return _NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _limits(extra: object) -> list[str]:
    parts = list(extra.metadata) if isinstance(extra, pydantic.fields.FieldInfo) else [extra]
    words = {
        (annotated_types.Ge, "ge"): "of at least",
        (annotated_types.Gt, "gt"): "above",
        (annotated_types.Le, "le"): "of at most",
        (annotated_types.Lt, "lt"): "below",
    }
    found = []
    for part in parts:
        for (constraint, limit), word in words.items():
            if isinstance(part, constraint):
                found.append(f"{word} {getattr(part, limit)}")
        if isinstance(part, annotated_types.MinLen):
            found.append(f"with at least {part.min_length}")
    return found
