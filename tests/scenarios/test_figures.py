"""`distill show`, `report` and `figures`: files are what their name says, and places that are none are one line."""

import errno
import os
from pathlib import Path
from typing import NoReturn

import pytest

from tests.distill.hostile_files import small_set
from tests.distill.test_figures import coloured
from tests.scenarios.test_cli import CONDENSE, call, refused

STARTS = {".png": b"\x89PNG", ".pdf": b"%PDF-", ".svg": b"<?xml"}


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    small_set(0).save(tmp_path / "set.safetensors")
    return tmp_path / "set.safetensors"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("run")
    assert call(*CONDENSE, "--out", place)[0] == 0
    (folder,) = place.iterdir()
    return folder


def test_show_writes_what_the_name_says(tiny: Path) -> None:
    for suffix, start in STARTS.items():
        path = tiny.parent / f"not/yet/there/x{suffix}"
        code, out, _ = call("show", tiny, "--out", path, "--dpi", 60)
        assert code == 0
        assert str(path) in out
        assert path.read_bytes().startswith(start)


def test_a_place_that_is_no_file_is_one_line(tiny: Path, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny.parent)
    (tiny.parent / "somefolder").mkdir()
    (tiny.parent / "folder.png").mkdir()
    (tiny.parent / "folder.html").mkdir()
    before = sorted(tiny.parent.rglob("*"))
    for command, wrong in (("show", "folder.png"), ("report", "folder.html")):
        given = tiny if command == "show" else run
        for out in (".", "/", "..", "", "somefolder", "x.jpg", "x", "x.safetensors", wrong, "/proc/nowhere/x.png", "/proc/nowhere/x.html"):
            said = refused(command, given, "--out", out)
            assert "--resume" not in said, "nothing resumes here"
            assert any(words in said for words in ("ends in", "is a folder", "cannot be written", "is an empty path"))
    assert "is not a file" in refused("show", tiny.parent)
    refused("report", tiny)
    refused("figures", run, "--out", tiny)
    refused("figures", tiny.parent)
    refused("figures", run, "--format", "jpg")
    refused("figures", run, "--dpi", 5)
    assert sorted(tiny.parent.rglob("*")) == before, "something was left behind"


def no_writing(*_: object, **__: object) -> NoReturn:
    raise PermissionError(errno.EACCES, "Permission denied")


@pytest.mark.parametrize("hindered", ["", "pathlib.Path.mkdir", "scenarios.engine.folder.locked"])
def test_a_new_run_that_cannot_write_advises_another_folder(hindered: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    if hindered:
        monkeypatch.setattr(hindered, no_writing)
    said = refused(*CONDENSE, "--out", tmp_path / ("runs" if hindered else "file"))
    reason = "Permission denied" if hindered else "Not a directory"
    assert said.endswith(f": cannot be written ({reason}); give another folder (--out).\n"), said


def test_a_run_that_stopped_writing_says_how_to_continue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_writing)
    said = refused(*CONDENSE, "--out", tmp_path / "runs")
    assert said.endswith("give a place that can be written. A run that stopped continues with --resume.\n"), said


def test_show_prints_the_names_that_the_picture_cannot_show(tmp_path: Path) -> None:
    coloured([1, 1], ["数字", "cat"]).save(tmp_path / "set.safetensors")
    out = call("show", tmp_path / "set.safetensors")[1]
    assert "(class numbers: 0: 数字; 1: cat)\n" in out


def test_figures_of_a_finished_run_are_drawn_again(run: Path, tmp_path: Path) -> None:
    names = {path.stem for path in (run / "figures").glob("*.png")}
    assert names == {"loss", "images-ipc1"}
    before = {path.name: path.read_bytes() for path in (run / "figures").glob("*.png")}
    for form in ("pdf", "svg", "png"):
        code, out, _ = call("figures", run, "--format", form, "--out", tmp_path / form)
        assert code == 0
        assert {Path(line).name for line in out.splitlines()} == {f"{name}.{form}" for name in names}
        assert all((tmp_path / form / f"{name}.{form}").read_bytes().startswith(STARTS[f".{form}"]) for name in names)
    assert {path.name: path.read_bytes() for path in (tmp_path / "png").iterdir()} == before, "the same figures, the same bytes"
    (run / "figures/pairs-x.png").write_bytes(b"")
    assert "pairs-x.png" in call("figures", run, "--out", tmp_path / "again")[2]
    (run / "figures/pairs-x.png").unlink()
