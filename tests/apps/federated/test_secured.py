"""A federation with TLS and node keys among an impostor, a late node, one that is killed and started again, and a cut connection."""

import json
import threading
import time
from pathlib import Path

import pytest

from apps.federated import engines
from apps.federated.settings import from_mapping
from scenarios.federated.cells import FLOWER_APP

from .secured import Proxy, secured

CLIENTS = 4
TIMEOUT = 60.0


@pytest.mark.slow
@pytest.mark.network_engine
def test_everyone_is_named_and_the_true_clients_keep_their_places(tmp_path: Path) -> None:
    made = from_mapping(
        {
            "strategy": "fedavg",
            "network": "ConvNetD1W128",
            "rounds": 6,
            "timeout": TIMEOUT,
            "wait": 60.0,
            "min_clients": 2,
            "partition": {"partitioner": "iid", "num_partitions": CLIENTS},
            "local": {"max_steps": 2},
        }
    )
    folder, place = tmp_path / "run", tmp_path / "link"

    def rounds() -> int:
        return max((line["round"] for line in engines.lines_of(folder)), default=0)

    with secured(place, FLOWER_APP) as link:
        home, nodes = link.running.home, link.running.nodes
        for name, client in (("a", 0), ("b", 1), ("c", 2), ("d", 3), ("impostor", None)):
            link.register(name, client)
        proxy = Proxy(link.running.port)
        link.node("a", 0, CLIENTS)
        b = link.node("b", 1, CLIENTS)
        link.node("d", 3, CLIENTS, proxy.port)
        link.node("impostor", 1, CLIENTS)

        def happen() -> None:
            while rounds() < 1:
                time.sleep(0.1)
            proxy.left = 150_000  # of an upload of some 80 kB a tensor: in its middle, and nothing after it
            nodes[b].kill()
            link.node("c", 2, CLIENTS)
            while rounds() < 6:  # Flower lets the same key in again once it holds the killed node for gone
                again = link.node("b", 1, CLIENTS)
                while nodes[again].poll() is None and rounds() < 6:
                    time.sleep(0.5)
                time.sleep(3)

        thread = threading.Thread(target=happen, daemon=True)
        thread.start()
        account = link.running.run(made, folder, node_keys=str(link.keys))
        thread.join(30)
    assert account["status"] == "finished:completed"
    assert engines.carrying(home) == [], "no process left"
    assert not home.exists()
    lines = engines.lines_of(folder)
    said = [{each["client"]: each for each in line["clients"]} for line in lines]
    (tmp_path / "summary.json").write_text(json.dumps(lines, indent=1))
    assert [line["round"] for line in lines] == list(range(7))
    assert [said[1][client]["status"] for client in range(CLIENTS)] == ["accepted", "accepted", "absent", "accepted"]
    for line in lines[1:]:
        (impostor,) = line["unknown"]
        assert "is not in the server's file of node keys" in impostor["why"]
        assert 0.0 <= line["overrun"] < 10
    assert all(said[number][0]["status"] == "accepted" for number in range(1, 7)), "the one that nothing happened to"
    assert said[2][1]["status"] in ("missing", "absent"), "killed"
    assert any(said[number][1]["note"].startswith("came back after round") for number in range(3, 7))
    assert any(said[number][2]["note"].startswith("joined in round") for number in range(2, 7))
    cut = [said[number][3] for number in range(2, 7)]
    assert all(each["status"] in ("missing", "absent") for each in cut)
    assert any("parts came" in each["why"] or "broke off" in each["why"] for each in cut), [each["why"] for each in cut]
