"""A run folder from empty to done: one process at a time, a record at every moment, continued after any stop.

What is done inside is the kind's: see `scenarios.engine.study.Kind`.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console

from distill import sharding
from distill.data import ImageData
from distill.data_sources import load
from distill.errors import InputError, clipped
from distill.locks import Held, locked
from distill.records import NO_ROOM, CannotWrite, environment, peak_memory_bytes, read_json, write_json, writing
from scenarios.engine.complaints import printable
from scenarios.engine.data_table import DataTable
from scenarios.engine.record import Record, run_name
from scenarios.engine.study import AnyKind, Options, Run, Study, say
from scenarios.reporting.report import write_report


def run_study(kind: AnyKind, study: Study, options: Options) -> tuple[Path, Record]:
    """Run a study of this kind in its folder, continue it, or find it finished.

    Args:
        kind: the study's kind.
        study: a checked study.
        options: where and how it is run.

    Returns:
        The run folder and its record.

    Raises:
        InputError: when the folder holds an unfinished run and ``resume`` is off, or when another process is working in it.
    """
    if options.resume_from is not None:
        if kind.continued is None:
            raise InputError(f"--resume-from is for condense studies; this is a {kind.name} study.")
        study = kind.continued(study, options.resume_from)
    sharding.start(options.device)
    if sharding.count() > 1 and not kind.sharded:
        raise InputError(f"a {kind.name} study cannot be shared out between processes; run it without torchrun.")
    folder = options.out / run_name(study.name, study.hash, options.seed)
    console = Console(stderr=True, highlight=False, quiet=options.quiet)
    earlier = read_json(folder / "record.json") if (folder / "record.json").exists() else None
    if earlier and earlier.get("status") == "done":
        if not (folder / "report.html").exists():  # stopped in its very last moment
            with _resumable():
                write_report([folder], folder / "report.html", {kind.name: kind})
        say(console, f"{folder} is done already; showing its record. Delete the folder to run it again.")
        return folder, earlier
    if folder.exists() and any(folder.iterdir()) and not options.resume:
        raise InputError(f"{folder} holds an unfinished run; add --resume to continue it, or delete the folder.")
    data = load_data(study, options)
    kind.check(study, data)
    notes = list(dict.fromkeys([*data.notes, *kind.advice(study, data)]))
    for note in notes if sharding.rank() == 0 else ():
        say(console, f"note: {printable(note)}")
    if sharding.rank() > 0:  # computes its share; the first process keeps the folder
        kind.fill(study, Run(options, data, folder, {}, Console(quiet=True)))
        return folder, {**_record(kind, study, options, notes), "status": "done"}
    opening = writing if earlier else _opening
    with opening(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with _resumable(), _only_one(folder, opening):
        for part in folder.rglob(".*.part"):  # what a killed process was writing; nobody else writes here now
            part.unlink()
        before = _worked_before(folder, earlier) if earlier else 0.0
        config = {"scenario": study.name, "title": study.title, "seed": options.seed, "device": options.device, **study.merged}
        write_json(folder / "config.json", config)
        record = _record(kind, study, options, notes)
        if earlier:
            record["seconds"], record["peak_memory_bytes"] = before, earlier["peak_memory_bytes"]
        write_json(folder / "record.json", record)
        try:
            with _clock(record):
                kind.fill(study, Run(options, data, folder, record["results"], console))
            for name, drawing in kind.draw(folder, record):
                drawing.save(folder / "figures" / f"{name}.png")
        except BaseException as error:
            record["status"] = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            record["reason"] = _reason(error)
            with contextlib.suppress(CannotWrite):  # on a full disk the record is not changed; what stopped the run is reported
                write_json(folder / "record.json", record)
            raise
        record["status"] = "done"
        write_json(folder / "record.json", record)
        write_report([folder], folder / "report.html", {kind.name: kind})
    return folder, record


def _record(kind: AnyKind, study: Study, options: Options, notes: list[str]) -> Record:
    """The record of a run that begins."""
    return {
        "schema": 1,
        "scenario": study.name,
        "title": study.title,
        "kind": kind.name,
        "seed": options.seed,
        "status": "running",
        "results": {},
        "seconds": 0.0,
        "peak_memory_bytes": 0,
        "environment": environment(options.device),
        "notes": notes,
    }


def load_data(study: Study, options: Options) -> ImageData:
    """The study's data on its device."""
    return data_of(study.data, options)


def data_of(table: DataTable, options: Options) -> ImageData:
    """The data of a [data] table on their device: with its split, subset, imbalance and whitening."""
    data = load(table.name, options.data_root, validation=table.validation, seed=options.seed, size=table.size, **table.given)
    if table.classes is not None:
        data = data.subset(table.classes)
    if table.imbalance is not None:
        data = data.long_tailed(table.imbalance, options.seed)
    data = data.to(options.device)
    return data.whitened() if table.zca else data


def _worked_before(folder: Path, earlier: Record) -> float:
    """Seconds of the processes before this one. One that was killed could not say, but it lived at least until its last file."""
    if earlier["status"] != "running":
        return float(earlier["seconds"])
    began = (folder / "record.json").stat().st_mtime
    last = max(path.stat().st_mtime for path in folder.rglob("*") if not path.name.startswith("."))
    return float(earlier["seconds"]) + max(0.0, last - began)


def _reason(error: BaseException) -> str:
    """Why a run ended early, in one line."""
    if isinstance(error, KeyboardInterrupt):
        return "stopped by Ctrl-C or a signal"
    return clipped(str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {' '.join(str(error).split())}", 1000)


@contextlib.contextmanager
def _resumable() -> Iterator[None]:
    """A run whose files could not be written is whole up to there, which the error then says."""
    try:
        yield
    except CannotWrite as error:
        raise CannotWrite(f"{error} A run that stopped continues with --resume.") from None


@contextlib.contextmanager
def _opening(folder: Path) -> Iterator[None]:
    """A folder that cannot be opened for a new run holds nothing that --resume could continue: another one helps, or room on the disk."""
    try:
        yield
    except OSError as error:
        if error.errno in NO_ROOM:
            with writing(folder):
                raise
        raise InputError(f"{folder}: cannot be written ({error.strerror or error}); give another folder (--out).") from None


@contextlib.contextmanager
def _clock(record: Record) -> Iterator[None]:
    """Add the seconds of this process to the record, whatever happens."""
    start, before = time.monotonic(), record["seconds"]
    try:
        yield
    finally:
        record["seconds"] = before + time.monotonic() - start
        record["peak_memory_bytes"] = max(record["peak_memory_bytes"], peak_memory_bytes())


@contextlib.contextmanager
def _only_one(folder: Path, opening: Callable[[Path], contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    """Hold the folder's lock, which is made inside ``opening``; the system lets go of it when the process ends, however it ends."""
    with contextlib.ExitStack() as stack:
        try:
            with opening(folder):
                stack.enter_context(locked(folder / ".lock", 0))
        except Held:
            raise InputError(f"{folder}: another process is running this study; wait for it, or choose another --out.") from None
        yield
