"""A client's side: its shard, and the set that it uploads. Plain functions; no Flower.

FedDM (Xiong, Wang, Cheng, Yu and Hsieh, "FedDM: Iterative Distribution Matching for Communication-Efficient Federated Learning", CVPR
2023): class means of embeddings and of logits are matched through networks drawn on the sphere of radius rho around the received weights.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from apps.federated.labels import with_labels
from apps.federated.partition import Partition, split
from apps.federated.received import network_with
from apps.federated.settings import MethodConfig, Settings, method_config, pooled, upload_form
from apps.federated.wire import within_range
from distill.comparison import formed
from distill.condensed import CondensedSet
from distill.coresets import CORESETS, select
from distill.data import ImageData, Split
from distill.distiller import Distiller
from distill.errors import InputError, clipped
from distill.networks import Factory
from distill.randomness import derived_seed, generator
from distill.run import condense
from distill.spec import DataSpec
from distill.statistics import ExactStatistics, RealStatistics
from distill.synthetic import Initial, initial_set

# A method from its config and its first images.
Made = Callable[[MethodConfig, CondensedSet], Distiller]


def partition_of(data: ImageData, settings: Settings) -> Partition:
    """The run's split of the training images; the same on every machine that has the same data."""
    return split(data.train.labels.cpu().numpy(), settings.partition, settings.seed)


class NoImages(ImageData):
    """The data of a private client without a training image: what it sends is noise, as nobody may see that it has none."""

    def __post_init__(self) -> None:
        return None

    @classmethod
    def of(cls, spec: DataSpec) -> "NoImages":
        """Of the federation's spec; nothing of it comes from images of this client."""
        none = Split(torch.zeros(0, *spec.shape, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64))
        return cls(dataclasses.replace(spec, normalisation_origin="given", classes_origin="given"), none, none, none)


def is_empty(name: str) -> bool:
    """Whether a data set's name is that of a folder that is there and holds no file."""
    kind, _, path = name.partition(":")
    place = Path(path).expanduser()
    return kind == "folder" and path != "" and place.is_dir() and not any(inner.is_file() for inner in place.rglob("*"))


def shard(data: ImageData, partition: Partition, client: int, *, may_be_empty: bool = False) -> ImageData:
    """The images of one client, with the spec of the whole data set (its normalisation is public).

    Args:
        data: the whole data set.
        partition: of its training images.
        client: its number.
        may_be_empty: give `NoImages` for a client without images.

    Raises:
        InputError: the partition has no such client.
    """
    if not 0 <= client < len(partition.parts):
        raise InputError(f"client {client} is not in the partition; allowed: 0..{len(partition.parts) - 1}.")
    train = data.train.at(torch.from_numpy(partition.parts[client]).to(data.device))
    kind = NoImages if may_be_empty and not len(train) else ImageData
    return kind(data.spec, train, data.validation, data.test, data.whitening, data.notes)


def agreed(data: ImageData, spec: DataSpec, *, own: bool = False) -> ImageData:
    """A client's data under the federation's spec: classes and shape must be equal, the normalisation is the server's.

    Args:
        data: the client's data.
        spec: from the server.
        own: the data belong to the client alone. The server has never seen them, so its normalisation and class list are public to the
            client whatever origin it states, and count as given. For a part of the run's data set the stated origin stays: a server that
            computed its numbers from that data set says so, and one that lies about it has the images anyway.

    Raises:
        InputError: classes or shape differ.
    """
    for name in ("channels", "height", "width", "classes"):
        if getattr(data.spec, name) != getattr(spec, name):
            ours, theirs = clipped(getattr(data.spec, name)), clipped(getattr(spec, name))
            raise InputError(f"this client has {name} {ours} and the federation {theirs}; they must be the same.")
    agreed_spec = dataclasses.replace(spec, population_origin=data.spec.population_origin)
    if own:
        agreed_spec = dataclasses.replace(agreed_spec, normalisation_origin="given", classes_origin="given")
    return dataclasses.replace(data, spec=agreed_spec)


def first_images(statistics: RealStatistics, data: ImageData, kind: Initial, settings: Settings, seed: int) -> Initial | CondensedSet:
    """The initial images of an upload.

    If the client holds fewer than ``ipc`` images of a class, its synthetic images start from those and only that many are sent.
    (`condense` would add copies, so that a few images would count in the union as much as thousands of another client.)

    Args:
        statistics: of the client's data.
        data: the client's data.
        kind: of initial images.
        settings: of the run.
        seed: of the upload.

    Returns:
        ``kind`` where every class has ``ipc`` images, else the images.
    """
    form = upload_form(settings)
    copies = 1 if form is None else form.copies
    ipc, counts = settings.upload.ipc, [-(-count // copies) for count in data.counts]
    if all(counts[label] >= ipc for label in data.classes):
        return kind
    draws = generator(seed, "initial", settings.upload.method, ipc, device=statistics.device)
    condensed = initial_set(statistics, kind, ipc, draws, form)
    number = torch.arange(len(condensed.labels), device=condensed.labels.device) % ipc  # within its class
    real = number < torch.tensor(counts, device=condensed.labels.device)[condensed.labels]
    return dataclasses.replace(condensed, images=condensed.images[real], labels=condensed.labels[real])


def upload(
    data: ImageData,
    settings: Settings,
    server_round: int,
    client: int,
    weights: Mapping[str, Tensor] | None = None,
    previous: CondensedSet | None = None,
    network: Factory | None = None,
    *,
    statistics: ExactStatistics | None = None,
    distiller: Made | None = None,
) -> CondensedSet:
    """The set that a client sends in a round: condensed images, or real images chosen by a coreset (a baseline).

    For private clients see `client_privacy.private_upload`.

    Args:
        data: the client's images.
        settings: of the run.
        server_round: number of the round.
        client: number of the client.
        weights: the server's; None: new random networks.
        previous: the client's upload of the round before, for a warm start.
        network: in place of the one that the settings name.
        statistics: of the images, in place of exact ones of all of them alike; of the classes that were asked for.
        distiller: makes the method from its config and its first images, in place of the one that the settings name.

    Returns:
        A set of the classes that the client holds and the server asked for.

    Raises:
        InputError: there is no such class.
    """
    if settings.upload.classes is not None:
        data = data.subset(settings.upload.classes)
    seed = derived_seed(settings.seed, "client", client, "round", server_round)
    received = None if weights is None else network_with(network or settings.network, weights)
    if settings.strategy in CORESETS:
        form, draws = upload_form(settings), generator(seed, "coreset")
        if form is not None:
            return with_labels(formed(data, settings.strategy, settings.upload.ipc, form, draws), data, settings, received)
        return with_labels(select(data, settings.strategy, settings.upload.ipc, draws), data, settings, received)
    if previous is not None:  # it may have soft labels, whose largest number is the class
        previous = dataclasses.replace(previous, labels=previous.hard_labels)
    config = method_config(settings)
    values = {name: value for name, value in vars(config).items() if name not in ("network", "initial")}
    statistics, with_weights = statistics or ExactStatistics(data), settings.upload.networks == "received"
    initial: Initial | CondensedSet = previous if previous is not None else config.initial
    if isinstance(initial, str) and initial != "noise":
        initial = first_images(statistics, data, initial, settings, seed)
    method: str | Distiller = settings.upload.method
    if distiller is not None:
        draws = generator(seed, "initial", settings.upload.method, settings.upload.ipc)
        method, values = distiller(config, initial_set(statistics, initial, settings.upload.ipc, draws, upload_form(settings))), {}
    condensed = condense(
        statistics,
        method,
        ipc=settings.upload.ipc,
        seed=seed,
        network=network_with(network or settings.network, weights if with_weights else None, data.spec if pooled(config) else None),
        initial=initial,
        progress=False,
        more_images_than_data=True,  # a client may hold fewer than were asked for
        **values,
    )
    return with_labels(dataclasses.replace(condensed, images=within_range(condensed)), data, settings, received)
