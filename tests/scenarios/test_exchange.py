"""``distill import`` and ``distill export``: what they print, what they write, and one line for a mistake."""

import os
from pathlib import Path

import pytest
import torch

from distill.condensed import CondensedSet
from distill.data_sources import load
from tests.scenarios.test_cli import call, refused

IMPORT = ["import", "--data", "digits", "--device", "cpu"]


def saved(folder: Path, shift: int = 0) -> list[Path]:
    """Three real digits a class in MTT's two files; ``shift`` moves the class numbers."""
    data = load("digits")
    chosen = torch.cat([data.class_indices(label)[:3] for label in range(10)])
    torch.save(data.normalised("train", chosen), folder / "images_best.pt")
    torch.save((data.train.labels[chosen] + shift) % 10, folder / "labels_best.pt")
    return [folder / "images_best.pt", folder / "labels_best.pt"]


def test_a_set_is_imported_tried_out_and_exported(tmp_path: Path) -> None:
    out = tmp_path / "own.safetensors"
    code, text, err = call(*IMPORT, *saved(tmp_path), "--values", "normalised", "--lr", "0.02", "--out", out)
    assert (code, err) == (0, "")
    assert "read as mtt (MTT, FTD, TESLA, DATM, PAD): images normalised, decode none, labels class numbers, learned lr 0.02" in text
    assert "check: ConvNetW32 trained on it classifies" in text
    assert "warning" not in text
    assert text.endswith(f"next: distill evaluate {out} --data digits\n")
    tiny = CondensedSet.load(out)
    assert (len(tiny), tiny.lr, tiny.provenance.method) == (30, 0.02, "imported")

    code, text, err = call("export", out, "--as", "png")
    assert (code, err) == (0, "")
    assert text.startswith(f"{tmp_path / 'own-png'}: 31 files\nPNG keeps 256 values of a pixel: the largest error is 0.00")
    assert len(list((tmp_path / "own-png").rglob("*.png"))) == 30
    assert "is there and not empty" in refused("export", out, "--as", "png")
    assert "format 'jpg' is not known; did you mean 'png'?" in refused("export", out, "--as", "jpg")


def test_a_set_at_chance_is_explained(tmp_path: Path) -> None:
    out = tmp_path / "own.safetensors"
    code, text, _ = call(*IMPORT, *saved(tmp_path, shift=3), "--values", "normalised", "--lr", "none", "--out", out)
    assert code == 0
    assert "warning: this is chance, so something was read wrongly: no other reading of the values does better. Compare the order" in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "do not say what the images are: --values pixels, normalised or whitened"),
        (["--values", "normalised"], "the learned step size: --lr NUMBER"),
        (["--values", "normalised", "--lr", "much"], "--lr is 'much'; allowed: a positive number, or none."),
        (["--values", "pixels", "--lr", "none"], "pixels in 0 to 1; give --values normalised or whitened"),
        (["--values", "normalised", "--lr", "none", "--size", "8"], "have the shape (1, 8, 8); give the data"),
        (
            ["--values", "normalised", "--lr", "none", "--labels", "logits"],
            "labels is 'logits', which has no effect: those of the files are class numbers; leave it out (--labels).",
        ),
        (["--values", "normalised", "--lr", "none", "--labels", "logit"], "labels 'logit' is not known; did you mean 'logits'?"),
        (["--value", "normalised"], "did you mean '--values'?"),
    ],
)
def test_one_line_asks_for_what_the_files_do_not_say(options: list[str], words: str, tmp_path: Path) -> None:
    assert words in refused(*IMPORT, *saved(tmp_path), "--out", tmp_path / "own.safetensors", *options)
    assert not (tmp_path / "own.safetensors").exists()


def test_a_file_that_is_there_is_not_replaced(tmp_path: Path) -> None:
    (tmp_path / "own.safetensors").write_text("mine")
    arguments = [*IMPORT, *saved(tmp_path), "--values", "normalised", "--lr", "none", "--out"]
    assert "own.safetensors: is there already; give a new file (--out)." in refused(*arguments, tmp_path / "own.safetensors")
    assert (tmp_path / "own.safetensors").read_text() == "mine"
    assert "is a folder; give a file's name (--out)." in refused(*arguments, tmp_path)


def test_a_file_that_runs_a_command_is_one_line(tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.system, (f"touch {tmp_path / 'executed'}",)

    torch.save([torch.zeros(1, 1, 16, 16), Runs()], tmp_path / "data.pt")
    assert "posix.system, which was not executed" in refused(*IMPORT, tmp_path / "data.pt", "--decode", "none")
    assert "is not a file" in refused(*IMPORT, tmp_path / "absent.pt")
    assert not (tmp_path / "executed").exists()
