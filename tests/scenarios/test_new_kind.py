"""A new kind of study is one folder and one entry of the catalogue's table: commands, reports and pipelines take it as it is."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from distill.condensed import CondensedSet
from scenarios import catalogue
from scenarios.engine import scenario
from scenarios.engine.record import run_name
from tests.scenarios.test_cli import call, refused

# The folder: a kind that measures how bright each class is, of its data or of a set that it takes, and leaves the mean images as a set.
KIND = '''
"""The kind "brightness"."""

import dataclasses
from pathlib import Path

from distill.condensed import CondensedSet
from distill.configure import configure
from distill.coresets import select
from distill.errors import InputError, unknown_name
from distill.figures import image_grid
from distill.randomness import generator
from scenarios.engine.given import Given
from scenarios.engine.record import Config
from scenarios.engine.schema import DataTable, config_hash, plain_values
from scenarios.engine.study import Kind, View


@dataclasses.dataclass(frozen=True)
class BrightnessStudy:
    name: str
    title: str
    data: DataTable
    merged: Config
    given: Given | None = None
    kind: str = "brightness"

    @property
    def hash(self) -> str:
        return config_hash(self.merged)


def study(name, title, tables, source):
    for key in tables:
        if key != "data":
            raise unknown_name(f"{source}: key", key, ("kind", "title", "data"))
    data = configure(DataTable, tables["data"], f"{source}: [data]")
    return BrightnessStudy(name, title, data, {"kind": "brightness", "data": plain_values(data)})


def check(study, data):
    if len(data.classes) < 2:
        raise InputError("brightness of one class is compared with nothing; give two classes or more.")


def fill(study, run):
    means = select(run.data, "class_mean", 1, generator(run.options.seed, "brightness"))
    means.save(run.folder / "condensed.safetensors")
    images = means if study.given is None else study.given.made
    values = images.pixels().flatten(1).mean(1)
    rows = {images.spec.classes[int(label)]: values[images.labels == label].mean().item() for label in images.labels.unique()}
    run.results["brightness"] = {name: {"value": 100 * value, "low": None, "high": None} for name, value in rows.items()}
    run.say(f"{len(rows)} classes measured")


def draw(folder, record):
    yield "means", image_grid(CondensedSet.load(folder / "condensed.safetensors"), "The mean image of each class")


def table(record):
    rows = record["results"]["brightness"]
    return [["class", "brightness, %"], *([name, f"{row['value']:.1f}"] for name, row in rows.items())]


def answer(record):
    rows = record["results"]["brightness"]
    return f"Class {max(rows, key=lambda name: rows[name]['value'])} is the brightest."


KIND = Kind(
    "brightness",
    study,
    check,
    fill,
    draw,
    View(answer, table, note="Mean of all pixels.", main=r"brightness\\..*"),
    sets=lambda study, seed: {"means": Path("condensed.safetensors")},
    takes="as what is measured",
)
'''
SCENARIO = """
kind = "brightness"
title = "How bright are zeros and ones?"
[data]
name = "digits"
classes = [0, 1]
"""
PIPELINE = """
kind = "pipeline"
title = "Brightness of what other stages leave"
[data]
name = "digits"
[stages.means]
kind = "brightness"
[stages.condense]
kind = "condense"
method = {name = "dm", ipc = 1, iterations = 1, network = "ConvNetD1W32", batch_real = 8}
[stages.of-means]
kind = "brightness"
from = "means"
[stages.of-condensed]
kind = "brightness"
from = "condense"
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The new kind's folder, beside that of "condense", and its entry in the catalogue's table."""
    place = tmp_path / "kinds" / "brightness"
    (place / "shipped").mkdir(parents=True)
    (place / "__init__.py").write_text("")
    (place / "kind.py").write_text(KIND)
    (place / "shipped" / "bright-digits.toml").write_text(SCENARIO)
    (place.parent / "condense").symlink_to(scenario.HERE / "condense")
    monkeypatch.setattr(scenario, "HERE", place.parent)
    monkeypatch.syspath_prepend(place.parent)
    monkeypatch.setitem(catalogue.KINDS._loaders, "brightness", lambda: importlib.import_module("brightness.kind").KIND)
    yield place
    catalogue.KINDS._kinds.pop("brightness", None)
    for name in ("brightness.kind", "brightness"):
        sys.modules.pop(name, None)


def test_the_commands_take_it(folder: Path, tmp_path: Path) -> None:
    assert ["bright-digits", SCENARIO.split('"')[3]] in [line.split(maxsplit=1) for line in call("list", "scenarios")[1].splitlines()]
    out = tmp_path / "out"
    for seed in (0, 1):
        code, text, error = call("run", "bright-digits", "--seed", seed, "--out", out, "--device", "cpu")
        assert code == 0, error
        assert "2 classes measured" in error
        assert "Class 0 is the brightest." in text
    name, tables = scenario.read_scenario("bright-digits")
    runs = [out / run_name(name, catalogue.study(name, tables, name).hash, seed) for seed in (0, 1)]
    assert sorted(out.iterdir()) == sorted(runs)
    assert call("run", "bright-digits", "--out", out, "--device", "cpu")[0] == 0  # found, not run again
    record = json.loads((runs[0] / "record.json").read_text())
    assert (record["kind"], record["status"], set(record["results"])) == ("brightness", "done", {"brightness"})
    assert (runs[0] / "figures" / "means.png").is_file()
    assert CondensedSet.load(runs[0] / "condensed.safetensors").counts[:2] == (1, 1)

    code, text, _ = call("table", out)
    assert code == 0
    assert [line.split()[:2] for line in text.splitlines()[1:]] == [["bright-digits", "brightness.0"], ["bright-digits", "brightness.1"]]
    code, text, _ = call("compare", runs[0], runs[0], "--figure", "brightness.0=brightness.1")
    assert code == 0
    assert "1 pair of runs" in text
    page = tmp_path / "report.html"
    assert call("report", *runs, "--out", page)[0] == 0
    assert "Mean of all pixels." in page.read_text()
    assert "Class 0 is the brightest." in (runs[0] / "report.html").read_text()
    assert call("figures", runs[0], "--format", "svg", "--out", tmp_path / "svg")[0] == 0
    assert (tmp_path / "svg" / "means.svg").is_file()


def test_its_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    assert "bright-digits.toml: key 'method'" in refused("run", "bright-digits", "--set", "method.ipc=1", "--out", tmp_path / "out")
    code, _, error = call("run", "bright-digits", "--set", "data.classes=[3]", "--out", tmp_path / "out", "--device", "cpu")
    assert code == 2
    assert error.splitlines()[-1] == "error: brightness of one class is compared with nothing; give two classes or more."
    assert not (tmp_path / "out").exists()


def test_it_is_a_stage_that_gives_and_takes_sets(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "pipe.toml").write_text(PIPELINE)
    code, text, error = call("run", tmp_path / "pipe.toml", "--out", tmp_path / "out", "--device", "cpu")
    assert code == 0, error
    (run,) = (tmp_path / "out").iterdir()
    record = json.loads((run / "record.json").read_text())
    stages = record["results"]["stages"]
    assert [stages[name]["status"] for name in ("means", "condense", "of-means", "of-condensed")] == ["done"] * 4
    assert stages["of-means"]["from"] == ["means.means"]
    own, taken = (stages[name]["results"]["brightness"] for name in ("means", "of-means"))
    assert list(own) == list(taken)
    assert all(abs(own[name]["value"] - taken[name]["value"]) < 0.2 for name in own), "the same images, once through a file"
    assert stages["of-condensed"]["results"]["brightness"] != own
    assert "means: hands on means without a guarantee." in text
    assert call("report", run, "--out", tmp_path / "pipe.html")[0] == 0
