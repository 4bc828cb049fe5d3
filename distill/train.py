"""`train_on`: the only training loop, used by evaluation and by every application."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from distill.augment import augment, for_data, strategy
from distill.batches import chunks
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.descent import Descent
from distill.devices import sent
from distill.fast import accelerated
from distill.labels import DEFAULT_KIND, LABEL_KINDS
from distill.mixing import mixed
from distill.networks import Factory, create, flops, has_batchnorm
from distill.protocols import PROTOCOLS as PROTOCOLS
from distill.protocols import protocol as protocol
from distill.randomness import generator
from distill.recipe import Recipe as Recipe
from distill.soft_losses import LABELLED_AT_ONCE, goal_of
from distill.spec import DataSpec
from distill.tf32 import products
from distill.views import replay_of

# A further term of a batch's loss (scalar): of the network, the augmented images (n, C, H, W), and their labels as the set has them.
Term = Callable[[nn.Module, Tensor, Tensor], Tensor]


def train_on(
    source: CondensedSet | ImageData,
    network: Factory = "ConvNet",
    recipe: Recipe | str = "laptop",
    seeds: int | Iterable[int] = 5,
    device: torch.device | str | None = None,
    *,
    teacher: nn.Module | None = None,
) -> list[nn.Module]:
    """Train networks on a set.

    Args:
        source: a condensed set, or data, of which the training split is used.
        network: a name, or a function of the data spec that returns a module.
        recipe: a `Recipe`, or a name in `PROTOCOLS`.
        seeds: number of networks, or their seeds.
        device: where to train; None: where ``source`` is.
        teacher: the trained network of the recipe's teacher (`distill.teachers.teacher_network`), or your own, whose outputs are logits.

    Returns:
        One network per seed, in evaluation mode, on that device.

    Raises:
        InputError: for an unknown name.
    """
    seeds = range(seeds) if isinstance(seeds, int) else seeds
    return [train_network(source, network, recipe, seed, device, teacher=teacher) for seed in seeds]


def train_network(
    source: CondensedSet | ImageData,
    network: Factory,
    recipe: Recipe | str,
    seed: int,
    device: torch.device | str | None = None,
    *,
    teacher: nn.Module | None = None,
    term: Term | None = None,
) -> nn.Module:
    """Train one network; see `train_on`.

    The seed decides its initial weights, the order of the images and their augmentation. The loss is the recipe's, or that of the set's
    `CondensedSet.label_kind`: cross-entropy, or mean squared error for scores. A set's `CondensedSet.views` are repeated one after the
    other, with their labels, in place of views that are drawn; a teacher labels new views instead. ``term`` is added to each batch's mean
    loss.
    """
    *_, last = training(source, network, recipe, seed, device, teacher=teacher, term=term)
    return last


def training(
    source: CondensedSet | ImageData,
    network: Factory,
    recipe: Recipe | str,
    seed: int,
    device: torch.device | str | None = None,
    *,
    teacher: nn.Module | None = None,
    looks: int = 1,
    term: Term | None = None,
) -> Iterator[nn.Module]:
    """Train one network as `train_network`, and yield it in evaluation mode ``looks`` times, after equal numbers of steps.

    The last time is after the last step. Looks change nothing in the training; fewer steps than looks are one look each.
    """
    stored = len(source) if isinstance(source, CondensedSet) else len(source.train)
    recipe = protocol(recipe, source.spec, network, images=stored) if isinstance(recipe, str) else recipe
    source = source if device is None else source.to(device)
    source = source.decoded() if isinstance(source, CondensedSet) else source
    with products(recipe.precision, source.device if isinstance(source, ImageData) else source.images.device):
        yield from _trained(source, network, recipe, seed, teacher, looks, term)


def _trained(
    source: CondensedSet | ImageData,
    network: Factory,
    recipe: Recipe,
    seed: int,
    teacher: nn.Module | None,
    looks: int,
    term: Term | None,
) -> Iterator[nn.Module]:
    count, where, fetch, lr = _parts(source)
    kind = source.label_kind if isinstance(source, CondensedSet) else DEFAULT_KIND
    every = (fetch(part)[0] for part in torch.arange(count, device=where).split(LABELLED_AT_ONCE))
    transform = strategy(resolved(recipe, source).augmentation)
    replay = None
    if isinstance(source, CondensedSet) and teacher is None and recipe.teacher is None:
        replay = replay_of(source.views, transform, recipe.mix, source.images, source.hard_labels)
    goal = goal_of(recipe, teacher, kind, source.spec.num_classes, every, where, stored=replay is not None)
    loss = LABEL_KINDS[kind].loss
    model = create(network, source.spec, generator(seed, "weights"), where)
    draws = generator(seed, "training")

    per_epoch, total = -(-count // recipe.batch_size), recipe.steps(count)
    descent = Descent(list(model.parameters()), recipe, lr, count)
    whole = has_batchnorm(model)
    average = None
    if recipe.ema is not None:
        average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(recipe.ema))
        average.update_parameters(model)  # the first call copies: the initial weights are part of the average
    shown = {round(total * (look + 1) / looks) for look in range(looks)}
    run = accelerated(model, where, work_of(model, source.spec, recipe, total), recipe.precision, recipe.compile)
    model.train()
    order = torch.empty(0, dtype=torch.int64)
    for step in range(total):
        place = step % per_epoch
        if place == 0:
            order = sent(torch.randperm(count, generator=draws), where)
        rows = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        descent.begin(step)
        seen = None if replay is None else replay.batch(step // per_epoch, rows)
        if seen is None:
            images, labels = fetch(rows)
            if transform.transforms:
                images = augment(images, transform, draws)
            both = mixed(images, recipe.mix, draws, probability=recipe.mix_probability, alpha=recipe.mix_alpha)
        if goal is not None:
            if seen is None:
                views = images if both is None else both.images
                prepared, shares = goal.targets(views, labels, rows, both)
            else:
                views, prepared, shares = seen.images, goal.prepared(seen.labels), seen.shares
            for part, here in chunks(views, torch.arange(len(views), device=views.device), whole=whole):
                (goal(run(part), prepared[here], shares[here]) / len(views)).backward()
        elif both is None:
            for part, target in chunks(images, labels, whole=whole):
                (loss(run(part), target) / len(images)).backward()
        else:
            for part, here in chunks(both.images, torch.arange(len(images), device=images.device), whole=whole):
                outputs = run(part)
                own, other = loss(outputs, labels[here]), loss(outputs, labels[both.other[here]])
                ((both.share * own + (1 - both.share) * other) / len(images)).backward()
        if term is not None:
            term(model, images if seen is None else seen.images, labels if seen is None else fetch(rows)[1]).backward()
        descent.optimiser.step()
        if average is not None:
            average.update_parameters(model)
        if step + 1 in shown:
            yield (model if average is None else average.module).eval()
            model.train(step + 1 < total)


def resolved(recipe: Recipe, source: CondensedSet | ImageData) -> Recipe:
    """The recipe with the augmentation "auto" replaced by that of this set or data."""
    if recipe.augmentation != "auto":
        return recipe
    named = source.augmentation if isinstance(source, CondensedSet) else None
    return dataclasses.replace(recipe, augmentation=named or for_data(source.spec))


def work_of(model: nn.Module, spec: DataSpec, recipe: Recipe, steps: int) -> float:
    """Floating-point operations of ``steps`` optimiser steps: one forward and two backward passes over each image."""
    return 3.0 * flops(model, spec) * recipe.batch_size * steps


def _parts(source: CondensedSet | ImageData) -> tuple[int, torch.device, Callable[[Tensor], tuple[Tensor, Tensor]], float | None]:
    """(number of images, device, indices -> (normalised images, labels), learned lr)."""
    if isinstance(source, CondensedSet):
        images, labels = source.images, source.labels
        return len(images), images.device, lambda index: (images[index], labels[index]), source.lr
    data = source
    return len(data.train), data.device, lambda index: (data.normalised("train", index), data.train.labels[index]), None
