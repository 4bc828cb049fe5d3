"""Judge a set honestly: several seeds, the last epoch, an interval, and the same recipe for its rivals."""

import statistics as numbers
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import scipy.stats
import torch
from rich.console import Console
from torch import nn

from distill.condensed import CondensedSet
from distill.coresets import CORESETS, select
from distill.data import ImageData, Split
from distill.errors import InputError, unknown_name
from distill.fast import Compile, Precision, accelerated
from distill.networks import Factory, flops
from distill.randomness import generator
from distill.statistics import chunk_size
from distill.train import Recipe, protocol, train_network

BASELINES = (*CORESETS, "whole")


@dataclass(frozen=True)
class Accuracy:
    """Test accuracies in percent, one per seed, with the mean and its 95 % interval (Student's t over seeds; none for one seed)."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds, percent."""
        return numbers.fmean(self.values)

    @property
    def half_width(self) -> float:
        """Half the interval's length; NaN for a single seed, which says nothing about spread."""
        if len(self.values) < 2:
            return float("nan")
        return float(scipy.stats.t.ppf(0.975, len(self.values) - 1) * numbers.stdev(self.values) / len(self.values) ** 0.5)

    @property
    def low(self) -> float:
        """Lower end of the 95 % interval, percent, at least 0; NaN for a single seed."""
        return max(0.0, self.mean - self.half_width) if len(self.values) > 1 else float("nan")

    @property
    def high(self) -> float:
        """Upper end of the 95 % interval, percent, at most 100; NaN for a single seed."""
        return min(100.0, self.mean + self.half_width) if len(self.values) > 1 else float("nan")

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.half_width:.1f}" if len(self.values) > 1 else f"{self.mean:.1f}"

    def as_dict(self) -> dict[str, object]:
        """For records: ``low`` and ``high`` are None for a single seed."""
        several = len(self.values) > 1
        ends = {"low": self.low if several else None, "high": self.high if several else None}
        return {"mean": self.mean, **ends, "values": list(self.values)}


@dataclass(frozen=True)
class Evaluation:
    """Accuracies by set and network: ``rows["condensed"]["ConvNet"]``. Prints itself as a table."""

    rows: dict[str, dict[str, Accuracy]]
    split: str
    recipe: Recipe

    def __str__(self) -> str:
        names = list(next(iter(self.rows.values())))
        width = max(len(name) for name in self.rows) + 2
        lines = [f"{self.split} accuracy, %".ljust(width) + "".join(name.rjust(16) for name in names)]
        width = len(lines[0]) - 16 * len(names)
        lines += [name.ljust(width) + "".join(str(row[n]).rjust(16) for n in names) for name, row in self.rows.items()]
        seeds = len(next(iter(next(iter(self.rows.values())).values())).values)
        return "\n".join([*lines, f"mean and 95 % interval over {seeds} network{'s' if seeds > 1 else ''}, last epoch, one recipe for all"])


def accuracy(
    network: nn.Module, data: ImageData, split: str = "test", *, precision: Precision = "float32", compile: Compile = "off"
) -> float:
    """Percentage of a split's images that the network labels rightly; no gradients, images normalised as used.

    ``precision`` and ``compile`` see `distill.fast`.
    """
    part: Split = getattr(data, split)
    if not len(part):
        raise InputError(f"data {data.spec.name!r} has no {split} images; allowed: a split that has some (load with validation=0.1).")
    network.eval()
    size = chunk_size(part.images) if data.device.type == "cpu" else 1024
    run = accelerated(network, data.device, flops(network, data.spec) * len(part), precision, compile)
    right = torch.zeros((), dtype=torch.int64, device=data.device)
    with torch.no_grad():
        for indices in torch.arange(len(part), device=data.device).split(size):
            right += (run(data.normalised(split, indices)).argmax(1) == part.labels[indices]).sum()
    return 100.0 * int(right) / len(part)


def learner_set(name: str, condensed: CondensedSet, data: ImageData, seed: int) -> CondensedSet | ImageData:
    """What a rival called ``name`` trains on: a coreset as large as the set (a new draw for each seed), or the whole training split."""
    if name == "whole":
        return data
    if name not in CORESETS:
        raise unknown_name("baseline", name, BASELINES)
    return select(data, name, condensed.ipc, generator(seed, "coreset", name, condensed.ipc))


def accuracies(
    condensed: CondensedSet,
    data: ImageData,
    names: Sequence[str],
    network: Factory,
    recipe: Recipe | str,
    seeds: Sequence[int],
    split: str = "test",
) -> Iterator[tuple[str, int, float]]:
    """(set, seed, accuracy) one by one as networks finish; the name "condensed" is the set itself, the others are baselines."""
    for name in names:
        for seed in seeds:
            source = condensed if name == "condensed" else learner_set(name, condensed, data, seed)
            yield name, seed, accuracy(train_network(source, network, recipe, seed, data.device), data, split)


def evaluate(
    condensed: CondensedSet,
    data: ImageData,
    *,
    network: Factory | Sequence[Factory] = "ConvNet",
    recipe: Recipe | str = "laptop",
    seeds: int | Sequence[int] = 5,
    baselines: Sequence[str] = ("random", "whole"),
    split: str = "test",
    progress: bool | None = None,
) -> Evaluation:
    """Accuracy of networks trained on a condensed set, beside the same networks trained on rivals under the same recipe.

    ``network`` may be a list (cross-architecture). Every number is that of the last step: nothing is ever picked by its accuracy.
    ``seeds`` is how many networks, or their seeds; accuracies are percent of ``split``. `InputError` when the set does not fit the data.
    """
    data = fitted(condensed, data)
    recipe = protocol(recipe, data.spec) if isinstance(recipe, str) else recipe
    list_of = list(range(seeds)) if isinstance(seeds, int) else list(seeds)
    if not list_of:
        raise InputError("seeds is empty; allowed: one or more.")
    factories: list[Factory] = list(network) if isinstance(network, list | tuple) else [network]  # type: ignore[list-item]
    names = ["condensed", *baselines]
    for name in baselines:
        if name not in BASELINES:
            raise unknown_name("baseline", name, BASELINES)
    found: dict[str, dict[str, list[float]]] = {name: {} for name in names}
    console = Console(stderr=True)
    with console.status("") as status:
        for factory in factories:
            label = factory if isinstance(factory, str) else getattr(factory, "__name__", "own network")
            for name, seed, value in accuracies(condensed, data, names, factory, recipe, list_of, split):
                found[name].setdefault(label, []).append(value)
                if progress is not False:
                    status.update(f"evaluating: {label} on {name}, seed {seed}: {value:.1f} %")
    return Evaluation({n: {k: Accuracy(tuple(v)) for k, v in row.items()} for n, row in found.items()}, split, recipe)


def fitted(condensed: CondensedSet, data: ImageData) -> ImageData:
    """The data as the set needs them: whitened by the set's own transform where it has one.

    Set and data must agree on shape, classes and normalisation, or accuracies mean nothing: `InputError` where they do not.
    """
    for name in ("channels", "height", "width", "classes"):
        ours, theirs = getattr(condensed.spec, name), getattr(data.spec, name)
        if ours != theirs:
            raise InputError(
                f"the set's {name} are {str(ours)[:80]} and those of data {data.spec.name!r} {str(theirs)[:80]}; "
                "give the data it was made from."
            )
    if not np.allclose([*condensed.spec.mean, *condensed.spec.std], [*data.spec.mean, *data.spec.std], atol=1e-3):
        raise InputError(
            f"the set is normalised with mean {condensed.spec.mean} and std {condensed.spec.std}; data {data.spec.name!r} with others."
        )
    if condensed.whitening is None and data.whitening is not None:
        raise InputError(f"the set is not white and data {data.spec.name!r} are; give the data without whitening.")
    return data if condensed.whitening is None else data.whitened(condensed.whitening)
