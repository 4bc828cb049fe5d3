"""Three floors, arrows point down only: scenarios/ uses apps/ and distill/, apps/ use distill/, distill/ uses neither."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = ("distill", "apps", "scenarios")
ENGINES = {"flwr", "ray", "avalanche", "opacus", "optuna"}


def imported(tree: ast.AST, package: str) -> Iterator[tuple[int, str]]:
    """(line, full module name) of every import, at the top or inside a function; ``package`` resolves relative ones."""
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
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in ("import_module", "__import__"):
                yield node.lineno, node.args[0].value


def violations(path: Path, root: Path) -> list[str]:
    """The imports of a file that point up or sideways."""
    parts = path.relative_to(root).with_suffix("").parts
    floor, app = parts[0], parts[1] if len(parts) > 2 else ""
    found = []
    for line, name in imported(ast.parse(path.read_text(encoding="utf-8")), ".".join(parts[:-1])):
        top, _, rest = name.partition(".")
        other = rest.partition(".")[0]
        wrong = {
            "distill": top in {"apps", "scenarios", "tests", "benchmarks"} | ENGINES,
            "apps": top in {"scenarios", "tests", "benchmarks"} or (top == "apps" and other != app),
            "scenarios": top in {"tests", "benchmarks"} | ENGINES,
        }[floor]
        if wrong:
            found.append(f"{path.relative_to(root)}:{line}: imports {name}")
    return found


def test_arrows_point_down() -> None:
    files = [path for floor in FLOORS for path in sorted((ROOT / floor).rglob("*.py"))]
    assert len(files) > 20
    assert [line for path in files for line in violations(path, ROOT)] == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("distill/data.py", "import apps.federated"),
        ("distill/data.py", "from apps import federated"),
        ("distill/data.py", "from scenarios.engine.schema import study"),
        ("distill/methods/dm.py", "from ... import apps"),
        ("distill/methods/dm.py", "def f():\n    import flwr.server"),
        ("distill/data.py", "import importlib\nimportlib.import_module('opacus.accountants')"),
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
    ],
)
def test_the_walk_catches_a_planted_arrow(tmp_path: Path, place: str, line: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
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
        ("scenarios/cli.py", "import apps.federated\nimport distill\nfrom scenarios import schema"),
    ],
)
def test_the_walk_lets_arrows_down_pass(tmp_path: Path, place: str, line: str) -> None:
    path = tmp_path / place
    path.parent.mkdir(parents=True)
    path.write_text(line + "\n")
    assert violations(path, tmp_path) == []
