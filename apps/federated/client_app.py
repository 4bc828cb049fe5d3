"""The Flower ClientApp: says who it is, condenses its shard, or trains weights for the rivals."""

import contextlib
import functools
import json
import os
from collections.abc import Iterator
from pathlib import Path

import torch
from flwr.clientapp import ClientApp

from apps.federated.client_answers import condensed_answer, fitted_answer
from apps.federated.client_privacy import ClientPrivacy, PrivacyOf, check_request, private_upload
from apps.federated.condense import NoImages, agreed, is_empty, partition_of, shard
from apps.federated.given import Shard, client_number, shard_of
from apps.federated.messages import (
    ConfigRecord,
    Context,
    Message,
    MetricRecord,
    RecordDict,
    record_of,
    settings_of,
)
from apps.federated.packing import in_the_form_asked
from apps.federated.settings import Settings
from apps.federated.silence import silence, silent_answer
from apps.federated.wire import encode
from distill.data import ImageData
from distill.data_sources import load
from distill.errors import InputError, clipped
from distill.networks import Factory
from distill.spec import DataSpec

# In a node's environment: 1 lets runs name folders of this machine as their data.
FOLDERS = "DISTILL_FOLDERS"


@functools.lru_cache(maxsize=2)
def load_once(
    name: str,
    root: str,
    *,
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
    return load_once(
        settings.data,
        root,
        validation=settings.validation,
        seed=settings.seed,
        size=settings.size,
        device=settings.device,
        mean=settings.mean,
        std=settings.std,
        classes=settings.class_names,
    )


@contextlib.contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Sums come out in the same order, and so with the same bits, on every engine."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def own_data(
    context: Context,
    settings: Settings,
    spec: DataSpec,
    given: ImageData | None = None,
    privacy: ClientPrivacy | None = None,
    own: Shard | None = None,
) -> tuple[ImageData, int]:
    """(this client's images, its number).

    The app's ``own`` images come first. A node whose config names ``data`` (a name or ``folder:PATH``) owns all of it; otherwise it
    takes part ``partition-id`` of the run's data set, which it finds under ``data-path`` or $DISTILL_DATA, or which is ``given``. A server
    names no folder of the client's machine, unless the node says with `FOLDERS` that runs may (those that a study starts on its own machine
    may), or, with ``privacy``, the node's own file names it.
    """
    node = context.node_config
    client = client_number(context)
    if own is not None:
        return shard_of(own, context, spec, may_be_empty=privacy is not None).to(settings.device), client
    root = str(node.get("data-path", context.run_config.get("data-root", "") if privacy is None else privacy.data_root))
    if "data" in node:
        name, size = str(node["data"]), settings.size or spec.height
        if privacy is not None and is_empty(name):
            return NoImages.of(spec).to(settings.device), client
        # A private client's images stay the same ones, whatever the server's seed would hold out of a folder without test images.
        seed = settings.seed if privacy is None else 0
        whole = load_once(name, root, validation=0.0, seed=seed, size=size, device=settings.device, classes=spec.classes)
        return agreed(whole, spec, own=True), client
    if given is None and privacy is None and ":" in settings.data and os.environ.get(FOLDERS) != "1":
        raise InputError(
            f"the run's data are {clipped(settings.data, 80)}, and a server names no folder of this machine; allowed: the node's own "
            f'data (data="folder:PATH" in its --node-config), or {FOLDERS}=1 in its environment.'
        )
    data = data_of(settings, root) if given is None else given
    return shard(agreed(data, spec), partition_of(data, settings), client, may_be_empty=privacy is not None), client


def no_privacy(context: Context) -> ClientPrivacy | None:
    """Of a client that gives none: it answers plain requests, and none for privacy."""
    return None


def client_app(
    given: ImageData | None = None, privacy: PrivacyOf = no_privacy, *, shard: Shard | None = None, network: Factory | None = None
) -> ClientApp:
    """A new ClientApp with the actions ``query.who``, ``train.condense`` and ``train.fit``.

    Args:
        given: the whole data set for clients of one process; without it each finds its own.
        privacy: what a client with this context gives, from its node's own file. A client that has one answers private requests only, and
            only those that it allows; another one answers none of them.
        shard: the client's own images, in place of a part of the run's data set: a function of the context that gives `ImageData`, a torch
            or a Hugging Face dataset; or a flwr-datasets ``FederatedDataset`` or partitioner.
        network: a function of the data spec that returns a module, in place of the network that the run names. The server's must give
            the same one: weights that differ from it in a name, type or shape are refused.
    """
    app = ClientApp(mods=[in_the_form_asked])

    @app.query("who")
    def who(message: Message, context: Context) -> Message:
        return Message(RecordDict({"facts": MetricRecord({"partition-id": client_number(context)})}), reply_to=message)

    def private_of(message: Message, context: Context) -> ClientPrivacy | Message | None:
        """The client's privacy, or its refusal: with a file that cannot be read it gives nothing, and without one no private upload."""
        try:
            mine = privacy(context)
        except Exception:  # whatever is in that file
            return silence(message)
        return silence(message) if mine is None and settings_of(context.run_config).privacy is not None else mine

    @app.train("condense")
    def condense(message: Message, context: Context) -> Message:
        mine = private_of(message, context)
        if isinstance(mine, Message):
            return mine
        if mine is not None:
            work = functools.partial(_private, message, context, mine, given, shard, network)
            return silent_answer(message, work, mine.folder(client_number(context)), shared=given is not None)
        settings, server_round, spec = _asked(message, context)
        with torch_threads(settings.threads):
            data, client = own_data(context, settings, spec, given, own=shard)
            reply = condensed_answer(message.content, context, settings, server_round, data, client, network or settings.network)
            return Message(owned(reply, context, shard), reply_to=message)

    @app.train("fit")
    def fit(message: Message, context: Context) -> Message:
        mine = private_of(message, context)
        if mine is not None:  # weights that were trained on the images have no privacy here
            return silence(message)
        settings, server_round, spec = _asked(message, context)
        with torch_threads(settings.threads):
            data, client = own_data(context, settings, spec, given, own=shard)
            reply = fitted_answer(message.content, context, settings, server_round, data, client, network or settings.network)
            return Message(owned(reply, context, shard), reply_to=message)

    return app


def is_own(context: Context, own: Shard | None) -> bool:
    """Whether the client's images are its own, and no part of the run's data set."""
    return own is not None or "data" in context.node_config


def owned(reply: RecordDict, context: Context, own: Shard | None) -> RecordDict:
    """The reply, which says that its images are the client's own where they are."""
    if is_own(context, own):
        reply.metric_records["facts"]["own-data"] = 1
    return reply


def _private(
    message: Message, context: Context, privacy: ClientPrivacy, given: ImageData | None, own: Shard | None, network: Factory | None
) -> Message:
    """A private client's upload. What it says beside the images does not depend on its data."""
    settings, server_round, spec = _asked(message, context)
    epsilon = check_request(privacy, settings, own=is_own(context, own), weights="arrays" in message.content)
    with torch_threads(settings.threads):
        data, client = own_data(context, settings, spec, given, privacy, own)
        condensed = private_upload(privacy, epsilon, data, settings, server_round, client, spec, network=network)
    facts = MetricRecord({"partition-id": client, "round": server_round})
    statement = ConfigRecord({"statement": json.dumps(condensed.provenance.dp)})
    content = RecordDict({"upload": record_of(encode(condensed, settings.upload.pixels)), "facts": facts, "privacy": statement})
    return Message(content, reply_to=message)


def _asked(message: Message, context: Context) -> tuple[Settings, int, DataSpec]:
    ask = message.content.get("ask")
    if not isinstance(ask, ConfigRecord):
        raise InputError("the request says nothing that this client understands; allowed: what a server of this toolkit sends.")
    facts, number = json.loads(str(ask["spec"])), ask["round"]
    lists = {name: tuple(value) for name, value in facts.items() if isinstance(value, list)}
    if not isinstance(number, int):
        raise InputError(f"the request's round is {clipped(number)}; allowed: a whole number.")
    return settings_of(context.run_config), number, DataSpec(**(facts | lists))
