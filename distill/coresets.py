"""Coresets: real images (or their means) chosen without learning; every app's baselines.

All work class by class on normalised pixels, or on features when ``embed`` is given, and return a `CondensedSet`. A class with fewer
than ``ipc`` images gives what it has.
"""

import torch
from sklearn.cluster import KMeans
from torch import Tensor

from distill.condensed import CondensedSet, Provenance
from distill.data import ImageData
from distill.errors import InputError, unknown_name
from distill.statistics import Embed, chunk_size

CORESETS = ("random", "herding", "kcenter", "kmeans", "class_mean")


def select(data: ImageData, name: str, ipc: int, generator: torch.Generator, embed: Embed | None = None) -> CondensedSet:
    """The coreset called ``name``: at most ``ipc`` images of each class that the training split has; `InputError` for an unknown name.

    ``embed`` maps normalised images (n, C, H, W) to the features (n, D) by which images are compared; without it their pixels are.
    """
    if name not in CORESETS:
        raise unknown_name("coreset", name, CORESETS)
    if ipc < 1:
        raise InputError(f"ipc is {ipc}; allowed: 1 or more.")
    images, labels = [], []
    for label in data.classes:
        pool = data.normalised("train", data.class_indices(label))
        features = _features(pool, embed)
        if name == "class_mean":
            chosen = _group_means(pool, ipc, generator)
        else:
            picks = {"random": _random, "herding": _herding, "kcenter": _kcenter, "kmeans": _kmeans}[name](
                features, min(ipc, len(pool)), generator
            )
            chosen = pool[picks.to(pool.device)]
        images.append(chosen)
        labels += [label] * len(chosen)
    provenance = Provenance(f"coreset:{name}", {"ipc": ipc, "features": embed is not None}, fingerprint=data.fingerprint)
    where = torch.tensor(labels, device=data.device)
    return CondensedSet(torch.cat(images), where, data.spec, provenance=provenance, whitening=data.whitening)


def _features(images: Tensor, embed: Embed | None) -> Tensor:
    if embed is None:
        return images.flatten(1)
    with torch.no_grad():
        return torch.cat([embed(part).flatten(1) for part in images.split(chunk_size(images))])


def _random(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return torch.randperm(len(features), generator=generator, device=generator.device)[:count]


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


def _kmeans(features: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """The real image nearest to each of ``count`` cluster centres (Lloyd from k-means++); no image twice."""
    rows = features.double().cpu().numpy()
    state = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
    centres = torch.from_numpy(KMeans(count, n_init=1, random_state=state).fit(rows).cluster_centers_).to(features.device)
    distance = torch.cdist(centres, features.double())
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
