"""Neural Cleanse: the smallest patch that turns images into each class, for networks that are trained on a set from elsewhere.

python -m apps.privacy.cleanse SET.safetensors --data NAME       which classes have a patch that is much smaller than the others'

Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", S&P 2019. For each class a mask and a pattern
are learned that turn images of other classes into it, with as small a mask as nearly all of them allow. A backdoor is a shortcut, so that
its class needs much less than the others: an anomaly index above 2. The trigger may have any place and shape, unlike that of
`apps.privacy.poisoning.patch_reach`; one that covers the whole image, or is larger than what clean classes need, is not found.
"""

import dataclasses
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.batches import chunk_size
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.data import ImageData
from distill.errors import InputError
from distill.randomness import generator
from distill.spec import DataSpec

ANOMALY = 2.0  # index from which a class is suspicious
MAD = 1.4826  # of a normal distribution, the standard deviation over the median absolute deviation
BETAS, CLIMB, FALL, PATIENCE = (0.5, 0.9), 1.5, 1.5**1.5, 5  # of the authors' code


@config_class
class Search:
    """How a mask and a pattern are learned.

    Attributes:
        rounds: of ``steps`` each, after which the weight of the mask's size may change.
        steps: Adam updates of a round.
        batch_size: images of an update.
        lr: Adam's step size.
        cost: first weight of the mask's size; it grows while the success is reached, and falls while it is not.
        success: share of a round's images that must become the class.
        overshoot: how far the pattern's pixels may leave [0, 1], in both directions: a set of floats can teach such triggers.
    """

    rounds: Annotated[int, Field(ge=1)] = 40
    steps: Annotated[int, Field(ge=1)] = 10
    batch_size: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 0.1
    cost: Annotated[float, Field(gt=0)] = 1e-3
    success: Annotated[float, Field(gt=0, le=1)] = 0.99
    overshoot: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True, eq=False)
class Reversed:
    """The smallest patch of a class.

    Attributes:
        target: the class.
        mask: (H, W) in [0, 1], how far the pattern covers the image.
        pattern: (C, H, W) pixels.
        success: share of the last round's images that became the class.
        index: anomaly index; negative for a class that needs more than the median one.
    """

    target: int
    mask: Tensor
    pattern: Tensor
    success: float
    index: float = 0.0

    @property
    def size(self) -> float:
        """Sum of the mask: pixels that the patch covers."""
        return float(self.mask.sum())

    @property
    def suspicious(self) -> bool:
        """Whether the class needs much less than the others."""
        return self.index > ANOMALY


def covered(images: Tensor, mask: Tensor, pattern: Tensor, spec: DataSpec) -> Tensor:
    """Normalised images (n, C, H, W) under a pattern (C, H, W) of pixels, as far as the mask (H, W) says; differentiable."""
    return images * (1 - mask) + mask * spec.normalise(pattern[None])[0]


def smallest_patch(networks: Sequence[nn.Module], images: Tensor, spec: DataSpec, target: int, search: Search, seed: int) -> Reversed:
    """The patch that turns normalised images (n, C, H, W) of other classes into ``target`` in all networks, in evaluation mode.

    The smallest mask of the rounds that reach the success, or the last one where none does.
    """
    draws = generator(seed, "cleanse", target)
    shape = (spec.height, spec.width)
    inner_mask = (torch.rand(shape, generator=draws) * 2 - 1).to(images.device).requires_grad_(True)
    inner_pattern = (torch.rand(spec.shape, generator=draws) * 2 - 1).to(images.device).requires_grad_(True)
    adam = torch.optim.Adam([inner_mask, inner_pattern], search.lr, betas=BETAS)
    labels = torch.full((search.batch_size,), target, device=images.device)
    cost, above, below = search.cost, 0, 0
    best: Reversed | None = None
    for _ in range(search.rounds):
        hits = 0.0
        for _ in range(search.steps):
            mask, pattern = _opened(inner_mask, inner_pattern, search.overshoot)
            rows = torch.randint(len(images), (search.batch_size,), generator=draws).to(images.device)
            outputs = [network(covered(images[rows], mask, pattern, spec)) for network in networks]
            loss = torch.stack([F.cross_entropy(each, labels) for each in outputs]).mean() + cost * mask.sum()
            inner_mask.grad, inner_pattern.grad = torch.autograd.grad(loss, [inner_mask, inner_pattern])
            adam.step()
            hits += sum(float((each.argmax(1) == target).float().mean()) for each in outputs) / len(outputs) / search.steps
        mask, pattern = (part.detach() for part in _opened(inner_mask, inner_pattern, search.overshoot))
        reached, found = hits >= search.success, Reversed(target, mask.clone(), pattern.clone(), hits)
        if best is None or _better(found, best, search.success):
            best = found
        above, below = (above + 1, 0) if reached else (0, below + 1)
        if above >= PATIENCE:
            cost, above = cost * CLIMB, 0
        elif below >= PATIENCE:
            cost, below = cost / FALL, 0
    assert best is not None
    return best


def _better(new: Reversed, old: Reversed, success: float) -> bool:
    """Whether to take the later patch: of two that reach the success the smaller one counts, of two that do not the later one."""
    if new.success < success:
        return old.success < success
    return old.success < success or new.size < old.size


def _opened(mask: Tensor, pattern: Tensor, overshoot: float) -> tuple[Tensor, Tensor]:
    """The mask in [0, 1] and the pattern in its range, from unbounded numbers."""
    return (mask.tanh() + 1) / 2, (pattern.tanh() + 1) / 2 * (1 + 2 * overshoot) - overshoot


def anomalies(sizes: Sequence[float]) -> list[float]:
    """For each size how many standard deviations it lies below the median, by the median absolute deviation; 0 where that is 0."""
    middle = statistics.median(sizes)
    spread = MAD * statistics.median([abs(size - middle) for size in sizes])
    return [(middle - size) / spread if spread else 0.0 for size in sizes]


def cleanse(
    networks: Sequence[nn.Module], data: ImageData, search: Search | None = None, *, images: int = 256, seed: int = 0
) -> list[Reversed]:
    """The smallest patch of each class, with its anomaly index.

    Args:
        networks: trained on the set; a patch must work in all of them.
        data: clean data, whose test images are turned into other classes.
        search: see there; None: its defaults.
        images: most test images that are used.
        seed: of the images, the first patches and the batches.

    Returns:
        One entry a class of the data.

    Raises:
        InputError: the data are whitened, have fewer than three classes, or no test images of other classes.
    """
    if data.whitening is not None:
        raise InputError("patches are looked for in plain images; give data without whitening.")
    if len(data.classes) < 3:
        raise InputError(f"data {data.spec.name!r} has {len(data.classes)} classes; allowed: at least 3, as classes are compared.")
    order = torch.randperm(len(data.test), generator=generator(seed, "cleanse", "images")).to(data.device)
    for network in networks:
        network.eval().requires_grad_(False)
    found = []
    for target in data.classes:
        chosen = order[data.test.labels[order] != target][:images]
        if not len(chosen):
            raise InputError(f"data {data.spec.name!r} has no test images of other classes than {target}.")
        clean = torch.cat([data.normalised("test", part) for part in chosen.split(chunk_size(data.train.images))])
        found.append(smallest_patch(networks, clean, data.spec, target, search or Search(), seed))
    indices = anomalies([each.size for each in found])
    return [dataclasses.replace(each, index=index) for each, index in zip(found, indices, strict=True)]


def main(arguments: list[str]) -> int:
    """The command of the module's docstring."""
    import argparse

    from distill.comparison import compared
    from distill.data_sources import load
    from distill.evaluation import fitted
    from distill.train import train_on

    parser = argparse.ArgumentParser(
        prog="python -m apps.privacy.cleanse", description="The smallest patch that turns images into each class."
    )
    parser.add_argument("set", type=Path, help="a condensed set's .safetensors file")
    parser.add_argument("--data", required=True, help="clean data of the same kind")
    parser.add_argument("--network", default="ConvNetW32")
    parser.add_argument("--networks", type=int, default=2)
    parser.add_argument("--overshoot", type=float, default=0.0, help="how far a pattern's pixels may leave [0, 1]")
    options = parser.parse_args(arguments)
    try:
        if options.networks < 1 or options.overshoot < 0:
            raise InputError(f"networks {options.networks}, overshoot {options.overshoot:g}; allowed: 1 or more, and 0 or more.")
        tiny = CondensedSet.load(options.set)
        data = fitted(tiny, load(options.data, **tiny.spec.given))
        trained = train_on(tiny, options.network, compared("laptop", tiny, data), options.networks)
        found = cleanse(trained, data, Search(overshoot=options.overshoot))
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{'class':>12}  pixels of the smallest patch  success  anomaly index (suspicious above {ANOMALY:g})")
    for each in found:
        mark = "  suspicious" if each.suspicious else ""
        print(f"{data.spec.classes[each.target]:>12}  {each.size:28.1f}  {100 * each.success:5.0f} %  {each.index:13.2f}{mark}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
