"""Accuracy against distilling time: one run of each method, evaluated at the same times of one core.

python -m benchmarks.equal_cost [--data cifar10] [--ipc 10] [--network ConvNetW64] [--minutes 30] [--methods NAME ...]
                                [--ledger FILE] [--json FILE]
python -m benchmarks.equal_cost --page         the table and the figure of docs/methods.md from benchmarks/expected/equal_cost.json

Time is CPU time with one thread, with the training of the networks that a method needs, in worker processes too, and without the
evaluations.
Evaluation networks are tested on held-out training images, never on test images. Each method runs once, so that differences of a point
are chance. A finished method in the ledger is not run again; an unfinished one starts anew. Networks are trained anew, not taken from the
user's cache.
"""

import argparse
import dataclasses
import os
import resource
import tempfile
import time
from pathlib import Path
from typing import TypedDict, cast

import torch
from matplotlib.figure import Figure

from distill.configure import configure
from distill.data import ImageData
from distill.data_sources import load
from distill.decode import from_text
from distill.drawing import Drawing
from distill.evaluation import accuracies
from distill.memory import keep_freed_memory
from distill.methods import METHODS
from distill.methods.presets import presets_of
from distill.randomness import generator
from distill.records import append_line, environment, read_json, read_lines, write_json, write_whole
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set
from distill.train import Recipe
from scenarios.reporting.text import as_markdown, replaced

MARKS = (2, 5, 10, 20, 30)  # minutes of one core
QUICK: dict[str, object] = {"precision": "bf16", "compile": "on"}  # half the time where the processor has bfloat16
RUNS: dict[str, tuple[str, dict[str, object]]] = {  # short presets, and what differs from them
    "dm": ("dm", {"batch_real": 64, **QUICK}),
    "dm, formation:2": ("dm", {"batch_real": 64, "decode": "formation:2", "clamp": True, "augmentation": "color_crop_cutout", **QUICK}),
    "dance": ("dance", {"batch_real": 64, **QUICK}),
    "ncfm": ("ncfm", {"batch_real": 64, **QUICK}),
    "idc": ("idc", QUICK),
}
RECIPE = Recipe(optimiser="adamw", lr=0.001, batch_size=32, max_steps=1200, schedule="cosine", precision="bf16", compile="on")


class Point(TypedDict):
    """A method at one time: ``minutes`` passed, with ``seconds`` of CPU time, of which ``prepared`` went into networks, for ``steps``."""

    method: str
    minutes: int
    seconds: float
    prepared: float
    steps: int
    accuracy: list[float]


class Comparison(TypedDict):
    """What is kept: the setting, and the points of all methods."""

    data: str
    ipc: int
    network: str
    networks: int
    recipe: dict[str, object]
    environment: dict[str, object]
    points: list[Point]


KEPT = Path(__file__).parent / "expected" / "equal_cost.json"
DOCS = Path(__file__).parents[1] / "docs"
BEGIN, END = "<!-- table: begin (python -m benchmarks.equal_cost --page) -->", "<!-- table: end (equal cost) -->"


def cpu_seconds() -> float:
    """Of this process and of those that it has started and that have ended: experts are trained in worker processes."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def run(name: str, data: ImageData, ipc: int, network: str, minutes: float, networks: int, ledger: Path) -> None:
    """One method up to ``minutes`` of CPU time; a line of the ledger at each mark that it passes."""
    method, more = RUNS[name]
    kind, distiller = METHODS[method]
    config = configure(
        kind,
        {**presets_of(distiller).short_form(ipc), **presets_of(distiller).small, **more, "iterations": 1_000_000, "network": network},
        name,
    )
    statistics, draws = ExactStatistics(data), generator(0, "equal cost", name)
    form = from_text(config.decode)
    spent = -cpu_seconds()
    made = distiller(config, initial_set(statistics, config.initial, ipc, draws, form))
    if hasattr(made, "prepare"):
        made.prepare(statistics, progress=False)
    prepared, step = spent + cpu_seconds(), 0
    for mark in (mark for mark in MARKS if mark <= minutes):
        while spent + cpu_seconds() < 60 * mark:
            made.step(statistics, draws)
            step += 1
        spent += cpu_seconds()
        values = []  # before the first step, while networks are trained, there is nothing to evaluate
        if step:
            made_so_far = accuracies(made.condensed, data, ["condensed"], network, RECIPE, range(networks), split="validation")
            values = [one.value for one in made_so_far]
        point: Point = {"method": name, "minutes": mark, "seconds": spent, "prepared": prepared, "steps": step, "accuracy": values}
        append_line(ledger, dict(point))
        print(f"{name}: {mark} min, {step} steps, {_mean(point) if step else 0:.1f} %", flush=True)
        spent -= cpu_seconds()
    append_line(ledger, {"method": name, "done": True})


def table(record: Comparison) -> str:
    """Markdown: a row for each method, a column for each time."""
    points = record["points"]
    marks = sorted({point["minutes"] for point in points})
    rows = [["method", *(f"{mark} min" for mark in marks), "networks trained for", "seconds a step"]]
    for name in dict.fromkeys(point["method"] for point in points):
        own = {point["minutes"]: point for point in points if point["method"] == name}
        last = own[max(own)]
        shown = [f"{_mean(own[mark]):.1f}" if mark in own and own[mark]["steps"] else "-" for mark in marks]
        pace = (last["seconds"] - last["prepared"]) / last["steps"]
        rows.append([f"`{name}`", *shown, f"{last['prepared'] / 60:.1f} min", f"{pace:.2f}"])
    machine = record["environment"]
    where = (
        f"{record['data']}, {record['ipc']} images a class, {record['network']}, one core of {machine['processor']}; accuracy (%) of "
        f"{record['networks']} networks on held-out training images; one run a method, so that a point of difference is chance."
    )
    return where + "\n\n" + as_markdown(rows)


def drawing(record: Comparison) -> Drawing:
    """The same as curves."""
    figure = Figure(figsize=(6.4, 3.8), layout="constrained")
    axes = figure.add_subplot(xscale="log", xlabel="minutes of one core", ylabel="accuracy on validation images, %")
    for name in dict.fromkeys(point["method"] for point in record["points"]):
        own = [point for point in record["points"] if point["method"] == name and point["steps"]]
        axes.plot([point["minutes"] for point in own], [_mean(point) for point in own], marker="o", label=name)
    axes.set_xticks(MARKS, [str(mark) for mark in MARKS], minor=False)
    axes.minorticks_off()
    axes.grid(alpha=0.3)
    axes.legend()
    return Drawing(figure, "Accuracy against distilling time", "One run of each method; networks that a method trains count.")


def _mean(point: Point) -> float:
    return float(sum(point["accuracy"]) / len(point["accuracy"]))


def write_page(record: Comparison) -> None:
    """Put the table into docs/methods.md, and the figure into docs/images."""
    page = DOCS / "methods.md"
    write_whole(page, replaced(page.read_text(), BEGIN, table(record), END))
    write_whole(DOCS / "images" / "equal-cost.png", drawing(record).encoded("png"))


def main(arguments: list[str] | None = None) -> None:
    """Run what the ledger does not have, keep the record, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_cost", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--ipc", type=int, default=10)
    parser.add_argument("--network", default="ConvNetW64")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--networks", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=RUNS, default=list(RUNS), metavar="NAME", help=", ".join(RUNS))
    parser.add_argument("--ledger", type=Path, default=Path("runs/equal_cost.jsonl"))
    parser.add_argument("--json", type=Path, help="write the record of all finished methods")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(arguments)
    if options.page:
        write_page(read_json(KEPT))
        return
    torch.set_num_threads(1)
    keep_freed_memory()
    data = load(options.data, validation=0.1)
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DISTILL_CACHE"] = cache
        for name in options.methods:
            if name not in finished(options.ledger):
                run(name, data, options.ipc, options.network, options.minutes, options.networks, options.ledger)
    if options.json:
        record: Comparison = {
            "data": options.data,
            "ipc": options.ipc,
            "network": options.network,
            "networks": options.networks,
            "recipe": dataclasses.asdict(RECIPE),
            "environment": dict(environment("cpu")),
            "points": [point for points in finished(options.ledger).values() for point in points],
        }
        write_json(options.json, record)


def finished(ledger: Path) -> dict[str, list[Point]]:
    """The points of each method whose run reached the end: those of its last run."""
    points: dict[str, list[Point]] = {}
    ready: dict[str, list[Point]] = {}
    for line in read_lines(ledger) if ledger.exists() else ():
        name = line["method"]
        if line.get("done"):
            ready[name] = points.pop(name)
        elif line["minutes"] == MARKS[0]:
            points[name] = [cast(Point, line)]
        else:
            points[name].append(cast(Point, line))
    return ready


if __name__ == "__main__":
    main()
