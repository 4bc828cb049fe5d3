"""The images that a method optimises: initialisation, update steps, and the resulting set."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from distill.condensed import CondensedSet, Provenance
from distill.errors import InputError, clipped
from distill.labels import DEFAULT_KIND
from distill.statistics import RealStatistics

Initial = Literal["real", "noise", "herding", "kcenter", "kmeans", "class_mean"]


@dataclass
class Synthetic:
    """Learnable images with the momentum of plain SGD (the optimiser of every published method).

    Shapes: images and velocity (N, C, H, W) float32, labels (N,) or (N, K). Images of one class lie together, classes in rising order.
    """

    images: Tensor
    labels: Tensor
    velocity: Tensor
    template: CondensedSet

    @staticmethod
    def start(initial: CondensedSet) -> "Synthetic":
        """Copies of a set's images, sorted by class. Raises `InputError` for soft labels that are not probabilities."""
        if initial.label_kind != DEFAULT_KIND:
            raise InputError(
                f"the initial set's labels are {initial.label_kind}; allowed: class numbers or probabilities (of logits, the softmax)."
            )
        order = torch.argsort(initial.hard_labels, stable=True)
        images = initial.images[order].detach().clone()
        return Synthetic(images, initial.labels[order].clone(), torch.zeros_like(images), dataclasses.replace(initial, quantisation=None))

    def __post_init__(self) -> None:
        hard = self.labels if self.labels.dtype == torch.int64 else self.labels.argmax(1)
        self.classes, counts = (t.tolist() for t in hard.unique(sorted=True, return_counts=True))
        self.counts: list[int] = counts

    def per_class(self) -> list[tuple[Tensor, Tensor]]:
        """(images, labels) of each class, the images as leaves that require gradients, which go to `descend` in this order."""
        images = self.images.detach().split(self.counts)
        return [(part.clone().requires_grad_(True), target) for part, target in zip(images, self.labels.split(self.counts), strict=True)]

    def descend(self, gradients: list[Tensor], lr: float, momentum: float) -> None:
        """One step of SGD with momentum, in place."""
        self.velocity.mul_(momentum).add_(torch.cat(gradients))
        self.images.sub_(self.velocity, alpha=lr)

    def to_set(self, augmentation: str | None, lr: float | None = None, labels: Tensor | None = None) -> CondensedSet:
        """A detached snapshot; ``labels`` replace the initial ones where a method learns them."""
        images, labels = self.images.detach().clone(), (self.labels if labels is None else labels).clone()
        return dataclasses.replace(self.template, images=images, labels=labels, augmentation=augmentation, lr=lr)

    def state(self) -> dict[str, Tensor]:
        """Images and velocity, for a checkpoint."""
        return {"images": self.images, "velocity": self.velocity}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore a checkpoint's tensors in place."""
        self.images.copy_(state["images"])
        self.velocity.copy_(state["velocity"])


def check_classes(statistics: RealStatistics, start: CondensedSet) -> None:
    """Raises `InputError` unless the set and the data have the same classes, as matching class by class requires."""
    present = start.hard_labels.unique(sorted=True).tolist()
    if list(statistics.classes) != present:
        raise InputError(
            f"the initial set holds the classes {clipped(present)} and the data {clipped(list(statistics.classes))}; "
            "they must be the same: give another initial set, or take subset(classes) of one of them."
        )
    if (start.whitening is not None or statistics.whitening is not None) and not (
        start.whitening is not None and start.whitening.same_as(statistics.whitening)
    ):
        raise InputError(
            "the initial set and the data are whitened differently; give data.whitened(initial.whitening), or no whitening at all."
        )


def check_count(counts: Sequence[int], ipc: int) -> None:
    """Raises `InputError` if ``ipc`` is more than the largest class (of ``counts``) has."""
    most = max(counts, default=0)
    if ipc > most:
        raise InputError(
            f"ipc {ipc} asks for more images a class than any class of the data has ({most} at most); give a smaller ipc, "
            "or confirm it with more_images_than_data (at the command line --more-images-than-data)."
        )


def initial_set(statistics: RealStatistics, kind: str | CondensedSet, ipc: int | Sequence[int], generator: torch.Generator) -> CondensedSet:
    """The images to start from: "real", "noise" (standard normal), a coreset's name, or a given set.

    ``ipc`` is one number for all classes, or counts by class (K,).
    "real" draws without replacement; a class with fewer images gives all of them and then repeats with a little noise, so
    that the copies can part.
    """
    if isinstance(kind, CondensedSet):
        return kind.to(statistics.device)
    spec, device = statistics.spec, statistics.device
    counts = [ipc if isinstance(ipc, int) else ipc[label] for label in statistics.classes]
    labels = torch.tensor(statistics.classes, device=device).repeat_interleave(torch.tensor(counts, device=device))
    shape = (len(labels), *spec.shape)
    images = torch.randn(shape, generator=generator, device=generator.device).to(device)
    if kind != "noise":
        real, real_labels = statistics.initial_images("random" if kind == "real" else kind, ipc, generator)
        for label, count in zip(statistics.classes, counts, strict=True):
            source, places = real[real_labels == label], (labels == label).nonzero().squeeze(1)
            repeats = torch.arange(count, device=device)
            copied = source[repeats % len(source)]
            copied[len(source) :] += 0.1 * images[places[len(source) :]]
            images[places] = copied
    origin = Provenance(f"initial:{kind}", fingerprint=statistics.fingerprint)
    return CondensedSet(images, labels, spec, provenance=origin, whitening=statistics.whitening)
