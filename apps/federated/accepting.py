"""One client's answer: what it is checked against, and whether the round takes it or says why not."""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from apps.federated.answers import FACTS, MAX_EXAMPLES, Accepted, Rule, Weights
from apps.federated.averaging import LocalResult
from apps.federated.exchange import NO_ANSWER
from apps.federated.link_readers import Answer
from apps.federated.messages import RecordDict, check_records, facts_of, parts_of, size, whole
from apps.federated.wire import decode_weights, parse_npy
from distill.condensed import CondensedSet
from distill.errors import InputError, clipped
from distill.records import Json

Counts = tuple[int, ...]  # real images of each class


@dataclass
class Asked:
    """One client in one round: bytes sent and received, and the result."""

    client: int
    down: int
    up: int = 0
    status: str = "missing"
    why: str = NO_ANSWER
    note: str = ""  # that it joined late, or came back
    images: int = 0
    seconds: float | None = None
    privacy: dict[str, Json] | None = None  # the statement that came with its upload


@dataclass(frozen=True)
class Expected:
    """What answers are checked against.

    Args:
        number: of the round in which they were asked for.
        began: when that was, in seconds of the monotonic clock.
        timeout: seconds of a round.
        weights: the server's, whose names, types and shapes those of an answer have.
        held: images of each class that each client has by the run's partition; None: unknown.
        classes: that were asked for; None: all.
    """

    number: int
    began: float
    timeout: float
    weights: Weights
    held: Sequence[Counts] | None = None
    classes: Collection[int] | None = None


def accept(asked: Asked, answer: Answer, rule: Rule, expected: Expected) -> Accepted | None:
    """What the rule gets of an answer, or None; ``asked`` then says why. Whatever error another party's bytes cause, none is raised."""
    if (reply := answer.message) is None:
        asked.status, asked.why, asked.up = answer.status, answer.why, answer.up
        return None
    if reply.has_error():
        reason = (str(reply.error.reason or "").strip().splitlines() or ["no reason given"])[-1]
        asked.status, asked.why = "failed", clipped(reason, 200)
        return None
    try:
        content = reply.content
        asked.up = size(content)
        check_records(content, rule.records, FACTS, rule.most_bytes(expected.weights))
        facts, value = facts_of(content), rule.read(content, expected.weights)
        whole(facts, "round", expected.number, expected.number)
        whole(facts, "partition-id", asked.client, asked.client)
        seconds = _seconds(facts, max(expected.timeout, time.monotonic() - expected.began))
        accepted = None if value is None else _accepted(asked.client, value, content, expected)
        if accepted is not None and rule.more:
            accepted = replace(accepted, more=decode_weights(parts_of(content, "more"), rule.more, "further tensors"))
    except InputError as error:
        asked.status, asked.why = "refused", str(error)
        return None
    except Exception as error:
        asked.status, asked.why = "refused", clipped(f"{type(error).__name__}: {error}", 200)
        return None
    asked.seconds = seconds
    if accepted is None:
        asked.status, asked.why = "empty", "holds nothing that was asked for"
        return None
    asked.status, asked.why = "accepted", ""
    if isinstance(value, CondensedSet):
        asked.images, asked.privacy = len(value), value.provenance.dp
    return accepted


def _seconds(facts: Mapping[str, object], most: float) -> float | None:
    seconds = facts.get("seconds")
    if seconds is None:
        return None
    if not (isinstance(seconds, int | float) and 0 <= seconds <= most):
        raise InputError(f"seconds is {clipped(seconds, 40)}; allowed: 0 to {most:.0f}, as the round is no older.")
    return float(seconds)


def _accepted(client: int, value: "CondensedSet | LocalResult", content: RecordDict, expected: Expected) -> Accepted:
    """The answer with the client's numbers of real images, which are those of the run's partition where the server knows them."""
    facts = facts_of(content)
    sent: Counts = ()
    own = expected.held is None or bool(facts.get("own-data"))
    held = None if own or expected.held is None else expected.held[client]
    examples = 1
    if "num-examples" in facts:
        low, high = (1, MAX_EXAMPLES) if held is None else (sum(held), sum(held))
        examples = whole(facts, "num-examples", low, high)
    by_class = counts_of(content, None if held is None else of_classes(held, expected.classes)) if "counts" in content else ()
    if by_class and isinstance(value, CondensedSet):
        sent = tuple(np.bincount(value.hard_labels.numpy(), minlength=len(by_class)).tolist())
        if (foreign := next((label for label, count in enumerate(sent) if count and not by_class[label]), None)) is not None:
            raise InputError(f"images of class {foreign}, and it counts no real image of it; allowed: classes that it has.")
    known = held is not None and ("num-examples" in facts or bool(by_class))
    return Accepted(client, value, examples, by_class, sent, known=known, round=expected.number)


def of_classes(counts: Counts, classes: Collection[int] | None) -> Counts:
    """The counts of these classes, and 0 of all others."""
    return tuple(count if classes is None or label in classes else 0 for label, count in enumerate(counts))


def counts_of(content: RecordDict, held: Counts | None) -> Counts:
    """The record ``counts``: how many real images of each class a client has.

    Raises:
        InputError: they are no such numbers, or not those that the server knows (``held``).
    """
    parts = parts_of(content, "counts")
    counts: NDArray[np.number] = parse_npy(parts["counts"], "counts") if set(parts) == {"counts"} else np.zeros(0)
    if counts.dtype != np.int64 or counts.ndim != 1 or not ((counts >= 0) & (counts <= MAX_EXAMPLES)).all():
        raise InputError(f"counts are {counts.dtype} {clipped(counts.shape)}; allowed: one whole number from 0 to {MAX_EXAMPLES} a class.")
    found: Counts = tuple(int(count) for count in counts.tolist())
    if held is not None and found != held:
        raise InputError(f"counts are {clipped(list(found), 80)}; allowed: {clipped(list(held), 80)}, those of the run's partition.")
    return found
