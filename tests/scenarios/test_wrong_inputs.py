"""Wrong inputs from the pages: exit code 2, one line that says what was given and what to do, and nothing left behind.

The inputs (wrong_inputs.py) were written from --help and the pages, and committed before their first run. In it 182 of 200 were right.
Eight were faults of the program: a path too long for a name (a traceback); a seed of 40 digits, ``--jobs 0`` and ``-2`` without a grid, and
a class named twice were taken; two messages about a grid did not name the key, and one about a network not the function. Ten
expectations were wrong. Two grids with one right alternative were replaced by grids without one, since the pages say that the right
runs are made. Two scenario files (continual and nas, three inputs) had another mistake, which was named first. Five clear messages had
other words than the list asked for; the words were changed.
"""

import signal
import tempfile
from pathlib import Path

import pytest

from scenarios import cli
from tests.scenarios.wrong_inputs import CASES, Case

SECONDS = 20  # a wrong input that is accepted would start a run


def written(folder: Path) -> dict[str, bytes | None]:
    paths = [path for path in sorted(folder.rglob("*")) if "__pycache__" not in path.parts]
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in paths}


def too_long(*_: object) -> None:
    raise TimeoutError(f"accepted: still at work after {SECONDS} s")


@pytest.fixture
def empty_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A current folder and a folder for temporary files, both empty; no data anywhere."""
    here, temporary = tmp_path / "here", tmp_path / "temporary"
    here.mkdir()
    temporary.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path / "no-data"))
    monkeypatch.delenv("DISTILL_DOWNLOAD", raising=False)
    return here, temporary


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_wrong_input_is_one_line(case: Case, empty_places: tuple[Path, Path], capfd: pytest.CaptureFixture[str]):
    here, temporary = empty_places
    for name, content in case.files.items():
        path = here / name
        (path if content is None else path.parent).mkdir(parents=True, exist_ok=True)
        if content is not None:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    before = written(here)
    previous = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(SECONDS)
    try:
        with pytest.raises(SystemExit) as stopped:
            cli.main(list(case.arguments))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    printed = capfd.readouterr().err
    faults = []
    if stopped.value.code != 2:
        faults.append(f"exit code {stopped.value.code}")
    if len(printed.splitlines()) != 1 or not printed.startswith("error: ") or "Traceback" in printed:
        faults.append("not one line")
    faults += [f"does not say {word!r}" for word in case.words if word not in printed]
    faults += [f"left behind: {name}" for name in sorted(written(here).keys() ^ before.keys())]
    # Torch makes a cache folder of its own when its compiler is imported for the first time.
    faults += [f"temporary: {name}" for name in written(temporary) if not name.startswith("torchinductor_")]
    if written(here) != before:
        faults.append("files were changed")
    assert not faults, f"{faults}\n{printed[-1500:]}"
