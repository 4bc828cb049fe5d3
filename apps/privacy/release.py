"""One release: clipped rows of the sampled examples, summed per class, plus Gaussian noise. Nothing else is computed from private data."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, TypedDict

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
    """Number, sampling rate and noise of the releases of one kind, fixed before the first one from public numbers only."""

    releases: int
    sample_rate: float
    noise_multiplier: float


class Shape(TypedDict):
    """What a release has rows of, see `noised_sums`."""

    length: int
    slots: int
    together: bool


def poisson_mask(labels: Tensor, rate: float, entropy: Entropy) -> Tensor:
    """A Poisson sample, bool (N,): each example is drawn independently with probability ``rate``."""
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
    together: bool = False,
) -> Tensor:
    """Sum the clipped rows of the sampled examples per class and slot, and add Gaussian noise.

    An example has one label and one slot, so it changes the result by at most ``norm``: one step of the accountant. Without a sampled
    example the result is noise only. Sums are float64, so that the order of chunks does not show.

    Args:
        data: the private data.
        classes: labels (K) that are released.
        mask: bool (N,), the sampled examples.
        noise: standard deviation of the noise over ``norm``.
        norm: Euclidean length that a row is clipped to.
        rows: gives the rows of one class, see `Rows`.
        length: D, length of a row.
        slots: number of slots per class.
        entropy: of the noise.
        together: release one sum over all classes instead, with one class's noise.

    Returns:
        (K, slots, D) float32; with ``together`` (1, slots, D).
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
    sums = sums.sum(0, keepdim=True) if together else sums
    drawn = torch.from_numpy(entropy.normal(tuple(sums.shape))).to(data.device)
    return (sums + noise * norm * drawn).float()


def question(kind: str, seen: Sequence[Tensor]) -> str:
    """The key of a question: a hash of its answers to public images, so that the same function of an image has the same key."""
    digest = hashlib.sha256(kind.encode())
    for tensor in seen:
        digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).data)
    return digest.hexdigest()


def refused(what: str, instead: str) -> InputError:
    """The error for something without a privacy guarantee; ``instead`` names an alternative."""
    return InputError(f"refused, because it has no privacy guarantee: {what}; {instead}.")


def check_clip(clip: float | None, experts_clip: float, *, centred: bool) -> None:
    """`InputError` for a norm that clips nothing to a length."""
    if clip is not None and not (0 < clip < float("inf")):
        raise InputError(f"clip is {clip}; allowed: a positive norm, or None.")
    if not 0 < experts_clip < float("inf"):
        raise InputError(f"experts_clip is {experts_clip}; allowed: a positive norm of an example's gradient.")
    if centred and clip is None:
        raise InputError("centred features need clip, the length that a difference is cut to; 0.5 suits features of length 1.")


def clip_of(clip: float | None, known: float | None, probed: Tensor, *, centred: bool) -> float:
    """The norm that rows are clipped to: ``clip``, or without one the length that a method knows of them, or that of public rows.

    A method's word (``known``) only chooses the norm: rows are clipped to it all the same. Rows of one length would all be shortened by a
    smaller ``clip``, and a larger one is noise for nothing. Differences (``centred``) have lengths of their own.
    """
    if known is not None and not (isinstance(known, float) and 0 < known < float("inf")):
        raise InputError(f"the method states {str(known)[:40]} as the length of its rows; allowed: a positive number, or None.")
    if known is None or centred:
        return clip or float(probed.norm(dim=1).max())
    if clip is not None and clip < known:
        raise InputError(
            f"every row of this method has length {known:g}, which clip {clip:g} would shorten; leave clip out, or release differences "
            "from a start (centred), which are shorter."
        )
    return known


def check_independent(view: Callable[[Tensor], Tensor], public: Tensor) -> None:
    """`InputError` if the features of an image depend on its batch: the contribution of an example to a sum would not be bounded."""
    fewer, all_of_them = (torch.cat(list(feature_rows(view, part)))[0] for part in (public[:-1], public))
    if not bool((fewer - all_of_them).norm() <= 1e-2 * all_of_them.norm() + 1e-6):
        raise refused("features of an image that change with its batch (BatchNorm, dropout)", "use a network without them")
