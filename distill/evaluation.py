"""Evaluate a set: several seeds, the last epoch, an interval, and baselines of the same size under the same recipe."""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from rich.console import Console
from torch import nn

from distill.batches import chunk_size
from distill.comparison import BASELINES as BASELINES
from distill.comparison import (
    Training,
    compared,
    coreset_of,
    learner_set,
    no_baseline,
    notes_on,
    recipe_of,
    row_label,
    rows_of,
    training_of,
)
from distill.condensed import CondensedSet
from distill.coresets import train_scorer
from distill.data import SPLITS, ImageData, Split
from distill.errors import Diverged, InputError, clipped, unknown_name
from distill.fast import Compile, Precision, accelerated
from distill.measured import Accuracy as Accuracy
from distill.measured import Measured as Measured
from distill.measured import summed_up as summed_up
from distill.networks import Factory, flops
from distill.randomness import whole_seed
from distill.scored_coresets import Scorer
from distill.teachers import teacher_for
from distill.tf32 import products
from distill.train import Recipe, train_network, training
from distill.train_as_one import at_once, train_as_one

LOOKS = 20  # tests during a training whose best accuracy is asked for, as NCFM's every 100 of 2,000 epochs
NOT_FINITE = "the network's outputs are NaN or infinite: its training diverged (use a smaller lr), or its own arithmetic is at fault."


@dataclass(frozen=True)
class Evaluation:
    """Accuracies by set and network; ``print`` shows them as a table.

    Attributes:
        rows: for example ``rows["condensed"]["ConvNet"]``.
        split: the split that was tested.
        recipe: of the first network.
        training: by set, how its networks were trained.
        notes: differences between rows: sizes, step sizes, recipes.
    """

    rows: dict[str, dict[str, Accuracy]]
    split: str
    recipe: Recipe
    training: dict[str, Training] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def table(self) -> list[list[str]]:
        """Header and rows as texts: one row per set, one column per network."""
        names = list(next(iter(self.rows.values())))
        labels = {name: row_label(name, self.training[name].as_dict() if name in self.training else {}) for name in self.rows}
        return [[f"{self.split} accuracy, %", *names], *([labels[name], *(str(row[n]) for n in names)] for name, row in self.rows.items())]

    def remarks(self) -> list[str]:
        """Sentences below the table: what rows do not share, failures, the interval, the recipe."""
        seeds = len(next(iter(next(iter(self.rows.values())).values())).values)
        failed = [f"failed: {name}, {n}: {one.reason}" for name, row in self.rows.items() for n, one in row.items() if one.failed]
        over = f"mean and 95 % interval over {seeds} network{'s' if seeds > 1 else ''}, last epoch"
        best = [best_line(f"{name}, {n}", one, self.split) for name, row in self.rows.items() for n, one in row.items() if one.best]
        return [*self.notes, *failed, *best, over, f"one recipe for all: {self.recipe}"]

    def __str__(self) -> str:
        header, *rows = self.table()
        width = max(len(header[0]), max(len(row[0]) for row in rows) + 2)
        lines = [first.ljust(width) + "".join(cell.rjust(16) for cell in cells) for first, *cells in (header, *rows)]
        return "\n".join([*lines, *self.remarks()])


def best_line(what: str, row: Accuracy, split: str) -> str:
    """What the best of several tests is, and that it is no estimate: it was selected on the images that it is measured on."""
    assert row.best is not None
    return (
        f"selected on the {split} set, only to reproduce published figures: {what}: {Accuracy(row.best)} (best of {LOOKS} tests a network)"
    )


def _part(data: ImageData, split: str) -> Split:
    """The images of a split, which must have some."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)
    part: Split = getattr(data, split)
    if not len(part):
        raise InputError(f"data {data.spec.name!r} has no {split} images; allowed: a split that has some (load with validation=0.1).")
    return part


def accuracy(
    network: nn.Module, data: ImageData, split: str = "test", *, precision: Precision = "float32", compile: Compile = "off"
) -> float:
    """Percentage of a split's images that the network labels rightly; no gradients, images normalised as used.

    ``precision`` and ``compile`` see `distill.fast`. Raises `Diverged` where outputs are NaN or infinite: the largest of them names a
    class all the same, and the accuracy would be that of chance.
    """
    part = _part(data, split)
    network.eval()
    size = chunk_size(part.images)
    run = accelerated(network, data.device, flops(network, data.spec) * len(part), precision, compile)
    right = torch.zeros((), dtype=torch.int64, device=data.device)
    finite = torch.ones((), dtype=torch.bool, device=data.device)
    with torch.no_grad(), products(precision, data.device):
        for indices in torch.arange(len(part), device=data.device).split(size):
            outputs = run(data.normalised(split, indices))
            finite &= outputs.isfinite().all()
            right += (outputs.argmax(1) == part.labels[indices]).sum()
    both: list[int] = torch.stack([finite.long(), right]).tolist()  # read once, after the last batch: a read makes a GPU wait
    if not both[0]:
        raise Diverged(NOT_FINITE)
    return 100.0 * both[1] / len(part)


def accuracies(
    condensed: CondensedSet,
    data: ImageData,
    names: Sequence[str],
    network: Factory,
    recipe: Recipe | str,
    seeds: Sequence[int],
    *,
    split: str = "test",
    whole_epochs: int | None = None,
    teacher: nn.Module | None = None,
    scorer: Scorer | None = None,
    best: bool = False,
) -> Iterator[Measured]:
    """Yield each network's accuracy when it is trained.

    Args:
        condensed: the set.
        data: the data it was made from.
        names: rows to train for: "condensed" (the set itself) or names of baselines.
        network: evaluation network.
        recipe: see `compared`.
        seeds: seeds of the networks, one network each.
        split: the split that is tested.
        whole_epochs: epochs of the baseline "whole"; None: the recipe's.
        teacher: the trained network of the recipe's teacher; None: it is trained on the data.
        scorer: see `distill.coresets.select`.
        best: also test each network `LOOKS` times during its training and keep the best accuracy.
    """
    same = compared(recipe, condensed, data, network)
    teacher = teacher or (teacher_for(same.teacher, condensed, data, progress=False) if seeds else None)
    for name in names:
        own = recipe_of(name, same, whole_epochs)
        if best:
            for seed in seeds:
                source = condensed if name == "condensed" else learner_set(name, condensed, data, seed, scorer)
                networks = training(source, network, own, seed, data.device, teacher=teacher if own.teacher else None, looks=LOOKS)
                tests = [_tested(name, seed, trained, data, split) for trained in networks]
                values = [one.value for one in tests if one.reason is None]
                yield tests[-1]._replace(best=max(values, default=None))
            continue
        for seed, trained in learners(condensed, data, name, network, own, seeds, teacher if own.teacher else None, scorer=scorer):
            yield _tested(name, seed, trained, data, split)


def _tested(name: str, seed: int, network: nn.Module, data: ImageData, split: str) -> Measured:
    try:
        return Measured(name, seed, accuracy(network, data, split))
    except Diverged as error:
        return Measured(name, seed, math.nan, str(error))


def learners(
    condensed: CondensedSet,
    data: ImageData,
    name: str,
    network: Factory,
    recipe: Recipe,
    seeds: Sequence[int],
    teacher: nn.Module | None,
    *,
    scorer: Scorer | None = None,
) -> Iterator[tuple[int, nn.Module]]:
    """The trained networks of one row by seed, on the data's device; several as one where `at_once` has more than one."""

    def source(seed: int) -> CondensedSet | ImageData:
        return condensed if name == "condensed" else learner_set(name, condensed, data, seed, scorer)

    together = at_once(condensed.to(data.device), network, recipe, len(seeds)) if name != "whole" else 1
    for group in (seeds[place : place + together] for place in range(0, len(seeds), together)):
        if len(group) == 1:
            yield group[0], train_network(source(group[0]), network, recipe, group[0], data.device, teacher=teacher)
        else:
            sets = [one.to(data.device) for one in map(source, group) if isinstance(one, CondensedSet)]
            yield from zip(group, train_as_one(sets, network, recipe, group), strict=True)


def evaluate(
    condensed: CondensedSet,
    data: ImageData,
    *,
    network: Factory | Sequence[Factory] = "ConvNet",
    recipe: Recipe | str = "laptop",
    seeds: int | Sequence[int] = 5,
    baselines: Sequence[str] = ("random", "whole"),
    split: str = "test",
    whole_epochs: int | None = None,
    scorer: Scorer | None = None,
    best: bool = False,
    progress: bool | None = None,
) -> Evaluation:
    """Compare a condensed set with baselines: accuracy of networks trained on each under the same recipe.

    Every accuracy is that of the last step; none is selected by its value, except in the further lines that ``best`` asks for.

    Args:
        condensed: the set.
        data: the data it was made from.
        network: evaluation network: a name, a function of the data spec, or a list of these (cross-architecture).
        recipe: a `Recipe`, or a name in `PROTOCOLS`.
        seeds: number of networks for each row, or their seeds.
        baselines: names of coresets, which get the set's own counts by class, and "whole", all training images.
        split: the split whose accuracy is reported.
        whole_epochs: epochs for "whole"; None: as many steps as the recipe has.
        scorer: networks that coresets such as "el2n" choose by (`distill.coresets.TRAINED`); None: the defaults of `Scorer`.
        best: report also the best of `LOOKS` tests during each training, as some papers do. It is selected on the tested split.
        progress: False hides the status line.

    Returns:
        Accuracies in percent with 95 % intervals. A row whose networks diverged has the reason instead.

    Raises:
        InputError: if the set does not fit the data, or a name is unknown.
    """
    data = fitted(condensed, data)
    numbers = list(range(int(seeds))) if isinstance(seeds, int | np.integer) else [whole_seed(seed) for seed in seeds]
    _part(data, split)  # before any network is trained
    if not isinstance(recipe, Recipe | str):
        raise InputError(f"recipe is {clipped(recipe)}; allowed: a distill.Recipe, or the name of a protocol.")
    if not numbers:
        raise InputError("seeds is empty; allowed: one or more.")
    if not network:
        raise InputError("network is empty; allowed: one or more.")
    if whole_epochs is not None and whole_epochs < 1:
        raise InputError(f"whole_epochs is {whole_epochs}; allowed: 1 or more.")
    factories: list[Factory] = list(network) if isinstance(network, list | tuple) else [network]  # type: ignore[list-item]
    for name in baselines:
        if name not in BASELINES:
            raise no_baseline("baseline", name)
    # A protocol may depend on the network.
    recipes = [compared(recipe, condensed, data, factory) for factory in factories]
    names = ["condensed", *rows_of(baselines, condensed, recipes[0])]
    teacher = teacher_for(recipes[0].teacher, condensed, data, progress=progress)  # trained before anything else, with a bar
    train_scorer([coreset_of(name) for name in names], data, scorer, progress=progress)
    labels = [factory if isinstance(factory, str) else getattr(factory, "__name__", "own network") for factory in factories]
    for what, listed in (("network", labels), ("baselines", list(baselines)), ("seeds", numbers)):
        if len(set(listed)) < len(listed):  # repeated networks would narrow the interval
            raise InputError(f"{what} is {clipped(listed)}; allowed: different ones, each once (own networks by their __name__).")
    measured: dict[str, dict[str, list[Measured]]] = {name: {} for name in names}
    console = Console(stderr=True)
    with console.status("evaluating") if progress is not False else contextlib.nullcontext() as status:
        for factory, label, its_recipe in zip(factories, labels, recipes, strict=True):
            for network_row in accuracies(
                *(condensed, data, names, factory, its_recipe, numbers),
                split=split,
                whole_epochs=whole_epochs,
                teacher=teacher,
                scorer=scorer,
                best=best,
            ):
                measured[network_row.name].setdefault(label, []).append(network_row)
                if status is not None:
                    status.update(f"evaluating: {label} on {network_row.name}, seed {network_row.seed}: {network_row.value:.1f} %")
    rows = {n: {k: summed_up(v) for k, v in row.items()} for n, row in measured.items()}
    training = {name: training_of(name, condensed, data, recipes[0], whole_epochs) for name in names}
    notes = notes_on(condensed, data, recipes[0], baselines, teacher, scorer=scorer)
    notes += [f"{name} has another recipe: {other}" for name, other in zip(labels, recipes, strict=True) if other != recipes[0]]
    return Evaluation(rows, split, recipes[0], training, tuple(notes))


def fitted(condensed: CondensedSet, data: ImageData) -> ImageData:
    """The data as the set needs them: whitened by the set's own transform where it has one.

    Set and data must agree on shape, classes and normalisation, or accuracies mean nothing: `InputError` where they do not.
    """
    for name in ("channels", "height", "width", "classes"):
        ours, theirs = getattr(condensed.spec, name), getattr(data.spec, name)
        if ours != theirs:
            raise InputError(
                f"the set has {name} {str(ours)[:80]} and data {data.spec.name!r} have {name} {str(theirs)[:80]}; "
                "give the data it was made from."
            )
    if not np.allclose([*condensed.spec.mean, *condensed.spec.std], [*data.spec.mean, *data.spec.std], atol=1e-3):
        raise InputError(
            f"the set is normalised with mean {condensed.spec.mean} and std {condensed.spec.std}; data {data.spec.name!r} with others."
        )
    if condensed.whitening is None and data.whitening is not None:
        raise InputError(f"the set is not white and data {data.spec.name!r} are; give the data without whitening.")
    return data if condensed.whitening is None else data.whitened(condensed.whitening)
