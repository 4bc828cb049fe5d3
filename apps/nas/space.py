"""What is ranked: the 720 ConvNets of the dataset-distillation papers, any part of that grid, named networks, or a user's own functions.

Width x depth x norm x activation x pooling (Zhao, Mopuri and Bilen, ICLR 2021, appendix B): 4 x 4 x 5 x 3 x 3 = 720. An id says all five,
``w128-d3-instance-relu-avg``, and never changes; the same network's name in `distill.architectures` is ``ConvNetW128D3INARAP``.
"""

import itertools
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field
from torch import nn

from distill.architectures import MAX_DEPTH, MAX_WIDTH
from distill.errors import InputError, a_kind, clipped
from distill.networks import Factory, UnitFeatures, check_name, create
from distill.spec import DataSpec

NORMS = {"none": "NN", "batch": "BN", "layer": "LN", "instance": "IN", "group": "GN"}
ACTIVATIONS = {"sigmoid": "AS", "relu": "AR", "leaky": "AL"}
POOLINGS = {"none": "NP", "max": "MP", "avg": "AP"}
AXES = ("width", "depth", "norm", "activation", "pooling")

Norm = Literal["none", "batch", "layer", "instance", "group"]
Activation = Literal["sigmoid", "relu", "leaky"]
Pooling = Literal["none", "max", "avg"]

_ID = re.compile(rf"w([0-9]{{1,4}})-d([0-9]{{1,2}})-({'|'.join(NORMS)})-({'|'.join(ACTIVATIONS)})-({'|'.join(POOLINGS)})")
_OWN_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,79}")


@dataclass(frozen=True)
class Candidate:
    """One network of a study. ``axes`` are its five choices as text in the order of `AXES`, or empty where it is not of the grid."""

    id: str
    network: Factory
    axes: tuple[str, ...] = ()


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True))
class Grid:
    """All combinations of five lists; the defaults are the 720. Other widths and depths are allowed."""

    width: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_WIDTH)], ...], Field(min_length=1)] = (32, 64, 128, 256)
    depth: Annotated[tuple[Annotated[int, Field(ge=1, le=MAX_DEPTH)], ...], Field(min_length=1)] = (1, 2, 3, 4)
    norm: Annotated[tuple[Norm, ...], Field(min_length=1)] = ("none", "batch", "layer", "instance", "group")
    activation: Annotated[tuple[Activation, ...], Field(min_length=1)] = ("sigmoid", "relu", "leaky")
    pooling: Annotated[tuple[Pooling, ...], Field(min_length=1)] = ("none", "max", "avg")

    def __len__(self) -> int:
        return len(self.width) * len(self.depth) * len(self.norm) * len(self.activation) * len(self.pooling)

    def candidates(self) -> list[Candidate]:
        """Every combination, the last axis fastest; `InputError` if a list names a value twice."""
        choices = itertools.product(self.width, self.depth, self.norm, self.activation, self.pooling)
        networks = (candidate(f"w{width}-d{depth}-{norm}-{activation}-{pooling}") for width, depth, norm, activation, pooling in choices)
        return check_candidates(networks)


def candidate(id: str) -> Candidate:
    """The ConvNet with this id; `InputError` if the text is no id."""
    match = _ID.fullmatch(id) if isinstance(id, str) else None
    if match is None:
        allowed = f"w<width>-d<depth>-<{'|'.join(NORMS)}>-<{'|'.join(ACTIVATIONS)}>-<{'|'.join(POOLINGS)}>"
        raise InputError(f"network id {clipped(id)!r} is not known; allowed: {allowed}, for example w128-d3-instance-relu-avg.")
    width, depth, norm, activation, pooling = match.groups()
    name = f"ConvNetW{int(width)}D{int(depth)}{NORMS[norm]}{ACTIVATIONS[activation]}{POOLINGS[pooling]}"
    check_name(name)
    axes = (str(int(width)), str(int(depth)), norm, activation, pooling)
    return Candidate(f"w{axes[0]}-d{axes[1]}-{norm}-{activation}-{pooling}", name, axes)


def named(names: Iterable[str]) -> list[Candidate]:
    """Networks by their names in `distill.networks` ("LeNet", "ResNet18", ...), under that name as id."""
    candidates = []
    for name in names:
        check_name(name)
        candidates.append(Candidate(name, name))
    return candidates


def own(factories: Mapping[str, Factory]) -> list[Candidate]:
    """A user's own networks.

    Worker processes find a function by its module and name, so it must be defined at the top level of an importable file (no lambda),
    unless the study runs in its own process (``workers=0``) or on a Ray pool.

    Args:
        factories: id -> function of the `DataSpec` that returns a module, or the name of a network.

    Raises:
        InputError: an id has other characters than letters, digits and ``_.+-``, or a value is neither a name nor a function.
    """
    for id, network in factories.items():
        if not isinstance(id, str) or not _OWN_ID.fullmatch(id):
            raise InputError(f"network id {clipped(id)!r}: allowed are letters, digits and _.+- (80 at most).")
        if isinstance(network, str):
            check_name(network)
        elif not callable(network):
            raise InputError(f"network {id!r} is {a_kind(network)}; give a function of the data spec or a name.")
    return [Candidate(id, network) for id, network in factories.items()]


def drawn(candidates: Iterable[Candidate]) -> Callable[[DataSpec], nn.Module]:
    """A network function for `condense` that returns a random network of the space at each call, with features of length 1.

    A set condensed with one architecture favours that architecture; a set condensed with all of them ranks them more fairly. Meant for
    methods that draw many networks, above all DM, which needs a larger ``lr_img`` with features of length 1 (30 to 100 at 10 images per
    class).
    """
    listed = check_candidates(candidates)

    def factory(spec: DataSpec) -> nn.Module:
        # `distill.networks.create` seeds the global generator for this call only, from the run's stream, so a resumed run draws the same.
        network = listed[int(torch.randint(len(listed), ()))].network
        if not isinstance(network, str):
            return UnitFeatures(network(spec))
        return UnitFeatures(create(network, spec, torch.Generator().manual_seed(int(torch.randint(2**62, ())))))

    factory.__name__ = f"drawn from the {len(listed)} networks of the space, features of length 1"
    return factory


def check_candidates(candidates: Iterable[Candidate]) -> list[Candidate]:
    """The candidates as a list; `InputError` if it is empty or two have the same id."""
    listed = list(candidates)
    if not listed:
        raise InputError("there is no network to rank; allowed: at least two.")
    seen: set[str] = set()
    for network in listed:
        if network.id in seen:
            raise InputError(f"network id {network.id!r} is in the list twice; name each once.")
        seen.add(network.id)
    return listed
