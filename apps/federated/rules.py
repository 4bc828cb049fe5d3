"""How the server turns checked answers into new weights: one rule for condensed uploads, three for weights."""

import dataclasses
import statistics
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from apps.federated.averaging import LocalResult, fednova, normaliser, scaffold
from apps.federated.messages import (
    MAX_STATEMENT,
    Message,
    MetricRecord,
    RecordDict,
    facts_of,
    parts_of,
    record_of,
    statement_of,
    whole,
)
from apps.federated.settings import WEIGHTS, Settings, upload_form
from apps.federated.union import learn, union
from apps.federated.wire import ROOM_BYTES, Limits, decode, decode_weights, encode_weights, upload_bytes
from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.labels import DEFAULT_KIND
from distill.networks import Factory, create
from distill.randomness import derived_seed, generator
from distill.spec import DataSpec

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
    clients: int  # of the federation, as far as they are known; the strategy sets it every round

    @property
    def records(self) -> Collection[str]: ...  # what a reply may hold
    def most_bytes(self, weights: Weights) -> int: ...  # of a reply
    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]: ...  # what goes down: weights, control
    def read(
        self, content: RecordDict, weights: Weights
    ) -> CondensedSet | LocalResult | None: ...  # the checked answer, None when it is empty; `InputError`
    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights: ...
    def state(self) -> Weights: ...
    def load_state(self, state: Weights) -> None: ...


def rule_for(settings: Settings, spec: DataSpec, clients: int, folder: Path | None = None, *, network: Factory | None = None) -> Rule:
    """The rule of ``settings.strategy``; ``folder`` gets the last round's union, ``network`` is in place of the one that they name."""
    if settings.strategy not in WEIGHTS:
        return CondensedUnion(settings, spec, folder, network=network)
    if settings.strategy == "scaffold":
        made = create(network or settings.network, spec, generator(settings.seed, "server", "names"))
        return Scaffold(settings, clients, [name for name, _ in made.named_parameters()])
    kinds: dict[str, type[Averages | FedNova]] = {"fedavg": Averages, "fedprox": Averages, "fednova": FedNova}
    return kinds[settings.strategy](settings, clients)


def believed(claims: Sequence[tuple[int, int | None]]) -> list[int]:
    """Examples of each client from (claimed, known) numbers: known ones unchanged, others at most `LARGEST_SHARE` times the median."""
    numbers = [claimed if known is None else known for claimed, known in claims]
    # Claims do not move the median where there are numbers that the server knows.
    most = LARGEST_SHARE * statistics.median_low([known for _, known in claims if known is not None] or numbers) if numbers else 0
    return [number if known is not None else int(min(number, most)) for number, (_, known) in zip(numbers, claims, strict=True)]


class CondensedUnion:
    """FedDM's server, and that of all other uploads of images: join the sets, train on the union from the weights that were sent."""

    action = "train.condense"
    clients = 0  # it does not depend on them

    def __init__(self, settings: Settings, spec: DataSpec, folder: Path | None = None, *, network: Factory | None = None) -> None:
        asked = settings.upload.classes
        classes = tuple(range(spec.num_classes)) if asked is None else tuple(c for c in asked if c < spec.num_classes)
        self.settings, self.folder, self.network = settings, folder, network or settings.network
        self.limits = Limits(spec, classes, settings.upload.ipc, settings.upload.pixels, upload_form(settings))
        self.memory: list[CondensedSet] = []
        self.records = ("upload", "facts") if settings.privacy is None else ("upload", "facts", "privacy")

    def most_bytes(self, weights: Weights) -> int:
        return upload_bytes(self.limits) + MAX_STATEMENT

    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]:
        return (weights if self.settings.down else None), None

    def read(self, content: RecordDict, weights: Weights) -> CondensedSet | None:
        if "upload" not in content:
            if self.settings.upload.classes is None:
                raise InputError("the reply holds no upload, and every class was asked for; allowed: images of what the client has.")
            return None
        if self.settings.server.client_weights == "examples":
            whole(facts_of(content), "num-examples", 1, MAX_EXAMPLES)
        condensed = decode(parts_of(content, "upload"), self.limits)
        statement = statement_of(content) if self.settings.privacy is not None else None
        if self.settings.privacy is not None and statement is None:
            raise InputError("the upload carries no privacy statement; the federation asks for one.")
        return dataclasses.replace(condensed, provenance=dataclasses.replace(condensed.provenance, dp=statement))

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        settings, shares = self.settings, None
        if settings.server.client_weights == "examples":
            shares = [float(each.examples) for each in accepted]
        sets = [each.value for each in accepted if isinstance(each.value, CondensedSet)]
        joined = union(sets, shares)
        if self.folder is not None:
            union(sets).quantised().save(self.folder / "union.safetensors")
        whole_union = CondensedSet.concat([*self.memory, joined]) if self.memory else joined
        if settings.server.memory:  # the strategy puts it back where the round's weights are refused
            self.memory = [*self.memory, joined][-settings.server.memory :]
        return learn(weights, whole_union.to(settings.device), self.network, settings.server, derived_seed(settings.seed, "server", number))

    def state(self) -> Weights:
        kept: Weights = {}
        for place, part in enumerate(self.memory):
            kept |= {f"memory/{place}/images": part.images, f"memory/{place}/labels": part.labels}
        return kept

    def load_state(self, state: Weights) -> None:
        places = sorted({int(name.split("/")[1]) for name in state})
        spec = self.limits.spec
        kind = "weighted" if self.settings.server.client_weights == "examples" else DEFAULT_KIND
        self.memory = [
            CondensedSet(state[f"memory/{place}/images"], state[f"memory/{place}/labels"], spec, label_kind=kind) for place in places
        ]


class _WeightRule:
    """The reading of answers, which all rules for weights share."""

    action = "train.fit"
    records: Collection[str] = ("arrays", "facts")

    def __init__(self, settings: Settings, clients: int) -> None:
        self.settings, self.clients = settings, clients

    def most_bytes(self, weights: Weights) -> int:
        return len(self.records) * (sum(512 + value.numel() * value.element_size() for value in weights.values()) + ROOM_BYTES)

    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]:
        return weights, None

    def read(self, content: RecordDict, weights: Weights) -> LocalResult:
        facts = facts_of(content)
        examples = whole(facts, "num-examples", 1, MAX_EXAMPLES)
        due = self.settings.local.steps(examples)
        steps = whole(facts, "steps", due, due)
        trained = decode_weights(parts_of(content, "arrays"), weights)
        return LocalResult(trained, examples, steps, normaliser(steps, self.settings.local.momentum))

    def state(self) -> Weights:
        return {}

    def load_state(self, state: Weights) -> None:
        return None


def _results(accepted: Sequence[Accepted]) -> list[LocalResult]:
    """The weights of each client, with the number of examples that the server counts for it."""
    return [dataclasses.replace(each.value, examples=each.examples) for each in accepted if isinstance(each.value, LocalResult)]


class Averages(_WeightRule):
    """FedAvg and FedProx: Flower's strategies aggregate the checked answers."""

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        from flwr.serverapp.strategy import FedAvg, FedProx

        # Flower gets what was checked and nothing else of a reply: it ends the run where replies differ in a name.
        replies = [
            Message(
                RecordDict({"arrays": record_of(encode_weights(result.weights)), "facts": MetricRecord({"num-examples": result.examples})}),
                dst_node_id=1,
                message_type=self.action,
            )
            for result in _results(accepted)
        ]
        prox = self.settings.strategy == "fedprox" and self.settings.local.proximal_mu > 0
        strategy = FedProx(proximal_mu=self.settings.local.proximal_mu) if prox else FedAvg()
        arrays, _ = strategy.aggregate_train(number, replies)
        if arrays is None:
            raise InputError("Flower's aggregation gave no weights.")
        means = arrays.to_torch_state_dict()
        return {name: means[name].to(value.dtype) for name, value in weights.items()}


class FedNova(_WeightRule):
    """Wang et al., NeurIPS 2020."""

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        local = self.settings.local
        believed_steps = [normaliser(local.steps(each.examples), local.momentum) for each in accepted]
        return fednova(weights, _results(accepted), believed_steps)


class Scaffold(_WeightRule):
    """Karimireddy et al., ICML 2020: the server's control variate goes down beside the weights, changes of the clients' come up."""

    records: Collection[str] = ("arrays", "change", "facts")

    def __init__(self, settings: Settings, clients: int, trained: Sequence[str]) -> None:
        super().__init__(settings, clients)
        self.trained = tuple(trained)  # names of parameters; BatchNorm's running statistics have no control
        self.control: Weights = {}

    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]:
        if not self.control:
            self.control = {name: torch.zeros_like(weights[name]) for name in self.trained}
        return weights, self.control

    def read(self, content: RecordDict, weights: Weights) -> LocalResult:
        change = decode_weights(parts_of(content, "change"), self.control, "change")
        return dataclasses.replace(super().read(content, weights), change=change)

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        results = [each.value for each in accepted if isinstance(each.value, LocalResult)]
        changes = [result.change for result in results if result.change is not None]  # `read` sets it
        new, self.control = scaffold(weights, self.control, results, changes, self.clients)
        return new

    def state(self) -> Weights:
        return dict(self.control)

    def load_state(self, state: Weights) -> None:
        self.control = dict(state)
