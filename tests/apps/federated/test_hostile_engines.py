"""Whole messages from hostile clients over Flower's own engines: two variants of each kind, eight hostile clients a round."""

import contextlib
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from apps.federated import engines
from apps.federated.client_app import client_app
from apps.federated.inline import run_inline
from apps.federated.messages import Context, Message
from apps.federated.settings import Settings, from_mapping
from scenarios.federated.cells import FLOWER_APP

from .changes import KINDS

HONEST, HOSTILE = 2, 8

# Imports no torch: a ClientApp is a new process for every message of a deployment.
CLIENT = """
import sys
sys.path.insert(0, {root!r})
import numpy as np
from flwr.app import Array, ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from tests.apps.federated.changes import KINDS, changed

app = ClientApp()

@app.query("who")
def who(message, context):
    return Message(RecordDict({{"facts": MetricRecord({{"partition-id": int(context.node_config["partition-id"])}})}}), reply_to=message)

@app.train("condense")
def condense(message, context):
    client, number = int(context.node_config["partition-id"]), int(message.content["ask"]["round"])
    with np.load({canned!r} + f"/{{client}}.npz") as arrays:
        upload = ArrayRecord({{name: Array(arrays[name]) for name in arrays}})
    content = RecordDict({{"upload": upload, "facts": MetricRecord({{"partition-id": client, "round": number, "seconds": 0.1}})}})
    if client >= {honest}:
        turn = (number - 1) * {hostile} + client - {honest}
        content = changed(content, list(KINDS)[turn % len(KINDS)], turn // len(KINDS))
    return Message(content, reply_to=message)
"""


def settings(rounds: int, clients: int) -> Settings:
    return from_mapping(
        {
            "strategy": "random",
            "network": "ConvNetD1W32",
            "rounds": rounds,
            "timeout": 300.0,
            "partition": {"partitioner": "iid", "num_partitions": clients},
            "upload": {"ipc": 1},
            "server": {"recipe": {"max_steps": 5, "batch_size": 16, "lr": 0.02, "schedule": "constant", "augmentation": "none"}},
        }
    )


def hostile_app(place: Path, made: Settings) -> Path:
    """A Flower app of the real server and of clients that send what real ones sent once, with changes."""
    canned = place / "canned"
    canned.mkdir(parents=True)
    real = client_app()

    def client(message: Message, context: Context) -> Message:
        reply = real(message, context)
        if "upload" in reply.content:
            arrays = {name: array.numpy() for name, array in reply.content["upload"].items()}
            np.savez(canned / f"{context.node_config['partition-id']}.npz", **arrays)
        return reply

    run_inline(settings(1, made.partition.num_partitions), client=client)
    app = place / "app" / "hostile_app"
    app.mkdir(parents=True)
    (app / "__init__.py").write_text("")
    (app / "client_app.py").write_text(CLIENT.format(root=str(engines.ROOT), canned=str(canned), honest=HONEST, hostile=HOSTILE))
    (app / "server_app.py").write_text("from apps.federated.server_app import server_app\n\napp = server_app()\n")
    text = (FLOWER_APP / "pyproject.toml").read_text()
    (app.parent / "pyproject.toml").write_text(re.sub(r"[a-z_.]+(?=\.(server|client)_app:app)", "hostile_app", text))
    return app.parent


class Memory(threading.Thread):
    """Resident bytes of the processes of a Flower home, by id, as they were at first and at most."""

    def __init__(self, home: Path) -> None:
        super().__init__(daemon=True)
        self.home, self.seen, self.going = home, {}, True

    def run(self) -> None:
        while self.going:
            for pid in engines.carrying(self.home):
                with contextlib.suppress(OSError, IndexError):
                    name = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    held = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096
                    self.seen.setdefault((pid, name), []).append(held)
            time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.network_engine
@pytest.mark.parametrize("engine", ["simulation", "deployment"])
def test_two_variants_of_every_kind_lose_no_honest_client(engine: str, tmp_path: Path) -> None:
    clients = HONEST + HOSTILE
    made = settings(2 * len(KINDS) // HOSTILE, clients)
    app, folder = hostile_app(tmp_path / "app", made), tmp_path / "run"
    with engines.flower(tmp_path / "logs", made, app, simulated=clients if engine == "simulation" else None) as running:
        memory = Memory(running.home)
        memory.start()
        account = running.run(made, folder)
        memory.going = False
        memory.join()
        home = running.home
    assert account["status"] == "finished:completed"
    assert engines.carrying(home) == []
    lines = engines.lines_of(folder)
    assert [line["round"] for line in lines] == list(range(made.rounds + 1))
    passed = []
    for line in lines[1:]:
        assert [each["status"] for each in line["clients"][:HONEST]] == ["accepted"] * HONEST
        assert len(line["clients"]) == clients
        for each in line["clients"][HONEST:]:
            assert each["why"].isprintable()
            if each["status"] == "accepted":
                passed.append(list(KINDS)[((line["round"] - 1) * HOSTILE + each["client"] - HONEST) % len(KINDS)])
    assert set(passed) <= {"flipped header"}
    for (_, name), held in memory.seen.items():
        if "superlink" in name or "serverapp" in name:
            print(f"{name[:100]}: {held[len(held) // 3] / 1e6:.0f} MB after a third, at most {max(held) / 1e6:.0f} MB")
            assert max(held) < held[len(held) // 3] + 500e6
