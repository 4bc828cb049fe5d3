"""`condense`: the loop over a method's steps, with progress, checkpoints and interruption."""

import dataclasses
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch

from distill import sharding
from distill.checkpoint import State, load_changed, load_checkpoint, save_checkpoint, state_of
from distill.condensed import CondensedSet, Provenance
from distill.configure import configure
from distill.data import ImageData
from distill.decode import from_text
from distill.distiller import Config, check_condensed, check_distiller, check_tensors
from distill.distiller import Distiller as Distiller
from distill.divergence import Watch, diverged_at
from distill.errors import InputError, clipped, unknown_name
from distill.estimate import check_memory, estimate
from distill.methods import METHODS
from distill.networks import OWN, Factory, create, parameter_count
from distill.progress import OnStep as OnStep
from distill.progress import step_bar
from distill.randomness import generator, whole_seed
from distill.records import append_line, read_lines, versions, write_json_lines
from distill.set_file import check_size
from distill.shared_config import stated as stated_settings
from distill.sizes import Ipc, counts_of
from distill.statistics import ExactStatistics, RealStatistics
from distill.stopping import Cut, Interrupted, last_wish, stop_signals
from distill.synthetic import Initial, check_classes, check_count, initial_set
from distill.tf32 import products

CHECKPOINT_SECONDS = 20.0
QUICK_SECONDS = 0.2  # an interruption waits for a GPU's steps shorter than this, and their states are not copied
MAX_LOGGED = 500


def condense(
    source: ImageData | RealStatistics,
    method: str | Config | Distiller = "dm",
    *,
    ipc: Ipc = 1,
    seed: int = 0,
    network: Factory | None = None,
    initial: Initial | CondensedSet | None = None,
    checkpoint: Path | None = None,
    metrics: Path | None = None,
    resume: bool = False,
    resume_from: Path | None = None,
    progress: bool | None = None,
    tags: Mapping[str, object] | None = None,
    more_images_than_data: bool = False,
    snapshots: Mapping[int, Path] | None = None,
    on_step: OnStep | None = None,
    **settings: object,
) -> CondensedSet:
    """Condense a data set into ``ipc`` images per class.

    For example ``condense(data, "dm", ipc=10)``, or with a config ``condense(data, DMConfig(iterations=300), ipc=10)``.

    Args:
        source: the data, or statistics of it (private ones, for example).
        method: a name in `METHODS`, a method's config, or a distiller.
        ipc: number of images per class; counts by class (``{3: 5, "rest": 1}``); or ``"proportional:10"``, proportional to the number of
            training images, 10 on average.
        seed: of the initial images and of every random draw.
        network: replaces the config's network: another name, or a function of the data spec that returns a module.
        initial: replaces the config's initialisation: its name, or a set to start from.
        checkpoint: file to which the state is saved every 20 seconds and when the run is interrupted.
        metrics: JSON-lines file to which losses are appended, at most 500 evenly spaced steps and the last one.
        resume: continue from ``checkpoint`` where it exists; the result is the same to the bit.
        resume_from: checkpoint of another run to continue with other step sizes; the provenance records both.
        progress: whether to show a progress bar; None: on terminals and in Jupyter.
        tags: added to each line of ``metrics``.
        more_images_than_data: allow more images per class than the largest class has.
        snapshots: files to which the set is saved, by number of steps; they do not change the result.
        on_step: called with the number of steps and the losses at the steps that ``metrics`` gets, in the first process only.
        settings: fields of the config of a method given by name (``iterations=300``).

    Returns:
        The set, with images (N, C, H, W), N the sum of the counts, and its provenance. Under torchrun (see `distill.sharding.start`)
        every process returns the same set.

    Raises:
        InputError: for an unknown method or setting, initial images that do not fit the data, or a checkpoint of another run.
        Diverged: for a loss or state that is not finite (on a GPU at most ten steps later); the last finite state is the checkpoint.
        Interrupted: on Ctrl-C or SIGTERM, in the middle of a step; the state before that step is the checkpoint.
    """
    seed = whole_seed(seed)
    statistics = ExactStatistics(source) if isinstance(source, ImageData) else source
    if not hasattr(statistics, "classes"):
        raise InputError(f"the source is {clipped(source)}; allowed: an ImageData, as distill.load(name) returns it, or statistics of one.")
    if dataclasses.is_dataclass(method) and not hasattr(method, "step"):
        method, settings = _of_config(method, settings)
    sizes = counts_of(ipc, statistics)
    # One number if all classes have the same: random streams and checkpoints must not depend on how the counts were written.
    counts: int | dict[str, int] = sizes if isinstance(sizes, int) else {str(label): sizes[label] for label in statistics.classes}
    if isinstance(source, ImageData) and isinstance(method, str) and not isinstance(initial, CondensedSet) and not more_images_than_data:
        check_count(source.counts, sizes if isinstance(sizes, int) else max(sizes))
    if isinstance(method, str):
        distiller, config = _make(statistics, method, sizes, seed, network, initial, settings)
    else:
        if settings:
            raise InputError(
                f"setting {next(iter(settings))!r} was given together with a ready distiller; give it to the distiller's config."
            )
        distiller = cast(Distiller, method)
        config = dataclasses.asdict(method.config) if hasattr(method, "config") else {}
    check_distiller(distiller)
    check_classes(statistics, distiller.condensed)
    sharding.check_classes(len(statistics.classes))
    if sharding.rank() > 0:
        metrics, progress, on_step = None, False, None  # the first process writes and shows
    name = method if isinstance(method, str) else type(method).__name__.lower()
    draws = generator(seed, "distil", name, _text(sizes))
    run: dict[str, object] = {"method": name, "config": config, "ipc": counts, "seed": seed, "fingerprint": statistics.fingerprint}

    done, earlier, account = 0, 0.0, None
    if resume_from is not None and checkpoint is not None and resume_from.resolve() == checkpoint.resolve():
        raise InputError(f"{checkpoint}: is given as checkpoint and as resume_from; give the continued run another file.")
    if resume_from is not None:
        done, earlier, run["continued"], account = load_changed(resume_from, run, distiller, draws)
    if checkpoint is not None and resume and checkpoint.exists():
        done, earlier, _, account = load_checkpoint(checkpoint, run, distiller, draws)
    if callable(begin := getattr(statistics, "begin", None)):
        # Private statistics plan their releases and check the initial images.
        begin(distiller.condensed, distiller.total_steps, done, checkpoint, account)
    if metrics is not None:
        # Lines after the checkpoint will be written again.
        kept = [line for line in read_lines(metrics) if not (_tagged(line, tags) and line.get("step", 0) > done)]
        write_json_lines(metrics, kept)

    start = time.monotonic() - earlier
    if callable(prepare := getattr(distiller, "prepare", None)):
        prepare(statistics, progress=progress)  # MTT's experts, which are kept in files while they are trained
    _all_steps(
        distiller,
        statistics,
        draws,
        name=name,
        run=run,
        done=done,
        start=start,
        checkpoint=checkpoint,
        metrics=metrics,
        tags=tags or {},
        progress=progress,
        snapshots=snapshots or {},
        on_step=on_step,
    )
    # The running time depends on the number of private images, which no guarantee covers.
    seconds = 0.0 if statistics.privacy is not None else time.monotonic() - start
    check_condensed(distiller)
    stated = {"ipc": counts, **config} | ({"continued": run["continued"]} if "continued" in run else {})
    provenance = Provenance(name, stated, seed, statistics.fingerprint, versions(), seconds, statistics.privacy)
    return dataclasses.replace(distiller.condensed, provenance=provenance).made_for(statistics.classes)


def distil(*arguments: Any, **keywords: Any) -> CondensedSet:
    """Deprecated name of `condense`, with the same arguments."""
    warnings.warn("distill.distil is deprecated and goes in version 1.0; use distill.condense.", DeprecationWarning, stacklevel=2)
    return condense(*arguments, **keywords)


def _all_steps(
    distiller: Distiller,
    statistics: RealStatistics,
    draws: torch.Generator,
    *,
    name: str,
    run: Mapping[str, object],
    done: int,
    start: float,
    checkpoint: Path | None,
    metrics: Path | None,
    tags: Mapping[str, object],
    progress: bool | None,
    snapshots: Mapping[int, Path],
    on_step: OnStep | None,
) -> None:
    """Make steps ``done`` + 1 to the last. However they end (completion, interruption, divergence), the checkpoint is a finite state."""
    device, total, alone = statistics.device, distiller.total_steps, sharding.count() == 1
    every = max(1, total // MAX_LOGGED)
    workable = finite = before = state_of(distiller.state(), draws, done)
    watch, quick, estimated = Watch(finite.tensors, device), False, False
    precision = getattr(getattr(distiller, "config", None), "precision", "float32")
    last, opening, second = time.monotonic(), 0.0, 0.0

    def keep(state: State, diverged: str | None = None) -> None:
        if checkpoint is not None and sharding.rank() == 0:
            save_checkpoint(checkpoint, run, state, time.monotonic() - start, diverged, getattr(statistics, "account", None))

    def look(step: int) -> None:
        """Raise `Diverged` if a step up to this one, the latest, was not finite."""
        if (bad := watch.first_bad()) is not None:
            error = diverged_at(name, finite.step + bad, total, distiller, finite.tensors)
            # The state just before a bad loss is finite, but the next step from it diverges again: save one that a finite step followed.
            keep(finite if bad > 1 else workable, str(error))
            raise error

    title = f"{name} ipc {distiller.condensed.ipc}"
    with (
        stop_signals(checkpoint is not None) as stop,
        last_wish(lambda: keep(before)),
        step_bar(progress, title, total, done) as advance,
    ):
        for step in range(done + 1, total + 1):
            began = time.monotonic()
            try:
                # Other processes of the same run wait for this one's share of the step.
                with stop.cutting(alone and before.step == step - 1), products(precision, device):
                    values = distiller.step(statistics, draws)
            except Cut:
                look(step - 1)
                keep(before)
                raise Interrupted from None
            check_tensors(distiller, "step()", values, scalars=True)
            check_tensors(distiller, "state()", state := distiller.state())
            watch.add(values, state)
            now = time.monotonic()
            if sharding.any_of(bool(stop), device):
                stop.asked = now
            logged, due = step % every == 0 or step == total, checkpoint is not None and now - last > CHECKPOINT_SECONDS
            if logged or due or step in snapshots or stop or step - finite.step >= watch.every:
                look(step)
                workable, finite = finite, state_of(state, draws, step)
                before = finite
            elif alone and not quick:
                before = state_of(state, draws, step)
            if step in snapshots and sharding.rank() == 0:
                distiller.condensed.save(snapshots[step])
            numbers = {key: float(value) for key, value in values.items()} if logged else {}
            if logged and metrics is not None:
                append_line(metrics, {"stage": "distil", **tags, "step": step, **numbers})
            if logged and on_step is not None:
                on_step(step, numbers)
            advance(step, numbers)
            quick = device.type != "cpu" and now - began < QUICK_SECONDS
            opening, second = (now - began, now) if step == done + 1 else (opening, second)
            text = None if estimated or progress is False else estimate(step - done, opening, now - second, total - done, device)
            if text is not None:
                estimated = True
                if text:
                    print(f"{name} ipc {run['ipc']}: {text}", file=sys.stderr)  # above the bar, which stands in for the stream
            if stop or due:
                keep(finite)
                last = now
            if stop:
                raise Interrupted


def _of_config(config: object, settings: Mapping[str, object]) -> tuple[str, Mapping[str, object]]:
    """The method of a config and its settings by name: those that are not the default, so that a private form still starts from noise."""
    names = [name for name, (kind, _) in METHODS.items() if type(config) is kind]
    if not names:
        kinds = ", ".join(kind.__name__ for kind, _ in METHODS.values())
        raise InputError(f"{clipped(config, 60)} is no method's config; allowed: {kinds}, a method's name, or a distiller.")
    if settings:
        raise InputError(f"setting {next(iter(settings))!r} was given together with a {type(config).__name__}; give it to the config.")
    default = type(config)()
    fields = {field.name: getattr(config, field.name) for field in dataclasses.fields(cast(Any, config))}
    return names[0], {name: value for name, value in fields.items() if value != getattr(default, name)}


def _make(
    statistics: RealStatistics,
    name: str,
    sizes: int | tuple[int, ...],
    seed: int,
    network: Factory | None,
    initial: Initial | CondensedSet | None,
    settings: Mapping[str, object],
) -> tuple[Distiller, dict[str, object]]:
    if name not in METHODS:
        raise unknown_name("method", name, METHODS)
    count = sizes * len(statistics.classes) if isinstance(sizes, int) else sum(sizes)
    check_size(count, statistics.spec)
    kind, distiller = METHODS[name]
    if isinstance(network, str):
        settings = {**settings, "network": network}
    if isinstance(initial, str):
        settings = {**settings, "initial": initial}
    elif initial is None and "initial" not in settings and statistics.privacy is not None:
        settings = {**settings, "initial": "noise"}  # the default is real images, which private statistics never give
    config = configure(kind, settings, f"method {name!r}")
    gradients = 0
    if getattr(distiller, "holds_class_gradients", False) and config.network not in OWN and not callable(network):
        counted = create(config.network, statistics.spec, generator(0, "count"))
        gradients = len(statistics.classes) * parameter_count(counted)
    form = from_text(getattr(config, "decode", "none"))
    check_memory(count * (1 if form is None else form.copies), statistics.spec, gradients, statistics.device)
    start = initial if isinstance(initial, CondensedSet) else config.initial
    draws = generator(seed, "initial", name, _text(sizes))
    first = initial_set(statistics, start, sizes, draws, form)
    stated = stated_settings(config, dataclasses.asdict(config))
    if network is not None and not isinstance(network, str):
        stated["network"] = f"given: {getattr(network, '__name__', type(network).__name__)}"
    if isinstance(initial, CondensedSet):
        stated["initial"] = f"given: {initial.provenance.method}"
    own = OWN.get(config.network) if network is None or isinstance(network, str) else network
    return distiller(config, first, own), stated


def _text(sizes: int | tuple[int, ...]) -> str:
    """What stands for the sizes in a random stream's name."""
    return str(sizes) if isinstance(sizes, int) else " ".join(map(str, sizes))


def _tagged(line: Mapping[str, object], tags: Mapping[str, object] | None) -> bool:
    return line.get("stage") == "distil" and all(line.get(key) == value for key, value in (tags or {}).items())
