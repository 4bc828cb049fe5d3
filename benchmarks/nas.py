"""Networks an hour with one worker process and with several: python -m benchmarks.nas [--json FILE] [--workers 2] [--rounds N]

The smallest and the largest networks of `nas-small`'s space, trained on synthetic images of FashionMNIST's shape by `apps.nas.workers`, as
in every study. The numbers of workers take turns. The seconds include the start of the processes; "steady" counts from the first finished
network on.
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from apps.nas.space import Grid
from apps.nas.training import WHOLE, Job, Shelf
from apps.nas.workers import Crew, rows
from distill.data import ImageData, Split
from distill.memory import keep_freed_memory
from distill.randomness import generator
from distill.records import environment, write_json
from distill.spec import DataSpec
from distill.train import Recipe

AT_LEAST = 1.8  # times the throughput of one worker, for two on two idle cores


def made_data(images: int = 2000) -> ImageData:
    """Random images in ten classes; a tenth of them is the validation split."""
    spec = DataSpec("made", 1, 28, 28, tuple(map(str, range(10))), (0.5,), (0.25,))
    pixels = torch.randint(0, 256, (images, 1, 28, 28), generator=generator(0, "benchmark"), dtype=torch.uint8)
    images_and_labels, tenth = Split(pixels, torch.arange(images) % 10), torch.arange(images // 10)
    held_out = images_and_labels.at(tenth)
    return ImageData(spec, images_and_labels, held_out, held_out)


def jobs(steps: int) -> list[Job]:
    """24 networks; large and small ones alternate, so that no large one is left for the end."""
    candidates = Grid((32, 64), (1, 2, 3), ("none", "instance"), ("relu",), ("max", "avg")).candidates()
    order = [candidate for pair in zip(candidates, reversed(candidates), strict=True) for candidate in pair][: len(candidates)]
    recipe = Recipe(max_steps=steps, epochs=1000, batch_size=32, lr=0.02, augmentation="none", compile="off")
    return [Job("benchmark", candidate.id, candidate.network, WHOLE, 0, recipe, "") for candidate in order]


def seconds(steps: int, shelf: Shelf, workers: int) -> dict[str, float]:
    """Wall seconds for all networks, and for those after the first."""
    start, ends, listed = time.perf_counter(), [], jobs(steps)
    for row in rows(listed, shelf, Crew(workers=workers)):
        if row["status"] != "ok":
            raise SystemExit(f"{row['id']}: {row.get('reason')}")
        ends.append(time.perf_counter())
    return {"wall": ends[-1] - start, "steady": (ends[-1] - ends[0]) / (len(ends) - 1)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    options = parser.parse_args()
    keep_freed_memory()
    shelf = Shelf(made_data(), {})
    taken: dict[int, list[dict[str, float]]] = {1: [], options.workers: []}
    for _ in range(options.rounds):
        for workers, rounds in taken.items():
            rounds.append(seconds(options.steps, shelf, workers))
            print(f"{workers} workers: {rounds[-1]['wall']:.1f} s, {rounds[-1]['steady']:.2f} s a network when running", flush=True)
    ratio = {
        part: statistics.median(r[part] for r in taken[1]) / statistics.median(r[part] for r in taken[options.workers])
        for part in ("wall", "steady")
    }
    target = f" (target for two on two idle cores: {AT_LEAST})" if options.workers == 2 else ""
    print(f"{options.workers} workers: {ratio['wall']:.2f} times the throughput of one{target}, {ratio['steady']:.2f} without the start")
    if options.json:
        result: dict[str, object] = {
            "environment": environment("cpu"),
            "networks": len(jobs(1)),
            "steps": options.steps,
            "seconds": {str(workers): rounds for workers, rounds in taken.items()},
            "ratio": ratio,
        }
        write_json(options.json, result)


if __name__ == "__main__":
    main()
