"""``distill score``: tables, page and record; a stopped one continues; wrong input is one line."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import distill.scoring
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data_sources import load
from distill.randomness import generator
from scenarios.commands.evaluation.teacher import teacher_table
from tests.scenarios.test_cli import call, refused

OPTIONS = ("--data", "digits", "--network", "MLP", "--seeds", 2, "--max-steps", 10, "--step", 0.3, "--step", 1, "--device", "cpu")


@pytest.fixture
def sets(tmp_path: Path) -> list[Path]:
    data = load("digits")
    paths = [tmp_path / f"set{seed}.safetensors" for seed in range(2)]
    for seed, path in enumerate(paths):
        select(data, "random", [2] * 10, generator(seed, "set")).save(path)
    return paths


def test_tables_page_and_record(sets: list[Path], tmp_path: Path) -> None:
    code, out, err = call("score", *sets, *OPTIONS, "--architecture", "ConvNetD1W16", "--optimiser", "sgd", "--out", tmp_path / "out")
    assert code == 0, err
    record = json.loads((tmp_path / "out" / "score.json").read_text())
    rows = [
        (one["row"]["images"], one["row"]["augmentation"], one["row"]["network"], one["row"]["optimiser"]) for one in record["measures"]
    ]
    assert rows == [
        *((name, "own", "MLP", "adamw") for name in ("condensed", "random", "herding", "whole")),
        *((name, "none", "MLP", "adamw") for name in ("condensed", "random")),
        *((name, "own", "MLP", "sgd") for name in ("condensed", "random")),
        ("condensed", "own", "ConvNetD1W16", "adamw"),
    ]
    assert [len(one["values"]) for one in record["measures"]] == [2 if row[0] == "condensed" else 1 for row in rows]
    assert record["plan"]["recipe"]["max_steps"] == 10
    assert record["images"] == 20
    said = err.splitlines()
    assert said[0] == "scoring: 2 networks for the step size and 2 for the accuracy of each row and set"
    assert len(said) == 1 + len(rows), "a line a row where there is no terminal"
    names = [one["name"] for one in record["scores"]]
    page = (tmp_path / "out" / "score.html").read_text()
    for name in (
        "label-robust score",
        "augmentation-robust score",
        "hard-label recovery",
        "improvement over random",
        "cross-architecture drop",
    ):
        assert name in names
        assert name in out
        assert name in page
    assert "points from random images under the same training" in " ".join(out.split())
    assert "data:image/png;base64," in page
    assert "over 2 sets" in page


def test_a_stopped_one_continues_to_the_same_figures(sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arguments = ("score", sets[0], *OPTIONS, "--baseline", "random")
    assert call(*arguments, "--out", tmp_path / "complete")[0] == 0
    real, calls = distill.scoring.train_network, 0

    def counted(*given: object, **named: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 10:  # in the third row, after two of four networks each
            raise KeyboardInterrupt
        return real(*given, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(distill.scoring, "train_network", counted)
    assert call(*arguments, "--out", tmp_path / "stopped")[0] == 130
    assert call(*arguments, "--out", tmp_path / "stopped")[0] == 0
    assert calls == 10 + 3 * 4  # five rows of four networks; the two rows that were done are not trained again
    found, expected = (json.loads((tmp_path / name / "score.json").read_text()) for name in ("stopped", "complete"))
    assert found["measures"] == expected["measures"]
    assert found["scores"] == expected["scores"]
    assert call(*arguments, "--validation", 0.2, "--out", tmp_path / "stopped")[0] == 0  # other held-out images are another measurement
    assert calls == 10 + 3 * 4 + 5 * 4


def test_precision_and_compiling_reach_every_rows_training(sets: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, seen = distill.scoring.train_network, []

    def watched(source: Any, network: Any, recipe: Any, *rest: Any, **named: Any) -> Any:
        seen.append((recipe.precision, recipe.compile))
        return real(source, network, recipe, *rest, **named)

    monkeypatch.setattr(distill.scoring, "train_network", watched)
    code, _, err = call("score", sets[0], *OPTIONS, "--precision", "bf16", "--compile", "off", "--out", tmp_path / "out")
    assert code == 0, err
    assert set(seen) == {("bf16", "off")}
    assert len(seen) == 6 * (2 + 2), "six rows, two step sizes, two networks"


def test_wrong_input(sets: list[Path], tmp_path: Path) -> None:
    out = ("--out", tmp_path / "out")
    assert "network 'MPL' is not known" in refused("score", sets[0], "--data", "digits", "--network", "MPL", *out)
    assert "protocol 'lap' is not known" in refused("score", sets[0], "--data", "digits", "--protocol", "lap", *out)
    assert "baseline 'hole' is not known" in refused("score", sets[0], *OPTIONS, "--baseline", "random", "--baseline", "hole", *out)
    assert "'random' must be one" in refused("score", sets[0], *OPTIONS, "--baseline", "herding", *out)
    assert "optimisers" in refused("score", sets[0], *OPTIONS, "--optimiser", "lion", *out)
    assert "different ones" in refused("score", sets[0], *OPTIONS, "--optimiser", "sgd", "--optimiser", "sgd", *out)
    assert "architectures has 'MLP', which is the evaluation network" in refused("score", sets[0], *OPTIONS, "--architecture", "MLP", *out)
    assert "no validation images" in refused("score", sets[0], *OPTIONS, "--validation", 0, *out)
    assert "precision" in refused("score", sets[0], *OPTIONS, "--precision", "half", *out)
    assert "compile" in refused("score", sets[0], *OPTIONS, "--compile", "yes", *out)
    assert "cannot be read" in refused("score", "none.safetensors", *OPTIONS, *out)
    assert not (tmp_path / "out").exists()


def test_label_writes_a_set_with_a_teachers_outputs(sets: list[Path], tmp_path: Path) -> None:
    arguments = ("label", sets[0], "--data", "digits", "--teacher", "MLP:2", "--device", "cpu", "--out", tmp_path / "soft.safetensors")
    code, out, err = call(*arguments)
    assert code == 0, err
    made, plain = CondensedSet.load(tmp_path / "soft.safetensors"), CondensedSet.load(sets[0])
    assert torch.equal(made.images, plain.images)
    assert made.label_kind == "logits"
    assert made.labels.shape == (20, 10)
    text = " ".join(out.split())
    assert "labels by MLP of 2 epochs (lr 0.01, seed 0), which labels images, whose test accuracy" in text
    assert f"{made.nbytes:,} bytes ({plain.nbytes:,} before)" in text
    before = (tmp_path / "soft.safetensors").read_bytes()
    assert "soft.safetensors: is there already; give a new file (--out)." in refused(*arguments)
    assert (tmp_path / "soft.safetensors").read_bytes() == before
    assert "is a folder; give a file's name (--out)." in refused(*arguments[:-1], tmp_path)
    fits = ("label", sets[0], "--data", "digits", "--teacher", "MLP:1")
    assert "whose classes would be lost" in refused(*fits, "--out", sets[0])
    assert "images of class 5, which the teacher would never see" in refused(*fits, "--classes", "0..4")
    assert "network 'MPL' is not known" in refused("label", sets[0], "--data", "digits", "--teacher", "MPL:3")


@pytest.mark.parametrize(
    "text", [":3", ":", "ConvNet:x", "ConvNet:", "ConvNet:1.5", "ConvNet:-3", "ConvNet:2:3", "ConvNet:9999999", "m:f:x"]
)
def test_a_teacher_without_a_number_of_epochs_is_one_line(text: str, sets: list[Path]) -> None:
    words = f" is {text!r}; allowed: NETWORK or NETWORK:EPOCHS with a whole number of epochs, for example ConvNet:20."
    assert f"--teacher{words}" in refused("label", sets[0], "--data", "digits", "--teacher", text)
    assert f"--scorer{words}" in refused("evaluate", sets[0], "--data", "digits", "--baseline", "el2n", "--scorer", text)


@pytest.mark.parametrize(
    ("text", "table"),
    [
        ("ConvNet:20", {"network": "ConvNet", "epochs": 20}),
        ("MLP", {"network": "MLP"}),
        ("my.nets:make", {"network": "my.nets:make"}),
        ("mynets:make:3", {"network": "mynets:make", "epochs": 3}),
    ],
)
def test_a_teacher_may_be_an_import_path(text: str, table: dict[str, object]) -> None:
    assert teacher_table(text) == table
