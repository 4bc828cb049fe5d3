"""Coresets: real images, or means of them, chosen without learning; the baselines of every application.

Each works class by class, on normalised pixels or on features, and returns a `CondensedSet`. Only one class is in memory at a time.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from distill.batches import Embed, chunk_size
from distill.condensed import CondensedSet, Provenance
from distill.data import ImageData
from distill.errors import InputError, clipped, unknown_name

CORESETS = ("random", "herding", "kcenter", "kmeans", "class_mean")


def select(data: ImageData, name: str, ipc: int | Sequence[int], generator: torch.Generator, embed: Embed | None = None) -> CondensedSet:
    """Choose a coreset of the training split.

    Args:
        data: the data.
        name: a name in `CORESETS`.
        ipc: images per class (a class with fewer gives all it has), or counts by class (K,), such as another set's `CondensedSet.counts`.
        generator: source of the random choices.
        embed: maps normalised images (n, C, H, W) to the features (n, D) by which they are compared; None: their pixels.

    Returns:
        The chosen images (for "class_mean" averages of images), in order of their classes.

    Raises:
        InputError: for an unknown name, or counts that do not fit the classes.
    """
    if name not in CORESETS:
        raise unknown_name("coreset", name, CORESETS)
    counts = available(data, ipc)
    labels = torch.arange(len(counts), device=data.device).repeat_interleave(torch.tensor(counts, device=data.device))
    # Allocated first: small results between the large pools would keep their memory from being returned to the system.
    images = torch.empty((len(labels), *data.spec.shape), device=data.device)
    for label in (label for label, count in enumerate(counts) if count):
        images[labels == label] = _chosen(data, label, name, counts[label], generator, embed)
    stated = ipc if isinstance(ipc, int) else list(ipc)
    provenance = Provenance(f"coreset:{name}", {"ipc": stated, "features": embed is not None}, fingerprint=data.fingerprint)
    return CondensedSet(images, labels, data.spec, provenance=provenance, whitening=data.whitening)


def available(data: ImageData, ipc: int | Sequence[int]) -> list[int]:
    """Counts by class (K,) of a coreset with ``ipc`` images per class, or with these counts, limited to what each class has."""
    requested = [ipc] * data.spec.num_classes if isinstance(ipc, int) else list(ipc)
    if isinstance(ipc, int) and ipc < 1:
        raise InputError(f"ipc is {ipc}; allowed: 1 or more.")
    if len(requested) != data.spec.num_classes or not all(type(count) is int and count >= 0 for count in requested):
        allowed = f"{data.spec.num_classes} whole numbers of 0 or more, one a class"
        raise InputError(f"counts by class are {clipped(requested)}; allowed: {allowed}.")
    counts = [min(count, present) for count, present in zip(requested, data.counts, strict=True)]
    if not any(counts):
        raise InputError(f"counts by class are {clipped(requested)}; data {data.spec.name!r} has no training images of these classes.")
    return counts


def _chosen(data: ImageData, label: int, name: str, count: int, generator: torch.Generator, embed: Embed | None) -> Tensor:
    """``count`` images (count, C, H, W) of one class."""
    places = data.class_indices(label)
    if name == "random":
        picks = torch.randperm(len(places), generator=generator, device=generator.device)[:count].to(places.device)
        if data.whitening is None:
            return data.normalised("train", places[picks])
        # A matrix product over other rows rounds differently, so white images are made a whole class at a time.
        return data.normalised("train", places)[picks]
    pool = data.normalised("train", places)
    if name == "class_mean":
        return _group_means(pool, count, generator)
    picks = {"herding": _herding, "kcenter": _kcenter, "kmeans": clustered}[name](_features(pool, embed), count, generator)
    return pool[picks.to(pool.device)]


def _features(images: Tensor, embed: Embed | None) -> Tensor:
    if embed is None:
        return images.flatten(1)
    with torch.no_grad():
        return torch.cat([embed(part).flatten(1) for part in images.split(chunk_size(images))])


def _herding(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Welling, ICML 2009: add the image that brings the running mean nearest to the class mean; ties go to the first."""
    mean = features.double().mean(0)
    rows = features.double()
    free = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
    total = torch.zeros_like(mean)
    picks = []
    for step in range(count):
        distance = ((total + rows) / (step + 1) - mean).square().sum(1)
        pick = distance.masked_fill(~free, float("inf")).argmin()
        free[pick] = False
        total += rows[pick]
        picks.append(pick)
    return torch.stack(picks)


def _kcenter(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Greedy k-center (Gonzalez, 1985): start at the image nearest to the class mean, then add the one farthest from all chosen."""
    rows = features.double()
    picks = [(rows - rows.mean(0)).square().sum(1).argmin()]
    nearest = (rows - rows[picks[0]]).square().sum(1)
    for _ in range(count - 1):
        picks.append(nearest.argmax())
        nearest = torch.minimum(nearest, (rows - rows[picks[-1]]).square().sum(1))
    return torch.stack(picks)


def clustered(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The real image nearest to each of ``count`` cluster centres (Lloyd from k-means++), on the host; no image twice."""
    from sklearn.cluster import KMeans  # slow to import

    rows = features.double().cpu()
    state = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
    centres = torch.from_numpy(KMeans(count, n_init=1, random_state=state).fit(rows.numpy()).cluster_centers_)
    distance = torch.cdist(centres, rows)
    picks = []
    for row in distance:
        pick = row.argmin()
        distance[:, pick] = float("inf")
        picks.append(pick)
    return torch.stack(picks)


def _group_means(images: Tensor, ipc: int, generator: torch.Generator) -> Tensor:
    """Means of ``ipc`` random groups of equal size; with ipc 1 the class mean. A class with fewer images than ``ipc`` gives them all."""
    order = torch.randperm(len(images), generator=generator, device=generator.device).to(images.device)
    return torch.stack([images[part].mean(0) for part in order.tensor_split(min(ipc, len(images)))])
