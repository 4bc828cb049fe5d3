"""The study of kind "continual": replay memories compared on a stream of experiences, at equal items and at equal bytes, over class orders.

python -m scenarios.continual RUN_DIR [RUN_DIR ...]     write scenarios/expected/continual/<scenario>.csv from finished runs
"""

import csv
import io
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field
from rich.console import Console

from distill.condensed import CondensedSet
from distill.configure import configure
from distill.coresets import CORESETS
from distill.data import ImageData
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.networks import check_name, create
from distill.randomness import derived_seed, generator
from distill.records import append_line, read_json, read_lines, write_whole
from distill.train import Recipe, protocol
from scenarios.folder import Options, say
from scenarios.report import shown
from scenarios.schema import DataTable, config_hash

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
STRATEGIES = ("scratch", "gdumb", "replay", "er_ace", "der", "none", "lwf", "joint")  # apps.continual.strategies has the same, at a cost
ALONE = ("none", "lwf", "joint")
EXPECTED = Path(__file__).parent / "expected" / "continual"


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class StreamTable:
    """``[stream]``: what arrives when. "class": the data's classes in ``experiences`` equal parts, one seeded order for each of ``orders``.
    "domain": the data set, then ``domains``, each with all classes (``orders`` are then seeds). "online": as "class", seen once, ``mini``
    images at a time, of which the ``queue`` most recent are condensed every ``every`` mini-batches."""

    setting: Literal["class", "domain", "online"] = "class"
    experiences: Annotated[int, Field(ge=1)] = 5
    orders: Annotated[int, Field(ge=1)] = 3
    domains: tuple[str, ...] = ()
    mini: Annotated[int, Field(ge=1)] = 10
    queue: Annotated[int, Field(ge=1)] = 64
    every: Annotated[int, Field(ge=1)] = 6


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class MemoryTable:
    """``[memory]``: ``methods`` (condensation methods, coresets, "reservoir") at ``per_class`` float32 images a class, and at the bytes
    of ``bytes_of`` float32 images a class in each of ``storages``. ``share`` "shrinking" gives the first classes more and condenses them
    again when others come. Settings of a method go into ``[settings.<method>]``."""

    methods: Annotated[tuple[str, ...], Field(min_length=1)] = ("random", "class_mean", "dm")
    per_class: tuple[Annotated[int, Field(ge=1)], ...] = (1,)
    bytes_of: tuple[Annotated[int, Field(ge=1)], ...] = ()
    storages: tuple[Literal["uint8", "float32"], ...] = ("uint8", "float32")
    share: Literal["fixed", "shrinking"] = "fixed"


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class LearnerTable:
    """``[learner]``: ``strategies`` on the stream, one ``network``; ``nets`` networks for each class order ("scratch" only).
    ``protocol`` (or ``[learner.recipe]``) trains "scratch", ``[learner.joint]`` "joint"; ``[training]`` is for Avalanche's learners."""

    strategies: Annotated[tuple[str, ...], Field(min_length=1)] = ("scratch",)
    network: str = "ConvNet"
    nets: Annotated[int, Field(ge=1)] = 1
    protocol: str = "laptop"
    recipe: Recipe | None = None
    joint: Recipe | None = None
    split: Literal["test", "validation"] = "test"


@dataclass(frozen=True)
class ContinualStudy:
    """``kind = "continual"``."""

    name: str
    title: str
    data: DataTable
    stream: StreamTable
    memory: MemoryTable
    learner: LearnerTable
    training: dict[str, Any]  # of apps.continual.strategies.Training
    settings: dict[str, dict[str, Any]]
    merged: dict[str, Any]
    kind: str = "continual"

    @property
    def hash(self) -> str:
        return config_hash(self.merged)


def study(name: str, title: str, tables: dict[str, Any], source: str) -> ContinualStudy:
    """Check a scenario's tables."""
    from apps.continual.condensing import settings_of
    from apps.continual.strategies import Training

    kinds = {"data": DataTable, "stream": StreamTable, "memory": MemoryTable, "learner": LearnerTable, "training": Training}
    for key, table in tables.items():
        if key not in (*kinds, "settings"):
            raise unknown_name(f"{source}: key", key, ("kind", "title", *kinds, "settings"))
        if not isinstance(table, dict):
            raise InputError(f"{source}: [{key}] is {str(table)[:40]!r}; allowed: a table.")
    if "data" not in tables:
        raise InputError(f"{source}: table [data] is missing; a continual study needs it.")
    made = {key: configure(kind, tables.get(key, {}), f"{source}: [{key}]") for key, kind in kinds.items()}
    stream, memory, learner = made["stream"], made["memory"], made["learner"]
    for strategy in learner.strategies:
        if strategy not in STRATEGIES:
            raise unknown_name(f"{source}: [learner]: key 'strategies': value", strategy, STRATEGIES)
    for method in memory.methods:
        if method not in (*METHODS, *CORESETS, "reservoir"):
            raise unknown_name(f"{source}: [memory]: key 'methods': value", method, (*METHODS, *CORESETS, "reservoir"))
    if not memory.per_class and not memory.bytes_of:
        raise InputError(f"{source}: [memory]: per_class and bytes_of are empty; give at least one number.")
    if bool(stream.domains) != (stream.setting == "domain"):
        raise InputError(f'{source}: [stream]: domains are for setting "domain", which needs one or more; setting is {stream.setting!r}.')
    if stream.setting == "online" and memory.share == "shrinking":
        raise InputError(f'{source}: [memory]: share is "shrinking"; allowed with an online stream: "fixed".')
    if memory.bytes_of and "der" in learner.strategies:
        raise InputError(f'{source}: [memory]: bytes_of with strategy "der" is not offered: its outputs take bytes too; use per_class.')
    if made["data"].zca:
        raise InputError(f"{source}: [data]: zca is for condensed sets that are used white; a stream's images are not.")
    check_name(learner.network)
    given = tables.get("settings", {})
    for method, table in given.items():
        if method not in memory.methods or not isinstance(table, dict):
            raise unknown_name(f"{source}: [settings]: method", method, [m for m in memory.methods if m in METHODS])
    settings = {}
    for method in memory.methods:
        if method in METHODS:
            settings[method] = settings_of(method, given.get(method, {}))
            configure(METHODS[method][0], settings[method], f"{source}: [settings.{method}]")
    plain = {key: pydantic.TypeAdapter(type(table)).dump_python(table, mode="json") for key, table in made.items()}
    merged = {"kind": "continual", **plain, "settings": settings}
    return ContinualStudy(name, title, made["data"], stream, memory, learner, plain["training"], settings, merged)


def check(study: ContinualStudy, data: ImageData) -> None:
    """What would fail after minutes of work fails now: division into experiences, budgets, network, missing engine."""
    from apps.continual.streams import class_incremental

    if study.stream.setting != "domain":
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


def _stream(study: ContinualStudy, options: Options, data: ImageData, order: int) -> list[ImageData]:
    from apps.continual.streams import class_incremental, domain_incremental
    from distill.data_sources import load

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
    for number, held in enumerate(_held(options, unit, stream, folder, progress=False if options.quiet else None)):
        if number not in done:
            seconds = held.provenance.seconds
            append_line(ledger, {**key, "experience": number, "items": len(held), "bytes": _bytes(unit, held), "seconds": seconds})
    say(console, f"order {unit.order + 1}, {name}: {len(held)} items, {_bytes(unit, held)} bytes, {held.provenance.seconds:.0f} s")


def _held(options: Options, unit: Any, stream: list[ImageData], folder: Path, progress: bool | None) -> list[CondensedSet]:
    """The unit's memory after each experience, as sets of the stream's spec on its device."""
    from apps.continual.benchmark import RESERVOIR, fill_memories, reservoirs

    if unit.method == RESERVOIR:
        return reservoirs(unit, stream)
    place = folder / "memories" / unit.name
    return [memory.condensed(stream[0].spec).to(options.device) for memory in fill_memories(unit, stream, place, progress)]


def _bytes(unit: Any, held: CondensedSet) -> int:
    """As the memory counts them: items, labels, and one grid for each class where it is uint8 (a reservoir has one in all)."""
    from apps.continual.exemplars import group_bytes, item_bytes

    groups = 1 if unit.method == "reservoir" else sum(1 for count in held.counts if count)
    return len(held) * item_bytes(held.spec.shape, unit.storage) + groups * group_bytes(held.spec.shape, unit.storage)


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
        held = held or (_held(options, unit, stream, folder, False) if unit else [])
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


def draw(study: ContinualStudy, folder: Path, results: dict[str, Any]) -> None:
    """Accuracy by experience of all memories, an accuracy matrix for each, and the memories' images growing (first class order)."""
    from apps.continual.figures import accuracy_lines, growing_picture, matrix_picture
    from apps.continual.memory_file import load

    groups: dict[str, dict[str, Any]] = {}
    for cell in results["cells"]:
        if "by_experience" in cell:
            group = f"{cell['strategy']} {cell['budget']}".strip()
            groups.setdefault(group, {})[f"{cell['method']} {cell['storage']}".strip() or cell["strategy"]] = cell
    for group, cells in groups.items():
        curves = {name: cell["by_experience"] for name, cell in cells.items()}
        title = f"{study.title}, {_words(next(iter(cells.values())))}"
        write_whole(folder / f"figures/accuracy-{group.replace(' ', '-')}.png", accuracy_lines(curves, title))
        best = max(cells, key=lambda name: cells[name]["accuracy"]["mean"])
        picture = matrix_picture(cells[best]["matrix"], f"{group}: {best}, first class order")
        write_whole(folder / f"figures/matrix-{group.replace(' ', '-')}.png", picture)
    spec = _spec(study, folder)
    for place in sorted((folder / "memories").glob("*-order0")):
        paths = sorted(place.glob("memory-*.safetensors"), key=lambda path: int(path.stem.partition("-")[2]))
        if spec is not None and len(load(paths[-1])) <= 40:
            sets = [load(path).condensed(spec) for path in paths]
            write_whole(folder / f"figures/memory-{place.name}.png", growing_picture(sets, f"memory after each experience: {place.name}"))


def _spec(study: ContinualStudy, folder: Path) -> Any:
    """The stream's spec, from a memory's own settings (a picture needs no data)."""
    from apps.continual.memory_file import load
    from distill.spec import DataSpec

    for path in sorted((folder / "memories").glob("*-order0/memory-*.safetensors")):
        memory = load(path)
        assert memory.config.mean is not None
        assert memory.config.std is not None
        names = tuple(str(label) for label in range(1000))
        return DataSpec(memory.config.name, *memory.groups[0].values.shape[1:], names, memory.config.mean, memory.config.std)
    return None


def _words(cell: dict[str, Any]) -> str:
    if not cell["budget"]:
        return str(cell["strategy"])
    count = cell["budget"][5:]
    what = f"{count} a class" if cell["budget"].startswith("items") else f"bytes of {count} float32 a class"
    return f"{cell['strategy']}, {what}"


def accuracy_table(record: dict[str, Any]) -> list[list[str]]:
    """Header and rows: one row a memory under its budget; the interval is over class orders."""
    rows = [["strategy, budget", "memory", "stored as", "items", "bytes", "average accuracy", "forgetting", "condensing, s"]]
    for cell in record["results"].get("cells", []):
        rows.append(
            [
                _words(cell),
                cell["method"] or "-",
                cell["storage"] or "-",
                str(cell.get("items", "-")),
                str(cell.get("bytes", "-")),
                shown(cell["accuracy"]),
                shown(cell["forgetting"]) if "forgetting" in cell else "-",
                f"{cell['condense_seconds']:.1f}" if "condense_seconds" in cell else "-",
            ]
        )
    return rows if len(rows) > 1 else []


def answer(record: dict[str, Any]) -> str:
    """The record in one sentence: the best and the worst memory under each budget, and whether the intervals part."""
    cells = [cell for cell in record["results"].get("cells", []) if cell["method"]]
    parts = []
    for words in dict.fromkeys(_words(cell) for cell in cells):
        ranked = sorted((c for c in cells if _words(c) == words), key=lambda c: -c["accuracy"]["mean"])
        best, plain = ranked[0], next((c for c in ranked if c["method"] == "random" and c is not ranked[0]), None)
        text = f"{words}: {best['method']} {best['storage']} leads with {shown(best['accuracy'])} %"
        if plain is not None:
            apart = (best["accuracy"]["low"] or 0) > (plain["accuracy"]["high"] or 100)
            text += f", random {shown(plain['accuracy'])} ({'intervals apart' if apart else 'intervals overlap'})"
        if ranked[-1] is not best and ranked[-1] is not plain:
            text += f", last is {ranked[-1]['method']} {shown(ranked[-1]['accuracy'])}"
        parts.append(text)
    return ("; ".join(parts) + ".") if parts else f"No memory was compared. Status: {record['status']}."


def kept_rows(folder: Path) -> list[dict[str, str]]:
    """A finished run's cells as rows of a table."""
    record, config = read_json(folder / "record.json"), read_json(folder / "config.json")
    if record["status"] != "done":
        raise InputError(f"{folder}: status is {record['status']!r}; only a finished run can be kept.")
    environment = record["environment"]
    rows = []
    for cell in record["results"]["cells"]:
        row = {key: str(cell.get(key, "")) for key in ("strategy", "budget", "method", "storage", "items", "bytes")}
        for figure in ("accuracy", "forgetting"):
            for field in ("mean", "low", "high"):
                value = cell.get(figure, {}).get(field)
                row[f"{figure}_{field}"] = "" if value is None else f"{value:.2f}"
        row["condense_seconds"] = f"{cell['condense_seconds']:.1f}" if "condense_seconds" in cell else ""
        rows.append(
            {
                "scenario": record["scenario"],
                "dataset": config["data"]["name"],
                "network": config["learner"]["network"],
                "orders": str(config["stream"]["orders"]),
                **row,
                "device": environment["gpu"] or f"{environment['cores']} cores, {environment['processor']}",
                "run_seconds": str(round(record["seconds"])),
            }
        )
    return rows


def main(folders: list[str]) -> None:
    for given in folders:
        rows = kept_rows(Path(given))
        out = io.StringIO()
        table = csv.DictWriter(out, list(rows[0]), lineterminator="\n")
        table.writeheader()
        table.writerows(rows)
        write_whole(EXPECTED / f"{rows[0]['scenario']}.csv", out.getvalue())


if __name__ == "__main__":
    main(sys.argv[1:])
