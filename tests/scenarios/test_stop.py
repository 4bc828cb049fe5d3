"""A run that is stopped with Ctrl-C or SIGTERM records it, says how to go on, and exits with 130."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

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
# A child whose checkpoints come at every step.
CHILD = "import distill.run; distill.run.CHECKPOINT_SECONDS = 0.0; from scenarios.cli import main; main()"


def command(scenario: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", CHILD, "run", str(scenario), "--out", str(out), "--device", "cpu", "--resume"]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(number: signal.Signals, tmp_path: Path) -> None:
    scenario = tmp_path / "study.toml"
    scenario.write_text(SCENARIO.format(iterations=100_000, epochs=1000, steps=25))
    arguments = command(scenario, tmp_path / "runs")
    child = subprocess.Popen(
        arguments, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path).glob("runs/*/checkpoint-ipc1.safetensors")):
        assert child.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(number)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "Traceback" not in errors
    assert errors.strip().splitlines()[-1].startswith("interrupted; continue with: distill run")
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "record.json").read_text())["status"] == "interrupted"
    assert (folder / "checkpoint-ipc1.safetensors").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_while_networks_are_judged_is_recorded_too(number: signal.Signals, tmp_path: Path) -> None:
    scenario = tmp_path / "study.toml"
    scenario.write_text(SCENARIO.format(iterations=2, epochs=1_000_000, steps=100_000))
    child = subprocess.Popen(
        command(scenario, tmp_path / "runs"), env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list((tmp_path).glob("runs/*/condensed*.safetensors")):
        assert child.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child.send_signal(number)
    _, errors = child.communicate(timeout=120)
    assert child.returncode == 130
    assert errors.strip().splitlines()[-1].startswith("interrupted; continue with: distill run")
    (folder,) = (tmp_path / "runs").iterdir()
    assert json.loads((folder / "record.json").read_text())["status"] == "interrupted"
