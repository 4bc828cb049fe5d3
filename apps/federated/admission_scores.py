"""Scores of an upload against real images: agreement and loss of its labels, and distance of its features. Plain functions; no Flower.

All are relative to what real images give that the checking network has not seen. RONI (Nelson et al., "Exploiting Machine Learning to
Subvert Your Spam Filter", LEET 2008) tests training data on held-out data, too; the scores themselves are our own.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from scipy.stats import binom
from torch import Tensor, nn

from distill.networks import embed

CELLS = 7  # rows and columns of the coarse image that is a part of the features
FLOOR = 0.05  # of a feature's variance, relative to the mean variance: a pixel that is always black has none
CHANCE = 1e-3  # of so few agreeing labels by chance
RIDGE = 0.01  # relative to the mean variance of a feature
RARE = 0.01  # of real images: their labels are the least probable ones
SHARPNESS = 10.0  # see `ridge`


# Scores of images with labels (N, K) that are probabilities, from a network's probabilities (N, K) or features (N, D)


def agreements(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Of each image the label's share (N,) of the class that the network predicts: 1 or 0 where labels are hard."""
    return labels.gather(1, probabilities.argmax(1, keepdim=True)).squeeze(1)


def losses(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Of each image the Kullback-Leibler divergence (N,) of the network's probabilities from the label: the cross-entropy of a hard one."""
    return (torch.xlogy(labels, labels) - labels * probabilities.clamp_min(1e-6).log()).sum(1)


def label_probabilities(labels: Tensor, probabilities: Tensor) -> Tensor:
    """Of each image the probability (N,) that the network gives to its label: the mean over a soft one."""
    return (labels * probabilities).sum(1)


def features_of(network: nn.Module, images: Tensor) -> Tensor:
    """(N, D): the network's embedding, and the images themselves in `CELLS` x `CELLS` cells."""
    cells = F.adaptive_avg_pool2d(images, (min(CELLS, images.shape[2]), min(CELLS, images.shape[3])))
    return torch.cat([embed(network, images), cells.flatten(1)], 1)


def improbable(total: float, count: int, rate: float) -> bool:
    """Whether ``total`` or fewer of ``count`` labels, each with the chance ``rate``, agree with a probability below `CHANCE`."""
    return bool(binom.cdf(total + 1e-6, count, rate) < CHANCE)


# What they are compared with


@dataclass(frozen=True)
class Seen:
    """Images as the checking network sees them: labels (N, K) as probabilities, the network's probabilities (N, K), features (N, D)."""

    labels: Tensor
    probabilities: Tensor
    features: Tensor


@dataclass(frozen=True)
class Reference:
    """What real images give that the checking network has not seen.

    Args:
        agreement: the fraction of labels that it predicts.
        loss: (mean, standard deviation) of the images' losses.
        lowest: ``trim`` times the label probability that the fraction `RARE` of them falls below.
        centres: mean features (K, D) of each class; zero for classes without images.
        counts: images (K,) of each class.
        variances: variance (D,) of the features within a class, the same for all classes.
    """

    agreement: float
    loss: tuple[float, float]
    lowest: float
    centres: Tensor
    counts: Tensor
    variances: Tensor

    def excess_loss(self, lost: Tensor) -> float:
        """Standard errors by which the mean of losses (N,) exceeds that of as many real images."""
        return (float(lost.mean()) - self.loss[0]) / (self.loss[1] / math.sqrt(len(lost)))

    def distance(self, features: Tensor, labels: Tensor) -> float:
        """Largest difference of a mean feature (N, D) from that of real images of the same classes (N,), in standard errors."""
        shares = torch.bincount(labels, minlength=len(self.counts)) / len(labels)
        # Of a mean of N images, and of the same mixture of class centres, each of which is a mean itself.
        errors = 1 / len(labels) + float((shares.square() / self.counts.clamp_min(1)).sum())
        return float(((features - self.centres[labels]).mean(0) / (self.variances * errors).sqrt()).abs().max())


def reference_of(seen: Seen, trim: float) -> Reference:
    """The `Reference` of images that the checking network was not trained on. Class statistics are of the largest entry of each label."""
    labels, probabilities, features, hard = seen.labels, seen.probabilities, seen.features, seen.labels.argmax(1)
    lost, counts = losses(labels, probabilities), torch.bincount(hard, minlength=labels.shape[1])
    centres = torch.zeros(labels.shape[1], features.shape[1]).index_add_(0, hard, features) / counts.clamp_min(1).unsqueeze(1)
    variances = (features - centres[hard]).square().sum(0) / max(1, len(hard) - int((counts > 0).sum()))
    likely = label_probabilities(labels, probabilities)
    return Reference(
        agreement=float(agreements(labels, probabilities).mean()),
        loss=(float(lost.mean()), float(lost.std(correction=0)) + 1e-6),
        lowest=trim * float(torch.quantile(likely, RARE)),
        centres=centres,
        counts=counts,
        variances=variances + FLOOR * variances.mean() + 1e-12,
    )


def ridge(features: Tensor, labels: Tensor) -> Callable[[Tensor], Tensor]:
    """Probabilities (M, K) for other features (M, D), by ridge regression of labels (N, K) on ``features`` (N, D): no training.

    The fit is of zeros and ones, which are no logits; `SHARPNESS` times the outputs are.
    """
    shares, targets = labels.double().mean(0), labels.double()
    centre = features.double().mean(0)
    rows = features.double() - centre
    square = rows.T @ rows
    square += RIDGE * square.diagonal().mean() * torch.eye(len(square), dtype=torch.float64)
    weight = torch.linalg.solve(square, rows.T @ (targets - shares))
    return lambda others: (SHARPNESS * ((others.double() - centre) @ weight + shares)).softmax(1).float()
