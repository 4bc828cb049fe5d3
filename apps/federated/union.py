"""The server's side of condensed uploads: one union, one training run from the weights that were sent. Plain functions; no Flower."""

import dataclasses
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.federated.received import network_with
from apps.federated.tables import ServerConfig
from distill.condensed import CondensedSet, Provenance
from distill.data import Split
from distill.networks import Factory
from distill.train import Term, train_network


def union(sets: Sequence[CondensedSet], weights: Sequence[Tensor] | None = None) -> CondensedSet:
    """All uploads as one set; with ``weights`` ((n,) a set, positive, up to a common factor) each image's loss counts by its own.

    Weights travel as label mass: cross-entropy against w times a one-hot label is w times the cross-entropy. They are scaled so that
    the mean over all images is 1, which keeps the step size's meaning.
    """
    joined = CondensedSet.concat(sets)
    if weights is None:
        return joined
    each = torch.cat(list(weights))
    weight = (each * (len(each) / each.sum())).unsqueeze(1).to(joined.images.device)
    soft = joined.labels if joined.labels.is_floating_point() else F.one_hot(joined.labels, joined.spec.num_classes).float()
    return dataclasses.replace(joined, labels=soft * weight, quantisation=None, label_kind="weighted")


def replacement(sets: Sequence[CondensedSet], classes: Sequence[int], held_out: Split) -> CondensedSet | None:
    """The server's own images of those ``classes`` that no upload has: of each as many as the others have on average, if there are."""
    counts = torch.tensor([part.counts for part in sets]).sum(0)
    lost = [label for label in classes if counts[label] == 0]
    present = counts[counts > 0]
    most = round(float(present.float().mean())) if len(present) else 0
    rows = torch.cat([(held_out.labels == label).nonzero().flatten()[:most] for label in lost] or [torch.zeros(0, dtype=torch.int64)])
    if not len(rows):
        return None
    return CondensedSet(held_out.images[rows], held_out.labels[rows], sets[0].spec, provenance=Provenance("server"))


def learn(
    weights: Mapping[str, Tensor], joined: CondensedSet, network: Factory, config: ServerConfig, seed: int, term: Term | None = None
) -> dict[str, Tensor]:
    """The server's new weights: the recipe on the union, from ``weights``, then (optional) back into the ball around them.

    ``term`` is added to the loss (`distill.train.train_network`).
    """
    trained = train_network(joined, network_with(network, weights), config.recipe, seed, term=term)
    state = {name: value.detach().cpu() for name, value in trained.state_dict().items()}
    trainable = {name for name, _ in trained.named_parameters()}
    return state if config.radius is None else within_ball(state, weights, config.radius, trainable)


def within_ball(new: Mapping[str, Tensor], old: Mapping[str, Tensor], radius: float, names: set[str]) -> dict[str, Tensor]:
    """The point nearest to ``new`` in the ball around ``old``; Euclidean over the tensors called ``names`` together."""
    length = torch.stack([(new[name].double() - old[name].double()).square().sum() for name in sorted(names)]).sum().sqrt()
    if length <= radius:
        return dict(new)
    factor = float(radius / length)
    return {name: old[name] + factor * (value - old[name]) if name in names else value for name, value in new.items()}
