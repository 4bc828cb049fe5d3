"""Several learners of one kind trained as one: for a GPU, where the step of a network on few images is shorter than its launches.

`torch.func.vmap` maps the forward pass over networks, with the weights, the order of images and the augmentation of each seed; an optimiser
treats every weight by itself. The results are those of `train_network`, up to rounding.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from distill.augment import apply_effects, draw, effects, strategy
from distill.batches import group_size
from distill.class_gradients import together
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.descent import Descent
from distill.devices import sent
from distill.labels import LABEL_KINDS
from distill.networks import Factory, create, flops
from distill.randomness import generator
from distill.tf32 import products
from distill.train import Recipe, resolved

# Floating-point operations of a step below which its 90 launches of about 6 us take longer than arithmetic at 30 TFLOP/s: an estimate.
LAUNCH_BOUND = 1.5e10


def at_once(source: CondensedSet | ImageData, network: Factory, recipe: Recipe, count: int) -> int:
    """How many of ``count`` networks are trained as one on copies of a set like ``source``, which is on the networks' device.

    1 on a CPU, for real data, for networks whose images depend on each other and a user's own, for recipes that mix images, average
    weights, use bfloat16, a ``dc_`` or ``all_`` augmentation, a loss with soft labels, a teacher or stored views, and where the step of one
    network keeps the device busy.
    """
    if not isinstance(source, CondensedSet) or source.images.device.type == "cpu" or not isinstance(network, str):
        return 1
    if recipe.loss is not None or recipe.teacher is not None or source.views is not None:  # other labels than those of the set
        return 1
    transform = strategy(resolved(recipe, source).augmentation)
    if recipe.mix is not None or recipe.ema is not None or recipe.precision == "bf16" or transform.dc or transform.every:
        return 1
    images = source.decoded().images
    batch = min(recipe.batch_size, len(images))
    model = create(network, source.spec, generator(0, "weights"), "meta")
    if not together(model, images.device) or 3 * flops(model, source.spec) * batch > LAUNCH_BOUND:
        return 1
    return max(1, min(count, group_size(images) // batch))


def train_as_one(sources: Sequence[CondensedSet], network: Factory, recipe: Recipe, seeds: Sequence[int]) -> list[nn.Module]:
    """Networks trained on sets of equal size, labels of one kind and one learned step size, a set and a seed each; see `train_network`."""
    plain = [source.decoded() for source in sources]
    images, labels = (torch.stack([getattr(one, name) for one in plain]) for name in ("images", "labels"))
    with products(recipe.precision, images.device):
        return _trained(images, labels, plain[0], network, recipe, seeds)


def _trained(images: Tensor, labels: Tensor, like: CondensedSet, network: Factory, recipe: Recipe, seeds: Sequence[int]) -> list[nn.Module]:
    """``images`` (k, N, C, H, W) and ``labels`` (k, N) or (k, N, K) of k networks."""
    device, count, (height, width) = images.device, images.shape[1], images.shape[-2:]
    loss, transform = LABEL_KINDS[like.label_kind].loss, strategy(resolved(recipe, like).augmentation)
    networks = [create(network, like.spec, generator(seed, "weights"), device) for seed in seeds]
    draws = [generator(seed, "training") for seed in seeds]
    each = [dict(one.named_parameters()) for one in networks]
    weights = {name: torch.stack([own[name].detach() for own in each]).requires_grad_() for name in each[0]}
    descent = Descent(list(weights.values()), recipe, like.lr, count)
    run = vmap(lambda weights, x: functional_call(networks[0], weights, (x,)))
    rows = torch.arange(len(seeds), device=device)[:, None]
    size, order = recipe.batch_size, torch.empty(0, dtype=torch.int64)
    per_epoch = -(-count // size)
    for step in range(descent.total):
        place = step % per_epoch
        if place == 0:
            order = sent(torch.stack([torch.randperm(count, generator=one) for one in draws]), device)
        chosen = order[:, place * size : (place + 1) * size]
        x, y = images[rows, chosen], labels[rows, chosen]
        if transform.transforms:
            drawn = [effects(draw(transform, one, height, width, x.shape[1])) for one in draws]
            x = apply_effects(x.flatten(0, 1), torch.cat(drawn).to(x.dtype)).view(x.shape)
        descent.begin(step)
        (loss(run(weights, x).flatten(0, 1), y.flatten(0, 1)) / x.shape[1]).backward()  # a sum over networks, too
        descent.optimiser.step()
    with torch.no_grad():
        for name, stacked in weights.items():
            for own, value in zip(each, stacked, strict=True):
                own[name].copy_(value)
    return [one.eval() for one in networks]
