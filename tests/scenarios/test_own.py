"""A user's own method and network by import path: found beside the scenario, checked strictly, and never imported for anybody else."""

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import pytest

import distill
from apps.federated.settings import from_mapping
from distill import networks
from distill.condensed import CondensedSet, Provenance
from distill.coresets import select
from distill.data import ImageData
from distill.errors import InputError
from distill.methods import METHODS, register
from distill.networks import create
from distill.randomness import generator
from distill.run import condense
from scenarios.catalogue import KINDS, study
from scenarios.engine.scenario import read_scenario
from tests.scenarios.test_cli import call

EXAMPLES = Path(__file__).parents[2] / "examples"
METHOD = (EXAMPLES / "mymethod.py").read_text()
NETS = """from torch import nn
def make(spec):
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.height * spec.width, spec.num_classes))
"""
SCENARIO = 'kind = "condense"\n[data]\nname = "digits"\n[method]\nname = "{method}"\n{more}\n'


@pytest.fixture(autouse=True)
def _nothing_stays_known(monkeypatch: pytest.MonkeyPatch):
    methods, own, path, modules = dict(METHODS), dict(networks.OWN), list(sys.path), set(sys.modules)
    yield
    for kept, known in ((methods, METHODS), (own, networks.OWN)):
        known.clear()
        known.update(kept)
    sys.path[:] = path
    for name in {"mine", "nets"} & set(sys.modules) - modules:
        del sys.modules[name]


def made(folder: Path, method: str = "dm", more: str = "") -> Any:
    path = folder / "own.toml"
    path.write_text(SCENARIO.format(method=method, more=more))
    name, tables = read_scenario(str(path))
    return study(name, tables, str(path))


def refused(folder: Path, method: str = "dm", more: str = "") -> str:
    with pytest.raises(InputError) as error:
        made(folder, method, more)
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{folder / 'own.toml'}: [method]: key ")
    return text.removeprefix(f"{folder / 'own.toml'}: [method]: ")


def test_a_method_beside_the_scenario(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    found = made(tmp_path, "mine:MyMethod", "iterations = 3")
    assert found.method == "mine:MyMethod"
    assert found.settings.iterations == 3
    assert list(found.merged["own"]) == ["mine:MyMethod"]
    assert json.loads(json.dumps(found.merged)) == found.merged


def test_its_settings_are_checked_like_those_of_a_built_in_method(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    assert "key 'iterations' is \"3\"; allowed: a whole number" in _study_error(tmp_path, 'iterations = "3"')
    assert "key 'iteration' is not known; did you mean 'iterations'?" in _study_error(tmp_path, "iteration = 3")
    assert "network 'ConvNett' is not known; did you mean 'ConvNet'?" in _study_error(tmp_path, 'network = "ConvNett"')


def _study_error(folder: Path, more: str) -> str:
    with pytest.raises(InputError) as error:
        made(folder, "mine:MyMethod", more)
    return str(error.value)


def test_another_file_is_another_study(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(METHOD)
    first = made(tmp_path, "mine:MyMethod")
    assert made(tmp_path, "mine:MyMethod").hash == first.hash
    file.write_text(METHOD.replace("0.1", "0.2"))
    second = made(tmp_path, "mine:MyMethod")
    assert (first.settings.lr_img, second.settings.lr_img) == (0.1, 0.2)
    file.write_text(METHOD + "# a remark\n")
    assert len({first.hash, second.hash, made(tmp_path, "mine:MyMethod").hash}) == 3


def test_files_of_one_name_in_two_folders_are_two(tmp_path: Path) -> None:
    for name, lr in (("a", "0.3"), ("b", "0.4")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.py").write_text(METHOD.replace("0.1", lr))
    found = [made(tmp_path / name, "mine:MyMethod") for name in ("a", "b", "a")]
    assert [one.settings.lr_img for one in found] == [0.3, 0.4, 0.3]


def test_a_method_on_pythons_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere" / "room").mkdir(parents=True)
    (tmp_path / "elsewhere" / "room" / "mine.py").write_text(METHOD)
    monkeypatch.syspath_prepend(tmp_path / "elsewhere")
    assert made(tmp_path, "room.mine:MyMethod").settings.iterations == 100


@pytest.mark.parametrize(
    ("method", "says"),
    [
        ("mymethod:", "is 'mymethod:'; allowed: a name, or an import path of your own method, like 'mymethod:MyMethod'."),
        (":MyMethod", "is ':MyMethod'; allowed"),
        ("../mine:MyMethod", "is '../mine:MyMethod'; allowed"),
        ("/tmp/mine:MyMethod", "allowed: a name, or an import path"),
        ("mine.py:MyMethod", "'mine.py:MyMethod': there is no mine.py.py in "),
        ("mine:MyMethod:x", "allowed: a name, or an import path"),
        ("mime:MyMethod", "no module 'mime' on Python's path (PYTHONPATH); did you mean 'mine'?"),
        ("mine:MyMethd", "mine.py: name 'MyMethd' is not known; did you mean 'MyMethod'?"),
        ("mine:embed", "has no settings; put a frozen dataclass embedConfig next to the class"),
        ("json:MyMethod", "'json' is the name of a module of Python's that is in use; give json.py another name."),
    ],
)
def test_a_wrong_import_path_is_one_line(tmp_path: Path, method: str, says: str) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "json.py").write_text(METHOD)
    assert says in refused(tmp_path, method)
    assert method not in METHODS


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("from torch import", "from torhc import", "mine.py, line 5: ModuleNotFoundError: No module named 'torhc'."),
        ("class MyMethod:", "class MyMethod", "mine.py, line 20: SyntaxError: "),
        ("import dataclass\n", "import dataclass\nimport sys; sys.exit(3)\n", "mine.py, line 4: SystemExit: 3."),
        ("(frozen=True)", "", "allowed: a frozen dataclass."),
        ('    initial: str = "real"\n', "", "MyMethodConfig has no text field 'initial' with a default"),
        ("def step", "def stop", "class MyMethod has no 'step'; allowed: a class with step, condensed, state, load_state."),
        ("initial, network=None)", "initial)", "allowed: MyMethod(config, initial, network), as the built-in methods are made."),
        ("class MyMethod:", "MyMethod = 3\nclass Other:", "is an int; allowed: a class with"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, old: str, new: str, says: str) -> None:
    assert METHOD.count(old) == 1
    (tmp_path / "mine.py").write_text(METHOD.replace(old, new))
    assert says in refused(tmp_path, "mine:MyMethod")
    assert "mine:MyMethod" not in METHODS


def test_a_network_of_ones_own_is_condensed_with_and_judged(tmp_path: Path, toy_data: ImageData) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    found = made(tmp_path, "dm", 'network = "nets:make"\n[evaluation]\nnetworks = ["MLP", "nets:make"]')
    assert found.settings.network == "nets:make"
    assert found.evaluation.networks == ("MLP", "nets:make")
    one, two = (create("nets:make", toy_data.spec, generator(0, "weights")) for _ in range(2))
    assert [tuple(p.shape) for p in one.parameters()] == [(3, 64), (3,)]
    assert all(bool((p == q).all()) for p, q in zip(one.parameters(), two.parameters(), strict=True))
    given = condense(toy_data, "dm", network=networks.OWN["nets:make"], iterations=2)
    assert bool((condense(toy_data, "dm", network="nets:make", iterations=2).images == given.images).all())
    assert "nets.py: name 'mkae' is not known; did you mean 'make'?" in refused(tmp_path, "dm", 'network = "nets:mkae"')
    (tmp_path / "nets.py").write_text("make = 3\n")
    assert "is an int; allowed: a function of the data spec" in refused(tmp_path, "dm", 'network = "nets:make"')


def test_a_continual_study_takes_both(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(METHOD)
    (tmp_path / "nets.py").write_text(NETS + "other = make\nlater = make\nlast = make\n")
    settings = {"mine:MyMethod": {"iterations": 3, "network": "nets:other"}}
    tables = {"kind": "continual", "data": {"name": "digits"}, "memory": {"methods": ["random", "mine:MyMethod"], "per_class": [1]}}
    tables |= {"learner": {"network": "nets:make", "others": ["MLP", "nets:later"], "last": ["nets:last"]}, "settings": settings}
    found = study("own", tables, str(tmp_path / "own.toml"))
    assert set(found.merged["own"]) == {"mine:MyMethod", "nets:make", "nets:other", "nets:later", "nets:last"}
    settings["mine:MyMethod"]["network"] = "nets:ohter"
    with pytest.raises(InputError, match=r"own\.toml: \[settings\.mine:MyMethod\]: key 'network': nets\.py: name 'ohter' is not known"):
        study("own", tables, str(tmp_path / "own.toml"))


def test_register_in_python(toy_data: ImageData) -> None:
    import runpy

    names = runpy.run_path(str(EXAMPLES / "mymethod.py"))
    register("mine", names["MyMethodConfig"], names["MyMethod"])
    assert len(condense(toy_data, "mine", iterations=2, network="ConvNetD1W8")) == 3
    with pytest.raises(InputError, match=r"key 'iterations' is 0\.5; allowed: a whole number"):
        condense(toy_data, "mine", iterations=0.5)
    with pytest.raises(InputError, match="method 'dm' is there already"):
        register("dm", names["MyMethodConfig"], names["MyMethod"])


def test_nobody_elses_name_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, toy_data: ImageData) -> None:
    """A set, a run's settings from a server and a network's name in Python name a file that is there; it must not be run."""
    (tmp_path / "evil.py").write_text("import pathlib\npathlib.Path('ran').touch()\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    tiny = select(toy_data, "random", 1, generator(0, "c"))
    path = tmp_path / "set.safetensors"
    dataclasses.replace(tiny, provenance=Provenance("evil:Evil", {"network": "evil:make"})).save(path)
    assert CondensedSet.load(path).provenance.method == "evil:Evil"
    for settings in ({"network": "evil:make"}, {"upload": {"method": "evil:Evil"}}):
        with pytest.raises(InputError, match="is not known"):
            from_mapping(settings)
    with pytest.raises(InputError, match="is not known"):
        create("evil:make", toy_data.spec, generator(0, "w"))
    with pytest.raises(InputError, match="is not known"):
        condense(toy_data, "evil:Evil")
    tables: dict[str, Any] = {"kind": "nas", "data": {"name": "digits"}, "space": {"networks": ["evil:make"]}}
    ranked: Any = study("a", tables, str(tmp_path / "a.toml"))  # networks that are ranked are trained in other processes
    with pytest.raises(InputError, match="is not known"):
        KINDS["nas"].check(ranked, toy_data.hold_out(0.2))
    assert not (tmp_path / "ran").exists()
    assert "evil" not in sys.modules


def test_evaluate_trains_a_network_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "nets.py").write_text(NETS)
    monkeypatch.chdir(tmp_path)
    select(distill.load("digits"), "random", 1, generator(0, "set")).save(tmp_path / "set.safetensors")
    words = ["evaluate", "set.safetensors", "--data", "digits", "--seeds", "1", "--baseline", "none", "--network"]
    code, printed, errors = call(*words, "nets:make")
    assert code == 0, errors
    assert "nets:make" in printed
    assert "nets.py: name 'mkae' is not known; did you mean 'make'?" in call(*words, "nets:mkae")[2]


FAULTY = {  # what is wrong: (what is replaced in the example's method, by what, the line that is to blame)
    "when it is made": (
        "self.config, self.synthetic,",
        "unknown_name; self.config, self.synthetic,",
        "NameError: name 'unknown_name' is not",
    ),
    "in a step": ("        net = create", "        raise RuntimeError('too bad')\n        net = create", "RuntimeError: too bad"),
    "in a call of ours": (
        "statistics.class_means(lambda",
        "statistics.class_mean(lambda",
        "AttributeError: 'ExactStatistics' object has no",
    ),
}


@pytest.mark.parametrize("case", FAULTY)
def test_an_exception_of_the_users_method_names_its_file_and_line(case: str, tmp_path: Path) -> None:
    before, after, words = FAULTY[case]
    assert before in METHOD
    (tmp_path / "mine.py").write_text(METHOD.replace(before, after))
    (tmp_path / "own.toml").write_text(SCENARIO.format(method="mine:MyMethod", more="iterations = 2"))
    code, _, err = call("run", tmp_path / "own.toml", "--out", tmp_path / "runs", "--quiet")
    (line,) = err.splitlines()
    number = 1 + METHOD[: METHOD.index(before)].count("\n")
    assert code == 2
    assert line.startswith(f"error: your own code failed: {tmp_path / 'mine.py'}, line {number}: {words}")


NETWORKS = {
    "its function raises": ("def make(spec):\n    return spec.depth\n", "your function nets:make ({nets}, line 2) raised AttributeError: "),
    "its function calls C": (
        "from operator import neg as make\n",
        "your function nets:make raised TypeError: bad operand type for unary -",
    ),
    "its forward raises": (
        "from torch import nn\nclass make(nn.Module):\n    def __init__(self, spec):\n        super().__init__()\n"
        "    def forward(self, images):\n        return images.nothing\n",
        "your network nets:make ({nets}, line 6) raised AttributeError: ",
    ),
    "images do not fit": (
        "from torch import nn\ndef make(spec):\n    return nn.Sequential(nn.Flatten(), nn.Linear(25, 10))\n",
        "your network nets:make raised RuntimeError: ",
    ),
    "other classes": (
        NETS.replace("spec.num_classes", "7"),
        "your network nets:make gives shape (2, 7) for 2 images; allowed: shape (2, 10), one column a class.",
    ),
    "no module": (
        "def make(spec):\n    return 3\n",
        "the network function 'make' returned an object of type int; allowed: a torch.nn.Module.",
    ),
}


@pytest.mark.parametrize("case", NETWORKS)
def test_a_network_that_fails_is_refused_before_the_run(case: str, tmp_path: Path) -> None:
    code, words = NETWORKS[case]
    (tmp_path / "nets.py").write_text(code)
    (tmp_path / "own.toml").write_text(SCENARIO.format(method="dm", more='network = "nets:make"\niterations = 2'))
    done = call("run", tmp_path / "own.toml", "--out", tmp_path / "runs", "--quiet")
    assert done[0] == 2, done[2]
    assert done[2].startswith(f"error: {words.format(nets=tmp_path / 'nets.py')}")
    assert done[2].count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_the_trial_pass_leaves_a_network_as_it_is(tmp_path: Path, toy_data: ImageData) -> None:
    (tmp_path / "nets.py").write_text(NETS.replace("nn.Flatten(),", "nn.BatchNorm2d(spec.channels), nn.Flatten(), nn.Dropout(),"))
    made(tmp_path, more='network = "nets:make"')
    first, second = (create("nets:make", toy_data.spec, generator(0, "test")) for _ in range(2))
    for one, other in zip(first.state_dict().values(), second.state_dict().values(), strict=True):
        assert one.equal(other)
    assert all(part.training for part in first.modules())
