"""A step of every method on a GPU, at 10 and 100 classes and 1, 10 and 50 images a class: seconds, rate, memory.

python -m benchmarks.gpu [--methods dm,gm,...] [--precision float32,bf16] [--minutes 9] [--json FILE]
python -m benchmarks.gpu --papers [--minutes 9]     the papers' settings of CIFAR-10, 10 images a class, through kept.reproduce
python -m benchmarks.gpu --page                     the table of docs/speed.md from benchmarks/expected/gpu.json
python -m benchmarks.gpu --device cpu               a tiny form that shows that the code runs, for the tests; it measures nothing

ConvNet-3 of width 128, 32 x 32 pixels, each method's own batch and augmentation. Data and trained networks are random: speed does not
depend on their content. A step is one of benchmarks/launches.py, whose record has its operations. Every finished cell is written to FILE
at once, and the same command continues after the last one: a killed slice loses the cell in progress. The rate counts convolutions and
matrix products of the uncompiled step, on device "meta"; it is compared with the largest matrix product in the same precision.
"""

import argparse
import dataclasses
import statistics as numbers
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict, cast, get_args

import torch

from benchmarks.core import PAGE, seconds
from benchmarks.counting import step_of
from benchmarks.gpu_step import FULL, PLAIN, TINY, Cell, Size, flops_of, plain_step, random_data, settings_of
from benchmarks.launches import images_of
from benchmarks.page import with_gpu
from distill.augment import DSA
from distill.coresets import select
from distill.errors import InputError, clipped, unknown_name
from distill.fast import Precision
from distill.methods import METHODS
from distill.networks import create, flops
from distill.randomness import generator
from distill.records import Json, environment, read_json, write_json, write_whole
from distill.tf32 import products
from distill.train import PROTOCOLS, train_on
from distill.train_as_one import train_as_one
from kept import reproduce
from scenarios.engine.template import CHEAP_FIRST

KEPT = Path(__file__).parent / "expected" / "gpu.json"
BLOCKS, BLOCK_SECONDS, LONGEST_BLOCK = 3, 0.5, 200
ATTEMPTS = 3  # of a cell during which the process ended, for example because the host's memory was full
LEARNERS, NETWORKS, LEARNER_STEPS = "learners", 5, 20  # a row of evaluation networks, as one and one by one
NO_PLAIN = "benchmarks/plain.py has no loop of this method"


class Row(TypedDict, total=False):
    """A finished cell. Seconds are of a step, the median over blocks; ``times`` are those of the blocks; memory is the allocator's peak
    with the data. ``reason`` says why there is no ``seconds``, ``plain_reason`` why there is no ``plain_seconds``."""

    times: list[float]
    seconds: float
    images_per_second: float
    flops: int
    gflops: float
    of_matmul: float
    peak_bytes: int | None
    plain_times: list[float]
    plain_seconds: float
    ratio: float
    plain_peak_bytes: int | None
    reason: str
    plain_reason: str


class Ledger(TypedDict):
    """What FILE holds. ``started`` counts the attempts of cells that are not finished."""

    size: dict[str, Json]
    environment: dict[str, Json]
    matmul_gflops: dict[str, float]
    started: dict[str, int]
    results: dict[str, Row]


def timed(work: Callable[[], object], device: str) -> list[float]:
    """Seconds of a call in each of some blocks of calls, after calls that compile and allocate."""
    if device == "cpu":  # the tiny form
        return [seconds(work, device)]
    for _ in range(2):
        work()
    each = max(1, min(LONGEST_BLOCK, round(BLOCK_SECONDS / seconds(work, device))))

    def block() -> None:
        for _ in range(each):
            work()

    return [seconds(block, device) / each for _ in range(BLOCKS)]


def measured(work: Callable[[], object], device: str) -> tuple[list[float], int | None]:
    """(seconds of a call by block, peak of the allocated bytes or None on a CPU)."""
    if device != "cuda":
        return timed(work, device), None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return timed(work, device), torch.cuda.max_memory_allocated()


def matmul_gflops(device: str, precision: Precision, rows: int) -> float:
    """GFLOP/s of a product of two square matrices of this many rows."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    matrix = torch.randn((rows, rows), device=device, generator=generator(0, "matrix", device=device)).to(dtype)
    with products(precision, matrix.device):
        return 2 * rows**3 / min(timed(lambda: matrix @ matrix, device)) / 1e9


def row(cell: Cell, size: Size, device: str, matmul: float) -> Row:
    """A cell measured. Where the method or its plain loop runs out of memory or fails, the row has the reason."""
    if cell.method == LEARNERS:
        return row_of_learners(cell, size, device, matmul)
    found: Row = {}
    try:
        settings = settings_of(cell, size)
        config = METHODS[cell.method][0](**settings)
        data = random_data(cell.classes, config.batch_real, size.side)
        work = step_of(cell.method, data, cell.ipc, device, **settings)
        with products(cell.precision, torch.device(device)):
            times, peak = measured(work, device)
        del work
        found |= {"times": times, "seconds": numbers.median(times), "peak_bytes": peak}
    except (RuntimeError, InputError) as error:
        return {"reason": reason(error)}
    found["images_per_second"] = images_of(cell.method, config, cell.classes, cell.ipc) / found["seconds"]
    found["flops"] = flops_of(cell, size)
    found["gflops"] = found["flops"] / found["seconds"] / 1e9
    found["of_matmul"] = found["gflops"] / matmul
    if cell.method not in PLAIN or cell.precision != "float32":
        return {**found, "plain_reason": NO_PLAIN if cell.method not in PLAIN else "the plain loops are float32"}
    try:
        with products("float32", torch.device(device)):
            times, peak = measured(plain_step(cell, data.to(device), settings), device)
        found |= {"plain_times": times, "plain_seconds": numbers.median(times), "plain_peak_bytes": peak}
        found["ratio"] = found["plain_seconds"] / found["seconds"]
    except RuntimeError as error:
        found["plain_reason"] = reason(error)
    return found


def row_of_learners(cell: Cell, size: Size, device: str, matmul: float) -> Row:
    """A step of five evaluation networks as one; the plain loop is one after the other. Weights are made once in `LEARNER_STEPS`."""
    if cell.precision == "bf16":
        return {"reason": "networks are not trained as one in bfloat16"}
    data = random_data(cell.classes, cell.ipc, size.side)
    tiny = select(data, "random", cell.ipc, generator(0, "set")).to(device)
    recipe = dataclasses.replace(PROTOCOLS["dm"], max_steps=LEARNER_STEPS, augmentation=DSA, precision=cell.precision, compile="off")
    images = NETWORKS * min(recipe.batch_size, len(tiny.labels))
    found: Row = {"flops": 3 * images * flops(create(size.network, data.spec, generator(0, "count")), data.spec)}
    try:
        times, peak = measured(lambda: train_as_one([tiny] * NETWORKS, size.network, recipe, range(NETWORKS)), device)
        found |= {"times": [one / LEARNER_STEPS for one in times], "seconds": numbers.median(times) / LEARNER_STEPS, "peak_bytes": peak}
        times, peak = measured(lambda: train_on(tiny, size.network, recipe, NETWORKS), device)
    except RuntimeError as error:
        return {"reason": reason(error)}
    found |= {"plain_times": [one / LEARNER_STEPS for one in times], "plain_seconds": numbers.median(times) / LEARNER_STEPS}
    found |= {"plain_peak_bytes": peak, "ratio": found["plain_seconds"] / found["seconds"], "images_per_second": images / found["seconds"]}
    rate = found["flops"] / found["seconds"] / 1e9
    return {**found, "gflops": rate, "of_matmul": rate / matmul}


def reason(error: Exception) -> str:
    """Why a cell has no figures, in a few words."""
    return "out of memory" if isinstance(error, torch.OutOfMemoryError) else clipped(str(error).partition("\n")[0], 120)


def where(device: str) -> dict[str, Json]:
    """The machine and the versions, CUDA's too."""
    return {**environment(device), "cuda": torch.version.cuda}


def opened(path: Path, size: Size, device: str) -> Ledger:
    """The ledger in a file, or a new one. Raises `InputError` for one of another device, torch or size."""
    here: Ledger = {"size": cast(dict[str, Json], size._asdict()), "environment": where(device)}  # type: ignore[typeddict-item]
    here |= {"matmul_gflops": {}, "started": {}, "results": {}}
    if not path.exists():
        return here
    kept = cast(Ledger, read_json(path))
    for name in ("device", "gpu", "cuda", "packages"):
        if kept["environment"].get(name) != here["environment"][name]:
            given = clipped(kept["environment"].get(name), 80)
            raise InputError(
                f"{path}: was measured with {name} {given}, here it is {clipped(here['environment'][name], 80)}; give another."
            )
    if kept["size"]["network"] != size.network:
        raise InputError(f"{path}: is of network {kept['size']['network']!r}, not {size.network!r}; give another file.")
    return kept


def measure(cells: list[Cell], size: Size, device: str, path: Path, minutes: float) -> list[Cell]:
    """Measure the cells that the ledger does not have; those that are left when the minutes are over, or after an error of the device."""
    end, ledger = time.monotonic() + 60 * minutes, opened(path, size, device)
    todo = [cell for cell in cells if str(cell) not in ledger["results"]]
    for place, cell in enumerate(todo):
        if time.monotonic() > end:
            return todo[place:]
        name, attempts = str(cell), ledger["started"].get(str(cell), 0)
        if cell.precision not in ledger["matmul_gflops"]:
            ledger["matmul_gflops"][cell.precision] = matmul_gflops(device, cell.precision, size.matrix)
        ledger["started"][name] = attempts + 1
        write_json(path, ledger)
        if attempts < ATTEMPTS:
            ledger["results"][name] = row(cell, size, device, ledger["matmul_gflops"][cell.precision])
        else:
            ledger["results"][name] = {"reason": f"the process ended in each of {ATTEMPTS} attempts"}
        del ledger["started"][name]
        write_json(path, ledger)
        found = ledger["results"][name]
        print(f"{name}: {found.get('reason') or format(found['seconds'], '.4f') + ' s'}", flush=True)
        if device == "cuda" and not usable():
            return todo[place + 1 :]
    return []


def usable() -> bool:
    """Whether the device still computes: an error of a kernel spoils it for the rest of the process."""
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return False
    return True


def main(arguments: list[str] | None = None) -> None:
    """Measure what the ledger does not have, run the papers' settings, or write the page."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--methods", default=",".join([*METHODS, LEARNERS]))
    parser.add_argument("--precision", default="float32", help=f"of {', '.join(get_args(Precision))}, with commas between them")
    parser.add_argument("--minutes", type=float, default=9.0, help="no cell is started after them")
    parser.add_argument("--json", type=Path, default=Path("runs/gpu.json"))
    parser.add_argument("--papers", action="store_true")
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(arguments)
    if options.page:
        write_whole(PAGE, with_gpu(PAGE.read_text(), read_json(KEPT) if KEPT.exists() else None))
        return
    if options.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("no CUDA device here; --device cpu runs a tiny form that measures nothing.")
    if options.papers:
        reproduce.main(["--minutes", str(options.minutes), *(f"paper-{method}-cifar10-ipc10" for method in CHEAP_FIRST)])
        return
    size = FULL if options.device == "cuda" else TINY
    methods, precisions = options.methods.split(","), options.precision.split(",")
    for names, allowed, what in ((methods, (*METHODS, LEARNERS), "method"), (precisions, get_args(Precision), "precision")):
        for name in names:
            if name not in allowed:
                raise SystemExit(str(unknown_name(what, name, allowed)))
    cells = [Cell(m, classes, ipc, p) for p in precisions for m in methods for classes in size.classes for ipc in size.ipcs]
    if left := measure(cells, size, options.device, options.json, options.minutes):
        print(f"{len(left)} cells are left; the same command continues with: {left[0]}.")
    else:
        print("nothing is left to measure.")


if __name__ == "__main__":
    main()
