"""How long a condensed buffer takes to read an experience of 11,000 MNIST items: python -m benchmarks.reading [--json FILE]

As tensors, which are taken at once, and with a transform, each compared with one pass of a DataLoader. Processor seconds of one thread.
"""

import argparse
import collections
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import cast

import torch
from torch.utils.data import DataLoader

import distill
from apps.continual.engine import avalanche
from apps.continual.protocols import AvalancheData
from apps.continual.reading import read
from apps.continual.strategies import benchmark
from distill.records import environment, write_json

ITEMS, ROUNDS = 11_000, 7


def seconds(work: Callable[[], object]) -> float:
    """Processor seconds of a call."""
    start = time.process_time()
    work()
    return time.process_time() - start


def shift(image: torch.Tensor) -> torch.Tensor:
    """A transform that costs little."""
    return image - 0.5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = distill.load("mnist")
    (experience,) = benchmark([dataclasses.replace(data, train=data.train.at(torch.arange(ITEMS)))]).train_stream
    tensors, layout = experience.dataset, cast(Callable[..., AvalancheData], type(experience.dataset))
    shifted = layout([tensors], transform_groups=avalanche("avalanche.benchmarks.utils").TransformGroups({"eval": shift}))
    forms = {"tensors": tensors, "with a transform": shifted}
    taken: dict[str, list[float]] = {}
    for _ in range(ROUNDS):
        for form, dataset in forms.items():
            taken.setdefault(f"read, {form}", []).append(seconds(functools.partial(read, dataset)))
            loader: DataLoader[object] = DataLoader(dataset.eval(), batch_size=256)  # type: ignore[arg-type]
            taken.setdefault(f"DataLoader, {form}", []).append(seconds(functools.partial(collections.deque, loader, 0)))
    for form, values in taken.items():
        print(f"{form}: median {statistics.median(values):.3f} s of {ROUNDS}")
    if options.json:
        write_json(options.json, {"environment": environment("cpu"), "items": ITEMS, "seconds": taken})


if __name__ == "__main__":
    main()
