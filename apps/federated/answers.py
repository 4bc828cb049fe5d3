"""What the server takes from a client's answer, and what a rule that turns answers into new weights has."""

import dataclasses
import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from apps.federated.admission import Decision
from apps.federated.averaging import LocalResult
from apps.federated.messages import RecordDict
from distill.condensed import CondensedSet

Weights = dict[str, Tensor]
MAX_EXAMPLES = 10**9
# Where the server does not know how many examples a client has, its share counts as at most this many times the median one.
LARGEST_SHARE = 3.0
FACTS = ("partition-id", "num-examples", "steps", "seconds", "round", "own-data")


@dataclass(frozen=True)
class Accepted:
    """A client's answer that passed all checks.

    Args:
        client: its number.
        value: what the rule read in the answer.
        examples: the number of training images that the server counts for it.
        by_class: real images of each class that the server counts for it; empty unless the rule asks for them.
        sent: images of each class in its upload as it came; empty unless the rule asks for ``by_class``.
        known: the server knows these numbers by the run's partition.
        round: in which it was asked for.
        more: further tensors of the answer, by name, as `Rule.more` asks for them.
    """

    client: int
    value: "CondensedSet | LocalResult"
    examples: int = 1
    by_class: tuple[int, ...] = ()
    sent: tuple[int, ...] = ()
    known: bool = False
    round: int = 0
    more: Weights = field(default_factory=dict)


class Rule(Protocol):
    """How answers become new weights; ``action`` is the type of the Flower messages that clients get."""

    action: str
    note: str  # on what it did in the round
    clients: int  # of the federation, as far as they are known; the strategy sets it every round
    late: bool  # whether an answer to an earlier round is of use
    more: Weights  # names, types and shapes of what an answer holds in addition to its value; {}: nothing

    @property
    def records(self) -> Collection[str]: ...  # what a reply may hold
    def most_bytes(self, weights: Weights) -> int: ...  # of a reply
    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]: ...  # what goes down: weights, control
    def read(
        self, content: RecordDict, weights: Weights
    ) -> CondensedSet | LocalResult | None: ...  # the checked answer, None when it is empty; `InputError`
    def admit(self, accepted: Sequence[Accepted]) -> Mapping[int, Decision]: ...  # by client; one without a decision is admitted
    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights: ...
    def state(self) -> Weights: ...
    def load_state(self, state: Weights) -> None: ...


def counted(accepted: Sequence[Accepted]) -> list[Accepted]:
    """The answers with the numbers of real images that the server counts for them: all together, and of each class."""
    examples = believed([(each.examples, each.examples if each.known else None) for each in accepted])
    by_class = [list(each.by_class) for each in accepted]
    for label in range(max(map(len, by_class), default=0)):
        held = [place for place, counts in enumerate(by_class) if len(counts) > label and counts[label]]
        claims = [(by_class[place][label], by_class[place][label] if accepted[place].known else None) for place in held]
        for place, number in zip(held, believed(claims), strict=True):
            by_class[place][label] = number
    return [
        dataclasses.replace(each, examples=number, by_class=tuple(counts))
        for each, number, counts in zip(accepted, examples, by_class, strict=True)
    ]


def believed(claims: Sequence[tuple[int, int | None]]) -> list[int]:
    """Examples of each client from (claimed, known) numbers: known ones unchanged, others at most `LARGEST_SHARE` times the median."""
    numbers = [claimed if known is None else known for claimed, known in claims]
    # Claims do not move the median where there are numbers that the server knows.
    most = LARGEST_SHARE * statistics.median_low([known for _, known in claims if known is not None] or numbers) if numbers else 0
    return [number if known is not None else int(min(number, most)) for number, (_, known) in zip(numbers, claims, strict=True)]
