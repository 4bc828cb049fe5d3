"""The study of kind "federated": strategies under one split, one model and one byte meter, over several seeds (see apps/federated)."""

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from rich.console import Console

from apps.federated.condense import partition_of
from apps.federated.partition import PartitionConfig
from apps.federated.settings import ALONE, STRATEGIES, LocalConfig, ServerConfig, Settings, UploadConfig, from_mapping, statistics_known
from distill.condensed import CondensedSet
from distill.configure import configure
from distill.data import ImageData
from distill.drawing import Drawing
from distill.errors import InputError, unknown_name
from distill.evaluation import Accuracy
from distill.networks import create
from distill.randomness import generator
from distill.records import read_lines
from kept.federated import kept_rows as kept_rows
from kept.federated import note as note
from kept.federated import page_text as page_text
from scenarios.engine.composition import one_after_another
from scenarios.engine.folder import Options, say
from scenarios.engine.given import handed_on, load_set
from scenarios.engine.progress import watched
from scenarios.engine.public_part import hand_over, mark
from scenarios.engine.schema import DataTable, _plain, config_hash
from scenarios.federated import left_out
from scenarios.federated.cells import answered, lines_of_cell, run_cells
from scenarios.reporting.report import shown

ENGINES = ("inline", "simulation", "deployment")
TABLES = ("data", "federation", "partition", "upload", "server", "local", "privacy")
_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
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
    name: str
    title: str
    data: DataTable
    federation: FederationTable
    settings: Settings  # of the first strategy and seed 0; the others differ in these two only
    merged: dict[str, Any]
    kind: str = "federated"

    @property
    def hash(self) -> str:
        return config_hash(self.merged)

    def settings_for(self, strategy: str, seed: int, device: str) -> Settings:
        return dataclasses.replace(self.settings, strategy=strategy, seed=seed, device=device)


def study(name: str, title: str, tables: dict[str, Any], source: str) -> FederatedStudy:
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
    given = dict(tables.get("upload", {}))
    upload = {key: value for key, value in given.items() if key in own}
    upload["settings"] = {key: value for key, value in given.items() if key not in own}
    for key, kind in (("partition", PartitionConfig), ("server", ServerConfig), ("local", LocalConfig)):
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
        "privacy": tables.get("privacy"),
    }
    if values["privacy"] is not None:
        values["privacy"] = {"statistics": "apps.privacy.private_statistics:PrivateStatistics", **values["privacy"]}
        others = [s for s in federation.strategies if s != "feddm"]
        if others:
            raise InputError(f"{source}: [privacy] is on and strategy {others[0]!r} has no private form; allowed: feddm.")
    settings = from_mapping(values, source)
    if settings.privacy is not None:
        try:
            statistics_known(settings)
        except InputError as error:
            raise InputError(f"{source}: {error}") from None
    dump = pydantic.TypeAdapter(Settings).dump_python(settings, mode="json")
    for key in ("strategy", "seed", "device"):
        del dump[key]
    extra = {"strategies": list(federation.strategies), "engine": federation.engine, "seeds": federation.seeds}
    merged = {"kind": "federated", "federation": extra, **dump, "data": _plain(data)}
    return FederatedStudy(name, title, data, federation, settings, merged)


def check(study: FederatedStudy, data: ImageData) -> None:
    """Everything that would fail after minutes of work fails now."""
    create(study.settings.network, data.spec, generator(0, "check"))
    if not len(getattr(data, study.federation.split)):
        raise InputError(f"the study evaluates on the {study.federation.split} split, which data {data.spec.name!r} does not have.")
    for place in range(study.federation.seeds):
        partition_of(data, dataclasses.replace(study.settings, seed=place))
    if study.federation.engine != "inline" or any(s not in ALONE for s in study.federation.strategies):
        import apps.federated.messages  # noqa: F401  (says how to install Flower, when it is not there)


def fill(study: FederatedStudy, options: Options, data: ImageData, folder: Path, results: dict[str, Any], console: Console) -> None:
    """One run a strategy and seed, each in a folder of its own that is its ledger; then the table."""
    if study.settings.privacy is not None:
        mark(folder)
    seeds = [options.seed * 1000 + k for k in range(study.federation.seeds)]
    settings = study.settings_for(study.federation.strategies[0], seeds[0], options.device)
    labels = data.train.labels.cpu().numpy()
    splits = {seed: partition_of(data, dataclasses.replace(settings, seed=seed)) for seed in seeds}
    results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test), "fingerprint": data.fingerprint}
    results["split"] = {
        "hashes": {str(seed): split.hash for seed, split in splits.items()},
        "counts": splits[seeds[0]].counts(labels, data.spec.num_classes).tolist(),
        "classes": list(data.spec.classes),
    }
    results["engine"] = study.federation.engine
    cells = {name: [study.settings_for(name, seed, options.device) for seed in seeds] for name in study.federation.strategies}
    every = [cell for part in cells.values() for cell in part]
    rounds = len(every) * study.federation.rounds
    say(console, f"{len(every)} federations ({', '.join(cells)}), {rounds} rounds in all")
    with watched(console, "rounds", rounds, lambda: sum(len(lines_of_cell(cell, folder)) for cell in every)):
        run_cells(study, every, options, data, folder, lambda text: say(console, text))
    results["strategies"] = {name: summary([answered(cell, lines_of_cell(cell, folder)) for cell in part]) for name, part in cells.items()}
    if study.settings.privacy is not None:
        results["public"] = public_part(study, options.seed, folder)


def public_part(study: FederatedStudy, seed: int, folder: Path) -> dict[str, Any]:
    """Put the unions of the private uploads into public/: each with the total of its clients' rounds, and all seeds' total."""
    sets = {name: load_set(study, folder, path) for name, path in handed_on(study, seed).items() if (folder / path).exists()}
    stated = [made.provenance.dp for made in sets.values()]
    return hand_over(folder, sets, stated[0] if len(stated) == 1 else one_after_another(stated))


def summary(runs: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Of one strategy: accuracy by round with its interval over seeds, mean bytes by round, and who was dropped."""
    rounds = []
    for number in range(len(runs[0])):
        found = Accuracy(tuple(lines[number]["accuracy"] for lines in runs))
        moved = {way: sum(lines[number][way] for lines in runs) / len(runs) for way in ("up", "down", "images", "dropped")}
        total = sum(line["up"] + line["down"] for lines in runs for line in lines[: number + 1]) / len(runs)
        rounds.append({"round": runs[0][number]["round"], "accuracy": found.as_dict(), **moved, "cumulative_bytes": total})
    refused = [
        {"run": place, "round": line["round"], "client": client["client"], "status": client["status"], "why": client["why"]}
        for place, lines in enumerate(runs)
        for line in lines
        for client in line["clients"]
        if client["status"] not in ("accepted", "empty")
    ]
    notes = [
        {"run": place, "round": line["round"], "note": line["note"]} for place, lines in enumerate(runs) for line in lines if line["note"]
    ]
    return {
        "rounds": rounds,
        "accuracy": rounds[-1]["accuracy"],
        "bytes": rounds[-1]["cumulative_bytes"],
        "dropped": refused,
        "notes": notes,
        "left_out": [left_out.left_out(lines) for lines in runs],
    }


def remarks(record: dict[str, Any]) -> list[str]:
    """For the report: everyone who was left out of a round, and why; and what the clients' numbers rest on."""
    found: Mapping[str, Any] = record["results"].get("strategies", {})
    said = [
        f"{name}{f', run {place + 1}' if len(part.get('left_out', ())) > 1 else ''}, {text}"
        for name, part in found.items()
        for place, lines in enumerate(part.get("left_out", ()))
        for text in lines
    ]
    return [*said, *([left_out.CLAIMS] if record["results"].get("engine") == "deployment" else [])]


def draw(folder: Path, record: dict[str, Any]) -> Iterator[tuple[str, Drawing]]:
    """Who holds what, accuracy against rounds and bytes, and the last union by client."""
    import numpy as np

    from apps.federated.pictures import curves, holdings, union_by_client

    results = record["results"]
    yield "1-split", holdings(np.array(results["split"]["counts"]), results["split"]["classes"], "Who holds what (first seed)")
    runs = {name: _runs(folder, name) for name in results["strategies"]}
    yield "2-rounds", curves(runs, "round", record["title"])
    sending = {name: lines for name, lines in runs.items() if name not in ALONE}
    if sending:
        yield "3-bytes", curves(sending, "bytes", record["title"])
    for name in sending:
        first = sorted((folder / "runs").glob(f"{name}-s*"))[0]
        if (first / "union.safetensors").exists():
            last = list(read_lines(first / "rounds.jsonl"))[-1]
            sent = [(client["client"], client["images"]) for client in last["clients"] if client["images"]]
            if sent:
                union = CondensedSet.load(first / "union.safetensors")
                yield f"4-union-{name}", union_by_client(union, sent, f"{name}: what each client sent last")


def _runs(folder: Path, name: str) -> list[list[dict[str, Any]]]:
    return [list(read_lines(path / "rounds.jsonl")) for path in sorted((folder / "runs").glob(f"{name}-s*"))]


def accuracy_table(record: dict[str, Any]) -> list[list[str]]:
    """Header and rows: one row a strategy; accuracy after the first and the last round, bytes, uploads that were dropped."""
    found: Mapping[str, Any] = record["results"].get("strategies", {})
    if not found:
        return []
    last = max(part["rounds"][-1]["round"] for part in found.values())
    columns = ["round 1", *([f"round {last}"] if last > 1 else [])]
    rows = [["strategy", *columns, "MB up", "MB down", "dropped"]]
    for name, part in found.items():
        values = [shown(part["rounds"][number]["accuracy"]) for number in ((1, last) if last > 1 else (1,))]
        up, down = (sum(line[way] for line in part["rounds"]) / 1e6 for way in ("up", "down"))
        rows.append([name, *values, f"{up:.3f}", f"{down:.3f}", str(len(part["dropped"]))])
    return rows


def answer(record: dict[str, Any]) -> str:
    """The record in one sentence."""
    found: Mapping[str, Any] = record["results"].get("strategies", {})
    if not found:
        return f"No strategy has finished. Status: {record['status']}."
    parts = [f"{name} {shown(part['accuracy'])} % with {part['bytes'] / 1e6:.2f} MB" for name, part in found.items()]
    rounds = next(iter(found.values()))["rounds"][-1]["round"]
    public = record["results"].get("public")
    total = f" All rounds and seeds together: {public['guarantee']}" if public else ""
    return f"After {rounds} round{'s' if rounds > 1 else ''}: {'; '.join(parts)}.{total}"
