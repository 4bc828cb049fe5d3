"""Real Flower processes: the same uploads as inline, the same bytes as Flower counts, a node that dies, and nothing left behind."""

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from apps.federated import engines, watchdog
from apps.federated.inline import run_inline
from apps.federated.messages import settings_of
from apps.federated.settings import Settings, from_mapping
from apps.federated.silence import LOG, SILENT
from apps.federated.tables import PrivacyRequest
from distill.condensed import CondensedSet
from scenarios.federated.cells import FLOWER_APP
from scenarios.federated.node import of_study, written


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
@pytest.mark.parametrize("simulated", [2, None])
def test_private_clients_of_other_processes(simulated: int | None, tmp_path: Path) -> None:
    """Asked again they release nothing twice; a failure and a refusal say one sentence, and no log has a word of the reason."""
    made = settings(
        rounds=1, upload={"ipc": 1, "networks": "fresh", "settings": {"iterations": 5, "initial": "noise"}}, privacy={"epsilon": 20.0}
    )
    table = {"networks": "drawn_once", "epsilon": 20.0, "population": 500, "releases": 2}
    file, _ = of_study(table, made, tmp_path / "kept", "", "test")
    (tmp_path / "clients.toml").write_text(written(file))
    damaged = tmp_path / "kept/client-1/account.json"
    with engines.flower(tmp_path / "logs", made, FLOWER_APP, simulated, tmp_path / "clients.toml") as running:
        running.run(made, tmp_path / "first")
        whole = damaged.read_bytes()
        damaged.write_text("Maria_Huber")
        running.run(made, tmp_path / "damaged")  # its server has lost the round
        damaged.write_bytes(whole)
        running.run(replace(made, privacy=PrivacyRequest(20.5)), tmp_path / "more")
    first, again = (CondensedSet.load(tmp_path / name / "union.safetensors") for name in ("first", "damaged"))
    # Client 0's are the same, but for the grid of 256 values on which a union is kept; new noise would be far away.
    assert float((again.images - first.images[: len(again)]).abs().max()) < 0.05
    clients = {name: engines.lines_of(tmp_path / name)[1]["clients"] for name in ("first", "damaged", "more")}
    found = {name: [client["status"] for client in listed] for name, listed in clients.items()}
    assert found == {"first": ["accepted"] * 2, "damaged": ["accepted", "failed"], "more": ["failed"] * 2}
    assert {client["why"].removeprefix("InputError: ") for listed in clients.values() for client in listed} == {"", SILENT}
    assert {client["seconds"] for listed in clients.values() for client in listed} == {None}
    texts = [path.read_text(errors="replace") for path in (tmp_path / "logs").rglob("*") if path.is_file()]
    assert len(texts) >= 2
    for word in ("Maria", "account.json", str(tmp_path / "kept"), "this client allows", "clients.toml"):
        assert not any(word in text for text in texts), word
    assert "client-1/account.json" in (tmp_path / "kept/client-1" / LOG).read_text()
    assert "20.5" in (tmp_path / "kept/client-0" / LOG).read_text()


@pytest.mark.network_engine
def test_a_deployment_gives_the_same_uploads_and_bytes_and_names_a_node_that_leaves(tmp_path: Path) -> None:
    """One deployment for all of it: round 1 as inline, node 1 ended after it, round 2 without it, nothing left behind."""
    import threading

    made = settings(timeout=240.0)
    folder = tmp_path / "run"
    with engines.flower(tmp_path / "logs", made, FLOWER_APP) as running:

        def kill_after_round_one() -> None:
            while not any(line["round"] == 1 for line in engines.lines_of(folder)):
                time.sleep(0.05)
            with contextlib.suppress(OSError):
                shutil.copy(folder / "union.safetensors", tmp_path / "first.safetensors")
            running.nodes[1].terminate()  # Flower notices it at once; one that is killed, after a minute (test_secured.py)

        thread = threading.Thread(target=kill_after_round_one, daemon=True)
        thread.start()
        account = running.run(made, folder)
        home = running.home
    assert account["status"] == "finished:completed"
    assert engines.carrying(home) == [], "no process is left behind"
    assert not home.exists()
    lines = engines.lines_of(folder)
    inline = run_inline(settings(rounds=1), folder=tmp_path / "inline")
    for name in ("round", "accuracy", "up", "down", "images", "dropped"):
        assert [line[name] for line in lines[:2]] == [line[name] for line in inline], name
    ours, theirs = (tmp_path / "inline" / "union.safetensors", tmp_path / "first.safetensors")
    assert CondensedSet.load(ours).images.equal(CondensedSet.load(theirs).images), "the same uploads, bit for bit"
    # What Flower adds is envelopes: a few kilobytes a message, which small test messages feel.
    up, traffic = sum(line["up"] for line in lines), account["network-traffic"]
    assert up <= traffic["inbound-bytes"] < up + 4000 * 4
    alive, dead = lines[2]["clients"]
    down = sum(line["down"] for line in lines)  # with the request that the node that left may never have read
    assert 0.9 * (down - dead["down"]) <= traffic["outbound-bytes"] <= 1.1 * down
    assert alive["status"] == "accepted"
    assert (dead["client"], dead["status"]) in ((1, "missing"), (1, "absent"))
    assert "Flower says" in dead["why"] or "no node of this client" in dead["why"]
    assert lines[2]["dropped"] == 1
    assert lines[2]["overrun"] < 5
    assert lines[2]["accuracy"] > 30


OWNER = """
import os, subprocess, sys, time
sys.path.insert(0, {root!r})
from apps.federated import watchdog
home, lock = watchdog.new_home()
guard = watchdog.watch(home)
child = "import subprocess, time; subprocess.Popen(['sleep', '600'], start_new_session=True); time.sleep(600)"
subprocess.Popen([sys.executable, "-c", child], env={{**os.environ, "FLWR_HOME": str(home)}})
if {guarded} is False:
    guard.kill()
    guard.wait()
print(home, flush=True)
time.sleep(600)
"""


def owner(guarded: bool, place: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process with a home, a child and a grandchild in another session under it."""
    place.mkdir()
    program = OWNER.format(root=str(engines.ROOT), guarded=guarded)
    process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env={**os.environ, "TMPDIR": str(place)})
    assert process.stdout is not None
    home = Path(process.stdout.readline().strip())
    process.stdout.close()
    until(lambda: len(engines.carrying(home)) == 2)
    return process, home


def until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nothing_survives_an_owner_that_is_killed(tmp_path: Path) -> None:
    process, home = owner(True, tmp_path / "tmp")
    process.kill()
    process.wait()
    until(lambda: not home.exists())
    assert engines.carrying(home) == []


def test_what_is_left_where_the_watchdog_was_killed_too_is_swept_by_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    process, home = owner(False, tmp_path / "tmp")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    watchdog.sweep()
    assert len(engines.carrying(home)) == 2, "its owner lives: it is left alone"
    process.kill()
    process.wait()
    assert len(engines.carrying(home)) == 2
    watchdog.sweep()
    assert engines.carrying(home) == []
    assert not home.exists()


@pytest.mark.slow
@pytest.mark.network_engine
@pytest.mark.parametrize("engine", ["deployment", "simulation"])
def test_kill_9_of_distill_run_leaves_no_process_and_no_folder_and_the_run_goes_on(engine: str, tmp_path: Path) -> None:
    study = tmp_path / "s.toml"
    study.write_text(
        'kind = "federated"\ntitle = "t"\n[data]\nname = "digits"\n[federation]\nstrategies = ["random"]\nrounds = 2\n'
        f'engine = "{engine}"\nnetwork = "ConvNetD1W32"\ntimeout = 120.0\n[partition]\nnum_partitions = 2\n[upload]\nipc = 1\n'
        "[server.recipe]\nmax_steps = 5\nlr = 0.02\n"
    )
    place = Path(tempfile.mkdtemp(prefix="k", dir="/tmp"))  # short: Ray has sockets below it
    command = [sys.executable, "-m", "scenarios.cli", "run", str(study), "--out", str(tmp_path / "runs"), "--resume"]
    environment = {**os.environ, "TMPDIR": str(place), "PYTHONPATH": str(engines.ROOT)}
    process = subprocess.Popen(command, env=environment, cwd=tmp_path)
    until(lambda: any(True for _ in tmp_path.glob("runs/*/runs/*/rounds.jsonl")), 300)
    (home,) = place.glob("flwr-*")
    assert len(engines.carrying(home)) >= 3
    process.kill()
    process.wait()
    subprocess.run(command, env=environment, cwd=tmp_path, check=True)  # at once: what the orphans hold is waited for
    assert engines.carrying(home) == []
    assert [path.name for path in place.iterdir() if not path.name.startswith("torch")] == [], "no home, and nothing of Ray's"
    (folder,) = tmp_path.glob("runs/*/runs/*")
    assert [line["round"] for line in engines.lines_of(folder)] == [0, 1, 2]
    shutil.rmtree(place)
