"""Gradients and features of a batch, computed in pieces whose activations fit the processor's cache."""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.devices import sent
from distill.networks import has_batchnorm

GROUP_PIXELS = 2048 * 1024  # of a GPU's batch: 2,048 images of 32 x 32, about 1 GiB of first-layer activations at width 128

# Augments a batch of one class: (images (n, C, H, W), position of the class in `classes`) -> images.
Augment = Callable[[Tensor, int], Tensor]
# Maps normalised images (n, C, H, W) to features (n, D).
Embed = Callable[[Tensor], Tensor]
ROWS = 256  # of features at a time that `Staged` maps


@dataclass(frozen=True)
class Staged:
    """Features in two stages: ``network`` of images, in pieces that fit the cache, and ``after`` of the features of many pieces.

    For an ``after`` that is one large matrix product, which is slow for few rows. As a function it is an `Embed`.
    """

    network: Embed
    after: Callable[[Tensor], Tensor]

    def __call__(self, images: Tensor) -> Tensor:
        return self.after(self.network(images))


def mean_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Gradient of the mean cross-entropy, one tensor per trainable parameter.

    A sum over chunks that fit the processor's cache, which is exact; networks with BatchNorm in training mode get the whole batch.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    total: list[Tensor] | None = None
    for part, target in chunks(images, labels, whole=network.training and has_batchnorm(network)):
        loss = F.cross_entropy(network(part), target, reduction="sum") / len(images)
        gradients = torch.autograd.grad(loss, parameters)
        total = list(gradients) if total is None else [a.add_(b) for a, b in zip(total, gradients, strict=True)]
    assert total is not None
    return total


def chunks(images: Tensor, labels: Tensor, *, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a batch into pieces whose activations fit a CPU's cache (2.0 times as fast for ConvNet-3, width 128); not split on a GPU."""
    pieces = 1 if whole else piece_count(len(images), chunk_size(images))
    yield from zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True)


def chunk_size(images: Tensor) -> int:
    """About 20 images of 32 x 32 on a CPU: 10 MB of first-layer activations at width 128. On a GPU 2,048."""
    if images.device.type != "cpu":
        return max(16, GROUP_PIXELS // (images.shape[-1] * images.shape[-2]))
    return max(4, 20 * 1024 // (images.shape[-1] * images.shape[-2]))


def group_size(images: Tensor) -> int:
    """How many images go through a network at once where classes are computed together, on a GPU; 0 on a CPU: class by class."""
    return 0 if images.device.type == "cpu" else chunk_size(images)


def groups(positions: Sequence[int], counts: Sequence[int], size: int) -> list[list[int]]:
    """Split classes at ``positions``, of ``counts`` images, into groups of at most ``size`` images, or of one class. Nearly equal ones,
    because each shape is compiled separately."""
    each = max(1, size // max(1, *counts)) if counts else 1
    parts = -(-len(positions) // each)
    return [list(positions[len(positions) * k // parts : len(positions) * (k + 1) // parts]) for k in range(parts)]


def augmented(augment: Augment | None, images: Tensor, positions: Sequence[int], counts: Sequence[int]) -> Tensor:
    """Images of the classes at ``positions``, ``counts`` of each, one after the other, each class augmented as ``augment`` does.

    An ``augment`` with a method ``many`` (images, positions, counts) is called once where classes are computed together.
    """
    if augment is None:
        return images
    if len(positions) > 1 and group_size(images) and callable(many := getattr(augment, "many", None)):
        result: Tensor = many(images, positions, counts)
        return result
    parts = [augment(part, place) for part, place in zip(images.split(list(counts)), positions, strict=True)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def segment_means(rows: Tensor, counts: Sequence[int]) -> Tensor:
    """(K, D): means of the first ``counts[0]`` rows, of the next ``counts[1]``, and so on; rows (N, D)."""
    if len(set(counts)) == 1:
        return rows.reshape(len(counts), counts[0], -1).mean(1)
    if rows.device.type == "cpu":
        return torch.stack([part.mean(0) for part in rows.split(list(counts))])
    means: Tensor = _averages(tuple(counts), rows.dtype, rows.device) @ rows
    return means


@functools.lru_cache(maxsize=64)
def _averages(counts: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """(K, N): one over a class's count where an image is of the class."""
    sizes = torch.tensor(counts)
    return sent(torch.block_diag(*(torch.full((1, n), 1 / n, dtype=torch.float64) for n in sizes.tolist())).to(dtype), device)


def piece_count(count: int, size: int) -> int:
    """Number of pieces of about ``size`` for ``count`` images; equal ones if possible, because each shape is compiled separately."""
    nearest = max(1, round(count / size))
    even = [pieces for pieces in range(1, count + 1) if count % pieces == 0 and 0.6 * size <= count / pieces <= 1.5 * size]
    return min(even, key=lambda pieces: abs(pieces - nearest), default=nearest)


def chunked_sum(embed: Embed, images: Tensor) -> Tensor:
    """Sum of ``embed`` over one class's batch (D,), computed in pieces (see `chunk_size`)."""
    total: Tensor | None = None
    pieces = images.tensor_split(piece_count(len(images), chunk_size(images)))
    if isinstance(embed, Staged):
        features = torch.cat([embed.network(part) for part in pieces])
        embed, pieces = embed.after, features.split(ROWS)
    for part in pieces:
        features = embed(part).sum(0)
        total = features if total is None else total + features
    assert total is not None
    return total


def class_means(embed: Embed, images: Tensor, counts: Sequence[int]) -> Tensor:
    """(K, D): mean of ``embed`` over each class's images, ``counts`` of them one after the other; one class in pieces (`chunk_size`)."""
    if len(counts) == 1:
        return (chunked_sum(embed, images) / len(images))[None]
    return segment_means(embed(images), counts)
