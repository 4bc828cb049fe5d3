"""What the server takes from a client's answer, and what a rule that turns answers into new weights has."""

import statistics
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
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
    """

    client: int
    value: "CondensedSet | LocalResult"
    examples: int = 1


class Rule(Protocol):
    """How answers become new weights; ``action`` is the type of the Flower messages that clients get."""

    action: str
    note: str  # on what it did in the round
    clients: int  # of the federation, as far as they are known; the strategy sets it every round

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


def believed(claims: Sequence[tuple[int, int | None]]) -> list[int]:
    """Examples of each client from (claimed, known) numbers: known ones unchanged, others at most `LARGEST_SHARE` times the median."""
    numbers = [claimed if known is None else known for claimed, known in claims]
    # Claims do not move the median where there are numbers that the server knows.
    most = LARGEST_SHARE * statistics.median_low([known for _, known in claims if known is not None] or numbers) if numbers else 0
    return [number if known is not None else int(min(number, most)) for number, (_, known) in zip(numbers, claims, strict=True)]
