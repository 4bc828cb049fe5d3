"""Many short studies in one process, of every kind: its memory and its open files stay level."""

import copy
import gc
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from scenarios.catalogue import run_study, study
from scenarios.engine.study import Options
from tests.scenarios.test_kill import NETWORK, SHORT, STUDIES

TOLERANCE = 16 << 20  # bytes between the medians of two quarters: the allocator's own ups and downs


def tiny() -> list[dict[str, Any]]:
    """One study of each kind, as small as it gets; a pipeline is made of these."""
    found = {kind: copy.deepcopy(STUDIES[kind]) for kind in ("condense", "federated", "continual", "privacy", "nas")}
    found["condense"]["method"] |= {"ipc": 1, "iterations": 2}
    found["condense"]["evaluation"] |= {"seeds": 1, "recipe": SHORT}
    found["federated"]["federation"] |= {"strategies": ["feddm"], "rounds": 1}
    found["federated"]["upload"]["iterations"] = 1
    found["continual"]["stream"]["orders"] = 1
    found["continual"]["memory"]["methods"] = ["dm"]
    found["continual"]["settings"]["dm"]["iterations"] = 1
    found["privacy"]["method"]["iterations"] = 2
    found["privacy"]["evaluation"] |= {"seeds": 1, "baselines": []}
    found["nas"]["space"] |= {"norm": ["none"]}
    found["nas"]["proxy"] |= {"regression": 0, "seeds": 1, "top": [1], "early": False}
    found["nas"]["truth"]["seeds"] = 1
    found["nas"]["methods"]["dm"] |= {"iterations": 1, "network": NETWORK}
    return list(found.values())


def resident() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def soak(runs: int, out: Path) -> None:
    kinds, memory, files = tiny(), [], []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for number in range(runs):
            made: Any = study("soak", kinds[number % len(kinds)], "soak.toml")
            folder, record = run_study(made, Options(out, seed=number, quiet=True))
            assert record["status"] == "done"
            shutil.rmtree(folder)
            if number % len(kinds) == len(kinds) - 1:
                gc.collect()
                memory.append(resident())
                files.append(len(os.listdir("/proc/self/fd")))
    finally:
        torch.set_num_threads(threads)
    quarter = len(memory) // 4
    second, last = (sorted(memory[part])[quarter // 2] for part in (slice(quarter, 2 * quarter), slice(-quarter, None)))
    print(f"{runs} runs: MB by round {[round(value / 1e6, 1) for value in memory]}, files {files}")
    assert last - second <= TOLERANCE, f"memory grew from {second / 1e6:.1f} to {last / 1e6:.1f} MB"
    assert max(files[-quarter:]) <= min(files[quarter : 2 * quarter]), f"open files: {files}"


pytestmark = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at /proc")


def test_twenty_runs_in_one_process_stay_level(tmp_path: Path) -> None:
    soak(20, tmp_path)


@pytest.mark.slow
def test_two_hundred_runs_in_one_process_stay_level(tmp_path: Path) -> None:
    soak(200, tmp_path)
