"""`ImageData`: real images on one device, uint8 at rest, with train, validation and test splits."""

import functools
import hashlib
import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from distill.arrays import Images, Labels, class_numbers, image_tensor, moments
from distill.data_notes import class_notes, one_class_note, value_notes
from distill.errors import InputError, clipped, unknown_name
from distill.randomness import generator
from distill.spec import DataSpec, Origin
from distill.splitting import carve, check_fraction
from distill.torch_datasets import MapDataset, class_names, innermost, read
from distill.whitening import Whitening

SPLITS = ("train", "validation", "test")


@dataclass(frozen=True, eq=False)
class Split:
    """images (N, C, H, W) uint8 (0 to 255) or float32 (0 to 1); labels (N,) int64; both on one device. May be empty."""

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.ndim != 4 or self.images.dtype not in (torch.uint8, torch.float32):
            raise InputError(f"images are {self.images.dtype} {tuple(self.images.shape)}; allowed: uint8 or float32 of shape (N, C, H, W).")
        if self.labels.ndim == 2:
            raise InputError(
                f"labels have shape {tuple(self.labels.shape)}; multi-label targets are not supported. Allowed: one class number for each "
                f"image, int64 ({len(self.images)},); soft labels belong to a CondensedSet."
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.images.shape[:1]:
            raise InputError(f"labels are {self.labels.dtype} {tuple(self.labels.shape)}; allowed: int64 ({len(self.images)},).")
        if self.images.device != self.labels.device:
            raise InputError(f"images are on {self.images.device} and labels on {self.labels.device}; move both to one device.")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """The same images and labels on another device."""
        return Split(self.images.to(device), self.labels.to(device))

    def at(self, indices: Tensor) -> "Split":
        """The images and labels at these positions (n,), or where a mask (N,) is true."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True, eq=False)
class ImageData:
    """A data set. Only statistics, coresets, training and expert trajectories read its pixels; everything else uses `spec`.

    Attributes:
        spec: shape, class names and normalisation.
        train: training images.
        validation: held-out training images, see `hold_out`.
        test: test images.
        whitening: ZCA transform that replaces the spec's mean and std, see `whitened`; or None.
        notes: sentences for the user (a class without images, a test image that is in train, too); commands print and records keep them.
    """

    spec: DataSpec
    train: Split
    validation: Split
    test: Split
    whitening: Whitening | None = None
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in SPLITS:
            split: Split = getattr(self, name)
            if len(split) and tuple(split.images.shape[1:]) != self.spec.shape:
                raise InputError(f"{name} images are {tuple(split.images.shape[1:])}; the data spec says {self.spec.shape}.")
            if len(split) and not 0 <= int(split.labels.min()) <= int(split.labels.max()) < self.spec.num_classes:
                low, high = int(split.labels.min()), int(split.labels.max())
                raise InputError(f"{name} labels lie in {low}..{high}; allowed: 0..{self.spec.num_classes - 1}.")
            theirs, ours = (split.images.dtype, split.images.device), (self.train.images.dtype, self.device)
            if theirs != ours:
                raise InputError(f"{name} images are {theirs[0]} on {theirs[1]} and train images {ours[0]} on {ours[1]}; make them alike.")
        if not len(self.train):
            raise InputError(f"data {self.spec.name!r} has no training images; allowed: at least one.")

    def __repr__(self) -> str:
        """One line: ``ImageData('digits': 1257 training, 0 validation and 540 test images 1x16x16, 10 classes)``."""
        counts = f"{len(self.train)} training, {len(self.validation)} validation and {len(self.test)} test images"
        white = ", whitened" if self.whitening is not None else ""
        place = "" if self.device.type == "cpu" else f", on {self.device}"
        return (
            f"ImageData({self.spec.name!r}: {counts} {'x'.join(map(str, self.spec.shape))}, {self.spec.num_classes} classes{white}{place})"
        )

    @property
    def device(self) -> torch.device:
        """Where all splits lie."""
        return self.train.images.device

    @functools.cached_property
    def counts(self) -> tuple[int, ...]:
        """Training images of each class (K,)."""
        return tuple(torch.bincount(self.train.labels, minlength=self.spec.num_classes).tolist())

    @functools.cached_property
    def classes(self) -> tuple[int, ...]:
        """The class ids that have training images."""
        return tuple(label for label, count in enumerate(self.counts) if count)

    @functools.cached_property
    def by_class(self) -> Tensor:
        """Positions (N,) in the training split of all images, class by class, rising in each."""
        return torch.argsort(self.train.labels, stable=True)

    @functools.cached_property
    def starts(self) -> tuple[int, ...]:
        """Where each class (K,) begins in `by_class`."""
        return tuple(itertools.accumulate(self.counts[:-1], initial=0))

    def class_indices(self, label: int) -> Tensor:
        """Positions (n,) in the training split of one class's images, rising, on the data's device."""
        if not 0 <= label < self.spec.num_classes:
            raise InputError(f"class {label} is not in data {self.spec.name!r}; allowed: 0..{self.spec.num_classes - 1}.")
        return self.by_class[self.starts[label] : self.starts[label] + self.counts[label]]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of the spec's shape and the training images and labels; the same on every device."""
        digest = hashlib.sha256(repr((self.spec.shape, self.spec.num_classes, str(self.train.images.dtype))).encode())
        digest.update(self.train.labels.cpu().numpy().tobytes())
        digest.update(self.train.images.cpu().contiguous().numpy().data)
        if self.whitening is not None:
            digest.update(self.whitening.matrix.cpu().numpy().data)
        return digest.hexdigest()

    def normalised(self, split: str, indices: Tensor) -> Tensor:
        """Normalised float32 images (n, C, H, W) of one split ("train", "validation" or "test")."""
        if split not in SPLITS:
            raise unknown_name("split", split, SPLITS)
        images: Tensor = getattr(self, split).images
        chosen = images[indices.to(images.device)]
        return self.spec.normalise(chosen) if self.whitening is None else self.whitening.apply(chosen)

    def whitened(self, whitening: Whitening | None = None) -> "ImageData":
        """The same data with ZCA whitening: by this transform (a condensed set's, for example) or one fitted on the training split."""
        if whitening is None:
            whitening = Whitening.fit(self.train.images)
        fits, own = whitening.mean.numel(), self.train.images[0].numel()
        if fits != own:
            raise InputError(f"the whitening is for images of {fits} values; those of data {self.spec.name!r} have {own}.")
        return replace(self, whitening=whitening.to(self.device))

    def to(self, device: torch.device | str) -> "ImageData":
        """The same data on another device. Raises `InputError` when that device does not exist here or is full."""
        try:
            if torch.device(device) == self.device:
                return self
            train, validation, test = (split.to(device) for split in (self.train, self.validation, self.test))
            whitening = None if self.whitening is None else self.whitening.to(device)
        except (RuntimeError, AssertionError) as error:
            reason = (str(error).splitlines() or [""])[0]
            raise InputError(f"data {self.spec.name!r} cannot go to device {str(device)[:40]!r} ({reason[:120]}); try 'cpu'.") from None
        return replace(self, train=train, validation=validation, test=test, whitening=whitening)

    def subset(self, classes: Iterable[int]) -> "ImageData":
        """Only the images of these classes, in all splits; label numbers and spec are unchanged."""
        labels = sorted({int(label) for label in classes})
        if not labels or labels[0] < 0 or labels[-1] >= self.spec.num_classes:
            raise InputError(f"classes {str(labels)[:80]} were asked for; allowed: at least one of 0..{self.spec.num_classes - 1}.")
        if not any(self.counts[label] for label in labels):
            raise InputError(f"classes {str(labels)[:80]} have no training images; allowed: some of {str(list(self.classes))[:80]}.")
        keep = torch.zeros(self.spec.num_classes, dtype=torch.bool, device=self.device)
        keep[torch.tensor(labels, device=self.device)] = True
        chosen = replace(self, **{n: getattr(self, n).at(keep[getattr(self, n).labels]) for n in SPLITS})
        return replace(chosen, notes=(*self.notes, *one_class_note(chosen.spec.classes, chosen.classes)))

    def long_tailed(self, ratio: float, seed: int = 0) -> "ImageData":
        """Fewer training images from class to class, exponentially (Cui et al., CVPR 2019, section 5.1); other splits stay.

        Of the K classes that have training images, in order, class i keeps `floor(n_max * ratio ** (-i / (K - 1)))` images drawn with
        ``seed`` (all, where it has fewer), where n_max is the largest count; so ``ratio`` is that of the largest to the smallest class.
        Raises `InputError` when the ratio is below 1, or leaves a class without images.
        """
        largest, last = max(self.counts), max(len(self.classes) - 1, 1)
        if isinstance(ratio, bool) or not isinstance(ratio, int | float) or not 1 <= ratio <= largest:
            raise InputError(f"imbalance is {clipped(ratio)}; allowed: 1 to {largest}, the images of the largest class.")
        draws, mask = generator(seed, "imbalance"), torch.zeros(len(self.train), dtype=torch.bool)
        for place, label in enumerate(self.classes):
            count = int(largest * (1 / ratio) ** (place / last) + 1e-9)
            here = self.class_indices(label).cpu()
            mask[here[torch.randperm(len(here), generator=draws)[:count]]] = True
        return replace(self, train=self.train.at(mask.nonzero().squeeze(1).to(self.device)))

    def own_notes(self) -> tuple[str, ...]:
        """Sentences about classes, values and normalisation that suggest a mistake in the data (see `distill.data_notes`)."""
        classes = class_notes(self.spec.classes, self.counts, set(self.test.labels.tolist()))
        return (*classes, *value_notes(self.train.images, self.spec.mean, self.spec.std))

    def with_origins(
        self, *, normalisation: Origin | None = None, classes: Origin | None = None, population: Origin | None = None
    ) -> "ImageData":
        """The same data with other origins in its spec (see `DataSpec`); None leaves an origin unchanged."""
        spec = replace(
            self.spec,
            normalisation_origin=normalisation or self.spec.normalisation_origin,
            classes_origin=classes or self.spec.classes_origin,
            population_origin=population or self.spec.population_origin,
        )
        return replace(self, spec=spec)

    def hold_out(self, fraction: float, seed: int = 0) -> "ImageData":
        """Move a fraction of the training images to the empty validation split, class by class (see `distill.splitting.carve`).

        Both parts keep the order of their images. A fraction of 0 changes nothing.
        """
        check_fraction(fraction)
        if not fraction:
            return self
        if len(self.validation):
            raise InputError(f"data {self.spec.name!r} already has {len(self.validation)} validation images; leave validation at 0.")
        stay, apart = carve(self.train.labels.cpu(), fraction, generator(seed, "validation"))
        return replace(self, train=self.train.at(stay.to(self.device)), validation=self.train.at(apart.to(self.device)))

    @classmethod
    def from_arrays(
        cls,
        name: str,
        x_train: Images,
        y_train: Labels,
        x_test: Images,
        y_test: Labels,
        *,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        validation: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> "ImageData":
        """Create a data set from arrays, which are copied.

        Args:
            name: of the data set.
            x_train: numpy arrays N x H x W or N x H x W x C, or torch tensors N x H x W or N x C x H x W (channels first only for
                tensors); uint8, or float in [0, 1].
            y_train: whole numbers (N,) from 0, or one-hot rows (N, K).
            x_test: as ``x_train``.
            y_test: as ``y_train``.
            classes: class names; None: "0" up to the highest label.
            mean: per channel, of pixels in [0, 1]; None: computed from all of ``x_train``, whatever ``seed`` is. The spec records which
                (`DataSpec`); private runs need both ``mean`` and ``std``.
            std: as ``mean``.
            validation: fraction of the training images to hold out, see `hold_out`.
            seed: see ``validation``.
            device: where the images are placed.

        Raises:
            InputError: for an array that does not fit.
        """
        check_fraction(validation)
        train, test = to_split(x_train, y_train, name, "train"), to_split(x_test, y_test, name, "test")
        if not len(train):
            raise InputError(f"{name}: x_train holds no images; allowed: at least one.")
        highest = max(int(split.labels.max()) for split in (train, test) if len(split))
        names = tuple(classes) if classes is not None else tuple(str(label) for label in range(highest + 1))
        if highest == len(names) and min(int(split.labels.min()) for split in (train, test) if len(split)) > 0:
            raise InputError(f"{name}: labels lie in 1..{highest}, and classes are numbered from 0; subtract 1 from y_train and y_test.")
        origin: Origin = "given" if mean is not None and std is not None else "computed"
        if mean is None or std is None:
            computed = moments(train.images)
            mean, std = (given if given is not None else own for given, own in zip((mean, std), computed, strict=True))
        for field, numbers in (("mean", mean), ("std", std)):
            if not isinstance(numbers, Sequence) or len(numbers) != train.images.shape[1]:
                raise InputError(f"{name}: {field} is {str(numbers)[:80]}; allowed: a number for each of {train.images.shape[1]} channels.")
        channels, height, width = train.images.shape[1:]
        listed: Origin = "computed" if classes is None else "given"
        spec = DataSpec(name, channels, height, width, names, tuple(mean), tuple(std), origin, listed)
        nothing = train.at(torch.zeros(0, dtype=torch.int64))
        data = cls(spec, train, nothing, test)
        return replace(data, notes=data.own_notes()).hold_out(validation, seed).to(device)

    @classmethod
    def from_datasets(
        cls,
        train: MapDataset,
        test: MapDataset,
        *,
        name: str | None = None,
        classes: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        validation: float = 0.0,
        seed: int = 0,
        device: torch.device | str = "cpu",
    ) -> "ImageData":
        """Create a data set from two torch `Dataset`s (torchvision's; Hugging Face's in their torch format), each read once and copied.

        Items are (image, label) or dicts, see `distill.torch_datasets.read`; random transforms are applied once. ``name`` defaults to the
        dataset's class in lower case ("cifar10") and ``classes`` to the dataset's own names; for the other arguments see `from_arrays`.
        Raises `InputError`, which names the item that does not fit.
        """
        name = type(innermost(train)).__name__.lower() if name is None else name
        names = class_names(train) if classes is None else classes
        arrays = (*read(train, f"{name}: train"), *read(test, f"{name}: test"))
        data = cls.from_arrays(name, *arrays, classes=names, mean=mean, std=std, validation=validation, seed=seed, device=device)
        return data if classes is not None else data.with_origins(classes="computed")  # names from a dataset are not stated by the user


def to_split(images: Images, labels: Labels, name: str, part: str) -> Split:
    """A checked copy of arrays in the layouts of `ImageData.from_arrays`; errors call them ``x_part`` and ``y_part`` of data ``name``."""
    x, y = image_tensor(images, f"{name}: x_{part}"), class_numbers(labels, f"{name}: y_{part}")
    if len(x) != len(y):
        raise InputError(f"{name}: x_{part} has {len(x)} images and y_{part} {len(y)} labels; they must be as many.")
    return Split(x, y)
