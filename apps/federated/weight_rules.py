"""How the server puts together the weights of clients: one class a strategy, by name in `WEIGHT_RULES`.

FedAvg, FedProx, FedAvgM, FedAdam and those that resist malicious clients (coordinate-wise median and trimmed mean, Yin et al., ICML 2018;
Krum and Multi-Krum, Blanchard et al., NeurIPS 2017) are Flower's own strategies on the checked answers; the others are in averaging.py.
A client counts by its number of examples (n_k / n), but for SCAFFOLD and FedDyn, whose papers count clients equally, and for the robust
ones, which count each once. A step of the server's optimiser is of the trainable weights; BatchNorm's running statistics are averaged.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from apps.federated.admission import Decision
from apps.federated.answers import MAX_EXAMPLES, Accepted, Weights
from apps.federated.averaging import LocalResult, feddyn, fednova, normaliser, scaffold, weighted_mean
from apps.federated.dynafed import pseudo_set, tuned
from apps.federated.messages import Message, MetricRecord, RecordDict, facts_of, parts_of, record_of, whole
from apps.federated.settings import Settings
from apps.federated.tables import AveragingConfig
from apps.federated.wire import ROOM_BYTES, decode_weights, encode_weights
from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.networks import Factory
from distill.randomness import derived_seed, generator
from distill.spec import DataSpec

if TYPE_CHECKING:
    from flwr.serverapp.strategy import FedAvg


@dataclass(frozen=True)
class Made:
    """What a server needs that trains networks itself: the run's network, the data's spec, and a folder for its sets (or None)."""

    network: Factory
    spec: DataSpec
    folder: Path | None = None


class _WeightRule:
    """The reading of answers, which all rules for weights share.

    Args:
        settings: of the run.
        clients: number of clients of the federation.
        trained: names of the parameters; running statistics and counters are not among them.
        made: what else a server knows that trains networks itself; None: it does not.

    Attributes:
        kept: what the rule keeps from round to round, for the checkpoint.
    """

    action = "train.fit"
    note = ""
    late = False  # what a client learned from weights of an earlier round is no step from the present ones
    records: Collection[str] = ("arrays", "facts")

    def __init__(self, settings: Settings, clients: int, trained: Sequence[str], made: "Made | None" = None) -> None:
        self.more: Weights = {}
        self.settings, self.clients, self.trained, self.made = settings, clients, tuple(trained), made
        self.kept: Weights = {}

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

    def admit(self, accepted: Sequence[Accepted]) -> Mapping[int, Decision]:
        return {}  # robust rules choose while they combine

    def state(self) -> Weights:
        return dict(self.kept)

    def load_state(self, state: Weights) -> None:
        self.kept = dict(state)


def _results(accepted: Sequence[Accepted]) -> list[LocalResult]:
    """The weights of each client, with the number of examples that the server counts for it."""
    return [dataclasses.replace(each.value, examples=each.examples) for each in accepted if isinstance(each.value, LocalResult)]


def _replies(results: Sequence[LocalResult], names: Collection[str]) -> list[Message]:
    """What Flower's strategies aggregate: what was checked and nothing else of a reply, as they end the run where replies differ."""
    return [
        Message(
            RecordDict(
                {
                    "arrays": record_of(encode_weights({name: result.weights[name] for name in names})),
                    "facts": MetricRecord({"num-examples": result.examples}),
                }
            ),
            dst_node_id=1,
            message_type=_WeightRule.action,
        )
        for result in results
    ]


def _joined(weights: Weights, results: Sequence[LocalResult], moved: Mapping[str, Tensor]) -> Weights:
    """``moved`` in the types of ``weights``; entries that it lacks are means by the number of examples."""
    means = weighted_mean([result.weights for result in results], [float(result.examples) for result in results])
    return {name: moved.get(name, means[name]).to(value.dtype) for name, value in weights.items()}


def averaging(settings: Settings, answers: int) -> "FedAvg":
    """Flower's strategy for the run's name that aggregates this number of answers."""
    from flwr.serverapp.strategy import FedAvg, FedMedian, FedProx, FedTrimmedAvg, Krum, MultiKrum

    share, mu = settings.averaging.malicious, settings.local.proximal_mu
    bad = math.floor(share * answers)
    made: dict[str, Callable[[], FedAvg]] = {
        "fedavg": FedAvg,
        "dynafed": FedAvg,
        "fedprox": lambda: FedProx(proximal_mu=mu) if mu > 0 else FedAvg(),
        "fedmedian": FedMedian,
        "fedtrimmedavg": lambda: FedTrimmedAvg(beta=share),
        "krum": lambda: Krum(num_malicious_nodes=bad),
        "multikrum": lambda: MultiKrum(num_malicious_nodes=bad, num_nodes_to_select=answers - bad),
    }
    return made[settings.strategy]()


class Averages(_WeightRule):
    """Means, medians and choices of weights: what Flower's strategy of `averaging` makes of the checked answers."""

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        strategy = averaging(self.settings, len(accepted))
        arrays, _ = strategy.aggregate_train(number, _replies(_results(accepted), weights))
        if arrays is None:
            raise InputError("Flower's aggregation gave no weights.")
        means = arrays.to_torch_state_dict()
        return {name: means[name].to(value.dtype) for name, value in weights.items()}


class DynaFed(Averages):
    """Pi et al., CVPR 2023 (dynafed.py): FedAvg, whose later averages are fine-tuned on a set distilled from the earlier ones.

    Keeps the trajectory, flat weights by place, and then the pseudo set in its stead. A round without a valid answer adds no model.
    """

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        assert self.made is not None
        config, seed, self.note = self.settings.dynafed, self.settings.seed, ""
        mean = super().combine(number, weights, accepted)
        if "images" not in self.kept:
            self._add(weights if not self.kept else mean)
            if len(self.kept) == 1:
                self._add(mean)
            if len(self.kept) <= config.rounds:
                return mean
            trajectory = [self.kept[f"trajectory/{place}"] for place in range(len(self.kept))]
            draws = generator(seed, "dynafed")
            pseudo = pseudo_set(trajectory, config, self.made.spec, self.made.network, draws, self.settings.device)
            self.kept = {"images": pseudo.images, "labels": pseudo.labels}
            self.note = f"{len(pseudo)} images of the server's, from {len(trajectory)} models"
            if self.made.folder is not None:
                pseudo.save(self.made.folder / "pseudo.safetensors")
        pseudo = CondensedSet(self.kept["images"], self.kept["labels"], self.made.spec).to(self.settings.device)
        return tuned(mean, pseudo, config, self.made.network, derived_seed(seed, "dynafed", number))

    def _add(self, weights: Weights) -> None:
        self.kept[f"trajectory/{len(self.kept)}"] = torch.cat([weights[name].flatten() for name in self.trained])


class ServerMomentum(_WeightRule):
    """FedAvgM (Hsu, Qi and Brown, 2019): SGD with momentum on the server, whose gradient is w minus the mean of the clients' weights.

    Keeps the velocity.
    """

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        from flwr.serverapp.strategy import FedAvgM

        averaging: AveragingConfig = self.settings.averaging
        results = _results(accepted)
        strategy = FedAvgM(server_learning_rate=averaging.fedavgm_lr, server_momentum=averaging.fedavgm_momentum)
        strategy.current_arrays = record_of(encode_weights({name: weights[name] for name in self.trained}))
        strategy.momentum_vector = [self.kept[name].numpy() for name in self.trained] if self.kept else None
        arrays, _ = strategy.aggregate_train(number, _replies(results, self.trained))
        if arrays is None:
            raise InputError("Flower's aggregation gave no weights.")
        if strategy.momentum_vector is not None:
            self.kept = {name: torch.from_numpy(value) for name, value in zip(self.trained, strategy.momentum_vector, strict=True)}
        return _joined(weights, results, arrays.to_torch_state_dict())


class ServerAdam(_WeightRule):
    """FedAdam (Reddi et al., ICLR 2021, algorithm 2): Adam on the server. Keeps its moments, first/NAME and second/NAME.

    Flower's form, which unlike the algorithm corrects the bias of both moments in round t, by 1 - beta^(t + 1).
    """

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        from flwr.serverapp.strategy import FedAdam

        averaging: AveragingConfig = self.settings.averaging
        results = _results(accepted)
        strategy = FedAdam(
            eta=averaging.fedadam_lr, beta_1=averaging.fedadam_beta1, beta_2=averaging.fedadam_beta2, tau=averaging.fedadam_tau
        )
        strategy.current_arrays = dict(encode_weights({name: weights[name] for name in self.trained}))
        if self.kept:
            strategy.m_t, strategy.v_t = (
                {name: self.kept[f"{which}/{name}"].numpy() for name in self.trained} for which in ("first", "second")
            )
        arrays, _ = strategy.aggregate_train(number, _replies(results, self.trained))
        if arrays is None or strategy.m_t is None or strategy.v_t is None:
            raise InputError("Flower's aggregation gave no weights.")
        self.kept = {
            f"{which}/{name}": torch.from_numpy(value)
            for which, values in (("first", strategy.m_t), ("second", strategy.v_t))
            for name, value in values.items()
        }
        return _joined(weights, results, arrays.to_torch_state_dict())


class FedNova(_WeightRule):
    """Wang et al., NeurIPS 2020."""

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        local = self.settings.local
        believed_steps = [normaliser(local.steps(each.examples), local.momentum) for each in accepted]
        return fednova(weights, _results(accepted), believed_steps, self.trained)


class FedDyn(_WeightRule):
    """Acar et al., ICLR 2021: the server keeps a state h; each client keeps the gradient of its own loss, and sends weights only."""

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        results, alpha = _results(accepted), self.settings.averaging.feddyn_alpha
        before = self.kept or {name: torch.zeros_like(weights[name]) for name in self.trained}
        moved, self.kept = feddyn(weights, before, results, self.clients, alpha)
        return _joined(weights, results, moved)


class Scaffold(_WeightRule):
    """Karimireddy et al., ICML 2020: the server's control variate is sent with the weights, and clients send the changes of theirs."""

    records: Collection[str] = ("arrays", "change", "facts")

    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]:
        if not self.kept:
            self.kept = {name: torch.zeros_like(weights[name]) for name in self.trained}
        return weights, self.kept

    def read(self, content: RecordDict, weights: Weights) -> LocalResult:
        change = decode_weights(parts_of(content, "change"), self.kept, "change")
        return dataclasses.replace(super().read(content, weights), change=change)

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        results = _results(accepted)
        changes = [result.change for result in results if result.change is not None]  # `read` sets it
        by_examples = self.settings.averaging.scaffold_weights == "examples"
        shares = [float(result.examples) if by_examples else 1.0 for result in results]
        new, self.kept = scaffold(weights, self.kept, results, changes, self.clients, shares)
        return new


WEIGHT_RULES: dict[str, type[Averages | DynaFed | ServerMomentum | ServerAdam | FedNova | FedDyn | Scaffold]] = {
    "fedavg": Averages,
    "fedprox": Averages,
    "fedmedian": Averages,
    "fedtrimmedavg": Averages,
    "krum": Averages,
    "multikrum": Averages,
    "fedavgm": ServerMomentum,
    "fedadam": ServerAdam,
    "scaffold": Scaffold,
    "fednova": FedNova,
    "feddyn": FedDyn,
    "dynafed": DynaFed,
}
