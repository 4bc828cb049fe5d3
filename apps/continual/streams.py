"""Streams of experiences, each an `ImageData` of one common spec: classes that arrive in a seeded order, or domains one after the other."""

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.condensed import CondensedSet, Provenance
from distill.data import ImageData, Split
from distill.errors import InputError
from distill.randomness import generator


def class_order(classes: Sequence[int], seed: int) -> list[int]:
    """The classes in the order that numpy's legacy generator gives for this seed: seeds 0 to 4 are the orders of DM's protocol."""
    return [classes[i] for i in np.random.RandomState(seed).permutation(len(classes))]


def class_incremental(data: ImageData, experiences: int, order_seed: int) -> list[ImageData]:
    """Equal parts of the classes, in a seeded order; `InputError` when they do not divide."""
    if experiences < 1 or len(data.classes) % experiences:
        raise InputError(
            f"{len(data.classes)} classes do not divide into {experiences} experiences; allowed: "
            f"{', '.join(str(n) for n in range(1, len(data.classes) + 1) if len(data.classes) % n == 0)}."
        )
    order = class_order(data.classes, order_seed)
    size = len(order) // experiences
    return [data.subset(order[i : i + size]) for i in range(0, len(order), size)]


def domain_incremental(domains: Sequence[ImageData]) -> list[ImageData]:
    """Data sets of the same classes as one stream: images enlarged (bilinear) and turned grey or coloured as the largest of them needs.

    All are normalised by the first one's mean and std. Raises `InputError` when class names differ.
    """
    if len(domains) < 2:
        raise InputError(f"a domain-incremental stream was given {len(domains)} data set; allowed: two or more.")
    names = domains[0].spec.classes
    for data in domains[1:]:
        if data.spec.num_classes != len(names):
            raise InputError(f"data {data.spec.name!r} has {data.spec.num_classes} classes and {domains[0].spec.name!r} {len(names)}.")
    channels = max(data.spec.channels for data in domains)
    height, width = max(data.spec.height for data in domains), max(data.spec.width for data in domains)
    first = domains[0].spec
    mean, std = (tuple(values[i % len(values)] for i in range(channels)) for values in (first.mean, first.std))
    spec = dataclasses.replace(first, channels=channels, height=height, width=width, mean=mean, std=std, population_origin="computed")
    size = (height, width)
    return [
        ImageData(
            spec,
            _fitted(data.train, channels, size),
            _fitted(data.validation, channels, size),
            _fitted(data.test, channels, size),
        )
        for data in domains
    ]


def _fitted(split: Split, channels: int, size: tuple[int, int]) -> Split:
    images = split.images
    if images.shape[1:] == (channels, *size):
        return split
    as_float = images.float() / 255 if images.dtype == torch.uint8 else images
    parts = []
    for part in as_float.split(4096):
        part = F.interpolate(part, size=size, mode="bilinear", align_corners=False) if tuple(part.shape[2:]) != size else part
        part = part.mean(1, keepdim=True).expand(-1, channels, -1, -1) if part.shape[1] != channels else part
        parts.append((part * 255).round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else part)
    empty = images.new_zeros((0, channels, *size))
    return Split(torch.cat(parts) if len(images) else empty, split.labels)


def joined(stream: Sequence[ImageData]) -> ImageData:
    """All experiences as one data set."""

    def part(splits: Sequence[Split]) -> Split:
        return Split(torch.cat([split.images for split in splits]), torch.cat([split.labels for split in splits]))

    return dataclasses.replace(
        stream[0],
        train=part([experience.train for experience in stream]),
        validation=part([experience.validation for experience in stream]),
        test=part([experience.test for experience in stream]),
    )


def experience_tensors(data: ImageData) -> tuple[Tensor, Tensor]:
    """An experience's normalised training images (N, C, H, W) and labels (N,), as a learner sees them."""
    return data.normalised("train", torch.arange(len(data.train), device=data.device)), data.train.labels


def reservoir(stream: Sequence[ImageData], items: int, seed: int) -> CondensedSet:
    """What a reservoir of ``items`` places holds after these experiences: each image seen is as likely to be in it (Vitter, 1985).

    Each image draws a key, and the largest keys stay; a longer stream only adds keys, so the reservoir is the same one growing older.
    """
    keys = torch.cat([torch.rand(len(e.train), generator=generator(seed, "reservoir", i)) for i, e in enumerate(stream)])
    chosen = keys.topk(min(items, len(keys))).indices.sort().values.to(stream[0].device)
    whole = joined(stream)
    return CondensedSet(
        whole.normalised("train", chosen), whole.train.labels[chosen], whole.spec, provenance=Provenance("reservoir", {"items": items})
    )
