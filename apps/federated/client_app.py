"""The Flower ClientApp: says who it is, condenses its shard, or trains weights for the rivals.

A client keeps what it needs for the next round in Flower's ``context.state``, one record a round, so that a repeated round finds what it
found the first time.
"""

import contextlib
import functools
import json
import logging
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from flwr.clientapp import ClientApp
from torch import Tensor

from apps.federated.averaging import control_variate, local_sgd
from apps.federated.condense import agreed, partition_of, shard, upload
from apps.federated.messages import ConfigRecord, Context, Message, MetricRecord, RecordDict, parts_of, record_of, settings_of
from apps.federated.settings import Settings
from apps.federated.wire import Limits, decode, decode_weights, encode, encode_weights
from distill.data import ImageData
from distill.data_sources import load
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from distill.records import CannotWrite
from distill.spec import DataSpec


@functools.lru_cache(maxsize=2)
def load_once(
    name: str,
    root: str,
    validation: float,
    seed: int,
    size: int | None,
    device: str,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    classes: tuple[str, ...] | None = None,
) -> ImageData:
    """The data set, read once a process."""
    place = Path(root) if root else None
    return load(name, place, validation=validation, seed=seed, size=size, mean=mean, std=std, classes=classes).to(device)


def data_of(settings: Settings, root: str = "") -> ImageData:
    """The run's whole data set, from ``root`` or $DISTILL_DATA."""
    given = (settings.mean, settings.std, settings.class_names)
    return load_once(settings.data, root, settings.validation, settings.seed, settings.size, settings.device, *given)


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sums come out in the same order, and so with the same bits, on every engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def silent(wanted: bool, shared: bool) -> Iterator[None]:
    """Under privacy a failure says nothing but that it is one: its text may name files, classes and counts of the private data.

    The reason goes to the client's own log. Where all clients are ``shared`` out over one process, a full disk is its own and ends the run.
    """
    try:
        yield
    except Exception as error:
        if not wanted or (shared and isinstance(error, CannotWrite)):
            raise
        logging.getLogger("distill.client").error("a private client failed: %s: %s", type(error).__name__, error)
        raise InputError("a private client failed; its own log says why.") from None


def own_data(context: Context, settings: Settings, spec: DataSpec, given: ImageData | None = None) -> tuple[ImageData, int]:
    """(this client's images, its number).

    A node whose config names ``data`` (a name or ``folder:PATH``) owns all of it; otherwise it takes part ``partition-id`` of the
    run's data set, which it finds under ``data-path`` or $DISTILL_DATA, or which is ``given``.
    """
    node = context.node_config
    client = int(node.get("partition-id", -1))
    root = str(node.get("data-path", context.run_config.get("data-root", "")))
    if "data" in node:
        size = settings.size or spec.height
        own = load_once(str(node["data"]), root, 0.0, settings.seed, size, settings.device, classes=spec.classes)
        return agreed(own, spec, own=True), client
    data = data_of(settings, root) if given is None else given
    return shard(agreed(data, spec), partition_of(data, settings), client), client


def client_app(given: ImageData | None = None, releases: Path | None = None) -> ClientApp:
    """A new ClientApp with the actions ``query.who``, ``train.condense`` and ``train.fit``.

    ``given`` is the whole data set for clients of one process; without it each finds its own. Private clients keep what they released
    in the folder ``releases``, or in the one that their node's config or the variable ``DISTILL_RELEASES`` names (never the server).
    """
    app = ClientApp()

    @app.query("who")  # type: ignore[untyped-decorator]
    def who(message: Message, context: Context) -> Message:
        return Message(
            RecordDict({"facts": MetricRecord({"partition-id": int(context.node_config.get("partition-id", -1))})}), reply_to=message
        )

    @app.train("condense")  # type: ignore[untyped-decorator]
    def condense(message: Message, context: Context) -> Message:
        settings, server_round, spec = _asked(message, context)
        with torch_threads(settings.threads), silent(settings.privacy is not None, given is not None):
            data, client = own_data(context, settings, spec, given)
            place = context.node_config.get("releases", releases or os.environ.get("DISTILL_RELEASES"))
            ledger = None if place is None or settings.privacy is None else Path(str(place)) / f"client-{client}-round-{server_round}"
            return Message(_condensed(message.content, context, settings, server_round, data, client, ledger), reply_to=message)

    @app.train("fit")  # type: ignore[untyped-decorator]
    def fit(message: Message, context: Context) -> Message:
        settings, server_round, spec = _asked(message, context)
        with torch_threads(settings.threads):
            data, client = own_data(context, settings, spec, given)
            return Message(_fitted(message.content, context, settings, server_round, data, client), reply_to=message)

    return app


def _asked(message: Message, context: Context) -> tuple[Settings, int, DataSpec]:
    ask = message.content["ask"]
    spec = json.loads(str(ask["spec"]))
    made = DataSpec(**{k: tuple(v) if isinstance(v, list) else v for k, v in spec.items()})
    return settings_of(context.run_config), int(ask["round"]), made


def _condensed(
    content: RecordDict, context: Context, settings: Settings, server_round: int, data: ImageData, client: int, ledger: Path | None
) -> RecordDict:
    start, spec = time.monotonic(), data.spec
    weights = _received(content, settings, spec)
    wanted = settings.upload.classes
    facts: dict[str, Any] = {"partition-id": client, "round": server_round}
    if settings.privacy is None and "data" in context.node_config:
        facts["own-data"] = 1
    if settings.server.client_weights == "examples":
        facts["num-examples"] = len(data.train)
    if settings.privacy is None and wanted is not None and not set(wanted) & set(data.classes):
        return RecordDict({"facts": MetricRecord(facts)})  # nothing that was asked for: an empty answer, no failure
    previous = None
    if settings.upload.warm_start and (earlier := _earlier(context, server_round)):
        limits = Limits(spec, tuple(range(spec.num_classes)), settings.upload.ipc, "float32")
        previous = decode(parts_of(context.state, earlier), limits).to(data.device)
    made = upload(data, settings, server_round, client, weights, previous, ledger)
    if settings.upload.warm_start:
        _remember(context, server_round, record_of(encode(made, "float32")))
    if settings.privacy is None:  # the time tells how many examples there are
        facts["seconds"] = time.monotonic() - start
    reply = RecordDict({"upload": record_of(encode(made, settings.upload.pixels)), "facts": MetricRecord(facts)})
    if made.provenance.dp is not None:
        reply["privacy"] = ConfigRecord({"statement": json.dumps(made.provenance.dp)})
    return reply


def _fitted(content: RecordDict, context: Context, settings: Settings, server_round: int, data: ImageData, client: int) -> RecordDict:
    start, spec = time.monotonic(), data.spec
    received = _received(content, settings, spec)
    if received is None:
        raise InputError("the server sent no weights to train.")
    network = create(settings.network, spec, torch.Generator().manual_seed(0), data.device)
    network.load_state_dict(received)
    draws = generator(settings.seed, "client", client, "round", server_round, "fit")
    correction, own, server = None, {}, {}
    if settings.strategy == "scaffold":
        like = {name: value.detach() for name, value in network.named_parameters()}
        server = decode_weights(parts_of(content, "control"), like, "control")
        earlier = _earlier(context, server_round)
        own = decode_weights(parts_of(context.state, earlier), like) if earlier else {n: torch.zeros_like(v) for n, v in like.items()}
        correction = {name: (server[name] - own[name]).to(data.device) for name in own}
    proximal = settings.local.proximal_mu if settings.strategy == "fedprox" else 0.0
    result = local_sgd(network, data, settings.local, draws, proximal, correction)
    reply = RecordDict({"arrays": record_of(encode_weights(result.weights))})
    if settings.strategy == "scaffold":
        new = control_variate(own, server, received, result, settings.local.lr)
        _remember(context, server_round, record_of(encode_weights(new)))
        reply["change"] = record_of(encode_weights({name: new[name] - own[name] for name in own}))
    numbers: dict[str, Any] = {"partition-id": client, "num-examples": result.examples, "steps": result.steps, "round": server_round}
    numbers |= {"seconds": time.monotonic() - start} | ({"own-data": 1} if "data" in context.node_config else {})
    reply["facts"] = MetricRecord(numbers)
    return reply


def _received(content: RecordDict, settings: Settings, spec: DataSpec) -> dict[str, Tensor] | None:
    if "arrays" not in content:
        return None
    like = create(settings.network, spec, torch.Generator().manual_seed(0)).state_dict()
    return decode_weights(parts_of(content, "arrays"), like)


def _earlier(context: Context, server_round: int) -> str | None:
    """The name of the last record that a round before this one left."""
    rounds = [int(name.removeprefix("round-")) for name in context.state if name.startswith("round-")]
    before = [number for number in rounds if number < server_round]
    return f"round-{max(before)}" if before else None


def _remember(context: Context, server_round: int, record: Any) -> None:
    """Keep this round's record and the one before it: a server that lost its last round may ask for it again."""
    keep = {f"round-{server_round}", _earlier(context, server_round)}
    context.state[f"round-{server_round}"] = record
    for name in [name for name in context.state if name.startswith("round-") and name not in keep]:
        del context.state[name]
