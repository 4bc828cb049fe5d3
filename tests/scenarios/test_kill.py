"""A study of every kind that is killed with -9 at random moments, all its processes at once, and continued ends as if nothing had happened.

Three moments in the normal run, twenty under the slow marker.
"""

import contextlib
import copy
import hashlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from distill.records import read_json
from tests.scenarios.conftest import Run, kill
from tests.scenarios.test_pipeline import TABLES as PIPELINE
from tests.scenarios.test_pipeline import toml

for engine in ("flwr", "avalanche", "opacus", "optuna"):
    pytest.importorskip(engine)

NETWORK = "ConvNetD1W32"
RECIPE = {"epochs": 1000, "max_steps": 25, "batch_size": 16, "compile": "off"}
SHORT = {**RECIPE, "max_steps": 10, "augmentation": "none"}
CONDENSE: dict[str, Any] = {
    "kind": "condense",
    "data": {"name": "digits", "classes": [0, 1, 2, 3]},
    "method": {"name": "dm", "ipc": [1, 2], "iterations": 25, "network": NETWORK, "batch_real": 16},
    "evaluation": {"networks": [NETWORK], "seeds": 2, "baselines": ["random", "whole"], "recipe": RECIPE},
}
STUDIES: dict[str, dict[str, Any]] = {
    "condense": CONDENSE,
    "condense gm": CONDENSE | {"method": {**CONDENSE["method"], "name": "gm", "iterations": 8, "outer_steps": 3, "inner_epochs": 2}},
    "federated": {
        "kind": "federated",
        "data": {"name": "digits"},
        # Clients remember something from round to round: their last set, their control variates.
        "federation": {"strategies": ["feddm", "scaffold", "central"], "rounds": 3, "network": NETWORK},
        "partition": {"partitioner": "iid", "num_partitions": 3},
        "upload": {"ipc": 1, "iterations": 3, "batch_real": 8, "warm_start": True},
        "server": {"recipe": {**SHORT, "lr": 0.02, "schedule": "constant"}},
        "local": {"max_steps": 3},
    },
    "continual": {
        "kind": "continual",
        "data": {"name": "digits", "classes": [0, 1]},
        "stream": {"experiences": 2, "orders": 2},
        "memory": {"methods": ["random", "dm"], "per_class": [1]},
        "learner": {"strategies": ["scratch", "replay", "joint"], "network": NETWORK, "nets": 2, "recipe": SHORT},
        "training": {"epochs": 1, "batch_size": 64},
        "settings": {"dm": {"iterations": 10, "network": NETWORK, "batch_real": 8}},
    },
    "privacy": {
        "kind": "privacy",
        "privacy": {"epsilon": [8.0], "networks": 3, "clip": 1.0, "start": "kmeans", "start_releases": 2},
        "method": {"name": "dm", "ipc": 1, "iterations": 20, "network": "ConvNetD2W32"},
        "evaluation": {"networks": ["MLP"], "seeds": 2, "baselines": ["random"], "recipe": SHORT},
        "attack": {"runs": 2, "arms": ["random"], "pool": 200},
    },
    # An arm whose experts are trained with DP-SGD, in one account with its start and its means.
    "privacy experts": {
        "kind": "privacy",
        "privacy": {"epsilon": [8.0], "networks": 2, "clip": 1.0, "start": "kmeans", "start_releases": 2, "twin": False},
        "method": {"name": "dm", "ipc": 1, "iterations": 10, "network": "ConvNetD2W32"},
        "arms": {
            "ncfm": {
                "method": {
                    "name": "ncfm",
                    "iterations": 10,
                    "network": "ConvNetD2W32",
                    "decode": "none",
                    "frequencies": 16,
                    "pool_networks": 2,
                    "pool_epochs": 1,
                    "pool_batch": 400,
                    "calibration": 0.1,
                }
            }
        },
        "evaluation": {"networks": ["MLP"], "seeds": 2, "baselines": ["random"], "recipe": SHORT},
    },
    "nas": {
        "kind": "nas",
        "data": {"name": "digits", "validation": 0.2},
        "space": {"width": [4], "depth": [1, 2], "norm": ["none", "batch"], "activation": ["relu"], "pooling": ["avg"]},
        "truth": {"seeds": 2, "recipe": SHORT},
        "proxy": {"seeds": 2, "recipe": SHORT, "regression": 3, "resamples": 100, "top": [1, 2], "equal_cost": []},
        "sets": {"ipc": 2, "coresets": ["random"]},
        "methods": {"dm": {"iterations": 20, "network": NETWORK, "batch_real": 8}},
        "run": {"workers": 0},
    },
    "pipeline": PIPELINE,
}


def to_the_end(process: Any, log: Path) -> None:
    process.join()
    assert process.exitcode == 0, log.read_text()[-3000:]


def progress(out: Path) -> int:
    """Lines that were logged and files that were finished."""
    count = 0
    with contextlib.suppress(FileNotFoundError):  # files come and go while they are counted
        for path in out.rglob("*"):
            if path.suffix == ".jsonl":
                count += len(path.read_bytes().splitlines())
            elif path.suffix in (".safetensors", ".npz", ".json", ".png", ".csv") and not path.name.startswith((".", "checkpoint")):
                count += 1
    return count


def timeless(results: Any) -> Any:
    """Results without what a clock wrote."""
    if isinstance(results, dict):
        return {key: timeless(value) for key, value in results.items() if not key.endswith("seconds") and key != "break_even"}
    return [timeless(value) for value in results] if isinstance(results, list) else results


def tensors(folder: Path) -> dict[str, dict[str, torch.Tensor]]:
    """All tensors of the run, by file."""
    return {str(path.relative_to(folder)): safetensors.torch.load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def logged(folder: Path) -> dict[str, list[str]]:
    """The lines of all ledgers without their times, in order of their text."""
    return {
        str(path.relative_to(folder)): sorted(json.dumps(timeless(json.loads(line))) for line in path.read_text().splitlines())
        for path in sorted(folder.rglob("*.jsonl"))
    }


def released(out: Path) -> dict[str, str]:
    """What private data have answered so far: each file's hash."""
    found = [path for kind in ("release", "expert", "condensed", "start") for path in out.rglob(f"{kind}-*.safetensors")]
    return {
        f"{path.parent.name}/{path.name}": hashlib.sha256(path.read_bytes()).hexdigest() for path in found if not path.name.startswith(".")
    }


def killed_and_resumed(kind: str, moments: int, start: Run, tmp_path: Path) -> None:
    scenario, log = tmp_path / "study.toml", tmp_path / "log"
    scenario.write_text(toml(copy.deepcopy(STUDIES[kind])))
    to_the_end(start(scenario, tmp_path / "whole"), log)
    total, dice = progress(tmp_path / "whole"), random.Random(f"{kind} {moments}")
    kills, seen = 0, dict[str, str]()
    # A moment is a number of lines and files and a little more, so that it does not depend on the machine's speed.
    for moment in sorted(dice.uniform(0, 0.97) * total for _ in range(moments)):
        process = start(scenario, tmp_path / "killed")
        while progress(tmp_path / "killed") < moment and process.is_alive():
            time.sleep(0.005)
        time.sleep(dice.uniform(0, 0.1))
        kills += kill(process)
        now = released(tmp_path / "killed")
        assert seen.items() <= now.items(), "a release was made again"
        seen = now
    to_the_end(start(scenario, tmp_path / "killed"), log)
    assert kills >= moments - moments // 3, "most of the kills came too late"
    (whole,), (killed,) = (tmp_path / "whole").iterdir(), (tmp_path / "killed").iterdir()
    record, again = read_json(whole / "record.json"), read_json(killed / "record.json")
    assert record["status"] == again["status"] == "done"
    assert not [path for path in killed.rglob("*") if path.name.endswith(".part") or path.name.startswith("checkpoint-")]
    assert {str(p.relative_to(whole)) for p in whole.rglob("*")} == {str(p.relative_to(killed)) for p in killed.rglob("*")}
    if kind in ACCOUNTS:
        same_statement(kind, record["results"], again["results"], killed)
        assert seen.items() <= released(killed).items()
        return
    assert timeless(record["results"]) == timeless(again["results"])
    assert logged(whole) == logged(killed), "every step is in the log once"
    first, second = tensors(whole), tensors(killed)
    assert first.keys() == second.keys()
    assert [name for name, parts in first.items() if not all(torch.equal(part, second[name][key]) for key, part in parts.items())] == []


# (start and means, experts, steps of DP-SGD for all of these) of each account that a study has.
ACCOUNTS = {"privacy": {"": (2 + 3, 0, 0)}, "privacy experts": {"": (2 + 2, 0, 0), "ncfm": (2 + 2, 2, 2 * 4)}}


def same_statement(kind: str, record: dict[str, Any], again: dict[str, Any], folder: Path) -> None:
    """Noise is never the same twice; what is stated is, it is what the kept releases say, and so is all that no noise is in."""
    parts = {"": (record["epsilon8"], again["epsilon8"])}
    parts |= {arm: (own, again["epsilon8"]["arms"][arm]) for arm, own in record["epsilon8"].get("arms", {}).items()}
    assert parts.keys() == ACCOUNTS[kind].keys()
    for arm, (means, experts, steps) in ACCOUNTS[kind].items():
        for key in ("privacy", "guarantee"):
            assert parts[arm][0][key] == parts[arm][1][key]
        stated, name = parts[arm][1]["privacy"], f"epsilon8{arm and '-'}{arm}-releases"
        assert (stated["releases"], stated.get("experts", 0)) == (means + steps, steps)
        assert stated["epsilon"] <= 8.0
        for place in (folder / name, folder / "public" / name):
            assert len(list(place.glob("release-*.safetensors"))) == means
            assert len(list(place.glob("expert-*.safetensors"))) == experts
        assert sum(times for _, _, times in read_json(folder / name / "account.json")["history"]) == means + steps
    assert record["public"] == again["public"]
    assert again["public"]["statement"]["releases"] == sum(means + steps for means, _, steps in ACCOUNTS[kind].values())
    assert record["epsilon8"]["accuracy"]["random"] == again["epsilon8"]["accuracy"]["random"]
    assert record.get("attack") == again.get("attack")


@pytest.mark.parametrize("kind", [kind for kind in STUDIES if kind != "condense"])  # "condense gm" is one, with more state
def test_killed_at_three_moments(kind: str, start: Run, tmp_path: Path) -> None:
    killed_and_resumed(kind, 3, start, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("kind", STUDIES)
def test_killed_at_twenty_moments(kind: str, start: Run, tmp_path: Path) -> None:
    killed_and_resumed(kind, 20, start, tmp_path)


# Workers


def with_parent(pid: int) -> list[int]:
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            if int((path / "stat").read_text().rpartition(")")[2].split()[1]) == pid and b"spawn_main" in (path / "cmdline").read_bytes():
                found.append(int(path.name))
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


LONG = {**RECIPE, "epochs": 10_000_000, "max_steps": 10_000_000}


@pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")
@pytest.mark.parametrize("kind", ["federated", "nas"])
def test_workers_end_with_the_process_that_was_killed(kind: str, start: Run, tmp_path: Path) -> None:
    """Only the parent is killed, as the system does when memory runs out; its workers were in the middle of long trainings."""
    study, count = copy.deepcopy(STUDIES[kind]), 1 if kind == "nas" else 2
    if kind == "nas":
        study["truth"]["recipe"] = LONG
        study["run"]["workers"] = count
        study["methods"]["dm"]["iterations"] = 1
    else:
        study["server"]["recipe"] = {**LONG, "augmentation": "none"}
        study["federation"] |= {"strategies": ["feddm"], "seeds": 2}
    scenario = tmp_path / "study.toml"
    scenario.write_text(toml(study))
    if kind == "federated" and len(os.sched_getaffinity(0)) < 2:
        pytest.skip("a federated study starts workers where there are two cores")
    process = start(scenario, tmp_path / "runs", cores=None)
    deadline = time.monotonic() + 120
    while len(workers := with_parent(process.pid)) < count or not training(tmp_path / "runs", kind, workers):
        assert process.is_alive(), (tmp_path / "log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    deadline = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "a worker has outlived its parent"
        time.sleep(0.05)


def training(out: Path, kind: str, workers: list[int]) -> bool:
    """Whether the workers are past their imports: federated ones have judged their first weights, ranking ones have computed a while."""
    if kind == "federated":
        return len(list(out.glob("*/runs/*/rounds.jsonl"))) == len(workers)
    clock = os.sysconf("SC_CLK_TCK")
    spent = [sum(map(int, Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13])) / clock for pid in workers]
    return min(spent) > 7
