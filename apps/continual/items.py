"""Exemplars as an Avalanche data set with the stream's item layout, and an experience read as tensors."""

import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import Dataset

from apps.continual.engine import avalanche
from apps.continual.exemplars import Exemplars
from apps.continual.form import Form
from apps.continual.protocols import AvalancheData
from distill.errors import InputError
from distill.quantise import Grid, decode

_utils = avalanche("avalanche.benchmarks.utils")
_attributes = avalanche("avalanche.benchmarks.utils.data_attribute")
_aware = avalanche("avalanche.benchmarks.utils.classification_dataset").TaskAwareClassificationDataset

Transform = Callable[[Tensor], Tensor]


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

    def __init__(self, grid: Grid | None, form: Form, then: Transform | None) -> None:
        self.grid, self.form, self.then = grid, form, then

    def __call__(self, values: Tensor) -> Tensor:
        part = values if self.grid is None else decode(values, self.grid)
        image = self.form.enlarged(part[None])[0]
        return image if self.then is None else self.then(image)


def dataset_of(
    group: Exemplars, layout: Callable[..., AvalancheData], *, tensor_labels: bool, transform: Transform | None
) -> AvalancheData:
    """A group as an Avalanche data set.

    Args:
        group: the exemplars.
        layout: the class of the stream's data sets.
        tensor_labels: give labels as tensors, not as int.
        transform: applied to each image (C, H, W) in the training view.
    """
    groups = _utils.TransformGroups(
        {"train": _Restored(group.grid, group.form, transform), "eval": _Restored(group.grid, group.form, None)}  # y is left alone
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


def read(dataset: AvalancheData) -> tuple[Tensor, Tensor, Tensor]:
    """Read a data set through its evaluation transforms. (Item by item: a loader would draw from the global generator.)

    Warns if the evaluation view changes from one reading to the next.

    Returns:
        Images (N, C, H, W) float32, labels (N,) int64 and task labels (N,) int64, on the CPU.

    Raises:
        InputError: items are not float tensors (C, H, W).
    """
    dataset = dataset.eval()
    first = dataset[0][0]
    if not isinstance(first, Tensor) or not first.is_floating_point() or first.ndim != 3:
        kind = f"{first.dtype} {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise InputError(
            f"the stream's items are {kind} in the evaluation view; a condensed buffer needs float tensors (C, H, W): "
            "put ToTensor (and Normalize) into the benchmark's evaluation transform."
        )
    images = torch.stack([dataset[i][0] for i in range(len(dataset))]).detach().to("cpu", torch.float32)
    if not torch.equal(images[0], first.detach().to("cpu", torch.float32)):
        warnings.warn(
            "the evaluation view gives another image each time (a random transform inside the data set?): distorted images are condensed; "
            "give random transforms as the benchmark's train_transform.",
            stacklevel=4,
        )
    tasks = [int(task) for task in getattr(dataset, "targets_task_labels", [0] * len(dataset))]
    return images, torch.tensor([int(y) for y in dataset.targets]), torch.tensor(tasks)
