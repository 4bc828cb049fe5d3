"""Exemplars as an Avalanche data set with the stream's item layout."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from apps.continual.augmented import Transform
from apps.continual.engine import avalanche
from apps.continual.exemplars import Exemplars
from apps.continual.features import as_items
from apps.continual.form import Form
from apps.continual.protocols import AvalancheData
from distill.quantise import Grid, decode

_utils = avalanche("avalanche.benchmarks.utils")
_attributes = avalanche("avalanche.benchmarks.utils.data_attribute")
_aware = avalanche("avalanche.benchmarks.utils.classification_dataset").TaskAwareClassificationDataset


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


def dataset_of(
    group: Exemplars, layout: Callable[..., AvalancheData], *, tensor_labels: bool, transform: Transform | None, rows: bool = False
) -> AvalancheData:
    """A group as an Avalanche data set.

    Args:
        group: the exemplars.
        layout: the class of the stream's data sets.
        tensor_labels: give labels as tensors, not as int.
        transform: applied to each image (C, H, W) in the training view.
        rows: the stream's items are rows (D,).
    """
    groups = _utils.TransformGroups(
        {
            "train": _Restored(group.grid, group.form, transform, rows=rows),
            "eval": _Restored(group.grid, group.form, None, rows=rows),
        }  # y is left alone
    )
    items = _Items(group, tensor_labels=tensor_labels)
    described = [_attributes.DataAttribute(items.targets, "targets")]
    if has_task_labels(layout):
        described.append(_attributes.TaskLabels([group.task] * group.count))
    if group.logits is not None:
        described.append(_attributes.TensorDataAttribute(list(group.logits), "logits", use_in_getitem=True))
    return layout([items], data_attributes=described, transform_groups=groups)


def has_task_labels(layout: object) -> bool:
    """Whether items of this data set class are (x, y, task label)."""
    return isinstance(layout, type) and issubclass(layout, _aware)
