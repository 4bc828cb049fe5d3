"""Creates frozen config dataclasses from plain values; each error is one line with the key, its value and what is allowed."""

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Mapping, Sequence
from typing import TypeVar

import annotated_types
import pydantic

from distill.errors import InputError, a_kind, unknown_name

# For every config dataclass: no unknown field, no type conversion, no infinity or NaN.
STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

T = TypeVar("T")


@typing.dataclass_transform(frozen_default=True)
def config_class(kind: type[T]) -> type[T]:
    """Make a class a frozen pydantic dataclass that checks its fields strictly, from files (`configure`) as in Python.

    Raises:
        InputError: when an object is created with an unknown field, a wrong type or a value out of range.
    """
    made = pydantic.dataclasses.dataclass(kind, frozen=True, config=STRICT)
    plain = made.__init__

    @functools.wraps(plain)
    def create(self: T, *values: object, **named: object) -> None:
        try:  # a list is what a file has for a tuple
            plain(self, *map(_as_tuple, values), **{name: _as_tuple(value) for name, value in named.items()})
        except pydantic.ValidationError as error:
            raise _one_line(made, error, made.__name__) from None

    made.__init__ = create  # type: ignore[method-assign, assignment]
    return typing.cast(type[T], made)


LARGEST = 2**53  # above it whole numbers are not exact as floats and in JSON readers


def configure(kind: type[T], values: Mapping[str, object], where: str) -> T:
    """Create a config from a (nested) mapping, checked strictly.

    Args:
        kind: a pydantic dataclass. The list fields that ``kind.DIFFERENT`` names may have no repeated values.
        values: fields by name.
        where: begins the message of an error, for example ``"study.toml: [method]"``.

    Raises:
        InputError: for an unknown key, a wrong type or a value out of range.
    """
    text = _as_json(values, where)
    if path := _too_large(values):
        raise InputError(f"{where}: key {'.'.join(path)[:80]!r} is a whole number too large; allowed: at most {LARGEST}.")
    try:
        # Through JSON, where strict mode accepts a list for a tuple (TOML has only lists) but still not "3" for 3.
        config = pydantic.TypeAdapter(kind).validate_json(text)
    except pydantic.ValidationError as error:
        raise _one_line(kind, error, where) from None
    for name in getattr(kind, "DIFFERENT", ()):
        listed = getattr(config, name)
        if listed is not None and len(set(listed)) < len(listed):
            raise InputError(f"{where}: key {name!r} is {quoted(list(listed))}; allowed: different ones, each once.")
    return config


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


def _as_tuple(value: object) -> object:
    return tuple(value) if isinstance(value, list) else value


def _one_line(kind: type, error: pydantic.ValidationError, where: str) -> InputError:
    first = error.errors(include_url=False)[0]
    fields = [field.name for field in dataclasses.fields(kind)]
    path = [part for part in first["loc"] if isinstance(part, str | int)]
    if path and isinstance(path[0], int):  # an argument without a name
        if path[0] >= len(fields):
            return InputError(f"{where}: has {len(fields)} fields and was given more values.")
        path[0] = fields[path[0]]
    names = [part for part in path if _is_field(part)] or path
    key = ".".join(map(str, names))
    context = first.get("ctx", {})
    if isinstance(own := context.get("error"), InputError):  # a config's own check says what is allowed
        return InputError(f"{where}: key {key!r}: {own}" if key else f"{where}: {own}")
    if first["type"] in ("unexpected_keyword_argument", "extra_forbidden"):
        owner = _owner(kind, path[:-1])
        at = ".".join(map(str, path[:-1]))
        return unknown_name(f"{where}{': ' + at if at else ''}: key", path[-1], [f.name for f in dataclasses.fields(owner)])
    if not path:  # text that is not Unicode, or nested too deeply
        return InputError(f"{where}: {first['msg'][:200]}; use plain text, numbers, true/false or lists.")
    allowed = allowed_values(kind, [str(part) for part in names])
    if first["type"] in ("missing", "missing_argument"):
        return InputError(f"{where}: key {key!r} is missing; allowed: {allowed}.")
    if first["type"] == "dataclass_exact_type":  # in Python; in a file it is a table
        return InputError(f"{where}: key {key!r} is {a_kind(first['input'])}; allowed: {context['class_name']}(...).")
    value = quoted(first["input"])
    if first["type"] == "literal_error" and isinstance(first["input"], str):
        return unknown_name(f"{where}: key {key!r}: value", first["input"], _literals(_hint(kind, names)))
    return InputError(f"{where}: key {key!r} is {value}; allowed: {allowed}.")


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
        return next((place for key, inner in value.items() if (place := _too_large(inner, (*path, str(key))))), None)
    if isinstance(value, list | tuple):
        return next((place for inner in value if (place := _too_large(inner, path))), None)
    return None


def _is_field(part: object) -> bool:
    """Whether a part of an error's place is a name, and not the kind of value that a field of several kinds was tried as."""
    if not isinstance(part, str) or part in ("int", "float", "str", "bool"):
        return False
    return not part.startswith(("function-", "constrained-", "nullable", "tuple[", "literal["))


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
    hint = _hint(kind, path)
    return "a value of another kind" if hint is None else _any_of(hint)


def _hint(kind: type, path: Sequence[str | int]) -> object:
    """The type of the field that a path of names leads to; None where there is no such field."""
    return typing.get_type_hints(_owner(kind, path[:-1]), include_extras=True).get(str(path[-1])) if path else None


def _any_of(hint: object) -> str:
    return " or ".join(dict.fromkeys(_describe(option) for option in _options(hint, extras=True)))


def _literals(hint: object) -> list[str]:
    """The texts that a field takes, or the items of a list."""
    options = _options(hint)
    listed = [text for option in options if typing.get_origin(option) is tuple for text in _literals(typing.get_args(option)[0])]
    return listed + [str(value) for option in options if typing.get_origin(option) is typing.Literal for value in typing.get_args(option)]


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
        return "a list of " + " and ".join(dict.fromkeys(_any_of(part) for part in inner))
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
    texts = []
    for part in parts:
        for (constraint, limit), word in words.items():
            if isinstance(part, constraint):
                texts.append(f"{word} {getattr(part, limit)}")
        if isinstance(part, annotated_types.MinLen):
            texts.append(f"with at least {part.min_length}")
    return texts
