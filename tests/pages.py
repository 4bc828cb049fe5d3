"""Code in the pages: finding it, and checking what is not run. Each check raises when a page says what the code does not offer."""

import argparse
import ast
import builtins
import dataclasses
import functools
import importlib
import importlib.util
import inspect
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer.main

from distill.data_sources import NAMES as DATA
from distill.evaluation import BASELINES
from distill.methods import METHODS
from distill.networks import check_name
from distill.train import PROTOCOLS
from scenarios import cli
from scenarios.catalogue import study
from scenarios.engine.scenario import override, read_scenario
from scenarios.sweep import grid

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "apps").glob("*/README.md"))]
FLOWER = ("flwr", "flower-superlink", "flower-supernode")
SYSTEM = (
    "mkdir",
    "openssl",
    "printf",
    "sed",
    "ssh-keygen",
)  # of the page on deployments, all of which a test runs (test_deployment_page.py)
COMMANDS = ("distill", "python", "pip", "make", "git", "cd", "export", "for", "torchrun", *FLOWER, *SYSTEM)
LANGUAGES = ("python", "toml", "sh", "text")  # "text" is a diagram or a listing, and holds no command
NEEDS = re.compile(r"# needs \S")  # the first line of a Python block that takes minutes, or data that are not here


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    language: str
    text: str

    @property
    def needs(self) -> bool:
        return self.language == "python" and NEEDS.match(self.text) is not None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(text: str, page: str) -> list[Block]:
    """Fenced blocks with their language, and indented ones: "sh" where they begin with a command, else "text"."""
    found, lines, number = [], text.splitlines(), 0
    while number < len(lines):
        line, first = lines[number], number
        number += 1
        if line.startswith("```"):
            while lines[number] != "```":
                number += 1
            found.append(Block(page, first + 1, line[3:], "\n".join(lines[first + 1 : number])))
            number += 1
        elif line.startswith("    ") and (first == 0 or not lines[first - 1].strip()):
            while number < len(lines) and (lines[number].startswith("    ") or not lines[number].strip()):
                number += 1
            inner = "\n".join(one[4:] for one in lines[first:number]).rstrip()
            found.append(Block(page, first + 1, "sh" if inner.split()[0] in COMMANDS else "text", inner))
    return found


def inline_commands(text: str) -> list[str]:
    """Commands between single backticks, outside of fences."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE)
    return [" ".join(one.split()) for one in re.findall(r"`((?:distill|python -m|pip install|make|torchrun) [^`]+)`", prose)]


# Shell


def commands(text: str) -> list[list[str]]:
    """The commands of a shell block as lists of words; comments, and prose after two spaces, are left out; a loop is taken once."""
    joined = re.sub(r"\\\n\s*", "", text)
    for name, first in re.findall(r"for (\w+) in (\S+)", joined):
        joined = joined.replace(f"${name}", first)
    found: list[list[str]] = []
    for line in joined.splitlines():
        if re.match(r"\s*(for|done|do)\b", line):
            continue
        words = shlex.split(re.split(r" {2,}", line.strip())[0], comments=True)
        found += [part for part in _split(words) if part]
    return found


def _split(words: list[str]) -> list[list[str]]:
    parts: list[list[str]] = [[]]
    for word in words:
        if word == "&&":
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def placeholder(word: str) -> bool:
    return re.fullmatch(r"<.+>|[A-Z_]+(\.[a-z]+)?|\.\.\.|file:Name", word) is not None


def is_synopsis(words: list[str]) -> bool:
    """``[--out DIR] ...``: what may be given, not what is."""
    return any(word.startswith("[--") or word == "..." or re.fullmatch(r"\w+(\|\w+)+", word) for word in words)


def check_command(words: list[str]) -> None:
    name, rest = words[0], words[1:]
    assert name in COMMANDS, f"{name!r} is no command that the pages' test knows: {shlex.join(words)}"
    if name == "distill":
        check_distill(rest)
    elif name == "python":
        assert rest[0] == "-m", shlex.join(words)
        check_module(rest[1], rest[2:])
    elif name == "torchrun":
        assert rest[rest.index("-m") + 1] == "scenarios.cli"
        check_distill(rest[rest.index("-m") + 2 :])
    elif name == "make":
        check_make(rest)
    elif name == "pip":
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        for package in rest[1:]:
            for extra in re.findall(r"distill-apps\[(.*)\]", package):
                assert set(extra.split(",")) <= set(extras), package
    elif name in FLOWER:
        check_flower(name, rest)


def check_distill(words: list[str]) -> None:
    """Parsed by the command line's own parser; the names in it are looked up."""
    known = typer.main.get_command(cli.app).commands  # type: ignore[attr-defined]
    assert words[0] in known, f"distill {words[0]}: no such command"
    command = known[words[0]]
    if len(words) == 1:
        return
    if is_synopsis(words):
        offered = {option for parameter in command.params for option in parameter.opts}
        for option in re.findall(r"(?<!\S)\[?(--[\w-]+)", " ".join(words[1:])):
            assert option in offered, f"distill {words[0]} {option}: no such option"
        return
    given = command.make_context(words[0], list(words[1:])).params
    if words[0] == "run" and not placeholder(given["scenario"]):
        path = ROOT / given["scenario"]
        name, tables = read_scenario(str(path) if path.is_file() else given["scenario"])
        for settings, _ in grid.combinations(given["settings"] or []):
            study(name, override(tables, settings), str(path))
        if given["seeds"]:
            grid.seeds(given["seeds"])
    elif words[0] == "condense":
        check_data(given["data"])
        table = override({}, given["settings"] or [])
        method = {"name": given["method"] or "dm", "ipc": given["ipc"] or 1, **table}
        tables = {"kind": "condense", "data": {"name": given["data"]}, "method": method}
        study("condense", tables, "distill condense")
    elif words[0] == "evaluate":
        check_data(given["data"])
        for network in given["network"] or []:
            check_name(network)
        assert set(given["baseline"] or []) <= {*BASELINES, "none"}, f"{given['baseline']}: no such baseline"
        assert given["protocol"] in PROTOCOLS, f"{given['protocol']}: no such protocol"
    elif words[0] == "score":
        check_data(given["data"])
        for network in [given["network"], *(given["architecture"] or [])]:
            check_name(network)
        assert given["protocol"] in PROTOCOLS, f"{given['protocol']}: no such protocol"
    elif words[0] == "list":
        assert given["what"] in ("methods", "data", "networks", "scenarios"), f"distill list {given['what']}: no such list"


def check_data(name: str) -> None:
    assert name in DATA or placeholder(name) or name.partition(":")[0] in ("folder", "mhist"), f"data {name!r} is not known"


class _Parsed(Exception):
    pass


def check_module(name: str, words: list[str]) -> None:
    """``python -m name``: the module is there, and its own parser takes the words."""
    assert importlib.util.find_spec(name), f"python -m {name}: no such module"
    source = inspect.getsource(importlib.import_module(name))
    if is_synopsis(words):
        for option in re.findall(r"--[\w-]+", " ".join(words)):
            assert f'"{option}"' in source, f"python -m {name} {option}: no such option"
    elif "argparse" in source:
        parse = argparse.ArgumentParser.parse_args

        def only_parse(self: argparse.ArgumentParser, args: Any = None, namespace: Any = None) -> Any:
            raise _Parsed(parse(self, args, namespace))

        argparse.ArgumentParser.parse_args = only_parse  # type: ignore[method-assign]
        main = importlib.import_module(name).main
        before, sys.argv = sys.argv, [name, *words]
        try:
            main(words) if inspect.signature(main).parameters else main()
        except _Parsed:
            pass
        except SystemExit:
            raise AssertionError(f"python -m {name} {shlex.join(words)}: its parser refuses that") from None
        finally:
            sys.argv = before
            argparse.ArgumentParser.parse_args = parse  # type: ignore[method-assign]
    else:
        assert not [word for word in words if word.startswith("--")], f"python -m {name} takes no options"


def check_make(words: list[str]) -> None:
    lines = (ROOT / "Makefile").read_text()
    for word in words:
        name, equals, value = word.partition("=")
        assert re.search(rf"^{re.escape(name)}:" if not equals else rf"\$\({name}\)", lines, re.MULTILINE), (
            f"make {word}: not in the Makefile"
        )
        if name == "REPRODUCE":
            check_module("kept.reproduce", shlex.split(value))


@functools.cache
def help_of(*command: str) -> str:
    environment = {"COLUMNS": "200", "PATH": str(Path(command[0]).parent)}
    return subprocess.run([*command, "--help"], capture_output=True, text=True, check=True, env=environment).stdout


def check_flower(name: str, words: list[str]) -> None:
    """Flower's own commands: the options must be in their help."""
    tool = shutil.which(name, path=str(Path(sys.executable).parent))
    assert tool, f"{name} is not installed"
    told = help_of(tool, *([words[0]] if name == "flwr" else []))
    for option in [word for word in words if word.startswith("--")]:
        assert option in told, f"{name} {option}: no such option"


# TOML and Python


def check_toml(text: str, source: str) -> None:
    study("page", tomllib.loads(text), source)


def check_python(text: str, page: str) -> None:
    """What can be said of a block without running it: it compiles, its imports are there, its names are made, its keywords exist."""
    tree = ast.parse(text, page)
    compile(tree, page, "exec")
    scope: dict[str, Any] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # other libraries' complaints while they are imported
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                exec(compile(ast.Module([node], []), page, "exec"), scope)
    stored = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
    stored |= {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    stored |= {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            assert node.id in stored | set(scope) | set(dir(builtins)) | {"__name__"}, f"{page}: {node.id!r} is made nowhere"
        if isinstance(node, ast.Call):
            _check_keywords(node, scope, page)


def _check_keywords(call: ast.Call, scope: dict[str, Any], page: str) -> None:
    called = ast.unparse(call.func)
    if not re.fullmatch(r"[\w.]+", called) or called.partition(".")[0] not in scope:
        return
    found: Any = eval(called, dict(scope))
    parameters = inspect.signature(found).parameters
    names = {keyword.arg for keyword in call.keywords if keyword.arg}
    known = set(parameters)
    if found is importlib.import_module("distill.run").condense:
        method = next((k.value.value for k in call.keywords if k.arg == "method" and isinstance(k.value, ast.Constant)), "dm")
        known |= {field.name for field in dataclasses.fields(METHODS[str(method)][0])}
    elif any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return
    assert names <= known, f"{page}: {called} has no {sorted(names - known)}"
