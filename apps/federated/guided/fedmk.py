"""FedMK: hard images count more, and clients start from what the others have sent.

Liu, Yu and Zhou, "Meta Knowledge Condensation for Federated Learning", ICLR 2023. Only the idea could be checked, not the formulas, and
there is no code: this is our reading. An image of loss l under the received model is drawn with a chance in proportion to
1 / (1 + exp(-tau l)), and an upload starts from images of its classes that were drawn from the last union (in the first round, from the
method's own start). The paper's generator on the server is left out.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from apps.federated.answers import Accepted, Weights
from apps.federated.condense import upload
from apps.federated.guided.guidance import Guidance, logits_of, losses_of
from apps.federated.guided_tables import FedMKConfig
from apps.federated.image_rule import CondensedUnion
from apps.federated.settings import Settings, upload_form
from apps.federated.wire import Limits, decode, encode
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.networks import Factory
from distill.randomness import generator
from distill.statistics import ExactStatistics

SHARED = "shared/"  # in a checkpoint


def weights_of(losses: Tensor, config: FedMKConfig) -> Tensor:
    """(N,) 1 / (1 + exp(-tau * loss)): one half for an image that is classified with certainty, up to 1."""
    return torch.sigmoid(config.tau * losses)


def client(
    data: ImageData, settings: Settings, server_round: int, number: int, guidance: Guidance, network: Factory
) -> tuple[CondensedSet, Weights]:
    """The client's upload, and nothing more."""
    chosen = weights_of(losses_of(logits_of(data, network, guidance.weights), data), settings.fedmk)
    start = None if guidance.more is None else start_from(shared_set(guidance.more, data, settings), data, settings)
    return upload(data, settings, server_round, number, guidance.weights, start, network, statistics=ExactStatistics(data, chosen)), {}


def shared_set(parts: Mapping[str, bytes], data: ImageData, settings: Settings) -> CondensedSet:
    """The images that the server sent, checked as an upload is."""
    spec = data.spec
    limits = Limits(spec, tuple(range(spec.num_classes)), settings.upload.ipc, settings.upload.pixels, upload_form(settings))
    return decode(parts, limits).to(data.device)


def start_from(shared: CondensedSet, data: ImageData, settings: Settings) -> CondensedSet | None:
    """The shared images of the client's classes, of a class no more than it holds itself; None if one of its classes has none."""
    form = upload_form(settings)
    copies = 1 if form is None else form.copies
    rows = []
    for label in data.classes:
        own = (shared.hard_labels == label).nonzero().flatten()
        if not len(own):
            return None
        rows.append(own[: -(-data.counts[label] // copies)])
    chosen = torch.cat(rows)
    return CondensedSet(shared.images[chosen], shared.hard_labels[chosen], shared.spec, provenance=shared.provenance, decode=shared.decode)


class FedMK(CondensedUnion):
    """The union, of which each class's images go down in the next round."""

    def begin(self) -> None:
        self.shared: Weights = {}

    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]:
        return weights, self.shared or None

    def learned(self, number: int, weights: Weights, joined: CondensedSet, accepted: Sequence[Accepted]) -> Weights:
        sets = [each.value for each in accepted if isinstance(each.value, CondensedSet)]
        self.shared = self._shared(CondensedSet.concat(sets), number)
        return super().learned(number, weights, joined, accepted)

    def _shared(self, joined: CondensedSet, number: int) -> Weights:
        """At most ``ipc`` images a class, drawn from this round's uploads, as an upload is written."""
        draws, rows = generator(self.settings.seed, "shared", number), []
        for label in joined.classes:
            own = (joined.hard_labels == label).nonzero().flatten()
            rows.append(own[torch.randperm(len(own), generator=draws)[: self.settings.upload.ipc]])
        chosen = torch.cat(rows)
        drawn = CondensedSet(joined.images[chosen], joined.hard_labels[chosen], joined.spec, decode=joined.decode)
        return {name: torch.from_numpy(array) for name, array in encode(drawn, self.settings.upload.pixels).items()}

    def state(self) -> Weights:
        return super().state() | {SHARED + name: value for name, value in self.shared.items()}

    def load_state(self, state: Weights) -> None:
        self.shared = {name.removeprefix(SHARED): value for name, value in state.items() if name.startswith(SHARED)}
        super().load_state({name: value for name, value in state.items() if not name.startswith(SHARED)})
