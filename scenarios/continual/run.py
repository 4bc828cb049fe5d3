"""The study of kind "continual": replay memories compared on a stream, at equal items and at equal bytes, over class orders."""

import math
from collections.abc import Iterator
from pathlib import Path

from distill.data import ImageData
from distill.errors import InputError
from distill.methods import METHODS
from distill.methods.advice import advice
from distill.networks import create
from distill.randomness import generator
from distill.records import read_lines
from scenarios.continual.parts import memories, parts, run_parts
from scenarios.continual.schema import ALONE, LAST, ONE_ROW, ContinualStudy
from scenarios.continual.stream import check_later, split, stream_of
from scenarios.engine.ledger import matching
from scenarios.engine.record import Results
from scenarios.engine.study import Run


def check(study: ContinualStudy, data: ImageData) -> None:
    """What would fail after minutes of work fails now: division into experiences, budgets, network, missing engine."""
    from apps.continual.benchmark import RESERVOIR
    from apps.continual.compressed import COMPRESSED
    from apps.continual.form import Form

    if study.given is not None:
        check_later(study, data, study.given)
    elif study.stream.setting not in ("domain", "permuted", "rotated"):
        split(study.stream, data, 0)
    for network in (study.learner.network, *(study.learner.others or ()), *(study.learner.last or ())):
        create(network, data.spec, generator(0, "check"))
    for part in parts(study, 0):
        if part.unit is not None and part.unit.method == RESERVOIR:
            part.unit.budget.per_class(Form(data.spec.shape), part.unit.storage)
        elif part.unit is not None and part.unit.method not in COMPRESSED:
            part.unit.config(data.spec, 1)
    if not len(getattr(data, study.learner.split)):
        raise InputError(
            f"data {data.spec.name!r} has no {study.learner.split} images to evaluate on; set data.validation, or split = test."
        )
    if any(strategy not in ("scratch", "joint") for strategy in study.learner.strategies):
        from apps.continual.engine import avalanche

        avalanche()


def advised(study: ContinualStudy, data: ImageData) -> list[str]:
    """See `distill.methods.advice`: of each memory that is condensed, at its largest number of images a class."""
    from apps.continual.benchmark import DECODED

    most, methods = max(*study.memory.per_class, *map(math.ceil, study.memory.bytes_of), 1), {}
    for name, settings in study.settings.items():
        if (method := name.removesuffix(DECODED)) in METHODS:
            methods[method] = METHODS[method][0](**settings)
    return [line for method, config in methods.items() for line in advice(method, config, data.spec, most)]


def fill(study: ContinualStudy, run: Run) -> None:
    """The parts of the study (`run_parts`), then the figures of every cell; metrics.jsonl is the ledger."""
    options, data, folder, results, console = run.options, run.data, run.folder, run.results, run.console
    from apps.continual import metrics
    from apps.continual.benchmark import interval

    ledger = folder / "metrics.jsonl"
    results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test), "fingerprint": data.fingerprint}
    results["experiences"] = [
        {"classes": list(experience.classes), "train": len(experience.train), "test": len(experience.test)}
        for experience in stream_of(study, options, data, 0)
    ]
    run_parts(study, options, lambda order: stream_of(study, options, data, order), folder, console)
    filled = {(line["memory"], line["order"], line["experience"]): line for line in read_lines(ledger) if line["stage"] == "memory"}
    last = len(results["experiences"]) - 1
    results["cells"] = []
    for budget, storage, method, strategy in _cells(study):
        name = f"{budget}-{method}-{storage}" if method else ""
        kind, network = study.learner.learners[strategy]
        orders = 1 if kind == LAST else study.stream.orders
        matrices = [_matrix(study, ledger, strategy, name, order, last + 1) for order in range(orders)]
        cell: Results = {"strategy": strategy, "budget": budget, "method": method, "storage": storage}
        if study.learner.others is not None or study.learner.last is not None:
            cell["network"] = network
        if kind in ONE_ROW:
            cell["accuracy"] = interval([sum(matrix[-1]) / len(matrix[-1]) for matrix in matrices])
        else:
            cell["accuracy"] = interval([metrics.average_accuracy(matrix) for matrix in matrices])
            cell["forgetting"] = interval([metrics.forgetting(matrix) for matrix in matrices])
            cell["backward_transfer"] = interval([metrics.backward_transfer(matrix) for matrix in matrices])
            cell["by_experience"] = [[metrics.average_accuracy(matrix, after) for after in range(last + 1)] for matrix in matrices]
            cell["matrix"] = matrices[0]
        if method:
            lines = [filled[name, order, last] for order in range(study.stream.orders) if (name, order, last) in filled]
            cell |= {
                "items": lines[0]["items"],
                "bytes": lines[0]["bytes"],
                "condense_seconds": sum(line["seconds"] for line in lines) / len(lines),
            }
        results["cells"].append(cell)


def _cells(study: ContinualStudy) -> Iterator[tuple[str, str, str, str]]:
    """(budget, storage, method, strategy) of every row of the results; the bounds have no memory."""
    for learner, (strategy, _) in study.learner.learners.items():
        if strategy in ALONE:
            yield "", "", "", learner
        else:
            yield from ((budget.name, storage, method, learner) for budget, storage, method in memories(study))


def _matrix(study: ContinualStudy, ledger: Path, strategy: str, memory: str, order: int, experiences: int) -> list[list[float]]:
    """The accuracy matrix of one class order, the mean over its networks; of a learner at the end its one row."""
    key = {"stage": "learn", "strategy": strategy, "memory": memory, "order": order}
    lines = matching(ledger, key)
    matrix = []
    for number in range(experiences):
        values = [line["accuracies"] for line in lines if line["experience"] == number]
        if values:
            matrix.append([sum(column) / len(values) for column in zip(*values, strict=True)])
    return matrix
