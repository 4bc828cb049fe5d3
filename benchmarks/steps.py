"""What decoding, calibration and other losses add to a step: python -m benchmarks.steps [--json FILE] [--rounds N] [--widths 64,128]
       [--classes N]

python -m benchmarks.steps --page        the second table of docs/speed.md from benchmarks/expected/steps.json

CIFAR-10 shapes, ten classes, ConvNet-3, 10 stored images per class, 128 real images per class, one augmentation for all, float32, one
thread, nothing compiled. The data and the pool's networks are random: the speed does not depend on their content. Seconds are of the
processor, so that other work on the machine counts less; all forms take turns, and a ratio is the median of those of the rounds.
"""

import argparse
import statistics as numbers
import time
from pathlib import Path
from typing import NamedTuple, TypedDict

import torch

from benchmarks.page import with_steps
from distill.data import ImageData, Split
from distill.decode import from_text
from distill.distiller import Distiller
from distill.experts import ExpertConfig, Trajectories
from distill.memory import keep_freed_memory
from distill.methods import METHODS
from distill.networks import Factory, create, parameter_count
from distill.randomness import generator
from distill.records import environment, read_json, write_json, write_whole
from distill.spec import DataSpec
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set

IPC, BATCH = 10, 128
KEPT = Path(__file__).parent / "expected" / "steps.json"
PAGE = Path(__file__).parents[1] / "docs" / "speed.md"


class Form(NamedTuple):
    """A method with its settings, the images per class that it stores, and the form that it is compared with."""

    method: str
    settings: dict[str, object]
    base: str
    ipc: int = IPC
    steps: int = 1  # that are measured together, because they differ


TWO: dict[str, object] = {"decode": "formation:2"}
ONE: dict[str, object] = {"decode": "none"}
FORMS = {
    "dm": Form("dm", ONE, ""),
    "dm, 40 images": Form("dm", ONE, "dm", ipc=40),
    "dm, formation:2": Form("dm", TWO, "dm, 40 images"),
    "dance, formation:2": Form("dance", TWO, "dm, formation:2"),
    "dance, formation:2, calibration_every 2": Form("dance", {**TWO, "calibration_every": 2}, "dm, formation:2", steps=2),
    "dance, formation:2, calibration_every 4": Form("dance", {**TWO, "calibration_every": 4}, "dm, formation:2", steps=4),
    "ncfm, formation:2, calibration 0": Form("ncfm", {**TWO, "calibration": 0.0}, "dm, formation:2"),
    "ncfm, formation:2": Form("ncfm", TWO, "dm, formation:2"),
    "ncfm, formation:2, distance mmd, calibration 0": Form("ncfm", {**TWO, "distance": "mmd", "calibration": 0.0}, "dm, formation:2"),
    "idc, 40 images": Form("idc", ONE, "dm, 40 images", ipc=40),
    "idc, formation:2": Form("idc", TWO, "idc, 40 images"),
}


class Statistics(ExactStatistics):
    """Statistics of the data, with trained networks of random weights in memory."""

    def trajectories(
        self, config: ExpertConfig, network: Factory, *, progress: bool | None = None, batch_real: int | None = None
    ) -> Trajectories:
        count = parameter_count(create(network, self.spec, generator(0, "count")))
        weights = 0.05 * torch.randn((2, 2, count), generator=generator(0, "trajectories"))
        return Trajectories(2, 1, lambda expert, epoch: weights[expert, epoch])


def made_data(classes: int) -> ImageData:
    draws = generator(0, "benchmark")
    spec = DataSpec("made", 3, 32, 32, tuple(str(c) for c in range(classes)), (0.5,) * 3, (0.25,) * 3)
    images = torch.randint(0, 256, (BATCH * classes, 3, 32, 32), generator=draws, dtype=torch.uint8)
    train = Split(images, torch.arange(classes).repeat_interleave(BATCH))
    return ImageData(spec, train, train.at(torch.arange(0)), train.at(torch.arange(0)))


class Measured:
    """One form's method, ready for its next steps."""

    def __init__(self, form: Form, data: ImageData, width: int) -> None:
        kind, method = METHODS[form.method]
        common = {"network": f"ConvNetW{width}", "batch_real": BATCH, "augmentation": "color_crop_cutout", "compile": "off"}
        config = kind(**common, **form.settings)
        self.statistics, self.steps, self.draws = Statistics(data), form.steps, generator(0, "steps")
        start = initial_set(self.statistics, "noise", form.ipc, generator(1, "images"), from_text(config.decode))
        self.method: Distiller = method(config, start)

    def seconds(self) -> float:
        """Processor seconds of a step."""
        start = time.process_time()
        for _ in range(self.steps):
            self.method.step(self.statistics, self.draws)
        return (time.process_time() - start) / self.steps


class Row(TypedDict, total=False):
    times: list[float]
    seconds: float
    base: str
    ratio: float


def measure(data: ImageData, width: int, rounds: int, chosen: list[str]) -> dict[str, Row]:
    """For each form its median seconds, and the median of its ratios to the form that it is compared with, in the same round."""
    made = {name: Measured(FORMS[name], data, width) for name in chosen}
    rows: dict[str, Row] = {name: {"times": []} for name in chosen}
    for place in range(rounds):
        for name, form in made.items():
            rows[name]["times"].append(form.seconds())
            print(f"width {width}, round {place + 1}: {name:40}{rows[name]['times'][-1]:8.3f} s", flush=True)
    for name, row in rows.items():
        row["seconds"], base = numbers.median(row["times"]), FORMS[name].base
        if base in rows:
            ratios = [ours / other for ours, other in zip(row["times"], rows[base]["times"], strict=True)]
            row |= {"base": base, "ratio": numbers.median(ratios)}
        print(f"width {width}: {name:40}{row['seconds']:8.3f} s{row.get('ratio', 1):8.2f} x {base}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file; widths that it holds already stay in it")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--classes", type=int, default=10, help="a step computes them one after the other")
    parser.add_argument("--widths", default="64,128")
    parser.add_argument("--only", default=";".join(FORMS), help="names of forms, with ; between them")
    options = parser.parse_args()
    if options.page:
        write_whole(PAGE, with_steps(PAGE.read_text(), read_json(KEPT)))
        return
    keep_freed_memory()
    torch.set_num_threads(1)
    data = made_data(options.classes)
    for width in options.widths.split(","):
        rows = measure(data, int(width), options.rounds, options.only.split(";"))
        if options.json:
            earlier = read_json(options.json)["results"] if options.json.exists() else {}
            facts = {"ipc": IPC, "batch_real": BATCH, "classes": options.classes, "threads": 1}
            write_json(options.json, {**facts, "results": {**earlier, width: rows}, "environment": environment("cpu")})


if __name__ == "__main__":
    main()
