"""How the server turns checked uploads of images into new weights; rules.py has the table of all rules."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from apps.federated.accepting import counts_of
from apps.federated.admission import Admission, Decision
from apps.federated.answers import MAX_EXAMPLES, Accepted, Weights
from apps.federated.messages import MAX_STATEMENT, RecordDict, facts_of, parts_of, statement_of, whole
from apps.federated.overdue import factor
from apps.federated.settings import Settings, method_config, upload_form
from apps.federated.tables import UploadConfig
from apps.federated.union import learn, replacement, union
from apps.federated.wire import Limits, decode, upload_bytes
from distill.condensed import CondensedSet
from distill.data import Split
from distill.errors import InputError
from distill.labels import DEFAULT_KIND
from distill.networks import Factory
from distill.randomness import derived_seed
from distill.spec import DataSpec
from distill.train import Term


class CondensedUnion:
    """FedDM's server, and that of all other uploads of images: join the sets, train on the union from the weights that were sent."""

    action = "train.condense"
    clients = 0  # it does not depend on them
    late = True
    note = ""
    excluding = False  # an upload of this round

    def __init__(
        self,
        settings: Settings,
        spec: DataSpec,
        folder: Path | None = None,
        *,
        network: Factory | None = None,
        held_out: Split | None = None,
    ) -> None:
        wanted: UploadConfig = settings.upload
        asked = wanted.classes
        classes = tuple(range(spec.num_classes)) if asked is None else tuple(c for c in asked if c < spec.num_classes)
        self.settings, self.folder, self.network = settings, folder, network or settings.network
        self.limits = Limits(spec, classes, wanted.ipc, wanted.pixels, upload_form(settings))
        self.more: Weights = {}
        self.memory: list[CondensedSet] = []
        makes_soft = wanted.labels is not None or bool(getattr(method_config(settings), "soft_labels", False))
        self.admission = Admission(settings.admission, self.network, spec, settings.seed, held_out, soft_labels=makes_soft)
        counts = ("counts",) if settings.server.client_weights == "represented" else ()
        self.records = ("upload", "facts", *(() if settings.privacy is None else ("privacy",)), *counts)
        self.begin()

    def begin(self) -> None:
        """What a strategy has in addition."""

    @property
    def remembered(self) -> int:
        """Number of earlier rounds whose unions are kept and learned from too."""
        return self.settings.server.memory

    def most_bytes(self, weights: Weights) -> int:
        return upload_bytes(self.limits) + MAX_STATEMENT + 8 * self.limits.spec.num_classes

    def request(self, weights: Weights) -> tuple[Weights | None, Weights | None]:
        return (weights if self.settings.down else None), None

    def read(self, content: RecordDict, weights: Weights) -> CondensedSet | None:
        if "upload" not in content:
            if self.settings.upload.classes is None:
                raise InputError("the reply holds no upload, and every class was asked for; allowed: images of what the client has.")
            return None
        if self.settings.server.client_weights == "examples":
            whole(facts_of(content), "num-examples", 1, MAX_EXAMPLES)
        if "counts" in self.records and (found := len(counts_of(content, None))) != self.limits.spec.num_classes:
            raise InputError(f"counts of {found} classes; allowed: {self.limits.spec.num_classes}, one number a class.")
        condensed = decode(parts_of(content, "upload"), self.limits)
        statement = statement_of(content) if self.settings.privacy is not None else None
        if self.settings.privacy is not None and statement is None:
            raise InputError("the upload carries no privacy statement; the federation asks for one.")
        return dataclasses.replace(condensed, provenance=dataclasses.replace(condensed.provenance, dp=statement))

    def admit(self, accepted: Sequence[Accepted]) -> Mapping[int, Decision]:
        if not self.settings.admission.on:
            return {}
        decisions = self.admission({each.client: each.value for each in accepted if isinstance(each.value, CondensedSet)})
        self.excluding = any(made.images is None for made in decisions.values())
        return decisions

    def combine(self, number: int, weights: Weights, accepted: Sequence[Accepted]) -> Weights:
        settings = self.settings
        sets = [each.value for each in accepted if isinstance(each.value, CondensedSet)]
        weights_of = self._image_weights(number, accepted)
        parts, self.note = list(sets), ""
        held_out, fills = self.admission.held_out, self.excluding and settings.admission.fill and self.limits.form is None
        if fills and held_out is not None and (extra := replacement(sets, self.limits.classes, held_out)) is not None:
            self.note = f"{len(extra)} images of the server's stand for classes that no admitted client has: {extra.classes}"
            parts = [*sets, extra]
            if weights_of is not None:  # as much as the others have on average
                mean = sum(float(each.sum()) for each in weights_of) / len(weights_of)
                weights_of.append(torch.full((len(extra),), mean / len(extra)))
        joined = union(parts, weights_of)
        if self.folder is not None:
            union(sets).quantised().save(self.folder / "union.safetensors")
        whole_union = CondensedSet.concat([*self.memory, joined]) if self.memory else joined
        if self.remembered:  # the strategy puts it back where the round's weights are refused
            self.memory = [*self.memory, joined][-self.remembered :]
        return self.learned(number, weights, whole_union.to(settings.device), accepted)

    def learned(self, number: int, weights: Weights, joined: CondensedSet, accepted: Sequence[Accepted]) -> Weights:
        """The new weights of this round, from those that were sent and the union of all uploads."""
        term, seed = self.term(number, weights, joined, accepted), derived_seed(self.settings.seed, "server", number)
        return learn(weights, joined, self.network, self.settings.server, seed, term)

    def term(self, number: int, weights: Weights, joined: CondensedSet, accepted: Sequence[Accepted]) -> Term | None:
        """What a strategy adds to the loss of the server's training; FedDM adds nothing."""
        return None

    def _image_weights(self, number: int, accepted: Sequence[Accepted]) -> list[Tensor] | None:
        """What each image of each upload counts in the server's training, (n,) an upload, up to a common factor; None: all the same."""
        if not self.settings.weighs_images:
            return None
        kind = self.settings.server.client_weights
        weights = []
        for each in accepted:
            assert isinstance(each.value, CondensedSet)
            if kind == "represented":
                stands = [held / sent if sent else 0.0 for held, sent in zip(each.by_class, each.sent, strict=True)]
                own = torch.tensor(stands)[each.value.hard_labels.cpu()]
            else:
                count = len(each.value)
                total = {"equal": float(count), "clients": 1.0, "examples": float(each.examples)}[kind]
                own = torch.full((count,), total / count)
            weights.append(own * factor(each, number, self.settings))
        return weights

    def state(self) -> Weights:
        kept: Weights = {}
        for place, part in enumerate(self.memory):
            kept |= {f"memory/{place}/images": part.images, f"memory/{place}/labels": part.labels}
        return kept

    def load_state(self, state: Weights) -> None:
        places = sorted({int(name.split("/")[1]) for name in state})
        spec, form = self.limits.spec, self.limits.form
        kind = "weighted" if self.settings.weighs_images else DEFAULT_KIND
        self.memory = [
            CondensedSet(state[f"memory/{place}/images"], state[f"memory/{place}/labels"], spec, label_kind=kind, decode=form)
            for place in places
        ]
