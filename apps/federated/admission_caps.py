"""Caps of admission: at most so many images of a client, and of a class from all clients together. Plain functions; no Flower."""

import dataclasses
from collections.abc import Mapping

import torch
from torch import Tensor

from distill.condensed import CondensedSet


def capped(upload: CondensedSet, most: int | None) -> CondensedSet:
    """At most ``most`` images: the first ones of each class, as evenly as the classes allow."""
    if most is None or len(upload.images) <= most:
        return upload
    return part_of(upload, evenly(upload.hard_labels, most))


def class_rows(uploads: Mapping[int, CondensedSet], most: int) -> dict[int, Tensor]:
    """Which images (n,) of each client join where a class may have ``most`` from all clients together.

    The first of each client come first, then the second of each, so that nobody displaces others by sending more.
    """
    clients = sorted(uploads)
    claimed = torch.cat([uploads[client].hard_labels.cpu() for client in clients])
    # An image's number among those of its class at its client; ties go by client number.
    number = torch.cat([place_in_class(uploads[client].hard_labels.cpu()) for client in clients])
    joins = torch.ones(len(claimed), dtype=torch.bool)
    for label in claimed.unique().tolist():
        rows = (claimed == label).nonzero().flatten()
        joins[rows[number[rows].argsort(stable=True)[most:]]] = False
    return dict(zip(clients, joins.split([len(uploads[client]) for client in clients]), strict=True))


def evenly(claimed: Tensor, most: int) -> Tensor:
    """Positions (at most ``most``) in labels (N,): the first ones of each class, as evenly as the classes allow, in order."""
    return place_in_class(claimed).argsort(stable=True)[:most].sort().values


def place_in_class(claimed: Tensor) -> Tensor:
    """For each of the labels (N,) how many equal ones are before it."""
    place = torch.zeros_like(claimed)
    for label in claimed.unique().tolist():
        place[claimed == label] = torch.arange(int((claimed == label).sum()), device=claimed.device)
    return place


def part_of(upload: CondensedSet, rows: Tensor) -> CondensedSet:
    """The stored images at these positions, or where a mask is true."""
    return dataclasses.replace(upload, images=upload.images[rows], labels=upload.labels[rows], quantisation=None)
