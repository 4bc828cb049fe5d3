"""Who was left out of a federation's rounds, and why, in words: for the terminal, the record and the report."""

from collections.abc import Sequence

from apps.federated.overdue import in_words
from distill.errors import clipped
from scenarios.engine.record import Line

MOST_LINES = 20  # of one strategy and seed
CLAIMS = "Client numbers are what the nodes themselves say: no file of node keys says which node is which client."


def left_out(lines: Sequence[Line]) -> list[str]:
    """One line for each client and reason with the rounds, then nodes without a number, late answers, overruns and notes."""
    rounds: dict[str, list[int]] = {}
    for line in lines:
        number = line["round"]
        for client in line["clients"]:
            if client["status"] != "accepted":
                rounds.setdefault(f"client {client['client']} {client['status']}: {client['why']}", []).append(number)
            if client.get("note"):
                rounds.setdefault(f"client {client['client']}: {client['note']}", []).append(number)
        for node in line.get("unknown", ()):
            rounds.setdefault(f"node {node['node']} left out: {node['why']}", []).append(number)
        for late in line.get("late", ()):
            rounds.setdefault(in_words(late), []).append(number)
        if line.get("overrun", 0.0) >= 0.1:
            rounds.setdefault(f"{line['overrun']:.1f} s longer than the timeout", []).append(number)
        if line.get("note"):
            rounds.setdefault(line["note"], []).append(number)
    sentences = [f"{_rounds(numbers)}: {clipped(what, 300)}" for what, numbers in rounds.items()]
    return (
        sentences if len(sentences) <= MOST_LINES else [*sentences[:MOST_LINES], f"{len(sentences) - MOST_LINES} more are in rounds.jsonl"]
    )


def _rounds(numbers: Sequence[int]) -> str:
    """ "round 3", "rounds 1 to 3 and 5"."""
    spans: list[list[int]] = []
    for number in sorted(set(numbers)):
        if spans and spans[-1][1] == number - 1:
            spans[-1][1] = number
        else:
            spans.append([number, number])
    parts = [str(low) if low == high else f"{low} to {high}" for low, high in spans]
    text = f"{', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else parts[0]
    return f"round{'s' if len(set(numbers)) > 1 else ''} {text}"
