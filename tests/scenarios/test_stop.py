"""A run that is stopped with Ctrl-C or SIGTERM records it, says how to go on, and exits with 130."""

import contextlib
import copy
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios.conftest import Run
from tests.scenarios.test_kill import STUDIES
from tests.scenarios.test_pipeline import toml

SCENARIO = """
kind = "condense"
[data]
name = "digits"
[method]
name = "dm"
ipc = [1, 2]
iterations = {iterations}
network = "ConvNetD1W32"
batch_real = 16
[evaluation]
protocol = "laptop"
networks = ["ConvNetD1W32"]
seeds = 2
baselines = ["random", "whole"]
[evaluation.recipe]
epochs = {epochs}
max_steps = {steps}
batch_size = 16
"""


def stopped(number: signal.Signals, ready: str, scenario: str, start: Run, tmp_path: Path) -> Path:
    """A run that got the signal when the file ``ready`` was there; its folder, which says that it was interrupted."""
    (tmp_path / "study.toml").write_text(scenario)
    process, log = start(tmp_path / "study.toml", tmp_path / "runs"), tmp_path / "log"
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(f"runs/*/{ready}")):
        assert process.is_alive(), "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, number)
    process.join(120)
    assert process.exitcode == 130
    assert "Traceback" not in log.read_text()
    assert log.read_text().strip().splitlines()[-1].startswith("interrupted; continue with: distill run")
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "record.json").read_text())["status"] == "interrupted"
    return folder


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(number: signal.Signals, start: Run, tmp_path: Path) -> None:
    scenario = SCENARIO.format(iterations=100_000, epochs=1000, steps=25)
    folder = stopped(number, "checkpoint-ipc1.safetensors", scenario, start, tmp_path)
    assert (folder / "checkpoint-ipc1.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_networks_are_judged_is_recorded_too(number: signal.Signals, start: Run, tmp_path: Path) -> None:
    stopped(number, "condensed*.safetensors", SCENARIO.format(iterations=2, epochs=1_000_000, steps=100_000), start, tmp_path)


# A network that sits in one call into C, which does not look at signals, from its first pass after the study's start.
STUCK = """
import hashlib, pathlib
from torch import nn
class Stuck(nn.Module):
    def __init__(self, spec):
        super().__init__()
        self.classifier = nn.Linear(spec.channels * spec.height * spec.width, spec.num_classes)
    def forward(self, images):
        if list(pathlib.Path(OUT).glob("*/record.json")) and self.training:
            pathlib.Path(OUT, "stuck").touch()
            hashlib.pbkdf2_hmac("sha256", b"a", b"b", 500_000_000)
        return self.classifier(images.flatten(1))
def net(spec):
    return Stuck(spec)
"""
FOREVER = {"epochs": 1_000_000, "max_steps": 1_000_000, "batch_size": 16, "compile": "off"}


def slow(kind: str) -> tuple[dict[str, Any], str]:
    """A study with a step of more than a minute, and the file that is there when it is about to begin or has begun."""
    study = copy.deepcopy(STUDIES[kind])
    if kind == "condense":  # evaluation networks
        study["method"] |= {"ipc": 1, "iterations": 1}
        study["evaluation"] |= {"networks": ["stuck:net"], "recipe": FOREVER}
        return study, "stuck"
    if kind == "continual":  # a learner
        study["learner"] |= {"network": "stuck:net", "strategies": ["joint"], "recipe": FOREVER}
        return study, "stuck"
    if kind == "nas":  # worker processes that are about to start
        study["run"]["workers"] = 2
        study["truth"]["recipe"] = FOREVER
        study["methods"]["dm"]["iterations"] = 1
        return study, "*/*.safetensors"
    study["attack"] |= {"arms": ["whole"]}
    study["evaluation"]["recipe"] = FOREVER
    return study, "*/public/condensed*.safetensors"


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("kind", ["condense", "continual", "nas", "privacy"])
def test_ctrl_c_in_a_step_of_minutes_ends_everything_at_once(kind: str, start: Run, tmp_path: Path) -> None:
    study, ready = slow(kind)
    scenario, out, log = tmp_path / "study.toml", tmp_path / "runs", tmp_path / "log"
    scenario.write_text(toml(study))
    (tmp_path / "stuck.py").write_text(STUCK.replace("OUT", repr(str(out))))
    process = start(scenario, out, cores=None)
    deadline = time.monotonic() + 120
    while not list(out.glob(ready)):
        assert process.is_alive(), log.read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    time.sleep(0.3)
    began = time.monotonic()
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.join(60)
    while in_group(process.pid) and time.monotonic() < began + 60:
        time.sleep(0.02)
    assert not in_group(process.pid), "a step takes minutes"
    assert process.exitcode == 130
    assert "Traceback" not in log.read_text()
    assert log.read_text().strip().splitlines()[-1].startswith("interrupted; continue with: distill run")


def in_group(group: int) -> list[int]:
    """The processes of a process group that are still at work."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            fields = (path / "stat").read_text().rpartition(")")[2].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append(int(path.name))
    return found
