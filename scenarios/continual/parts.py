"""The parts of a continual study: a memory in one class order with every learner on it, or a learner that has none.

Each part is worked on by one thread, so that its bits do not depend on other parts. A long study continues in several
processes, one part each: a worker writes its lines to a file, and `metrics.jsonl` has one writer, who takes them in when the part is done.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.processes import WorkerFailed, at_once, one_thread, side_by_side
from distill.randomness import derived_seed
from distill.records import append_line, read_lines
from distill.train import protocol
from scenarios.continual.schema import ALONE, LAST, ONE_ROW, ContinualStudy
from scenarios.continual.stream import stream_of
from scenarios.engine.folder import load_data
from scenarios.engine.ledger import matching
from scenarios.engine.record import Line
from scenarios.engine.study import Options, say

if TYPE_CHECKING:
    from apps.continual.benchmark import Budget, Unit

WORTH_WORKERS = 20.0  # seconds of work from which worker processes repay the few that each takes to start
Stream = Callable[[int], list[ImageData]]  # of a class order


@dataclass(frozen=True)
class Part:
    """``unit`` is None for strategies without a memory; ``strategies`` are names of `LearnerTable.learners`."""

    order: int
    unit: "Unit | None"
    strategies: tuple[str, ...]

    @property
    def memory(self) -> str:
        """What the ledger calls the memory; empty where there is none."""
        return f"{self.unit.budget.name}-{self.unit.method}-{self.unit.storage}" if self.unit else ""

    @property
    def name(self) -> str:
        """A file's name."""
        return self.unit.name if self.unit else f"{'-'.join(self.strategies)}-order{self.order}"


@dataclass(frozen=True)
class Book:
    """Where the lines of a part are written, and where all that is known of it is read."""

    written: Path
    earlier: Path | None = None

    def lines(self) -> Iterator[Line]:
        """All lines that are known: the earlier ones, then the part's."""
        yield from read_lines(self.earlier) if self.earlier else ()
        yield from read_lines(self.written)

    def matching(self, key: Line) -> list[Line]:
        """The lines that have every value of ``key``."""
        return matching(self.lines(), key)


def memories(study: ContinualStudy) -> Iterator[tuple["Budget", str, str]]:
    """(budget, storage, method) of each memory: equal items as float32, equal bytes in each storage, compressed images once for each."""
    from apps.continual.benchmark import Budget
    from apps.continual.compressed import COMPRESSED

    table = study.memory
    budgets = [(Budget("items", count), "float32") for count in table.per_class]
    budgets += [(Budget("bytes", count), storage) for count in table.bytes_of for storage in table.storages]
    for budget, storage in budgets:
        for method in table.methods:
            if method not in COMPRESSED:
                yield budget, storage, method
            elif budget.kind == "bytes" and storage == table.storages[0]:
                yield budget, "compressed", method


def parts(study: ContinualStudy, seed: int) -> list[Part]:
    """In the order in which one process works on them."""
    from apps.continual.benchmark import Online, Unit
    from apps.continual.labels import LABELLED

    table, jobs = study.stream, list[Part]()
    online = Online(table.mini, table.queue, table.every) if table.setting == "online" else None
    shrinking = study.memory.share == "shrinking"
    learners = tuple(name for name, (strategy, _) in study.learner.learners.items() if strategy not in ALONE)
    alone = [name for name, (strategy, _) in study.learner.learners.items() if strategy in ALONE]
    for order in range(table.orders):
        jobs += [Part(order, None, (name,)) for name in alone]
        for budget, storage, method in memories(study):
            taught = method.endswith(LABELLED)
            settings = study.settings.get(method.removesuffix(LABELLED), {})
            teacher, returning = study.memory.teacher if taught else None, study.memory.returning or "merge"
            unit = Unit(budget, method, storage, order, shrinking, settings, seed, online, teacher, returning)
            names = tuple(name for name in learners if order == 0 or study.learner.learners[name][0] != LAST)
            jobs += [Part(order, unit, names)] if names else []
    return jobs


def run_parts(study: ContinualStudy, options: Options, stream: Stream, folder: Path, console: Console) -> None:
    """Do every part that metrics.jsonl does not have: here first, several at a time once that has taken `WORTH_WORKERS` seconds."""
    ledger, waiting, start = folder / "metrics.jsonl", parts(study, options.seed), time.monotonic()
    for place in sorted((folder / "parts").glob("*.jsonl")):  # of a run that was stopped
        _take_in(place, ledger)
    stream = functools.lru_cache(maxsize=1)(stream)  # parts of one order follow one another
    alone = options.device != "cpu" or study.given is not None or _own(study)
    while waiting:
        if not alone and time.monotonic() - start > WORTH_WORKERS and at_once(len(waiting)) > 1:
            _side_by_side(study, options, waiting, folder, console)
            return
        with one_thread():
            _do(study, options, waiting.pop(0), stream, folder, Book(ledger), console)


def _own(study: ContinualStudy) -> bool:
    """Whether a method or a network is the user's: a worker process does not know it."""
    named = [study.learner.network, *study.memory.methods, *(str(table.get("network", "")) for table in study.settings.values())]
    return any(":" in name for name in named)


def _side_by_side(study: ContinualStudy, options: Options, waiting: Sequence[Part], folder: Path, console: Console) -> None:
    ledger = folder / "metrics.jsonl"
    waiting = [part for part in waiting if not _finished(study, part, Book(ledger))]
    done, total = 0, len(waiting)
    (folder / "parts").mkdir(exist_ok=True)
    try:
        with console.status(f"{total} parts, {at_once(total)} at a time") as status:
            for part, seconds in side_by_side(_worker, (study, options, folder), waiting, at_once(total)):
                _take_in(folder / "parts" / f"{part.name}.jsonl", ledger)
                done += 1
                status.update(f"{done} of {total} parts done, {at_once(total)} at a time")
                _tell(study, part, Book(ledger), seconds, console)
    except WorkerFailed as failed:
        raise InputError(f"{failed.job.name}: {failed.reason.rstrip('.')}. What is finished is kept: add --resume.") from None


def _worker(study: ContinualStudy, options: Options, folder: Path) -> Callable[[Part], None]:
    """What a process does with a part, on data that it loads once."""
    import torch

    torch.set_num_threads(1)
    data, options = load_data(study, options), dataclasses.replace(options, quiet=True)  # the parent tells
    stream = functools.lru_cache(maxsize=1)(lambda order: stream_of(study, options, data, order))

    def work(part: Part) -> None:
        book = Book(folder / "parts" / f"{part.name}.jsonl", folder / "metrics.jsonl")
        _do(study, options, part, stream, folder, book, Console(quiet=True))

    return work


def _take_in(place: Path, ledger: Path) -> None:
    """Move a part's lines into the ledger, each once, however often this is started."""
    known = [_key(line) for line in read_lines(ledger)]
    for line in read_lines(place):
        if _key(line) not in known:
            append_line(ledger, line)
    place.unlink(missing_ok=True)


def _key(line: Line) -> tuple[object, ...]:
    return tuple(line.get(name) for name in ("stage", "strategy", "memory", "order", "net", "experience"))


def _finished(study: ContinualStudy, part: Part, book: Book) -> bool:
    count = study.stream.experiences if study.stream.setting != "domain" else 1 + len(study.stream.domains)
    if part.unit and len(book.matching({"stage": "memory", "memory": part.memory, "order": part.order})) < count:
        return False
    return all(
        len(book.matching({"stage": "learn", "strategy": strategy, "memory": part.memory, "order": part.order, "net": net}))
        == (1 if study.learner.learners[strategy][0] in ONE_ROW else count)
        for strategy in part.strategies
        for net in range(study.learner.nets if study.learner.learners[strategy][0] == "scratch" else 1)
    )


def _do(study: ContinualStudy, options: Options, part: Part, stream: Stream, folder: Path, book: Book, console: Console) -> None:
    """Fill the memory, then train every learner on it; lines that the book has are not computed again."""
    if _finished(study, part, book):
        return
    start, experiences = time.monotonic(), stream(part.order)
    if part.unit:
        _remember(options, part, part.unit, experiences, folder, book)
    for strategy in part.strategies:
        with console.status(f"order {part.order + 1}: {strategy} {part.memory}"):
            _learn(study, options, part, experiences, strategy, folder, book)
    _tell(study, part, book, time.monotonic() - start, console)


def _tell(study: ContinualStudy, part: Part, book: Book, seconds: float, console: Console) -> None:
    """One line on a part that is done."""
    texts = []
    for strategy in part.strategies:
        lines = book.matching({"stage": "learn", "strategy": strategy, "memory": part.memory, "order": part.order})
        last = max(line["experience"] for line in lines)
        ends = [sum(line["accuracies"]) / len(line["accuracies"]) for line in lines if line["experience"] == last]
        texts.append(f"{strategy} {sum(ends) / len(ends):.1f} %")
    memory = ""
    if part.unit:
        size = book.matching({"stage": "memory", "memory": part.memory, "order": part.order})[-1]
        memory = f"{part.memory}: {size['items']} items, {size['bytes']} bytes, condensed in {size['seconds']:.0f} s; "
    say(console, f"order {part.order + 1}, {memory}{', '.join(texts)} over all experiences at the end ({seconds:.0f} s)")


def _remember(options: Options, part: Part, unit: "Unit", stream: list[ImageData], folder: Path, book: Book) -> None:
    """Fill the unit's memory, and put its size into the book."""
    from apps.continual.benchmark import sizes

    key = {"stage": "memory", "memory": part.memory, "order": part.order}
    done = {line["experience"] for line in book.matching(key)}
    if len(done) == len(stream):
        return
    for number, size in enumerate(sizes(unit, stream, folder / "memories" / unit.plain.name, progress=False if options.quiet else None)):
        if number not in done:
            append_line(book.written, {**key, "experience": number, **size})


def _learn(study: ContinualStudy, options: Options, part: Part, stream: list[ImageData], name: str, folder: Path, book: Book) -> None:
    """Train what the book does not have yet."""
    from apps.continual.benchmark import held, rows
    from apps.continual.strategies import Training

    table, unit = study.learner, part.unit
    strategy, network = table.learners[name]
    recipe = table.recipe or protocol(table.protocol, stream[0].spec, network)
    memories: list[CondensedSet] = []
    for net in range(table.nets if strategy == "scratch" else 1):
        key = {"stage": "learn", "strategy": name, "memory": part.memory, "order": part.order, "net": net}
        known = {line["experience"] for line in book.matching(key)}
        if len(known) == (1 if strategy in ONE_ROW else len(stream)):
            continue
        memories = memories or (held(unit, stream, folder / "memories" / unit.plain.name, options.device) if unit else [])
        lines = rows(
            strategy,
            unit,
            stream,
            memories,
            folder=folder / "memories" / (unit.name if unit else ""),
            network=network,
            recipe=(table.joint or recipe) if strategy == "joint" else recipe,
            training=Training(**study.training),
            seed=derived_seed(options.seed, "learner", part.order, net),
            split=table.split,
            first=len(known),
            mini=study.stream.mini if study.stream.setting == "online" else None,
        )
        for number, accuracies in lines:
            if number not in known:
                append_line(book.written, {**key, "experience": number, "accuracies": accuracies})
