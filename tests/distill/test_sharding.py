"""Two processes that share the classes out make the set that one process makes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from distill import condense
from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.sharding import check_classes
from tests.conftest import toy

ROOT = Path(__file__).parents[2]
CHILD = """
import sys
from pathlib import Path
from distill import condense, sharding
from scenarios.cli import main
from tests.conftest import toy
cases, end = sys.argv[2 : sys.argv.index("--")], sharding.end
sharding.end = lambda: None
try:
    main(sys.argv[sys.argv.index("--") + 1 :])  # which joins the group by itself
except SystemExit as ended:
    assert not ended.code
assert sharding.count() == 2
for number, case in enumerate(cases):
    method, network = case.split(":")
    tiny = condense(toy(), method, ipc=2, iterations=3, batch_real=8, network=network)
    tiny.save(Path(sys.argv[1]) / f"{number}-{sharding.rank()}.safetensors")
end()
"""


CASES = ("dm:ConvNetD1W32", "datadam:ConvNetD2W32", "gm:ConvNetD1W32", "dm:ConvNetD1W32BN")
COMMAND = ["condense", "--data", "digits", "--method", "dm", "--ipc", "1", "--device", "cpu"]
COMMAND += [part for s in ("iterations=4", "network=ConvNetD1W32", "batch_real=16") for part in ("--set", s)]


@pytest.fixture(scope="module")
def launched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes left that torchrun started once: a run of the command line, and each case's set by each of them."""
    place = tmp_path_factory.mktemp("two")
    script = place / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script), str(place), *CASES]
    command += ["--", *COMMAND, "--out", str(place / "runs")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=place, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return place


def test_two_processes_give_what_one_gives(launched: Path) -> None:
    """Within 1e-5 of the largest pixel; batch norm sees all classes together, so there every process computes everything."""
    for number, case in enumerate(CASES):
        method, network = case.split(":")
        start, alone = (condense(toy(), method, ipc=2, iterations=n, batch_real=8, network=network).images for n in (1, 3))
        first, second = (CondensedSet.load(launched / f"{number}-{rank}.safetensors").images for rank in (0, 1))
        assert torch.equal(first, second)
        assert not torch.allclose(start, alone, atol=1e-3)
        assert float((first - alone).abs().max()) < 1e-5 * float(alone.abs().max())


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
