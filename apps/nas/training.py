"""One network trained on one set and measured: a job in, a flat row out, whatever happens."""

import math
import time
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError, clipped
from distill.evaluation import accuracy
from distill.networks import Factory, flops, parameter_count
from distill.train import Recipe, train_network

WHOLE = "whole"


@dataclass(frozen=True)
class Shelf:
    """What networks are trained and measured on: the data, condensed sets by name, and one batch of real images (normalised, on the CPU)
    with its labels for the zero-cost scores. Workers get a copy once."""

    data: ImageData
    sets: dict[str, CondensedSet]
    batch: tuple[torch.Tensor, torch.Tensor] | None = None

    def source(self, name: str) -> ImageData | CondensedSet:
        """The set called ``name``, or all data for `WHOLE`."""
        return self.data if name == WHOLE else self.sets[name]

    def to(self, device: torch.device | str) -> "Shelf":
        """The same on ``device``."""
        return Shelf(self.data.to(device), {name: one.to(device) for name, one in self.sets.items()}, self.batch)


class Task(Protocol):
    """What a worker does for one network. ``stage``, ``id``, ``seed`` and ``key`` name the row in the ledger."""

    @property
    def stage(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def name(self) -> tuple[str, str, int, str]: ...

    def row(self, shelf: Shelf) -> dict[str, Any]:
        """The work itself. It runs foreign code (the network), so only a worker calls it."""
        ...

    def images(self, shelf: Shelf) -> int:
        """How many images pass through the network: what the time left is estimated by."""
        ...


@dataclass(frozen=True)
class Job:
    """Train ``network`` on ``source`` (a set's name on the shelf, or "whole") and measure it.

    ``stage`` and ``key`` say for which proxy and under which data and recipe; with ``id`` and ``seed`` they name the row in the ledger.
    """

    stage: str
    id: str
    network: Factory
    source: str
    seed: int
    recipe: Recipe
    key: str
    splits: tuple[str, ...] = ("validation",)

    @property
    def name(self) -> tuple[str, str, int, str]:
        """What a ledger finds its row by."""
        return self.stage, self.id, self.seed, self.key

    def row(self, shelf: Shelf) -> dict[str, Any]:
        """See `measure`."""
        return measure(self, shelf)

    def images(self, shelf: Shelf) -> int:
        """Training images, one for each time it is seen."""
        source = shelf.source(self.source)
        count = len(source.train) if isinstance(source, ImageData) else len(source)
        epoch = -(-count // self.recipe.batch_size)
        steps = min(self.recipe.epochs * epoch, self.recipe.max_steps or self.recipe.epochs * epoch)
        return steps * min(self.recipe.batch_size, count)


def measure(job: Job, shelf: Shelf) -> dict[str, Any]:
    """The job's row: accuracies in percent by split, wall and processor seconds, parameters, FLOPs; ``status`` "ok", or "failed" with a
    ``reason``: an error, weights that are no longer finite. Wrong input of the study itself is the caller's to check before."""
    wall, processor = time.perf_counter(), time.process_time()
    try:
        network = train_network(shelf.source(job.source), job.network, job.recipe, job.seed)
        sizes = {"parameters": parameter_count(network), "flops": flops(network, shelf.data.spec)}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
            return {**failed(job, "diverged: weights are not finite"), **sizes, **_seconds(wall, processor)}
        found = {split: accuracy(network, shelf.data, split) for split in job.splits}
        return {**_name(job), "status": "ok", **found, **sizes, **_seconds(wall, processor)}
    except Exception as error:  # one network that cannot be built, or is too large, must not end the study
        return {**failed(job, reason_of(error)), **_seconds(wall, processor)}


def warm(shelf: Shelf) -> None:
    """Do once what a process does once (loading kernels and optimisers), so that it is not counted as the first network's cost."""
    measure(Job("warm", "warm", "ConvNetW4D1NP", WHOLE, 0, Recipe(max_steps=1, batch_size=8, compile="off"), ""), shelf)


def reason_of(error: Exception) -> str:
    """An exception as the reason of a row; `InputError` speaks for itself."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def failed(job: Task, reason: str) -> dict[str, Any]:
    """The row of a network that has no accuracy, with the reason in one line."""
    return {**_name(job), "status": "failed", "reason": clipped(" ".join(reason.split()), 200)}


def given_up(job: Task, limit: float) -> dict[str, Any]:
    """The row of a network that took longer than ``limit`` seconds; with a larger limit the ledger asks for it again."""
    return {**failed(job, f"took longer than {limit:g} s"), "limit": limit}


def _name(job: Task) -> dict[str, Any]:
    return {"stage": job.stage, "id": job.id, "seed": job.seed, "key": job.key}


def _seconds(wall: float, processor: float) -> dict[str, float]:
    # On a busy machine only processor time says what a network costs; on a GPU only wall time does.
    return {"seconds": round(time.perf_counter() - wall, 4), "cpu_seconds": round(time.process_time() - processor, 4)}


def score(row: dict[str, Any], split: str) -> float:
    """The row's accuracy, NaN where the network failed or was not measured on that split."""
    value = row.get(split)
    return float(value) if row.get("status") == "ok" and isinstance(value, int | float) else math.nan
