"""``[method] sets``: several sets of one study, each of its own seed, with both spreads."""

import json
import statistics
from pathlib import Path

import pytest
import torch

from distill.condensed import CondensedSet
from distill.data_sources import load
from distill.evaluation import Accuracy, accuracy
from distill.run import condense
from distill.train import Recipe, train_network
from scenarios.condense.several import APART, sentence, spread
from tests.conftest import stopped_at
from tests.scenarios.test_cli import call, refused

STUDY = """
kind = "condense"
title = "several"
[data]
name = "digits"
[method]
name = "dm"
ipc = [1, 2]
sets = 3
iterations = 2
network = "ConvNetD1W16"
batch_real = 8
[evaluation]
networks = ["MLP"]
seeds = 2
baselines = ["random"]
[evaluation.recipe]
max_steps = 10
batch_size = 8
"""


def study(place: Path, text: str = STUDY) -> tuple[Path, str]:
    (place / "several.toml").write_text(text)
    code, out, err = call("run", place / "several.toml", "--out", place / "runs", "--seed", 3, "--device", "cpu", "--resume")
    assert code == 0, err
    (folder,) = (place / "runs").iterdir()
    return folder, out


def test_every_set_is_that_of_its_seed_and_both_spreads_are_reported(tmp_path: Path) -> None:
    folder, out = study(tmp_path)
    results = json.loads((folder / "record.json").read_text())["results"]
    data, recipe = load("digits"), Recipe(max_steps=10, batch_size=8)
    settings = {"iterations": 2, "network": "ConvNetD1W16", "batch_real": 8}
    for ipc in (1, 2):
        row = results[f"ipc{ipc}"]["sets"]["MLP"]
        assert row["values"][0] == results[f"ipc{ipc}"]["accuracy"]["dm"]["values"]
        for number in (2, 3):
            made = CondensedSet.load(folder / f"condensed-ipc{ipc}-set{number}.safetensors")
            assert torch.equal(made.images, condense(data, "dm", ipc=ipc, seed=3 + APART * (number - 1), progress=False, **settings).images)
            expected = [accuracy(train_network(made, "MLP", recipe, seed), data) for seed in (3000, 3001)]
            assert row["values"][number - 1] == pytest.approx(expected)
        means = [statistics.fmean(values) for values in row["values"]]
        assert row["mean"] == pytest.approx(statistics.fmean(means))
        assert row["spread_sets"] == pytest.approx(statistics.stdev(means))
        assert row["spread_networks"] == pytest.approx(statistics.fmean(map(statistics.stdev, row["values"])))
        assert row["high"] - row["mean"] == pytest.approx(Accuracy(tuple(means)).half_width)
    assert "dm, 3 sets" in out
    assert "standard deviation" in " ".join(out.split())
    assert not list(folder.glob("checkpoint*"))


def test_a_stopped_study_of_several_sets_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "complete").mkdir()
    expected, _ = study(tmp_path / "complete")
    (tmp_path / "several.toml").write_text(STUDY)
    from scenarios.condense import several

    with stopped_at(monkeypatch, several, 2):
        call_raises(tmp_path)
    found, _ = study(tmp_path)
    results = [json.loads((folder / "record.json").read_text())["results"] for folder in (found, expected)]
    assert [part["ipc2"]["sets"] for part in results] == [results[1]["ipc2"]["sets"]] * 2
    lines = [(found / "metrics.jsonl").read_text().count(f'"dm (set {number})"') for number in (2, 3)]
    assert lines == [4, 4]  # two sizes, two networks each, none twice


def call_raises(place: Path) -> None:
    from scenarios.catalogue import run_study
    from scenarios.catalogue import study as read
    from scenarios.engine.scenario import read_scenario
    from scenarios.engine.study import Options

    name, tables = read_scenario(str(place / "several.toml"))
    run_study(read(name, tables, name), Options(place / "runs", None, 3, "cpu", False, True, None))


def test_one_set_has_no_such_row_and_the_same_hash(tmp_path: Path) -> None:
    folder, _ = study(tmp_path, STUDY.replace("sets = 3\n", ""))
    again, _ = study(tmp_path, STUDY.replace("sets = 3\n", "sets = 1\n"))
    assert folder == again
    assert "sets" not in json.loads((folder / "record.json").read_text())["results"]["ipc1"]


@pytest.mark.parametrize("value", ["0", "2.5", "true", '"3"', "101"])
def test_a_wrong_number_of_sets_is_one_line(value: str, tmp_path: Path) -> None:
    (tmp_path / "several.toml").write_text(STUDY.replace("sets = 3", f"sets = {value}"))
    assert "key 'sets' is" in refused("run", tmp_path / "several.toml", "--out", tmp_path / "runs")


def test_spreads_by_hand() -> None:
    row = spread([(10.0, 12.0), (20.0, 24.0)])
    assert row["mean"] == 16.5
    assert row["spread_sets"] == pytest.approx(11 / 2**0.5)
    assert row["spread_networks"] == pytest.approx((2 / 2**0.5 + 4 / 2**0.5) / 2)
    assert "over the networks" not in sentence(spread([(10.0,), (20.0,)]))
    assert sentence(spread([(10.0, float("nan")), (20.0, 21.0)])) == "no mean, because networks failed"
