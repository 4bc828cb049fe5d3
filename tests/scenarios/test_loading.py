"""On a terminal a command says something before torch is there; in a pipe and with --quiet it does not."""

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = "from scenarios.cli import main; main()"


def printed(folder: Path, *arguments: str, terminal: bool) -> str:
    """What the command prints to its standard error, up to the moment at which it imports torch, which here ends it."""
    (folder / "torch").mkdir(exist_ok=True)
    (folder / "torch/__init__.py").write_text("import os; os.write(2, b'<torch>'); os._exit(3)")
    paths = [str(folder), str(Path(__file__).parents[2])]
    ours, theirs = pty.openpty() if terminal else os.pipe()
    child = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "80"},
        stdout=subprocess.DEVNULL,
        stderr=theirs,
    )
    os.close(theirs)
    found = b""
    try:
        while part := os.read(ours, 1000):
            found += part
    except OSError:  # a terminal that nobody writes to any more
        pass
    assert child.wait() == 3, found
    os.close(ours)
    return found.decode()


@pytest.mark.parametrize(
    ("arguments", "terminal", "words"),
    [
        (["run", "quickstart"], True, "loading torch ...<torch>"),
        (["condense", "--data", "digits"], True, "loading torch ...<torch>"),
        (["run", "quickstart", "--quiet"], True, "<torch>"),
        (["run", "quickstart"], False, "<torch>"),
    ],
)
def test_a_command_says_that_torch_is_being_loaded(arguments: list[str], terminal: bool, words: str, tmp_path: Path) -> None:
    assert printed(tmp_path, *arguments, terminal=terminal) == words
