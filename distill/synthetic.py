"""The images that a method optimises: initialisation, update steps, and the resulting set."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from distill.condensed import CondensedSet, Provenance
from distill.decode import Decode, as_text
from distill.devices import sent
from distill.errors import InputError, clipped
from distill.labels import DEFAULT_KIND
from distill.shared_config import SHARED
from distill.statistics import RealStatistics

Initial = Literal["real", "noise", "herding", "kcenter", "kmeans", "class_mean"]


class Synthetic:
    """Learnable images with the state of their optimiser: SGD with momentum (every method's published one) or Adam.

    A method sees ``images`` (N, C, H, W), which are decoded, and ``labels`` (N,) or (N, K); images of one class lie next to each other,
    classes in rising order. `descend` pulls gradients of these images back to the stored rows.
    """

    def __init__(self, initial: CondensedSet, config: object = None, total_steps: int = 0) -> None:
        """Own copies of a set's rows, sorted by class, encoded as the config's ``decode`` says.

        ``config`` may have the fields of `distill.shared_config.SharedConfig`; ``total_steps`` is for its schedule. Raises `InputError`
        for soft labels that are not probabilities.
        """
        if initial.label_kind != DEFAULT_KIND:
            raise InputError(
                f"the initial set's labels are {initial.label_kind}; allowed: class numbers or probabilities (of logits, the softmax)."
            )
        settings = {**SHARED, **{name: getattr(config, name) for name in SHARED if hasattr(config, name)}}
        self.adam, self.cosine = settings["optimizer"] == "adam", settings["schedule"] == "cosine"
        self.clamp, self.per_class_updates, self.total_steps = settings["clamp"], settings["updates"] == "per_class", total_steps
        order = torch.argsort(initial.hard_labels, stable=True)
        self.decode, self.spec = initial.decode, initial.spec
        self.stored = initial.images[order].detach().clone()
        self.velocity = torch.zeros_like(self.stored)
        self.squares = torch.zeros_like(self.stored) if self.adam else None
        self.updates, self.counts_updates = (
            0,
            self.adam or self.cosine or settings["calibration_every"] > 1 or settings["real_batches"] != "random",
        )
        self.template = dataclasses.replace(initial, quantisation=None, views=None)
        self.stored_labels = initial.labels[order].clone()
        copies = 1 if self.decode is None else self.decode.copies
        self.labels = self.stored_labels if copies == 1 else self.stored_labels.repeat_interleave(copies, 0)
        hard = self.labels if self.labels.dtype == torch.int64 else self.labels.argmax(1)
        self.classes, self.counts = (t.tolist() for t in hard.unique(sorted=True, return_counts=True))
        self.copies = copies
        self._after: Tensor | None = None  # for each image, how many classes come after its own
        if self.clamp and (initial.whitening is not None or (self.decode is not None and not self.decode.pixels)):
            kind = "whitened images" if initial.whitening is not None else f"{as_text(self.decode)} rows"
            raise InputError(f"clamp keeps pixels in the data's range, and {kind} are no pixels; leave it out.")
        self.range = self._range() if self.clamp else None

    @staticmethod
    def start(initial: CondensedSet) -> "Synthetic":
        """Own copies of a set's rows with plain SGD: for a method of your own that has none of the shared settings."""
        return Synthetic(initial)

    def _range(self) -> tuple[Tensor, Tensor]:
        mean, std = (torch.tensor(values, device=self.stored.device).view(1, -1, 1, 1) for values in (self.spec.mean, self.spec.std))
        return (0 - mean) / std, (1 - mean) / std

    @property
    def images(self) -> Tensor:
        """(N, C, H, W): the decoded images, without gradients."""
        return self.stored if self.decode is None else self.decode.decoded(self.stored, self.spec)

    def per_class(self) -> list[tuple[Tensor, Tensor]]:
        """(images, labels) of each class, the images as leaves that require gradients, which go to `descend` in this order."""
        images = self.images.detach().clone().split(self.counts)
        return [(part.requires_grad_(True), target) for part, target in zip(images, self.labels.split(self.counts), strict=True)]

    def descend(self, gradients: list[Tensor], lr: float, momentum: float) -> None:
        """One update of the stored rows, in place, from gradients of the decoded images (lists by class, or one for all)."""
        gradient = self._pulled_back(torch.cat(gradients))
        if self.cosine:
            lr = lr * 0.5 * (1 + math.cos(math.pi * min(1.0, self.updates / max(1, self.total_steps))))
        self.updates += 1
        if self.squares is not None:
            self.velocity.mul_(0.9).add_(gradient, alpha=0.1)
            self.squares.mul_(0.999).addcmul_(gradient, gradient, value=0.001)
            size = (self.squares / (1 - 0.999**self.updates)).sqrt_().add_(1e-8)
            self.stored.sub_(self.velocity / size * (lr / (1 - 0.9**self.updates)))
        elif self.per_class_updates and self.stored.device.type != "cpu":
            self._descend_by_class(gradient, lr, momentum)
        elif self.per_class_updates:
            start = 0
            for count in self.counts:
                rows = slice(start, start + count // self.copies)
                self.velocity.mul_(momentum)
                self.velocity[rows] += gradient[rows]
                self.stored.sub_(self.velocity, alpha=lr)
                start = rows.stop
        else:
            self.velocity.mul_(momentum).add_(gradient)
            self.stored.sub_(self.velocity, alpha=lr)
        if self.range is not None:
            low, high = self.range
            self.stored.copy_(torch.minimum(torch.maximum(self.stored, low), high))

    def _descend_by_class(self, gradient: Tensor, lr: float, momentum: float) -> None:
        """As many updates as classes, in each of which one class has a gradient and all images move on, in closed form: a GPU's few
        operations for the loop of `descend`.

        With momentum m, a velocity decays to m^K of it and its image moves by m + ... + m^K of it; the gradient of class c of K decays to
        m^(K - 1 - c) and its images move by 1 + ... + m^(K - 1 - c) of it.
        """
        if self._after is None:
            left = torch.arange(len(self.counts) - 1, -1, -1, dtype=torch.float64)
            rows = left.repeat_interleave(torch.tensor(self.counts) // self.copies)
            self._after = sent(rows, self.stored.device).view(-1, *(1,) * (self.stored.ndim - 1))
        kept = momentum**self._after
        moved = (1 - momentum * kept) / (1 - momentum)
        all_of_it = momentum ** len(self.counts)
        self.stored.sub_(gradient * moved.to(gradient.dtype), alpha=lr)
        self.stored.sub_(self.velocity, alpha=lr * momentum * (1 - all_of_it) / (1 - momentum))
        self.velocity.mul_(all_of_it).add_(gradient * kept.to(gradient.dtype))

    def _pulled_back(self, gradient: Tensor) -> Tensor:
        """The gradient of the stored rows from that of the decoded images: the decode's vector-Jacobian product."""
        if self.decode is None:
            return gradient
        stored = self.stored.detach().requires_grad_(True)
        (pulled,) = torch.autograd.grad(self.decode.decoded(stored, self.spec), stored, gradient)
        return pulled

    def to_set(self, augmentation: str | None, lr: float | None = None, labels: Tensor | None = None) -> CondensedSet:
        """A detached snapshot, in the stored form; ``labels`` replace the initial ones where a method learns them."""
        images, labels = self.stored.detach().clone(), (self.stored_labels if labels is None else labels).clone()
        return dataclasses.replace(self.template, images=images, labels=labels, augmentation=augmentation, lr=lr)

    def state(self) -> dict[str, Tensor]:
        """Stored rows and the optimiser's state, for a checkpoint."""
        state = {"images": self.stored, "velocity": self.velocity}
        if self.squares is not None:
            state["squares"] = self.squares
        return {**state, "updates": torch.tensor(self.updates)} if self.counts_updates else state

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore a checkpoint's tensors in place."""
        self.stored.copy_(state["images"])
        self.velocity.copy_(state["velocity"])
        if self.squares is not None:
            self.squares.copy_(state["squares"])
        if "updates" in state:
            self.updates = int(state["updates"])


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


def initial_set(
    statistics: RealStatistics, kind: str | CondensedSet, ipc: int | Sequence[int], generator: torch.Generator, decode: Decode | None = None
) -> CondensedSet:
    """The images to start from: "real", "noise" (standard normal), a coreset's name, or a given set.

    ``ipc`` is one number for all classes, or counts by class (K,).
    "real" draws without replacement; a class with fewer images gives all of them and then repeats with a little noise, so
    that the copies can part. With ``decode``, ``ipc`` counts stored rows, each of which holds several images; a given set must be stored
    in that form.
    """
    if isinstance(kind, CondensedSet):
        if decode is not None and kind.label_kind == DEFAULT_KIND and kind.decode != decode:
            raise InputError(
                f"the initial set is stored as {as_text(kind.decode)}, and decode is {as_text(decode)}; give one of that form."
            )
        return kind.to(statistics.device)
    spec, device, copies = statistics.spec, statistics.device, 1 if decode is None else decode.copies
    if decode is not None:
        decode.stored_shape(spec)
    ipc = ipc * copies if isinstance(ipc, int) else [count * copies for count in ipc]
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
    if decode is not None:
        images, labels = decode.encoded(images, spec), labels[::copies]
    return CondensedSet(images, labels, spec, provenance=origin, whitening=statistics.whitening, decode=decode)
