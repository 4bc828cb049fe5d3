"""The study of kind "nas": rank architectures on condensed sets and say how far the ranking can be trusted."""

import csv
import dataclasses
import io
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from apps.nas import ranking
from apps.nas.compare import means
from apps.nas.ledger import Ledger, read_table, write_table
from apps.nas.pictures import correlation_by_cost, regret_by_cost, scatter
from apps.nas.space import drawn
from apps.nas.study import Result, SetProxy, rank
from apps.nas.study import check as check_input
from apps.nas.workers import Crew, Row, check_crew
from distill.comparison import formed
from distill.condensed import CondensedSet
from distill.coresets import CORESETS, select
from distill.data import ImageData
from distill.decode import Decode, as_text, from_text
from distill.drawing import Drawing
from distill.errors import InputError
from distill.methods.advice import advice
from distill.networks import Factory, create
from distill.randomness import generator
from distill.records import read_json, write_whole
from distill.run import condense
from distill.stopping import Interrupted
from scenarios.engine.record import Record
from scenarios.engine.study import Options, Run, say
from scenarios.nas import labels
from scenarios.nas.schema import NasStudy

TRUTH = Path(__file__).parent / "truth"


def check(study: NasStudy, data: ImageData) -> None:
    """Raise `InputError` for what would fail after minutes of work."""
    data = _cut(study, data, 0)
    candidates = study.candidates
    names = [*([study.given.name] if study.given else []), *_forms(study), *study.methods]
    names += labels.added(names, study.sets.teacher)
    if len(set(names)) < len(names):
        raise InputError(f"the sets are called {', '.join(names)}: two have one name; give the stage {names[0]!r} another one.")
    sets = dict.fromkeys(names, SetProxy(()))
    check_input(data, candidates, sets, study.proxy)
    for candidate in candidates:
        create(candidate.network, data.spec, generator(0, "check"), "meta" if isinstance(candidate.network, str) else "cpu")
    for settings in study.methods.values():
        create(_network(study, settings.network), data.spec, generator(0, "check"))
    if study.run.table is not None:
        read_table(_table(study.run.table))
    check_crew(_crew(study), {candidate.id: candidate.network for candidate in candidates})


def advised(study: NasStudy, data: ImageData) -> list[str]:
    """See `distill.methods.advice`: of each method that has a network of its own."""
    named = [(name, settings) for name, settings in study.methods.items() if settings.network != "space"]
    return [line for name, settings in named for line in advice(name, settings, data.spec, study.sets.ipc)]


def fill(study: NasStudy, run: Run) -> None:
    """Make the sets, train, score, compare; metrics.jsonl is the ledger."""
    options, data, folder, results, console = run.options, run.data, run.folder, run.results, run.console
    clock = _Clock(study.run.minutes, console)
    data = _cut(study, data, options.seed)
    crew = _crew(study, options.device)
    parts = {split: len(getattr(data, split)) for split in ("train", "validation", "test")}
    results["data"] = {"name": data.spec.name, **parts, "fingerprint": data.fingerprint}
    known = read_table(_table(study.run.table)) if study.run.table else []
    ledger = Ledger(folder / "metrics.jsonl", known)
    run = dataclasses.replace(run, data=data)
    sets = _given(study, options) | _coresets(study, options, data) | _condensed(study, run, ledger)
    sets = labels.with_labels(sets, study.sets.teacher, run, ledger, study.proxy.seeds)
    say(console, f"{len(study.candidates)} networks; sets: {', '.join(sets)}; {'Ray' if crew.ray else crew.size} workers")
    with console.status("starting the workers") as status:
        clock.show = status.update
        result = rank(
            data, study.candidates, sets, study.truth, study.proxy, seed=options.seed, crew=crew, ledger=ledger, on_row=clock.told
        )
    results.update(result.summary)
    write_table(folder / "truth.csv", result.rows)
    write_whole(folder / "scores.csv", _scores(result))


class _Clock:
    """Progress with the time left, and the end of a slice."""

    def __init__(self, minutes: float | None, console: Console) -> None:
        self.began = self.last = time.monotonic()
        self.minutes, self.console = minutes, console
        self.show: Callable[[str], None] = lambda text: None

    def told(self, done: int, of: int, row: Row) -> None:
        now = time.monotonic()
        left = f", about {_duration(row['left_seconds'])} left" if "left_seconds" in row else ""
        text = f"{row['stage']}: {done} of {of} runs{left}; {row['id']}" + (f" failed: {row['reason']}" if "reason" in row else "")
        self.show(text)
        if "reason" in row or (now - self.last > 60 and not self.console.is_terminal):
            say(self.console, text)
            self.last = now
        if self.minutes is not None and now - self.began > 60 * self.minutes and done < of:
            say(self.console, f"the slice of {self.minutes:g} minutes is over after {done} of {of} runs")
            raise Interrupted


def _crew(study: NasStudy, device: str = "cpu") -> Crew:
    return Crew(study.run.workers, study.run.ray, study.run.limit or None, device)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _cut(study: NasStudy, data: ImageData, seed: int) -> ImageData:
    """The data with at most ``sets.train`` training images a class."""
    if study.sets.train is None:
        return data
    picks = []
    for label in data.classes:
        places = data.class_indices(label)
        order = torch.randperm(len(places), generator=generator(seed, "cut", label))[: study.sets.train]
        picks.append(places[order.to(places.device)])
    return dataclasses.replace(data, train=data.train.at(torch.cat(picks).sort().values))


def _forms(study: NasStudy) -> dict[str, tuple[str, Decode | None]]:
    """The study's coresets by label, (name, form): plain, and in each other form in which one of its sets stores images."""
    given = None if study.given is None else study.given.condensed  # None before the stage that makes it has run
    decodes = [from_text(getattr(settings, "decode", "none")) for settings in study.methods.values()]
    decodes += [] if given is None else [given.decode]
    forms = {as_text(form): form for form in decodes if form is not None}
    labels: dict[str, tuple[str, Decode | None]] = {name: (name, None) for name in study.sets.coresets}
    for text, form in forms.items():
        labels |= {f"{name}-{'decoded' if len(forms) == 1 else text}": (name, form) for name in study.sets.coresets}
    return labels


def _coresets(study: NasStudy, options: Options, data: ImageData) -> dict[str, SetProxy]:
    """Real images; a new draw for each run where the choice is random. All are baselines, random images the first."""
    proxies = {}
    for label, (name, form) in _forms(study).items():
        start, sets, ipc = time.process_time(), [], study.sets.ipc
        for i in range(study.proxy.seeds if CORESETS[name].drawn else 1):
            draws = generator(options.seed, "coreset", name, ipc, i)
            sets.append(select(data, name, ipc, draws) if form is None else formed(data, name, ipc, form, draws))
        proxies[label] = SetProxy(tuple(sets), time.process_time() - start, "coreset")
    return proxies


def _given(study: NasStudy, options: Options) -> dict[str, SetProxy]:
    """The set of another stage; what it cost is that stage's, and is counted here once."""
    if study.given is None:
        return {}
    condensed = study.given.made.to(options.device)
    return {study.given.name: SetProxy((condensed,), condensed.provenance.seconds)}


def _condensed(study: NasStudy, run: Run, ledger: Ledger) -> dict[str, SetProxy]:
    """The finished sets of this folder, or newly made ones; the seconds are those of all cores on a CPU, wall time on a GPU."""
    options, data, folder = run.options, run.data, run.folder
    proxies = {}
    for method in study.methods:
        sets, seconds, settings = [], 0.0, study.merged["methods"][method]
        for i in range(study.sets.copies):
            path = folder / file_of(method, i)
            checkpoint = folder / f"checkpoint-{path.name}"
            if not path.exists():
                run.say(f"making {method}, set {i + 1} of {study.sets.copies}")
                wall, cpu = time.monotonic(), time.process_time()
                condensed = condense(
                    data,
                    method,
                    ipc=study.sets.ipc,
                    seed=options.seed * 1000 + i,
                    checkpoint=checkpoint,
                    metrics=folder / "metrics.jsonl",
                    resume=True,
                    progress=False if options.quiet else None,
                    tags={"set": path.stem},
                    **(settings | {"network": _network(study, settings["network"])}),
                )
                cores = (time.process_time() - cpu) / max(time.monotonic() - wall, 1e-9)
                ledger.add(
                    {
                        "stage": "condensed",
                        "id": method,
                        "seed": i,
                        "key": "",
                        "seconds": condensed.provenance.seconds,
                        "cpu_seconds": condensed.provenance.seconds * cores,
                    }
                )
                condensed.save(path)
                checkpoint.unlink(missing_ok=True)
            sets.append(CondensedSet.load(path).to(options.device))
            seconds += ledger.rows["condensed", method, i, ""]["cpu_seconds" if options.device == "cpu" else "seconds"]
        proxies[method] = SetProxy(tuple(sets), seconds)
    return proxies


def file_of(method: str, copy: int) -> Path:
    """Where a run keeps a copy of a method's set; an import path has a colon, which is for some systems no part of a name."""
    return Path(f"{method.replace(':', '.')}-{copy}.safetensors")


def _network(study: NasStudy, name: str) -> Factory:
    """The network that a method learns through; "space" is all networks of the study in turn."""
    return drawn(study.candidates) if name == "space" else name


def _scores(result: Result) -> str:
    """Every network's true accuracy and what each proxy gave it, as csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["id", "truth", *result.scores])
    columns = [means(result.truth), *(scores.values for scores in result.scores.values())]
    for candidate, *values in zip(result.candidates, *columns, strict=True):
        writer.writerow([candidate.id, *(f"{value:.6g}" for value in values)])
    return text.getvalue()


def draw(folder: Path, record: Record) -> Iterator[tuple[str, Drawing]]:
    """Accuracy against truth, rank correlation by cost, regret by cost."""
    results = record["results"]
    with (folder / "scores.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    columns = {name: np.array([float(line[name]) for line in lines]) for name in lines[0] if name != "id"}
    scores = {name: (row["kind"], columns[name]) for name, row in results["proxies"].items()}
    top = ranking.top_count(results["known"])
    yield "accuracy", scatter(columns["truth"], scores, max(top, min(5, results["known"])))
    yield "correlation", correlation_by_cost(results)
    yield "regret", regret_by_cost(results, read_json(folder / "config.json")["proxy"]["top"][0])


def _table(name: str) -> Path:
    """A truth table's file: a path, or the name of a shipped one."""
    shipped = TRUTH / f"{name}.csv"
    return shipped if "/" not in name and shipped.is_file() else Path(name)
