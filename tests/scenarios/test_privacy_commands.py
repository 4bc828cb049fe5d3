"""``distill attack`` and ``distill audit`` from the command line."""

import re
from pathlib import Path

import numpy as np
import pytest

from scenarios.cli import main

pytest.importorskip("opacus")

MODEL = """
import torch
from torch import nn

def fresh(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.height * spec.width, 32), nn.ReLU(), nn.Linear(32, spec.num_classes))

def load(spec):
    model = fresh(spec)
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)) / 4)
    return model
"""


def ends(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "privmodel.py").write_text(MODEL)
    return tmp_path


def test_scores_are_attacked_and_audited(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    draws = np.random.default_rng(0)
    rows = [f"{draws.normal(1.5 * member, 1)},{member}" for member in (1, 0) for _ in range(1500)]
    Path("scores.csv").write_text("\n".join(["score,member", *rows]))
    code, out, _ = ends(["attack", "scores.csv", "--out", "again.npz"], capsys)
    assert (code, "AUC 0.8" in out) == (0, True)
    with np.load("again.npz") as saved:
        assert sorted(saved.files) == ["scores.in_scores", "scores.out_scores"]
    assert ends(["audit", "scores.csv", "--claimed", "20"], capsys)[0] == 0
    code, out, _ = ends(["audit", "scores.csv", "--claimed", "0.5"], capsys)
    assert (code, "FAILED: the bound" in out) == (1, True)
    Path("losses.csv").write_text("\n".join(["score,member", *(f"-{row}".replace("--", "") for row in rows)]))
    code, out, err = ends(["attack", "losses.csv"], capsys)
    assert (code, "warning: AUC 0.1" in err) == (0, True)
    assert "warning: AUC 0.1" in ends(["audit", "losses.csv"], capsys)[1]


def test_a_model_by_import_path(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--data", "digits", "--size", "8", "--limit", "60", "--shadows", "1", "--protocol", "laptop"]
    code, out, err = ends(["attack", "privmodel:load", *arguments], capsys)
    assert code == 0, err
    assert re.findall(r"^([a-z-]+): AUC", out, re.MULTILINE) == ["loss", "calibrated", "rmia", "lira", "lira-offline"]
    code, out, err = ends(["attack", "privmodel:load", *arguments[:-4], "--shadows", "0"], capsys)
    assert re.findall(r"^([a-z-]+): AUC", out, re.MULTILINE) == ["loss"]
    code, _, err = ends(["attack", "privmodel:fresh", *arguments], capsys)
    assert (code, "gives other weights each time" in err) == (2, True)


def test_the_installed_mechanism(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ends(["audit", "--canaries", "400", "--confidence", "0.99999999"], capsys)
    assert code == 0
    for words in (
        "size of noise, experts",
        "sensitivity, start",
        "ledger",
        "no contradiction",
        "says nothing about a set from another party",
    ):
        assert words in out


def test_a_released_set_is_attacked_and_audited(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from apps.privacy import PrivateStatistics
    from apps.privacy.private_start import private_kmeans
    from distill.data_sources import load

    statistics = PrivateStatistics(load("digits", size=8), 2.0, releases=1, start_releases=3, ledger="set-releases")
    private_kmeans(statistics, 1).save("set.safetensors")
    code, out, _ = ends(["audit", "set.safetensors", "--releases", "set-releases"], capsys)
    assert code == 0, out
    assert "independence of noise" in out
    assert "no contradiction, which proves nothing" in out
    arguments = ["--data", "digits", "--limit", "40", "--networks", "1", "--network", "MLP"]
    code, out, err = ends(["attack", "set.safetensors", *arguments], capsys)
    assert code == 0, err
    names = [f"{source}, {attack}" for source in ("set", "random images") for attack in ("loss", "nearest image")]
    assert [line.partition(": AUC")[0] for line in out.splitlines() if ": AUC" in line] == names


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["attack", "nothing.csv"], "cannot be read as a csv file"),
        (["attack", "mymodel"], "needs --data"),
        (["attack", "mymodel", "--data", "digits"], "as mymodel:load"),
        (["attack", "mymodel:load", "--data", "digits"], "mymodel"),
        (["attack", "privmodel:lode", "--data", "digits"], "did you mean 'load'"),
        (["attack", "privmodel:load", "--data", "digits", "--others", "train"], "allowed: test or validation"),
        (["attack", "privmodel:load", "--data", "digits", "--others", "validation"], "has 0 validation images"),
        (["attack", "privmodel:load", "--data", "digts"], "digts"),
        (["audit", "thing.txt"], "allowed: a condensed set"),
        (["audit", "scores.csv", "--claimed", "nan"], "the claimed epsilon is nan"),
        (["audit", "scores.csv", "--claimed", "-1"], "the claimed epsilon is -1"),
        (["audit", "--delta", "2"], "--delta 2.0"),
        (["audit", "none.safetensors"], "none.safetensors"),
    ],
)
def test_wrong_input_is_one_line(here: Path, arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ends(arguments, capsys)
    assert code == 2, err
    assert words in err
    assert "Traceback" not in err
