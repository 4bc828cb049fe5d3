"""House-keeping: sizes and names of files, options that do nothing, licences of what is installed, and what a wheel holds."""

import ast
import importlib.metadata
import importlib.util
import os
import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
FLOORS = ("distill", "apps", "scenarios")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def files(*folders: str) -> list[Path]:
    return [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py")) if not path.name.startswith(".")]


# Files

LINES, TEST_LINES = 320, 900
LONGER: dict[str, str] = {}  # a source file that may be longer, and why


def test_no_file_tells_two_things() -> None:
    sizes = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files(*FLOORS, "kept", "benchmarks", "examples")}
    assert len(sizes) > 100
    assert {name: size for name, size in sizes.items() if size > LINES and name not in LONGER} == {}
    assert {name for name in LONGER if sizes.get(name, 0) <= LINES} == set(), "no longer an exception"
    tests = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in files("tests")}
    assert {name: size for name, size in tests.items() if size > TEST_LINES} == {}


def test_no_file_is_a_drawer_for_anything() -> None:
    drawers = re.compile(r"(utils?|utilities|helpers?|common|misc|tools|stuff|shared)")
    names = [path.relative_to(ROOT).with_suffix("") for path in files(*FLOORS, "kept", "tests", "benchmarks", "examples")]
    assert [str(name) for name in names if any(map(drawers.fullmatch, name.parts))] == []


# Options


def unread(sources: dict[str, str]) -> list[str]:
    """Fields of config dataclasses (module.Class.field) that neither their own module nor one that imports it mentions.

    A mention is an attribute that is read, or a string (a table's key, or a name for getattr).
    """
    trees = {module: ast.parse(text) for module, text in sources.items()}
    plain = {name for tree in trees.values() for name in config_fields(tree, derived=False)}
    mentions: dict[str, set[str]] = {}
    imports: dict[str, set[str]] = {}
    for module, tree in trees.items():
        nodes = list(ast.walk(tree))
        mentions[module] = {node.attr for node in nodes if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)}
        mentions[module] |= {node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)}
        imports[module] = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
        for node in nodes:
            if isinstance(node, ast.ImportFrom) and node.module:
                imports[module] |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return [
        f"{module}.{name}"
        for module, tree in trees.items()
        for name in config_fields(tree)
        if not (
            name not in plain and any(base.endswith(f".{name.partition('.')[2]}") for base in plain)
        )  # another default of a base's field
        if not any(name.partition(".")[2] in mentions[other] for other in trees if other == module or module in imports[other])
    ]


def config_fields(tree: ast.Module, *, derived: bool = True) -> Iterator[str]:
    """Class.field of config dataclasses; without ``derived`` only of classes that do not inherit from another config."""
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.ClassDef)
            and node.name.endswith(("Config", "Table", "Recipe", "Settings", "Training", "Options", "Crew"))
            and any(
                ast.unparse(decorator).endswith("config_class") or "dataclass" in ast.unparse(decorator)
                for decorator in node.decorator_list
            )
            and (
                derived
                or not any(
                    ast.unparse(base).endswith("Config") and not ast.unparse(base).endswith(("SharedConfig", "ImageConfig"))
                    for base in node.bases
                )
            )
        ):
            targets = [item.target for item in node.body if isinstance(item, ast.AnnAssign)]
            yield from (f"{node.name}.{target.id}" for target in targets if isinstance(target, ast.Name))


def test_every_option_is_read_somewhere() -> None:
    sources = {".".join(path.relative_to(ROOT).with_suffix("").parts): path.read_text() for path in files(*FLOORS)}
    fields = [name for text in sources.values() for name in config_fields(ast.parse(text))]
    assert len(fields) > 150
    assert unread(sources) == []


def test_an_option_that_nobody_reads_is_found() -> None:
    config = "@dataclass(frozen=True)\nclass AConfig:\n    used: int = 1\n    dead: int = 2\n"
    far = "import json\nother.dead\n"  # a module that does not know the config
    assert unread({"a": config, "b": "from a import AConfig\nAConfig().used", "c": far}) == ["a.AConfig.dead"]
    assert unread({"a": config, "b": "import a\na.AConfig().used + getattr(x, 'dead')"}) == []


# Signatures

ANY = {"apps": 17, "benchmarks": 4, "distill": 19, "kept": 0, "scenarios": 20}  # lines with `Any` that a package may have at most
POSITIONAL = 7
CHECKED: tuple[str, ...] = ("apps", "benchmarks", "distill", "kept", "scenarios")  # packages whose signatures are checked


def positional(tree: ast.Module) -> Iterator[tuple[str, list[ast.arg]]]:
    """Every function of a module with the parameters that a caller may give by position, `self` and `cls` apart; no typer command."""
    methods = {id(node) for kind in ast.walk(tree) if isinstance(kind, ast.ClassDef) for node in kind.body}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and "typer." not in ast.unparse(node.args):
            arguments = [*node.args.posonlyargs, *node.args.args]
            bound = id(node) in methods and "staticmethod" not in map(ast.unparse, node.decorator_list)
            yield node.name, arguments[1:] if bound else arguments


def unclear(tree: ast.Module) -> list[str]:
    """Functions with more positional parameters than `POSITIONAL`, or with a flag by position.

    A bool in the first place is what the function is about (``check(condition, message)``), and no flag.
    """
    lines = []
    for name, arguments in positional(tree):
        flags = [a.arg for a in arguments[1:] if a.annotation and "bool" in ast.unparse(a.annotation).split(" | ")]
        lines += [f"{name}: {len(arguments)} positional parameters"] if len(arguments) > POSITIONAL else []
        lines += [f"{name}: {', '.join(flags)} by position"] if flags else []
    return lines


def test_a_call_can_be_read() -> None:
    found = {str(path.relative_to(ROOT)): unclear(ast.parse(path.read_text())) for path in files(*CHECKED)}
    assert {name: lines for name, lines in found.items() if lines} == {}


def test_an_unclear_signature_is_found() -> None:
    many = "def many(a, b, c, d, e, f, g, h): ..."
    assert unclear(ast.parse(many)) == ["many: 8 positional parameters"]
    assert unclear(ast.parse(many.replace("h)", "*, h)"))) == []
    assert unclear(ast.parse("class A:\n    def many(self, b, c, d, e, f, g, h): ...")) == []
    assert unclear(ast.parse("def show(path: str, large: bool | None = None): ...")) == ["show: large by position"]
    assert unclear(ast.parse("def check(good: bool, marks: list[bool], *, large: bool): ...")) == []


@pytest.mark.parametrize("package", ANY)
def test_types_are_named(package: str) -> None:
    lines = [line for path in files(package) for line in path.read_text().splitlines() if re.search(r"\bAny\b", line)]
    assert len(lines) <= ANY[package]


# Dependencies

FREE = {
    *("MIT", "MIT-0", "MIT-CMU", "BSD", "BSD-2-Clause", "BSD-3-Clause", "0BSD", "ISC", "ISCL", "Apache-2.0", "Zlib", "BSL-1.0", "CC0-1.0"),
    *("PSF-2.0", "Python Software Foundation License", "MPL-2.0", "MPL 2.0", "Public Domain", "Apache Software License", "Apache 2.0"),
    *("LLVM-exception", "3-Clause BSD License", "Unlicense", "HPND"),
}
# What comes along with others and is not as free: none of it is imported by this project, or copied into it.
SOLVERS = "clarabel|cvxopt|daqp|ecos|highspy|jaxopt|osqp|piqp|proxsuite|pyqpmad|qpalm|qpax|qtqp|quadprog|scs|sip-qp-python"
EXCEPTIONS = {
    r"nvidia-.*|cuda-toolkit": "NVIDIA's libraries, which torch's CUDA builds need; a CPU build of torch has none of them",
    "qpsolvers": "LGPL-3.0; avalanche-lib needs it for strategies that solve quadratic programmes, which are not used here",
    SOLVERS: "what qpsolvers lists, some of it GPL; avalanche-lib asks for all of them and works without",
}


def closure(wanted: list[str]) -> tuple[dict[str, importlib.metadata.Distribution], set[str]]:
    """What is installed of these requirements and of theirs; names of what is missing."""
    todo, seen = [Requirement(text) for text in wanted], set[tuple[str, frozenset[str]]]()
    found, missing = dict[str, importlib.metadata.Distribution](), set[str]()
    while todo:
        one = todo.pop()
        name = canonicalize_name(one.name)
        if (name, frozenset(one.extras)) in seen:
            continue
        seen.add((name, frozenset(one.extras)))
        try:
            found[name] = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            missing.add(name)
            continue
        for text in found[name].requires or []:
            need = Requirement(text)
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("", *one.extras)):
                todo.append(need)
    return found, missing


def licence(metadata: Any) -> list[str]:
    """The licences that all hold or may be chosen from, by the newest of the three ways to say it."""
    classifiers = [text.split(" :: ")[-1] for text in metadata.get_all("Classifier", []) if text.startswith("License ::")]
    if classifiers and not metadata.get("License-Expression"):
        return [re.sub(r"^.*\((.+)\)$|^(\w[\w.-]*) License$", lambda found: found[1] or found[2], text) for text in classifiers]
    text = metadata.get("License-Expression") or (metadata.get("License") or "none stated").strip().splitlines()[0]
    return re.split(r" (?:AND|OR|WITH) ", re.sub(r"[()]", "", text))


def not_free(found: dict[str, importlib.metadata.Distribution]) -> dict[str, list[str]]:
    stated = {name: licence(one.metadata) for name, one in found.items()}
    return {name: part for name, part in stated.items() if not set(part) <= FREE and not any(re.fullmatch(e, name) for e in EXCEPTIONS)}


def test_dependencies_are_free_software() -> None:
    found, missing = closure(PROJECT["dependencies"])
    assert missing == set(), "run make test, which installs everything"
    assert {"torch", "numpy", "rich"} <= set(found)
    assert not_free(found) == {}
    assert not [name for name in found if re.fullmatch(f"qpsolvers|{SOLVERS}", name)], "the core needs none of these"


@pytest.mark.parametrize("extra", [name for name in PROJECT["optional-dependencies"] if name not in ("all", "dev")])
def test_the_extras_are_free_software(extra: str) -> None:
    found, missing = closure(PROJECT["optional-dependencies"][extra])
    if lacking := sorted(name for name in missing if not re.fullmatch(SOLVERS, name)):
        pytest.skip(f"not all of it is installed: {', '.join(lacking)}")
    assert not_free(found) == {}


# The distribution


def test_both_pythons_are_named() -> None:
    named = {text.split(" :: ")[-1] for text in PROJECT["classifiers"] if text.startswith("Programming Language :: Python :: 3.")}
    assert named == {"3.11", "3.12"}
    assert PROJECT["requires-python"] == ">=3.11"
    for path in files(*FLOORS, "benchmarks", "examples"):
        ast.parse(path.read_text(), feature_version=(3, 11))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without the network."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed; make test installs it")
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), str(ROOT)]
    subprocess.run(command, check=True, cwd=out)
    (found,) = out.glob("*.whl")
    return found


def test_a_wheel_holds_the_studies_and_their_figures_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    paths = [path for floor in FLOORS for form in ("*.py", "*.toml", "*.csv") for path in (ROOT / floor).rglob(form)]
    tracked = {str(path.relative_to(ROOT)) for path in paths}
    assert {name for name in tracked if name not in names} == set()
    assert "distill/py.typed" in names
    assert any(name.startswith("scenarios/nas/truth/") for name in names)
    assert {name.partition("/")[0] for name in names} == {*FLOORS, f"distill_apps-{PROJECT['version']}.dist-info"}
    assert not [name for name in names if "test" in Path(name).stem.split("_") or name.endswith((".npz", ".safetensors", ".pt"))]


@pytest.mark.slow
def test_the_wheel_runs_in_an_environment_of_its_own(wheel: Path, tmp_path: Path) -> None:
    """A new virtual environment with the wheel; its dependencies are those of this one, by a path file."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv/bin/python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", str(wheel)], check=True)
    (site,) = (tmp_path / "venv/lib").glob("python*/site-packages")
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    command = [python, "-c", "import scenarios; print(scenarios.__file__)"]
    where = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert Path(where.stdout.strip()).is_relative_to(site)
    small = ("method.iterations=2", "evaluation.seeds=1", "evaluation.recipe.max_steps=2")
    settings = [part for setting in small for part in ("--set", setting)]
    command = [tmp_path / "venv/bin/distill", "run", "quickstart", *settings, "--out", tmp_path / "runs", "--device", "cpu"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "report.html").exists()
