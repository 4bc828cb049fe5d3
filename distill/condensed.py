"""`CondensedSet`: the value that all packages exchange, and that parties exchange as a file (its format is in set_file.py)."""

import base64
import dataclasses
import html
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from distill import quantise, set_file
from distill.augment import strategy
from distill.decode import Decode, check_space
from distill.errors import InputError, type_and_shape
from distill.joining import joined_labels, joined_views
from distill.labels import DEFAULT_KIND, check_kind, check_labels
from distill.randomness import generator
from distill.records import write_whole
from distill.set_file import MAX_FILE_BYTES, check_size, later_facts, later_parts, later_tensors, loadable, parse
from distill.set_file import Provenance as Provenance
from distill.set_parts import StartWeights, StepSizes
from distill.spec import DataSpec
from distill.views import Views
from distill.whitening import Whitening


@dataclass(frozen=True, eq=False)
class CondensedSet:
    """A small set of images that stands for a data set. Checked on construction: raises `InputError`.

    Images, labels, length, ``ipc`` and ``nbytes`` are of what is stored; `decoded` is the set of the images that a learner sees.

    Attributes:
        images: (N, C, H, W) float32, normalised; with ``decode`` stored rows (N, *shape of that kind).
        labels: (N,) int64, or (N, K) float32 soft labels of K classes.
        spec: shape, class names and normalisation of the data.
        lr: learned step size for training on the set (MTT), or None.
        augmentation: strategy for training on the set (`distill.augment.strategy`), or None.
        provenance: method, settings, seed, versions and privacy statement.
        quantisation: (low, step) per channel if the images lie on a grid of 256 values: the file then holds uint8.
        whitening: ZCA transform of the images, or None if they are normalised by the spec's mean and std.
        label_kind: what soft labels are (`distill.labels.LABEL_KINDS`), which decides the loss: "probabilities", "logits" (cross-entropy
            against their softmax), "scores" (mean squared error), "weighted" (probabilities times a weight for each image).
        step_sizes: one learned step size per step, in place of ``lr`` (`distill.set_parts`; not used in training yet).
        start_weights: weights to start training from (`distill.set_parts`; not used in training yet).
        decode: how stored rows become images (`distill.decode`), or None if the images are stored.
        views: augmented views with a teacher's labels (`distill.views`), which a learner repeats in place of ``labels``, or None.
    """

    images: Tensor
    labels: Tensor
    spec: DataSpec
    lr: float | None = None
    augmentation: str | None = None
    provenance: Provenance = field(default_factory=lambda: Provenance("given"))
    quantisation: quantise.Grid | None = None
    whitening: Whitening | None = None
    label_kind: str = "probabilities"
    step_sizes: StepSizes | None = None
    start_weights: StartWeights | None = None
    decode: Decode | None = None
    views: Views | None = None

    def __post_init__(self) -> None:
        images, labels, classes = self.images, self.labels, self.spec.num_classes
        shape = self.spec.shape if self.decode is None else self.decode.stored_shape(self.spec)
        if images.dtype != torch.float32 or tuple(images.shape[1:]) != shape or images.ndim == 0 or len(images) == 0:
            expected = ", ".join(map(str, shape))
            raise InputError(f"images are {type_and_shape(images)}; allowed: float32 of shape (N, {expected}) with N at least 1.")
        check_labels(labels, len(images), classes)
        for name, tensor in (("images", images), ("labels", labels)):
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"{name} hold values that are not finite; allowed: finite numbers only.")
        check_kind(labels, self.label_kind)
        if self.lr is not None and not (isinstance(self.lr, float) and math.isfinite(self.lr) and self.lr > 0):
            raise InputError(f"lr is {self.lr!r}; allowed: a positive finite float, or None.")
        if self.augmentation is not None:
            strategy(self.augmentation)
        if self.quantisation is not None:
            good = len(self.quantisation) == self.spec.channels
            if not (good and all(math.isfinite(low) and math.isfinite(step) and step > 0 for low, step in self.quantisation)):
                raise InputError(f"quantisation is {str(self.quantisation)[:80]}; allowed: a finite low and a positive step per channel.")
        if self.step_sizes is not None:
            self.step_sizes.check(self._decoded)
        if self.views is not None:
            self.views.check(self._decoded, classes, self.augmentation)
        if self.decode is not None:
            check_space(self.decode, self.spec, quantised=self.quantisation is not None, whitened=self.whitening is not None)
        if self.whitening is not None and self.whitening.mean.numel() != math.prod(self.spec.shape):
            size = self.whitening.mean.numel()
            raise InputError(f"whitening is for images of {size} values; allowed: {math.prod(self.spec.shape)}, as these have.")

    # What is in it

    def __repr__(self) -> str:
        """One line: ``CondensedSet(10 images 1x16x16 of 10 classes of 'digits' by dm, class labels)``."""
        labels = "class labels" if self.labels.ndim == 1 else f"soft labels ({self.label_kind})"
        place = (f", {self.views}" if self.views else "") + ("" if self.images.device.type == "cpu" else f", on {self.images.device}")
        origin = f"{len(self.classes)} classes of {self.spec.name!r} by {self.provenance.method}"
        size = f"{len(self)} image{'' if len(self) == 1 else 's'} {'x'.join(map(str, self.spec.shape))}"
        return f"CondensedSet({size} of {origin}, {labels}{place})"

    def _repr_html_(self) -> str:
        """For Jupyter: that line above the decoded images, at most 50 of each of 100 classes."""
        from distill.image_grids import images_by_class  # matplotlib is slow to import

        drawing = images_by_class(self.pixels(), self.decoded().hard_labels, self.spec.classes, "Images of a condensed set")
        text, data = "<br>".join(map(html.escape, (repr(self), *drawing.legend))), base64.b64encode(drawing.encoded(dpi=60)).decode()
        return f"<p>{text}</p><img alt='{html.escape(drawing.heading)}' src='data:image/png;base64,{data}'>"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def _decoded(self) -> int:
        """Number of decoded images."""
        return len(self.images) * (1 if self.decode is None else self.decode.copies)

    @property
    def hard_labels(self) -> Tensor:
        """(N,) int64: the labels, or the class with the highest soft label."""
        return self.labels if self.labels.dtype == torch.int64 else self.labels.argmax(1)

    @property
    def counts(self) -> tuple[int, ...]:
        """Images per class (K,).

        An image with soft labels belongs to no single class: the images of such a set are counted as if spread evenly over `classes`, so
        that a baseline with these counts takes the same storage.
        """
        if not self.labels.is_floating_point():
            return tuple(torch.bincount(self.labels, minlength=self.spec.num_classes).tolist())
        each, over = divmod(len(self), len(self.classes))
        dealt = {label: each + (place < over) for place, label in enumerate(self.classes)}
        return tuple(dealt.get(label, 0) for label in range(self.spec.num_classes))

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes of the set: those of its labels; for soft labels those in its provenance, else all."""
        if not self.labels.is_floating_point():
            return tuple(self.labels.unique(sorted=True).tolist())
        named = self.provenance.config.get("classes")
        inside = isinstance(named, list | tuple) and named and all(type(n) is int and 0 <= n < self.spec.num_classes for n in named)
        return tuple(sorted(set(named))) if inside and named else tuple(range(self.spec.num_classes))

    @property
    def ipc(self) -> int:
        """Images per class; of an uneven set the largest of `counts`."""
        return max(self.counts)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors as `save` stores them (uint8 images when quantised)."""
        images = self.images.numel() * (1 if self.quantisation else 4) + 8 * len(self.quantisation or ())
        more = sum(tensor.numel() * tensor.element_size() for tensor in later_tensors(self).values())
        return images + self.labels.numel() * self.labels.element_size() + (self.whitening.nbytes if self.whitening else 0) + more

    def pixels(self) -> Tensor:
        """Images (N, C, H, W) of `decoded` in [0, 1], clipped: to look at, not to train on."""
        images = self.decoded().images
        return self.spec.denormalise(images) if self.whitening is None else self.whitening.undo(images).clamp(0.0, 1.0)

    def dataset(self) -> TensorDataset:
        """A `TensorDataset` of decoded, normalised images (C, H, W) with their labels (a number, or K soft labels), without views."""
        plain = self.decoded()
        return TensorDataset(plain.images, plain.labels)

    def loader(self, batch_size: int = 256, seed: int = 0) -> DataLoader[tuple[Tensor, ...]]:
        """A `DataLoader` of batches (images, labels), reshuffled in each epoch from ``seed``."""
        return DataLoader(self.dataset(), batch_size, shuffle=True, generator=generator(seed, "loader"))

    # New sets from this one

    def decoded(self) -> "CondensedSet":
        """The set of the images that a learner sees, in the order of the stored rows; the same set where images are stored plainly."""
        if self.decode is None:
            return self
        images, labels = self.decode.decoded(self.images, self.spec), self.labels.repeat_interleave(self.decode.copies, 0)
        return dataclasses.replace(self, images=images, labels=labels, decode=None, quantisation=None)

    def to(self, device: torch.device | str) -> "CondensedSet":
        """The same set with its tensors on ``device``."""
        return dataclasses.replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            whitening=self.whitening and self.whitening.to(device),
            step_sizes=self.step_sizes and self.step_sizes.to(device),
            start_weights=self.start_weights and self.start_weights.to(device),
            views=self.views and self.views.to(device),
        )

    def subset(self, classes: Iterable[int]) -> "CondensedSet":
        """Only the images of these classes; label numbers and spec are unchanged.

        Raises `InputError` if no image is left, or if step sizes name the images of each step.
        """
        if self.step_sizes is not None and self.step_sizes.batches is not None:
            raise InputError("subset: step_sizes name the images of each step; leave them out: dataclasses.replace(set, step_sizes=None).")
        chosen = sorted(set(classes))
        keep = torch.isin(self.hard_labels, torch.tensor(chosen, dtype=torch.int64, device=self.labels.device))
        if not bool(keep.any()):
            present = [c for c, count in enumerate(self.counts) if count]
            raise InputError(f"subset of classes {chosen} is empty; allowed: some of {present}.")
        labels = self.labels[keep]
        if self.label_kind == "weighted" and float(labels.sum()) > 0:
            labels = labels / labels.sum(1).mean()  # 1 in the mean again
        views = self.views and self.views.of(keep.repeat_interleave(self._decoded // len(self)))
        part = dataclasses.replace(self, images=self.images[keep], labels=labels, views=views)
        return part.made_for(label for label in self.classes if label in chosen)

    def made_for(self, classes: Iterable[int]) -> "CondensedSet":
        """The same set; if its labels are soft, its provenance records these classes (see `classes`)."""
        named = sorted(set(classes)) or list(range(self.spec.num_classes))
        if not self.labels.is_floating_point() or tuple(named) == self.classes:
            return self
        origin = dataclasses.replace(self.provenance, config={**self.provenance.config, "classes": named})
        return dataclasses.replace(self, provenance=origin)

    @staticmethod
    def concat(sets: Sequence["CondensedSet"]) -> "CondensedSet":
        """Join sets, in order.

        Shape, classes, normalisation, label kind, step sizes, start weights and how many views are stored must agree (else `InputError`).
        If any set has soft labels, which must then be probabilities, hard labels become one-hot. The provenance lists the parts. Privacy
        statements are not merged: the composition of releases is computed by an accountant.
        """
        if not sets:
            raise InputError("concat was given no sets; allowed: one or more.")
        first, labels = sets[0], joined_labels(sets)
        parts = [{"method": s.provenance.method, "seed": s.provenance.seed, "dp": s.provenance.dp} for s in sets]
        joined = CondensedSet(
            images=torch.cat([s.images for s in sets]),
            labels=labels,
            spec=first.spec,
            lr=first.lr if len({s.lr for s in sets}) == 1 else None,
            augmentation=first.augmentation if len({s.augmentation for s in sets}) == 1 else None,
            provenance=Provenance("union", {"parts": parts}, seconds=sum(s.provenance.seconds for s in sets)),
            whitening=first.whitening,
            label_kind=first.label_kind,
            step_sizes=first.step_sizes,
            start_weights=first.start_weights,
            decode=first.decode,
            views=joined_views(sets),
        )
        return joined.made_for(label for part in sets for label in part.classes)

    def quantised(self) -> "CondensedSet":
        """The same set with each channel rounded to 256 evenly spaced values: its file holds uint8, a quarter of the bytes.

        Raises `InputError` if stored rows are no pixels.
        """
        if self.decode is not None and not self.decode.pixels:
            raise InputError(f"quantised() is for pixels, and this set stores {self.decode.kind} rows; take decoded() first.")
        grid = quantise.pairs(quantise.grid_of(self.images))
        images = quantise.decode(quantise.encode(self.images, grid), grid)
        return dataclasses.replace(self, images=images, quantisation=grid)

    # The file

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (no pickle), completely or not at all. Raises `InputError` for a set too large for `load`."""
        label_values = self.labels.shape[1] if self.labels.ndim == 2 else 1
        check_size(len(self), self.spec, label_values, 1 if self.quantisation else 4)
        write_whole(Path(path), loadable(self.to_bytes()))

    def to_bytes(self) -> bytes:
        """The file's content, in the format of `distill.set_file`."""
        images = quantise.encode(self.images, self.quantisation) if self.quantisation else self.images
        tensors = {"images": images, "labels": self.labels} | later_tensors(self)
        if self.whitening is not None:
            tensors |= {"whitening_mean": self.whitening.mean, "whitening_matrix": self.whitening.matrix}
        header = {
            "lr": self.lr,
            "augmentation": self.augmentation,
            "provenance": dataclasses.asdict(self.provenance),
            "quantisation": self.quantisation,
        } | later_facts(self)
        # Weights that share their storage (tied layers) are stored twice.
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        plain |= {name: plain[name].clone() for name in later_tensors(self)}
        return safetensors.torch.save(plain, {"distill": json.dumps(header, allow_nan=False, sort_keys=True)})

    @staticmethod
    def load(path: str | Path, max_bytes: int | None = None) -> "CondensedSet":
        """Read a file, which is not trusted.

        Args:
            path: the file.
            max_bytes: largest size that is read; None: the largest that `save` writes.

        Raises:
            InputError: names the file and what is wrong with it.
        """
        path, max_bytes = Path(path), set_file.MAX_OWN_BYTES if max_bytes is None else max_bytes
        data = set_file.read_bytes(path, max_bytes)
        try:
            return CondensedSet.from_bytes(data, max_bytes)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @staticmethod
    def from_bytes(data: bytes, max_bytes: int = MAX_FILE_BYTES) -> "CondensedSet":
        """The set in the bytes of a file, which are checked before memory of the stated size is allocated."""
        tensors, header = parse(data, max_bytes)
        steps, weights, form, views = later_parts(tensors, header, max_bytes)
        images = tensors["images"]
        if (images.dtype == torch.uint8) != (header.quantisation is not None):
            raise InputError("images are uint8 without a quantisation grid, or float32 with one.")
        if header.quantisation is not None and images.ndim == 4 and len(header.quantisation) == images.shape[1]:
            images = quantise.decode(images, header.quantisation)
        white = Whitening(tensors["whitening_mean"], tensors["whitening_matrix"]) if "whitening_mean" in tensors else None
        facts = (header.lr, header.augmentation, header.provenance, header.quantisation, white, header.label_kind or DEFAULT_KIND)
        return CondensedSet(images, tensors["labels"], header.spec, *facts, steps, weights, form, views)
