"""The sets of examples/sets give what their records say, and docs/exchange.md's plain PyTorch loop trains to the stated figure."""

import hashlib
import json
import re
import statistics
from pathlib import Path

import pytest
import torch

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.decode import Formation
from distill.evaluation import evaluate
from distill.train import Recipe
from tests.pages import blocks

ROOT = Path(__file__).parents[1]
RECORDS = sorted((ROOT / "examples" / "sets").glob("*.json"))
PAGE = ROOT / "docs" / "exchange.md"


def record_of(path: Path) -> dict:
    return json.loads(path.read_text())


def test_there_are_three_small_sets_of_the_digits() -> None:
    assert len(RECORDS) == 3
    for path in RECORDS:
        stored, record = path.with_suffix(".safetensors"), record_of(path)
        assert stored.stat().st_size < 32_000
        assert hashlib.sha256(stored.read_bytes()).hexdigest() == record["sha256"]
        tiny = CondensedSet.load(stored)
        assert (tiny.spec.name, tiny.provenance.method, tiny.ipc) == ("digits", record["method"]["name"], record["method"]["ipc"])
        assert tiny.decode == (Formation(2) if "formation" in path.stem else None)
        assert record["command"] == f"python examples/sets/make.py {path.stem}"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_set_gives_what_its_record_says(path: Path, digits: ImageData) -> None:
    """The record's recipe and seeds: the mean lies in its interval, above all random baselines of the record but the best."""
    record = record_of(path)
    about, measured = record["evaluation"], record["accuracy"]["laptop"]
    recipe = Recipe(**{key: tuple(value) if isinstance(value, list) else value for key, value in measured["recipe"].items()})
    tiny = CondensedSet.load(path.with_suffix(".safetensors"))
    found = evaluate(tiny, digits, network=about["network"], recipe=recipe, seeds=about["seeds"], baselines=[], progress=False)
    accuracy = found.rows["condensed"][about["network"]]
    assert measured["condensed"]["low"] <= accuracy.mean <= measured["condensed"]["high"]
    assert accuracy.mean > measured["random"]["mean"]


@pytest.mark.plain_layers
def test_the_pages_loop_trains_to_the_stated_figure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five networks by the page's own lines: their mean lies in the interval of `distill.evaluate` with the same recipe."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    text = PAGE.read_text()
    assert "```python" in text
    first, *loop = [block.text for block in blocks(text, PAGE.name) if block.language == "python"]
    assert len(loop[0].splitlines()) == 10
    names: dict[str, object] = {"__name__": "page"}
    exec(compile(first, str(PAGE), "exec"), names)
    accuracies = []
    for seed in range(5):
        torch.manual_seed(seed)
        for code in loop:
            exec(compile(code, str(PAGE), "exec"), names)
        assert isinstance(names["accuracy"], float)
        accuracies.append(names["accuracy"])
    wanted = record_of(ROOT / "examples/sets/digits-dm-ipc10.json")["accuracy"]["plain"]["condensed"]
    assert wanted["low"] <= statistics.fmean(accuracies) <= wanted["high"]
    stated = re.search(r"(\d+\.\d) % \(95 % interval (\d+\.\d) to (\d+\.\d)\)", text)
    assert stated is not None
    assert [float(number) for number in stated.groups()] == [round(wanted[name], 1) for name in ("mean", "low", "high")]
