"""A fixed pool of random networks: a noised release for one of them is reused in many matching steps."""

from collections.abc import Callable

import torch
from torch import nn

from distill.architectures import Network
from distill.errors import InputError
from distill.networks import UnitFeatures, create
from distill.randomness import generator
from distill.spec import DataSpec


def drawn_once(name: str, count: int, seed: int = 0, *, unit: bool = True) -> Callable[[DataSpec], nn.Module]:
    """A network function for `condense` that returns a random network of a fixed pool.

    Args:
        name: of the networks.
        count: size of the pool.
        seed: of their weights, which are public.
        unit: scale their features to length 1.

    Raises:
        InputError: ``count`` is below 1.
    """
    if count < 1:
        raise InputError(f"{count} networks were asked for; allowed: 1 or more.")

    def factory(spec: DataSpec) -> nn.Module:
        # `distill.networks.create` seeds the global generator for this call only, from the run's stream, so a resumed run draws the same.
        chosen = int(torch.randint(count, ()))
        network = create(name, spec, generator(seed, "drawn once", name, chosen))
        assert isinstance(network, Network)
        return UnitFeatures(network) if unit else network

    factory.__name__ = f"{count} times {name}, drawn once from seed {seed}{', unit features' if unit else ''}"
    return factory
