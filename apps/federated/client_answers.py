"""What a client answers: a condensed upload, or weights that it trained.

A client keeps what it needs for the next round in Flower's ``context.state``, one record a round, so that a repeated round finds what it
found the first time.
"""

import time

import numpy as np
import torch
from torch import Tensor

from apps.federated.accepting import of_classes
from apps.federated.averaging import control_variate, kept_gradient, local_sgd
from apps.federated.condense import upload
from apps.federated.guided import GUIDES
from apps.federated.guided.guidance import Guidance
from apps.federated.messages import ArrayRecord, Context, MetricRecord, MetricValue, RecordDict, parts_of, record_of
from apps.federated.settings import REMEMBERING, Settings, upload_form
from apps.federated.wire import Limits, decode, decode_weights, encode, encode_weights
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import Factory, create
from distill.randomness import generator
from distill.spec import DataSpec


def condensed_answer(
    content: RecordDict, context: Context, settings: Settings, server_round: int, data: ImageData, client: int, network: Factory
) -> RecordDict:
    start, spec = time.monotonic(), data.spec
    weights = _received(content, network, spec)
    asked = settings.upload.classes
    facts: dict[str, MetricValue] = {"partition-id": client, "round": server_round}
    if settings.server.client_weights == "examples":
        facts["num-examples"] = len(data.train)
    counts = {}
    if settings.server.client_weights == "represented":
        counts["counts"] = record_of({"counts": np.array(of_classes(tuple(data.counts), asked), np.int64)})
    if asked is not None and not set(asked) & set(data.classes):
        return RecordDict({"facts": MetricRecord(facts)})  # nothing that was asked for: an empty answer, no failure
    previous = None
    if settings.upload.warm_start and (earlier := _earlier(context, server_round)):
        limits = Limits(spec, tuple(range(spec.num_classes)), settings.upload.ipc, "float32", upload_form(settings))
        previous = decode(parts_of(context.state, earlier), limits).to(data.device)
    more: dict[str, ArrayRecord] = {}
    if settings.strategy in GUIDES:
        condensed, told = _guided(content, context, settings, server_round, data, client, network)
        more = {"more": record_of(encode_weights(told))} if told else {}
    else:
        condensed = upload(data, settings, server_round, client, weights, previous, network)
    if settings.upload.warm_start:
        _remember(context, server_round, record_of(encode(condensed, "float32")))
    facts["seconds"] = time.monotonic() - start
    return RecordDict({"upload": record_of(encode(condensed, settings.upload.pixels)), **counts, **more, "facts": MetricRecord(facts)})


def _guided(
    content: RecordDict, context: Context, settings: Settings, server_round: int, data: ImageData, client: int, network: Factory
) -> tuple[CondensedSet, dict[str, Tensor]]:
    """The upload of a strategy of `GUIDES`, and what it sends more."""
    guide, weights = GUIDES[settings.strategy], _received(content, network, data.spec)
    if weights is None:
        raise InputError(f"the server sent no weights; {settings.strategy}'s clients need them.")
    before = None
    if guide.remembers:
        if earlier := _earlier(context, server_round):
            before = decode_weights(parts_of(context.state, earlier), weights)
        _remember(context, server_round, record_of(encode_weights(weights)))
    asked = data if settings.upload.classes is None else data.subset(settings.upload.classes)
    guidance = Guidance(weights, before, parts_of(content, "control") if "control" in content else None)
    return guide.client(asked, settings, server_round, client, guidance, network)


def fitted_answer(
    content: RecordDict, context: Context, settings: Settings, server_round: int, data: ImageData, client: int, factory: Factory
) -> RecordDict:
    start, spec = time.monotonic(), data.spec
    received = _received(content, factory, spec)
    if received is None:
        raise InputError("the server sent no weights to train.")
    network = create(factory, spec, torch.Generator().manual_seed(0), data.device)
    network.load_state_dict(received)
    draws = generator(settings.seed, "client", client, "round", server_round, "fit")
    correction, own, server, proximal = None, {}, {}, 0.0
    if settings.strategy in REMEMBERING:
        like = {name: value.detach().cpu() for name, value in network.named_parameters()}
        earlier = _earlier(context, server_round)
        own = decode_weights(parts_of(context.state, earlier), like) if earlier else {n: torch.zeros_like(v) for n, v in like.items()}
    if settings.strategy == "scaffold":
        server = decode_weights(parts_of(content, "control"), own, "control")
        correction = {name: (server[name] - own[name]).to(data.device) for name in own}
    elif settings.strategy == "feddyn":
        correction, proximal = {name: -own[name].to(data.device) for name in own}, settings.averaging.feddyn_alpha
    elif settings.strategy == "fedprox":
        proximal = settings.local.proximal_mu
    result = local_sgd(network, data, settings.local, draws, proximal, correction)
    reply = RecordDict({"arrays": record_of(encode_weights(result.weights))})
    if settings.strategy == "scaffold":
        new = control_variate(own, server, received, result, settings.local.lr)
        reply["change"] = record_of(encode_weights({name: new[name] - own[name] for name in own}))
        _remember(context, server_round, record_of(encode_weights(new)))
    elif settings.strategy == "feddyn":
        _remember(context, server_round, record_of(encode_weights(kept_gradient(own, received, result, proximal))))
    numbers: dict[str, MetricValue] = {
        "partition-id": client,
        "num-examples": result.examples,
        "steps": result.steps,
        "round": server_round,
        "seconds": time.monotonic() - start,
    }
    reply["facts"] = MetricRecord(numbers)
    return reply


def _received(content: RecordDict, network: Factory, spec: DataSpec) -> dict[str, Tensor] | None:
    if "arrays" not in content:
        return None
    like = create(network, spec, torch.Generator().manual_seed(0)).state_dict()
    return decode_weights(parts_of(content, "arrays"), like)


def _earlier(context: Context, server_round: int) -> str | None:
    """The name of the last record that a round before this one left."""
    rounds = [int(name.removeprefix("round-")) for name in context.state if name.startswith("round-")]
    before = [number for number in rounds if number < server_round]
    return f"round-{max(before)}" if before else None


def _remember(context: Context, server_round: int, record: ArrayRecord) -> None:
    """Keep this round's record and the one before it: a server that lost its last round may ask for it again."""
    keep = {f"round-{server_round}", _earlier(context, server_round)}
    context.state[f"round-{server_round}"] = record
    for name in [name for name in context.state if name.startswith("round-") and name not in keep]:
        del context.state[name]
