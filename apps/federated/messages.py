"""Flower's messages as named arrays and plain facts, and how many bytes they are. The one place that imports ``flwr.app``."""

import json
from collections.abc import Collection, Mapping
from typing import TypeAlias

from apps.federated.settings import Settings, from_json, from_mapping
from apps.federated.wire import Arrays
from distill.errors import InputError, clipped
from distill.records import Json

try:
    from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
except ImportError:
    raise InputError('Flower is not installed; run: pip install "distill-apps[federated]"') from None

MAX_STATEMENT = 1 << 14
MAX_DEPTH = 8
MetricValue: TypeAlias = int | float | list[int] | list[float]  # what a `MetricRecord` holds
__all__ = ["Array", "ArrayRecord", "ConfigRecord", "Context", "Error", "Message", "MetricRecord", "RecordDict"]


def record_of(arrays: Arrays) -> ArrayRecord:
    """Named numpy arrays as a Flower record."""
    return ArrayRecord({name: Array(array) for name, array in arrays.items()})


def parts_of(content: RecordDict, key: str) -> dict[str, bytes]:
    """The undecoded bytes of the arrays in ``content[key]``; they go to `wire`, never to numpy's own reader."""
    record = content.get(key)
    if not isinstance(record, ArrayRecord):
        raise InputError(f"the message has no arrays {key!r}; allowed: a Flower ArrayRecord of that name.")
    return {str(name): array.data for name, array in record.items()}


def facts_of(content: RecordDict) -> dict[str, object]:
    """The numbers that accompany the arrays of a reply, unchecked."""
    record = content.get("facts")
    return dict(record) if isinstance(record, MetricRecord) else {}


def statement_of(content: RecordDict) -> dict[str, Json] | None:
    """The privacy statement of an upload, or None if there is none. Its claims are not verified.

    Raises:
        InputError: it is no JSON object of at most `MAX_STATEMENT` characters and `MAX_DEPTH` levels with finite numbers.
    """
    record = content.get("privacy")
    text = record.get("statement") if isinstance(record, ConfigRecord) else None
    if text is None:
        return None
    try:
        statement = json.loads(text, parse_constant=_refuse_constant) if isinstance(text, str) and len(text) <= MAX_STATEMENT else None
    except (ValueError, RecursionError):
        statement = None
    if not isinstance(statement, dict) or not _plain(statement):
        raise InputError(
            f"the privacy statement is not a JSON object of at most {MAX_STATEMENT} characters, finite numbers, at most {MAX_DEPTH} deep."
        )
    return statement


def _refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not a number")


def _plain(value: object, depth: int = 1) -> bool:
    """Whether a parsed value is at most `MAX_DEPTH` deep, with finite numbers and texts that UTF-8 can store.

    (JSON parses 1e999 as infinity, and may hold half of a surrogate pair, which no reader accepts.)
    """
    if isinstance(value, str):
        return value.isascii() or value.encode(errors="replace").decode() == value
    if isinstance(value, dict | list):
        inner = [*value, *value.values()] if isinstance(value, dict) else value
        return depth <= MAX_DEPTH and all(_plain(part, depth + 1) for part in inner)
    return not isinstance(value, int | float) or isinstance(value, bool) or abs(value) < 1e300


def check_records(content: RecordDict, allowed: Collection[str], facts: Collection[str], most: int) -> None:
    """`InputError` for a reply with more than was asked for: other records, other facts, or more than ``most`` bytes."""
    if (nbytes := size(content)) > most:
        raise InputError(f"the reply has {nbytes} bytes; allowed: at most {most}.")
    for name in content:
        if name not in allowed:
            raise InputError(f"the reply holds the record {clipped(name, 40)!r}; allowed: {', '.join(allowed)}.")
    for name, value in facts_of(content).items():
        good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e18
        if name not in facts or not good:
            raise InputError(
                f"the facts hold {clipped(name, 40)!r} = {clipped(value, 40)}; allowed: one finite number each for {', '.join(facts)}."
            )


def whole(facts: Mapping[str, object], name: str, low: int, high: int) -> int:
    """The whole number ``facts[name]``; `InputError` unless it is one from ``low`` to ``high``."""
    value = facts.get(name)
    if type(value) is not int or not low <= value <= high:
        raise InputError(f"{name} is {str(value)[:40]}; allowed: a whole number from {low} to {high}.")
    return value


def size(content: RecordDict) -> int:
    """Bytes of a message's content as Flower serialises arrays, numbers and names; its envelope is not counted."""
    return sum(len(name) + record.count_bytes() for name, record in content.items())


def settings_of(run_config: Mapping[str, object]) -> Settings:
    """The run's settings: key ``settings`` (JSON, from the scenario runner), else the readable keys of the app's pyproject.toml.

    Readable keys are those of `Settings`, tables joined by dots, as Flower writes nested TOML: ``partition.alpha``. Those of
    ``upload.settings`` are the condensing method's own; an empty text means the default. Keys below ``own.`` are for a user's own app.
    """
    if text := str(run_config.get("settings", "")):
        return from_json(text)
    nested: dict[str, object] = {}
    for key, value in run_config.items():
        if key in ("settings", "out", "data-root", "node-keys") or key.startswith("own.") or value == "":
            continue
        *tables, last = key.split(".")
        table = nested
        for name in tables:
            inner = table.setdefault(name, {})
            if not isinstance(inner, dict):
                raise InputError(
                    f"run config: {clipped(name, 40)} is a value, and {clipped(key, 80)} is below it; allowed: one of the two."
                )
            table = inner
        table[last] = value
    return from_mapping(nested, "run config")
