"""What privacy a client gives: one value, made on the client's node from the node's own file. No message changes it.

The server's text may only ask for less. `check_request` compares the two before anything is read or computed.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from apps.federated.settings import Settings, data_settings, method_config, to_json
from apps.federated.wire import within_range
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError, clipped
from distill.networks import Factory
from distill.randomness import derived_seed
from distill.run import condense
from distill.spec import DataSpec
from distill.statistics import RealStatistics

SLACK = 1e-9  # of rounding, relative
MAX_THREADS, MAX_SIDE = 256, 1024  # of a request

if TYPE_CHECKING:
    from apps.federated.messages import Context

# (data, epsilon, delta, labels, folder of all uploads, name of this upload) -> what the method sees. Counts before it answers.
Statistics = Callable[[ImageData, float, float, tuple[int, ...] | None, Path, str], RealStatistics]


@dataclass(frozen=True)
class ClientPrivacy:
    """The privacy that a client gives, whatever the server asks.

    Args:
        statistics: makes what the condensing method sees of the data; see `Statistics`. It is an object, never a name from a message.
        epsilon: the budget of all uploads from this client's data together.
        delta: likewise.
        ledger: the folder of everything that was released, and of this client's log; it holds the sums, over restarts too.
        uploads: how many uploads share both equally; each is answered once, and free of charge when the same is asked again.
        start: (statistics, images a class, seed) -> private first images; None: noise.
        networks: network's name -> networks that come back; None: new ones, which the client draws itself.
        classes: labels that are sent, whether the client has images of them or not; None: all of the data set.
        methods: the methods that a server may ask for.
        ipc: the largest number of images per class.
        iterations: the largest value of each number of steps.
        data: the run's data settings (`data_settings`) that the node agreed to; None: the node's config names the data.
        data_root: where the run's data set lies.
    """

    statistics: Statistics
    epsilon: float
    delta: float
    ledger: Path
    uploads: int = 1
    start: Callable[..., CondensedSet] | None = None
    networks: Callable[[str], Factory] | None = None
    classes: tuple[int, ...] | None = None
    methods: tuple[str, ...] = ("dm",)
    ipc: int = 100
    iterations: int = 10_000
    data: str | None = None
    data_root: str = ""

    def folder(self, client: int) -> Path:
        """Where one client keeps its releases: several may share a machine and this value."""
        return self.ledger / f"client-{client}"


# A node's privacy by its context; None where the node gives none. What it raises is an answer that says nothing.
PrivacyOf = Callable[["Context"], ClientPrivacy | None]


def check_request(privacy: ClientPrivacy, settings: Settings, *, own: bool, weights: bool) -> float:
    """The epsilon of the upload that is asked for; `InputError` for a request beyond what the client gives.

    Args:
        settings: the server's, as they came.
        own: whether the images are the client's own, and no part of a data set that the run names.
        weights: whether the message brings weights: a private client looks through networks that it draws itself.
    """
    if settings.privacy is None:
        raise InputError("the server asks for an upload without privacy; this client gives none.")
    share = privacy.epsilon / privacy.uploads
    asked = share if settings.privacy.epsilon is None else settings.privacy.epsilon
    labels = None if settings.upload.classes is None else tuple(sorted(settings.upload.classes))
    allowed = None if privacy.classes is None else tuple(sorted(privacy.classes))
    config = method_config(settings)
    steps = {n: v for n, v in vars(config).items() if type(v) is int and not n.startswith("batch") and not n.endswith("seed")}
    largest = max(steps.values(), default=0)
    demands = (
        (asked > share * (1 + SLACK), f"epsilon {asked:g} for an upload", f"at most {share:g}"),
        (settings.strategy != "feddm", f"strategy {clipped(settings.strategy, 40)!r}", "feddm"),
        (settings.upload.networks != "fresh" or weights, "networks from the server's weights", 'networks = "fresh"'),
        (settings.upload.warm_start, "a warm start", "warm_start = false"),
        (settings.server.client_weights != "equal", "the number of images", 'client_weights = "equal"'),
        (labels != allowed, f"classes {clipped(labels, 60)}", f"{clipped(allowed, 60)} (None: all)"),
        (settings.upload.method not in privacy.methods, f"method {clipped(settings.upload.method, 40)!r}", ", ".join(privacy.methods)),
        (settings.upload.ipc > privacy.ipc, f"{settings.upload.ipc} images a class", f"at most {privacy.ipc}"),
        (largest > privacy.iterations, f"{largest} steps", f"at most {privacy.iterations}"),
        (settings.threads > MAX_THREADS, f"{settings.threads} threads", f"at most {MAX_THREADS}"),
        ((settings.size or 0) > MAX_SIDE, f"images of {settings.size} pixels a side", f"at most {MAX_SIDE}"),
        (privacy.start is None and config.initial != "noise", f"initial {clipped(config.initial, 40)!r}", 'initial = "noise"'),
        (not own and privacy.data is None, "data that its own text names", 'a node config with data="..."'),
        (not own and privacy.data != data_settings(settings), "another data set, or another part of it", "what the node's file names"),
    )
    for wrong, request, right in demands:
        if wrong:
            raise InputError(f"the server asks for {request}; this client allows: {right}.")
    return asked


def upload_name(settings: Settings, server_round: int, spec: DataSpec) -> str:
    """The same for the same request only: asked again, a client answers from what it released, and pays once."""
    text = json.dumps([to_json(settings), server_round, dataclasses.asdict(spec)], sort_keys=True)
    return f"round-{server_round}-{hashlib.sha256(text.encode()).hexdigest()[:32]}"


def private_upload(
    privacy: ClientPrivacy,
    epsilon: float,
    data: ImageData,
    settings: Settings,
    server_round: int,
    client: int,
    spec: DataSpec,
    *,
    network: Factory | None = None,
) -> CondensedSet:
    """The set that a private client sends: ``ipc`` images of every class that was agreed on, of which it may hold none.

    Args:
        epsilon: of this upload, from `check_request`.
        data: the client's images, which may be none at all.
        network: the app's own; None: the one that the settings name.
    """
    if network is not None and privacy.networks is not None:
        raise InputError("the node's privacy file names networks, and the app has its own network; leave one of them out.")
    seed = derived_seed(settings.seed, "client", client, "round", server_round)
    config, name = method_config(settings), upload_name(settings, server_round, spec)
    values = {name: value for name, value in vars(config).items() if name not in ("network", "initial")}
    delta = privacy.delta / privacy.uploads
    statistics = privacy.statistics(data, epsilon, delta, privacy.classes, privacy.folder(client), name)
    condensed = condense(
        statistics,
        settings.upload.method,
        ipc=settings.upload.ipc,
        seed=seed,
        network=(network or settings.network) if privacy.networks is None else privacy.networks(settings.network),
        initial="noise" if privacy.start is None else privacy.start(statistics, settings.upload.ipc, seed),
        progress=False,
        more_images_than_data=True,  # a client may hold fewer than were asked for
        **values,
    )
    return dataclasses.replace(condensed, images=within_range(condensed))
