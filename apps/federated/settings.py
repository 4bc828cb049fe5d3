"""What a federated run is: one frozen value, the same on the server, on every client and in the record."""

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Literal, Protocol

import pydantic
from pydantic import Field

from apps.federated.admission import AdmissionConfig
from apps.federated.dynafed import DynaFedConfig
from apps.federated.guided_tables import UPLOADS, FedAFConfig, FedMKConfig, FedVCKConfig
from apps.federated.partition import PartitionConfig
from apps.federated.tables import AveragingConfig, LocalConfig, PrivacyRequest, ServerConfig, UploadConfig
from distill.augment import strategy as augmentation
from distill.configure import config_class, configure
from distill.coresets import CORESETS
from distill.decode import Decode, from_text
from distill.distiller import Config
from distill.errors import InputError, clipped, unknown_name
from distill.methods import METHODS
from distill.methods.presets import matched_by, presets_of
from distill.networks import check_name
from distill.synthetic import Initial
from distill.teachers import check_teacher
from distill.train import Recipe

ROBUST = ("fedmedian", "fedtrimmedavg", "krum", "multikrum")
WEIGHTS = ("fedavg", "fedavgm", "fedprox", "fedadam", "scaffold", "fednova", "feddyn", "dynafed", *ROBUST)
REMEMBERING = ("scaffold", "feddyn", "fedvck")  # whose clients keep something from round to round
ALONE = ("local", "central")  # no messages: each client by itself, and all data in one place
CONDENSING = ("feddm", *UPLOADS)  # whose clients condense
STRATEGIES = (*CONDENSING, *CORESETS, *WEIGHTS, *ALONE)
# What decides which images a client has.
DATA_FIELDS = ("data", "size", "validation", "mean", "std", "class_names", "seed", "partition")


@config_class
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
        quorum: uploads that a round needs; with fewer the model stays as it was (None: 1).
        staleness: rounds by which uploaded images may be late and still join the union; 0: none.
        staleness_weight: an image that is a rounds late counts this to the power of a.
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
        dynafed: what DynaFed's server does.
        fedvck: what FedVCK's clients and server do.
        fedmk: what FedMK's clients do.
        fedaf: what FedAF's clients and server do.
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
    quorum: Annotated[int, Field(ge=1)] | None = None
    staleness: Annotated[int, Field(ge=0, le=100)] = 0
    staleness_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
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
    dynafed: DynaFedConfig = field(default_factory=DynaFedConfig)
    fedvck: FedVCKConfig = field(default_factory=FedVCKConfig)
    fedmk: FedMKConfig = field(default_factory=FedMKConfig)
    fedaf: FedAFConfig = field(default_factory=FedAFConfig)

    @property
    def down(self) -> bool:
        """Whether clients get the server's weights."""
        images = self.strategy not in (*WEIGHTS, *ALONE) and self.upload.labels == "received"
        return self.strategy in WEIGHTS or images or (self.strategy in CONDENSING and self.upload.networks == "received")

    @property
    def weighs_images(self) -> bool:
        """Whether the images of a union count differently."""
        return self.server.client_weights != "equal" or (self.staleness > 0 and self.staleness_weight < 1)


def check(settings: Settings) -> Settings:
    """The same settings; `InputError` if fields contradict each other."""
    if settings.strategy not in STRATEGIES:
        raise unknown_name("strategy", settings.strategy, STRATEGIES)
    check_name(settings.network)
    if settings.local.augmentation != "auto":
        augmentation(settings.local.augmentation)
    method_config(settings)
    _check_labels(settings)
    if settings.strategy in UPLOADS:
        _check_guided(settings)
    if settings.privacy is not None:
        if settings.strategy != "feddm":
            raise InputError(f"privacy is on and strategy {settings.strategy!r} has no private form here; allowed: feddm.")
        if settings.upload.warm_start:
            raise InputError("privacy is on: images of the round before are no private start; set warm_start = false.")
        if settings.server.client_weights in ("examples", "represented"):
            raise InputError('privacy is on: a client\'s number of images is private; set server.client_weights = "equal".')
        if settings.upload.networks != "fresh":
            raise InputError('privacy is on: private clients draw their networks themselves; set upload.networks = "fresh".')
    return settings


def check_clients(settings: Settings) -> None:
    """`InputError` where a round needs more clients than the run's partition has, or more uploads than it asks for."""
    clients = settings.partition.num_partitions
    if settings.min_clients is not None and settings.min_clients > clients:
        raise InputError(f"min_clients is {settings.min_clients}; allowed: at most {clients}, the number of clients.")
    if settings.quorum is not None and settings.quorum > (asked := taking_part(settings.fraction, clients)):
        raise InputError(f"quorum is {settings.quorum}; allowed: at most {asked}, the number of clients that are asked in a round.")


def taking_part(fraction: float, clients: int) -> int:
    """The number of clients that are asked in a round of which so many are there."""
    return max(1, round(fraction * clients))


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
    if recipe.loss is not None and settings.weighs_images:
        raise InputError(
            f"server.recipe.loss is {recipe.loss!r}, and images count differently, as weights of their labels; set "
            'server.client_weights = "equal" and staleness_weight = 1.'
        )


def _check_guided(settings: Settings) -> None:
    """`InputError` for an upload that the strategy's clients cannot make."""
    name, upload = settings.strategy, settings.upload
    if upload.networks != "received":
        raise InputError(f"upload.networks is {upload.networks!r}, and {name}'s clients use the server's model; allowed: received.")
    if name in ("fedvck", "fedaf") and upload.method != "dm":
        raise InputError(f"upload.method is {clipped(upload.method, 40)!r}; allowed for {name}: dm, whose mean features it compares.")
    if upload.warm_start:
        raise InputError(f"upload.warm_start is on, and {name}'s clients keep nothing of their uploads; leave it out.")
    if name in ("fedvck", "fedaf"):
        check_simple(name, settings.server.recipe)
    if name == "fedmk" and matched_by(METHODS[upload.method][1]) == "trajectories":
        raise InputError(
            f"upload.method is {upload.method!r}; allowed for fedmk: methods that draw real batches, in which hard images count more."
        )
    config = method_config(settings)
    if name != "fedaf" and getattr(config, "real_batches", "random") != "random":
        raise InputError(f"upload.real_batches is given, and {name} draws batches with its own chances; leave it out.")
    for key, value in UPLOADS[name].items():
        if getattr(config, key) != value:
            raise InputError(f"upload.{key} is {getattr(config, key)!r}, and {name} sets it to {value!r}; leave it out.")
    if name in ("fedvck", "fedaf") and pooled(config):
        raise InputError(f"upload.pool or calibration is given, and {name} matches in its own networks; leave both out.")


def check_simple(strategy: str, recipe: Recipe) -> None:
    """Raises `InputError` for a recipe that a further term in the server's loss cannot be added to."""
    plain = Recipe()
    for name in ("loss", "mix", "ema"):
        if getattr(recipe, name) != getattr(plain, name):
            given = clipped(getattr(recipe, name), 40)
            raise InputError(f"server.recipe.{name} is {given!r}; allowed for {strategy}, whose server has its own loss: none.")


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
    own = {field.name for field in dataclasses.fields(METHODS[name][0])}
    base |= {key: value for key, value in UPLOADS.get(settings.strategy, {}).items() if key in own}
    config: MethodConfig = configure(METHODS[name][0], {**base, "network": settings.network, **chosen}, f"[upload] of method {name!r}")
    return config


def pooled(config: object) -> bool:
    """Whether a method's config asks for trained networks, which the server's are on a client."""
    return getattr(config, "pool", "random") != "random" or getattr(config, "calibration", 0) > 0


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
