"""Measure what `distill.scores` needs: every row with the same effort, its step size chosen on held-out training images."""

import dataclasses
import math
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import Field
from torch import nn

from distill.comparison import DECODED, LABEL_ONLY, compared, learner_set, recipe_of
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.coresets import EVERY, train_scorer
from distill.data import ImageData
from distill.errors import Diverged, InputError, unknown_name
from distill.evaluation import accuracy, fitted
from distill.labels import DEFAULT_KIND
from distill.scored_coresets import Scorer
from distill.scores import Measure, Row, Scorecard, reference, scorecard
from distill.set_notes import set_notes, teacher_notes
from distill.teachers import teacher_for
from distill.train import Recipe, train_network

Optimiser = Literal["sgd", "adamw"]
CHOOSING_SEED = 1_000_000  # of the network that a step size is chosen with, which no evaluation network has
STEPS = (0.3, 1.0, 3.0)  # times the recipe's step size
USUAL_STEP: dict[Optimiser, float] = {"sgd": 0.01, "adamw": 0.001}  # where rows are compared under another optimiser than the recipe's


@config_class
class Plan:
    """What is trained for a scorecard.

    Attributes:
        network: evaluation network.
        recipe: a `Recipe` or a name in `PROTOCOLS`; of every row.
        seeds: networks of each row and set.
        steps: step sizes to choose from, as multiples of the recipe's.
        architectures: other networks that the sets are tested on.
        optimisers: other optimisers under which sets and random images are compared, with equal steps.
        baselines: coresets; "random" must be one of them.
        whole_epochs: epochs of the full training set; None: as many steps as the sets have.
        scorer: networks that coresets such as "el2n" choose by; None: the defaults of `Scorer`.
    """

    DIFFERENT = ("steps", "architectures", "optimisers", "baselines")

    network: str = "ConvNet"
    recipe: Recipe | str = "laptop"
    seeds: Annotated[int, Field(ge=1)] = 5
    steps: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=1)] = STEPS
    architectures: tuple[str, ...] = ()
    optimisers: tuple[Optimiser, ...] = ()
    baselines: tuple[str, ...] = ("random", "herding")
    whole_epochs: Annotated[int, Field(ge=1)] | None = None
    scorer: Scorer | None = None


def score(sets: CondensedSet | Sequence[CondensedSet], data: ImageData, plan: Plan | None = None, *, split: str = "test") -> Scorecard:
    """Score one or more condensed sets of one method and size.

    Every row has the same effort: its step size is the best of ``plan.steps`` on the held-out training images, by one network each, and its
    networks have the same seeds. The last step counts. A set's own step size (MTT) is the middle of its row's choice under SGD.

    Args:
        sets: one set, or several of one method (made with different seeds), whose spread is reported.
        data: the data that they were made from, with validation images (``load(name, validation=0.1)``).
        plan: what is trained; None: the defaults of `Plan`.
        split: the split whose accuracy counts; never used for a choice.

    Raises:
        InputError: if sets differ in size or form, data have no validation images, or a row's networks diverged at every step size.
    """
    given = [sets] if isinstance(sets, CondensedSet) else list(sets)
    plan = plan or Plan()
    found = list(measures(given, data, plan, split=split))
    notes = notes_on(given, data, plan)
    return scorecard(given, found, training_images=len(data.train) + len(data.validation), split=split, notes=notes)


def notes_on(given: Sequence[CondensedSet], data: ImageData, plan: Plan) -> list[str]:
    """Traps that the sets or the recipe's teacher are in (`distill.set_notes`)."""
    data = fitted(given[0], data)
    same = compared(plan.recipe, given[0], data, plan.network)
    teacher = teacher_for(same.teacher, given[0], data, progress=False)
    return list(dict.fromkeys([*(note for one in given for note in set_notes(one)), *teacher_notes(same.teacher, teacher, data)]))


def measures(
    given: Sequence[CondensedSet], data: ImageData, plan: Plan, *, split: str = "test", done: Sequence[Measure] = ()
) -> Iterator[Measure]:
    """Yield the accuracies of each row when its networks are trained (see `score`), those of ``done`` as they are."""
    check_plan(given, data, plan)
    data = fitted(given[0], data)
    ready = {one.row: one for one in done}
    same = compared(plan.recipe, given[0], data, plan.network)
    teacher = teacher_for(same.teacher, given[0], data, progress=False)
    train_scorer(plan.baselines, data, plan.scorer, progress=False)
    for row in rows_of(given[0], plan, same.optimiser, labelled=teacher is not None):
        own = same if row.network == plan.network else compared(plan.recipe, given[0], data, row.network)
        if row.optimiser != same.optimiser:
            own = dataclasses.replace(own, optimiser=row.optimiser, lr=USUAL_STEP[row.optimiser])
        if row.augmentation == "none":
            own = dataclasses.replace(own, augmentation="none")
        own = recipe_of(row.images, own if row.labels == "own" else own.without_teacher, plan.whole_epochs)
        yield ready[row] if row in ready else _measured(row, given, data, own, teacher if own.teacher else None, plan, split)


def rows_of(condensed: CondensedSet, plan: Plan, optimiser: Optimiser, *, labelled: bool = False) -> list[Row]:
    """The rows of a scorecard: all labels and augmentations under the recipe's optimiser, then other optimisers and networks.

    ``labelled``: the recipe has a teacher, whose labels the set, each baseline and images of noise ("label-only") get in a row.
    """
    network, stored = plan.network, reference(condensed, labelled=labelled)
    label: Literal["own", "hard"] = "own" if labelled else "hard"
    decoded = [f"{name}-decoded" for name in plan.baselines if condensed.decode is not None and f"{name}-decoded" in DECODED]
    rows = [Row("condensed", "own", "own", network, optimiser)]
    if labelled or condensed.labels.is_floating_point() or condensed.views is not None:
        rows.append(Row("condensed", "hard", "own", network, optimiser))
    rows += [Row(name, "hard", "own", network, optimiser) for name in (*plan.baselines, *decoded, "whole")]
    if labelled:
        rows += [Row(f"{name}-labelled", "own", "own", network, optimiser) for name in (*plan.baselines, *decoded)]
        rows.append(Row(LABEL_ONLY, "own", "own", network, optimiser))
    rows += [Row("condensed", "own", "none", network, optimiser), Row(stored, label, "none", network, optimiser)]
    for other in plan.optimisers:
        if other != optimiser:
            rows += [Row("condensed", "own", "own", network, other), Row(stored, label, "own", network, other)]
    return rows + [Row("condensed", "own", "own", name, optimiser) for name in plan.architectures]


def check_plan(given: Sequence[CondensedSet], data: ImageData, plan: Plan) -> None:
    """`InputError` for sets or settings that cannot be compared."""
    if not given:
        raise InputError("no set was given; allowed: one or more.")
    for place, other in enumerate(given):
        if any(other.images.equal(one.images) for one in given[:place]):
            raise InputError(f"set {place + 1} has the images of an earlier one; allowed: sets of different seeds, each once.")
    for other in given[1:]:
        if _form(other) != _form(given[0]):
            raise InputError("the sets differ in images a class, stored form or labels; score sets of one method and size together.")
        white, its = given[0].whitening, other.whitening
        if (white is None) != (its is None) or (white is not None and not white.same_as(its)):
            raise InputError("the sets differ in their whitening; score sets of one whitening, or of none, together.")
    if not len(data.validation):
        raise InputError(f"data {data.spec.name!r} have no validation images to choose step sizes on; load them with validation=0.1.")
    if plan.network in plan.architectures:
        raise InputError(
            f"architectures has {plan.network!r}, which is the evaluation network itself, so it would add no row; give other networks "
            "(--architecture), or leave it out."
        )
    for name in plan.baselines:
        if name not in EVERY:
            raise unknown_name("baseline", name, EVERY)
    if "random" not in plan.baselines:
        raise InputError(f"baselines are {plan.baselines}; 'random' must be one of them: the scores compare with it.")


def _form(condensed: CondensedSet) -> tuple[object, ...]:
    """What sets of one method and size have in common."""
    views = condensed.views
    return condensed.counts, condensed.decode, condensed.label_kind, None if views is None else (len(views), views.augmentation, views.mix)


def _measured(
    row: Row, given: Sequence[CondensedSet], data: ImageData, recipe: Recipe, teacher: nn.Module | None, plan: Plan, split: str
) -> Measure:
    """Choose the row's step size, and train and test its networks."""
    chosen, values = [], []
    for condensed in given if row.images == "condensed" else given[:1]:
        learned = condensed.lr if row.images == "condensed" and recipe.optimiser == "sgd" else None
        tried = {}
        for step in plan.steps:
            lr = step * (learned or recipe.lr)
            source = _source(row, condensed, data, CHOOSING_SEED, plan)
            tried[lr] = _trained(source, row.network, data, dataclasses.replace(recipe, lr=lr), teacher, CHOOSING_SEED, "validation")
        finite = {lr: value for lr, value in tried.items() if not math.isnan(value)}
        if not finite:
            raise InputError(f"{row}: networks diverged at every step size ({', '.join(f'{lr:.3g}' for lr in tried)}); give smaller steps.")
        chosen.append(max(finite, key=lambda lr: finite[lr]))
        best = dataclasses.replace(recipe, lr=chosen[-1])
        sources = (_source(row, condensed, data, seed, plan) for seed in range(plan.seeds))
        values.append(tuple(_trained(one, row.network, data, best, teacher, seed, split) for seed, one in enumerate(sources)))
    source = _source(row, given[0], data, 0, plan)
    count = len(source.train) if isinstance(source, ImageData) else len(source.decoded())
    return Measure(row, tuple(chosen), tuple(values), recipe.steps(count) * min(recipe.batch_size, count))


def _trained(
    source: CondensedSet | ImageData, network: str, data: ImageData, recipe: Recipe, teacher: nn.Module | None, seed: int, split: str
) -> float:
    """The accuracy of one network in percent; NaN where it diverged."""
    try:
        return accuracy(train_network(source, network, recipe, seed, data.device, teacher=teacher), data, split)
    except Diverged:
        return math.nan


def _source(row: Row, condensed: CondensedSet, data: ImageData, seed: int, plan: Plan) -> CondensedSet | ImageData:
    """What a row's network is trained on; a coreset is drawn anew for each seed."""
    if row.images != "condensed":
        return learner_set(row.images, condensed, data, seed, plan.scorer)
    plain = dataclasses.replace(condensed, lr=None)  # the chosen step size counts
    if row.labels == "hard":
        return dataclasses.replace(plain, labels=condensed.hard_labels, label_kind=DEFAULT_KIND, views=None)
    return dataclasses.replace(plain, views=None) if row.augmentation == "none" else plain  # stored views are augmented
