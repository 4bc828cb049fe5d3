"""Kinds of soft labels, and the loss for each."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from distill.errors import InputError, type_and_shape, unknown_name

DEFAULT_KIND = "probabilities"
TOLERANCE = 1e-3  # of a row's sum; float16 labels that a client sends are rounded by half of it


@dataclass(frozen=True)
class LabelKind:
    """A kind of soft labels (N, K).

    Attributes:
        loss: (outputs (n, K), labels (n, K)) to the sum of the images' losses.
        fault: labels to a description of why they cannot be of this kind, or None.
    """

    loss: Callable[[Tensor, Tensor], Tensor]
    fault: Callable[[Tensor], str | None]


def _cross_entropy(outputs: Tensor, labels: Tensor) -> Tensor:
    """Also for class numbers (n,)."""
    return F.cross_entropy(outputs, labels, reduction="sum")


def _to_softmax(outputs: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(outputs, labels.softmax(1), reduction="sum")


def _squares(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - labels).square().mean(1).sum()


def _no_probabilities(labels: Tensor) -> str | None:
    sums = labels.sum(1, dtype=torch.float64)
    worst = sums[(sums - 1).abs().argmax()]
    if bool((labels < 0).any()) or abs(float(worst) - 1) > TOLERANCE:
        return f"their lowest value is {float(labels.min()):.3g}, and one image's add up to {float(worst):.4g}"
    return None


def _no_weights(labels: Tensor) -> str | None:
    mean = float(labels.sum(1, dtype=torch.float64).mean())
    if bool((labels < 0).any()) or abs(mean - 1) > TOLERANCE:
        return f"their lowest value is {float(labels.min()):.3g}, and an image's add up to {mean:.4g} in the mean"
    return None


def _anything(labels: Tensor) -> str | None:
    return None


LABEL_KINDS = {
    "probabilities": LabelKind(_cross_entropy, _no_probabilities),
    # Cross-entropy against their softmax, as DATM's SoftCrossEntropy has it (NUS-HPC-AI-Lab/DATM, distill/evaluation.py).
    "logits": LabelKind(_to_softmax, _anything),
    # Mean squared error, as kernel methods learn them (KIP, FRePo, RCIG).
    "scores": LabelKind(_squares, _anything),
    # Probabilities times a weight for each image, 1 in the mean: a server's union of clients of different sizes.
    "weighted": LabelKind(_cross_entropy, _no_weights),
}


def check_labels(labels: Tensor, count: int, classes: int) -> None:
    """Raises `InputError` unless these are (count,) class numbers int64 in range, or (count, classes) float32."""
    if labels.dtype == torch.int64:
        if labels.shape != (count,):
            raise InputError(f"labels are {type_and_shape(labels)}; allowed: int64 of shape ({count},) for {count} images.")
        if bool((labels < 0).any()) or bool((labels >= classes).any()):
            raise InputError(f"labels lie in {int(labels.min())}..{int(labels.max())}; allowed: 0..{classes - 1}.")
    elif labels.dtype != torch.float32 or labels.shape != (count, classes):
        raise InputError(f"labels are {type_and_shape(labels)}; allowed: int64 (N,) or float32 (N, {classes}).")


def check_kind(labels: Tensor, kind: str) -> None:
    """Raises `InputError` unless ``kind`` is known and the labels, (N,) class numbers or (N, K) soft labels, can be of it."""
    if kind not in LABEL_KINDS:
        raise unknown_name("label_kind", kind, LABEL_KINDS)
    if not labels.is_floating_point():
        if kind != DEFAULT_KIND:
            raise InputError(f"label_kind is {kind!r} but labels are class numbers; give soft labels, or leave it out.")
    elif fault := LABEL_KINDS[kind].fault(labels):
        advice = "logits? apply softmax, or name label_kind." if kind == DEFAULT_KIND else "allowed: numbers of at least 0."
        raise InputError(f"soft labels are not {kind}: {fault}; {advice}")
