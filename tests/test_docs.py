"""Every code block of the pages is run, or, where it says that it needs more than a test has, checked; and the check can fail."""

import dataclasses
import re
import subprocess
from pathlib import Path

import click
import pytest

from distill import networks
from distill.errors import InputError
from distill.methods import METHODS
from distill.train import PROTOCOLS
from tests import test_examples
from tests.pages import COMMANDS, LANGUAGES, PAGES, ROOT, Block, blocks, check_command, check_python, check_toml, commands, inline_commands

BLOCKS = [block for page in PAGES for block in blocks(page.read_text(), str(page.relative_to(ROOT)))]
PYTHON = [block for block in BLOCKS if block.language == "python"]
EXAMPLES = {path.read_text().strip(): path for path in sorted((ROOT / "examples").iterdir()) if path.is_file()}
# Pages whose Python blocks another test runs, with what the page leaves to the reader.
ELSEWHERE = {
    "apps/continual/README.md": "tests/apps/continual/test_readme.py",
    "docs/exchange.md": "tests/test_sets.py",
    "docs/privacy.md": "tests/apps/privacy/test_page.py",
}


@pytest.fixture(autouse=True)
def _nothing_stays_known():
    before = [(known, dict(known)) for known in (METHODS, networks.OWN)]
    yield
    for known, kept in before:
        known.clear()
        known.update(kept)


def is_example(block: Block) -> bool:
    """Whether the block is a file of examples/, which test_examples.py runs."""
    path = EXAMPLES.get(block.text.strip())
    if path is None:
        return False
    assert path.name in (*test_examples.SCRIPTS, *test_examples.STUDIES, "mymethod.py")
    return True


def test_pages_are_found_and_every_block_says_what_it_is() -> None:
    assert len(PAGES) > 12
    assert len(PYTHON) > 12
    assert [f"{block}: {block.language!r}" for block in BLOCKS if block.language not in LANGUAGES] == []
    for block in BLOCKS:
        if block.language == "text":
            hidden = [line for line in block.text.splitlines() if line.split()[:1] and line.split()[0] in COMMANDS]
            assert not hidden, f"{block}: a command in a block of text: {hidden[0]}"


RUN = sorted({block.page for block in PYTHON if not (block.needs or is_example(block)) and block.page not in (*ELSEWHERE, "README.md")})


@pytest.mark.plain_layers  # pages show plain scripts
@pytest.mark.parametrize("page", RUN)
def test_python_blocks_run_one_after_the_other(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if page == "docs/tracking.md":
        pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "page"}
    for block in PYTHON:
        if block.page == page and not block.needs and not is_example(block):
            exec(compile("\n" * block.line + block.text, str(ROOT / page), "exec"), names)


@pytest.mark.parametrize("smaller", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_readmes_example(smaller: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As printed, under the slow marker; with a small network, few steps and the rest as printed, always."""
    monkeypatch.chdir(tmp_path)
    (code,) = [block.text for block in PYTHON if block.page == "README.md"]
    if smaller:
        monkeypatch.setitem(PROTOCOLS, "laptop", dataclasses.replace(PROTOCOLS["laptop"], max_steps=20))
        for printed, small in (("ConvNetW64", "ConvNetD1W16"), ("iterations=50", "iterations=3")):
            assert printed in code
            code = code.replace(printed, small)
    exec(compile(code, "README.md", "exec"), {"__name__": "page"})
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("condensed", "random", "whole", "±"))
    assert (tmp_path / "digits.safetensors").is_file()


@pytest.mark.parametrize("block", [block for block in PYTHON if block.needs], ids=str)
def test_a_block_that_needs_more_is_checked(block: Block) -> None:
    for package in re.findall(r"^import (mlflow|wandb)$", block.text, re.MULTILINE):
        pytest.importorskip(package)
    check_python(block.text, str(block))


@pytest.mark.parametrize(("page", "test"), ELSEWHERE.items())
def test_blocks_that_run_elsewhere_do(page: str, test: str) -> None:
    code = (ROOT / test).read_text()
    assert Path(page).name in code
    assert "exec(" in code
    assert "```python" in code


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "toml"], ids=str)
def test_toml_blocks_are_studies(block: Block) -> None:
    check_toml(block.text, str(ROOT / "examples" / "page.toml"))


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language == "sh"], ids=str)
def test_shell_blocks_are_commands_that_exist(block: Block) -> None:
    if any(tool in block.text for tool in ("flwr ", "flower-")):
        pytest.importorskip("flwr")
    found = commands(block.text)
    assert found
    if "[--" not in block.text and "<" not in block.text and not re.search(r"\w  +[^#\s\\]", block.text):  # no synopsis, no prose beside
        subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for words in found:
        check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_in_the_text_exist(page: Path) -> None:
    for command in inline_commands(page.read_text()):
        for words in commands(command):
            check_command(words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_pictures_are_there(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page}: {target}"


def test_the_readme_is_short() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) < 110
    tables = "\n".join(line if line.startswith("|") else "" for line in lines).split("\n\n")
    assert max(len(table.strip().splitlines()) for table in tables) <= 12 + 2, "rows of a table, its head aside"


# The checks can fail


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("distill run quickstrat", "quickstrat"),
        ("distill run no-such-study.toml", "there is no such file"),
        ("distill run quickstart --sed 3", "--sed"),
        ("distill run quickstart --set method.iterations=many", "'iterations' is \"many\""),
        ("distill run quickstart --set method.iteration=3", "'iteration' is not known"),
        ("distill run paper-dm-cifar11-ipc10", "paper-dm-cifar11-ipc10"),
        ("distill condense --data digts", "digts"),
        ("distill condense --data digits --method dmm", "'dmm' is not known"),
        ("distill condense --data digits --set lr=1", "'lr' is not known"),
        ("distill evaluate SET.safetensors --data digits --network ConvNett", "'ConvNett' is not known"),
        ("distill evaluate SET.safetensors --data digits --baseline rndom", "no such baseline"),
        ("distill evaluate SET.safetensors", "Missing parameter: data"),
        ("distill list method", "no such list"),
        ("distill shwo SET.safetensors", "distill shwo: no such command"),
        ("distill run SCENARIO [--seeed N]", "--seeed: no such option"),
        ("python -m apps.privacy.adit scores.npz", "apps.privacy.adit: no such module"),
        ("python -m apps.privacy.audit scores.npz --clamed 3", "its parser refuses that"),
        ("python -m apps.privacy.audit scores.npz [--clamed EPSILON]", "--clamed: no such option"),
        ("python -m kept.pages --all", "its parser refuses that"),
        ("python script.py", "python script.py"),
        ("make tset", "make tset: not in the Makefile"),
        ('make reproduce REPRODUCE="--minute 3 x --form papers"', "its parser refuses that"),
        ('pip install "distill-apps[federate]"', "distill-apps[federate]"),
        ("distil run quickstart", "'distil' is no command"),
    ],
)
def test_a_wrong_command_is_found(command: str, words: str) -> None:
    with pytest.raises((AssertionError, InputError, click.UsageError)) as wrong:
        check_command(commands(command)[0])
    assert words in str(wrong.value)


@pytest.mark.parametrize(
    "code",
    [
        "from distill import distill",
        "import distil",
        "import distill\ndistill.condense(data)",
        "import distill\ndata = distill.load('digits', sise=3)",
        "import distill\ndata = distill.load('digits')\ndistill.condense(data, method='dm', iteration=3)",
        "import distill\ndata = distill.laod('digits')",
        "import distill\nif True print(distill)",
    ],
)
def test_a_wrong_python_block_is_found(code: str) -> None:
    with pytest.raises((AssertionError, ImportError, AttributeError, SyntaxError)):
        check_python(f"# needs an hour\n{code}", "page")


def test_a_wrong_toml_block_is_found() -> None:
    good = 'kind = "condense"\n[data]\nname = "digits"\n[method]\niterations = 3'
    check_toml(good, "page.toml")
    for wrong in (good.replace("iterations", "iteration"), good.replace("condense", "condens"), good.replace("3", '"3"')):
        with pytest.raises(InputError):
            check_toml(wrong, "page.toml")


def test_blocks_are_found_where_they_are() -> None:
    page = "a\n\n    distill run x\n\n```python\nb = 1\n```\n- list\n  more\n\n```\nc\n```\n\n    tree/\n      leaf\n"
    assert [(b.line, b.language, b.text) for b in blocks(page, "p")] == [
        (3, "sh", "distill run x"),
        (5, "python", "b = 1"),
        (11, "", "c"),
        (15, "text", "tree/\n  leaf"),
    ]
    assert inline_commands("a `distill run\nx` b\n```sh\n`distill run y`\n```\n") == ["distill run x"]
