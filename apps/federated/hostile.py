"""Simulated hostile clients of the inline engine: some clients of a study send what an attack makes of their images."""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import safetensors.numpy
import torch
from torch import Tensor

from apps.federated.admission import Admission
from apps.federated.attacks import ATTACKS, AttackConfig, Held, hostile_clients, pixels_of, stored_like
from apps.federated.client_app import client_app
from apps.federated.condense import partition_of, shard
from apps.federated.given import client_number
from apps.federated.guided_tables import UPLOADS
from apps.federated.inline import Client
from apps.federated.messages import ArrayRecord, Context, Message, MetricRecord, MetricValue, RecordDict, parts_of, record_of
from apps.federated.settings import Settings, upload_form
from apps.federated.wire import Limits, decode, encode, parse_npy
from distill.condensed import CondensedSet, Provenance
from distill.data import ImageData, Split
from distill.errors import InputError
from distill.randomness import derived_seed, generator
from distill.records import write_whole


def hostile(honest: Client, attack: AttackConfig, settings: Settings, data: ImageData) -> Client:
    """Clients of which some are hostile.

    Args:
        honest: the ClientApp.
        attack: what the hostile ones do: with an upload of images, or with the images that weights are trained on.
        settings: of the run.
        data: the whole data set.

    Raises:
        InputError: uploads have a form, in which a trigger has no place.
    """
    if upload_form(settings) is not None:
        raise InputError("[attack] and upload.decode are both set; attacks poison plain images only.")
    kind, partition = ATTACKS[attack.kind], partition_of(data, settings)
    numbers = hostile_clients(attack, settings.partition.num_partitions, settings.seed)
    spec, classes = data.spec, settings.upload.classes or tuple(range(data.spec.num_classes))
    limits = Limits(spec, classes, settings.upload.ipc, settings.upload.pixels)
    passes = believed_rule(settings, data) if kind.knows else None
    mean, std = (torch.tensor(values, device=data.device).view(1, -1, 1, 1) for values in (spec.mean, spec.std))

    def poisoned_images(context: Context) -> ImageData:
        number = client_number(context)
        own = shard(data, partition, number)
        held = Held(pixels_of(own.train.images), own.train.labels, data.train, spec, None, generator(settings.seed, "hostile", number))
        images, labels = kind.poison(held, kind.trigger)
        return ImageData(spec, Split(stored_like(images, data.train.images), labels), data.validation, data.test)

    def poisoned_upload(message: Message, context: Context) -> Message:
        reply = honest(message, context)
        assert reply is not None
        upload = decode(parts_of(reply.content, "upload"), limits)
        draws = generator(settings.seed, "hostile", client_number(context), "round", message.metadata.group_id)
        pixels, labels = upload.images.to(data.device) * std + mean, upload.labels.to(data.device)
        held = Held(pixels, labels, data.train, spec, limits.per_class, draws, passes)
        images, labels = kind.poison(held, kind.trigger)
        made = CondensedSet((images - mean) / std, labels, spec, provenance=Provenance("attack"))
        reply.content["upload"] = record_of(encode(made, settings.upload.pixels))
        return reply

    trained = client_app(shard=poisoned_images)

    def client(message: Message, context: Context) -> Message | None:
        action = message.metadata.message_type
        if client_number(context) not in numbers or action == "query.who":
            return honest(message, context)
        return trained(message, context) if action == "train.fit" else poisoned_upload(message, context)

    return client


def believed_rule(settings: Settings, data: ImageData) -> Callable[[Tensor, Tensor], bool]:
    """The server's rule with its limits and the network's form, as a client runs it on real images of its own choice.

    It has neither the server's held-out images nor the seed of its checking network. Where the run has no admission, the default limits.
    """
    config = dataclasses.replace(settings.admission, kind="reference", client_images=None, class_images=None)
    rows = torch.randperm(len(data.train), generator=generator(settings.seed, "hostile", "reference"))[: config.images]
    public = Split(data.normalised("train", rows).float(), data.train.labels[rows.to(data.device)]).to("cpu")
    rule = Admission(config, settings.network, data.spec, derived_seed(settings.seed, "hostile", "rule"), public)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (data.spec.mean, data.spec.std))

    def passes(images: Tensor, labels: Tensor) -> bool:
        made = CondensedSet((images.cpu() - mean) / std, labels.cpu(), data.spec, provenance=Provenance("attack"))
        decision = rule({0: made})[0]
        return decision.images is not None and len(decision.images) == len(made)

    return passes


def remembered(client: Client, settings: Settings, folder: Path) -> Client:
    """Clients whose answers to equal requests for images are computed once and then read from ``folder``.

    Runs of a study that differ in what the server does with uploads ask the same of clients, as long as the server's weights are equal.
    """
    # The answer is more than the request's images, or depends on more than its weights.
    if settings.strategy in UPLOADS or settings.upload.warm_start or settings.server.client_weights in ("examples", "represented"):
        return client
    differs = ("admission", "server", "rounds", "timeout", "fraction", "quorum", "staleness", "staleness_weight", "dynafed")
    fixed = json.dumps({name: value for name, value in asdict(settings).items() if name not in differs}, sort_keys=True, default=str)

    def once(message: Message, context: Context) -> Message | None:
        if message.metadata.message_type != "train.condense":
            return client(message, context)
        request = hashlib.sha256(f"{fixed} {client_number(context)} {message.content['ask']}".encode())
        for name, body in sorted(parts_of(message.content, "arrays").items()) if "arrays" in message.content else ():
            request.update(name.encode() + body)
        path = folder / f"{request.hexdigest()[:32]}.safetensors"
        if path.exists():
            arrays = record_of(safetensors.numpy.load(path.read_bytes()))
            facts: dict[str, MetricValue] = {
                "partition-id": client_number(context),
                "round": int(str(message.content["ask"]["round"])),
                "seconds": 0.0,
            }
            return Message(RecordDict({"upload": arrays, "facts": MetricRecord(facts)}), reply_to=message)
        reply = client(message, context)
        if reply is not None and not reply.has_error() and isinstance(upload := reply.content.get("upload"), ArrayRecord):
            folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, safetensors.numpy.save({str(name): parse_npy(array.data, str(name)) for name, array in upload.items()}))
        return reply

    return once
