"""Every shipped federated study runs to its end, as a study of the built-in digits with a few steps."""

from pathlib import Path
from typing import Any

import pytest

from scenarios.catalogue import run_study, study
from scenarios.engine.scenario import read_scenario, shipped
from scenarios.engine.study import Options
from scenarios.federated import cells as federated_cells

SMALL = {
    "data": {"name": "digits"},
    "federation": {"engine": "inline", "rounds": 1, "seeds": 1, "network": "ConvNetD1W32"},
    "partition": {"num_partitions": 5},
    "upload": {"ipc": 1, "iterations": 1, "batch_real": 4, "pool_epochs": 1},
    "tuning": {"lr": [0.05], "momentum": [0.0], "extended_rounds": 2, "upload": {"calibration": [0.0]}},
    "local": {"max_steps": 1, "batch_size": 4, "epochs": 1},
}
OPTIONAL = ("upload", "tuning")


SLOW = ("federated-poisoning-mnist-pathological", "federated-poisoning-mnist-dirichlet")  # 80 s each: eleven runs
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in shipped() if name.startswith("federated-")]


@pytest.mark.parametrize("name", NAMES)
def test_a_shipped_study_runs_small(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federated_cells, "at_once", lambda jobs, threads: 1)
    found, tables = read_scenario(name)
    small: dict[str, Any] = dict(tables)
    for table, values in SMALL.items():
        given = tables.get(table, {})
        if table in OPTIONAL:  # what a study does not use stays out
            small |= {table: {**given, **{key: value for key, value in values.items() if key in given}}} if given else {}
        else:
            small[table] = {**given, **values}
    if "admission" in tables:  # images of one step are not what the limits were made for
        small["admission"] = {**tables["admission"], "agreement": 0.01, "loss": 1e9, "distance": 1e9}
    if "tuning" in tables:
        small["tuning"] |= {"fedadam_lr": [0.01], "feddyn_alpha": [0.1]}
    small["server"] = {**tables.get("server", {}), "recipe": {**tables.get("server", {}).get("recipe", {}), "max_steps": 1, "epochs": 1}}
    _, record = run_study(study(found, small, f"{name}.toml"), Options(tmp_path, quiet=True))
    assert record["status"] == "done"
    results = record["results"]
    plain = {name: part for name, part in results["strategies"].items() if name in tables["federation"]["strategies"]}
    assert list(plain) == list(tables["federation"]["strategies"])
    assert (len(results["strategies"]) > len(plain)) == ("attack" in tables)  # rows with hostile clients and with admission
    assert all(not part["dropped"] for part in plain.values())
    if "tuning" in tables:
        tuned = {
            *(["feddm"] if "upload" in tables["tuning"] else []),
            "fedavg",
            "fedavgm",
            "fedprox",
            "scaffold",
            "fedadam",
            "feddyn",
        } & set(tables["federation"]["strategies"])
        assert results["tuning"]["counts"] == dict.fromkeys(results["tuning"]["counts"], 1)
        assert set(results["tuning"]["counts"]) == tuned
