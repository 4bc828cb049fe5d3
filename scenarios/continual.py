"""The study of kind "continual": replay memories compared on a stream, at equal items and at equal bytes, over class orders."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from distill.condensed import CondensedSet
from distill.data import ImageData, Split
from distill.errors import InputError
from distill.evaluation import fitted
from distill.networks import create
from distill.randomness import derived_seed, generator
from distill.records import append_line, read_lines
from distill.train import protocol
from scenarios.continual_report import accuracy_table as accuracy_table
from scenarios.continual_report import answer as answer
from scenarios.continual_report import draw as draw
from scenarios.continual_report import kept_rows as kept_rows
from scenarios.continual_report import note as note
from scenarios.continual_report import page_text as page_text
from scenarios.continual_tables import ALONE, ContinualStudy
from scenarios.continual_tables import study as study
from scenarios.folder import Options, say
from scenarios.given import Given


def check(study: ContinualStudy, data: ImageData) -> None:
    """What would fail after minutes of work fails now: division into experiences, budgets, network, missing engine."""
    from apps.continual.streams import class_incremental

    if study.given is not None:
        check_later(study, data, study.given)
    elif study.stream.setting != "domain":
        class_incremental(data, study.stream.experiences, 0)
    create(study.learner.network, data.spec, generator(0, "check"))
    for budget, storage in _budgets(study):
        budget.per_class(data.spec.shape, storage)
    if not len(getattr(data, study.learner.split)):
        raise InputError(f"data {data.spec.name!r} has no {study.learner.split} images to judge on; set data.validation, or split = test.")
    if any(strategy not in ("scratch", "joint") for strategy in study.learner.strategies):
        from apps.continual.engine import avalanche

        avalanche()


def fill(study: ContinualStudy, options: Options, data: ImageData, folder: Path, results: dict[str, Any], console: Console) -> None:
    """Order by order: the memories, then every learner on them; metrics.jsonl is the ledger."""
    from apps.continual import metrics
    from apps.continual.benchmark import interval

    ledger = folder / "metrics.jsonl"
    results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test), "fingerprint": data.fingerprint}
    for order in range(study.stream.orders):
        stream = _stream(study, options, data, order)
        if order == 0:
            results["experiences"] = [{"classes": list(e.classes), "train": len(e.train), "test": len(e.test)} for e in stream]
        for strategy in [s for s in study.learner.strategies if s in ALONE]:
            _learn(study, options, stream, strategy, None, order, folder, ledger, console)
        for unit in _units(study, options, order):
            _remember(study, options, unit, stream, folder, ledger, console)
            for strategy in [s for s in study.learner.strategies if s not in ALONE]:
                _learn(study, options, stream, strategy, unit, order, folder, ledger, console)
    memories = {(line["memory"], line["order"], line["experience"]): line for line in read_lines(ledger) if line["stage"] == "memory"}
    last = len(results["experiences"]) - 1
    results["cells"] = []
    for budget, storage, method, strategy in _cells(study):
        name = f"{budget}-{method}-{storage}" if method else ""
        found = [_matrix(study, ledger, strategy, name, order, last + 1) for order in range(study.stream.orders)]
        cell: dict[str, Any] = {"strategy": strategy, "budget": budget, "method": method, "storage": storage}
        if strategy == "joint":
            cell["accuracy"] = interval([sum(matrix[-1]) / len(matrix[-1]) for matrix in found])
        else:
            cell["accuracy"] = interval([metrics.average_accuracy(matrix) for matrix in found])
            cell["forgetting"] = interval([metrics.forgetting(matrix) for matrix in found])
            cell["backward_transfer"] = interval([metrics.backward_transfer(matrix) for matrix in found])
            cell["by_experience"] = [[metrics.average_accuracy(matrix, after) for after in range(last + 1)] for matrix in found]
            cell["matrix"] = found[0]
        if method:
            held = [memories[name, order, last] for order in range(study.stream.orders)]
            cell |= {
                "items": held[0]["items"],
                "bytes": held[0]["bytes"],
                "condense_seconds": sum(line["seconds"] for line in held) / len(held),
            }
        results["cells"].append(cell)


def check_later(study: ContinualStudy, data: ImageData, given: Given) -> tuple[int, ...]:
    """The classes that come after those of the given set, which is the first experience; `InputError` when they do not fit the stream."""
    later = tuple(label for label in data.classes if label not in given.classes)
    rest = study.stream.experiences - 1
    if study.stream.setting == "domain":
        raise InputError(
            f'[stream]: setting is "domain", and the set of {given.name!r} is the first experience; allowed: "class", "online".'
        )
    if rest < 1 or not later or len(later) % rest:
        raise InputError(
            f"[stream]: experiences is {study.stream.experiences}: the set of {given.name!r}, then {len(later)} new classes in "
            f"{rest} equal parts; allowed: {', '.join(str(n + 1) for n in range(1, len(later) + 1) if len(later) % n == 0) or 'none'}."
        )
    return later


def _given_first(given: Given, data: ImageData) -> ImageData:
    """An experience whose training images are the given set, whose test images are the real ones of its classes."""
    spec, one = data.spec, given.made.to(data.device)
    mean, std = (torch.tensor(values, device=data.device).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    pixels = one.images * std + mean  # learnt images leave the range of pixels, and the stream normalises them again
    real = data.subset(given.classes)
    return dataclasses.replace(real, train=Split(pixels, one.hard_labels))


def _as_float(data: ImageData) -> ImageData:
    """Pixels as float32 in [0, 1], so that a set's images and real ones can be joined."""
    parts = {name: getattr(data, name) for name in ("train", "validation", "test")}
    return dataclasses.replace(
        data, **{n: Split(p.images.float() / (255 if p.images.dtype == torch.uint8 else 1), p.labels) for n, p in parts.items()}
    )


def _stream(study: ContinualStudy, options: Options, data: ImageData, order: int) -> list[ImageData]:
    from apps.continual.streams import class_incremental, domain_incremental
    from distill.data_sources import load

    if study.given is not None:
        later, data = check_later(study, data, study.given), _as_float(fitted(study.given.made, data))
        rest = class_incremental(data.subset(later), study.stream.experiences - 1, options.seed * 1000 + order)
        return [_given_first(study.given, data), *rest]
    if study.stream.setting != "domain":
        return class_incremental(data, study.stream.experiences, options.seed * 1000 + order)
    others = [load(name, options.data_root, device=options.device) for name in study.stream.domains]
    if study.data.classes is not None:
        others = [other.subset(study.data.classes) for other in others]
    return domain_incremental([data, *others])


def _budgets(study: ContinualStudy) -> Iterator[tuple[Any, str]]:
    """(budget, storage): equal items as float32, equal bytes in each storage."""
    from apps.continual.benchmark import Budget

    yield from ((Budget("items", count), "float32") for count in study.memory.per_class)
    yield from ((Budget("bytes", count), storage) for count in study.memory.bytes_of for storage in study.memory.storages)


def _units(study: ContinualStudy, options: Options, order: int) -> Iterator[Any]:
    from apps.continual.benchmark import Online, Unit

    table = study.stream
    online = Online(table.mini, table.queue, table.every) if table.setting == "online" else None
    shrinking = study.memory.share == "shrinking"
    for budget, storage in _budgets(study):
        for method in study.memory.methods:
            yield Unit(budget, method, storage, order, shrinking, study.settings.get(method, {}), options.seed, online)


def _cells(study: ContinualStudy) -> Iterator[tuple[str, str, str, str]]:
    """(budget, storage, method, strategy) of every row of the results; the bounds have no memory."""
    for strategy in study.learner.strategies:
        if strategy in ALONE:
            yield "", "", "", strategy
        else:
            for budget, storage in _budgets(study):
                yield from ((budget.name, storage, method, strategy) for method in study.memory.methods)


def _remember(
    study: ContinualStudy, options: Options, unit: Any, stream: list[ImageData], folder: Path, ledger: Path, console: Console
) -> None:
    """Fill the unit's memory, and put its size into the ledger."""
    name = f"{unit.budget.name}-{unit.method}-{unit.storage}"
    key = {"stage": "memory", "memory": name, "order": unit.order}
    done = {line["experience"] for line in read_lines(ledger) if all(line.get(k) == v for k, v in key.items())}
    if len(done) == len(stream):
        return
    sizes = _sizes(unit, stream, folder, progress=False if options.quiet else None)
    for number, size in enumerate(sizes):
        if number not in done:
            append_line(ledger, {**key, "experience": number, **size})
    say(console, f"order {unit.order + 1}, {name}: {sizes[-1]['items']} items, {sizes[-1]['bytes']} bytes, {sizes[-1]['seconds']:.0f} s")


def _sizes(unit: Any, stream: list[ImageData], folder: Path, progress: bool | None) -> list[dict[str, Any]]:
    """Items, bytes and seconds spent condensing, after each experience."""
    from apps.continual.benchmark import RESERVOIR, fill_memories, reservoirs
    from apps.continual.exemplars import group_bytes, item_bytes

    if unit.method == RESERVOIR:  # one grid for all images
        shape = stream[0].spec.shape
        size, grid = item_bytes(shape, unit.storage), group_bytes(shape, unit.storage)
        return [{"items": len(held), "bytes": len(held) * size + grid, "seconds": 0.0} for held in reservoirs(unit, stream)]
    memories = fill_memories(unit, stream, folder / "memories" / unit.name, progress)
    return [{"items": len(memory), "bytes": memory.nbytes, "seconds": memory.seconds} for memory in memories]


def _held(options: Options, unit: Any, stream: list[ImageData], folder: Path) -> list[CondensedSet]:
    """The unit's memory after each experience, as sets of the stream's spec on its device."""
    from apps.continual.benchmark import RESERVOIR, fill_memories, reservoirs

    if unit.method == RESERVOIR:
        return reservoirs(unit, stream)
    place = folder / "memories" / unit.name
    return [memory.condensed(stream[0].spec).to(options.device) for memory in fill_memories(unit, stream, place, False)]


def _learn(
    study: ContinualStudy,
    options: Options,
    stream: list[ImageData],
    strategy: str,
    unit: Any,
    order: int,
    folder: Path,
    ledger: Path,
    console: Console,
) -> None:
    """Train what the ledger does not have yet."""
    from apps.continual.benchmark import rows
    from apps.continual.strategies import Training

    table = study.learner
    recipe = table.recipe or protocol(table.protocol, stream[0].spec)
    name = f"{unit.budget.name}-{unit.method}-{unit.storage}" if unit else ""
    held: list[CondensedSet] = []
    for net in range(table.nets if strategy == "scratch" else 1):
        key = {"stage": "learn", "strategy": strategy, "memory": name, "order": order, "net": net}
        lines = {line["experience"]: line for line in read_lines(ledger) if all(line.get(k) == v for k, v in key.items())}
        if len(lines) == (1 if strategy == "joint" else len(stream)):
            continue
        held = held or (_held(options, unit, stream, folder) if unit else [])
        with console.status(f"order {order + 1}: {strategy} {name}, network {net + 1}"):
            found = rows(
                strategy,
                unit,
                stream,
                held,
                folder / "memories" / (unit.name if unit else ""),
                table.network,
                (table.joint or recipe) if strategy == "joint" else recipe,
                Training(**study.training),
                derived_seed(options.seed, "learner", order, net),
                table.split,
                first=len(lines),
                mini=study.stream.mini if study.stream.setting == "online" else None,
            )
            for number, accuracies in found:
                if number not in lines:
                    append_line(ledger, {**key, "experience": number, "accuracies": accuracies})
    done = [line["accuracies"] for line in read_lines(ledger) if line.get("strategy") == strategy and line.get("memory") == name]
    say(console, f"order {order + 1}, {strategy} {name}: {sum(done[-1]) / len(done[-1]):.1f} % over all experiences at the end")


def _matrix(study: ContinualStudy, ledger: Path, strategy: str, memory: str, order: int, experiences: int) -> list[list[float]]:
    """The accuracy matrix of one class order, the mean over its networks; of "joint" its one row."""
    key = {"stage": "learn", "strategy": strategy, "memory": memory, "order": order}
    lines = [line for line in read_lines(ledger) if all(line.get(k) == v for k, v in key.items())]
    matrix = []
    for number in range(experiences):
        values = [line["accuracies"] for line in lines if line["experience"] == number]
        if values:
            matrix.append([sum(column) / len(values) for column in zip(*values, strict=True)])
    return matrix
