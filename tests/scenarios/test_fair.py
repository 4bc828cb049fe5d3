"""Fair comparisons in studies and commands: what failed is said, every row says how it was trained, sizes are those of the set."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from apps.nas.training import WHOLE, Job, Shelf, measure
from apps.privacy.attacks import losses_and_margins
from apps.privacy.poisoning import attack_success, white_square
from distill.data import ImageData
from distill.errors import Diverged, InputError
from distill.networks import create
from distill.randomness import generator
from scenarios import tables
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
