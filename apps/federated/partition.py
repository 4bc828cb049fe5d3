"""Who holds what: index partitioners with the names and defaults of flwr-datasets, in plain numpy.

Unlike there, every index lands in exactly one partition for every setting, and the same seed gives the same split everywhere.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from distill.configure import config_class
from distill.errors import InputError
from distill.randomness import derived_seed

Indices = NDArray[np.int64]
MAX_TRIES = 500


@config_class
class PartitionConfig:
    """``partitioner`` is one of

    - "iid": near-equal random parts;
    - "dirichlet": each class is shared out by a draw of Dir(``alpha``) over partitions, again until all have ``min_partition_size``
      (Hsu et al., 2019); ``self_balancing`` gives no more of a class to partitions that have their fair share already;
    - "pathological": each partition holds ``num_classes_per_partition`` classes; a class is cut evenly among its holders;
    - "shards": sorted by label, cut into ``num_shards_per_partition`` pieces for each partition, dealt at random (McMahan et al., 2017).

    ``seed`` None takes the run's seed.
    """

    partitioner: Literal["iid", "dirichlet", "pathological", "shards"] = "dirichlet"
    num_partitions: Annotated[int, Field(ge=1, le=10_000)] = 10
    alpha: Annotated[float, Field(gt=0)] = 0.5
    min_partition_size: Annotated[int, Field(ge=0)] = 10
    self_balancing: bool = False
    num_classes_per_partition: Annotated[int, Field(ge=1)] = 2
    class_assignment_mode: Literal["random", "deterministic"] = "random"
    num_shards_per_partition: Annotated[int, Field(ge=1)] = 2
    seed: int | None = None


@dataclass(frozen=True, eq=False)
class Partition:
    """Positions in the training split, rising, one array per client; together they are every position exactly once."""

    parts: tuple[Indices, ...]

    @property
    def hash(self) -> str:
        """Sixteen letters that change with any index."""
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(len(part).to_bytes(8, "big") + part.astype(">i8").tobytes())
        return digest.hexdigest()[:16]

    def counts(self, labels: Indices, classes: int) -> Indices:
        """(clients, classes): images of each class that each client holds."""
        return np.stack([np.bincount(labels[part], minlength=classes) for part in self.parts])


def split(labels: Indices, config: PartitionConfig, seed: int = 0) -> Partition:
    """Split positions 0..N-1 of ``labels`` (N,). Raises `InputError` when the setting cannot be met by these labels."""
    count, clients = len(labels), config.num_partitions
    if count < clients:
        raise InputError(f"num_partitions is {clients} and there are {count} images; allowed: at most one partition an image.")
    rng = np.random.default_rng(derived_seed(seed if config.seed is None else config.seed, "partition", config.partitioner))
    cut = {"iid": _iid, "dirichlet": _dirichlet, "pathological": _pathological, "shards": _shards}[config.partitioner]
    return Partition(tuple(np.sort(part).astype(np.int64) for part in cut(labels, config, rng)))


def _iid(labels: Indices, config: PartitionConfig, rng: np.random.Generator) -> list[Indices]:
    return np.array_split(rng.permutation(len(labels)), config.num_partitions)


def _dirichlet(labels: Indices, config: PartitionConfig, rng: np.random.Generator) -> list[Indices]:
    clients, fair = config.num_partitions, len(labels) / config.num_partitions
    if config.min_partition_size > fair:
        raise InputError(
            f"min_partition_size is {config.min_partition_size}; allowed: at most {int(fair)}, the images there are for each partition."
        )
    pools = [rng.permutation(np.flatnonzero(labels == label)) for label in np.unique(labels)]
    for _ in range(MAX_TRIES):
        parts: list[list[Indices]] = [[] for _ in range(clients)]
        sizes = np.zeros(clients)
        for pool in pools:
            shares = rng.dirichlet(np.full(clients, config.alpha))
            if config.self_balancing and (sizes < fair).any():
                shares = np.where(sizes < fair, shares, 0.0)
            if shares.sum() <= 0 or not np.isfinite(shares).all():  # a tiny alpha underflows: all to one, as in its limit
                shares = np.eye(clients)[rng.integers(clients)]
            ends = np.round(np.cumsum(shares / shares.sum()) * len(pool)).astype(int)[:-1]
            for client, piece in enumerate(np.split(pool, ends)):
                parts[client].append(piece)
                sizes[client] += len(piece)
        if sizes.min() >= config.min_partition_size:
            return [np.concatenate(part) for part in parts]
    raise InputError(
        f"alpha {config.alpha} gave no split with at least {config.min_partition_size} images in each of {clients} partitions in "
        f"{MAX_TRIES} draws; use a smaller min_partition_size, fewer partitions or a larger alpha."
    )


def _pathological(labels: Indices, config: PartitionConfig, rng: np.random.Generator) -> list[Indices]:
    classes, clients, each = np.unique(labels), config.num_partitions, config.num_classes_per_partition
    if each > len(classes) or each * clients < len(classes):
        raise InputError(
            f"num_classes_per_partition is {each} for {clients} partitions and {len(classes)} classes; "
            f"allowed: {-(-len(classes) // clients)} to {len(classes)}, so that every class is held by a client."
        )
    random = config.class_assignment_mode == "random"
    deck: list[int] = []
    labels_of: list[list[int]] = []
    for _ in range(clients):
        while len(set(deck)) < each:
            deck += (rng.permutation(classes) if random else classes).tolist()
        hand: list[int] = []
        for label in list(deck):  # the first ones that it does not hold yet; a skipped one stays for the next
            if len(hand) < each and label not in hand:
                hand.append(label)
                deck.remove(label)
        labels_of.append(hand)
    parts: list[list[Indices]] = [[] for _ in range(clients)]
    for label in classes.tolist():
        holders = [client for client in range(clients) if label in labels_of[client]]
        pool = rng.permutation(np.flatnonzero(labels == label))
        for client, piece in zip(holders, np.array_split(pool, len(holders)), strict=True):
            parts[client].append(piece)
    return [np.concatenate(part) for part in parts]


def _shards(labels: Indices, config: PartitionConfig, rng: np.random.Generator) -> list[Indices]:
    clients, each = config.num_partitions, config.num_shards_per_partition
    if clients * each > len(labels):
        raise InputError(f"num_shards_per_partition is {each} for {clients} partitions; allowed: at most {len(labels) // clients}.")
    order = rng.permutation(len(labels))
    shards = np.array_split(order[np.argsort(labels[order], kind="stable")], clients * each)
    deal = rng.permutation(clients * each)
    return [np.concatenate([shards[s] for s in deal[client * each : (client + 1) * each]]) for client in range(clients)]
