"""What a user's own Flower app gives: the images of a client, the images of the server.

What the server sends is checked in the same way as for named data: shape, classes and normalisation come from it, and must fit.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import torch

from apps.federated.condense import NoImages, agreed
from apps.federated.messages import Context
from apps.federated.settings import Settings
from distill.data import ImageData, Split
from distill.data_given import with_given
from distill.errors import InputError, clipped
from distill.spec import DataSpec
from distill.torch_datasets import MapDataset, class_names, innermost, read


class Partitions(Protocol):
    """A ``FederatedDataset`` or a partitioner of flwr-datasets."""

    def load_partition(self, partition_id: int, /) -> MapDataset: ...


Images = ImageData | MapDataset
# A client's images by its context, once a message; what takes long to load is cached by whoever gives it.
Shard = Callable[[Context], Images] | Partitions


def client_number(context: Context) -> int:
    """The client's number by its node's config; -1 if it has none."""
    return int(context.node_config.get("partition-id", -1))


def shard_of(shard: Shard, context: Context, spec: DataSpec, *, may_be_empty: bool = False) -> ImageData:
    """A client's own images under the federation's spec.

    Args:
        shard: gives them for the client of the context: `ImageData`, or a torch or Hugging Face dataset, whose items are read as in
            `ImageData.from_datasets`; or flwr-datasets' partitions, of which the client takes the one with its number.
        context: the client's.
        spec: from the server.
        may_be_empty: give `NoImages` for a dataset without items.

    Raises:
        InputError: for an item that cannot be read, or images or class names that do not fit the spec.
    """
    if not callable(shard):
        given: Images = shard.load_partition(client_number(context))
    else:
        given = shard(context)
    if isinstance(given, ImageData):
        return agreed(given, spec, own=True)
    images, labels = read(given, "this client's images")
    if not len(labels):
        if may_be_empty:
            return NoImages.of(spec)
        raise InputError("this client's dataset has no items; allowed: at least one.")
    channels, height, width = images.shape[1:]
    if len(labels) and int(labels.max()) >= spec.num_classes:
        raise InputError(f"this client has the label {int(labels.max())}; allowed: 0 to {spec.num_classes - 1}, as the server says.")
    classes = class_names(given) or spec.classes  # without names the numbers of the labels count
    nothing = Split(images[:0], labels[:0])
    own = DataSpec(spec.name, channels, height, width, classes, (0.0,) * channels, (1.0,) * channels)
    return agreed(ImageData(own, Split(images, labels), nothing, nothing), spec, own=True)


def server_data(
    data: "Images | Callable[[Context], Images]",
    context: Context,
    settings: Settings,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> ImageData:
    """The server's own images, on which accuracy is measured; classes, shape and normalisation of the federation are theirs.

    Args:
        data: `ImageData` (the test split counts, or the one of ``settings.split``), a dataset (all items count), or a function of the
            context that gives one.
        context: the server's.
        settings: of the run; ``mean``, ``std`` and ``class_names`` there are given ones, too.
        mean: per channel, of pixels in [0, 1]; None: that of ``data``.
        std: likewise.

    Raises:
        InputError: for data that cannot be read, or numbers and names that do not fit them.
    """
    given = data(context) if callable(data) and not hasattr(data, "__getitem__") else data
    if not isinstance(given, ImageData):
        name = type(innermost(given)).__name__.lower()
        images, labels = read(given, f"{clipped(name, 40)}: the server's images")
        made = ImageData.from_arrays(name, images, labels, images, labels, classes=class_names(given))
        given = made.with_origins(classes="computed")
    return with_given(given, mean or settings.mean, std or settings.std, settings.class_names).to(torch.device(settings.device))
