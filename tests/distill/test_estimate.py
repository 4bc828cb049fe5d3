"""What a run will take is said after its first steps; what makes no sense is refused before them."""

from pathlib import Path

import pytest
import torch

from distill.data import ImageData
from distill.errors import InputError
from distill.estimate import duration, estimate
from distill.networks import create, parameter_count
from distill.randomness import generator
from distill.records import read_json
from distill.run import condense
from tests.distill.test_every_method import small
from tests.scenarios.test_cli import call
from tests.scenarios.test_reason import SMALL

CPU = torch.device("cpu")


def test_a_long_run_is_estimated_after_a_few_steps_and_a_short_one_says_nothing() -> None:
    assert estimate(1, 500.0, 0.0, 20_000, CPU) is None, "the first step may have compiled"
    assert estimate(4, 0.3, 1.0, 20_000, CPU) is None
    assert estimate(11, 0.3, 3.0, 100, CPU) == ""
    text = estimate(101, 0.04, 4.0, 20_000, CPU)
    assert text is not None
    assert text.startswith("about 13 min for 20,000 steps, peak memory about ")
    assert (estimate(101, 300.0, 4.0, 20_000, CPU) or "").startswith("about 18 min for 20,000"), "compiling counts once"
    assert (estimate(2, 60.0, 60.0, 5000, CPU) or "").startswith("about 83.3 h for 5,000 steps"), "steps of a minute are not waited for"
    assert [duration(seconds) for seconds in (40, 720, 9000)] == ["40 s", "12 min", "2.5 h"]


def test_the_estimate_is_one_line_on_the_terminal(
    toy_data: ImageData, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("distill.estimate.SECONDS", 0.0)
    monkeypatch.setattr("distill.estimate.WORTH_SAYING", 0.0)
    condense(toy_data, "dm", iterations=5, **small("dm"))
    assert capfd.readouterr().err.count("for 5 steps, peak memory about") == 1
    condense(toy_data, "dm", iterations=5, progress=False, **small("dm"))
    assert "peak memory" not in capfd.readouterr().err


def test_more_images_than_the_data_hold_are_refused_or_confirmed(toy_data: ImageData, tmp_path: Path) -> None:
    settings = {**small("dm"), "iterations": 1}
    with pytest.raises(InputError, match=r"^ipc 13 asks for more images a class than any class of the data has \(12 at most\)"):
        condense(toy_data, "dm", ipc=13, **settings)
    assert condense(toy_data, "dm", ipc=13, more_images_than_data=True, **settings).ipc == 13
    code, _, errors = call(*SMALL, "--set", "iterations=1", "--ipc", "100000", "--out", tmp_path / "runs")
    assert code == 2
    assert "--more-images-than-data" in errors
    assert not (tmp_path / "runs").exists()
    code, _, errors = call(*SMALL, "--set", "iterations=1", "--ipc", "150", "--more-images-than-data", "--out", tmp_path / "runs")
    assert code == 0, errors


def test_a_run_that_diverged_goes_on_with_a_smaller_step_in_a_folder_of_its_own(tmp_path: Path) -> None:
    settings = [*SMALL, "--set", "iterations=6", "--out", tmp_path]
    assert call(*settings, "--set", "lr_img=1e38")[0] == 2
    (failed,) = tmp_path.iterdir()
    assert f"--resume-from {failed}" in read_json(failed / "record.json")["reason"]
    code, _, errors = call(*settings, "--set", "lr_img=0.5", "--resume-from", failed)
    assert code == 0, errors
    (other,) = [folder for folder in tmp_path.iterdir() if folder != failed]
    assert read_json(other / "record.json")["status"] == "done"
    assert read_json(other / "config.json")["continued"]["run"] == failed.name
    code, _, errors = call(*settings, "--set", "lr_img=0.5", "--resume-from", tmp_path)
    assert code == 2
    assert "there is no checkpoint-ipc1.safetensors" in errors
    assert read_json(failed / "record.json")["status"] == "failed"


def test_what_cannot_fit_is_refused_before_the_first_step(toy_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three classes at 5 images of 8 x 8: 7 copies of float32; gradient matching holds each class's gradient beside them."""
    images = 7 * 4 * 15 * 64
    small_run = {"ipc": 5, "network": "ConvNetD1W32", "iterations": 1}
    gradients = 4 * 3 * parameter_count(create("ConvNetD1W32", toy_data.spec, generator(0, "test")))
    for method, needed in (("dm", images), ("gm", images + gradients), ("dsa", images + gradients)):
        monkeypatch.setattr("distill.estimate.free_bytes", lambda needed=needed: needed - 1)
        with pytest.raises(InputError, match=r"the run does not fit.*ipc"):
            condense(toy_data, method, **small_run)
        monkeypatch.setattr("distill.estimate.free_bytes", lambda needed=needed: needed)
        condense(toy_data, method, **small_run)
