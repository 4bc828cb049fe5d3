"""Uploads of earlier rounds: those that came after their round's end, and those of rounds in which too few came.

They join a later union if they are at most `Settings.staleness` rounds late and their client has sent nothing newer.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch

from apps.federated.accepting import Asked
from apps.federated.answers import Accepted, Weights
from apps.federated.exchange import Late
from apps.federated.settings import Settings, upload_form
from distill.condensed import CondensedSet
from distill.errors import clipped
from distill.records import Json
from distill.spec import DataSpec

STATE = "waiting/"


@dataclass(frozen=True)
class Overdue:
    """What became of an upload of round ``round``, which came ``within`` seconds after its end (None: in time)."""

    asked: Asked
    round: int
    within: float | None = None

    def entry(self) -> dict[str, Json]:
        """Its part of a round's line."""
        asked = self.asked
        return {
            "client": asked.client,
            "round": str(self.round),
            "within": self.within,
            "status": asked.status,
            "why": asked.why,
            "note": asked.note,
            "images": asked.images,
            "up": asked.up,
            "privacy": asked.privacy,
        }


def unread(late: Sequence[Late], numbers: Mapping[int, int]) -> list[dict[str, Json]]:
    """The parts of a round's line for answers that came too late to be read; ``numbers`` are client numbers by node."""
    return [{"client": numbers.get(each.node), "round": each.group, "within": each.seconds} for each in late]


def usable(held: Sequence[Accepted], newer: Collection[int], number: int, most: int) -> list[Accepted]:
    """The last upload of each client that is not among ``newer``, if it is at most ``most`` rounds older than round ``number``."""
    last: dict[int, Accepted] = {}
    for each in sorted(held, key=lambda each: each.round):
        last[each.client] = each
    return [each for client, each in sorted(last.items()) if client not in newer and number - each.round <= most]


def factor(each: Accepted, number: int, settings: Settings) -> float:
    """What an image of this upload counts in round ``number`` because of its age."""
    return float(settings.staleness_weight ** max(0, number - each.round))


def to_state(waiting: Sequence[Accepted]) -> Weights:
    """Uploads that wait for the next round as tensors, for the checkpoint."""
    kept: Weights = {}
    for place, each in enumerate(waiting):
        assert isinstance(each.value, CondensedSet)
        kept |= {f"{STATE}{place}/images": each.value.images, f"{STATE}{place}/labels": each.value.labels}
        numbers = (each.client, each.round, each.examples, int(each.known), len(each.by_class), *each.by_class, *each.sent)
        kept |= {f"{STATE}{place}/more/{name}": value for name, value in each.more.items()}
        kept[f"{STATE}{place}/numbers"] = torch.tensor(numbers, dtype=torch.int64)
    return kept


def from_state(state: Weights, settings: Settings, spec: DataSpec) -> list[Accepted]:
    """The uploads of `to_state`."""
    waiting = []
    for place in range(sum(name.endswith("/numbers") for name in state)):
        images, labels = state[f"{STATE}{place}/images"], state[f"{STATE}{place}/labels"]
        client, asked, examples, known, classes, *rest = state[f"{STATE}{place}/numbers"].tolist()
        value = CondensedSet(images, labels, spec, decode=upload_form(settings))
        own = f"{STATE}{place}/more/"
        more = {name.removeprefix(own): value for name, value in state.items() if name.startswith(own)}
        by_class, sent = tuple(rest[:classes]), tuple(rest[classes:])
        waiting.append(Accepted(client, value, examples, by_class, sent, known=bool(known), round=asked, more=more))
    return waiting


def in_words(entry: Mapping[str, object]) -> str:
    """One entry of a round's ``late`` in words."""
    who, asked, status = f"client {entry['client']}", f"round {entry['round']}", entry.get("status", "unused")
    if status == "kept":
        return f"{who}: its upload of {asked}, in which too few came, joined the union"
    came = f"{who}: its answer to {asked} came after the end of that round and"
    if status in ("unused", "accepted"):
        return f"{came} {'joined the union' if status == 'accepted' else 'was not used'}"
    return f"{came} was {status}: {clipped(str(entry.get('why', '')), 200)}"
