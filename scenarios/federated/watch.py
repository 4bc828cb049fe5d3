"""A study's runs while they work: how many rounds are done, what each is doing now, and a line for each finished round."""

import time
from collections.abc import Sequence
from pathlib import Path

from apps.federated import live
from scenarios.engine.record import Line
from scenarios.federated.cells import Cell, Lines

MOST_SHOWN = 2  # runs at a time


class Watch:
    """Looks at the folders of ``cells``, whichever process or engine works in them; a file is read again when its size has changed."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells = list(cells)
        self._read: dict[Path, tuple[int, Lines]] = {}
        self._said = {cell.folder: len(self._lines(cell)) for cell in self.cells}

    def done(self) -> int:
        """Rounds that are finished."""
        return sum(max(0, len(self._lines(cell)) - 1) for cell in self.cells)

    def now(self) -> str:
        """The rounds in progress: round, clients that have answered, seconds; accuracy and bytes of the rounds before."""
        texts = []
        for cell in self.cells:
            if (state := live.read(cell.folder)) is not None:
                part = [f"round {state.round} of {cell.settings.rounds}", f"{state.answered} of {state.clients} clients"]
                part += [f"last client {state.last}"] if state.last is not None else []
                part += [f"{max(0.0, time.time() - state.began):.0f} s"]
                if lines := self._lines(cell):
                    part += [f"{lines[-1]['accuracy']:.1f} %", f"{moved(lines):.2f} MB"]
                texts.append(f"{cell.name}: {', '.join(part)}")
        rest = len(texts) - MOST_SHOWN
        return "; ".join([*texts[:MOST_SHOWN], *([f"{rest} more"] if rest > 0 else [])])

    def news(self) -> list[str]:
        """A line for each round that has finished since the last call."""
        said = []
        for cell in self.cells:
            lines = self._lines(cell)
            said += [
                f"{cell.name}: {described(lines[number], cell.settings.rounds)}, {moved(lines[: number + 1]):.3f} MB"
                for number in range(max(1, self._said[cell.folder]), len(lines))
            ]
            self._said[cell.folder] = len(lines)
        return said

    def _lines(self, cell: Cell) -> Lines:
        path = cell.folder / "rounds.jsonl"
        size = path.stat().st_size if path.exists() else 0
        if self._read.get(path, (0, []))[0] != size:
            self._read[path] = size, cell.lines()
        return self._read.get(path, (0, []))[1]


def moved(lines: Lines) -> float:
    """Megabytes up and down in these rounds."""
    return float(sum(line["up"] + line["down"] for line in lines)) / 1e6


def client_seconds(line: Line) -> float | None:
    """Seconds that the clients of a round worked, all together; None where none of them says (private ones do not)."""
    seconds = [client["seconds"] for client in line["clients"] if client.get("seconds") is not None]
    return float(sum(seconds)) if seconds else None


def described(line: Line, rounds: int) -> str:
    """A finished round in words."""
    parts = [f"round {line['round']} of {rounds}", f"{line['accuracy']:.1f} %"]
    if line["clients"]:
        parts.append(f"{sum(client['status'] == 'accepted' for client in line['clients'])} of {len(line['clients'])} clients")
    if (seconds := client_seconds(line)) is not None:
        parts.append(f"{seconds:.0f} client seconds")
    return ", ".join(parts)
