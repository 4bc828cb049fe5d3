"""Fair comparisons in studies and commands: what failed is said, every row says how it was trained, sizes are those of the set."""

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pytest

from apps.nas.training import WHOLE, Job, Shelf, measure
from apps.privacy.attacks import losses_and_margins
from apps.privacy.poisoning import attack_success
from apps.privacy.triggers import white_square
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.data_sources import load
from distill.errors import Diverged, InputError
from distill.networks import create
from distill.randomness import generator
from distill.sizes import proportional
from kept import pages as tables
from scenarios.catalogue import study
from scenarios.condense import run as condense
from scenarios.condense import show
from scenarios.engine.scenario import parse, shipped
from tests.distill.test_fair import QUICK, odd
from tests.scenarios.test_cli import call

STUDY = """
kind = "condense"
title = "Fair"
[data]
name = "digits"
[method]
name = "dm"
iterations = 1
batch_real = 4
network = "ConvNetD1W32"
[evaluation]
networks = ["MLP"]
seeds = 2
baselines = ["whole"]
[evaluation.recipe]
max_steps = 20
batch_size = 32
augmentation = "none"
"""


def ran(tmp_path: Path, *settings: str, text: str = STUDY) -> tuple[str, Path, dict[str, Any]]:
    """(standard output, run folder, record) of a study that ends with 0."""
    (tmp_path / "fair.toml").write_text(text)
    arguments = [part for setting in settings for part in ("--set", setting)]
    code, out, err = call("run", tmp_path / "fair.toml", "--out", tmp_path / "runs", "--device", "cpu", *arguments)
    assert code == 0, err
    (folder,) = (tmp_path / "runs").glob("fair-*")
    return out, folder, json.loads((folder / "record.json").read_text())


def test_a_study_whose_networks_diverge_says_so_and_keeps_no_figure(tmp_path: Path) -> None:
    out, folder, record = ran(tmp_path, "evaluation.recipe.lr=1e30")
    row = record["results"]["ipc1"]["accuracy"]["dm"]
    assert (row["mean"], row["values"], row["failed"]) == (None, [None, None], 2)
    assert "NaN or infinite" in row["reason"]
    assert "failed (2 of 2)" in out
    assert "have no accuracy" in out
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["accuracy"] is None and line["reason"] for line in lines if line["stage"] == "evaluate")
    assert (folder / "report.html").read_text().count("failed (2 of 2)") >= 1
    with pytest.raises(InputError, match="no accuracy"):
        tables.rows_of(folder)
    before = (folder / "metrics.jsonl").read_text()
    assert call("run", tmp_path / "fair.toml", "--out", tmp_path / "runs", "--resume", "--set", "evaluation.recipe.lr=1e30")[0] == 0
    assert (folder / "metrics.jsonl").read_text() == before


def test_architecture_ranking_and_attacks_refuse_outputs_that_are_no_numbers(toy_data: ImageData) -> None:
    """Finite weights and NaN outputs, in evaluation mode only."""
    row = measure(Job("truth", "odd", odd(math.nan), WHOLE, 0, QUICK, "key", ("test",)), Shelf(toy_data, {}))
    assert row["status"] == "failed"
    assert "NaN or infinite" in row["reason"]
    network = create(odd(math.nan), toy_data.spec, generator(0, "net"))
    with pytest.raises(Diverged):
        losses_and_margins([network], toy_data.spec.normalise(toy_data.test.images), toy_data.test.labels)
    with pytest.raises(Diverged):
        attack_success(network, toy_data, white_square(toy_data.spec, 2), 0)


def test_whole_is_named_by_its_steps_in_table_answer_figure_and_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1,297 training digits in batches of 32 are 41 steps an epoch."""
    drawn: list[str] = []
    bars = show.accuracy_bars
    monkeypatch.setattr(show, "accuracy_bars", lambda rows, title: drawn.extend(rows) or bars(rows, title))
    out, folder, record = ran(tmp_path)
    row = record["results"]["ipc1"]["accuracy"]["whole"]
    assert (row["images"], row["steps"], row["epochs"]) == (1297, 20, pytest.approx(20 / 41, abs=1e-4))
    assert out.count("whole (20 steps, 0.488 epochs)") == 2
    assert drawn == ["dm", "whole (20 steps, 0.488 epochs)"]
    assert "whole (20 steps, 0.488 epochs)" in (folder / "report.html").read_text()


def test_whole_epochs_train_it_longer_and_older_studies_keep_their_hash(tmp_path: Path) -> None:
    out, folder, record = ran(tmp_path, "evaluation.whole_epochs=2")
    row = record["results"]["ipc1"]["accuracy"]["whole"]
    assert (row["steps"], row["epochs"]) == (82, 2.0)
    assert "whole (82 steps, 2 epochs)" in out
    assert json.loads((folder / "config.json").read_text())["evaluation"]["whole_epochs"] == 2
    # It is no part of the configuration, nor of its hash, where it is not given.
    older = study("quickstart", parse(shipped()["quickstart"]), "quickstart.toml")
    assert "whole_epochs" not in older.merged["evaluation"]
    assert older.hash == "713def25", "a run folder of an earlier version is continued"


def test_what_unequal_counts_ask_for_is_checked_before_anything_is_made() -> None:
    for ipc, words in (
        ({"3": 90000, "rest": 1}, "more images a class than any class"),
        ("proportional:99999", "more images a class than any"),
    ):
        tables = {"kind": "condense", "data": {"name": "digits"}, "method": {"name": "dm", "ipc": ipc}}
        with pytest.raises(InputError, match=words):
            condense.check(study("x", tables, "x.toml"), load("digits"))


def test_evaluate_says_recipe_augmentation_sizes_and_step_size(tmp_path: Path) -> None:
    data = load("digits")
    tiny = select(data, "random", [2, 0, 1, 1, 1, 1, 1, 1, 1, 1], generator(0, "set"))
    dataclasses.replace(tiny, lr=0.02, augmentation="color").save(tmp_path / "set.safetensors")
    arguments = ("evaluate", tmp_path / "set.safetensors", "--data", "digits", "--network", "MLP", "--seeds", 1, "--device", "cpu")
    code, out, err = call(*arguments, "--whole-epochs", 1)
    assert code == 0, err
    assert "whole (41 steps, 1 epoch)" in out
    assert "the set's learned lr 0.02 is not used by AdamW" in out
    assert "one recipe for all (laptop): AdamW, lr 0.001 (cosine)" in out
    assert "augmentation color" in out
    assert "sizes differ" not in out


@pytest.mark.parametrize(
    ("setting", "counts"),
    [
        ('method.ipc={"3" = 3, 7 = 2, rest = 1}', [1, 1, 1, 3, 1, 1, 1, 2, 1, 1]),
        ("method.ipc=proportional:2", None),
    ],
)
def test_a_study_of_unequal_classes(tmp_path: Path, setting: str, counts: list[int] | None) -> None:
    text = STUDY.replace('baselines = ["whole"]', 'baselines = ["random"]').replace('name = "digits"', 'name = "digits"\nvalidation = 0.2')
    out, folder, record = ran(tmp_path, setting, text=text)
    made = CondensedSet.load(folder / "condensed.safetensors")
    expected = counts or proportional(load("digits", validation=0.2).counts, 2)
    part = record["results"][f"ipc{max(expected)}"]
    assert list(made.counts) == part["counts"] == list(expected)
    assert part["accuracy"]["random"]["images"] == part["accuracy"]["dm"]["images"] == part["images"] == sum(expected)
    assert "notes" not in part
    assert f"{sum(expected)} images in all, at most {max(expected)} images a class by dm" in out
    assert (folder / f"figures/images-ipc{max(expected)}.png").exists()
    assert all(line["ipc"] == max(expected) for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()))
    assert "unequal numbers of images" in (folder / "report.html").read_text() or counts is None


def test_condense_takes_unequal_classes_and_refuses_what_does_not_fit(tmp_path: Path) -> None:
    small = ("--set", "iterations=1", "--set", "network=ConvNetD1W32", "--set", "batch_real=4", "--device", "cpu", "--out", tmp_path)
    code, _, err = call("condense", "--data", "digits", "--set", "ipc={3 = 2, rest = 1}", *small)
    assert code == 0, err
    (path,) = tmp_path.glob("*/condensed.safetensors")
    assert CondensedSet.load(path).counts == (1, 1, 1, 2, 1, 1, 1, 1, 1, 1)
    for wrong, message in (
        ("ipc={3 = 2}", "no count for the classes"),
        ("ipc={11 = 2, rest = 1}", "which have no training images"),
        ("ipc={3 = 0, rest = 1}", "counts by class such as"),
        ("ipc=proportional:x", "proportional:10"),
        ("ipc={}", "counts by class such as"),
    ):
        code, _, err = call("condense", "--data", "digits", "--set", wrong, *small)
        assert code == 2, wrong
        assert message in err
        assert err.count("\n") == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_privacy_study_has_one_number() -> None:
    with pytest.raises(InputError, match="'ipc' is"):
        study("x", {"kind": "privacy", "data": {"name": "digits"}, "method": {"ipc": {"rest": 2}}, "audit": {}}, "x.toml")
