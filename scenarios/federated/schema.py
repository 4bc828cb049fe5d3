"""A study of kind "federated": strategies under one split, one model and one byte meter, over several seeds."""

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from apps.federated.partition import PartitionConfig
from apps.federated.settings import (
    STRATEGIES,
    AveragingConfig,
    LocalConfig,
    ServerConfig,
    Settings,
    UploadConfig,
    check_clients,
    from_mapping,
    method_config,
)
from distill.configure import STRICT, configure
from distill.errors import InputError, unknown_name
from scenarios.engine.record import Config, Tables
from scenarios.engine.schema import DataTable, config_hash, plain_values
from scenarios.federated.node import checked, request

ENGINES = ("inline", "simulation", "deployment")
TABLES = ("data", "federation", "partition", "upload", "server", "local", "averaging", "privacy")
# Tables that are parts of the settings.
PARTS = (("partition", PartitionConfig), ("server", ServerConfig), ("local", LocalConfig), ("averaging", AveragingConfig))


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class FederationTable:
    """``[federation]``: which ``strategies`` are compared, over how many ``seeds``; the rest as in `apps.federated.settings.Settings`."""

    strategies: Annotated[tuple[str, ...], Field(min_length=1)] = ("feddm",)
    engine: Literal["inline", "simulation", "deployment"] = "inline"
    rounds: Annotated[int, Field(ge=1)] = 2
    seeds: Annotated[int, Field(ge=1)] = 1
    network: str = "ConvNet"
    fraction: Annotated[float, Field(gt=0, le=1)] = 1.0
    timeout: Annotated[float, Field(gt=0)] = 3600.0
    min_clients: Annotated[int, Field(ge=1)] | None = None
    wait: Annotated[float, Field(ge=0)] | None = None
    threads: Annotated[int, Field(ge=1)] = 1
    split: Literal["test", "validation"] = "test"


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
    kind: str = "federated"

    @property
    def hash(self) -> str:
        """Eight letters that change with any setting."""
        return config_hash(self.merged)

    def settings_for(self, strategy: str, seed: int, device: str) -> Settings:
        """The settings of one run of the study."""
        return dataclasses.replace(self.settings, strategy=strategy, seed=seed, device="cpu" if device == "cpu" else "cuda")


def study(name: str, title: str, tables: Tables, source: str) -> FederatedStudy:
    """A checked study; keys of ``[upload]`` that are not its own go to the condensing method."""
    for key, table in tables.items():
        if key not in TABLES:
            raise unknown_name(f"{source}: key", key, ("kind", "title", *TABLES))
        if not isinstance(table, dict):
            raise InputError(f"{source}: [{key}] is not a table; allowed: a table of settings.")
    if "data" not in tables:
        raise InputError(f"{source}: table [data] is missing; a federated study needs it.")
    data = configure(DataTable, tables["data"], f"{source}: [data]")
    if data.zca or data.classes is not None or data.imbalance is not None:
        raise InputError(f"{source}: [data] zca, classes and imbalance are not for federated studies; use the plain data.")
    federation = configure(FederationTable, tables.get("federation", {}), f"{source}: [federation]")
    for strategy in federation.strategies:
        if strategy not in STRATEGIES:
            raise unknown_name(f"{source}: [federation]: key 'strategies': value", strategy, STRATEGIES)
    own = {field.name for field in dataclasses.fields(UploadConfig)} - {"settings"}
    upload_table = dict(tables.get("upload", {}))
    upload = {key: value for key, value in upload_table.items() if key in own}
    upload["settings"] = {key: value for key, value in upload_table.items() if key not in own}
    for key, kind in PARTS:
        configure(kind, tables.get(key, {}), f"{source}: [{key}]")
    values = {
        "data": data.name,
        "size": data.size,
        "validation": data.validation,
        "mean": data.mean,
        "std": data.std,
        "class_names": data.class_names,
        **{
            key: getattr(federation, key) for key in ("rounds", "network", "fraction", "timeout", "min_clients", "wait", "threads", "split")
        },
        "strategy": next((s for s in federation.strategies if s == "feddm"), federation.strategies[0]),
        "partition": tables.get("partition", {}),
        "upload": upload,
        "server": tables.get("server", {}),
        "local": tables.get("local", {}),
        "averaging": tables.get("averaging", {}),
    }
    settings, privacy = from_mapping(values, source), tables.get("privacy")
    check_clients(settings)
    if privacy is not None:
        privacy = checked(privacy, f"{source}: [privacy]")
        others = [s for s in federation.strategies if s != "feddm"]
        if others:
            raise InputError(f"{source}: [privacy] is on and strategy {others[0]!r} has no private form; allowed: feddm.")
        if privacy.get("start") is None and method_config(settings).initial != "noise":
            raise InputError(f'{source}: privacy is on: real first images would give them away; set initial = "noise", or a private start.')
        settings = from_mapping(values | {"privacy": dataclasses.asdict(request(privacy, federation.rounds))}, source)
    dump = pydantic.TypeAdapter(Settings).dump_python(settings, mode="json") | {"privacy": privacy}
    for key in ("strategy", "seed", "device", *(["averaging"] if settings.averaging == AveragingConfig() else [])):
        del dump[key]
    if settings.local.augmentation == LocalConfig().augmentation:  # as that table: studies that do not use it keep their hash
        del dump["local"]["augmentation"]
    extra = {"strategies": list(federation.strategies), "engine": federation.engine, "seeds": federation.seeds}
    merged = {"kind": "federated", "federation": extra, **dump, "data": plain_values(data)}
    return FederatedStudy(name, title, data, federation, settings, merged, privacy)
