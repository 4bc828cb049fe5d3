"""What a federation is doing now, in a small file in its folder: written by the server on every engine, read by whoever watches.

It says how many of the clients that were asked in the round have answered. Bytes and accuracy of the finished rounds are in rounds.jsonl.
"""

import time
from dataclasses import asdict, dataclass
from pathlib import Path

from distill.records import read_json, write_json

NAME = "live.json"


@dataclass(frozen=True)
class Live:
    """The state of a round in progress.

    Attributes:
        round: its number.
        clients: number of clients that were asked.
        answered: number of those that have answered.
        last: number of the client that answered last; None: none yet.
        began: when the round began, in seconds since 1970.
    """

    round: int
    clients: int
    answered: int = 0
    last: int | None = None
    began: float = 0.0


def begin(folder: Path | None, number: int, clients: int) -> Live:
    """A round of ``clients`` clients begins."""
    return _written(folder, Live(number, clients, began=time.time()))


def heard(folder: Path | None, live: Live, client: int) -> Live:
    """One more client has answered."""
    return _written(folder, Live(live.round, live.clients, live.answered + 1, client, live.began))


def end(folder: Path | None) -> None:
    """No round is in progress."""
    if folder is not None:
        (folder / NAME).unlink(missing_ok=True)


def read(folder: Path) -> Live | None:
    """The round in progress in ``folder``; None if there is none."""
    try:
        return Live(**read_json(folder / NAME))
    except (OSError, ValueError, TypeError):  # not there, or not a file of this version
        return None


def _written(folder: Path | None, live: Live) -> Live:
    if folder is not None:
        write_json(folder / NAME, asdict(live))
    return live
