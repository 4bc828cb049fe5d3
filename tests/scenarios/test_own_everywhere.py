"""A user's own method by its import path in every place where a method can be named, and runs that use one there."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from distill import networks
from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.methods import METHODS
from scenarios.catalogue import KINDS, run_study, study
from scenarios.condense.step_sizes import tables_for
from scenarios.engine.study import Options
from tests.scenarios.test_own import METHOD, NETS, _nothing_stays_known  # noqa: F401  (a fixture)

OWN, NET = "mine:MyMethod", "nets:make"
# With the setting that a memory in another form needs, and named as one that matches features, as centred releases do.
CODE = METHOD.replace('    initial: str = "real"\n', '    initial: str = "real"\n    decode: str = "none"\n')
SHORT = {"iterations": 2, "network": NET}
PLACES: dict[str, dict[str, Any]] = {
    "condense: [method]": {"kind": "condense", "method": {"name": OWN, **SHORT}},
    "sweep_lr: [method]": {"kind": "sweep_lr", "method": {"name": OWN, **SHORT}, "sweep": {"values": [0.1, 0.2]}},
    "privacy: [method]": {"kind": "privacy", "method": {"name": OWN, **SHORT}, "attack": {"arms": ["method"]}},
    "privacy: [arms.*.method]": {"kind": "privacy", "privacy": {}, "arms": {"mine": {"method": {"name": OWN, **SHORT}}}},
    "privacy: [attack] arms": {"kind": "privacy", "attack": {"arms": [OWN, "random"], "methods": {OWN: SHORT}}},
    "continual: [memory]": {"kind": "continual", "memory": {"methods": [OWN]}, "settings": {OWN: SHORT}},
    "continual: [memory], decoded": {
        "kind": "continual",
        "memory": {"methods": ["random-decoded", f"{OWN}-decoded"], "decode": "formation:2"},
        "settings": {f"{OWN}-decoded": SHORT},
    },
    "nas: [methods]": {"kind": "nas", "methods": {OWN: SHORT}},
    "federated: [upload]": {"kind": "federated", "upload": {"method": OWN, "iterations": 2}, "federation": {"network": NET}},
    "pipeline: a stage's [method]": {
        "kind": "pipeline",
        "stages": {
            "make": {"kind": "condense", "method": {"name": OWN, **SHORT}},
            "attack": {"kind": "privacy", "from": "make", "attack": {"arms": ["released"], "network": NET}},
        },
    },
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "mine.py").write_text(CODE)
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    for name in ("mine", "nets"):
        sys.modules.pop(name, None)


def made(place: str, folder: Path) -> Any:
    return study("own", {"data": {"name": "digits"}, **PLACES[place]}, str(folder / "own.toml"))


@pytest.mark.parametrize("place", PLACES)
def test_every_place_takes_an_import_path(place: str, folder: Path) -> None:
    found = made(place, folder)
    assert OWN in METHODS
    assert NET in networks.OWN
    named = [found] if found.kind != "pipeline" else [stage.study for stage in found.stages]
    assert {path for one in named for path in one.merged["own"]} == {OWN, NET}
    # Another file is another study.
    hashes = [found.hash]
    (folder / "mine.py").write_text(CODE + "# changed\n")
    assert made(place, folder).hash not in hashes


@pytest.mark.parametrize("place", PLACES)
def test_a_wrong_path_is_one_line_that_names_the_place(place: str, folder: Path) -> None:
    (folder / "mine.py").write_text(CODE.replace("class MyMethod:", "class Other:"))
    with pytest.raises(InputError) as caught:
        made(place, folder)
    text = str(caught.value)
    assert "mine.py: name 'MyMethod' is not known" in text
    assert "\n" not in text
    assert text.startswith(f"{folder / 'own.toml'}: [")


def test_every_kind_that_names_a_method_is_here() -> None:
    kinds = {place.partition(":")[0] for place in PLACES}
    assert kinds == {name for name in KINDS if name == "pipeline" or KINDS[name].own.methods}
    assert kinds == {*KINDS} - {"released"}, "which makes no set"


def test_commands_take_it(folder: Path) -> None:
    assert tables_for("digits", OWN, 1, {})["method"]["name"] == OWN
    # `distill condense` and `distill run` make a study of their tables, with the command in place of the file.
    assert study("condense", {"data": {"name": "digits"}, **PLACES["condense: [method]"]}, "distill condense").merged["own"]


@pytest.mark.parametrize("engine", ["simulation", "deployment"])
@pytest.mark.parametrize("table", [{"upload": {"method": OWN}}, {"federation": {"network": NET}}])
def test_clients_in_other_processes_do_not(engine: str, table: dict[str, Any], folder: Path) -> None:
    tables = {"kind": "federated", "data": {"name": "digits"}, **table}
    tables["federation"] = {**table.get("federation", {}), "engine": engine}
    with pytest.raises(InputError, match=f"the clients of engine '{engine}' are separate processes") as caught:
        study("own", tables, str(folder / "own.toml"))
    assert "\n" not in str(caught.value)


def test_a_federation_on_the_inline_engine_runs(folder: Path) -> None:
    pytest.importorskip("flwr")
    tables = {
        **PLACES["federated: [upload]"],
        "data": {"name": "digits", "size": 8},
        "partition": {"num_partitions": 2, "partitioner": "iid"},
    }
    tables["federation"] = {"network": NET, "rounds": 1, "seeds": 2}
    tables["upload"] = {"method": OWN, "iterations": 1, "ipc": 1, "networks": "fresh"}
    tables["server"] = {"recipe": {"max_steps": 1, "augmentation": "none"}}
    _, record = run_study(study("own", tables, str(folder / "own.toml")), Options(out=folder / "out", quiet=True))
    assert record["status"] == "done"
    assert record["results"]["strategies"]["feddm"]["dropped"] == []


def test_a_ranking_makes_its_sets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from scenarios.nas import run as nas_run

    class Stop(Exception): ...

    def stops(*_: Any, **__: Any) -> None:
        raise Stop

    monkeypatch.setattr(nas_run, "rank", stops)  # training networks is another test's
    tables = {**PLACES["nas: [methods]"], "data": {"name": "digits", "size": 8, "validation": 0.1}, "sets": {"ipc": 1, "copies": 1}}
    tables |= {"space": {"networks": ["MLP", "ConvNetD1W8"]}, "proxy": {"seeds": 1, "regression": 0}, "run": {"workers": 1}}
    with pytest.raises(Stop):
        run_study(study("own", tables, str(folder / "own.toml")), Options(out=folder / "out", quiet=True))
    (path,) = (folder / "out").rglob("mine.MyMethod-0.safetensors")
    assert CondensedSet.load(path).provenance.method == OWN
    assert json.loads(next((folder / "out").rglob("config.json")).read_text())["own"].keys() == {OWN, NET}
