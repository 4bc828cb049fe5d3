"""Networks of private matching: a fixed pool of random ones, whose noised releases are reused in many steps, and unit features."""

from collections.abc import Callable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class UnitNetwork:
    """A network function for `condense` whose networks have features of length 1: fresh ones of a name, with the same weights in order.

    It is for a pool of trained networks (`pool`, with `pool_draws`), of which `drawn_once` has no part.
    """

    name: str

    @property
    def __name__(self) -> str:
        return f"{self.name}, unit features"

    def __call__(self, spec: DataSpec) -> nn.Module:
        # `distill.networks.create` seeds the global generator for this call.
        network = create(self.name, spec, generator(int(torch.randint(2**62, ())), "unit network"))
        assert isinstance(network, Network)
        return UnitFeatures(network)
