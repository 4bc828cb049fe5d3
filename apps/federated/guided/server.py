"""The server's training with a further term in the loss. Plain functions; no Flower."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from apps.federated.received import network_with
from apps.federated.tables import ServerConfig
from apps.federated.union import within_ball
from distill.augment import augment, strategy
from distill.condensed import CondensedSet
from distill.descent import Descent
from distill.devices import sent
from distill.labels import LABEL_KINDS
from distill.networks import Factory, create
from distill.randomness import generator
from distill.train import resolved

Term = Callable[[nn.Module, Tensor, Tensor], Tensor]


def learn_with(
    weights: Mapping[str, Tensor],
    joined: CondensedSet,
    network: Factory,
    config: ServerConfig,
    seed: int,
    term: Term,
    begin: Callable[[nn.Module, Tensor, Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """The server's new weights as `union.learn` has them, with a term added to each batch's mean loss.

    Args:
        weights: that the training starts from.
        joined: the union.
        network: whose weights they are.
        config: the server's; of the recipe (`settings.check_simple`) no loss, mix or average of its own.
        seed: of the order of the images and their augmentation, as in `union.learn`.
        term: of the network, a batch of augmented images (n, C, H, W) and their class numbers (n,).
        begin: called with the network, all images and their class numbers before the first step.
    """
    source = joined.decoded()
    images, labels, classes = source.images, source.labels, source.hard_labels
    recipe = resolved(config.recipe, source)
    model = create(network_with(network, weights), source.spec, generator(seed, "weights"), images.device)
    transform, loss, draws = strategy(recipe.augmentation), LABEL_KINDS[source.label_kind].loss, generator(seed, "training")
    descent = Descent(list(model.parameters()), recipe, source.lr, len(images))
    if begin is not None:
        begin(model.eval(), images, classes)
    model.train()
    per_epoch = -(-len(images) // recipe.batch_size)
    order = torch.empty(0, dtype=torch.int64)
    for step in range(recipe.steps(len(images))):
        place = step % per_epoch
        if place == 0:
            order = sent(torch.randperm(len(images), generator=draws), images.device)
        rows = order[place * recipe.batch_size : (place + 1) * recipe.batch_size]
        descent.begin(step)
        seen = augment(images[rows], transform, draws) if transform.transforms else images[rows]
        (loss(model(seen), labels[rows]) / len(rows) + term(model, seen, classes[rows])).backward()
        descent.optimiser.step()
    state = {name: value.detach().cpu() for name, value in model.state_dict().items()}
    trainable = {name for name, _ in model.named_parameters()}
    return state if config.radius is None else within_ball(state, weights, config.radius, trainable)
