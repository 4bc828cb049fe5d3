"""Hooks of mkdocs: the site has the repository's own folders, so that every relative link of a page holds in both.

Pages are README.md, CONTRIBUTING.md, CHANGELOG.md, docs/*.md and apps/*/README.md; files that they link to are copied as they are;
docs/tutorial.ipynb becomes a page; each package gets an API page that mkdocstrings fills from the docstrings.
"""

import ast
import json
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PAGES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "docs/*.md", "apps/*/README.md")
PACKAGES = ("distill", "distill.methods", "apps.federated", "apps.continual", "apps.privacy", "apps.nas")
LINK = re.compile(r"\]\(([^)#\s]+)")


def pages() -> list[Path]:
    return sorted(path for pattern in PAGES for path in ROOT.glob(pattern))


def linked(page: Path) -> set[Path]:
    """Files of the repository that a page links to."""
    targets = LINK.findall(page.read_text())
    return {(page.parent / target).resolve() for target in targets if not target.startswith(("http://", "https://"))}


def notebook_page(notebook: Path) -> str:
    """The notebook's cells as Markdown."""
    cells = json.loads(notebook.read_text())["cells"]
    return "\n\n".join("".join(c["source"]) if c["cell_type"] == "markdown" else f"```python\n{''.join(c['source'])}\n```" for c in cells)


def public_names() -> dict[str, str]:
    """The names of `distill` and the modules that define them; the package imports them lazily, so they are read from its source."""
    for node in ast.parse((ROOT / "distill" / "__init__.py").read_text()).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_HOMES":
            return dict(ast.literal_eval(node.value))
    raise ValueError("distill/__init__.py has no table _HOMES of its public names")


def api_page(package: str) -> str:
    """Directives of mkdocstrings for a package and its modules; for `distill` after links to its public names."""
    modules = sorted(path.stem for path in (ROOT / package.replace(".", "/")).glob("*.py") if not path.stem.startswith("_"))
    if package == "distill":
        parts = [f"Public names, imported from `{package}`:"]
        # tables such as METHODS have no docstring, so no anchor: their links lead to the module
        homes = [(name, f"distill.{module}" if name.isupper() else f"distill.{module}.{name}") for name, module in public_names().items()]
        parts += ["\n".join(f"- [`{name}`][{home}]" for name, home in sorted(homes))]
    else:
        parts = [f"::: {package}\n    options:\n      members: []"]
    return f"# {package}\n\n" + "\n\n".join([*parts, *(f"::: {package}.{module}" for module in modules)]) + "\n"


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.nav = [*(config.nav or []), {"API reference": [{package: f"api/{package}.md"} for package in PACKAGES]}]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    for file in list(files):
        if file.src_dir == config.docs_dir:
            files.remove(file)
    paths = set(pages()).union(*map(linked, pages()))
    for path in sorted(paths):
        name = path.relative_to(ROOT).as_posix()
        if path.suffix != ".ipynb":
            files.append(File.generated(config, name, abs_src_path=str(path)))
    tutorial = ROOT / "docs" / "tutorial.ipynb"
    files.append(File.generated(config, "docs/tutorial.md", content=notebook_page(tutorial)))
    for package in PACKAGES:
        files.append(File.generated(config, f"api/{package}.md", content=api_page(package)))
    return files


def on_page_markdown(markdown: str, page: object, config: MkDocsConfig, files: Files) -> str:
    """Links to the notebook are links to its page."""
    return re.sub(r"(\]\([^)\s]*tutorial)\.ipynb", r"\1.md", markdown)
