"""One network trained on one set and measured: a job in, a flat row out, whatever happens."""

import math
import time
from dataclasses import dataclass
from typing import Literal, Protocol, TypedDict

import torch

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError, clipped
from distill.evaluation import accuracy
from distill.networks import Factory, flops, parameter_count
from distill.train import Recipe, train_network

WHOLE = "whole"
RowName = tuple[str, str, int, str]  # stage, id, seed, key


class Row(TypedDict, total=False):
    """One line of a study's file: which network, trained or scored how, and what came of it.

    ``stage``, ``id``, ``seed`` and ``key`` name the row. ``status`` is "ok", or "failed" with a ``reason``. Accuracies are in percent,
    ``seconds`` wall time and ``cpu_seconds`` processor time. ``limit`` is the time limit in seconds that the network exceeded,
    ``left_seconds`` an estimate for the whole study (in progress reports only), ``steps`` belongs to rows of the stage "plan".
    """

    stage: str
    id: str
    seed: int
    key: str
    status: str
    reason: str
    validation: float
    test: float
    seconds: float
    cpu_seconds: float
    parameters: int
    flops: int
    score: float | None
    steps: int
    limit: float
    left_seconds: float


@dataclass(frozen=True)
class Shelf:
    """The data that networks are trained and measured on; each worker gets one copy.

    Args:
        data: real images with validation and test splits.
        sets: condensed sets by name.
        batch: real images (n, C, H, W), normalised, on the CPU, and their labels (n,), for the zero-cost scores.
    """

    data: ImageData
    sets: dict[str, CondensedSet]
    batch: tuple[torch.Tensor, torch.Tensor] | None = None

    def source(self, name: str) -> ImageData | CondensedSet:
        """The set called ``name``, or all data for `WHOLE`."""
        return self.data if name == WHOLE else self.sets[name]

    def to(self, device: torch.device | str) -> "Shelf":
        """The same on ``device``."""
        return Shelf(self.data.to(device), {name: condensed.to(device) for name, condensed in self.sets.items()}, self.batch)


class Task(Protocol):
    """The work of a worker for one network. ``stage``, ``id``, ``seed`` and ``key`` name the row in the ledger."""

    @property
    def stage(self) -> str: ...
    @property
    def id(self) -> str: ...
    @property
    def seed(self) -> int: ...
    @property
    def key(self) -> str: ...
    @property
    def name(self) -> RowName: ...

    def row(self, shelf: Shelf) -> Row:
        """Do the work. It runs foreign code (the network), so only a worker calls it."""
        ...

    def images(self, shelf: Shelf) -> int:
        """The number of images that pass through the network; the remaining time is estimated from it."""
        ...


@dataclass(frozen=True)
class Job:
    """Train one network and measure it.

    Args:
        stage: the proxy (or "truth") that the result belongs to.
        id: the network's id.
        network: its name, or a function of the `DataSpec` that returns a module.
        source: the name of a set on the shelf, or "whole" for the training split.
        seed: of weights and batches.
        recipe: how it is trained.
        key: hash of data and recipe; with ``stage``, ``id`` and ``seed`` it names the row in the ledger.
        splits: the splits that are measured.
    """

    stage: str
    id: str
    network: Factory
    source: str
    seed: int
    recipe: Recipe
    key: str
    splits: tuple[str, ...] = ("validation",)

    def __post_init__(self) -> None:
        if self.recipe.teacher is not None:
            raise InputError(
                "a ranking's recipe has a teacher; give sets with its labels (distill.teachers.labelled), the same for all networks."
            )

    @property
    def name(self) -> RowName:
        """The key of the row in the ledger."""
        return self.stage, self.id, self.seed, self.key

    def row(self, shelf: Shelf) -> Row:
        """See `measure`."""
        return measure(self, shelf)

    def images(self, shelf: Shelf) -> int:
        """The number of training images, counted once per pass."""
        source = shelf.source(self.source)
        count = len(source.train) if isinstance(source, ImageData) else len(source)
        epoch = -(-count // self.recipe.batch_size)
        steps = min(self.recipe.epochs * epoch, self.recipe.max_steps or self.recipe.epochs * epoch)
        return steps * min(self.recipe.batch_size, count)


def measure(job: Job, shelf: Shelf) -> Row:
    """Train and measure one network. An error of the network, or weights that are not finite, give a row with ``status`` "failed".

    Args:
        job: the network, its training set, recipe and seed. The caller has checked the input of the study itself.
        shelf: the data and condensed sets.

    Returns:
        The row: accuracies in percent by split, seconds, number of parameters, FLOPs per image.
    """
    wall, processor = time.perf_counter(), time.process_time()
    try:
        network = train_network(shelf.source(job.source), job.network, job.recipe, job.seed)
        sizes: Row = {"parameters": parameter_count(network), "flops": flops(network, shelf.data.spec)}
        if not all(bool(torch.isfinite(tensor).all()) for tensor in network.state_dict().values()):
            return {**failed(job, "diverged: weights are not finite"), **sizes, **_seconds(wall, processor)}
        row: Row = {**_name(job), "status": "ok"}
        for split in job.splits:
            row["validation" if split == "validation" else "test"] = accuracy(network, shelf.data, split)
        return {**row, **sizes, **_seconds(wall, processor)}
    except Exception as error:  # one network that cannot be built, or is too large, must not end the study
        return {**failed(job, reason_of(error)), **_seconds(wall, processor)}


def warm(shelf: Shelf) -> None:
    """Train one small network, so that the time for loading kernels and optimisers is not counted as the first network's cost."""
    measure(Job("warm", "warm", "ConvNetW4D1NP", WHOLE, 0, Recipe(max_steps=1, batch_size=8, compile="off"), ""), shelf)


def reason_of(error: Exception) -> str:
    """The text of an exception for a row, with its type unless it is an `InputError`."""
    return str(error) if isinstance(error, InputError) else f"{type(error).__name__}: {error}"


def failed(job: Task, reason: str) -> Row:
    """The row of a network without a result; ``reason`` is cut to one line of 200 characters."""
    return {**_name(job), "status": "failed", "reason": clipped(" ".join(reason.split()), 200)}


def given_up(job: Task, limit: float) -> Row:
    """The row of a network that took longer than ``limit`` seconds; with a larger limit the ledger trains it again."""
    return {**failed(job, f"took longer than {limit:g} s"), "limit": limit}


def _name(job: Task) -> Row:
    return {"stage": job.stage, "id": job.id, "seed": job.seed, "key": job.key}


def _seconds(wall: float, processor: float) -> Row:
    # On a busy machine only processor time says what a network costs; on a GPU only wall time does.
    return {"seconds": round(time.perf_counter() - wall, 4), "cpu_seconds": round(time.process_time() - processor, 4)}


def score(row: Row, split: Literal["validation", "test"]) -> float:
    """The accuracy of a row on ``split`` in percent; NaN if the network failed or was not measured there."""
    value = row.get(split)
    return float(value) if row.get("status") == "ok" and isinstance(value, int | float) else math.nan
