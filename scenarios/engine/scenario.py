"""Scenario files: TOML, read strictly; a mistake is one line with file, key, given, allowed, nearest name."""

import difflib
import os
import re
import tomllib
from pathlib import Path

from distill.configure import quoted
from distill.errors import InputError, clipped, unknown_name
from scenarios.engine import own
from scenarios.engine.data_table import with_names
from scenarios.engine.record import Tables
from scenarios.engine.schema import shown_value
from scenarios.engine.study import Kinds, Study
from scenarios.engine.template import from_template

MAX_BYTES = 1 << 20
MAX_PARTS = 32
HERE = Path(__file__).parents[1]


def shipped() -> dict[str, Path]:
    """The scenarios that come with the package."""
    return {path.stem: path for path in sorted(HERE.glob("*/shipped/*.toml"))}


def read_scenario(name: str) -> tuple[str, Tables]:
    """Read a scenario.

    Args:
        name: a scenario file, a shipped scenario's bare name, or a name that the template makes (template.py).

    Returns:
        The study's name and its tables.

    Raises:
        InputError: where there is no such scenario, or the file is not valid TOML.
    """
    path = Path(name)
    if not path.is_file():
        if "/" in name or name.endswith(".toml"):
            near = difflib.get_close_matches(path.name, [file.name for file in path.parent.glob("*.toml")], n=1, cutoff=0.5)
            hint = f"; did you mean {str(path.with_name(near[0]))!r}?" if near else "."
            raise InputError(
                f"scenario {clipped(name)!r}: there is no such file{hint} Allowed: a .toml file, or a shipped scenario's name"
                " (distill list scenarios)."
            )
        if (tables := from_template(name)) is not None:
            return name, tables
        if name not in shipped():
            raise unknown_name("scenario", name, shipped(), listed_by="distill list scenarios")
        path = shipped()[name]
    return path.stem, parse(path)


def parse(path: Path) -> Tables:
    """The tables of a scenario file. Raises `InputError` for a file that is too large, unreadable or not valid TOML."""
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


def override(tables: Tables, settings: list[str]) -> Tables:
    """Tables with ``key.path=value`` settings applied; the last of several settings of one key is used.

    Args:
        tables: those of a scenario file; they are not changed.
        settings: texts; a value is read as TOML where it is valid, else as text.

    Raises:
        InputError: for a setting without ``=``, and where a part of its path is a value.
    """
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
            table[part] = dict(inner)  # the caller's tables are not changed
            table = table[part]
        table[parts[-1]] = plain_value(value.strip())
    return merged


def plain_value(text: str) -> object:
    """``3``, ``0.5``, ``true``, ``[1, 10]`` or ``"text"`` as TOML reads it; anything else is text."""
    try:
        return tomllib.loads(f"value = {text}")["value"] if "\n" not in text else text
    except (ValueError, RecursionError):
        return text


def study(kinds: Kinds, name: str, tables: Tables, source: str, *, stage: bool = False) -> Study:
    """Check a scenario's tables and make the study that they describe.

    Args:
        kinds: the kinds of studies, by name.
        name: the study's name.
        tables: those of the scenario file.
        source: the file's name, which opens every message.
        stage: whether the study is a stage of a pipeline that takes a set from another one.
    """
    tables = dict(tables)
    if "data" in tables:
        tables["data"] = with_names(tables["data"])
    kind = tables.pop("kind", None)
    if kind is None:
        raise InputError(f"{source}: key 'kind' is missing; allowed: {', '.join(kinds)}.")
    if not isinstance(kind, str) or kind not in kinds:
        raise unknown_name(f"{source}: kind", shown_value(kind), kinds)
    if kinds[kind].needs_set and not stage:
        raise InputError(f"{source}: kind {kind!r} is only for stages of a pipeline, which take a set from another stage (from = ...).")
    title = tables.pop("title", name)
    if not isinstance(title, str):
        raise InputError(f"{source}: key 'title' is {quoted(title)}; allowed: text.")
    files = own.register(kinds[kind].own, tables, source)
    names: dict[tuple[str, str], object] = {}
    for table, key in (("data", "name"), ("stream", "domains")):
        if isinstance(tables.get(table), dict) and key in tables[table]:
            names[table, key] = tables[table][key]
            tables[table] = {**tables[table], key: _beside(tables[table][key], source)}
    checked: Study = kinds[kind].read(name, title, tables, source)
    for (table, key), name_as_given in names.items():
        # The place of a project on this machine is no setting: a moved project continues its runs, and config.json names no home folder.
        if isinstance(checked.merged.get(table), dict) and key in checked.merged[table]:
            checked.merged[table][key] = name_as_given
    if files:
        checked.merged["own"] = files  # a changed file is another study, in another folder
    return checked


def _beside(name: object, source: str) -> object:
    """A folder's path in a data name is, like a file with a network, beside the scenario file; of a command, in the current folder."""
    if isinstance(name, list):
        return [_beside(part, source) for part in name]
    kind, _, path = name.partition(":") if isinstance(name, str) else ("", "", "")
    if kind not in ("folder", "mhist") or not path or "\0" in path:
        return name
    return f"{kind}:{os.path.abspath(Path(source).parent / Path(path).expanduser())}"
