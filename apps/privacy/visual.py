"""Visual privacy: is an image of a set nearer to its training images than to as many images that it never saw?

    python -m apps.privacy.visual SET.safetensors --data NAME [--holdout test] [--limit N] [--out pairs.png]

Three distances: pixels (root mean square), structure (1 - SSIM) and features of a network trained on the set itself, to which training and
holdout images are equally strange. A small distance alone says little: some data sets are full of images that look alike. What counts is
the comparison with the holdout. Nothing found is no proof of privacy.
"""

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from apps.privacy.distances import Distance, Fetch, Nearest, nearest, root_mean_square, structure
from apps.privacy.figures import closest_pairs
from apps.privacy.metrics import Interval, clopper_pearson
from distill.batches import chunk_size
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError, unknown_name
from distill.evaluation import fitted
from distill.networks import Factory, embed
from distill.randomness import generator
from distill.train import Recipe, train_network

MEASURES = ("pixels", "structure", "features")


@dataclass(frozen=True)
class Closeness:
    """How a set's n images compare by one distance.

    ``share_closer``: share of images whose nearest training image is nearer than their nearest holdout image. ``chance`` is what it is
    where nothing was copied (training images over all images compared); 1 is copies. ``share_outstanding``: share of images whose nearest
    training image stands out more from the second nearest than their nearest holdout image does; half where nothing was copied, 1 for
    copies, and less where training images repeat themselves. ``median_ratio`` (train over holdout) and ``fifth_percentiles`` (train,
    holdout) say how much, at one size of both sides; ``first_to_second`` is the median ratio of the nearest to the second nearest.
    ``found``: the nearest among all training images.
    """

    share_closer: Interval
    chance: float
    share_outstanding: Interval
    median_ratio: float
    fifth_percentiles: tuple[float, float]
    first_to_second: float
    found: Nearest

    @property
    def copied(self) -> bool:
        """Whether more is alike than chance explains: either share's 95 % interval lies above what chance gives."""
        return self.share_closer.low > self.chance or self.share_outstanding.low > 0.5

    def as_dict(self) -> dict[str, object]:
        return {
            "share_closer": dataclasses.asdict(self.share_closer),
            "chance": self.chance,
            "share_outstanding": dataclasses.asdict(self.share_outstanding),
            "median_ratio": self.median_ratio,
            "fifth_percentile_train": self.fifth_percentiles[0],
            "fifth_percentile_holdout": self.fifth_percentiles[1],
            "first_to_second": self.first_to_second,
            "smallest": float(self.found.distance.min()),
            "images": len(self.found.distance),
            "copied": self.copied,
        }

    def __str__(self) -> str:
        shares = f"closer to train {self.share_closer} (chance {self.chance:.3g}), outstanding {self.share_outstanding} (chance 0.5)"
        ratios = f"median ratio {self.median_ratio:.3f}, nearest / second {self.first_to_second:.3f}"
        return f"{shares}, {ratios}: {'COPIES' if self.copied else 'no copying seen'}"


def closeness(points: Tensor, train: tuple[int, Fetch], holdout: tuple[int, Fetch], distance: Distance, seed: int = 0) -> Closeness:
    """Compare a set's images with (count, fetch) of training and of holdout images.

    More images are nearer by chance alone. For the shares, chance is known: where a set owes nothing to its training images, the nearest of
    all images compared is any of them with equal probability, and how much it stands out does not depend on their number. For distances
    both sides are cut to one size: training images into as many parts as there are, by a seeded draw. Ties count half.
    """
    size = min(train[0], holdout[0])
    if size < 1:
        raise InputError(f"{train[0]} training and {holdout[0]} holdout images; allowed: at least one of each.")
    draws = generator(seed, "visual")
    sides = []
    for count, fetch in (train, holdout):
        positions = torch.randperm(count, generator=draws).to(points.device).split(size)
        parts = [nearest(points, fetch, part, distance) for part in positions]
        equal = torch.stack([part.distance for part, there in zip(parts, positions, strict=True) if len(there) == size])
        sides.append((_together(parts), equal.double()))
    (inside, near), (outside, away) = sides
    ratio, holdout_ratio = (side.distance / side.second.clamp_min(1e-12) for side in (inside, outside))
    return Closeness(
        _share(inside.distance, outside.distance),
        train[0] / (train[0] + holdout[0]),
        _share(ratio, holdout_ratio),
        float(near.median() / away.median().clamp_min(1e-12)),
        (float(near.flatten().quantile(0.05)), float(away.flatten().quantile(0.05))),
        float(ratio.median()),
        inside,
    )


def _together(parts: Sequence[Nearest]) -> Nearest:
    """The nearest among all parts."""
    both = torch.cat([torch.stack([part.distance, part.second]) for part in parts]).sort(dim=0, stable=True).values
    best = torch.stack([part.distance for part in parts]).argmin(0)
    return Nearest(both[0], both[1], torch.stack([part.position for part in parts]).gather(0, best[None])[0])


def _share(ours: Tensor, theirs: Tensor) -> Interval:
    """How often ours is smaller, with its exact interval over images."""
    share = float(((ours < theirs).double() + 0.5 * (ours == theirs)).mean())
    return Interval(share, *clopper_pearson(round(share * len(ours)), len(ours)))


def visual_privacy(
    condensed: CondensedSet,
    data: ImageData,
    *,
    measures: Sequence[str] = MEASURES,
    holdout: str = "test",
    network: Factory = "ConvNet",
    recipe: Recipe | str = "laptop",
    limit: int | None = None,
    seed: int = 0,
) -> dict[str, Closeness]:
    """`Closeness` of a set by each measure, to ``data``'s training split and the split called ``holdout``.

    ``limit`` is the number of images of each split that are compared (drawn by seed); a copy of another image is then not found.
    Raises `InputError` when set and data do not fit, or the holdout is empty.
    """
    for name in measures:
        if name not in MEASURES:
            raise unknown_name("measure", name, MEASURES)
    if holdout not in ("validation", "test"):
        raise unknown_name("holdout", holdout, ("validation", "test"))
    data, condensed = fitted(condensed, data), condensed.to(data.device)
    draws = generator(seed, "visual", "limit")
    condensed, chosen = condensed.decoded(), {}
    for split in ("train", holdout):
        count = len(getattr(data, split))
        if not count:
            raise InputError(f"data {data.spec.name!r} has no {split} images to compare with; load it with validation=0.1, or use 'test'.")
        kept = torch.randperm(count, generator=draws)[: limit or count].sort().values
        chosen[split] = kept.to(data.device)

    def pixels(split: str) -> tuple[int, Fetch]:
        images, kept = getattr(data, split).images, chosen[split]
        return len(kept), lambda index: images[kept[index]].float() / (255 if images.dtype == torch.uint8 else 1)

    trained = train_network(condensed, network, recipe, seed, data.device) if "features" in measures else None

    def features(images: Tensor) -> Tensor:
        assert trained is not None
        with torch.no_grad():
            return torch.cat([embed(trained, part) for part in images.split(chunk_size(images))])

    def embedded(split: str) -> tuple[int, Fetch]:
        rows = torch.cat([features(data.normalised(split, part)) for part in chosen[split].split(4096)])
        return len(rows), lambda index: rows[index]

    rows = {}
    for name in measures:
        fetch, points = (embedded, features(condensed.images)) if name == "features" else (pixels, condensed.pixels())
        row = closeness(points, fetch("train"), fetch(holdout), structure if name == "structure" else root_mean_square, seed)
        there = Nearest(row.found.distance, row.found.second, chosen["train"][row.found.position])
        rows[name] = dataclasses.replace(row, found=there)
    return rows


def main(arguments: list[str]) -> int:
    import argparse

    from distill.data_sources import load
    from distill.drawing import format_of

    parser = argparse.ArgumentParser(
        prog="python -m apps.privacy.visual", description="Is a set nearer to its training images than to others?"
    )
    parser.add_argument("set", type=Path, help="a condensed set's .safetensors file")
    parser.add_argument("--data", required=True, help="the data it was made from")
    parser.add_argument("--holdout", default="test")
    parser.add_argument("--limit", type=int, help="compare at most this many images of each split")
    parser.add_argument("--out", type=Path, help="picture of the closest pairs; default: next to the set")
    options = parser.parse_args(arguments)
    try:
        tiny = CondensedSet.load(options.set)
        # The set's own seed, so that a folder's test images are those that were held out when the set was made.
        data = load(options.data, seed=tiny.provenance.seed or 0, **tiny.spec.given)
        picture = options.out or options.set.with_name(f"{options.set.stem}-pairs.png")
        format_of(picture)
        rows = visual_privacy(tiny, data, holdout=options.holdout, limit=options.limit)
        pairs = closest_pairs(tiny, data, {name: row.found for name, row in rows.items()}, options.set.stem)
        pairs.save(picture)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, row in rows.items():
        print(f"{name:10} {row}")
    print(f"closest pairs: {picture}. Nothing found is no proof of privacy.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
