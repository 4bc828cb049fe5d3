"""Whole messages from hostile clients over Flower's own engines: two variants of each kind, eight hostile clients a round."""

import contextlib
import threading
import time
from pathlib import Path

import pytest

from apps.federated import engines
from apps.federated.settings import Settings, from_mapping

from .canned import canned_app
from .changes import KINDS

HONEST, HOSTILE = 2, 8


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
    app, folder = canned_app(tmp_path / "app", settings(1, clients), HONEST), tmp_path / "run"
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
