"""The examples of docs/extend.md run as they stand, in at most 30 lines each."""

import dataclasses
import re
import runpy
import sys
from pathlib import Path

import pytest

from distill import networks
from distill.methods import METHODS
from distill.train import PROTOCOLS
from scenarios import cli

EXAMPLES = Path(__file__).parents[1] / "examples"
pytestmark = pytest.mark.plain_layers  # a user's script builds plain torch layers, and Avalanche draws from the global generators

# What each prints: a test of an example that says nothing could not fail.
SCRIPTS = {
    "mynets.py": r"condensed +(\d+\.\d) ± .* (\d+\.\d) ±",
    "own_images.py": r"\('bright-left', 'bright-top'\) 64 training images, 6160 bytes[\s\S]*condensed +(\d+\.\d) ±",
    "own_strategy.py": r"condensed +\d+\.\d ±[\s\S]*condensed +(\d+\.\d) ±",
    "own_avalanche.py": r"50 items, 51600 bytes, test accuracy (\d+\.\d)",
    "own_attack.py": r"AUC 0\.[\s\S]*648 members, 649 others\nepsilon is at least 0\.\d\d",
}
STUDIES = {"own-method.toml": r"mymethod:MyMethod +(\d+\.\d) ±", "own-network.toml": r"dm +(\d+\.\d) ± \d+\.\d +(\d+\.\d) ±"}
NEEDS = {"own_strategy.py": "flwr", "own_avalanche.py": "avalanche", "own_attack.py": "opacus"}


@pytest.fixture(autouse=True)
def _short_trainings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the examples leave at its default: 50 larger steps in place of 200."""
    monkeypatch.setitem(PROTOCOLS, "laptop", dataclasses.replace(PROTOCOLS["laptop"], max_steps=50, lr=0.005))


@pytest.fixture(autouse=True)
def _nothing_stays_known(monkeypatch: pytest.MonkeyPatch):
    methods, own, path = dict(METHODS), dict(networks.OWN), list(sys.path)
    yield
    for kept, known in ((methods, METHODS), (own, networks.OWN)):
        known.clear()
        known.update(kept)
    sys.path[:] = path


def better_than_chance(pattern: str, printed: str) -> None:
    found = re.search(pattern, printed)
    assert found, f"{pattern} is not in: {printed}"
    assert all(float(number) > 60 for number in found.groups()), printed


@pytest.mark.filterwarnings("ignore")  # other libraries' warnings in a user's script are not ours
@pytest.mark.parametrize("name", SCRIPTS)
def test_the_script_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    if name in NEEDS:
        pytest.importorskip(NEEDS[name])
    from apps.continual.engine import quiet_and_seeded

    monkeypatch.chdir(tmp_path)
    with quiet_and_seeded(0):
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
    better_than_chance(SCRIPTS[name], capsys.readouterr().out)


@pytest.mark.parametrize("name", STUDIES)
def test_the_scenario_runs(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as left:
        cli.main(["run", str(EXAMPLES / name)])
    assert left.value.code == 0, capsys.readouterr().err
    better_than_chance(STUDIES[name], capsys.readouterr().out)


def test_each_is_short_and_there_is_no_other() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    assert scripts == {*SCRIPTS, "mymethod.py"}
    assert {path.name for path in EXAMPLES.glob("*.toml")} == set(STUDIES)
    for path in EXAMPLES.iterdir():
        if path.is_file():
            assert sum(bool(line.strip()) for line in path.read_text().splitlines()) <= 30, path.name
