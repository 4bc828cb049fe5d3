"""Admission: each upload is checked before it joins the union, and excluded with a reason where it fails. Plain functions; no Flower.

What remains of an admitted upload is trimmed: images whose own label is improbable do not join the union. The order of removal with the
clients' own images as reference follows Cretu et al., "Casting out Demons" (S&P 2008): what models of the other data disagree with goes.
"""

import dataclasses
import functools
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, TypeVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from apps.federated.admission_caps import capped, class_rows, evenly, part_of
from apps.federated.admission_scores import (
    Reference,
    Seen,
    agreements,
    features_of,
    improbable,
    label_probabilities,
    losses,
    reference_of,
    ridge,
)
from distill.condensed import CondensedSet, Provenance
from distill.configure import config_class
from distill.data import ImageData, Split
from distill.errors import InputError, clipped, unknown_name
from distill.networks import Factory, create
from distill.randomness import derived_seed, generator
from distill.spec import DataSpec
from distill.train import Recipe, train_network

FEWEST = 5  # images whose mean features are compared; of fewer it varies more than standard errors say

Uploads = Mapping[int, CondensedSet]


@config_class
class AdmissionConfig:
    """``[admission]``: which uploads join the union.

    Attributes:
        kind: a name in `KINDS`: "none", "reference" (the server's held-out images) or "clients" (the other clients' uploads).
        images: most held-out images that are used; two thirds train the checking network, the others are what uploads are compared with.
        steps: optimiser steps of the checking network.
        client_images: images of a client that join the union, evenly over its classes; None: all.
        class_images: images of a class that join the union, from all clients together and evenly over them; None: all.
        agreement: share of the agreement of real images that the labels of an upload must reach.
        loss: standard errors by which the mean loss of an upload may exceed that of real images.
        distance: standard errors by which a mean feature of an upload may differ from that of real images.
        fill: images of the server stand for classes that no client has any more where one was excluded (kind "reference").
        trim: an image is left out if its label is less probable than this times the label that one real image in a hundred falls below.
    """

    kind: str = "none"
    images: Annotated[int, Field(ge=30)] = 600
    steps: Annotated[int, Field(ge=1)] = 150
    client_images: Annotated[int, Field(ge=1)] | None = None
    class_images: Annotated[int, Field(ge=1)] | None = None
    agreement: Annotated[float, Field(gt=0, le=1)] = 0.75
    loss: Annotated[float, Field(gt=0)] = 12.0
    distance: Annotated[float, Field(gt=0)] = 8.0
    trim: Annotated[float, Field(ge=0, le=1)] = 0.5
    fill: bool = True

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise unknown_name("admission", self.kind, KINDS)

    @property
    def on(self) -> bool:
        """Whether anything is checked or capped."""
        return self.kind != "none" or self.client_images is not None or self.class_images is not None


@dataclass(frozen=True)
class Decision:
    """What becomes of one upload: ``images`` join the union, or None and ``why``; ``note`` says what was left out of them.
    ``agreement`` is the mean of its `agreements`."""

    images: CondensedSet | None
    why: str = ""
    note: str = ""
    agreement: float = 1.0


# One upload


@torch.no_grad()
def seen_by(network: nn.Module, images: Tensor, labels: Tensor) -> Seen:
    """Normalised images (N, C, H, W) with labels (N, K) as the network sees them."""
    return Seen(labels, network(images).softmax(1), features_of(network, images))


def probabilities_of(labels: Tensor, classes: int) -> Tensor:
    """Labels as probabilities (N, K)."""
    return labels.float() if labels.is_floating_point() else F.one_hot(labels, classes).float()


def checked(upload: CondensedSet, seen: Seen, reference: Reference, config: AdmissionConfig) -> Decision:
    """The decision on one upload: all of it and the images of each class must pass all scores, then it is trimmed.

    Images of a class that the reference does not have are not checked.

    Args:
        upload: the upload.
        seen: its decoded images.
        reference: real images.
        config: the limits.
    """
    agreed, lost, claimed = agreements(seen.labels, seen.probabilities), losses(seen.labels, seen.probabilities), seen.labels.argmax(1)
    known = reference.counts[claimed] > 0
    agreement = float(agreed[known].mean()) if bool(known.any()) else 1.0
    parts = {"": known} | {f" of class {label}": known & (claimed == label) for label in claimed[known].unique().tolist()}
    for name, part in parts.items():
        if why := at_odds(agreed[part], lost[part], seen.features[part], claimed[part], reference, config):
            return Decision(None, why.format(name), agreement=agreement)
    likely = ~known | (label_probabilities(seen.labels, seen.probabilities) >= reference.lowest)
    return trimmed(upload, likely.view(len(upload.images), -1).float().mean(1) >= 0.5)


def at_odds(
    agreed: Tensor, lost: Tensor, features: Tensor, claimed: Tensor, reference: Reference, config: AdmissionConfig
) -> str:  # (N,), (N,), (N, D), (N,)
    """Why images with these scores are not what their labels say, with a place for which ones; empty where they may be."""
    if not len(agreed):
        return ""
    rate = config.agreement * reference.agreement
    if improbable(total := float(agreed.sum()), len(agreed), rate):
        return f"{total:.0f} of {len(agreed)} labels{{}} agree with the server's check; expected are at least {rate:.0%}"
    if not (above := reference.excess_loss(lost)) <= config.loss:  # not-a-number fails it, too
        return f"the mean loss{{}} is {above:.1f} standard errors above that of real images; allowed: {config.loss:g}"
    if len(agreed) >= FEWEST and not (far := reference.distance(features, claimed)) <= config.distance:
        return f"a mean feature{{}} is {far:.1f} standard errors from that of real images; allowed: {config.distance:g}"
    return ""


def trimmed(upload: CondensedSet, rows: Tensor) -> Decision:
    """The upload without the images whose entry of ``rows`` (N,) is false."""
    if bool(rows.all()):
        return Decision(upload)
    if not bool(rows.any()):
        return Decision(None, "the labels of all its images are improbable")
    return Decision(part_of(upload, rows), note=f"{int((~rows).sum())} of {len(rows)} images left out: improbable labels")


# All uploads of a round


def held_out_images(data: ImageData, config: AdmissionConfig) -> Split | None:
    """The validation images of the server's data, normalised, for the kind "reference"; `InputError` if there are none."""
    if config.kind != "reference":
        return None
    if len(data.validation) < 30:
        raise InputError(
            f"[admission] kind 'reference' checks uploads with validation images of the server, and there are {len(data.validation)};"
            ' allowed: at least 30 (set [data] validation = 0.1), or kind = "clients".'
        )
    images = data.normalised("validation", torch.arange(len(data.validation), device=data.device))
    return Split(images.float(), data.validation.labels).to("cpu")


@dataclass(frozen=True)
class Admission:
    """The rule of a run. It keeps nothing from round to round; a resumed run makes the same reference again.

    Args:
        config: the run's.
        network: the run's network, whose form the checking network has.
        spec: of the data.
        seed: of the checking network and of the choice of reference images.
        held_out: the server's images, normalised, float32; None: it has none.
        soft_labels: whether the method that was asked for makes soft labels.
    """

    config: AdmissionConfig
    network: Factory
    spec: DataSpec
    seed: int
    held_out: Split | None = None
    soft_labels: bool = False

    def __call__(self, uploads: Uploads) -> dict[int, Decision]:
        """The decision on each client's upload. Never raises: an upload whose check fails is excluded."""
        decisions = {
            client: Decision(None, "soft labels; allowed: class numbers, as the method that was asked for makes no others")
            for client, upload in uploads.items()
            if upload.labels.is_floating_point() and not self.soft_labels and self.config.kind != "none"
        }
        rest = {client: capped(upload, self.config.client_images) for client, upload in uploads.items() if client not in decisions}
        made = decisions | {client: _noted(uploads[client], made) for client, made in KINDS[self.config.kind](self, rest).items()}
        return made if self.config.class_images is None else _class_capped(made, self.config.class_images)

    @functools.cached_property
    def reference(self) -> tuple[nn.Module, Reference]:
        """The checking network, which two thirds of the held-out images train, and what the others give."""
        assert self.held_out is not None
        order = torch.randperm(len(self.held_out), generator=generator(self.seed, "admission", "images"))[: self.config.images]
        train, rest = (self.held_out.at(part) for part in order.tensor_split([2 * len(order) // 3]))
        recipe = Recipe(
            epochs=self.config.steps,
            max_steps=self.config.steps,
            batch_size=64,
            optimiser="adamw",
            lr=0.003,
            schedule="cosine",
        )
        made = CondensedSet(train.images, train.labels, self.spec, provenance=Provenance("reference"))
        trained = train_network(made, self.network, recipe, derived_seed(self.seed, "admission", "network"))
        return trained, reference_of(seen_by(trained, rest.images, probabilities_of(rest.labels, self.spec.num_classes)), self.config.trim)


def _noted(upload: CondensedSet, made: Decision) -> Decision:
    """The decision, whose note counts what a cap left out, too."""
    if made.images is None or made.note or len(made.images.images) == len(upload.images):
        return made
    return dataclasses.replace(made, note=f"{len(upload.images) - len(made.images.images)} of {len(upload.images)} images left out: cap")


def _class_capped(made: Mapping[int, Decision], most: int) -> dict[int, Decision]:
    """The decisions, with at most ``most`` images of a class among those of all admitted uploads."""
    admitted = {client: decision.images for client, decision in made.items() if decision.images is not None}
    if not admitted:
        return dict(made)
    left = dict(made)
    for client, rows in class_rows(admitted, most).items():
        upload, decision = admitted[client], made[client]
        if not bool(rows.any()):
            left[client] = Decision(None, f"its classes have {most} images of other clients each: cap", "", decision.agreement)
        elif not bool(rows.all()):
            note = f"{int((~rows).sum())} of {len(rows)} images left out: cap of a class"
            left[client] = dataclasses.replace(decision, images=part_of(upload, rows), note="; ".join(filter(None, (decision.note, note))))
    return left


T = TypeVar("T")


def _safely(check: Callable[[], T]) -> T | Decision:
    """What ``check`` gives, or that the upload is excluded: whatever another party's images set off, the round continues without them."""
    try:
        return check()
    except Exception as error:
        return Decision(None, f"could not be checked ({clipped(f'{type(error).__name__}: {error}', 150)})")


def admit_all(admission: Admission, uploads: Uploads) -> dict[int, Decision]:
    """No check of the images."""
    return {client: Decision(upload) for client, upload in uploads.items()}


def _seen(network: nn.Module, upload: CondensedSet) -> Seen:
    plain = upload.decoded()
    return seen_by(network, plain.images.float(), probabilities_of(plain.labels, plain.spec.num_classes))


def by_reference(admission: Admission, uploads: Uploads) -> dict[int, Decision]:
    """Each upload against the server's held-out images."""

    def decision(upload: CondensedSet) -> Decision:
        network, reference = admission.reference
        return checked(upload, _seen(network, upload), reference, admission.config)

    return {client: _safely(functools.partial(decision, upload)) for client, upload in uploads.items()}


def by_clients(admission: Admission, uploads: Uploads) -> dict[int, Decision]:
    """Each upload against those of the other clients: the one that agrees least is excluded, and the others are checked again.

    The checking network has fixed random features. It is fitted to every second image of the others, and compares with the rest. Where more
    than half of the clients fail, all that fail are excluded at once.
    """
    network = create(admission.network, admission.spec, generator(admission.seed, "admission", "features")).eval()
    seen = {client: _safely(functools.partial(_seen, network, upload)) for client, upload in uploads.items()}
    out = {client: each for client, each in seen.items() if isinstance(each, Decision)}
    left = {client: (uploads[client], each) for client, each in seen.items() if isinstance(each, Seen)}
    while len(left) > 2:
        made = {client: _safely(functools.partial(_among, client, left, admission.config)) for client in left}
        failed = [client for client in made if made[client].images is None]
        if not failed or len(out) + 1 > len(uploads) // 2:
            return out | made
        worst = min(failed, key=lambda client: made[client].agreement)
        out[worst] = made[worst]
        del left[worst]
    return out | {client: Decision(upload) for client, (upload, _) in left.items()}


def _among(client: int, left: Mapping[int, tuple[CondensedSet, Seen]], config: AdmissionConfig) -> Decision:
    """The decision on one upload against the others."""
    upload, seen = left[client]
    others = [other for number, (_, other) in left.items() if number != client]
    most = statistics.median_low([len(other.labels) for other in others])  # so that nobody is heard for sending more
    rows = [evenly(other.labels.argmax(1), most) for other in others]
    labels = torch.cat([other.labels[part] for other, part in zip(others, rows, strict=True)])
    features = torch.cat([other.features[part] for other, part in zip(others, rows, strict=True)])
    odd = torch.arange(len(labels)) % 2 == 1
    fitted = ridge(features[odd], labels[odd])
    reference = reference_of(Seen(labels[~odd], fitted(features[~odd]), features[~odd]), config.trim)
    return checked(upload, dataclasses.replace(seen, probabilities=fitted(seen.features)), reference, config)


KINDS: dict[str, Callable[[Admission, Uploads], dict[int, Decision]]] = {
    "none": admit_all,
    "reference": by_reference,
    "clients": by_clients,
}
