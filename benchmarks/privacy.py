"""Cost of privacy in time and memory: one release of per-example gradients, compared with the gradient of the same batch.

python -m benchmarks.privacy [--json FILE] [--rounds N] [--images 256] [--width 128] [--no-memory]

ConvNet-3 and synthetic MNIST-sized images of ten classes. "release" is all of `PrivateStatistics.class_gradients`: per-example gradients,
clipping, sums of ten classes, noise from the operating system; "rows" is the same without noise. The plain gradient of the mean loss is
computed for the batch in one piece, as in a user's script, and in pieces that fit the cache, as in the core. Forms take turns; medians over
rounds. Memory is the peak of a new process that makes one release, for several batch sizes. Apart from the images it must not grow with
the batch, because gradients of `GRADIENT_CHUNK` examples are in memory at once.
"""

import argparse
import functools
import statistics as numbers
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

from apps.privacy.contributions import GRADIENT_CHUNK, clipped, gradient_rows
from apps.privacy.private_statistics import PrivateStatistics
from benchmarks.core import seconds
from distill.batches import mean_gradient
from distill.data import ImageData, Split
from distill.memory import keep_freed_memory
from distill.networks import create, parameter_count
from distill.randomness import generator
from distill.records import environment, peak_memory_bytes, write_json
from distill.spec import DataSpec

AT_MOST = 3.0  # times the plain batch gradient
CLASSES = 10


class Setting:
    """Synthetic images, a network, and the compared forms."""

    def __init__(self, images: int, width: int) -> None:
        spec = DataSpec("made", 1, 28, 28, tuple(str(c) for c in range(CLASSES)), (0.5,), (0.25,), "given", "given")
        pixels = torch.randint(0, 256, (images, 1, 28, 28), generator=generator(0, "benchmark"), dtype=torch.uint8)
        train = Split(pixels, torch.arange(images) % CLASSES)
        nothing = train.at(torch.zeros(0, dtype=torch.int64))
        self.data = ImageData(spec, train, nothing, nothing)
        self.network = create(f"ConvNetW{width}", spec, generator(0, "network"))
        self.parameters = list(self.network.parameters())
        self.size = images
        self.batch = self.data.normalised("train", torch.arange(images)), train.labels

    def plain(self) -> None:
        torch.autograd.grad(F.cross_entropy(self.network(self.batch[0]), self.batch[1]), self.parameters)

    def pieces(self) -> None:
        mean_gradient(self.network, *self.batch)

    def rows(self) -> None:
        sums = torch.zeros(parameter_count(self.network), dtype=torch.float64)
        for row in gradient_rows(self.network, *self.batch):
            sums += clipped(row, 1.0).sum(0, dtype=torch.float64)

    def statistics(self) -> PrivateStatistics:
        """New for each measurement, because repeated queries are answered from memory; the noise scale is computed before the timing."""
        private = PrivateStatistics(self.data, 1.0, releases=1, sample_rate=1.0, population=self.size, clip=1.0)
        private._planned(self.size)
        return private

    def release(self, statistics: PrivateStatistics) -> None:
        statistics.class_gradients(self.network, self.size, None, generator(0, "unused"))


def measure(images: int, width: int, rounds: int) -> dict[str, dict[str, float]]:
    setting = Setting(images, width)
    forms: dict[str, Callable[[], object]] = {"plain": setting.plain, "plain, in pieces": setting.pieces, "rows": setting.rows}
    times: dict[str, list[float]] = {name: [] for name in (*forms, "release")}
    for place in range(rounds + 1):  # the first round warms up
        for name in times:
            statistics = setting.statistics()
            taken = seconds(forms[name] if name in forms else functools.partial(setting.release, statistics), "cpu")
            if place:
                times[name].append(taken)
    base = numbers.median(times["plain"])
    results = {name: {"seconds": numbers.median(taken), "ratio": numbers.median(taken) / base} for name, taken in times.items()}
    for name, row in results.items():
        print(f"{name:18}{row['seconds']:9.3f} s{row['ratio']:8.2f} x plain", flush=True)
    return results


def memory_of(images: int, width: int) -> int:
    """Peak resident bytes of a new process that makes one release of ``images`` images."""
    code = f"from benchmarks.privacy import alone; alone({images}, {width})"
    return int(subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()[-1])


def alone(images: int, width: int) -> None:
    setting = Setting(images, width)
    setting.release(setting.statistics())
    print(peak_memory_bytes())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--no-memory", action="store_true")
    options = parser.parse_args()
    keep_freed_memory()
    results = measure(options.images, options.width, options.rounds)
    verdict = "within" if results["release"]["ratio"] <= AT_MOST else "NOT within"
    print(f"a release costs {results['release']['ratio']:.2f} times the plain batch gradient: {verdict} {AT_MOST:g} times")
    record: dict[str, object] = {
        "images": options.images,
        "width": options.width,
        "rounds": options.rounds,
        "chunk": GRADIENT_CHUNK,
        "times": results,
    }
    if not options.no_memory:
        peaks = {str(count): memory_of(count, options.width) for count in (options.images, 4 * options.images)}
        record["peak_bytes"] = peaks
        print("peak memory: " + ", ".join(f"{count} images {peak / 1e9:.2f} GB" for count, peak in peaks.items()))
    if options.json:
        write_json(options.json, {**record, "environment": environment("cpu")})


if __name__ == "__main__":
    main()
