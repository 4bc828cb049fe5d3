"""A federation with TLS and node keys among an impostor, a late node, one that is killed and started again, and a cut connection."""

import json
import threading
import time
from pathlib import Path

import pytest

from apps.federated import engines
from apps.federated.settings import from_mapping

from .canned import canned_app
from .secured import Proxy, secured

CLIENTS = 4
ROUNDS, TIMEOUT = 5, 300.0


@pytest.mark.slow
@pytest.mark.network_engine
def test_everyone_is_named_and_the_true_clients_keep_their_places(tmp_path: Path) -> None:
    values = {
        "strategy": "random",
        "network": "ConvNetD1W32",
        "rounds": 1,
        "timeout": TIMEOUT,
        "wait": 60.0,
        "min_clients": 2,
        "partition": {"partitioner": "iid", "num_partitions": CLIENTS},
        "upload": {"ipc": 30, "pixels": "float32"},
        "server": {"recipe": {"max_steps": 5, "batch_size": 16, "lr": 0.02, "schedule": "constant", "augmentation": "none"}},
    }
    app, made = canned_app(tmp_path / "app", from_mapping(values), CLIENTS), from_mapping({**values, "rounds": ROUNDS})
    folder, place = tmp_path / "run", tmp_path / "link"

    def rounds() -> int:
        return max((line["round"] for line in engines.lines_of(folder)), default=0)

    with secured(place, app) as link:
        home, nodes = link.running.home, link.running.nodes
        for name, client in (("a", 0), ("b", 1), ("c", 2), ("d", 3), ("impostor", None)):
            link.register(name, client)
        proxy = Proxy(link.running.port)
        link.node("a", 0, CLIENTS)
        b = link.node("b", 1, CLIENTS)
        link.node("d", 3, CLIENTS, proxy.port)
        link.node("impostor", 1, CLIENTS)

        over = threading.Event()

        def happen() -> None:
            while rounds() < 1 and not over.is_set():
                time.sleep(0.1)
            proxy.left = 30_000  # the middle of an upload, which is 63 kB as it is packed; nothing goes up after it
            nodes[b].kill()
            link.node("c", 2, CLIENTS)
            while rounds() < ROUNDS and not over.is_set():  # Flower lets the same key in again once it holds the killed node for gone
                again = link.node("b", 1, CLIENTS)
                while nodes[again].poll() is None and not over.is_set():
                    time.sleep(0.5)
                time.sleep(3)

        thread = threading.Thread(target=happen, daemon=True)
        thread.start()
        try:
            account = link.running.run(made, folder, node_keys=str(link.keys))
        finally:
            over.set()
            thread.join(30)
            proxy.close()
    assert account["status"] == "finished:completed"
    assert engines.carrying(home) == [], "no process left"
    assert not home.exists()
    lines = engines.lines_of(folder)
    said = [{each["client"]: each for each in line["clients"]} for line in lines]
    (tmp_path / "summary.json").write_text(json.dumps(lines, indent=1))
    assert [line["round"] for line in lines] == list(range(ROUNDS + 1))
    assert [said[1][client]["status"] for client in range(CLIENTS)] == ["accepted", "accepted", "absent", "accepted"]
    for line in lines[1:]:
        (impostor,) = line["unknown"]
        assert "is not in the server's file of node keys" in impostor["why"]
        assert 0.0 <= line["overrun"] < 10
    assert all(said[number][0]["status"] == "accepted" for number in range(1, ROUNDS + 1)), "the one that nothing happened to"
    back = [said[number][1]["note"] for number in range(2, ROUNDS + 1)]  # killed, and started again with the same key
    assert any(note.startswith(("came back", "its node was away or started again")) for note in back), back
    assert any(said[number][2]["note"].startswith("joined in round") for number in range(2, ROUNDS + 1))
    cut = [said[number][3] for number in range(2, ROUNDS + 1)]
    assert all(each["status"] in ("missing", "absent") for each in cut)
    assert any("parts came" in each["why"] or "broke off" in each["why"] for each in cut), [each["why"] for each in cut]
