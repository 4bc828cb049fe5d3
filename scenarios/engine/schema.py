"""Scenario files: TOML, mapped strictly onto frozen dataclasses; a mistake is one line with file, key, given, allowed, nearest name."""

import difflib
import hashlib
import importlib
import json
import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

import pydantic
from pydantic import Field

from distill import sizes
from distill.augment import strategy
from distill.configure import configure, quoted
from distill.errors import InputError, clipped, unknown_name
from distill.evaluation import BASELINES
from distill.methods import METHODS
from distill.networks import check_name
from distill.train import PROTOCOLS, Recipe
from scenarios.engine import own
from scenarios.engine.data_table import DataTable as DataTable
from scenarios.engine.data_table import with_names
from scenarios.engine.template import from_template

KINDS = ("condense", "federated", "continual", "privacy", "nas", "pipeline", "sweep_lr")
MAX_BYTES = 1 << 20
# Options that came later: where they are not used, hashes stay.
LATER = ("whole_epochs", "drop_epochs", "imbalance", "min_clients", "wait", "mean", "std", "class_names")
MAX_PARTS = 32
MAX_IPC = 100_000
HERE = Path(__file__).parents[1]
READY = tuple(kind for kind in KINDS if (HERE / kind).is_dir())
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class EvaluationTable:
    """``[evaluation]``: how sets are evaluated. ``[evaluation.recipe]`` replaces the protocol by a recipe of one's own.

    ``whole_epochs`` trains the baseline "whole" for as many epochs; without it for as many steps as the others, which may be part of one.
    """

    DIFFERENT = ("networks", "baselines")

    protocol: str = "laptop"
    recipe: Recipe | None = None
    networks: Annotated[tuple[str, ...], Field(min_length=1)] = ("ConvNet",)
    seeds: Annotated[int, Field(ge=1)] = 5
    baselines: tuple[str, ...] = ("random",)
    split: Literal["test", "validation"] = "test"
    whole_epochs: Annotated[int, Field(ge=1)] | None = None


class Study(Protocol):
    """What a study of any kind has; `scenarios/engine/folder.py` runs it."""

    @property
    def name(self) -> str: ...
    @property
    def title(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def data(self) -> DataTable: ...
    @property
    def merged(self) -> dict[str, Any]: ...  # plain values, defaults filled in: enough to repeat the run
    @property
    def hash(self) -> str: ...


def config_hash(merged: dict[str, Any]) -> str:
    """Eight letters that change with any setting."""
    return hashlib.sha256(json.dumps(_older(merged), sort_keys=True).encode()).hexdigest()[:8]


@dataclass(frozen=True)
class CondenseStudy:
    """``kind = "condense"``: condense a data set at each IPC and judge the sets."""

    name: str
    title: str
    data: DataTable
    method: str
    ipc: tuple[int | dict[str, int] | str, ...]  # several numbers, or one entry of another form (`distill.sizes`)
    settings: Any  # the method's config dataclass
    evaluation: EvaluationTable | None
    merged: dict[str, Any]
    kind: str = "condense"

    @property
    def hash(self) -> str:
        return config_hash(self.merged)


def shipped() -> dict[str, Path]:
    """The scenarios that come with the package."""
    return {path.stem: path for path in sorted(HERE.glob("*/shipped/*.toml"))}


def read_scenario(given: str) -> tuple[str, dict[str, Any]]:
    """(name, tables) of a scenario file, of a shipped scenario's bare name, or of a name that the template makes (template.py)."""
    path = Path(given)
    if not path.is_file():
        if "/" in given or given.endswith(".toml"):
            near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.toml")], n=1, cutoff=0.5)
            hint = f"; did you mean {str(path.with_name(near[0]))!r}?" if near else "."
            raise InputError(
                f"scenario {clipped(given)!r}: there is no such file{hint} Allowed: a .toml file, or a shipped scenario's name"
                " (distill list scenarios)."
            )
        if (made := from_template(given)) is not None:
            return given, made
        if given not in shipped():
            raise unknown_name("scenario", given, shipped(), listed_by="distill list scenarios")
        path = shipped()[given]
    return path.stem, parse(path)


def parse(path: Path) -> dict[str, Any]:
    """The file's tables, or `InputError`."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise InputError(f"{path}: {path.stat().st_size} bytes; a scenario file has at most {MAX_BYTES}.")
        text = path.read_bytes().decode("utf-8-sig")  # Windows' editors begin a file with a byte order mark
        # The parser takes quadratic time for a long dotted key.
        if any(sum(map(bool, map(str.strip, part.split(".")))) > MAX_PARTS for part in re.split(r"[\n=,{[]", text)):
            raise InputError(f"{path}: is not valid TOML for a scenario (a key of more than {MAX_PARTS} parts).")
        return tomllib.loads(text)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is not valid TOML ({str(error)[:120]}).") from None


def override(tables: dict[str, Any], settings: list[str]) -> dict[str, Any]:
    """Put ``key.path=value`` settings over the tables; values are read as TOML, else as text. Of settings of one key the last one wins."""
    merged = dict(tables)
    for setting in settings:
        key, equals, value = setting.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise InputError(f"--set {setting[:80]!r}: allowed: key.path=value, for example method.ipc=10.")
        table = merged
        for part in parts[:-1]:
            inner = table.get(part, {})
            if not isinstance(inner, dict):
                raise InputError(f"--set {setting[:80]!r}: {part[:80]!r} is a value, not a table.")
            table[part] = dict(inner)  # the given tables stay as they are
            table = table[part]
        table[parts[-1]] = plain_value(value.strip())
    return merged


def plain_value(text: str) -> Any:
    """``3``, ``0.5``, ``true``, ``[1, 10]`` or ``"text"`` as TOML reads it; anything else is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except (ValueError, RecursionError):
        return text


def study(name: str, tables: dict[str, Any], source: str) -> Study:
    """Check a scenario's tables and make the study they describe; ``source`` opens every message."""
    tables = dict(tables)
    if "data" in tables:
        tables["data"] = with_names(tables["data"])
    kind = tables.pop("kind", None)
    if kind is None:
        raise InputError(f"{source}: key 'kind' is missing; allowed: {', '.join(KINDS)}.")
    if kind not in KINDS:
        raise unknown_name(f"{source}: kind", _text(kind), KINDS)
    if kind not in READY:
        raise InputError(f"{source}: kind {kind!r} is planned but not built in this version; ready: {', '.join(READY)}.")
    title = tables.pop("title", name)
    if not isinstance(title, str):
        raise InputError(f"{source}: key 'title' is {quoted(title)}; allowed: text.")
    files = own.register(kind, tables, source)
    given: dict[tuple[str, str], Any] = {}
    for table, key in (("data", "name"), ("stream", "domains")):
        if isinstance(tables.get(table), dict) and key in tables[table]:
            given[table, key] = tables[table][key]
            tables[table] = {**tables[table], key: _beside(tables[table][key], source)}
    made: Study
    if kind != "condense":
        made = importlib.import_module(f"scenarios.{kind}.run").study(name, title, tables, source)
    else:
        made = condense_study(name, title, tables, source)
    for (table, key), name_as_given in given.items():
        # The place of a project on this machine is no setting: a moved project continues its runs, and config.json names no home folder.
        if isinstance(made.merged.get(table), dict) and key in made.merged[table]:
            made.merged[table][key] = name_as_given
    if files:
        made.merged["own"] = files  # a changed file is another study, in a folder of its own
    return made


def _beside(name: Any, source: str) -> Any:
    """A folder's path in a data name is, like a file with a network, beside the scenario file; of a command, in the current folder."""
    if isinstance(name, list):
        return [_beside(one, source) for one in name]
    kind, _, path = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in ("folder", "mhist") or not path or "\0" in path:
        return name
    return f"{kind}:{os.path.abspath(Path(source).parent / Path(path).expanduser())}"


def condense_study(name: str, title: str, tables: dict[str, Any], source: str) -> CondenseStudy:
    for key in tables:
        if key not in ("data", "method", "evaluation"):
            raise unknown_name(f"{source}: key", key, ("kind", "title", "data", "method", "evaluation"))
    for key in ("data", "method", *(["evaluation"] if "evaluation" in tables else [])):
        if not isinstance(tables.get(key), dict):
            raise InputError(f"{source}: table [{key}] is {'missing' if key not in tables else 'not a table'}; a condense study needs it.")
    data = configure(DataTable, tables["data"], f"{source}: [data]")
    table, where = dict(tables["method"]), f"{source}: [method]"
    more = table.pop("more_images_than_data", False)
    if not isinstance(more, bool):
        raise InputError(f"{where}: key 'more_images_than_data' is {quoted(more)}; allowed: true or false.")
    confirmed = {"more_images_than_data": True} if more else {}
    ipc = table.get("ipc")
    other = isinstance(ipc, dict) or (isinstance(ipc, str) and ipc.startswith("proportional"))
    unequal = table.pop("ipc") if other else None
    method, numbers, settings = _method(table, where)
    try:
        ipc = numbers if unequal is None else (sizes.checked(unequal),)
    except InputError:
        raise InputError(
            f"{where}: key 'ipc' is {quoted(unequal)}; allowed: a whole number from 1 to {MAX_IPC}, a list of different ones, counts by"
            ' class such as {"3" = 5, rest = 1}, or "proportional:10".'
        ) from None
    evaluation = _evaluation(tables["evaluation"], f"{source}: [evaluation]") if "evaluation" in tables else None
    merged = {
        "kind": "condense",
        "data": _plain(data),
        "method": {"name": method, "ipc": list(ipc) if unequal is None else ipc[0], **_plain(settings), **confirmed},
        "evaluation": _plain(evaluation) if evaluation else None,
    }
    return CondenseStudy(name, title, data, method, ipc, settings, evaluation, merged)


def _method(table: dict[str, Any], where: str) -> tuple[str, tuple[int, ...], Any]:
    name, ipc = table.pop("name", "dm"), table.pop("ipc", 1)
    if not isinstance(name, str) or name not in METHODS:
        raise unknown_name(f"{where}: key 'name': method", _text(name), METHODS)
    numbers = tuple(ipc) if isinstance(ipc, list) else (ipc,)
    if not numbers or not all(type(n) is int and 1 <= n <= MAX_IPC for n in numbers) or len(set(numbers)) != len(numbers):
        raise InputError(f"{where}: key 'ipc' is {quoted(ipc)}; allowed: a whole number from 1 to {MAX_IPC}, or a list of different ones.")
    kind = METHODS[name][0]
    allowed = {"name", "ipc", *kind.__dataclass_fields__}
    for key in table:
        if key not in allowed:
            raise unknown_name(f"{where}: key", key, allowed)
    settings = configure(kind, table, where)
    _checked(where, "network", lambda: check_name(settings.network))
    _checked(where, "augmentation", lambda: strategy("" if settings.augmentation == "auto" else settings.augmentation))
    return name, numbers, settings


def _evaluation(table: dict[str, Any], where: str) -> EvaluationTable:
    made = configure(EvaluationTable, table, where)
    if made.protocol not in PROTOCOLS:
        raise unknown_name(f"{where}: key 'protocol': value", made.protocol, PROTOCOLS)
    for name in made.baselines:
        if name not in BASELINES:
            raise unknown_name(f"{where}: key 'baselines': value", name, BASELINES)
    for name in made.networks:
        _checked(where, "networks", lambda name=name: check_name(name))
    if made.recipe is not None:
        text = made.recipe.augmentation
        _checked(where, "recipe.augmentation", lambda: strategy("" if text == "auto" else text))
    return made


def _checked(where: str, key: str, check: Any) -> None:
    try:
        check()
    except InputError as error:
        raise InputError(f"{where}: key {key!r}: {error}") from None


def _text(value: Any) -> str:
    """A value of any kind for a message."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=str)[:80]
    except (ValueError, RecursionError):  # a number of thousands of digits, a table in a table in a table
        return "too long to show"


def _plain(value: Any) -> dict[str, Any]:
    found: dict[str, Any] = _older(pydantic.TypeAdapter(type(value)).dump_python(value, mode="json"))
    return found


def _older(value: Any) -> Any:
    """Plain values without the options of later versions that are not used: studies that do not use them keep their hash."""
    if isinstance(value, dict):
        return {key: _older(inner) for key, inner in value.items() if not (key in LATER and inner is None)}
    return [_older(inner) for inner in value] if isinstance(value, list) else value
