"""Two processes that share the classes out make the set that one process makes."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill import condense
from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.methods import METHODS
from distill.sharding import check_classes
from tests.conftest import toy

ROOT = Path(__file__).parents[2]
CHILD = """
import json, sys
from pathlib import Path
from distill import condense, sharding
from scenarios.cli import main
from tests.conftest import toy
cases, command, end = json.loads(sys.argv[2]), sys.argv[3:], sharding.end
sharding.end = lambda: None
try:
    main(command) if command else sharding.start("cpu")  # a command joins the group by itself
except SystemExit as ended:
    assert not ended.code
assert sharding.count() == 2
for number, (method, settings) in enumerate(cases):
    tiny = condense(toy(), method, ipc=2, **settings)
    tiny.save(Path(sys.argv[1]) / f"{number}-{sharding.rank()}.safetensors")
end()
"""


Case = tuple[str, dict[str, object]]
POOL = {"pool_networks": 2, "pool_epochs": 2}


def case(method: str, network: str = "ConvNetD1W32", **settings: object) -> Case:
    return method, {"iterations": 3, "batch_real": 8, "network": network, **settings}


# One of each loss: means of features, maps, phases and layers; gradients class by class and of all classes; calibration; batch norm's.
CASES: list[Case] = [
    case("dm"),
    case("datadam", "ConvNetD2W32"),
    case("gm"),
    case("dm", "ConvNetD1W32BN"),
    case("dance", **POOL),
    case("ncfm", frequencies=64, **POOL),
    case("idm", **POOL),
    case("idc", outer_steps=3, iterations=1, **POOL),
    case("dcc", outer_steps=3, iterations=1, warm_updates=1, inner_epochs=1),
    case("cafe", outer_steps=3, iterations=1),
]
MORE: list[Case] = [
    case("dsa", outer_steps=3, iterations=1),
    case("dsac", outer_steps=3, iterations=1, warm_networks=0),
    case("accdd", outer_steps=3, iterations=1, **POOL),
    case("olcgm", outer_steps=3, iterations=1),
    case("ssd", outer_steps=3, iterations=1),
    case("dream", outer_steps=3, iterations=1, **POOL),
    case("ncfm", distance="mmd", frequencies=64, calibration_every=2, **POOL),
    case("dance", "ConvNetD1W32BN", pool="walk", calibration=0.5, flipped=True, **POOL),
    case("idm", "ConvNetD1W32BN", decode="frequency:9", **POOL),
    case("dm", radius=5.0, logits=True, real_batches="kmeans"),
    case("cafe", outer_steps=3, iterations=1, flipped=True, calibration=0.5, discrimination=0.5, **POOL),
    case("datadam", "ConvNetD2W32", form="released", decode="formation:2", pool="stages", **POOL),
    case("gm", pool="early", distance="cosine", outer_steps=3, iterations=1, **POOL),
]
COMMAND = ["condense", "--data", "digits", "--method", "dm", "--ipc", "1", "--device", "cpu"]
COMMAND += [part for s in ("iterations=4", "network=ConvNetD1W32", "batch_real=16") for part in ("--set", s)]


def launch(place: Path, cases: list[Case], command: list[str]) -> Path:
    """What two processes leave that torchrun starts once: a run of the command line, if there is one, and each case's set by each."""
    script = place / "child.py"
    script.write_text(CHILD)
    started = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(place)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    started += [json.dumps(cases), *command]
    done = subprocess.run(started, env=environment, capture_output=True, text=True, timeout=240, cwd=place, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return place


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("two")
    return launch(place, CASES, [*COMMAND, "--out", str(place / "runs")])


@pytest.fixture(scope="module")
def launched_more(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return launch(tmp_path_factory.mktemp("more"), MORE, [])


def compare(place: Path, number: int, method: str, settings: dict[str, object]) -> None:
    """Within 1e-5 of the largest pixel; batch norm sees all classes together, so there every process computes everything."""
    start = {"iterations": 1, **({"outer_steps": 1} if "outer_steps" in settings else {})}
    first_step, alone = (condense(toy(), method, ipc=2, **{**settings, **n}).images for n in (start, {}))  # type: ignore[arg-type]
    first, second = (CondensedSet.load(place / f"{number}-{rank}.safetensors").images for rank in (0, 1))
    assert torch.equal(first, second)
    largest = float(alone.abs().max())
    assert float((first_step - alone).abs().max()) > 1e-3 * largest, "the steps move the images"
    assert float((first - alone).abs().max()) < 1e-5 * largest


@pytest.mark.parametrize("number", range(len(CASES)), ids=lambda number: CASES[number][0])
def test_two_processes_give_what_one_gives(number: int, launched: Path) -> None:
    compare(launched, number, *CASES[number])


@pytest.mark.slow
@pytest.mark.parametrize("number", range(len(MORE)), ids=lambda number: MORE[number][0])
def test_two_processes_give_what_one_gives_in_other_settings(number: int, launched_more: Path) -> None:
    compare(launched_more, number, *MORE[number])


def test_every_method_that_shares_its_classes_out_is_compared() -> None:
    assert {method for method, _ in CASES + MORE} == set(METHODS) - {"mtt"}


def test_the_command_line_under_torchrun(launched: Path, tmp_path: Path) -> None:
    """One run folder, written by the first process; the figures are those of one process."""
    from distill.records import read_json
    from scenarios import cli

    with pytest.raises(SystemExit):
        cli.main([*COMMAND, "--out", str(tmp_path)])
    (two,), (one,) = list((launched / "runs").iterdir()), list(tmp_path.iterdir())
    assert two.name == one.name
    assert read_json(two / "record.json")["status"] == "done"
    sets = [CondensedSet.load(folder / "condensed.safetensors").images for folder in (one, two)]
    assert torch.allclose(*sets, atol=1e-4)
    assert sorted(path.name for path in two.iterdir()) == sorted(path.name for path in one.iterdir())


def test_more_processes_than_classes_and_mtt_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from distill import sharding

    monkeypatch.setattr(sharding, "count", lambda: 4)
    with pytest.raises(InputError, match="4 processes were launched for 3 classes"):
        check_classes(3)
    monkeypatch.setattr(sharding, "check_classes", lambda _: None)
    with pytest.raises(InputError, match="without torchrun"):
        condense(toy(), "mtt", iterations=1)
