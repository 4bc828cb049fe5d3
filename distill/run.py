"""`distil`: run a method step by step, with progress, checkpoints and a clean stop."""

import contextlib
import dataclasses
import hashlib
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import safetensors
import safetensors.torch
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from distill import sharding
from distill.condensed import CondensedSet, Provenance
from distill.configure import configure
from distill.data import ImageData
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.networks import OWN, Factory
from distill.randomness import generator
from distill.records import append_line, read_lines, versions, write_json_lines, write_whole
from distill.statistics import ExactStatistics, RealStatistics
from distill.synthetic import Initial, check_classes, initial_set

CHECKPOINT_SECONDS = 20.0
# One press of Ctrl-C can arrive several times: from the terminal, passed on by a parent, and when that parent ends.
SAME_STOP_SECONDS = 0.5
MAX_LOGGED = 500


class Distiller(Protocol):
    """What every method offers; there is no base class to inherit from.

    A method may also have ``prepare(statistics, progress)``, which `distil` calls once before the first step.
    """

    total_steps: int

    @property
    def condensed(self) -> CondensedSet: ...
    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]: ...
    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: dict[str, Tensor]) -> None: ...


class Interrupted(KeyboardInterrupt):
    """The user asked to stop and everything was saved; ``resume`` goes on from there."""


def distil(
    source: ImageData | RealStatistics,
    method: str | Distiller = "dm",
    *,
    ipc: int = 1,
    seed: int = 0,
    network: Factory | None = None,
    initial: Initial | CondensedSet | None = None,
    checkpoint: Path | None = None,
    metrics: Path | None = None,
    resume: bool = False,
    progress: bool | None = None,
    tags: dict[str, Any] | None = None,
    **settings: Any,
) -> CondensedSet:
    """A data set's knowledge in ``ipc`` images a class: a `CondensedSet` of (ipc x classes, C, H, W) with its provenance.

    ``method`` is a name in `METHODS`, whose config fields may be given as further keywords (``iterations=300``), or a ready distiller.
    ``network`` replaces the config's network by another name or by a function of the data spec; ``initial`` replaces its initialisation.
    With ``checkpoint`` (a file) the run can be stopped at any moment and continued with ``resume=True`` to the same bits; ``metrics`` is a
    JSON-lines file that gets the losses, each line with ``tags``. Progress shows on a terminal unless ``progress`` says otherwise.
    Under torchrun (after `distill.sharding.start`) processes share the classes out and all return the same set. Raises `InputError` for an
    unknown method or setting, first images that do not fit the data, and a checkpoint of another run; `Interrupted` when it was stopped.
    """
    statistics = ExactStatistics(source) if isinstance(source, ImageData) else source
    device = statistics.device
    if isinstance(method, str):
        distiller, config = _make(statistics, method, ipc, seed, network, initial, settings)
    else:
        if settings:
            raise InputError(f"setting {next(iter(settings))!r} was given beside a ready distiller; give it to the distiller's config.")
        distiller, config = method, dataclasses.asdict(method.config) if hasattr(method, "config") else {}
    check_classes(statistics, distiller.condensed)
    sharding.check_classes(len(statistics.classes))
    if sharding.rank() > 0:
        metrics, progress = None, False  # the first process writes and shows
    name = method if isinstance(method, str) else type(method).__name__.lower()
    draws = generator(seed, "distil", name, ipc, device=device)
    key = hashlib.sha256(json.dumps([name, config, ipc, seed, statistics.fingerprint], sort_keys=True, default=str).encode()).hexdigest()

    done, earlier = 0, 0.0
    if checkpoint is not None and resume and checkpoint.exists():
        done, earlier = load_checkpoint(checkpoint, key, distiller, draws)
    if callable(begin := getattr(statistics, "begin", None)):
        begin(distiller.condensed, distiller.total_steps, done, checkpoint)  # a private form plans its releases and checks the first images
    if metrics is not None:
        # Lines after the checkpoint will be written again.
        kept = [line for line in read_lines(metrics) if not (_tagged(line, tags) and line.get("step", 0) > done)]
        write_json_lines(metrics, kept)

    start = last = time.monotonic()
    if callable(prepare := getattr(distiller, "prepare", None)):
        prepare(statistics, progress)  # work of its own before the first step (MTT's experts), which keeps its own progress on disk
    every = max(1, distiller.total_steps // MAX_LOGGED)
    with _stop_signals(checkpoint is not None) as stop, _bar(f"{name} ipc {ipc}", distiller.total_steps, done, progress) as advance:
        for step in range(done + 1, distiller.total_steps + 1):
            values = distiller.step(statistics, draws)
            if step % every == 0 or step == distiller.total_steps:
                numbers = {key: float(value) for key, value in values.items()}
                if metrics is not None:
                    append_line(metrics, {"stage": "distil", **(tags or {}), "step": step, **numbers})
                advance(step, numbers)
            else:
                advance(step, {})
            now = time.monotonic()
            if sharding.any_of(bool(stop), device):
                stop.append(now)
            if checkpoint is not None and sharding.rank() == 0 and (stop or now - last > CHECKPOINT_SECONDS):
                save_checkpoint(checkpoint, key, distiller, draws, step, earlier + now - start)
                last = now
            if stop:
                raise Interrupted
    seconds = earlier + time.monotonic() - start
    provenance = Provenance(name, {"ipc": ipc, **config}, seed, statistics.fingerprint, versions(), seconds, statistics.privacy)
    return dataclasses.replace(distiller.condensed, provenance=provenance)


def _make(
    statistics: RealStatistics,
    name: str,
    ipc: int,
    seed: int,
    network: Factory | None,
    initial: Initial | CondensedSet | None,
    settings: dict[str, Any],
) -> tuple[Distiller, dict[str, Any]]:
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    if ipc < 1:
        raise InputError(f"ipc is {ipc}; allowed: 1 or more images a class.")
    kind, distiller = METHODS[name]
    if isinstance(network, str):
        settings = {**settings, "network": network}
    if isinstance(initial, str):
        settings = {**settings, "initial": initial}
    elif initial is None and "initial" not in settings and statistics.privacy is not None:
        settings = {**settings, "initial": "noise"}  # the usual start is real images, which a private form never shows
    config = configure(kind, settings, f"method {name!r}")
    start = initial if isinstance(initial, CondensedSet) else config.initial
    first = initial_set(statistics, start, ipc, generator(seed, "initial", name, ipc, device=statistics.device))
    stated = dataclasses.asdict(config)
    if network is not None and not isinstance(network, str):
        stated["network"] = f"given: {getattr(network, '__name__', type(network).__name__)}"
    if isinstance(initial, CondensedSet):
        stated["initial"] = f"given: {initial.provenance.method}"
    own = OWN.get(config.network) if network is None or isinstance(network, str) else network
    return distiller(config, first, own), stated


# Checkpoints


def save_checkpoint(path: Path, key: str, distiller: Distiller, draws: torch.Generator, step: int, seconds: float) -> None:
    """The method's tensors, the random state and the step, in one safetensors file, whole or not at all."""
    tensors = {f"state.{name}": value.detach().cpu().contiguous() for name, value in distiller.state().items()}
    tensors["generator"] = draws.get_state().cpu()
    facts = {"key": key, "step": step, "seconds": seconds}
    write_whole(path, safetensors.torch.save(tensors, {"checkpoint": json.dumps(facts)}))


def load_checkpoint(path: Path, key: str, distiller: Distiller, draws: torch.Generator) -> tuple[int, float]:
    """Put the saved state back; (steps done, seconds spent). `InputError` when the file is damaged or belongs to another run."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
        if facts["key"] != key:
            raise InputError(f"{path}: belongs to a run with other settings, data or seed; delete it to start again.")
        distiller.load_state({name.removeprefix("state."): value for name, value in tensors.items() if name.startswith("state.")})
        draws.set_state(tensors["generator"])
        return int(facts["step"]), float(facts["seconds"])
    except (safetensors.SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: is damaged ({str(error)[:100]}); delete it to start again.") from None


def _tagged(line: dict[str, Any], tags: dict[str, Any] | None) -> bool:
    return line.get("stage") == "distil" and all(line.get(key) == value for key, value in (tags or {}).items())


# Stopping and showing


@contextlib.contextmanager
def _stop_signals(wanted: bool) -> Iterator[list[float]]:
    """A list that the first Ctrl-C (or SIGTERM) puts its time into, looked at between steps; a second one acts at once."""
    stop: list[float] = []
    if not wanted or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def request(number: int, frame: FrameType | None) -> None:
        # A handler may interrupt itself or a print: nothing here takes a lock (an Event would), and the plain system call is safe.
        now = time.monotonic()
        if not stop:
            stop.append(now)
            os.write(2, b"stopping after this step; press Ctrl-C again to stop at once\n")
        elif now - stop[0] > SAME_STOP_SECONDS:
            signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        text = "" if not speed else f"{speed:.1f} steps/s" if speed >= 1 else f"{1 / speed:.1f} s/step"
        return Text(text, style="progress.data.speed")


@contextlib.contextmanager
def _bar(title: str, total: int, done: int, wanted: bool | None) -> Iterator[Any]:
    console = Console(stderr=True)
    if not (console.is_terminal if wanted is None else wanted):
        yield lambda step, numbers: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(title, total=total, completed=done, note="")

        def advance(step: int, numbers: dict[str, float]) -> None:
            bar.update(task, completed=step)
            if numbers:
                bar.update(task, note="  ".join(f"{name} {value:.4g}" for name, value in numbers.items()))

        yield advance
