"""One release: clipped rows of the sampled examples, summed class by class, and Gaussian noise once. Nothing else leaves private data."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from apps.privacy.contributions import clipped, feature_rows
from apps.privacy.entropy import Entropy
from distill.data import ImageData
from distill.errors import InputError

# (images of one class (n, C, H, W), its position) -> rows (n, D) and their slots (n,) or None, chunk by chunk in order.
Rows = Callable[[Tensor, int], Iterator[tuple[Tensor, Tensor | None]]]


class Plan(NamedTuple):
    """Releases of one kind: how many, of which part of the data, with how much noise. Fixed before the first, from public numbers only."""

    releases: int
    sample_rate: float
    noise_multiplier: float


def poisson_mask(labels: Tensor, rate: float, entropy: Entropy) -> Tensor:
    """(N,) bool: each example of the whole private set by a coin of its own."""
    return torch.from_numpy(entropy.uniform(len(labels)) < rate).to(labels.device)


def noised_sums(
    data: ImageData,
    classes: Sequence[int],
    mask: Tensor,
    noise: float,
    norm: float,
    rows: Rows,
    *,
    length: int,
    slots: int,
    entropy: Entropy,
) -> Tensor:
    """(K, slots, D) float32: each class's sums of the masked examples' rows, clipped at ``norm``, with noise of deviation ``noise * norm``.

    An example has one label and one slot, so it moves the whole stack by at most ``norm``: one step of the accountant. No sampled example
    at all is a release of noise. Sums are float64, so that the order of chunks cannot show.
    """
    labels = data.train.labels
    sums = torch.zeros(len(classes), slots, length, dtype=torch.float64, device=data.device)
    for position, label in enumerate(classes):
        chosen = (mask & (labels == label)).nonzero().squeeze(1)
        for part in chosen.split(4096):
            for row, slot in rows(data.normalised("train", part), position):
                row = clipped(row, norm)
                if slot is None:
                    sums[position, 0] += row.sum(0, dtype=torch.float64)
                else:
                    sums[position].index_add_(0, slot, row.double())
    drawn = torch.from_numpy(entropy.normal(tuple(sums.shape))).to(data.device)
    return (sums + noise * norm * drawn).float()


def question(kind: str, seen: Sequence[Tensor]) -> str:
    """What a question is: how it answers to public images. The same function of an image is the same question, whoever asks."""
    digest = hashlib.sha256(kind.encode())
    for tensor in seen:
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).data)
    return digest.hexdigest()


def refused(what: str, instead: str) -> InputError:
    """The error for what has no guarantee, and what to use instead."""
    return InputError(f"refused, because it has no privacy guarantee: {what}; {instead}.")


def check_independent(view: Callable[[Tensor], Tensor], public: Tensor) -> None:
    """`InputError` for features of an image that change with its batch: an example's part in their sum would not be bounded."""
    fewer, all_of_them = (torch.cat(list(feature_rows(view, part)))[0] for part in (public[:-1], public))
    if not bool((fewer - all_of_them).norm() <= 1e-2 * all_of_them.norm() + 1e-6):
        raise refused("features of an image that change with its batch (BatchNorm, dropout)", "use a network without them")
