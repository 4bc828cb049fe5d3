"""The unions that a finished federated study leaves, with what their private clients stated."""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from apps.federated.settings import ALONE, WEIGHTS
from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.records import read_lines
from scenarios.engine.composition import Statement, side_by_side
from scenarios.engine.record import Line
from scenarios.federated.schema import FederatedStudy


def sets(study: FederatedStudy, seed: int) -> dict[str, Path]:
    """The last union of each strategy and seed, by name."""
    runs = [seed * 1000 + k for k in range(study.federation.seeds)]
    uploads = [name for name in study.federation.strategies if name not in (*WEIGHTS, *ALONE)]
    return {f"{name}-{k}": Path("runs", f"{name}-s{run}", "union.safetensors") for name in uploads for k, run in enumerate(runs)}


def classes(study: FederatedStudy) -> tuple[int, ...] | None:
    """The classes that clients upload; None for all."""
    wanted = study.settings.upload.classes
    return None if wanted is None else tuple(sorted(set(wanted)))


def load(study: FederatedStudy, folder: Path, path: Path) -> CondensedSet:
    """One union of a finished study. That of private clients gets the statement of all that they released.

    It has none where a client's statement does not make sense: what one client says does not end a study that is done.
    """
    union = CondensedSet.load(folder / path)
    rounds = list(read_lines(folder / path.parent / "rounds.jsonl"))
    statement = None
    with contextlib.suppress(InputError):
        statement = side_by_side(statements(rounds))
    return union if statement is None else dataclasses.replace(union, provenance=dataclasses.replace(union.provenance, dp=statement))


def statements(rounds: Sequence[Line]) -> dict[str, list[Statement | None]]:
    """What each client whose upload was accepted stated, round by round; None where it stated nothing."""
    by_client: dict[str, list[Statement | None]] = {}
    for line in rounds:
        for client in (*line["clients"], *line.get("late", ())):  # one that waited for a later round is in its own round's entry
            if client.get("status") == "accepted":
                by_client.setdefault(str(client["client"]), []).append(client.get("privacy"))
    return by_client
