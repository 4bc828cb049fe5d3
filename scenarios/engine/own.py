"""A user's own method or network, by the import path in the user's own scenario: "mymethod:MyMethod", "mynets:make_net".

``file:Name`` is file.py beside the scenario file (of a command without one, in the current folder), else a module on Python's path. Nothing
else in the project imports what a name says: sets, uploads, checkpoints and run configs of other parties name methods and networks too, and
those names are only looked up.
"""

import difflib
import hashlib
import importlib
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import nn

from distill import networks
from distill.errors import InputError, a_kind, clipped, unknown_name
from distill.methods import register as register_method
from distill.spec import DataSpec
from scenarios.engine.record import Tables

_PATH = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<name>[A-Za-z_]\w*)", re.ASCII)
_loaded: dict[str, tuple[Path, str, ModuleType]] = {}  # by module name: its file, the file's digest
_files: set[str] = set()  # of the user's own code; see `blame`
_NOT_THE_USERS = (*sys.stdlib_module_names, "distill", "apps", "scenarios", "torch", "torchvision")


@dataclass(frozen=True)
class Places:
    """Where a scenario of one kind may name a user's own methods and networks, as (table, key).

    ``settings.*`` is each table in a table, and the key ``*`` are the names of a table's keys. ``suffix`` may follow a method's name.
    Processes of other machines know none of these names: they must not import what a message says.
    """

    methods: tuple[tuple[str, str], ...] = ()
    networks: tuple[tuple[str, str], ...] = ()
    suffix: str = ""


def register(places: Places, tables: Tables, source: str) -> dict[str, str]:
    """Register the methods and networks that the tables name with a colon.

    Args:
        places: where the kind allows such names.
        tables: those of the scenario file.
        source: the scenario file, beside which the user's files are; it opens each message.

    Returns:
        Import path to digest of its file: another file is another study.

    Raises:
        InputError: where a file cannot be imported, or what it names is no method or network.
    """
    digests: dict[str, str] = {}
    for what, named in (("method", places.methods), ("network", places.networks)):
        for table, inner, key in _tables(named, tables):
            given = (list(inner) if key == "*" else inner.get(key)) if isinstance(inner, dict) else None
            for name in given if isinstance(given, list) else [given]:
                if isinstance(name, str) and ":" in name:
                    path = name.removesuffix(places.suffix)
                    digests[path] = _register(what, path, Path(source).parent, f"{source}: [{table}]: key {key!r}")
    return digests


def _tables(places: tuple[tuple[str, str], ...], tables: Tables) -> Iterator[tuple[str, object, str]]:
    """The tables of the places that are there, by their full names."""
    for table, key in places:
        for where, inner in _inside(table.split("."), tables):
            yield where, inner, key


def _inside(parts: list[str], outer: object, where: str = "") -> Iterator[tuple[str, object]]:
    if not parts:
        yield where, outer
    elif isinstance(outer, dict):
        for name in list(outer) if parts[0] == "*" else parts[:1]:
            yield from _inside(parts[1:], outer.get(name), f"{where}.{name}" if where else name)


def _register(what: str, path: str, folder: Path, where: str) -> str:
    parts = _PATH.fullmatch(path)
    if parts is None:
        example = "mymethod:MyMethod" if what == "method" else "mynets:make_net"
        raise InputError(f"{where} is {clipped(path)!r}; allowed: a name, or an import path of your own {what}, like {example!r}.")
    module, digest = _module(parts["module"], folder, f"{where}: {path!r}")
    public = [name for name, value in vars(module).items() if not name.startswith("_") and callable(value)]
    if not hasattr(module, parts["name"]):
        raise unknown_name(f"{where}: {parts['module']}.py: name", parts["name"], public)
    target = getattr(module, parts["name"])
    if what == "network":
        if not callable(target):
            raise InputError(f"{where}: {path!r} is {a_kind(target)}; allowed: a function of the data spec that returns a module.")
        networks.OWN[path] = _named(path, target)
        return digest
    config = f"{parts['name']}Config"
    if not hasattr(module, config):
        raise InputError(
            f"{where}: {path!r} has no settings; put a frozen dataclass {config} next to the class, as {module.__name__}:{config}."
        )
    try:
        register_method(path, getattr(module, config), target)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None
    return digest


def _named(path: str, factory: Callable[[DataSpec], nn.Module]) -> Callable[[DataSpec], nn.Module]:
    """The user's function, whose exceptions are `InputError` with its import path, file and line."""

    def call(spec: DataSpec) -> nn.Module:
        try:
            module = factory(spec)
        except InputError:
            raise
        except (Exception, SystemExit) as error:
            raise InputError(
                f"your function {_raised(path, error)}; allowed: a function of the data spec that returns a module."
            ) from error
        # One with `embed` may be for matching only, without logits.
        if not tried and isinstance(module, nn.Module) and not hasattr(module, "embed"):
            networks.check_outputs(module, spec, f"your network {path}", lambda error: f"your network {_raised(path, error)}")
            tried.append(True)
        return module

    tried: list[bool] = []
    call.__name__ = getattr(factory, "__name__", path)
    return call


def _raised(path: str, error: BaseException) -> str:
    place = _last_line(error)
    return f"{path}{f' ({place})' if place else ''} raised {type(error).__name__}: {clipped(error, 160)}"


def blame(error: BaseException) -> str | None:
    """One line about an exception that passed through the user's own files; None where it did not, and the fault may be ours."""
    seen: BaseException | None = error
    for _ in range(20):
        if seen is None:
            return None
        if place := _last_line(seen):
            return f"your own code failed: {place}: {type(seen).__name__}: {clipped(seen, 160)}."
        seen = seen.__cause__ or seen.__context__
    return None


def _last_line(error: BaseException) -> str:
    """``/home/me/mymethod.py, line 3``: the last of the user's own lines on the way to the exception, or nothing."""
    lines = [f"{frame.filename}, line {frame.lineno}" for frame in traceback.extract_tb(error.__traceback__) if frame.filename in _files]
    return lines[-1] if lines else ""


def _module(name: str, folder: Path, where: str) -> tuple[ModuleType, str]:
    """(module, digest of its file): the file beside the scenario, else whatever Python finds."""
    file = (folder / f"{name}.py").resolve()
    if "." in name or not file.is_file():
        return _installed(name, folder, where)
    _files.add(str(file))
    text = file.read_bytes()
    digest = hashlib.sha256(text).hexdigest()[:16]
    if name in _loaded and _loaded[name][:2] == (file, digest):
        return _loaded[name][2], digest
    if name in sys.modules and name not in _loaded:
        raise InputError(f"{where}: {name!r} is the name of a module of Python's that is in use; give {file.name} another name.")
    if str(file.parent) not in sys.path:
        sys.path.append(str(file.parent))  # the file may import its neighbours
    module = ModuleType(name)
    module.__file__ = str(file)
    before = sys.modules.get(name)
    sys.modules[name] = module  # dataclasses look their own module up while it is made
    try:
        # Not through Python's cache of compiled files, which takes a file changed within a second for the old one.
        exec(compile(text, str(file), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        sys.modules.pop(name) if before is None else sys.modules.update({name: before})
        raise InputError(f"{where}: {_trouble(error, file)}.") from None
    _loaded[name] = (file, digest, module)
    return module, digest


def _installed(name: str, folder: Path, where: str) -> tuple[ModuleType, str]:
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise InputError(f"{where}: {name} cannot be imported ({clipped(error)}).") from None
        near = difflib.get_close_matches(name, [file.stem for file in folder.glob("*.py")], n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        raise InputError(
            f"{where}: there is no {name}.py in {folder.resolve()}, and no module {name!r} on Python's path (PYTHONPATH){hint}"
        ) from None
    except (Exception, SystemExit) as error:
        raise InputError(f"{where}: {name} cannot be imported ({type(error).__name__}: {clipped(error, 160)}).") from None
    file = getattr(module, "__file__", None)
    if file and name.partition(".")[0] not in _NOT_THE_USERS:
        _files.add(file)
    return module, hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16] if file else ""


def _trouble(error: BaseException, file: Path) -> str:
    """``mymethod.py, line 3: NameError: name 'x' is not defined``."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
    line = error.lineno if isinstance(error, SyntaxError) else lines[-1] if lines else None
    return f"{file.name}{'' if line is None else f', line {line}'}: {type(error).__name__}: {clipped(error, 160)}"
