"""An experience read as tensors: at once where it is tensors without a transform, else in parts by a loader."""

import warnings
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Subset, TensorDataset

from apps.continual.engine import avalanche
from apps.continual.features import as_images
from apps.continual.protocols import AvalancheData
from distill.errors import InputError, clipped

_flat = avalanche("avalanche.benchmarks.utils.flat_data")
_transforms = avalanche("avalanche.benchmarks.utils.transforms")
Leaf = Callable[[object, np.ndarray], Tensor | None]  # the values of a leaf of a data set's tree at some places
PART = 64  # items at a time
LOOKED_AT = 8  # items that are read twice: a transform that distorts every second item is missed once in 2 ** 8


class LabelledTensors(TensorDataset):
    """Images (N, C, H, W) with labels (N,); an item is (image, int)."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        super().__init__(images.cpu())
        self.targets = labels.tolist()

    def __getitem__(self, index: int) -> tuple[Tensor, int]:  # type: ignore[override]
        return self.tensors[0][index], self.targets[index]


def read(dataset: AvalancheData, num_workers: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Read a data set through its evaluation transforms. No global generator is drawn from, unless the items do it.

    Warns if the evaluation view changes from one reading to the next.

    Args:
        dataset: of Avalanche.
        num_workers: processes of the loader that reads what is not simply tensors.

    Returns:
        Images (N, C, H, W) float32 (of rows: (N, 1, 1, D), see features.py), labels (N,) int64 and task labels (N,) int64, on the CPU.

    Raises:
        InputError: items are not float tensors (C, H, W), or rows (D,), of one shape.
    """
    dataset = dataset.eval()
    first = dataset[0][0]
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.ndim not in (1, 3):
        kind = f"{first.dtype} {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise InputError(
            f"the stream's items are {kind} in the evaluation view; a condensed buffer needs float tensors (C, H, W), or rows (D,): "
            "put ToTensor (and Normalize) into the benchmark's evaluation transform."
        )
    images = _at_once(dataset)
    if images is None:
        images = _in_parts(dataset, tuple(first.shape), num_workers)
    places = sorted({round(place) for place in np.linspace(0, len(dataset) - 1, LOOKED_AT)})
    if not all(torch.equal(images[place], dataset[place][0].detach().to("cpu", torch.float32)) for place in places):
        warnings.warn(
            "the evaluation view gives another image each time (a random transform inside the data set?): distorted images are condensed; "
            "give random transforms as the benchmark's train_transform.",
            stacklevel=4,
        )
    tasks = _numbers(getattr(dataset, "targets_task_labels", [0] * len(dataset)))
    return as_images(images), _numbers(dataset.targets), tasks


def _numbers(values: Sequence[int]) -> Tensor:
    """Labels or tasks (N,) int64; those of a data set's attribute at once where they are lists or constants."""
    found = _gathered(getattr(values, "data", values), np.arange(len(values)), _listed)
    return torch.tensor([int(value) for value in values]) if found is None else found


@torch.no_grad()
def _in_parts(dataset: AvalancheData, shape: tuple[int, ...], num_workers: int) -> Tensor:
    """Every item, read one after the other or by ``num_workers`` processes, into the tensor that is returned: nothing is held twice."""
    images, start = torch.empty(len(dataset), *shape), 0
    places = range(len(dataset))
    parts: Iterable[list[Tensor]] = ([dataset[place][0] for place in places[first : first + PART]] for first in places[::PART])
    if num_workers:
        own = torch.Generator()  # a loader without one draws from the global generator
        parts = DataLoader(dataset, PART, num_workers=num_workers, collate_fn=_images, generator=own)  # type: ignore[arg-type]
    for part in parts:
        if any(not isinstance(image, Tensor) or image.shape != shape for image in part):
            kinds = {f"{tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__ for image in part}
            raise InputError(f"the stream has items of {clipped(', '.join(sorted(kinds)))}; allowed: one image shape.")
        images[start : start + len(part)] = torch.stack(part)
        start += len(part)
    return images


def _images(items: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    return [item[0].detach() for item in items]


def _at_once(dataset: AvalancheData) -> Tensor | None:
    """The images where they are tensors that no transform changes, as own float32 copies; else None."""
    images = _gathered(getattr(dataset, "_flat_data", None), np.arange(len(dataset)), _tensors)
    return None if images is None else images.detach().to("cpu", torch.float32)


def _gathered(data: object, places: np.ndarray, leaf: Leaf) -> Tensor | None:
    """The values at ``places`` of an Avalanche data set's tree; None where ``leaf``, which reads its leaves, does not know one."""
    if not isinstance(data, _flat.FlatData):
        return leaf(data, places)
    if not _unchanged(data):
        return None
    if data._indices is not None:
        places = np.asarray(data._indices, dtype=np.int64)[places]
    ends, found = np.asarray(data._cumulative_sizes), None
    owners = np.searchsorted(ends, places, side="right")
    for number in np.unique(owners):
        own = np.flatnonzero(owners == number)
        part = _gathered(data._datasets[number], places[own] - (ends[number - 1] if number else 0), leaf)
        if part is None or (found is not None and part.shape[1:] != found.shape[1:]):
            return None
        if len(own) == len(places):
            return part
        found = part.new_empty((len(places), *part.shape[1:])) if found is None else found
        found[torch.from_numpy(own)] = part
    return found


def _tensors(data: object, places: np.ndarray) -> Tensor | None:
    """Images of a `TensorDataset`, or of a `Subset` of one."""
    if type(data) is Subset:
        return _tensors(data.dataset, np.asarray(data.indices, dtype=np.int64)[places])
    if not isinstance(data, TensorDataset):
        return None
    # A subclass may change what it reads; Avalanche's own only makes labels int.
    plain = type(data).__getitem__ in (TensorDataset.__getitem__, LabelledTensors.__getitem__)
    return data.tensors[0][torch.from_numpy(places)] if plain or type(data).__module__.startswith("avalanche.") else None


def _listed(data: object, places: np.ndarray) -> Tensor | None:
    """Whole numbers of a list, a tensor or a constant sequence."""
    if isinstance(data, _flat.ConstantSequence):
        return torch.full((len(places),), int(data[0]))
    if not isinstance(data, list | Tensor) or not len(data):
        return None
    numbers = np.asarray(data)
    return torch.from_numpy(numbers[places].astype(np.int64)) if numbers.ndim == 1 and numbers.dtype.kind in "iu" else None


def _unchanged(data: object) -> bool:
    """Whether the evaluation transforms of this level of an Avalanche data set are all None."""
    for groups in (getattr(data, "_frozen_transform_groups", None), getattr(data, "_transform_groups", None)):
        chosen = None if groups is None else groups["eval"]
        if chosen is not None and (type(chosen) is not _transforms.TupleTransform or chosen.transforms[:1] not in ([], [None])):
            return False  # (the second transform is of labels)
    return True
