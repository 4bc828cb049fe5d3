"""A study of kind "federated": strategies under one split, one model and one byte meter, over several seeds."""

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from apps.federated.admission import AdmissionConfig
from apps.federated.attacks import ATTACKS, AttackConfig
from apps.federated.dynafed import DynaFedConfig
from apps.federated.guided_tables import UPLOADS, FedAFConfig, FedMKConfig, FedVCKConfig
from apps.federated.partition import PartitionConfig
from apps.federated.settings import CONDENSING, STRATEGIES, WEIGHTS, Settings, check_clients, from_mapping, method_config, upload_form
from apps.federated.tables import AveragingConfig, LocalConfig, ServerConfig, UploadConfig
from distill.configure import config_class, configure
from distill.errors import InputError, clipped, unknown_name
from scenarios.engine.record import Config, Tables
from scenarios.engine.schema import DataTable, check_tables, config_hash, plain_values
from scenarios.federated.node import checked, request
from scenarios.reporting.text import series

ENGINES = ("inline", "simulation", "deployment")
TABLES = (
    "data",
    "federation",
    "partition",
    "upload",
    "server",
    "local",
    "averaging",
    "admission",
    "dynafed",
    "fedvck",
    "fedmk",
    "fedaf",
    "attack",
    "tuning",
    "privacy",
)
# Keys of [federation] that are those of the settings.
COPIED = ("rounds", "network", "fraction", "timeout", "min_clients", "wait", "quorum", "staleness", "staleness_weight", "threads", "split")
# Of an upload, which a study compares at equal bytes.
FIXED = ("decode", "network", *(field.name for field in dataclasses.fields(UploadConfig)))
# Tables that are parts of the settings.
PARTS = (
    ("partition", PartitionConfig),
    ("server", ServerConfig),
    ("local", LocalConfig),
    ("averaging", AveragingConfig),
    ("admission", AdmissionConfig),
    ("dynafed", DynaFedConfig),
    ("fedvck", FedVCKConfig),
    ("fedmk", FedMKConfig),
    ("fedaf", FedAFConfig),
)


@config_class
class FederationTable:
    """``[federation]``: which strategies are compared; the fields that are not described are those of `apps.federated.settings.Settings`.

    Attributes:
        strategies: names of strategies.
        seeds: number of seeds, each with its own split and first weights.
        rounds: number of rounds of every strategy.
        rounds_of: number of rounds of single strategies that send weights, where it is not ``rounds``.
        targets: accuracies in percent; the record says after how many rounds and bytes each strategy first reaches them.
    """

    DIFFERENT = ("strategies", "targets")

    strategies: Annotated[tuple[str, ...], Field(min_length=1)] = ("feddm",)
    engine: Literal["inline", "simulation", "deployment"] = "inline"
    rounds: Annotated[int, Field(ge=1)] = 2
    seeds: Annotated[int, Field(ge=1)] = 1
    network: str = "ConvNet"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    min_clients: Annotated[int, Field(ge=1)] | None = None
    wait: Annotated[float, Field(ge=0)] | None = None
    quorum: Annotated[int, Field(ge=1)] | None = None
    staleness: Annotated[int, Field(ge=0, le=100)] = 0
    staleness_weight: Annotated[float, Field(gt=0, le=1)] = 0.5
    threads: Annotated[int, Field(ge=1)] = 1
    split: Literal["test", "validation"] = "test"
    rounds_of: dict[str, Annotated[int, Field(ge=1)]] = field(default_factory=dict)
    targets: tuple[Annotated[float, Field(gt=0, le=100)], ...] = ()


Steps = Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)]


@config_class
class TuningTable:
    """``[tuning]``: settings are chosen before the study's rows are run.

    On one split and one seed, by the accuracy on validation images after the last round. FedAvg, FedAvgM, FedProx and SCAFFOLD each get
    every pair of ``lr`` and ``momentum``; the others that send weights take FedAvg's pair. Strategies that condense get every combination
    of ``upload``.

    Attributes:
        lr: step sizes of the clients.
        momentum: of the clients.
        fedadam_lr: step sizes of FedAdam's server.
        feddyn_alpha: weights of FedDyn's regularisation.
        upload: for settings of the condensing method, the values that are tried; real images are stored and sent as in ``[upload]``.
        rounds: of a trial; None: the study's.
        validation: fraction of the training images that is held out in trials, where ``[data]`` holds out none.
        own_trials: number of settings that were tried before for the study's own method, as its author states; it is printed and recorded.
        extended: number of the best strategies, on validation images, that get ``extended_rounds``.
        extended_rounds: see ``extended``.
    """

    DIFFERENT = ("lr", "momentum", "fedadam_lr", "feddyn_alpha")

    upload: dict[str, Annotated[tuple[int | float | str, ...], Field(min_length=1)]] = field(default_factory=dict)
    lr: Steps = (0.01, 0.03, 0.1)
    momentum: Annotated[tuple[Annotated[float, Field(ge=0, lt=1)], ...], Field(min_length=1)] = (0.0, 0.9)
    fedadam_lr: Steps = (0.003, 0.01, 0.03)
    feddyn_alpha: Steps = (0.01, 0.1, 1.0)
    rounds: Annotated[int, Field(ge=1)] | None = None
    validation: Annotated[float, Field(gt=0, lt=1)] = 0.1
    own_trials: Annotated[int, Field(ge=0)] | None = None
    extended: Annotated[int, Field(ge=0)] = 0
    extended_rounds: Annotated[int, Field(ge=1)] | None = None


@config_class
class AttackTable:
    """``[attack]``: rows with hostile clients, one for each attack and share of the clients, with and without admission.

    Attributes:
        kinds: names in `apps.federated.attacks.ATTACKS`.
        clients: shares of the clients that are hostile.
    """

    DIFFERENT = ("kinds", "clients")

    kinds: Annotated[tuple[str, ...], Field(min_length=1)] = tuple(ATTACKS)
    clients: Annotated[tuple[Annotated[float, Field(gt=0, le=1)], ...], Field(min_length=1)] = (0.1, 0.3)

    def __post_init__(self) -> None:
        for kind in self.kinds:
            AttackConfig(kind)


@dataclass(frozen=True)
class FederatedStudy:
    """``kind = "federated"``: strategies compared on the same partition of the data."""

    name: str
    title: str
    data: DataTable
    federation: FederationTable
    settings: Settings  # of the first strategy and seed 0; the others differ in these two only
    merged: Config
    privacy: Config | None = None  # the clients' own; in the settings is only what the server asks of them
    tuning: TuningTable | None = None
    attack: AttackTable | None = None
    kind: str = "federated"

    @property
    def hash(self) -> str:
        """Eight letters that change with any setting."""
        return config_hash(self.merged)

    def settings_for(self, strategy: str, seed: int, device: str) -> Settings:
        """The settings of one run of the study."""
        rounds = self.federation.rounds_of.get(strategy, self.settings.rounds)
        place: Literal["cpu", "cuda"] = "cpu" if device == "cpu" else "cuda"
        return dataclasses.replace(self.settings, strategy=strategy, seed=seed, rounds=rounds, device=place)


def study(name: str, title: str, tables: Tables, source: str) -> FederatedStudy:
    """A checked study; keys of ``[upload]`` that are not its own go to the condensing method."""
    check_tables(tables, TABLES, source, "federated", ["data"])
    data = configure(DataTable, tables["data"], f"{source}: [data]")
    if data.zca or data.classes is not None or data.imbalance is not None:
        raise InputError(f"{source}: [data] zca, classes and imbalance are not for federated studies; use the plain data.")
    federation = configure(FederationTable, tables.get("federation", {}), f"{source}: [federation]")
    _check_strategies(federation, f"{source}: [federation]")
    _check_own_code(federation, dict(tables.get("upload", {})), source)
    for key, kind in PARTS:
        configure(kind, tables.get(key, {}), f"{source}: [{key}]")
    values = _values(data, federation, tables)
    for strategy in federation.strategies:
        if strategy in UPLOADS:
            from_mapping(values | {"strategy": strategy}, source)
    settings, privacy = from_mapping(values, source), tables.get("privacy")
    tuning = None if "tuning" not in tables else _tuning(tables["tuning"], federation, values, f"{source}: [tuning]")
    check_clients(settings)
    if privacy is not None:
        privacy = checked(privacy, f"{source}: [privacy]")
        if others := [s for s in federation.strategies if s != "feddm"]:
            raise InputError(f"{source}: [privacy] is on and strategy {others[0]!r} has no private form; allowed: feddm.")
        if privacy.get("start") is None and method_config(settings).initial != "noise":
            raise InputError(f'{source}: privacy is on: real first images would give them away; set initial = "noise", or a private start.')
        settings = from_mapping(values | {"privacy": dataclasses.asdict(request(privacy, federation.rounds))}, source)
    attack = None if "attack" not in tables else _attack(tables["attack"], federation, settings, f"{source}: [attack]")
    merged = _merged(data, federation, settings, privacy)
    if tuning is not None:
        merged["tuning"] = {key: value for key, value in plain_values(tuning).items() if key != "upload" or value}
    if attack is not None:
        merged["attack"] = plain_values(attack)
    return FederatedStudy(name, title, data, federation, settings, merged, privacy, tuning, attack)


def _check_strategies(federation: FederationTable, where: str) -> None:
    for strategy in federation.strategies:
        if strategy not in STRATEGIES:
            raise unknown_name(f"{where}: key 'strategies': value", strategy, STRATEGIES)
    for strategy in federation.rounds_of:
        if strategy not in WEIGHTS or strategy not in federation.strategies:
            allowed = series([name for name in federation.strategies if name in WEIGHTS]) or "nothing, as none sends weights"
            raise InputError(f"{where}: rounds_of names {clipped(strategy, 40)!r}; allowed: {allowed}.")


def _check_own_code(federation: FederationTable, upload: Config, source: str) -> None:
    """`InputError` where a user's own method or network would have to be imported by a client in another process."""
    for key, named in (("[upload]: key 'method'", upload.get("method")), ("[federation]: key 'network'", federation.network)):
        if isinstance(named, str) and ":" in named and federation.engine != "inline":
            raise InputError(
                f"{source}: {key} is {clipped(named)!r}, and the clients of engine {federation.engine!r} are separate processes, which "
                'import nothing that a message names; allowed: engine = "inline", or a Flower app of your own (examples/own_app).'
            )


def _values(data: DataTable, federation: FederationTable, tables: Tables) -> Config:
    """The study's settings as `from_mapping` takes them."""
    own, upload = {field.name for field in dataclasses.fields(UploadConfig)} - {"settings"}, dict(tables.get("upload", {}))
    return {
        "data": data.name,
        **{key: getattr(data, key) for key in ("size", "validation", "mean", "std", "class_names")},
        **{key: getattr(federation, key) for key in COPIED},
        "strategy": next((s for s in federation.strategies if s == "feddm"), federation.strategies[0]),
        "upload": {
            **{key: value for key, value in upload.items() if key in own},
            "settings": {key: value for key, value in upload.items() if key not in own},
        },
        **{key: tables.get(key, {}) for key, _ in PARTS},
    }


def _merged(data: DataTable, federation: FederationTable, settings: Settings, privacy: Config | None) -> Config:
    """The study as config.json has it, without what came later and is not used: such studies keep their hash."""
    dump = pydantic.TypeAdapter(Settings).dump_python(settings, mode="json") | {"privacy": privacy}
    for key in ("strategy", "seed", "device", *(["averaging"] if settings.averaging == AveragingConfig() else [])):
        del dump[key]
    for key in ("quorum", "staleness", "staleness_weight", "dynafed", *UPLOADS):
        if getattr(settings, key) == getattr(Settings(), key):
            del dump[key]
    if settings.admission == AdmissionConfig():
        del dump["admission"]
    elif settings.admission.class_images is None:
        del dump["admission"]["class_images"]
    if settings.local.augmentation == LocalConfig().augmentation:
        del dump["local"]["augmentation"]
    extra: Config = {"strategies": list(federation.strategies), "engine": federation.engine, "seeds": federation.seeds}
    extra |= {key: value for key, value in (("rounds_of", federation.rounds_of), ("targets", list(federation.targets))) if value}
    return {"kind": "federated", "federation": extra, **dump, "data": plain_values(data)}


def _attack(table: object, federation: FederationTable, settings: Settings, where: str) -> AttackTable:
    attack = configure(AttackTable, dict(table) if isinstance(table, dict) else {}, where)
    if federation.engine != "inline":
        raise InputError(f"{where}: hostile clients are simulated on the inline engine; the study's is {federation.engine!r}.")
    if settings.privacy is not None or upload_form(settings) is not None:
        raise InputError(f"{where}: attacks poison plain uploads; remove [privacy] and upload.decode.")
    return attack


def _tuning(table: object, federation: FederationTable, values: Config, where: str) -> TuningTable:
    tuning = configure(TuningTable, dict(table) if isinstance(table, dict) else {}, where)
    condensing = [name for name in federation.strategies if name in CONDENSING]
    if not any(name in WEIGHTS for name in federation.strategies) and not (condensing and tuning.upload):
        raise InputError(
            f"{where}: no strategy of the study sends weights, and none that condenses has settings to try; remove the table, or add one, "
            "for example fedavg."
        )
    if tuning.upload and not condensing:
        raise InputError(f"{where}: upload is of strategies that condense; allowed: {series(CONDENSING)} in [federation] strategies.")
    if (fixed := next((key for key in tuning.upload if key in FIXED), None)) is not None:
        raise InputError(f"{where}: upload.{fixed} is the same for all strategies; set it in [upload].")
    for name in condensing:
        for several in itertools.product(*tuning.upload.values()):
            upload = {**values["upload"], "settings": {**values["upload"]["settings"], **dict(zip(tuning.upload, several, strict=True))}}
            from_mapping(values | {"strategy": name, "upload": upload}, where)
    if tuning.extended and (tuning.extended_rounds or 0) <= federation.rounds:
        raise InputError(
            f"{where}: extended_rounds is {tuning.extended_rounds}; allowed: more than the study's {federation.rounds} rounds."
        )
    return tuning
