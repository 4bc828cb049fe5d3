"""Strategies whose clients condense under the federation's guidance: FedDM with one or two changes each, one file a strategy.

A strategy is a row of `GUIDES`: what a client sends, and the server's rule.
"""

from collections.abc import Callable
from dataclasses import dataclass

from apps.federated.answers import Weights
from apps.federated.guided import fedaf, fedmk, fedvck
from apps.federated.guided.guidance import Guidance
from apps.federated.image_rule import CondensedUnion
from apps.federated.settings import Settings
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.networks import Factory

Client = Callable[[ImageData, Settings, int, int, Guidance, Factory], tuple[CondensedSet, Weights]]


@dataclass(frozen=True)
class Guide:
    """A strategy.

    Attributes:
        client: from a client's data, the settings, the round's and the client's number, `Guidance` and the network to the client's upload
            and further tensors for the server.
        rule: the server's.
        remembers: whether a client needs the weights of the round before.
    """

    client: Client
    rule: type[CondensedUnion]
    remembers: bool = False


GUIDES = {
    "fedvck": Guide(fedvck.client, fedvck.FedVCK, remembers=True),
    "fedmk": Guide(fedmk.client, fedmk.FedMK),
    "fedaf": Guide(fedaf.client, fedaf.FedAF),
}
