"""Membership inference on a trained model of one's own: shadow models of the same kind, trained on random halves of the attacked points.

The shadows come in pairs of opposite halves, so that every point is in one of each pair. Which half the target saw has no part in it.
"""

import copy
import dataclasses
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from apps.privacy.attacks import calibrated_scores, lira_scores, losses_and_margins, rmia_scores, threshold_scores
from distill.data import ImageData, Split
from distill.errors import InputError
from distill.networks import Factory
from distill.randomness import derived_seed, generator
from distill.recipe import Recipe
from distill.spec import DataSpec
from distill.train import train_network

Scores = dict[str, tuple[np.ndarray, np.ndarray]]  # of members and of others, by attack


@dataclasses.dataclass(frozen=True)
class Fresh:
    """A network function that gives the target's architecture with new weights: every module's own `reset_parameters`.

    Attributes:
        target: the trained model.
    """

    target: nn.Module

    @property
    def __name__(self) -> str:
        return f"{type(self.target).__name__}, new weights"

    def __call__(self, spec: DataSpec) -> nn.Module:
        made = copy.deepcopy(self.target).cpu()
        for name, module in made.named_modules():
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()
            elif own:
                raise InputError(
                    f"the model's part {name or 'itself'} ({type(module).__name__}) has {own[0][0]!r} and no reset_parameters, so that a "
                    "shadow model would know what the target has learned; give --shadow, an import path of a function that makes one."
                )
        return made.train()


def pool_of(data: ImageData, others: str, limit: int | None, seed: int) -> tuple[ImageData, np.ndarray]:
    """As many training images (members) as images of the split ``others``, drawn by chance, and which are members, bool (n,).

    Args:
        data: the data that the target was trained on.
        others: a split that it was not trained on.
        limit: the most of each; None: all of the smaller split.
        seed: of the draw.

    Returns:
        Data whose training split is the pool, without other splits.

    Raises:
        InputError: a split has fewer than 20 images.
    """
    splits = data.train, getattr(data, others)
    count = min(*map(len, splits), limit or max(map(len, splits)))
    if count < 20:
        raise InputError(
            f"data {data.spec.name!r} has {len(splits[1])} {others} images; allowed: 20 or more (give --others, --validation)."
        )
    chosen = []
    for name, split in zip(("members", "others"), splits, strict=True):
        order = torch.randperm(len(split), generator=generator(seed, "attack", name))[:count].to(data.device)
        chosen.append(split.at(order))
    both = Split(torch.cat([split.images for split in chosen]), torch.cat([split.labels for split in chosen]))
    nothing = both.at(torch.zeros(0, dtype=torch.int64, device=data.device))
    return dataclasses.replace(data, train=both, validation=nothing, test=nothing), np.arange(2 * count) < count


def attack_model(
    target: nn.Module, pool: ImageData, members: np.ndarray, shadow: Factory, recipe: Recipe | str, pairs: int, seed: int
) -> Scores:
    """Scores of the pool by each attack: loss, and with shadows calibrated loss, RMIA, and LiRA online and offline.

    Args:
        target: the trained model, which maps normalised images to logits.
        pool: of `pool_of`.
        members: bool (n,).
        shadow: makes an untrained model of the target's kind.
        recipe: how shadow models are trained; the nearer to the target's training, the stronger the attack.
        pairs: of shadow models; 0: the loss attack only.
        seed: of the halves and of the shadows.

    Returns:
        By attack, the scores of members and of others.
    """
    loss, margin = _measured(target, pool)
    scores = {"loss": threshold_scores(loss)}
    if pairs:
        losses, margins, inside = (np.stack(parts) for parts in zip(*_shadows(pool, shadow, recipe, pairs, seed), strict=True))
        outside = np.where(inside[::2], losses[1::2], losses[::2])  # of each pair, for each point, the shadow that did not see it
        probabilities = np.exp(-loss), np.exp(-outside)
        scores["calibrated"] = calibrated_scores(loss, outside)
        scores["rmia"] = rmia_scores(*probabilities, *probabilities)
        scores["lira"] = lira_scores(margin, margins, inside)
        scores["lira-offline"] = lira_scores(margin, margins, inside, online=False)
    return {name: (found[members], found[~members]) for name, found in scores.items()}


def _shadows(
    pool: ImageData, shadow: Factory, recipe: Recipe | str, pairs: int, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """(losses, margins, which points it saw), each (n,), of one shadow model after the other."""
    size = len(pool.train)
    for pair in range(pairs):
        half = np.random.default_rng(derived_seed(seed, "shadow coins", pair)).random(size) < 0.5
        for turn, inside in enumerate((half, ~half)):
            seen = dataclasses.replace(pool, train=pool.train.at(torch.from_numpy(inside.nonzero()[0]).to(pool.device)))
            model = train_network(seen, shadow, recipe, derived_seed(seed, "shadow", pair, turn) % 1_000_000_000, pool.device)
            yield (*_measured(model, pool), inside)


def _measured(model: nn.Module, pool: ImageData) -> tuple[np.ndarray, np.ndarray]:
    parts: list[tuple[np.ndarray, np.ndarray]] = []
    for part in torch.arange(len(pool.train), device=pool.device).split(4096):
        parts.append(losses_and_margins([model], pool.normalised("train", part), pool.train.labels[part]))
    losses, margins = zip(*parts, strict=True)
    return np.concatenate(losses), np.concatenate(margins)


def check_trained(first: nn.Module, second: nn.Module, images: Tensor) -> None:
    """`InputError` where a function that should load a trained model gives other weights each time."""
    with torch.no_grad():
        same = torch.allclose(first.eval()(images), second.eval()(images), rtol=1e-4, atol=1e-5)
    if not same:
        raise InputError(
            "the model's function gives other weights each time it is called; it must return the trained model, for example with "
            "load_state_dict (a function that makes an untrained one is for --shadow)."
        )
