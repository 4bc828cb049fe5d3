"""A run that is killed with -9 at random moments, or stopped with Ctrl-C, and continued ends with the same bits."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from distill.condensed import CondensedSet

SCENARIO = """
kind = "condense"
[data]
name = "digits"
[method]
name = "{method}"
ipc = [1, 2]
iterations = {iterations}
network = "ConvNetD1W32"
batch_real = 16
{more}
[evaluation]
protocol = "laptop"
networks = ["ConvNetD1W32"]
seeds = 2
baselines = ["random", "whole"]
[evaluation.recipe]
epochs = 1000
max_steps = 25
batch_size = 16
"""
# A child whose checkpoints come at every step, so that a kill lands between, before and inside them.
CHILD = "import distill.run; distill.run.CHECKPOINT_SECONDS = 0.0; from scenarios.cli import main; main()"


def command(scenario: Path, out: Path) -> list[str]:
    return [sys.executable, "-c", CHILD, "run", str(scenario), "--out", str(out), "--device", "cpu", "--resume"]


def lines_logged(out: Path) -> int:
    return sum(len(path.read_bytes().splitlines()) for path in out.glob("*/metrics.jsonl"))


def outcome(out: Path) -> tuple[list[torch.Tensor], dict]:
    (folder,) = out.iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "done"
    assert not list(folder.glob("checkpoint*"))
    assert not list(folder.glob(".*.part")), "a temporary file was left behind"
    sets = [CondensedSet.load(folder / f"condensed-ipc{ipc}.safetensors").images for ipc in (1, 2)]
    return sets, {ipc: record["results"][ipc]["accuracy"] for ipc in ("ipc1", "ipc2")}


@pytest.mark.parametrize(("method", "iterations", "more"), [("dm", 60, ""), ("gm", 20, "outer_steps = 3\ninner_epochs = 2")])
def test_kill_and_resume_gives_the_same_bits(method: str, iterations: int, more: str, tmp_path: Path) -> None:
    scenario = tmp_path / "study.toml"
    scenario.write_text(SCENARIO.format(method=method, iterations=iterations, more=more))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command(scenario, tmp_path / "whole"), env=environment, check=True, capture_output=True)
    dice = random.Random(method)
    # A moment is a number of lines in the log and a little more, so that it does not depend on the machine's speed.
    moments = sorted(dice.uniform(0.05, 0.7) * lines_logged(tmp_path / "whole") for _ in range(3))
    kills = 0
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    for moment in moments:
        child = subprocess.Popen(command(scenario, tmp_path / "killed"), env=environment, **quiet)
        while lines_logged(tmp_path / "killed") < moment and child.poll() is None:
            time.sleep(0.002)
        time.sleep(dice.uniform(0, 0.02))
        child.kill()
        kills += child.wait() == -signal.SIGKILL
    subprocess.run(command(scenario, tmp_path / "killed"), env=environment, check=True, capture_output=True)
    assert kills >= 1
    (sets, accuracies), (sets_again, accuracies_again) = outcome(tmp_path / "whole"), outcome(tmp_path / "killed")
    assert all(torch.equal(a, b) for a, b in zip(sets, sets_again, strict=True))
    assert accuracies == accuracies_again
    losses = [
        [
            (line["ipc"], line["step"], line["loss"])
            for line in map(json.loads, metrics.read_text().splitlines())
            if line["stage"] == "distil"
        ]
        for metrics in (next((tmp_path / name).iterdir()) / "metrics.jsonl" for name in ("whole", "killed"))
    ]
    assert losses[0] == losses[1], "every step is in the log once"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_says_how_to_go_on_and_exits_130(number: signal.Signals, tmp_path: Path) -> None:
    scenario = tmp_path / "study.toml"
    scenario.write_text(SCENARIO.format(method="dm", iterations=100_000, more=""))
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
    scenario.write_text(
        SCENARIO.format(method="dm", iterations=2, more="")
        .replace("max_steps = 25", "max_steps = 100000")
        .replace("epochs = 1000", "epochs = 1000000")
    )
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
