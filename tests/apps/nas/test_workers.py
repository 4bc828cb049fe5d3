"""Workers: the same rows whoever trains; failures are rows; nothing is trained twice."""

import math
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from apps.nas import ledger, ray_pool
from apps.nas.ledger import COLUMNS, Ledger, data_key, read_table, set_key, write_table
from apps.nas.space import candidate, own
from apps.nas.training import WHOLE, Job, Shelf, failed, given_up, measure, score
from apps.nas.workers import LIMIT, Crew, check_crew, rows
from apps.nas.zero_cost import ScoreJob, zero_cost
from distill.coresets import select
from distill.errors import InputError
from distill.evaluation import accuracy
from distill.networks import flops, parameter_count
from distill.randomness import generator
from distill.train import Recipe, train_network
from tests.apps.nas import networks
from tests.conftest import toy

RECIPE = Recipe(epochs=3, batch_size=16, lr=0.05, augmentation="none", compile="off")
IDS = ["w8-d1-none-relu-avg", "w4-d2-batch-sigmoid-max", "w8-d2-instance-leaky-none"]
TIMES = ("seconds", "cpu_seconds")


def data():
    return toy(per_class=20).hold_out(0.3)


def jobs() -> list[Job]:
    key = data_key(data(), RECIPE)
    return [Job("truth", id, candidate(id).network, WHOLE, k, RECIPE, key, ("validation", "test")) for id in IDS for k in range(2)]


def job(name: str, network) -> Job:
    return Job("truth", name, network, WHOLE, 0, RECIPE, "k")


def stripped(found) -> list[dict]:
    return sorted(({k: v for k, v in row.items() if k not in TIMES} for row in found), key=lambda row: (row["id"], row["seed"]))


def test_a_row_is_the_network_trained_and_measured() -> None:
    real = data()
    tiny = select(real, "random", 2, generator(0))
    one = Job("dm", IDS[1], candidate(IDS[1]).network, "dm-0", 7, RECIPE, "k")
    row = measure(one, Shelf(real, {"dm-0": tiny}))
    network = train_network(tiny, candidate(IDS[1]).network, RECIPE, 7)
    assert row["validation"] == accuracy(network, real, "validation")
    assert (row["status"], row["parameters"], row["flops"]) == ("ok", parameter_count(network), flops(network, real.spec))
    assert "test" not in row
    assert all(row[key] > 0 for key in TIMES)


def test_processes_and_this_process_give_the_same_rows() -> None:
    here = list(rows(jobs(), Shelf(data(), {}), Crew(0)))
    there = list(rows(jobs(), Shelf(data(), {}), Crew(2)))
    assert len(here) == len(there) == 6
    assert stripped(here) == stripped(there)


@pytest.mark.usefixtures("forked_workers")
def test_what_goes_wrong_is_a_row_with_its_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error, a divergence, a process that dies and a file that the worker does not find, among networks that go on to the end."""
    file = tmp_path / "vanishing.py"
    file.write_text("from tests.apps.nas.networks import small\n\ndef mine(spec):\n    return small(spec)\n")
    monkeypatch.syspath_prepend(tmp_path)
    import vanishing

    file.unlink()
    made = own({"good": networks.small, "broken": networks.broken, "dead": networks.deadly, "inf": networks.exploding})
    mixed = [job(one.id, one.network) for one in made] + [job("gone", vanishing.mine), job("last", networks.small)]
    found = {row["id"]: row for row in rows(mixed, Shelf(data(), {}), Crew(1))}
    assert {id: row["status"] for id, row in found.items()} == {
        **dict.fromkeys(["good", "last"], "ok"),
        **dict.fromkeys(["broken", "dead", "inf", "gone"], "failed"),
    }
    assert found["broken"]["reason"] == "RuntimeError: this one cannot be built"
    assert found["gone"]["reason"] == "ModuleNotFoundError: No module named 'vanishing'"
    assert found["inf"]["reason"] == "diverged: weights are not finite"
    assert found["dead"]["reason"] == "its worker process died (exit code 13)"
    assert found["good"]["validation"] == found["last"]["validation"]
    assert math.isnan(score(found["dead"], "validation"))


@pytest.mark.usefixtures("forked_workers")
def test_a_network_that_never_ends_is_given_up() -> None:
    found = list(rows([job("slow", networks.endless)], Shelf(data(), {}), Crew(1, limit=2.0)))
    assert [(row["status"], row["reason"]) for row in found] == [("failed", "took longer than 2 s")]


def scored(name: str, network, score: str = "grad_norm", source: str | None = WHOLE) -> ScoreJob:
    return ScoreJob(score, name, network, score, source, 0, "k")


@pytest.mark.usefixtures("forked_workers")
def test_a_score_that_goes_wrong_is_a_row_with_its_reason() -> None:
    """An untrained network is foreign code, too: an error, a crash, an exit, a hang, too much memory, no number."""
    made = own({"good": networks.small, "broken": networks.broken, "crash": networks.crashing})
    made += own({"inf": networks.exploding, "hungry": networks.hungry, "slow": networks.endless, "last": networks.small})
    shelf = Shelf(data(), {}, (data().normalised("train", torch.arange(6)), data().train.labels[:6]))
    asked = [scored(one.id, one.network) for one in made] + [scored("flat", networks.small, "naswot")]
    found = {row["id"]: row for row in rows(asked, shelf, Crew(2, limit=3.0))}
    assert {id for id, row in found.items() if row["status"] == "ok"} == {"good", "last"}
    assert found["good"]["score"] == found["last"]["score"] == zero_cost("grad_norm", made[0], data().spec, 0, *shelf.batch)[0]
    undefined = "is not defined for this network, or not finite"
    reasons = {id: row["reason"] for id, row in found.items() if row["status"] == "failed"}
    assert "DefaultCPUAllocator" in reasons.pop("hungry") or "memory" in str(found["hungry"]["reason"])
    assert reasons == {
        "broken": "RuntimeError: this one cannot be built",
        "crash": "its worker process died (signal SIGSEGV)",
        "inf": f"grad_norm {undefined}",
        "slow": "took longer than 3 s",
        "flat": f"naswot {undefined}",
    }
    assert all(row.get("score") is None for row in found.values() if row["status"] == "failed")


@pytest.mark.usefixtures("forked_workers")
def test_the_start_of_another_worker_is_not_a_networks_time() -> None:
    """A network is done in half the limit while the place of a dead worker is filled, which takes longer than the limit."""
    asked = [job("dead", networks.deadly), job("other", networks.unhurried), job("last", networks.small)]
    found = {row["id"]: row for row in rows(asked, Shelf(data(), {}), Crew(2, limit=1.2))}
    assert {id: row["status"] for id, row in found.items()} == {"dead": "failed", "other": "ok", "last": "ok"}


def test_a_network_given_up_is_asked_again_under_a_larger_limit_only() -> None:
    one, shelf = job("slow", networks.small), Shelf(data(), {})

    def under(limit: float | None, row: dict) -> str:
        return Ledger(known=[row]).do([one], shelf, Crew(0, limit=limit))[0]["status"]

    early = given_up(one, 10.0)
    assert [under(limit, early) for limit in (5.0, 10.0, 20.0, None)] == ["failed", "failed", "ok", "ok"]
    assert under(None, failed(one, "diverged")) == "failed"


@pytest.mark.usefixtures("forked_workers")
def test_a_function_that_cannot_be_sent_is_one_line() -> None:
    with pytest.raises(InputError, match="top of an importable file"):
        list(rows([job("mine", lambda spec: networks.small(spec))], Shelf(data(), {}), Crew(1)))
    with pytest.raises(InputError, match="top of an importable file"):
        check_crew(Crew(1), {"small": networks.small, "mine": lambda spec: networks.small(spec)})
    assert next(rows([job("mine", lambda spec: networks.small(spec))], Shelf(data(), {}), Crew(0)))["status"] == "ok"


def test_there_is_a_limit_unless_it_is_taken_away() -> None:
    assert (Crew().limit, Crew(limit=None).limit) == (LIMIT, None)
    assert 3600 <= LIMIT <= 86400


def test_a_ledger_trains_nothing_twice_and_goes_on_after_a_cut_line(tmp_path: Path) -> None:
    path, shelf, told = tmp_path / "metrics.jsonl", Shelf(data(), {}), []
    first = Ledger(path).do(jobs()[:3], shelf, Crew(0), lambda *found: told.append(found))
    assert [(done, of) for done, of, _ in told] == [(1, 3), (2, 3), (3, 3)]
    with path.open("a") as file:
        file.write('{"stage": "truth", "id": "cut o')
    again = Ledger(path).do(jobs(), shelf, Crew(0), lambda *found: told.append(found))
    assert len(told) == 3 + 3
    assert again[:3] == first
    whole = Ledger().do(jobs(), shelf, Crew(0))
    assert stripped(again) == stripped(whole) == stripped(Ledger(path).rows.values())
    assert [row["id"] for row in again] == [one.id for one in jobs()]


def test_the_time_left_goes_by_the_images_that_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three trainings of 10, 10 and 40 steps, a second each: after the second, four seconds are left, and the score is one image more."""
    clock = iter([0.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(ledger, "time", SimpleNamespace(monotonic=lambda: next(clock)))
    asked = [
        Job("truth", f"n{steps}{place}", networks.small, WHOLE, 0, replace(RECIPE, epochs=99, max_steps=steps), "k")
        for place, steps in enumerate((10, 10, 40))
    ]
    left: list[float | None] = []
    Ledger().do(
        [*asked, scored("p", networks.small, "parameters", None)],
        Shelf(data(), {}),
        Crew(0),
        lambda *told: left.append(told[2].get("left_seconds")),
    )
    images = 10 * 16
    assert left == [None, pytest.approx((4 * images + 1) / images), pytest.approx(2 / (5 * images)), 0.0]
    few = select(data(), "random", 2, generator(0))
    shelf = Shelf(data(), {"few": few})
    assert replace(asked[0], source="few", recipe=RECIPE).images(shelf) == 3 * len(few)  # three epochs of one batch
    assert replace(asked[0], recipe=RECIPE).images(shelf) == 3 * 16 * -(-len(shelf.data.train) // 16)


@pytest.mark.usefixtures("forked_workers")
def test_a_stopped_study_keeps_what_was_done(tmp_path: Path) -> None:
    path, shelf = tmp_path / "metrics.jsonl", Shelf(data(), {})

    def stop(done: int, of: int, row: dict) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ledger(path).do(jobs(), shelf, Crew(1), stop)
    assert len(Ledger(path).rows) == 2


def test_keys_change_with_what_decides_a_result() -> None:
    real, other = data(), toy(seed=5, per_class=20).hold_out(0.3)
    tiny = [select(real, "random", 2, generator(i)) for i in range(2)]
    slower = Recipe(epochs=3, batch_size=16, lr=0.04, augmentation="none", compile="off")
    same_train = type(real)(real.spec, real.train, real.validation, other.test)
    keys = [data_key(real, RECIPE), data_key(other, RECIPE), data_key(real, slower), data_key(same_train, RECIPE)]
    keys += [set_key(tiny[0], real, RECIPE), set_key(tiny[1], real, RECIPE), set_key(tiny[0], real, slower)]
    assert len(set(keys)) == len(keys)
    assert data_key(data(), RECIPE) == keys[0]


def test_a_truth_table_comes_back_and_spares_its_networks(tmp_path: Path) -> None:
    path, shelf = tmp_path / "truth.csv", Shelf(data(), {})
    found = Ledger().do([*jobs(), job("broken", networks.broken)], shelf, Crew(0))
    write_table(path, found)
    back = read_table(path)
    assert [(r["id"], r["seed"], r["status"], r["key"]) for r in back] == [(r["id"], r["seed"], r["status"], r["key"]) for r in found]
    np.testing.assert_allclose([score(r, "test") for r in back], [score(r, "test") for r in found], rtol=1e-5)
    assert back[-1]["reason"].startswith("RuntimeError")
    told: list = []
    Ledger(known=back).do(jobs(), shelf, Crew(0), lambda *row: told.append(row))
    assert told == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "has the columns"),
        ("id,seed\n", "has the columns"),
        (",".join(COLUMNS) + "\nw8,one,ok,,,,,,,,k\n", "line 2"),
        (",".join(COLUMNS) + "\nw8,1,fine,,,,,,,,k\n", "line 2"),
        (",".join(COLUMNS) + "\nw8,1,ok,101,,,,,,,k\n", "line 2"),
        (",".join(COLUMNS) + "\nw8,1,ok,nan,,,,,,,k\n", "line 2"),
        (",".join(COLUMNS) + "\nw8,1,ok,5,5,1,1,1,1,,k,more\n", "line 2"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "t.csv").write_text(text)
    with pytest.raises(InputError, match=message) as error:
        read_table(tmp_path / "t.csv")
    assert "\n" not in str(error.value)


@pytest.mark.slow
@pytest.mark.plain_layers
@pytest.mark.filterwarnings("ignore::ResourceWarning")
def test_a_ray_pool_gives_the_same_rows(tmp_path: Path) -> None:
    """Against a pool started on loopback, as a user would start it."""
    ray = pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [str(Path(sys.executable).with_name("ray"))]
    # The pool's machines need the project on their path and nothing else.
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "RAY_USAGE_STATS_ENABLED": "0"}
    head = [*command, "start", "--head", f"--port={port}", "--node-ip-address=127.0.0.1", "--num-cpus=2", "--block"]
    head += ["--include-dashboard=false", "--disable-usage-stats", "--object-store-memory=100000000"]
    with (tmp_path / "ray.log").open("w") as log:
        pool = subprocess.Popen(head, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        _wait_for(port, pool, tmp_path / "ray.log")
        address = f"127.0.0.1:{port}"
        there = list(rows([*jobs(), job("dead", networks.deadly)], Shelf(data(), {}), Crew(ray=address)))
        assert not ray.is_initialized()
        # The limit is far below what a worker needs to start, and each of the last two waits for its turn longer than that.
        mixed = [job("slow", networks.endless), *jobs()[:4], job("hang", networks.endless), *jobs()[4:]]
        limited = list(rows(mixed, Shelf(data(), {}), Crew(ray=address, limit=2.0)))
    finally:
        os.killpg(pool.pid, 15)
        pool.wait(60)
    assert [row["reason"] for row in there if row["id"] == "dead"] == ["its Ray worker failed (ActorDiedError)"]
    here = stripped(rows(jobs(), Shelf(data(), {}), Crew(0)))
    assert stripped(row for row in there if row["id"] != "dead") == here
    assert {row["reason"] for row in limited if row["id"] in ("slow", "hang")} == {"took longer than 2 s"}
    assert stripped(row for row in limited if row["id"] not in ("slow", "hang")) == here


def _wait_for(port: int, pool, log: Path) -> None:
    for _ in range(900):
        assert pool.poll() is None, log.read_text()
        if "Ray runtime started" in log.read_text():
            with socket.create_connection(("127.0.0.1", port), 5):
                return
        time.sleep(1)
    raise AssertionError(log.read_text())


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("127.0.0.1:9", "no Ray pool answers at '127.0.0.1:9' .*refused"),
        ("ray://[::1]:9", "no Ray pool answers"),
        ("no-such-host.invalid:6379", "host 'no-such-host.invalid' is not known"),
        ("nowhere", "is no host:port; give both"),
        ("10.0.0.5", "is no host:port; give both"),
        ("10.0.0.5:", "is no host:port; give both"),
        (":6379", "is no host:port; give both"),
        ("10.0.0.5:port", "is no host:port; give both"),
        ("10.0.0.5:70000", "is no host:port; give both"),
        ("", "own address"),
        ("auto", "own address"),
        ("local", "own address"),
    ],
)
def test_an_address_without_a_pool_is_one_line_at_once(address: str, message: str) -> None:
    pytest.importorskip("ray")
    for refused in (lambda: check_crew(Crew(ray=address), {}), lambda: next(rows(jobs(), Shelf(data(), {}), Crew(ray=address)))):
        start = time.monotonic()
        with pytest.raises(InputError, match=message) as error:
            refused()
        assert "\n" not in str(error.value)
        assert time.monotonic() - start < 20


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n", b"", None])
def test_another_server_at_the_address_is_no_pool(monkeypatch: pytest.MonkeyPatch, answer: bytes | None) -> None:
    """A dashboard, another service, one that hangs up, one that says nothing (None)."""
    pytest.importorskip("ray")
    monkeypatch.setattr(ray_pool, "KNOCK_SECONDS", 0.5)
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            line, _ = server.accept()
            with line:
                line.recv(100)
                if answer is None:
                    line.recv(100)
                line.sendall(answer or b"")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        with pytest.raises(InputError, match="no Ray pool") as error:
            ray_pool.knock(f"127.0.0.1:{server.getsockname()[1]}")
        thread.join(5)
    assert "\n" not in str(error.value)


def test_without_ray_the_message_offers_what_can_be_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(InputError, match="pip install ray") as error:
        check_crew(Crew(ray="127.0.0.1:9"), {})
    assert "distill-apps[" not in str(error.value)
