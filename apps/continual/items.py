"""Exemplars as an Avalanche data set with the stream's item layout."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from apps.continual.augmented import Transform
from apps.continual.engine import avalanche
from apps.continual.exemplars import Exemplars
from apps.continual.features import as_images, as_items
from apps.continual.form import Form
from apps.continual.protocols import AvalancheData, Experience
from distill.errors import InputError
from distill.quantise import Grid, decode

_utils = avalanche("avalanche.benchmarks.utils")
_attributes = avalanche("avalanche.benchmarks.utils.data_attribute")
_aware = avalanche("avalanche.benchmarks.utils.classification_dataset").TaskAwareClassificationDataset


@dataclass(frozen=True)
class Layout:
    """How the items of a stream are made.

    Attributes:
        kind: the class of the stream's data sets.
        tensor_labels: labels are tensors, not int.
        rows: items are rows (D,), not images.
        shape: of an image, (C, H, W); of a row, (1, 1, D).
    """

    kind: Callable[..., AvalancheData]
    tensor_labels: bool
    rows: bool
    shape: tuple[int, ...]

    @property
    def task_labels(self) -> bool:
        """Whether items are (x, y, task label)."""
        return isinstance(self.kind, type) and issubclass(self.kind, _aware)

    def check(self, shape: tuple[int, ...], path: Path) -> None:
        """Raises `InputError` where a memory's file at ``path`` has items of another ``shape``."""
        if shape != self.shape:
            raise InputError(f"{path}: holds items {shape}, and the stream of like has {self.shape}; give the memory's stream.")


def layout_of(like: Experience | AvalancheData) -> Layout:
    """The item layout of an experience or data set of a stream. Raises `InputError` for other objects, and for one without items."""
    dataset: AvalancheData = like.dataset if hasattr(like, "dataset") else like
    if not hasattr(dataset, "eval") or not len(dataset):
        what = "has no items" if hasattr(dataset, "eval") else f"is of type {type(like).__name__[:60]}"
        raise InputError(f"like {what}; allowed: an experience of the stream, or its data set, with at least one item.")
    item, label = dataset.eval()[0][:2]
    if not isinstance(item, Tensor) or item.ndim not in (1, 3):
        found = f"have the shape {tuple(item.shape)}" if isinstance(item, Tensor) else f"are of type {type(item).__name__[:60]}"
        raise InputError(f"the stream's items {found}; allowed: tensors (C, H, W) or (D,); give the stream a transform that makes them.")
    return Layout(type(dataset), isinstance(label, Tensor), item.ndim == 1, tuple(as_images(item[None]).shape[1:]))


class _Items(Dataset):  # type: ignore[type-arg]
    """(values, label) of one group; the values stay as stored, and the label has the stream's type (a collate function mixes no types)."""

    def __init__(self, group: Exemplars, *, tensor_labels: bool) -> None:
        self.values, self.label = group.values, torch.tensor(group.label) if tensor_labels else group.label
        self.targets = [group.label] * group.count

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor | int]:
        return self.values[index], self.label


class _Restored:
    """A stored image as the learner sees it: dequantised, enlarged to its size, then through the user's own transform."""

    def __init__(self, grid: Grid | None, form: Form, then: Transform | None, *, rows: bool) -> None:
        self.grid, self.form, self.then, self.rows = grid, form, then, rows

    def __call__(self, values: Tensor) -> Tensor:
        part = values if self.grid is None else decode(values, self.grid)
        image = as_items(self.form.enlarged(part[None]), rows=self.rows)[0]
        return image if self.then is None else self.then(image)


def dataset_of(group: Exemplars, layout: Layout, transform: Transform | None) -> AvalancheData:
    """A group as an Avalanche data set.

    Args:
        group: the exemplars.
        layout: of the stream's items.
        transform: applied to each image (C, H, W) in the training view.
    """
    groups = _utils.TransformGroups(
        {
            "train": _Restored(group.grid, group.form, transform, rows=layout.rows),
            "eval": _Restored(group.grid, group.form, None, rows=layout.rows),
        }  # y is left alone
    )
    items = _Items(group, tensor_labels=layout.tensor_labels)
    described = [_attributes.DataAttribute(items.targets, "targets")]
    if layout.task_labels:
        described.append(_attributes.TaskLabels([group.task] * group.count))
    if group.logits is not None:
        described.append(_attributes.TensorDataAttribute(list(group.logits), "logits", use_in_getitem=True))
    return layout.kind([items], data_attributes=described, transform_groups=groups)
