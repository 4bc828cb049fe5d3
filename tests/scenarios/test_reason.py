"""A record says why its run ended early, in one line, and what to do where that is known."""

from pathlib import Path

import pytest

from distill.records import CannotWrite, read_json, write_whole
from tests.scenarios.test_cli import call

SMALL = ["condense", "--data", "digits", "--device", "cpu", "--quiet", "--set", "network=ConvNetD1W32", "--set", "batch_real=4"]


def test_a_run_that_diverges_ends_with_one_line_and_its_record_keeps_it(tmp_path: Path) -> None:
    arguments = [*SMALL, "--set", "iterations=60", "--set", "lr_img=1e38", "--out", tmp_path]
    code, _, errors = call(*arguments)
    assert code == 2
    (line,) = errors.strip().splitlines()
    assert line.startswith("error: dm diverged at step ")
    assert " of 60 with lr_img 1e+38; try a smaller step size: lr_img=1." in line
    (folder,) = tmp_path.iterdir()
    record = read_json(folder / "record.json")
    assert record["status"] == "failed"
    assert record["reason"] == line.removeprefix("error: ")
    assert (folder / "checkpoint-ipc1.safetensors").exists()
    code, _, again = call(*arguments, "--resume")
    assert code == 2
    assert "it would diverge again" in again


def test_the_reason_of_a_fault_of_ours_is_its_kind_and_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*arguments: object, **named: object) -> None:
        raise ZeroDivisionError("two\nlines")

    monkeypatch.setattr("scenarios.condense.run.condense", broken)
    assert call(*SMALL, "--out", tmp_path)[0] == 1
    (folder,) = tmp_path.iterdir()
    assert read_json(folder / "record.json")["reason"] == "ZeroDivisionError: two lines"
    monkeypatch.setattr("scenarios.condense.run.condense", lambda *arguments, **named: (_ for _ in ()).throw(KeyboardInterrupt))
    assert call(*SMALL, "--out", tmp_path, "--resume")[0] == 130
    assert read_json(folder / "record.json")["reason"] == "stopped by Ctrl-C or a signal"


def test_only_a_run_is_told_that_it_goes_on_with_resume(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CannotWrite) as caught:
        write_whole(tmp_path / "file" / "set.png", b"")
    assert "resume" not in str(caught.value)
