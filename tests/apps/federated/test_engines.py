"""Real Flower processes: the same uploads as inline, the same bytes as Flower counts, a node that dies, and nothing left behind."""

import os
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.federated import engines
from apps.federated.inline import run_inline
from apps.federated.messages import settings_of
from apps.federated.settings import Settings, from_mapping
from distill.condensed import CondensedSet
from scenarios.federated.cells import FLOWER_APP


def settings(clients: int = 2, **changes: object) -> Settings:
    return from_mapping(
        {
            "network": "ConvNetW32",
            "rounds": 2,
            "timeout": 300.0,
            "partition": {"num_partitions": clients, "alpha": 0.5},
            "upload": {"ipc": 2, "settings": {"iterations": 5, "batch_real": 16}},
            "server": {"recipe": {"max_steps": 20, "batch_size": 16, "lr": 0.02, "schedule": "constant", "augmentation": "none"}},
            **changes,
        }
    )


def same_as_inline(made: Settings, folder: Path, tmp_path: Path) -> None:
    inline = run_inline(made, folder=tmp_path / "inline")
    found = engines.lines_of(folder)
    for name in ("round", "accuracy", "up", "down", "images", "dropped"):
        assert [line[name] for line in found] == [line[name] for line in inline], name
    ours, theirs = ((place / "union.safetensors") for place in (tmp_path / "inline", folder))
    assert CondensedSet.load(ours).images.equal(CondensedSet.load(theirs).images), "the same uploads, bit for bit"


def test_the_flower_app_is_valid_and_its_own_settings_are_ours() -> None:
    config = tomllib.loads((FLOWER_APP / "pyproject.toml").read_text())
    flat: dict[str, object] = {}

    def flatten(table: dict, prefix: str = "") -> None:
        for key, value in table.items():
            flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else flat.update({prefix + key: value})

    flatten(config["tool"]["flwr"]["app"]["config"])
    made = settings_of(flat)
    assert made.partition.num_partitions == 4
    assert made.upload.settings["iterations"] == 30
    assert made.server.recipe.max_steps == 100
    assert made.server.radius is None


def test_processes_are_found_by_their_home_only(tmp_path: Path) -> None:
    import subprocess

    mine, other = (subprocess.Popen(["sleep", "60"], env={**os.environ, "FLWR_HOME": str(tmp_path / name)}) for name in ("mine", "other"))
    try:
        while not engines.carrying(tmp_path / "mine"):
            time.sleep(0.01)
        assert engines.carrying(tmp_path / "mine") == [mine.pid]
        engines.end_all(tmp_path / "mine")
        mine.wait(20)
        assert other.poll() is None
    finally:
        for process in (mine, other):
            process.kill()
            process.wait()


def test_a_simulation_never_joins_a_ray_that_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's rule: "local" starts one of its own; anything else, or nothing, joins the last one, and waits for it when it has died."""
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    assert engines.offline(tmp_path, 1)["RAY_ADDRESS"] == "local"


@pytest.mark.slow
@pytest.mark.network_engine
def test_simulation_gives_the_uploads_of_the_inline_engine(tmp_path: Path) -> None:
    made = settings(3)
    account = engines.run_simulation(made, tmp_path / "run", FLOWER_APP)
    assert account["status"] == "finished:completed"
    same_as_inline(made, tmp_path / "run", tmp_path)


@pytest.mark.slow
@pytest.mark.network_engine
@pytest.mark.parametrize("engine", [engines.run_simulation, engines.run_deployment])
def test_private_clients_of_a_run_that_goes_on_release_nothing_twice(engine: Callable[..., object], tmp_path: Path) -> None:
    made = settings(
        rounds=1,
        upload={"ipc": 1, "networks": "fresh", "settings": {"iterations": 5, "initial": "noise"}},
        privacy={
            "statistics": "apps.privacy.private_statistics:PrivateStatistics",
            "networks": "apps.privacy.networks:drawn_once",
            "epsilon": 20.0,
            "population": 500,
            "releases": 2,
        },
    )
    engine(made, tmp_path, FLOWER_APP)
    first = CondensedSet.load(tmp_path / "union.safetensors")
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == ["client-0-round-1", "client-1-round-1"]
    for name in ("checkpoint.safetensors", "rounds.jsonl", "union.safetensors"):  # the server was killed before it had written its round
        (tmp_path / name).unlink()
    engine(made, tmp_path, FLOWER_APP)
    assert CondensedSet.load(tmp_path / "union.safetensors").images.equal(first.images)


@pytest.mark.network_engine
def test_a_deployment_gives_the_same_uploads_and_flower_counts_the_same_bytes(tmp_path: Path) -> None:
    made = settings()
    with engines.flower(tmp_path / "logs", made, FLOWER_APP) as running:
        account = running.run(made, tmp_path / "run")
        home = running.home
    assert engines.carrying(home) == [], "no process is left behind"
    assert not home.exists()
    same_as_inline(made, tmp_path / "run", tmp_path)
    lines = engines.lines_of(tmp_path / "run")
    ours = {way: sum(line[way] for line in lines) for way in ("up", "down")}
    theirs = account["network-traffic"]
    # What Flower adds is envelopes: a few kilobytes a message, which small test messages feel.
    assert ours["down"] == pytest.approx(theirs["outbound-bytes"], rel=0.1)
    assert ours["up"] <= theirs["inbound-bytes"]
    assert theirs["inbound-bytes"] - ours["up"] < 4000 * sum(len(line["clients"]) for line in lines)


@pytest.mark.network_engine
def test_a_node_that_is_killed_in_mid_round_is_named_and_the_run_finishes(tmp_path: Path) -> None:
    import threading

    made = settings(timeout=150.0)
    folder = tmp_path / "run"
    with engines.flower(tmp_path / "logs", made, FLOWER_APP) as running:

        def kill_after_round_one() -> None:
            while not any(line["round"] == 1 for line in engines.lines_of(folder)):
                time.sleep(0.05)
            running.nodes[1].kill()

        thread = threading.Thread(target=kill_after_round_one, daemon=True)
        thread.start()
        assert running.run(made, folder)["status"] == "finished:completed"
        home = running.home
    assert engines.carrying(home) == []
    first, second = engines.lines_of(folder)[1:]
    assert [client["status"] for client in first["clients"]] == ["accepted", "accepted"]
    alive, dead = (client["status"] for client in second["clients"])
    assert alive == "accepted"
    assert dead in ("missing", "failed")
    assert second["accuracy"] > 30
