"""Warnings where the literature knows a trap: none on what is shipped, each made to fire in a study, where it is printed and recorded."""

import functools
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from distill.condensed import CondensedSet
from distill.data import ImageData, Split
from distill.data_sets import DATA_SETS
from distill.data_sources import load
from distill.spec import DataSpec
from scenarios.catalogue import KINDS, study
from scenarios.engine.scenario import read_scenario, shipped
from scenarios.engine.template import DATA, FORMS, names
from tests.scenarios.test_cli import call

SIDES = {"mnist": 28, "fashion-mnist": 28, "usps": 16}


@functools.cache
def like(name: str, size: int | None) -> ImageData:
    """Data of this name and its shape."""
    if name == "digits":
        return load("digits", size=size)
    channels, side = len(DATA_SETS[name].mean or (0,)), SIDES.get(name, 32)
    spec = DataSpec(name, channels, side, side, tuple("0123456789"), (0.5,) * channels, (0.25,) * channels)
    part = Split(torch.zeros(10, channels, side, side, dtype=torch.uint8), torch.arange(10))
    return ImageData(spec, part, part, part)


SHIPPED = [[name for name, path in shipped().items() if path.parent.parent.name == kind] for kind in KINDS]


@pytest.mark.parametrize("names", [*filter(None, SHIPPED), *([n for n in names(f) if f"-{data}-" in n] for f in FORMS for data in DATA)])
def test_nothing_shipped_is_warned_about(names: list[str]) -> None:
    for name in names:
        made: Any = study(*read_scenario(name), f"{name}.toml")
        parts = [(stage.kind, stage.study) for stage in made.stages] if made.kind == "pipeline" else [(KINDS[made.kind], made)]
        for kind, part in parts:
            assert kind.advice(part, like(part.data.name, part.data.size)) == [], name


DEEP, MANY, BATCHES = (
    "has 20 convolutions and the step size is for a ConvNet",
    "dm is published for up to 50 images a class",
    "has batch norm",
)
METHOD = {"name": "dm", "network": "ResNet18"}
FIRING: dict[str, tuple[dict[str, Any], list[str]]] = {
    "condense": ({"method": {**METHOD, "ipc": 60}}, [MANY, DEEP]),
    "sweep_lr": ({"method": {**METHOD, "ipc": 60}, "sweep": {"values": [1.0, 2.0]}}, [MANY]),
    "privacy": (
        {"method": {"name": "dm", "network": "ConvNetBN", "ipc": 1}, "attack": {"attacks": []}, "evaluation": {"baselines": []}},
        [BATCHES],
    ),
    "nas": ({"methods": {"dm": {"network": "ResNet18"}}, "sets": {"ipc": 60}}, [MANY, DEEP]),
    "federated": ({"federation": {"strategies": ["feddm"], "network": "ResNet18"}, "upload": {"ipc": 60}}, [MANY]),
    "continual": ({"memory": {"methods": ["random", "dm"], "per_class": [60]}, "settings": {"dm": {"network": "ResNet18"}}}, [MANY]),
}


@pytest.mark.parametrize("kind", FIRING)
def test_every_kind_of_study_is_warned(kind: str) -> None:
    tables, words = FIRING[kind]
    made: Any = study("own", {"kind": kind, "data": {"name": "digits", "size": 32}, **tables}, "own.toml")
    lines = KINDS[kind].advice(made, like("digits", 32))
    assert len(lines) >= len(words)
    for word in words:
        assert any(word in line for line in lines), lines


def test_every_kind_that_condenses_is_in_the_table() -> None:
    """ "released" and a pipeline condense nothing themselves; a pipeline's stages are runs of their own."""
    assert {*FIRING} == {*KINDS} - {"released", "pipeline"}


def test_a_study_of_a_set_prints_and_records_its_traps(tmp_path: Path) -> None:
    """A learned step size near zero, with and without an evaluation, and a teacher at chance."""
    head = 'kind = "condense"\n[data]\nname = "digits"\n[method]\nname = "mtt"\nipc = 1\niterations = 1\nnetwork = "ConvNetD1W8"\n'
    head += "experts = 1\nmax_start_epoch = 0\nexpert_epochs = 1\nsyn_steps = 1\nlr_init = 2e-6\nlr_lr = 0.0\n"
    more = '[evaluation]\nnetworks = ["ConvNetD1W8"]\nseeds = 1\nbaselines = []\n[evaluation.recipe]\nmax_steps = 1\n'
    more += '[evaluation.recipe.teacher]\nnetwork = "ConvNetD1W8"\nepochs = 1\nlr = 1e-9\n'
    for name, text, wanted in (("bare", head, 1), ("judged", head + more, 2)):
        (tmp_path / f"{name}.toml").write_text(text)
        code, out, err = call("run", tmp_path / f"{name}.toml", "--out", tmp_path / name)
        assert code == 0, err
        (record,) = (tmp_path / name).rglob("record.json")
        notes = json.loads(record.read_text())["results"]["ipc1"]["notes"]
        first = ["the learned step size 2e-06 is near zero", "the teacher (ConvNetD1W8 of 1 epoch (lr"][:wanted]
        assert [any(note.startswith(beginning) for note in notes) for beginning in first] == [True] * wanted
        printed = " ".join((out + err).split())
        assert all(" ".join(note.split()) in printed for note in notes)


def test_import_warns(tmp_path: Path) -> None:
    data = load("digits")
    chosen = torch.cat([data.class_indices(label)[:1] for label in range(10)])
    tiny = CondensedSet(data.normalised("train", chosen), data.train.labels[chosen], data.spec)
    torch.save(tiny.images, tmp_path / "images_best.pt")
    torch.save(tiny.labels, tmp_path / "labels_best.pt")
    files = [tmp_path / "images_best.pt", tmp_path / "labels_best.pt"]
    for lr, warned in (("1e-7", True), ("0.02", False)):
        words = ["--values", "normalised", "--lr", lr, "--no-check", "--out", tmp_path / f"lr{lr}.safetensors"]
        code, out, err = call("import", "--data", "digits", "--device", "cpu", *files, *words)
        assert code == 0, err
        assert ("warning: the learned step size 1e-07 is near zero" in out) == warned
