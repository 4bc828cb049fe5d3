"""The pages as a site: links between them hold, the tutorial runs, and `mkdocs build --strict` passes where mkdocs is installed."""

import ast
import json
import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from tests.pages import PAGES, ROOT

TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
CELLS = json.loads(TUTORIAL.read_text())["cells"]
EVERY = [*PAGES, ROOT / "CHANGELOG.md", TUTORIAL]


def text_of(page: Path) -> str:
    """A page's Markdown without code blocks; of a notebook its Markdown cells."""
    if page.suffix == ".ipynb":
        return "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "markdown")
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub and mkdocs make them."""
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    plain = [unicodedata.normalize("NFKD", heading).encode("ascii", "ignore").decode().lower() for heading in headings]
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip()) for heading in plain}


def broken(page: Path, text: str) -> list[str]:
    """Links to a file or heading of the repository that does not exist."""
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        if not link.startswith(("http://", "https://")) and (
            not path.is_file() or not path.is_relative_to(ROOT) or (anchor and anchor not in anchors(text_of(path)))
        ):
            missing.append(f"{page.relative_to(ROOT)}: {link}")
    return missing


@pytest.mark.parametrize("page", EVERY, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_their_headings_exist(page: Path) -> None:
    assert broken(page, text_of(page)) == []


def test_a_broken_link_is_found() -> None:
    text = "# A b\n[a](#a-b) [c](#c) [d](docs/nas.md) [e](docs/none.md) [f](docs/nas.md#none) [g](docs) [h](../x)"
    links = [line.partition(": ")[2] for line in broken(ROOT / "README.md", text.replace("#a-b", "#layout"))]
    assert links == ["#c", "docs/none.md", "docs/nas.md#none", "docs", "../x"]


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    named = set(re.findall(r": ([\w./-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE))
    pages = {str(page.relative_to(ROOT)) for page in EVERY if page != TUTORIAL}
    assert named == pages | {"docs/tutorial.md"}


@pytest.mark.plain_layers  # the tutorial builds a plain torch network
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    import matplotlib.pyplot as plt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(plt, "show", lambda: None)
    plt.switch_backend("Agg")
    names: dict[str, object] = {"__name__": "tutorial"}
    code = [cell for cell in CELLS if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, 1):
        assert cell["outputs"] == []
        assert cell["execution_count"] is None
        exec(compile("".join(cell["source"]), f"tutorial.ipynb, code cell {number}", "exec"), names)
    plt.close("all")
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("condensed", "random", "class_mean", "±"))
    accuracy = names["accuracy"]
    assert isinstance(accuracy, float)
    assert accuracy > 0.5
    assert (tmp_path / "digits.safetensors").is_file()


def test_the_site_builds_without_warnings_and_loads_nothing_from_elsewhere(tmp_path: Path) -> None:
    for package in ("mkdocs", "material", "mkdocstrings"):
        pytest.importorskip(package)
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr[-3000:]
    site = {path.relative_to(tmp_path).as_posix(): path.read_text() for path in tmp_path.rglob("*.html")}
    assert {"index.html", "docs/tutorial.html", "apps/privacy/index.html", "api/distill.html"} <= set(site)
    assert 'id="distill.run.condense"' in site["api/distill.html"]
    for name, text in site.items():
        loaded = re.findall(
            r"<(?:script|img|iframe)[^>]* src=\"(https?:[^\"]*)|<link[^>]* rel=\"?(?:stylesheet|preconnect)[^>]*(https?:[^\" ]*)", text
        )
        assert loaded == [], name
    assert "search/search_index.json" in {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.json")}


def unknown_arguments(tree: ast.Module) -> list[str]:
    """Entries of "Args:" sections that are no parameter; for a class, no parameter of `__init__` and no field of a standard dataclass.

    The API reference reads sources only: a config_class documents its fields under "Attributes:".
    """
    missing = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        section = re.search(r"^Args:\n((?:[ ]{4}.*\n?|\n)+)", ast.get_docstring(node) or "", re.MULTILINE)
        entries = re.findall(r"^ {4}(\S[^:\n]*):", section[1], re.MULTILINE) if section else []
        known: set[str] = set()
        functions = (
            [node] if not isinstance(node, ast.ClassDef) else [part for part in node.body if getattr(part, "name", "") == "__init__"]
        )
        for function in functions:
            if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                args = function.args
                every = [*args.posonlyargs, *args.args, *args.kwonlyargs, args.vararg, args.kwarg]
                known |= {argument.arg for argument in every if argument}
        standard = any(re.match(r"(dataclasses\.)?dataclass\b", ast.unparse(decorator)) for decorator in node.decorator_list)
        if isinstance(node, ast.ClassDef) and standard:
            fields = [part.target for part in node.body if isinstance(part, ast.AnnAssign)]
            known |= {field.id for field in fields if isinstance(field, ast.Name)}
        missing += [f"{node.name}: {entry}" for entry in entries if re.sub(r" \(.*\)$", "", entry.lstrip("*")) not in known]
    return missing


@pytest.mark.parametrize("package", ["distill", "apps"])
def test_documented_arguments_exist(package: str) -> None:
    trees = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in sorted((ROOT / package).rglob("*.py"))}
    assert {str(path): missing for path, tree in trees.items() if (missing := unknown_arguments(tree))} == {}


def test_an_argument_that_does_not_exist_is_found() -> None:
    docstring = '"""Run.\n\n    Args:\n        a: one.\n        b, c: two\n            and: more.\n        d: three.\n    """'
    assert unknown_arguments(ast.parse(f"def run(a, *, b):\n    {docstring}\n")) == ["run: b, c", "run: d"]
    assert unknown_arguments(ast.parse(f"@dataclass\nclass A:\n    {docstring}\n    a: int\n    d: int\n")) == ["A: b, c"]
    assert len(unknown_arguments(ast.parse(f"@pydantic.dataclasses.dataclass\nclass A:\n    {docstring}\n    a: int\n"))) == 3
