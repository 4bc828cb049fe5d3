"""What a federated run is: one frozen value, the same on the server, on every client and in the record."""

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal, Protocol

import pydantic
from pydantic import Field

from apps.federated.admission import AdmissionConfig
from apps.federated.partition import PartitionConfig
from apps.federated.wire import Pixels
from distill.augment import strategy as augmentation
from distill.configure import STRICT, configure
from distill.coresets import CORESETS
from distill.decode import Decode, from_text
from distill.distiller import Config
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.methods.presets import presets_of
from distill.networks import check_name
from distill.synthetic import Initial
from distill.teachers import Teacher, check_teacher
from distill.train import Recipe

ROBUST = ("fedmedian", "fedtrimmedavg", "krum", "multikrum")
WEIGHTS = ("fedavg", "fedavgm", "fedprox", "fedadam", "scaffold", "fednova", "feddyn", *ROBUST)
REMEMBERING = ("scaffold", "feddyn")  # whose clients keep something from round to round
ALONE = ("local", "central")  # no messages: each client by itself, and all data in one place
STRATEGIES = ("feddm", *CORESETS, *WEIGHTS, *ALONE)
# What decides which images a client has.
DATA_FIELDS = ("data", "size", "validation", "mean", "std", "class_names", "seed", "partition")

# Xiong et al., CVPR 2023: SGD on the pixels with step size 1 and momentum 0.5, 256 real images a class, rho = 5, no augmentation.


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class UploadConfig:
    """What a client condenses and sends.

    Attributes:
        method: a name in `METHODS`.
        ipc: images per class that the client holds.
        pixels: type of the pixels that are sent.
        networks: "received" starts the method's networks from the server's weights; "fresh" draws new ones (no weights are sent down).
        warm_start: start from the client's images of the round before.
        classes: labels that are asked for; None: every class.
        settings: fields of the method's config; for "dm" the defaults are FedDM's.
        labels: None: class numbers. "received" (from the server's weights) or "local" (from a ``teacher`` that is trained on the client's
            images): soft labels of the uploaded images, condensed or real (`apps.federated.labels`).
        soft_share: part of a label that comes from the network, below one half; None: 0.4.
        teacher: of "local" labels.
    """

    method: str = "dm"
    ipc: Annotated[int, Field(ge=1, le=10_000)] = 10
    pixels: Pixels = "uint8"
    networks: Literal["received", "fresh"] = "received"
    warm_start: bool = False
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    settings: dict[str, object] = field(default_factory=dict)
    labels: Literal["received", "local"] | None = None
    soft_share: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    teacher: Teacher | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ServerConfig:
    """How the server learns from the union, starting from the weights that it sent.

    Attributes:
        recipe: of the training; the published one is 500 epochs of SGD.
        radius: project the new weights onto the ball of this radius around the old ones; None: no limit.
        client_weights: "examples" weighs a client's images by n_k / n; "equal" counts every image the same, "clients" every client.
        memory: number of earlier rounds whose unions are kept and learned from too.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=500, schedule="constant", augmentation="none"))
    radius: Annotated[float, Field(gt=0)] | None = None
    client_weights: Literal["equal", "clients", "examples"] = "equal"
    memory: Annotated[int, Field(ge=0)] = 0


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class LocalConfig:
    """Local SGD of the strategies that send weights.

    Attributes:
        epochs: passes over the client's images in a round.
        max_steps: limit on a round's optimiser steps; None: no limit.
        batch_size: images per step.
        lr: step size.
        momentum: of SGD.
        weight_decay: of SGD.
        proximal_mu: of FedProx, whose loss is that of the batch plus mu / 2 * |w - w_received|^2.
        augmentation: of the images (`distill.augment.strategy`); "auto": DSA's for the data.
    """

    epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    proximal_mu: Annotated[float, Field(ge=0)] = 0.01
    augmentation: str = "none"

    def steps(self, examples: int) -> int:
        """The number of optimiser steps of a client with ``examples`` training images in a round."""
        whole = self.epochs * -(-examples // self.batch_size)
        return whole if self.max_steps is None else min(whole, self.max_steps)


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class AveragingConfig:
    """How the server puts weights together, for the strategies with a setting of their own.

    Attributes:
        fedavgm_lr: step size of the server's SGD (FedAvgM).
        fedavgm_momentum: its momentum.
        fedadam_lr: step size of the server's Adam (FedAdam).
        fedadam_beta1: decay of its first moment.
        fedadam_beta2: decay of its second moment.
        fedadam_tau: added to the root of its second moment; a larger one adapts less.
        feddyn_alpha: weight of FedDyn's regularisation, on the server and the clients.
        scaffold_weights: "equal" counts every client once in SCAFFOLD's means, as its paper does; "examples" by n_k / n, as FedAvg does.
        malicious: share of the clients that krum, multikrum and fedtrimmedavg assume malicious.
    """

    fedavgm_lr: Annotated[float, Field(gt=0)] = 1.0
    fedavgm_momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    fedadam_lr: Annotated[float, Field(gt=0)] = 0.01
    fedadam_beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    fedadam_beta2: Annotated[float, Field(ge=0, lt=1)] = 0.99
    fedadam_tau: Annotated[float, Field(gt=0)] = 0.001
    feddyn_alpha: Annotated[float, Field(gt=0)] = 0.1
    scaffold_weights: Literal["equal", "examples"] = "equal"
    malicious: Annotated[float, Field(ge=0, lt=0.5)] = 0.3


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class PrivacyRequest:
    """Uploads must be private and cost at most ``epsilon`` each; None: what each client gives. A client may refuse a request."""

    epsilon: Annotated[float, Field(gt=0)] | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Settings:
    """All settings of a run.

    Attributes:
        strategy: one of `STRATEGIES`.
        data: a name that `distill.load` takes; ``size``, ``validation``, ``mean``, ``std`` and ``class_names`` are passed with it.
        rounds: number of rounds.
        seed: all streams of random numbers are derived from it.
        network: name of the network.
        fraction: share of the clients that take part in a round.
        timeout: seconds of a round.
        min_clients: clients that a round needs (None: 1).
        wait: seconds to wait for all clients at the start, and for ``min_clients`` in later rounds (None: 120).
        split: the split that accuracy is measured on.
        device: of clients and server.
        threads: torch threads of each client; the same number gives the same bits on every engine.
        partition: how the data set is divided among the clients.
        upload: what clients condense and send.
        server: how the server learns from condensed sets.
        local: local SGD of strategies that send weights.
        averaging: what their servers do.
        privacy: what is asked of private clients, or None. What they give is decided on their nodes (`client_privacy`).
        admission: which uploads join the union.
    """

    strategy: str = "feddm"
    data: str = "digits"
    size: int | None = None
    validation: Annotated[float, Field(ge=0, lt=1)] = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    class_names: tuple[str, ...] | None = None
    rounds: Annotated[int, Field(ge=1)] = 2
    seed: Annotated[int, Field(ge=0)] = 0
    network: str = "ConvNet"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    min_clients: Annotated[int, Field(ge=1)] | None = None
    wait: Annotated[float, Field(ge=0)] | None = None
    split: Literal["test", "validation"] = "test"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: Annotated[int, Field(ge=1)] = 1
    partition: PartitionConfig = field(default_factory=PartitionConfig)
    upload: UploadConfig = field(default_factory=UploadConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    local: LocalConfig = field(default_factory=LocalConfig)
    averaging: AveragingConfig = field(default_factory=AveragingConfig)
    privacy: PrivacyRequest | None = None
    admission: AdmissionConfig = field(default_factory=AdmissionConfig)

    @property
    def down(self) -> bool:
        """Whether clients get the server's weights."""
        images = self.strategy not in (*WEIGHTS, *ALONE) and self.upload.labels == "received"
        return self.strategy in WEIGHTS or images or (self.strategy == "feddm" and self.upload.networks == "received")


def check(settings: Settings) -> Settings:
    """The same settings; `InputError` if fields contradict each other."""
    if settings.strategy not in STRATEGIES:
        raise unknown_name("strategy", settings.strategy, STRATEGIES)
    check_name(settings.network)
    if settings.local.augmentation != "auto":
        augmentation(settings.local.augmentation)
    method_config(settings)
    _check_labels(settings)
    if settings.privacy is not None:
        if settings.strategy != "feddm":
            raise InputError(f"privacy is on and strategy {settings.strategy!r} has no private form here; allowed: feddm.")
        if settings.upload.warm_start:
            raise InputError("privacy is on: images of the round before are no private start; set warm_start = false.")
        if settings.server.client_weights == "examples":
            raise InputError('privacy is on: a client\'s number of images is private; set server.client_weights = "equal".')
        if settings.upload.networks != "fresh":
            raise InputError('privacy is on: private clients draw their networks themselves; set upload.networks = "fresh".')
    return settings


def check_clients(settings: Settings) -> None:
    """`InputError` where a round needs more clients than the run's partition has."""
    if settings.min_clients is not None and settings.min_clients > settings.partition.num_partitions:
        raise InputError(
            f"min_clients is {settings.min_clients}; allowed: at most {settings.partition.num_partitions}, the number of clients."
        )


def _check_labels(settings: Settings) -> None:
    """`InputError` for soft labels that nobody can give, or that would reveal private images."""
    upload, recipe = settings.upload, settings.server.recipe
    if recipe.teacher is not None:
        raise InputError('server.recipe has a teacher, and a server has no images for it; give upload.labels = "received" or "local".')
    if (upload.labels == "local") != (upload.teacher is not None):
        raise InputError('upload.labels = "local" and [upload.teacher] go together; give both, or none of them.')
    if upload.soft_share is not None and upload.labels is None:
        raise InputError(f'upload.soft_share is {upload.soft_share:g} and upload.labels is not given; set it to "received" or "local".')
    if upload.teacher is not None:
        check_teacher(upload.teacher)
    if upload.labels is not None and settings.privacy is not None:
        raise InputError("privacy is on: no label is made of private images, or of weights that are not sent; leave upload.labels out.")
    if recipe.loss is not None and settings.server.client_weights == "examples":
        raise InputError(f'server.recipe.loss is {recipe.loss!r}, and labels are weighted by clients; set server.client_weights = "equal".')


class MethodConfig(Config, Protocol):
    """What the configs of all methods have."""

    @property
    def initial(self) -> Initial: ...


def method_config(settings: Settings) -> MethodConfig:
    """The config of the condensing method: ``upload.settings`` over the method's ``presets.client`` (for "dm" those of FedDM).

    Raises:
        InputError: the method or one of its settings is unknown or wrong.
    """
    name = settings.upload.method
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    chosen = dict(settings.upload.settings)
    if "network" in chosen:
        raise InputError("upload.network cannot be given; clients use the run's network.")
    base = dict(presets_of(METHODS[name][1]).client)
    if settings.upload.networks == "fresh":
        base.pop("radius", None)
        if chosen.get("radius") is not None:
            raise InputError("radius was given and networks is 'fresh'; a ball needs the server's weights: networks = \"received\".")
    if chosen.get("pool", "random") != "random":
        base.pop("radius", None)  # the pool takes the place of FedDM's ball
    config: MethodConfig = configure(METHODS[name][0], {**base, "network": settings.network, **chosen}, f"[upload] of method {name!r}")
    return config


def upload_form(settings: Settings) -> Decode | None:
    """How uploaded images are stored: the ``decode`` of the upload's method, for chosen real images, too."""
    return from_text(getattr(method_config(settings), "decode", "none"))


def data_settings(settings: Settings) -> str:
    """The settings that decide which images each client has, as text that can be compared."""
    values = pydantic.TypeAdapter(Settings).dump_python(settings, mode="json")
    return json.dumps({name: values[name] for name in DATA_FIELDS if name in values}, sort_keys=True)


def to_json(settings: Settings) -> str:
    """Text that `from_json` reads back."""
    return json.dumps(pydantic.TypeAdapter(Settings).dump_python(settings, mode="json"), sort_keys=True)


def from_mapping(values: Mapping[str, object], where: str = "settings") -> Settings:
    """Settings from nested plain values; `InputError` with ``where`` if one is unknown or wrong."""
    settings = configure(Settings, values, where)
    try:
        return check(settings)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def from_json(text: str) -> Settings:
    """Settings from the text of `to_json`, checked as in `from_mapping`."""
    return from_mapping(json.loads(text))
