"""The network of a run with weights that another party sent."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from distill.networks import Factory, create
from distill.pool import Received
from distill.spec import DataSpec


def network_with(network: Factory, weights: Mapping[str, Tensor] | None, spec: DataSpec | None = None) -> Factory:
    """The network as given, or a function that makes it with these weights; with ``spec`` one whose weights are a pool's trained ones."""
    if weights is None:
        return network
    if spec is not None:
        trained = create(network, spec, torch.Generator().manual_seed(0))
        trained.load_state_dict(dict(weights))
        return Received(network, torch.nn.utils.parameters_to_vector(trained.parameters()).detach())

    def received(spec: DataSpec) -> nn.Module:
        module = create(network, spec, torch.Generator().manual_seed(0))
        module.load_state_dict(dict(weights))
        return module

    return received
