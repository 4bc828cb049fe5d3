"""Losses between a learner's outputs and soft labels, and where these come from: stored labels, or a teacher's outputs.

A loss prepares labels once (a softmax, a length of 1) and then compares; prepared labels of two mixed images are mixed with their shares.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.batches import chunk_size
from distill.errors import InputError
from distill.labels import DEFAULT_KIND
from distill.mixing import Mixed
from distill.teachers import Teacher

SMOOTHING, REFINEMENT = 0.1, 0.1  # of GIFT's hard labels, and their weight
LABELLED_AT_ONCE = 1024  # images


@dataclass(frozen=True)
class SoftLoss:
    """A loss.

    Attributes:
        prepare: (labels (n, K), their kind, temperature) to the labels that are compared (n, K).
        compare: (outputs (n, K), prepared labels (n, K), shares of the hard labels (n, K), temperature) to the sum of the images' losses.
        kinds: kinds of stored labels that it takes (`distill.labels.LABEL_KINDS`).
    """

    prepare: Callable[[Tensor, str, float], Tensor]
    compare: Callable[[Tensor, Tensor, Tensor, float], Tensor]
    kinds: tuple[str, ...] = ("probabilities", "logits")


def softened(labels: Tensor, kind: str, temperature: float) -> Tensor:
    """Probabilities (n, K) at a temperature: softmax(labels / T) of logits, and p^(1/T) over its sum of probabilities p."""
    if kind == "logits":
        return (labels / temperature).softmax(1)
    powers = labels.clamp_min(0).pow(1 / temperature)
    return powers / powers.sum(1, keepdim=True)


def _unchanged(labels: Tensor, kind: str, temperature: float) -> Tensor:
    return labels


def _unit(labels: Tensor, kind: str, temperature: float) -> Tensor:
    return F.normalize(labels, dim=1)


def _cross_entropy(outputs: Tensor, labels: Tensor, hard: Tensor, temperature: float) -> Tensor:
    return F.cross_entropy(outputs, labels, reduction="sum")


def _divergence(outputs: Tensor, labels: Tensor, hard: Tensor, temperature: float) -> Tensor:
    return temperature**2 * F.kl_div((outputs / temperature).log_softmax(1), labels, reduction="sum")


def _squares(outputs: Tensor, labels: Tensor, hard: Tensor, temperature: float) -> Tensor:
    return (outputs - labels).square().mean(1).sum()


def _cosine(outputs: Tensor, labels: Tensor, hard: Tensor, temperature: float) -> Tensor:
    return (1 - F.cosine_similarity(outputs, labels, dim=1)).sum()


def _gift(outputs: Tensor, labels: Tensor, hard: Tensor, temperature: float) -> Tensor:
    smooth = (1 - SMOOTHING) * hard + SMOOTHING / hard.shape[1]
    return _cosine(outputs, labels + REFINEMENT * F.normalize(smooth, dim=1), hard, temperature)


ANY_KIND = ("probabilities", "logits", "scores")
SOFT_LOSSES = {
    # Cross-entropy against probabilities; temperature 1 (DATM's SoftCrossEntropy).
    "ce": SoftLoss(lambda labels, kind, temperature: softened(labels, kind, 1.0), _cross_entropy),
    # T^2 times the divergence of the probabilities at temperature T (Hinton, Vinyals and Dean, 2015); RDED takes T 20, SRe2L 30 on CIFAR.
    "kl": SoftLoss(softened, _divergence),
    # Mean over classes of the squared difference of the outputs (G-VBSM and EDC, with a hard_weight of 0.15 and 0.025).
    "mse": SoftLoss(_unchanged, _squares, ANY_KIND),
    # One minus the cosine between outputs and labels.
    "cosine": SoftLoss(_unit, _cosine, ANY_KIND),
    # The same with labels refined by smoothed hard ones, both of length 1 (GIFT, ICLR 2025; losses_benchmark.py of the authors' code).
    "gift": SoftLoss(_unit, _gift, ANY_KIND),
}


def outputs_of(teacher: nn.Module, images: Tensor) -> Tensor:
    """(n, K): a teacher's outputs, without gradients, in pieces that fit the memory."""
    with torch.no_grad():
        return torch.cat([teacher(part) for part in images.split(chunk_size(images))])


@dataclass(frozen=True, eq=False)
class Goal:
    """What a learner's outputs are compared with.

    Attributes:
        loss: a name in `SOFT_LOSSES`.
        temperature: of "kl".
        hard_weight: weight of the cross-entropy with the hard labels, which is added.
        classes: number of classes K.
        kind: kind of the labels that are given without a teacher.
        teacher: labels every view; None: the given labels are used.
        stored: (N, K) a teacher's outputs on each image as it is stored, in place of ``teacher`` and the given labels.
    """

    loss: str
    temperature: float
    hard_weight: float
    classes: int
    kind: str = DEFAULT_KIND
    teacher: nn.Module | None = None
    stored: Tensor | None = None

    def __post_init__(self) -> None:
        kinds = SOFT_LOSSES[self.loss].kinds
        if self.teacher is None and self.stored is None and self.kind not in kinds:
            raise InputError(f"loss {self.loss!r} does not take soft labels of the kind {self.kind!r}; allowed: {', '.join(kinds)}.")

    def prepared(self, labels: Tensor) -> Tensor:
        """Given soft labels (n, K) as they are compared."""
        return SOFT_LOSSES[self.loss].prepare(labels, self.kind, self.temperature)

    def targets(self, views: Tensor, labels: Tensor, rows: Tensor, both: Mixed | None) -> tuple[Tensor, Tensor]:
        """The prepared labels (n, K) of a batch, and the shares of its hard labels (n, K).

        Args:
            views: the images (n, C, H, W) that the learner sees, augmented and mixed.
            labels: class numbers (n,) or soft labels (n, K) of the batch before mixing.
            rows: positions (n,) of its images in the training set.
            both: how it was mixed, or None.
        """
        hard = labels.argmax(1) if labels.is_floating_point() else labels
        shares = F.one_hot(hard, self.classes).to(views.dtype)
        prepare = SOFT_LOSSES[self.loss].prepare
        if self.teacher is not None:  # it sees the mixed views
            prepared = prepare(outputs_of(self.teacher, views), "logits", self.temperature)
            return prepared, shares if both is None else both.share * shares + (1 - both.share) * shares[both.other]
        if self.stored is not None:
            prepared = prepare(self.stored[rows], "logits", self.temperature)
        else:
            prepared = self.prepared(labels if labels.is_floating_point() else shares)
        if both is None:
            return prepared, shares
        mixed = (both.share * part + (1 - both.share) * part[both.other] for part in (prepared, shares))
        return next(mixed), next(mixed)

    def __call__(self, outputs: Tensor, prepared: Tensor, shares: Tensor) -> Tensor:
        """The sum of the losses of outputs (n, K), for the `targets` of the same images."""
        found = SOFT_LOSSES[self.loss].compare(outputs, prepared, shares, self.temperature)
        return found + self.hard_weight * F.cross_entropy(outputs, shares, reduction="sum") if self.hard_weight else found


class Asked(Protocol):
    """The fields of a `distill.train.Recipe` that are read here."""

    @property
    def loss(self) -> str | None: ...
    @property
    def temperature(self) -> float | None: ...
    @property
    def hard_weight(self) -> float | None: ...
    @property
    def teacher(self) -> Teacher | None: ...


def goal_of(
    recipe: Asked,
    teacher: nn.Module | None,
    kind: str,
    classes: int,
    images: Iterable[Tensor],
    where: torch.device,
    *,
    stored: bool = False,
) -> Goal | None:
    """What a recipe compares outputs with; None: the labels, with the loss of their kind.

    Args:
        recipe: the recipe.
        teacher: the trained network of its teacher, or a user's own.
        kind: kind of the images' labels.
        classes: number of classes.
        images: all training images in order, in parts; read where each is labelled once.
        where: the device of the training.
        stored: the set has stored views, whose labels are logits, and no teacher is used.

    Raises:
        InputError: the recipe has a teacher and no network is given, or its loss does not take these labels.
    """
    if recipe.teacher is not None and teacher is None:
        raise InputError(
            "the recipe has a teacher, whose network is not trained here; `evaluate` and condense studies train it, in Python give "
            "teacher=distill.teachers.teacher_network(data, recipe.teacher)."
        )
    if teacher is None and recipe.loss is None and not stored:
        return None
    outputs = None
    if teacher is not None:
        teacher = teacher.to(where)
        if recipe.teacher is not None and recipe.teacher.labels == "images":
            outputs, teacher = torch.cat([outputs_of(teacher, part) for part in images]), None
    kind = "logits" if stored else kind
    return Goal(recipe.loss or "ce", recipe.temperature or 1.0, recipe.hard_weight or 0.0, classes, kind, teacher, outputs)


def in_words(recipe: Asked) -> str:
    """Loss and teacher of a recipe for its description, beginning with a comma; empty where it has neither."""
    at = f" at temperature {recipe.temperature:g}" if recipe.temperature else ""
    hard = f" + {recipe.hard_weight:g} of hard labels" if recipe.hard_weight else ""
    loss = f", loss {recipe.loss}{at}{hard}" if recipe.loss else hard
    return loss + (f", teacher {recipe.teacher}" if recipe.teacher else "")
