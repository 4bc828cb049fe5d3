"""Coresets: real images, or means or crops of them, chosen without learning pixels; the baselines of every application.

Each works class by class, on normalised pixels or on features, and returns a `CondensedSet`. Only one class is in memory at a time. Those
of `TRAINED` choose by networks that are trained on the data (`distill.scored_coresets`).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from distill.batches import Embed, chunk_size
from distill.condensed import CondensedSet, Provenance
from distill.data import ImageData
from distill.errors import InputError, clipped, unknown_name
from distill.scored_coresets import Scorer, features, scored_crops, scores, trained

Pick = Callable[[Tensor, int, torch.Generator], Tensor]  # (features (n, D), count, generator) to positions (count,)


class Pool(NamedTuple):
    """The training images of one class, what they are compared by, and the source of random choices."""

    data: ImageData
    label: int
    embed: Embed | None
    scorer: Scorer
    generator: torch.Generator

    @property
    def places(self) -> Tensor:
        """Positions (n,) of its images in the training split."""
        return self.data.class_indices(self.label)

    @property
    def images(self) -> Tensor:
        """All of them (n, C, H, W), normalised."""
        return self.data.normalised("train", self.places)


@dataclass(frozen=True)
class Coreset:
    """A kind of coreset.

    Attributes:
        chosen: (images of a class, how many of them) to the chosen ones (count, C, H, W).
        drawn: whether another generator gives other images.
    """

    chosen: Callable[[Pool, int], Tensor]
    drawn: bool = True


def select(
    data: ImageData,
    name: str,
    ipc: int | Sequence[int],
    generator: torch.Generator,
    embed: Embed | None = None,
    *,
    scorer: Scorer | None = None,
) -> CondensedSet:
    """Choose a coreset of the training split.

    Args:
        data: the data.
        name: a name in `CORESETS` or `TRAINED`.
        ipc: images per class (a class with fewer gives all it has), or counts by class (K,), such as another set's `CondensedSet.counts`.
        generator: source of the random choices.
        embed: maps normalised images (n, C, H, W) to the features (n, D) by which they are compared; None: their pixels.
        scorer: networks that those of `TRAINED` choose by, trained now or before; None: the defaults of `Scorer`.

    Returns:
        The chosen images (for "class_mean" averages of images, for "rded" crops, for "noise" none), in order of their classes.

    Raises:
        InputError: for an unknown name, or counts that do not fit the classes.
    """
    if name not in EVERY:
        raise unknown_name("coreset", name, EVERY)
    counts, scorer = available(data, ipc), scorer or Scorer()
    labels = torch.arange(len(counts), device=data.device).repeat_interleave(torch.tensor(counts, device=data.device))
    # Allocated first: small results between the large pools would keep their memory from being returned to the system.
    images = torch.empty((len(labels), *data.spec.shape), device=data.device)
    for label in (label for label, count in enumerate(counts) if count):
        images[labels == label] = EVERY[name].chosen(Pool(data, label, embed, scorer, generator), counts[label])
    stated = ipc if isinstance(ipc, int) else list(ipc)
    config: dict[str, object] = {"ipc": stated, "features": embed is not None}
    config |= {"scorer": str(scorer)} if name in TRAINED else {}
    provenance = Provenance(f"coreset:{name}", config, fingerprint=data.fingerprint)
    return CondensedSet(images, labels, data.spec, provenance=provenance, whitening=data.whitening)


def train_scorer(names: Sequence[str], data: ImageData, scorer: Scorer | None, *, progress: bool | None = None) -> None:
    """Train the networks now that any of these coresets chooses by, with a progress bar, so that `select` finds them in the cache."""
    if any(name in TRAINED for name in names):
        trained(data, scorer or Scorer(), progress=progress)


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


def _random(pool: Pool, count: int) -> Tensor:
    places, source = pool.places, pool.generator
    picks = torch.randperm(len(places), generator=source, device=source.device)[:count].to(places.device)
    if pool.data.whitening is None:
        return pool.data.normalised("train", places[picks])
    # A matrix product over other rows rounds differently, so white images are made a whole class at a time.
    return pool.images[picks]


def _by_rows(pick: Pick) -> Callable[[Pool, int], Tensor]:
    """Chosen by pixels, or by the caller's features."""

    def chosen(pool: Pool, count: int) -> Tensor:
        images = pool.images
        return images[pick(_features(images, pool.embed), count, pool.generator).to(images.device)]

    return chosen


def _by_network(pick: Pick) -> Callable[[Pool, int], Tensor]:
    """Chosen by features of a network trained on the data."""
    return lambda pool, count: _by_rows(pick)(pool._replace(embed=features(pool.data, pool.scorer)), count)


def _hardest(name: str) -> Callable[[Pool, int], Tensor]:
    """The images with the highest score; ties go to the first."""

    def chosen(pool: Pool, count: int) -> Tensor:
        places = pool.places
        order = scores(pool.data, name, pool.scorer)[places].argsort(descending=True, stable=True)
        return pool.data.normalised("train", places[order[:count]])

    return chosen


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
    """The real image nearest to each of ``count`` cluster centres (Lloyd from k-means++), on the host; no image twice.

    Both images of a cluster of two are equally near: the first one is taken, not the one that rounding prefers.
    """
    from sklearn.cluster import KMeans  # slow to import

    rows = features.double().cpu()
    state = int(torch.randint(2**31 - 1, (1,), generator=generator, device=generator.device))
    centres = torch.from_numpy(KMeans(count, n_init=1, random_state=state).fit(rows.numpy()).cluster_centers_)
    distance = torch.cdist(centres, rows)
    picks = []
    for row in distance:
        pick = (row <= (1 + 1e-5) * row.min()).to(torch.uint8).argmax()
        distance[:, pick] = float("inf")
        picks.append(pick)
    return torch.stack(picks)


def _group_means(pool: Pool, ipc: int) -> Tensor:
    """Means of ``ipc`` random groups of equal size; with ipc 1 the class mean. A class with fewer images than ``ipc`` gives them all."""
    images, source = pool.images, pool.generator
    order = torch.randperm(len(images), generator=source, device=source.device).to(images.device)
    return torch.stack([images[part].mean(0) for part in order.tensor_split(min(ipc, len(images)))])


def _noise(pool: Pool, count: int) -> Tensor:
    """Standard normal numbers: what labels teach without images, where a teacher gives them ("label-only")."""
    source = pool.generator
    return torch.randn(count, *pool.data.spec.shape, generator=source, device=source.device).to(pool.data.device)


# Chosen by pixels, or by features that the caller gives; noise shows what labels alone give.
CORESETS = {
    "random": Coreset(_random),
    "herding": Coreset(_by_rows(_herding), drawn=False),
    "kcenter": Coreset(_by_rows(_kcenter), drawn=False),
    "kmeans": Coreset(_by_rows(clustered)),
    "class_mean": Coreset(_group_means),
    "noise": Coreset(_noise),
}
# Chosen by networks trained on the data: their features, as papers on dataset distillation have herding and k-center; the hardest images by
# three scores; crops of the easiest.
TRAINED = {
    "herding_features": Coreset(_by_network(_herding), drawn=False),
    "kcenter_features": Coreset(_by_network(_kcenter), drawn=False),
    "kmeans_features": Coreset(_by_network(clustered)),
    "forgetting": Coreset(_hardest("forgetting"), drawn=False),
    "el2n": Coreset(_hardest("el2n"), drawn=False),
    "grand": Coreset(_hardest("grand"), drawn=False),
    "rded": Coreset(lambda pool, count: scored_crops(pool.data, pool.label, count, pool.scorer, pool.generator)),
}
EVERY = {**CORESETS, **TRAINED}
