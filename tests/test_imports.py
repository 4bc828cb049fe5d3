"""Imports point down and make no circle: distill, apps, engine and reporting, kinds, catalogue, sweep, commands, cli, kept."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("distill", "apps", "scenarios", "kept")
ENGINES = {"flwr", "ray", "avalanche", "opacus", "optuna"}
SHARED = ("engine", "reporting")  # of scenarios/: what every kind of study uses
ABOVE = ("catalogue", "sweep", "commands", "cli", "cell")  # what knows all kinds, lowest first
# Places that may import what a name says: a user's own files, the lazy face of the core, the one door to Avalanche.
BY_NAME = {"scenarios/engine/own.py", "distill/__init__.py", "apps/continual/engine.py"}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import, at the top or inside a function; ``package`` resolves relative ones. A module that is
    imported by a text which is not written out is ``?``."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            parents = package.split(".")
            base = (
                [*parents[: len(parents) - node.level + 1], *(node.module or "").split(".")]
                if node.level
                else (node.module or "").split(".")
            )
            name = ".".join(part for part in base if part)
            # "from apps import federated" imports a module as much as "import apps.federated" does.
            yield from ((node.lineno, f"{name}.{alias.name}" if name else alias.name) for alias in node.names)
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                first = node.args[0]
                yield node.lineno, first.value if isinstance(first, ast.Constant) and isinstance(first.value, str) else "?"


def package_of(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts[:-1])


def violations(path: Path, root: Path) -> list[str]:
    """The imports of a file that point up or sideways, or whose target is not written out."""
    place = path.relative_to(root)
    parts = place.with_suffix("").parts
    floor, room = parts[0], parts[1] if len(parts) > 1 else ""
    found = []
    for line, name in imported(ast.parse(path.read_text(encoding="utf-8")), package_of(path, root)):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        outside = {"tests", "benchmarks", "kept"}
        wrong = {
            "distill": top in {"apps", "scenarios"} | outside | ENGINES,
            "apps": top in {"scenarios"} | outside or (top == "apps" and other != room and len(parts) > 2),
            "scenarios": top in outside | ENGINES or (top == "scenarios" and not below(other, room) and "flower_app" not in parts),
            "kept": top in {"tests", "benchmarks"} | ENGINES,
        }[floor]
        if "flower_app" in parts and top == "flwr":
            wrong = False
        if wrong or (name == "?" and str(place) not in BY_NAME):
            found.append(f"{place}:{line}: imports {name if name != '?' else 'a module whose name is not written out'}")
    return found


def below(other: str, room: str) -> bool:
    """Whether a package of scenarios/ may import another one: itself, what is shared, and, for what knows all kinds, what is not above."""
    if other == room or other in ("", "__file__"):
        return True
    if other in ABOVE:
        return room in ABOVE and ABOVE.index(other) <= ABOVE.index(room)
    return other in SHARED or room in ABOVE


def files() -> list[Path]:
    return [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]


def circles(paths: list[Path], root: Path) -> list[set[str]]:
    """Groups of modules that import each other, directly or through others, at the top or inside functions."""
    modules = {".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__"): path for path in paths}
    arrows: dict[str, set[str]] = {}
    for module, path in modules.items():
        names = {name for _, name in imported(ast.parse(path.read_text(encoding="utf-8")), package_of(path, root))}
        known = {name if name in modules else name.rpartition(".")[0] for name in names}
        arrows[module] = {name for name in known if name in modules and name != module}

    def reached(start: str) -> set[str]:
        seen, waiting = set[str](), [start]
        while waiting:
            for name in arrows[waiting.pop()] - seen:
                seen.add(name)
                waiting.append(name)
        return seen

    far = {module: reached(module) for module in modules}
    groups = {frozenset(other for other in far[module] if module in far[other]) for module in modules if module in far[module]}
    return [set(group) for group in groups]


def test_arrows_point_down() -> None:
    assert len(files()) > 100
    assert [line for path in files() for line in violations(path, ROOT)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(files(), ROOT) == []


def planted(root: Path, sources: dict[str, str]) -> list[Path]:
    for place, source in sources.items():
        path = root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source + "\n")
    return [root / place for place in sources]


@pytest.mark.parametrize(
    "sources",
    [
        {"distill/a.py": "import distill.b", "distill/b.py": "from distill import a"},
        {
            "distill/a.py": "from distill.b import f",
            "distill/b.py": "def f():\n    from distill.c import g",
            "distill/c.py": "import distill.a",
        },
        {"distill/a.py": "from distill.b import f", "distill/b.py": "import importlib\nimportlib.import_module('distill.a')"},
    ],
)
def test_a_planted_circle_is_found(tmp_path: Path, sources: dict[str, str]) -> None:
    names = {Path(place).stem for place in sources}
    assert circles(planted(tmp_path, sources), tmp_path) == [{f"distill.{name}" for name in names}]
    assert circles(planted(tmp_path, {"distill/a.py": "import torch"} | {"distill/b.py": "import distill.a"}), tmp_path) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("distill/data.py", "import apps.federated"),
        ("distill/data.py", "from apps import federated"),
        ("distill/data.py", "from scenarios.engine.schema import DataTable"),
        ("distill/methods/dm.py", "from ... import apps"),
        ("distill/methods/dm.py", "def f():\n    import flwr.server"),
        ("distill/data.py", "import importlib\nimportlib.import_module('opacus.accountants')"),
        ("distill/data.py", "import importlib\nimportlib.import_module(f'distill.{name}')"),
        ("scenarios/engine/folder.py", "import importlib\nimportlib.import_module(f'scenarios.{kind}')"),
        ("distill/data.py", "if True:\n    from avalanche.benchmarks import x"),
        ("distill/data.py", "import torch, ray"),
        ("distill/data.py", "try:\n    import optuna as o\nexcept ImportError:\n    o = None"),
        ("distill/data.py", "from tests.conftest import toy"),
        ("apps/federated/wire.py", "from apps.privacy import accounting"),
        ("apps/federated/wire.py", "from apps import privacy"),
        ("apps/federated/wire.py", "from ..privacy.accounting import epsilon"),
        ("apps/federated/wire.py", "from .. import privacy"),
        ("apps/federated/wire.py", "import scenarios.cli"),
        ("scenarios/cli.py", "import flwr"),
        ("scenarios/cli.py", "import kept.pages"),
        ("scenarios/engine/folder.py", "from scenarios.condense import run"),
        ("scenarios/engine/folder.py", "from scenarios import catalogue"),
        ("scenarios/condense/run.py", "from scenarios.privacy import show"),
        ("scenarios/condense/run.py", "from scenarios.catalogue import KINDS"),
        ("scenarios/catalogue.py", "from scenarios.commands import run"),
    ],
)
def test_the_walk_catches_a_planted_arrow(tmp_path: Path, place: str, line: str) -> None:
    (path,) = planted(tmp_path, {place: line})
    assert len(violations(path, tmp_path)) == 1


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("distill/data.py", "from distill.spec import DataSpec\nimport torch\nimport raymond\nfrom . import spec"),
        ("distill/methods/dm.py", "from ..spec import DataSpec"),
        (
            "apps/federated/wire.py",
            "import flwr\nfrom apps.federated.strategy import S\nfrom .strategy import S\nfrom . import strategy\nimport distill",
        ),
        ("scenarios/cli.py", "import apps.federated\nimport distill\nfrom scenarios import catalogue"),
        ("scenarios/catalogue.py", "from scenarios.condense.kind import KIND\nfrom scenarios.engine import folder"),
        ("scenarios/condense/run.py", "from scenarios.engine import study\nfrom scenarios.condense import schema"),
        ("kept/pages.py", "from scenarios.cli import main\nfrom kept import nas"),
    ],
)
def test_the_walk_lets_arrows_down_pass(tmp_path: Path, place: str, line: str) -> None:
    (path,) = planted(tmp_path, {place: line})
    assert violations(path, tmp_path) == []
