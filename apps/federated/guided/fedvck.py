"""FedVCK: clients match their images that the model finds hard, and the server keeps classes apart that it confuses.

Yan et al., "FedVCK: Non-IID Robust and Communication-Efficient Federated Learning via Valuable Condensed Knowledge for Medical Image
Analysis", AAAI 2025, and its code. A client draws real images with chances from their loss under the received model and the one before, and
matches mean features in the received model itself. The server trains on the uploads of half of the rounds, at least ten, with a contrastive
term. Differences: clients send no prototypes of their real images; the server computes class means of the uploaded ones. The term is the
supervised contrastive loss (Khosla et al., NeurIPS 2020, eq. 2) of features without a head, whose negatives are of the nearest classes.
Batches are drawn anew in each step (the code moves a window of 256 images by one), and gradients of images are not clipped.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.federated.answers import Accepted, Weights
from apps.federated.condense import upload
from apps.federated.guided.guidance import CHUNK, Guidance, class_numbers, logits_of, losses_of, received_model
from apps.federated.guided_tables import FedVCKConfig
from apps.federated.image_rule import CondensedUnion
from apps.federated.settings import Settings
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.networks import Factory, embed
from distill.statistics import ExactStatistics
from distill.train import Term

FEWEST_ROUNDS = 10  # whose uploads the server learns from


def chances(now: Tensor, before: Tensor, data: ImageData, config: FedVCKConfig) -> Tensor:
    """(N,): in each class the softmax of its images' scores, from logits (N, K) of the received model and of the one before."""
    loss = losses_of((1 - config.mix) * now + config.mix * before, data)
    scores = torch.sigmoid(config.gamma * (loss - config.threshold))
    found = torch.zeros_like(scores)
    for label in data.classes:
        own = data.class_indices(label)
        found[own] = scores[own].softmax(0)
    return found


def client(
    data: ImageData, settings: Settings, server_round: int, number: int, guidance: Guidance, network: Factory
) -> tuple[CondensedSet, Weights]:
    """The client's upload, and nothing more."""
    now = logits_of(data, network, guidance.weights)
    before = now if guidance.before is None else logits_of(data, network, guidance.before)
    chosen = chances(now, before, data, settings.fedvck)
    return upload(data, settings, server_round, number, guidance.weights, network=network, statistics=ExactStatistics(data, chosen)), {}


def nearest_classes(features: Tensor, labels: Tensor, count: int, neighbours: int) -> Tensor:
    """(K, K) bool: row c marks the ``neighbours`` classes whose mean features are nearest to those of class c, in angle.

    Args:
        features: (N, D).
        labels: (N,) class numbers.
        count: of classes, K; a class without images is nobody's neighbour and has none.
        neighbours: fewer where there are fewer classes.
    """
    near = torch.zeros(count, count, dtype=torch.bool, device=features.device)
    there = labels.unique()
    means = F.normalize(torch.stack([features[labels == label].mean(0) for label in there]))
    likeness = (means @ means.T).fill_diagonal_(-2.0)
    best = likeness.topk(min(neighbours, len(there) - 1)).indices if len(there) > 1 else likeness.new_zeros(1, 0, dtype=torch.int64)
    for row, label in enumerate(there):
        near[label, there[best[row]]] = True
    return near


def contrast(features: Tensor, labels: Tensor, near: Tensor, temperature: float) -> Tensor:
    """The supervised contrastive loss of a batch, whose negatives are images of the classes nearest to the anchor's (scalar).

    Args:
        features: (n, D).
        labels: (n,) class numbers.
        near: (K, K) of `nearest_classes`.
        temperature: that cosines are divided by.

    Returns:
        The mean over images with another image of their class in the batch; 0 if there is none.
    """
    unit = F.normalize(features)
    cosines = unit @ unit.T / temperature
    other = ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    positive = (labels[:, None] == labels[None]) & other
    rivals = positive | near[labels][:, labels]
    whole = cosines.masked_fill(~rivals, -torch.inf).logsumexp(1, keepdim=True)
    counts = positive.sum(1)
    kept = counts > 0
    logs = torch.where(positive, cosines - whole, torch.zeros_like(cosines)).sum(1)
    return -(logs[kept] / counts[kept]).mean() if bool(kept.any()) else features.sum() * 0


class FedVCK(CondensedUnion):
    """The union of many rounds, and the contrastive term from the second round on."""

    @property
    def remembered(self) -> int:
        return self.settings.server.memory or max(FEWEST_ROUNDS, self.settings.rounds // 2) - 1

    def term(self, number: int, weights: Weights, joined: CondensedSet, accepted: Sequence[Accepted]) -> Term | None:
        config, union = self.settings.fedvck, joined.decoded()
        if number == 1 or config.beta == 0:
            return None
        network = received_model(self.network, weights, union.spec, union.images.device)
        with torch.no_grad():
            features = torch.cat([embed(network, part) for part in union.images.split(CHUNK)])
        near = nearest_classes(features, union.hard_labels, union.spec.num_classes, config.neighbours)

        def term(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
            return config.beta * contrast(embed(network, images), class_numbers(labels), near, config.temperature)

        return term
