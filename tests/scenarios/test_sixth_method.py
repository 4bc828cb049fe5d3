"""A sixth method is one file and one line: it runs through condense, a memory, a federated client and a private study."""

import importlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apps.continual.condensing import class_by_class, settings_of
from apps.continual.memory import Memory, MemoryConfig
from apps.federated.condense import upload
from apps.federated.settings import Settings, from_mapping, method_config
from distill.data import ImageData
from distill.errors import InputError
from distill.methods import METHODS, register
from distill.methods.advice import advice
from distill.methods.presets import Presets, matched_by, presets_of
from distill.run import condense
from scenarios.catalogue import run_study, study
from scenarios.condense.step_sizes import tables_for
from scenarios.engine.scenario import read_scenario
from scenarios.engine.study import Options
from scenarios.privacy.reading import study as private_study
from tests.apps.continual.test_memory import experience

EXAMPLE = (Path(__file__).parents[2] / "examples" / "mymethod.py").read_text()
# The file with presets of its own: everything that the applications know about the method stands here.
HEAD = """from distill.methods.presets import Presets


"""
STATED = """class MyMethod:
    matches = "features"
    presets = Presets(
        memory={"iterations": 3}, client={"iterations": 2}, sweep={"network": "MLP"}, published_ipc={"": 5}, above="take dm"
    )
"""


@pytest.fixture
def sixth(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Any]]:
    """The method in a package of its own, with its one line."""
    package = tmp_path / "sixth_package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    assert EXAMPLE.count("class MyMethod:\n") == EXAMPLE.count("@dataclass") == 1
    (package / "sixth.py").write_text(EXAMPLE.replace("@dataclass", HEAD + "@dataclass").replace("class MyMethod:\n", STATED))
    monkeypatch.syspath_prepend(tmp_path)
    before = dict(METHODS)
    made = importlib.import_module("sixth_package.sixth")
    register("sixth", made.MyMethodConfig, made.MyMethod)
    yield made.MyMethod
    METHODS.clear()
    METHODS.update(before)
    for name in ("sixth_package.sixth", "sixth_package"):
        del sys.modules[name]


def silent() -> type[Any]:
    """A method that does not say what it matches and has no presets."""

    class Silent(METHODS["sixth"][1]):  # type: ignore[misc]
        matches, presets = "", Presets()

    register("silent", METHODS["sixth"][0], Silent)
    return Silent


def test_condense_a_study_and_a_sweep(sixth: type[Any], toy_data: ImageData) -> None:
    made = condense(toy_data, "sixth", ipc=1, iterations=2)
    assert made.provenance.method == "sixth"
    name, tables = read_scenario("quickstart")
    tables = {**tables, "method": {"name": "sixth", "ipc": 1, "iterations": 2}}
    assert study(name, tables, name).hash != study(name, read_scenario("quickstart")[1], name).hash
    assert tables_for("digits", "sixth", 1, {})["method"]["network"] == "MLP"
    lines = advice("sixth", METHODS["sixth"][0](), toy_data.spec, 6)
    assert lines == [f"sixth is published for up to 5 images a class on data such as {toy_data.spec.name}, not 6; take dm."]


def test_a_memory_takes_its_preset_and_a_class_alone(sixth: type[Any], toy_data: ImageData) -> None:
    assert settings_of("sixth", {"lr_img": 0.2}) == {"iterations": 3, "lr_img": 0.2}
    memory = Memory(MemoryConfig("sixth", per_class=1))
    memory.observe(*experience(toy_data, 0), progress=False)
    assert memory.labels.tolist() == [0]
    assert all(class_by_class(name) for name in ("sixth", "random", "datadam"))
    silent()
    assert settings_of("silent", {}) == {}
    assert not any(class_by_class(name) for name in ("silent", "gm", "dsa", "mtt"))


def test_a_federated_client(sixth: type[Any], toy_data: ImageData) -> None:
    asked: Settings = from_mapping({"network": "ConvNetD1W8", "upload": {"method": "sixth", "ipc": 1, "networks": "fresh"}})
    assert method_config(asked).iterations == 2
    made = upload(toy_data, asked, 1, 0)
    assert len(made.images) == toy_data.spec.num_classes
    assert (method_config(from_mapping({"upload": {"method": "gm"}})).augmentation) == "none"


def private_tables(method: str) -> dict[str, Any]:
    return {
        "privacy": {"epsilon": [8.0], "networks": 2, "clip": 1.0, "start": "kmeans", "start_releases": 2, "centred": True, "twin": False},
        "method": {"name": method, "ipc": 1, "iterations": 2, "network": "ConvNetD1W8"},
        "evaluation": {"networks": ["MLP"], "seeds": 1, "baselines": [], "recipe": {"max_steps": 1}},
    }


def test_a_private_study(sixth: type[Any], tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    given = private_study("s", "S", private_tables("sixth"), "s.toml")
    folder, record = run_study(given, Options(out=tmp_path / "out", quiet=True))
    assert record["status"] == "done"
    assert record["results"]["epsilon8"]["privacy"]["epsilon"] <= 8.0
    assert json.loads((folder / "record.json").read_text())["results"]["epsilon8"]["privacy"]["releases"] == 4


def test_a_method_that_does_not_say_what_it_matches_is_refused_before_a_budget_is_spent(sixth: type[Any], toy_data: ImageData) -> None:
    silent()
    with pytest.raises(InputError, match="'silent' does not state that") as caught:
        private_study("s", "S", private_tables("silent"), "s.toml")
    assert "\n" not in str(caught.value)
    with pytest.raises(InputError, match="'gm' matches gradients"):
        private_study("s", "S", private_tables("gm"), "s.toml")
    for name in ("gm", "silent"):  # neither an attack nor an uncentred release needs features
        tables = private_tables(name)
        privacy = tables.pop("privacy")
        assert private_study("s", "S", {**tables, "attack": {}}, "s.toml").method == name
        assert private_study("s", "S", {**tables, "privacy": {**privacy, "centred": False}}, "s.toml").method == name


@pytest.mark.parametrize(
    ("part", "says"),
    [
        ({"matches": "outputs"}, "matches is 'outputs'; allowed: 'features', 'gradients', 'trajectories', ''."),
        ({"presets": {"memory": {}}}, "presets is {'memory': {}}; allowed: a distill.methods.presets.Presets."),
    ],
)
def test_wrong_data_is_one_line(sixth: type[Any], part: dict[str, Any], says: str) -> None:
    wrong = type("Wrong", (sixth,), part)
    with pytest.raises(InputError) as caught:
        register("wrong", METHODS["sixth"][0], wrong)
    assert str(caught.value) == f"method Wrong: {says}"
    assert "wrong" not in METHODS


def test_every_built_in_method_says_what_it_matches() -> None:
    found = {name: matched_by(method) for name, (_, method) in METHODS.items()}
    gradients = dict.fromkeys(("gm", "dsa", "dcc", "dsac", "cafe", "idc", "accdd", "dream", "olcgm", "ssd"), "gradients")
    assert found == gradients | dict.fromkeys(("dm", "datadam", "idm", "dance", "ncfm"), "features") | {"mtt": "trajectories"}
    for name, (config, method) in METHODS.items():
        presets = presets_of(method)
        assert (presets.paper is None) == (name in ("olcgm", "ssd")), "which are published for replay memories only"
        for data, ipc in (("cifar10", 1), ("mnist", 50), ("svhn", 3)) if presets.paper is not None else ():
            config(**presets.paper(data, ipc).settings)
        for table in (presets.short, presets.digits, presets.memory, presets.sweep, presets.client):
            config(**table)
        assert presets.published_ipc[""], name
        assert presets.above, name
