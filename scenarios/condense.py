"""The study of kind "condense": condense a data set at each IPC, judge the sets, leave a run folder that can be continued."""

import contextlib
import fcntl
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.data_sources import load
from distill.errors import InputError
from distill.evaluation import Accuracy, accuracies
from distill.figures import accuracy_bars, image_grid, loss_curve
from distill.networks import create, flops, parameter_count
from distill.randomness import generator
from distill.records import append_line, environment, peak_memory_bytes, read_json, read_lines, write_json, write_whole
from distill.run import distil
from distill.train import protocol
from scenarios.report import write_report
from scenarios.schema import CondenseStudy, EvaluationTable


@dataclass(frozen=True)
class Options:
    """How a study is run, as opposed to what it is."""

    out: Path = Path("runs")
    data_root: Path | None = None
    seed: int = 0
    device: str = "cpu"
    resume: bool = False
    quiet: bool = False


def run_condense(study: CondenseStudy, options: Options) -> tuple[Path, dict[str, Any]]:
    """Run (or continue, or find finished) a study; returns its folder and its record.

    Raises `InputError` when the folder holds an unfinished run and ``resume`` is off, or another process is at work in it.
    """
    folder = options.out / f"{study.name}-{study.hash}-s{options.seed}"
    console = Console(stderr=True, highlight=False, quiet=options.quiet)
    earlier = read_json(folder / "record.json") if (folder / "record.json").exists() else None
    if earlier and earlier.get("status") == "done":
        _say(console, f"{folder} is done already; showing its record. Delete the folder to run it again.")
        return folder, earlier
    if folder.exists() and any(folder.iterdir()) and not options.resume:
        raise InputError(f"{folder} holds an unfinished run; add --resume to continue it, or delete the folder.")
    data = _load(study, options)
    _check_classes(study, data)
    folder.mkdir(parents=True, exist_ok=True)
    with _only_one(folder):
        config = {"scenario": study.name, "title": study.title, "seed": options.seed, "device": options.device, **study.merged}
        write_json(folder / "config.json", config)
        record = {
            "schema": 1,
            "scenario": study.name,
            "title": study.title,
            "kind": "condense",
            "seed": options.seed,
            "status": "running",
            "results": {},
            "seconds": earlier["seconds"] if earlier else 0.0,
            "peak_memory_bytes": earlier["peak_memory_bytes"] if earlier else 0,
            "environment": environment(options.device),
        }
        write_json(folder / "record.json", record)
        try:
            with _clock(folder, record):
                _fill(study, options, data, folder, record["results"], console)
                record["status"] = "done"
        except KeyboardInterrupt:
            record["status"] = "interrupted"
            raise
        except BaseException:
            record["status"] = "failed"
            raise
        finally:
            write_json(folder / "record.json", record)
        _figures(folder, record["results"], study)
        write_report([folder], folder / "report.html")
    return folder, record


def _fill(study: CondenseStudy, options: Options, data: ImageData, folder: Path, results: dict[str, Any], console: Console) -> None:
    metrics = folder / "metrics.jsonl"
    results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test), "fingerprint": data.fingerprint}
    for ipc in study.ipc:
        condensed = _condense(study, options, data, folder, ipc)
        _say(console, f"{study.method} at ipc {ipc}: {len(condensed)} images, {condensed.provenance.seconds:.0f} s")
        part: dict[str, Any] = {"images": len(condensed), "bytes": condensed.nbytes, "distil_seconds": condensed.provenance.seconds}
        losses = [line["loss"] for line in read_lines(metrics) if line.get("stage") == "distil" and line.get("ipc") == ipc]
        part |= {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
        results[f"ipc{ipc}"] = part
        if study.evaluation is not None:
            _judge(study.evaluation, study.method, options, data, condensed, ipc, metrics, part, console)
    if study.evaluation is not None:
        results["networks"] = {}
        for name in study.evaluation.networks:
            network = create(name, data.spec, generator(0, "count"))
            results["networks"][name] = {"parameters": parameter_count(network), "flops": flops(network, data.spec)}


def _say(console: Console, text: str) -> None:
    console.print(text, soft_wrap=True, markup=False)


def _condense(study: CondenseStudy, options: Options, data: ImageData, folder: Path, ipc: int) -> CondensedSet:
    """The finished set of this folder, or a newly made one."""
    name = "condensed" if len(study.ipc) == 1 else f"condensed-ipc{ipc}"
    path = folder / f"{name}.safetensors"
    if path.exists():
        return CondensedSet.load(path).to(options.device)
    checkpoint = folder / f"checkpoint-ipc{ipc}.safetensors"
    settings = {key: value for key, value in study.merged["method"].items() if key not in ("name", "ipc")}
    condensed = distil(
        data,
        study.method,
        ipc=ipc,
        seed=options.seed,
        checkpoint=checkpoint,
        metrics=folder / "metrics.jsonl",
        resume=True,
        progress=False if options.quiet else None,
        tags={"ipc": ipc},
        **settings,
    )
    condensed.save(path)
    checkpoint.unlink(missing_ok=True)
    return condensed


def _judge(
    table: EvaluationTable,
    method: str,
    options: Options,
    data: ImageData,
    condensed: CondensedSet,
    ipc: int,
    metrics: Path,
    part: dict[str, Any],
    console: Console,
) -> None:
    """Train every network that metrics.jsonl does not have yet; the file is the ledger, so a stopped study loses one network at most."""
    recipe = table.recipe or protocol(table.protocol, data.spec)
    seeds = [options.seed * 1000 + k for k in range(table.seeds)]
    start = time.monotonic()
    for network in table.networks:
        found: dict[str, Accuracy] = {}
        for label in ("condensed", *table.baselines):
            # The whole set does not depend on the IPC: it is trained once for the study.
            key = {"stage": "evaluate", "set": method if label == "condensed" else label, "network": network}
            key |= {"ipc": ipc} if label != "whole" else {}
            done = {line["seed"]: line["accuracy"] for line in read_lines(metrics) if all(line.get(k) == v for k, v in key.items())}
            missing = [seed for seed in seeds if seed not in done]
            title = f"{network} on {key['set']}"
            with console.status(f"training {title}, {len(missing)} networks") as status:
                for _, seed, value in accuracies(condensed, data, [label], network, recipe, missing, table.split):
                    done[seed] = value
                    append_line(metrics, {**key, "seed": seed, "accuracy": value})
                    status.update(f"training {title}: {len(done)} of {len(seeds)} networks, the last at {value:.1f} %")
            found[str(key["set"])] = Accuracy(tuple(done[seed] for seed in seeds))
            _say(console, f"  {title}: {found[str(key['set'])]} %")
        named = {name: row.as_dict() for name, row in found.items()}
        if network == table.networks[0]:
            part["accuracy"] = named
        if len(table.networks) > 1:
            part.setdefault("cross_architecture", {})[network] = named
    part["evaluate_seconds"] = time.monotonic() - start


def _load(study: CondenseStudy, options: Options) -> ImageData:
    table = study.data
    data = load(table.name, options.data_root, validation=table.validation, seed=options.seed, size=table.size)
    if table.classes is not None:
        data = data.subset(table.classes)
    return data.to(options.device)


def _check_classes(study: CondenseStudy, data: ImageData) -> None:
    """Everything that would fail after minutes of work fails now."""
    networks = [study.settings.network, *(study.evaluation.networks if study.evaluation else ())]
    for name in networks:
        create(name, data.spec, generator(0, "check"))
    split = study.evaluation.split if study.evaluation else "train"
    if not len(getattr(data, split)):
        raise InputError(
            f"the study judges on the {split} split, which data {data.spec.name!r} does not have; set data.validation, or add images."
        )


def _figures(folder: Path, results: dict[str, Any], study: CondenseStudy) -> None:
    curves: dict[str, tuple[list[int], list[float]]] = {}
    for line in read_lines(folder / "metrics.jsonl"):
        if line.get("stage") == "distil" and isinstance(line.get("loss"), float) and math.isfinite(line["loss"]):
            steps, losses = curves.setdefault(f"ipc {line['ipc']}", ([], []))
            steps.append(line["step"])
            losses.append(line["loss"])
    write_whole(folder / "figures/loss.png", loss_curve(curves))
    for ipc in study.ipc:
        name = "condensed" if len(study.ipc) == 1 else f"condensed-ipc{ipc}"
        write_whole(folder / f"figures/images-ipc{ipc}.png", image_grid(CondensedSet.load(folder / f"{name}.safetensors")))
        if "accuracy" in results[f"ipc{ipc}"]:
            rows = {key: Accuracy(tuple(row["values"])) for key, row in results[f"ipc{ipc}"]["accuracy"].items()}
            write_whole(folder / f"figures/accuracy-ipc{ipc}.png", accuracy_bars(rows, f"{study.title}, ipc {ipc}"))


@contextlib.contextmanager
def _clock(folder: Path, record: dict[str, Any]) -> Iterator[None]:
    """Add the seconds of this process to the record, whatever happens."""
    start, before = time.monotonic(), record["seconds"]
    try:
        yield
    finally:
        record["seconds"] = before + time.monotonic() - start
        record["peak_memory_bytes"] = max(record["peak_memory_bytes"], peak_memory_bytes())


@contextlib.contextmanager
def _only_one(folder: Path) -> Iterator[None]:
    """Hold the folder's lock; the system lets go of it when the process ends, however it ends."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"{folder}: another process is running this study; wait for it, or choose another --out.") from None
        yield
