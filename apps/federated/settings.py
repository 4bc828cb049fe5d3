"""What a federated run is: one frozen value, the same on the server, on every client and in the record."""

import json
from collections.abc import Mapping
from dataclasses import field
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from apps.federated.partition import PartitionConfig
from apps.federated.wire import Pixels
from distill.configure import STRICT, configure
from distill.coresets import CORESETS
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.methods.presets import presets_of
from distill.networks import check_name
from distill.train import Recipe

WEIGHTS = ("fedavg", "fedprox", "scaffold", "fednova")
ALONE = ("local", "central")  # no messages: each client by itself, and all data in one place
STRATEGIES = ("feddm", *CORESETS, *WEIGHTS, *ALONE)
# What decides which images a client has.
DATA_FIELDS = ("data", "size", "validation", "mean", "std", "class_names", "seed", "partition")

# Xiong et al., CVPR 2023: SGD on the pixels with step size 1 and momentum 0.5, 256 real images a class, rho = 5, no augmentation.


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class UploadConfig:
    """What a client condenses and sends: ``ipc`` images of each class it holds, pixels as ``pixels``.

    ``method`` is in `METHODS` and ``settings`` are its config's fields; for "dm" the defaults are FedDM's. ``networks`` "received" starts
    the method's networks from the server's weights, "fresh" draws them anew (nothing is sent down then: one-shot use).
    ``warm_start`` begins with the client's images of the round before. ``classes`` None asks for every class.
    """

    method: str = "dm"
    ipc: Annotated[int, Field(ge=1, le=10_000)] = 10
    pixels: Pixels = "uint8"
    networks: Literal["received", "fresh"] = "received"
    warm_start: bool = False
    classes: tuple[Annotated[int, Field(ge=0)], ...] | None = None
    settings: dict[str, Any] = field(default_factory=dict)


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class ServerConfig:
    """How the server learns from the union, starting at the weights it sent (`Recipe`; the published one is 500 epochs of SGD).

    ``radius`` brings the new weights back into the ball of that radius around the old ones (None: no limit). ``client_weights``
    "examples" weighs a client's images by n_k / n, "equal" does not. ``memory`` earlier rounds' unions are kept and learned from too.
    """

    recipe: Recipe = field(default_factory=lambda: Recipe(epochs=500, schedule="constant", augmentation="none"))
    radius: Annotated[float, Field(gt=0)] | None = None
    client_weights: Literal["equal", "examples"] = "equal"
    memory: Annotated[int, Field(ge=0)] = 0


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class LocalConfig:
    """Local SGD of the strategies that send weights. ``max_steps`` cuts a round's ``epochs`` short; ``proximal_mu`` is FedProx's."""

    epochs: Annotated[int, Field(ge=1)] = 1
    max_steps: Annotated[int, Field(ge=1)] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 64
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    proximal_mu: Annotated[float, Field(ge=0)] = 0.01

    def steps(self, examples: int) -> int:
        """Optimiser steps that a client with so many examples takes in a round."""
        whole = self.epochs * -(-examples // self.batch_size)
        return whole if self.max_steps is None else min(whole, self.max_steps)


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class PrivacyRequest:
    """Uploads shall be private and cost at most ``epsilon`` each; None: what each client gives. A client may refuse, and gives no more."""

    epsilon: Annotated[float, Field(gt=0)] | None = None


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Settings:
    """``data`` is a name that `distill.load` takes, and ``mean``, ``std`` and ``class_names`` what is given with it; ``fraction`` of the
    clients take part in a round; ``timeout`` is a round's, in seconds.

    A round takes place with ``min_clients`` or more of them (None: 1); the run waits at most ``wait`` seconds for all to come, and for
    ``min_clients`` in later rounds (None: 120).

    ``threads`` is the number of torch threads of each client: the same number gives the same bits on every engine.
    ``privacy`` None, or what is asked of private clients; what they give, and how, is decided on their nodes (`client_privacy`).
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
    privacy: PrivacyRequest | None = None

    @property
    def down(self) -> bool:
        """Whether clients get the server's weights."""
        return self.strategy in WEIGHTS or (self.strategy == "feddm" and self.upload.networks == "received")


def check(settings: Settings) -> Settings:
    """The same settings, or `InputError` for what no single field shows."""
    if settings.strategy not in STRATEGIES:
        raise unknown_name("strategy", settings.strategy, STRATEGIES)
    check_name(settings.network)
    if settings.min_clients is not None and settings.min_clients > settings.partition.num_partitions:
        raise InputError(
            f"min_clients is {settings.min_clients}; allowed: at most {settings.partition.num_partitions}, the number of clients."
        )
    method_config(settings)
    if settings.privacy is not None:
        if settings.strategy != "feddm":
            raise InputError(f"privacy is on and strategy {settings.strategy!r} has no private form here; allowed: feddm.")
        if settings.upload.warm_start:
            raise InputError("privacy is on: images of the round before are no private start; set warm_start = false.")
        if settings.server.client_weights != "equal":
            raise InputError('privacy is on: a client\'s number of images is private; set server.client_weights = "equal".')
        if settings.upload.networks != "fresh":
            raise InputError('privacy is on: private clients draw their networks themselves; set upload.networks = "fresh".')
    return settings


def method_config(settings: Settings) -> Any:
    """The condensing method's config dataclass, with the method's ``presets.client`` (FedDM's for "dm") under what is given.

    Raises `InputError` for a wrong field.
    """
    name = settings.upload.method
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    given = dict(settings.upload.settings)
    if "network" in given:
        raise InputError("upload.network cannot be given; clients use the run's network.")
    base = dict(presets_of(METHODS[name][1]).client)
    if settings.upload.networks == "fresh":
        base.pop("radius", None)
        if given.get("radius") is not None:
            raise InputError("radius was given and networks is 'fresh'; a ball needs the server's weights: networks = \"received\".")
    return configure(METHODS[name][0], {**base, "network": settings.network, **given}, f"[upload] of method {name!r}")


def data_settings(settings: Settings) -> str:
    """What decides which images each client has, as text that can be compared."""
    made = pydantic.TypeAdapter(Settings).dump_python(settings, mode="json")
    return json.dumps({name: made[name] for name in DATA_FIELDS if name in made}, sort_keys=True)


def to_json(settings: Settings) -> str:
    """Text that `from_json` reads back."""
    return json.dumps(pydantic.TypeAdapter(Settings).dump_python(settings, mode="json"), sort_keys=True)


def from_mapping(values: Mapping[str, Any], where: str = "settings") -> Settings:
    """Settings from nested plain values, checked strictly; one line names what is wrong."""
    made = configure(Settings, values, where)
    try:
        return check(made)
    except InputError as error:
        raise InputError(f"{where}: {error}") from None


def from_json(text: str) -> Settings:
    """Settings from `to_json`'s text, checked as `from_mapping` does."""
    return from_mapping(json.loads(text))
