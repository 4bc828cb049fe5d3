"""FedAF: clients condense towards the federation's mean logits, and the server follows the clients' soft labels.

Wang et al., "An Aggregation-Free Federated Learning for Tackling Data Heterogeneity", CVPR 2024. The authors have published no code;
settings are those of a community's. A client matches mean features in ``keep`` of the received weights and the rest of a new network, and
draws the mean logits of each class's images towards the federation's mean logits of the class. For one point a class the paper's sliced
Wasserstein distance is the squared distance divided by the number of logits, which is computed here. Beside its images a client sends the
mean logits and mean soft labels of its real images by class; the server adds the symmetric divergence of its own mean soft labels of a
batch from theirs to the cross-entropy. Both means are of real images, and have no private form here.
"""

from collections.abc import Mapping, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.federated.answers import Accepted, Weights
from apps.federated.condense import upload
from apps.federated.guided.guidance import Guidance, class_numbers, logits_of
from apps.federated.guided_tables import FedAFConfig
from apps.federated.image_rule import CondensedUnion
from apps.federated.messages import RecordDict, parts_of
from apps.federated.settings import Settings
from apps.federated.wire import ROOM_BYTES, decode_weights
from distill.batches import Augment, Embed
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.labels import TOLERANCE
from distill.matching import mean_distance
from distill.methods.dm import DM, DMConfig
from distill.networks import Factory, create
from distill.spec import DataSpec
from distill.statistics import ExactStatistics
from distill.train import Term

MAX_LOGIT = 1000.0
LOGITS, SOFT = "logits", "soft"  # tensors (K, K), a row of zeros for a class that says nothing


def partly(network: Factory, weights: Mapping[str, Tensor], keep: float) -> Factory:
    """A network factory: ``keep`` of these weights and the rest of a new network's; buffers are the received ones."""

    def made(spec: DataSpec) -> nn.Module:
        fresh = create(network, spec, torch.default_generator)
        with torch.no_grad():
            for name, parameter in fresh.named_parameters():
                parameter.mul_(1 - keep).add_(weights[name], alpha=keep)
            for name, buffer in fresh.named_buffers():
                buffer.copy_(weights[name])
        return fresh

    return made


class Targeted(ExactStatistics):
    """Statistics whose mean features end in logits, which are replaced by target logits where a class has them."""

    def __init__(self, data: ImageData, target: Tensor | None) -> None:
        super().__init__(data)
        self.target = None if target is None else target[list(self.classes)].to(data.device)  # (number of classes, K)

    def class_means(
        self,
        embed: Embed,
        batch_size: int,
        augment: Augment | None,
        generator: torch.Generator,
        *,
        joint: bool = False,
        norm: float | None = None,
    ) -> Tensor:
        """(number of classes, D + K)."""
        means = super().class_means(embed, batch_size, augment, generator, joint=joint, norm=norm)
        if self.target is None:
            return means
        cut = means.shape[1] - self.target.shape[1]
        given = self.target.abs().sum(1, keepdim=True) > 0
        return torch.cat([means[:, :cut], torch.where(given, self.target, means[:, cut:])], 1)


class Collaborative(DM):
    """DM with a term for the logits, which are the last ``outputs`` numbers of a feature."""

    def __init__(self, config: DMConfig, initial: CondensedSet, network: Factory | None, *, weight: float) -> None:
        super().__init__(config, initial, network)
        self.outputs, self.weight = initial.spec.num_classes, weight

    def distance(self, real: Tensor, synthetic: Tensor) -> Tensor:
        """The squared distance of mean features, and ``weight`` times that of mean logits divided by their number."""
        cut = real.shape[1] - self.outputs
        logits = mean_distance(real[:, cut:], synthetic[:, cut:]) / self.outputs
        return mean_distance(real[:, :cut], synthetic[:, :cut]) + self.weight * logits


def class_rows(logits: Tensor, data: ImageData, fewest: int, temperature: float) -> Weights:
    """Mean logits and mean soft labels (K, K) of the classes with at least ``fewest`` images; zeros for the others."""
    count = data.spec.num_classes
    rows = {LOGITS: torch.zeros(count, count), SOFT: torch.zeros(count, count)}
    for label in data.classes:
        own = logits[data.class_indices(label)]
        if len(own) >= fewest:
            rows[LOGITS][label], rows[SOFT][label] = own.mean(0), (own / temperature).softmax(1).mean(0)
    return rows


def client(
    data: ImageData, settings: Settings, server_round: int, number: int, guidance: Guidance, network: Factory
) -> tuple[CondensedSet, Weights]:
    """The client's upload, and its classes' mean logits and soft labels."""
    config: FedAFConfig = settings.fedaf
    count = data.spec.num_classes
    like = {LOGITS: torch.zeros(count, count)}
    target = None if guidance.more is None else decode_weights(guidance.more, like, "mean logits")[LOGITS]
    mixed = partly(network, guidance.weights, config.keep)
    weight = 0.0 if target is None else config.local  # in the first round there are no mean logits
    made = upload(
        data,
        settings,
        server_round,
        number,
        guidance.weights,
        network=network,
        statistics=Targeted(data, target),
        distiller=lambda own, initial: Collaborative(cast(DMConfig, own), initial, mixed, weight=weight),
    )
    return made, class_rows(logits_of(data, network, guidance.weights), data, settings.upload.ipc, config.temperature)


def check_rows(rows: Weights) -> None:
    """Raises `InputError` for means that no client's images have: one client must not move the federation's anywhere."""
    largest = float(rows[LOGITS].abs().max())
    if not largest <= MAX_LOGIT:
        raise InputError(f"mean logits reach {largest:.3g}; allowed: -{MAX_LOGIT:g} to {MAX_LOGIT:g}.")
    sums = rows[SOFT].sum(1)
    if bool((rows[SOFT] < 0).any()) or not bool(((sums - 1).abs() < TOLERANCE).logical_or(sums == 0).all()):
        raise InputError("mean soft labels are no probabilities; allowed: rows of numbers of at least 0 that add up to 1, or of zeros.")


def mean_rows(rows: Sequence[Tensor]) -> Tensor:
    """(K, K): for each class the mean of the clients' rows that are not zero."""
    stacked = torch.stack(list(rows))
    given = (stacked.abs().sum(2, keepdim=True) > 0).sum(0)
    return stacked.sum(0) / given.clamp_min(1)


def divergence(outputs: Tensor, labels: Tensor, soft: Tensor, temperature: float) -> Tensor:
    """The symmetric divergence of the batch's mean soft labels by class from ``soft`` (K, K), the mean over classes with both (scalar)."""
    probabilities = (outputs / temperature).softmax(1)
    there = [int(label) for label in labels.unique() if float(soft[label].sum()) > 0]
    if not there:
        return outputs.sum() * 0
    own = torch.stack([probabilities[labels == label].mean(0) for label in there]).clamp_min(1e-8)
    wanted = soft[there].clamp_min(1e-8)
    return F.kl_div(own.log(), wanted, reduction="batchmean") + F.kl_div(wanted.log(), own, reduction="batchmean")


class FedAF(CondensedUnion):
    """The union, the mean logits that go down, and the divergence from the mean soft labels."""

    def begin(self) -> None:
        count = self.limits.spec.num_classes
        self.more = {LOGITS: torch.zeros(count, count), SOFT: torch.zeros(count, count)}
        self.records = (*self.records, "more")
        self.logits: Tensor | None = None

    def most_bytes(self, weights: Weights) -> int:
        return super().most_bytes(weights) + sum(value.nbytes for value in self.more.values()) + ROOM_BYTES

    def read(self, content: RecordDict, weights: Weights) -> CondensedSet | None:
        value = super().read(content, weights)
        if value is not None:
            check_rows(decode_weights(parts_of(content, "more"), self.more, "further tensors"))
        return value

    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]:
        return weights, None if self.logits is None else {LOGITS: self.logits}

    def term(self, number: int, weights: Weights, joined: CondensedSet, accepted: Sequence[Accepted]) -> Term | None:
        sent = [each.more for each in accepted if each.more]
        if not sent:
            return None
        self.logits, config = mean_rows([each[LOGITS] for each in sent]), self.settings.fedaf
        soft = mean_rows([each[SOFT] for each in sent]).to(joined.images.device)

        def term(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            return config.whole * divergence(network(images), class_numbers(labels), soft, config.temperature)

        return term

    def state(self) -> Weights:
        return super().state() | ({} if self.logits is None else {LOGITS: self.logits})

    def load_state(self, state: Weights) -> None:
        self.logits = state.get(LOGITS)
        super().load_state({name: value for name, value in state.items() if name != LOGITS})
