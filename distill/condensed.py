"""`CondensedSet`: the one value that travels between all rooms and between parties. Its file's format is set_file.py's."""

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
from distill.errors import InputError
from distill.joining import check_alike
from distill.labels import DEFAULT_KIND, check_kind
from distill.randomness import generator
from distill.records import write_whole
from distill.set_file import DECODE, MAX_FILE_BYTES, check_size, later_facts, later_parts, later_tensors, loadable, parse
from distill.set_file import Provenance as Provenance
from distill.set_parts import Encoded, StartWeights, StepSizes, type_and_shape
from distill.spec import DataSpec
from distill.whitening import Whitening


@dataclass(frozen=True, eq=False)
class CondensedSet:
    """A handful of images that stand for a data set.

    Shapes: ``images`` (N, C, H, W) float32 in normalised space; ``labels`` (N,) int64, or (N, K) float32 soft labels (K classes).
    ``label_kind`` says what soft labels are (`distill.labels.LABEL_KINDS`), and so which loss a learner uses: "probabilities", "logits"
    (cross-entropy against their softmax), "scores" (mean squared error), "weighted" (probabilities times a weight for each image).
    ``lr`` is a learned step size for training on the set (MTT) or None; ``augmentation`` names the strategy a learner should use (see
    `distill.augment.strategy`) or is None; ``quantisation`` is one (low, step) pair per channel when the images lie on a grid of 256
    values, in which case the file holds uint8; ``whitening`` is the ZCA transform in whose white space the images live, or None (they are
    normalised by the spec's mean and std).

    ``step_sizes`` (one a step, in place of ``lr``) and ``start_weights`` say how a learner should be trained on the set, ``decode`` how
    its images are stored; see `distill.set_parts`. Learners of this version read ``lr`` only. Raises `InputError` on construction when
    anything does not fit.
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
    decode: Encoded | None = None

    def __post_init__(self) -> None:
        images, labels, classes = self.images, self.labels, self.spec.num_classes
        if images.dtype != torch.float32 or images.ndim != 4 or tuple(images.shape[1:]) != self.spec.shape or len(images) == 0:
            expected = ", ".join(map(str, self.spec.shape))
            raise InputError(f"images are {type_and_shape(images)}; allowed: float32 of shape (N, {expected}) with N at least 1.")
        if labels.dtype == torch.int64:
            if labels.shape != images.shape[:1]:
                raise InputError(f"labels are {type_and_shape(labels)}; allowed: int64 of shape ({len(images)},) for {len(images)} images.")
            if bool((labels < 0).any()) or bool((labels >= classes).any()):
                raise InputError(f"labels lie in {int(labels.min())}..{int(labels.max())}; allowed: 0..{classes - 1}.")
        elif labels.dtype != torch.float32 or labels.shape != (len(images), classes):
            raise InputError(f"labels are {type_and_shape(labels)}; allowed: int64 (N,) or float32 (N, {classes}).")
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
        if self.decode is not None and self.quantisation is not None:
            raise InputError("a set's images are stored encoded or quantised, not both; leave one of the two out.")
        if self.step_sizes is not None:
            self.step_sizes.check(len(images))
        if self.whitening is not None and self.whitening.mean.numel() != math.prod(self.spec.shape):
            raise InputError(
                f"whitening is for images of {self.whitening.mean.numel()} values; allowed: {math.prod(self.spec.shape)}, as these have."
            )

    # What is in it

    def __repr__(self) -> str:
        """One line: ``CondensedSet(10 images 1x16x16 of 10 classes of 'digits' by dm, class labels)``."""
        labels = "class labels" if self.labels.ndim == 1 else f"soft labels ({self.label_kind})"
        place = "" if self.images.device.type == "cpu" else f", on {self.images.device}"
        origin = f"{len(self.classes)} classes of {self.spec.name!r} by {self.provenance.method}"
        size = f"{len(self)} image{'' if len(self) == 1 else 's'} {'x'.join(map(str, self.spec.shape))}"
        return f"CondensedSet({size} of {origin}, {labels}{place})"

    def _repr_html_(self) -> str:
        """For Jupyter: that line above the images, at most 50 of each of 100 classes."""
        from distill.image_grids import images_by_class  # matplotlib is slow to import

        drawing = images_by_class(self.pixels(), self.hard_labels, self.spec.classes, "Images of a condensed set")
        text, data = "<br>".join(map(html.escape, (repr(self), *drawing.legend))), base64.b64encode(drawing.encoded(dpi=60)).decode()
        return f"<p>{text}</p><img alt='{html.escape(drawing.heading)}' src='data:image/png;base64,{data}'>"

    def __len__(self) -> int:
        return len(self.images)

    @property
    def hard_labels(self) -> Tensor:
        """(N,) int64: the labels, or the most likely class of soft labels (the highest one, whatever their kind)."""
        return self.labels if self.labels.dtype == torch.int64 else self.labels.argmax(1)

    @property
    def counts(self) -> tuple[int, ...]:
        """Images per class (K,).

        An image with soft labels belongs to no one class: such a set's images are dealt out evenly over the classes it was made for, since
        that is what a set of the same storage has.
        """
        if not self.labels.is_floating_point():
            return tuple(torch.bincount(self.labels, minlength=self.spec.num_classes).tolist())
        each, over = divmod(len(self), len(self.classes))
        dealt = {label: each + (place < over) for place, label in enumerate(self.classes)}
        return tuple(dealt.get(label, 0) for label in range(self.spec.num_classes))

    @property
    def classes(self) -> tuple[int, ...]:
        """The classes it was made for: those of its labels; with soft labels those that its provenance names, else all."""
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
        images = self.decode.nbytes if self.decode else images
        more = sum(tensor.numel() * tensor.element_size() for tensor in later_tensors(self).values())
        return images + self.labels.numel() * self.labels.element_size() + (self.whitening.nbytes if self.whitening else 0) + more

    def pixels(self) -> Tensor:
        """Images (N, C, H, W) in [0, 1], clipped: for eyes, not for training."""
        return self.spec.denormalise(self.images) if self.whitening is None else self.whitening.undo(self.images).clamp(0.0, 1.0)

    def dataset(self) -> TensorDataset:
        """For a `DataLoader`: pairs of a normalised image (C, H, W), as a learner sees it, and its label (a number, or K soft ones)."""
        return TensorDataset(self.images, self.labels)

    def loader(self, batch_size: int = 256, seed: int = 0) -> DataLoader[tuple[Tensor, ...]]:
        """Batches (images, labels) of `dataset`, shuffled anew in each epoch, in an order that ``seed`` decides."""
        return DataLoader(self.dataset(), batch_size, shuffle=True, generator=generator(seed, "loader"))

    # New sets from this one

    def to(self, device: torch.device | str) -> "CondensedSet":
        """The same set with its tensors on ``device``."""
        return dataclasses.replace(
            self,
            images=self.images.to(device),
            labels=self.labels.to(device),
            whitening=self.whitening and self.whitening.to(device),
            step_sizes=self.step_sizes and self.step_sizes.to(device),
            start_weights=self.start_weights and self.start_weights.to(device),
            decode=self.decode and self.decode.to(device),
        )

    def subset(self, classes: Iterable[int]) -> "CondensedSet":
        """Only the images of these classes, without ``decode``; label numbers and spec stay.

        `InputError` when nothing is left, or where step sizes name the images of each step.
        """
        if self.step_sizes is not None and self.step_sizes.batches is not None:
            raise InputError("subset: step_sizes name the images of each step; leave them out: dataclasses.replace(set, step_sizes=None).")
        wanted = sorted(set(classes))
        keep = torch.isin(self.hard_labels, torch.tensor(wanted, dtype=torch.int64, device=self.labels.device))
        if not bool(keep.any()):
            present = [c for c, count in enumerate(self.counts) if count]
            raise InputError(f"subset of classes {wanted} is empty; allowed: some of {present}.")
        labels = self.labels[keep]
        if self.label_kind == "weighted" and float(labels.sum()) > 0:
            labels = labels / labels.sum(1).mean()  # 1 in the mean again
        part = dataclasses.replace(self, images=self.images[keep], labels=labels, decode=None)
        return part.made_for(label for label in self.classes if label in wanted)

    def made_for(self, classes: Iterable[int]) -> "CondensedSet":
        """The same set; where its labels are soft, its provenance says that it was made for these classes only (see `classes`)."""
        named = sorted(set(classes)) or list(range(self.spec.num_classes))
        if not self.labels.is_floating_point() or tuple(named) == self.classes:
            return self
        origin = dataclasses.replace(self.provenance, config={**self.provenance.config, "classes": named})
        return dataclasses.replace(self, provenance=origin)

    @staticmethod
    def concat(sets: Sequence["CondensedSet"]) -> "CondensedSet":
        """The union, in order. Shape, classes, normalisation and label kind must agree; hard labels become one-hot where any set has
        soft ones, which must be probabilities then. Step sizes and start weights must be the same in all sets (or in none).

        The provenance names its parts. A privacy statement is not merged: how releases compose is for the accountant to say.
        """
        if not sets:
            raise InputError("concat was given no sets; allowed: one or more.")
        first = sets[0]
        for other in sets[1:]:
            check_alike(first, other)
        soft = any(s.labels.dtype != torch.int64 for s in sets)
        kinds = sorted({s.label_kind for s in sets})
        if len(kinds) > 1:
            raise InputError(f"concat: the label kinds differ ({', '.join(kinds)}; class numbers are {DEFAULT_KIND}); allowed: one kind.")
        labels = [
            torch.nn.functional.one_hot(s.labels, s.spec.num_classes).float() if soft and s.labels.ndim == 1 else s.labels for s in sets
        ]
        parts = [{"method": s.provenance.method, "seed": s.provenance.seed, "dp": s.provenance.dp} for s in sets]
        joined = CondensedSet(
            images=torch.cat([s.images for s in sets]),
            labels=torch.cat(labels),
            spec=first.spec,
            lr=first.lr if len({s.lr for s in sets}) == 1 else None,
            augmentation=first.augmentation if len({s.augmentation for s in sets}) == 1 else None,
            provenance=Provenance("union", {"parts": parts}, seconds=sum(s.provenance.seconds for s in sets)),
            whitening=first.whitening,
            label_kind=first.label_kind,
            step_sizes=first.step_sizes,
            start_weights=first.start_weights,
        )
        return joined.made_for(label for one in sets for label in one.classes)

    def quantised(self) -> "CondensedSet":
        """The same set with each channel rounded to 256 evenly spaced values, stored as uint8: a quarter of the bytes."""
        grid = quantise.pairs(quantise.grid_of(self.images))
        images = quantise.decode(quantise.encode(self.images, grid), grid)
        return dataclasses.replace(self, images=images, quantisation=grid, decode=None)

    # The file

    def save(self, path: str | Path) -> None:
        """Write one safetensors file (never pickle), whole or not at all. `InputError` for a set that `load` would refuse for its size."""
        label_values = self.labels.shape[1] if self.labels.ndim == 2 else 1
        check_size(len(self), self.spec, label_values, 1 if self.quantisation else 4)
        write_whole(Path(path), loadable(self.to_bytes()))

    def to_bytes(self) -> bytes:
        """The file's content, in the format of `distill.set_file`."""
        images = quantise.encode(self.images, self.quantisation) if self.quantisation else self.images
        tensors = {"images": images} if self.decode is None else {f"{DECODE}{name}": t for name, t in self.decode.tensors.items()}
        tensors |= {"labels": self.labels} | later_tensors(self)
        if self.decode is not None and not torch.allclose(self.decode.images(self.spec, len(self)), self.images, atol=1e-4):
            raise InputError("the images are not those that the set's decode gives; leave it out: dataclasses.replace(set, decode=None).")
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
        """Read a file that may come from anybody. `InputError`, one line, names the file and what is wrong with it.

        ``max_bytes`` None allows what `save` writes; `from_bytes`, for what arrives in memory, allows less.
        """
        path, max_bytes = Path(path), set_file.MAX_OWN_BYTES if max_bytes is None else max_bytes
        data = set_file.read_bytes(path, max_bytes)
        try:
            return CondensedSet.from_bytes(data, max_bytes)
        except InputError as error:
            raise InputError(f"{path}: {error}") from None

    @staticmethod
    def from_bytes(data: bytes, max_bytes: int = MAX_FILE_BYTES) -> "CondensedSet":
        """The set in ``data``, checked before anything of the claimed size is allocated."""
        tensors, header = parse(data, max_bytes)
        steps, weights, stored = later_parts(tensors, header, max_bytes)
        images = tensors["images"] if stored is None else stored.images(header.spec, len(tensors["labels"]))
        if stored is None and (images.dtype == torch.uint8) != (header.quantisation is not None):
            raise InputError("images are uint8 without a quantisation grid, or float32 with one.")
        if header.quantisation is not None and images.ndim == 4 and len(header.quantisation) == images.shape[1]:
            images = quantise.decode(images, header.quantisation)
        white = Whitening(tensors["whitening_mean"], tensors["whitening_matrix"]) if "whitening_mean" in tensors else None
        facts = (header.lr, header.augmentation, header.provenance, header.quantisation, white, header.label_kind or DEFAULT_KIND)
        return CondensedSet(images, tensors["labels"], header.spec, *facts, steps, weights, stored)
