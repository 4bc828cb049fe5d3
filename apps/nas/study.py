"""The study: networks trained fully, scored by every proxy under one recipe, and compared.

`rank` is the function for a user's own sets. A proxy's score is an accuracy on the validation split; the truth is the test accuracy of
fully trained networks, and nothing is chosen by it. Proxies draw other initial weights than the truth, because with the same weights they
would share its noise.
"""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Annotated

import numpy as np
import torch
from pydantic import Field

from apps.nas.compare import Scores, compared, means
from apps.nas.intervals import RESAMPLES
from apps.nas.ledger import Ledger, OnRow, data_key, set_key
from apps.nas.regression import main_effects
from apps.nas.space import Candidate, check_candidates
from apps.nas.training import WHOLE, Job, Row, Shelf, Task, score
from apps.nas.workers import Crew, check_crew
from apps.nas.zero_cost import DATA_FREE, ON_A_BATCH, SCORES, SIZES, ScoreJob
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.data import ImageData
from distill.errors import InputError, unknown_name
from distill.evaluation import fitted
from distill.randomness import derived_seed, generator
from distill.records import Json
from distill.train import Recipe

MAX_SEEDS = 100  # streams of the truth, the proxies and the scores lie this far apart


@config_class
class Truth:
    """Table ``[truth]``: full training of every network. Compiling hundreds of small networks costs more than it saves, so it is off."""

    seeds: Annotated[int, Field(ge=1, le=MAX_SEEDS)] = 3
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=20, compile="off"))


@config_class
class Proxies:
    """Table ``[proxy]``: one recipe for every condensed set, coreset and early-stopped run.

    Attributes:
        seeds: runs of each proxy.
        recipe: of each run.
        early: also stop training on the whole set after as many steps as a proxy makes.
        equal_cost: names of sets; for each, training on the whole set also stops at that set's total cost, distillation included.
        zero_cost: names of zero-cost scores.
        regression: number of fully trained networks that main effects are fitted to; 0: no regression.
        batch: number of real images for the zero-cost scores.
        resamples: bootstrap resamples.
        top: values of k for regret@k and overlap@k.
    """

    seeds: Annotated[int, Field(ge=1, le=MAX_SEEDS)] = 3
    recipe: Recipe = dataclasses.field(default_factory=lambda: Recipe(epochs=1001, max_steps=200, compile="off"))
    early: bool = True
    equal_cost: tuple[str, ...] = ()
    zero_cost: tuple[str, ...] = SCORES
    regression: Annotated[int, Field(ge=0)] = 20
    batch: Annotated[int, Field(ge=2, le=1024)] = 64
    resamples: Annotated[int, Field(ge=100, le=100_000)] = RESAMPLES
    top: Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(min_length=1)] = (1, 5)


@dataclasses.dataclass(frozen=True)
class SetProxy:
    """A set that stands for the data.

    Args:
        sets: independently made copies, used in turn by the seeds.
        seconds: total time to make them.
        kind: "condensed" or "coreset".
    """

    sets: tuple[CondensedSet, ...]
    seconds: float = 0.0
    kind: str = "condensed"


@dataclasses.dataclass(frozen=True)
class Result:
    """What `rank` returns: ``summary`` as in `compare.compared`, ``truth`` the test accuracies (n networks, S seeds) in percent, ``scores``
    by proxy, ``rows`` of the truth."""

    candidates: list[Candidate]
    summary: dict[str, Json]
    truth: np.ndarray
    scores: dict[str, Scores]
    rows: list[Row]


def rank(
    data: ImageData,
    candidates: Sequence[Candidate],
    sets: Mapping[str, SetProxy],
    truth: Truth | None = None,
    proxies: Proxies | None = None,
    *,
    seed: int = 0,
    crew: Crew | None = None,
    ledger: Ledger | None = None,
    on_row: OnRow | None = None,
) -> Result:
    """Train every network fully, score it by every proxy, and compare the rankings.

    Args:
        data: real images with validation and test splits.
        candidates: the networks.
        sets: the condensed sets and coresets by name.
        truth: seeds and recipe of the full training.
        proxies: seeds and recipe of the proxies, and which other scores are computed.
        seed: of the study; all others are derived from it.
        crew: the workers.
        ledger: keeps the rows; with one on disk a stopped study continues where it was.
        on_row: called as ``on_row(done, total, row)`` after each row.

    Returns:
        The summary, the scores and the rows of the truth.

    Raises:
        InputError: the data, networks, sets or settings do not fit together.
    """
    truth, proxies, crew, ledger = truth or Truth(), proxies or Proxies(), crew or Crew(), ledger or Ledger()
    listed = check_candidates(candidates)
    check(data, listed, sets, proxies)
    check_crew(crew, {candidate.id: candidate.network for candidate in listed})
    work = _Work(data, listed, sets, proxies, truth, seed, crew, ledger, on_row)
    stages: dict[str, list[Task]] = {"truth": work.truth_jobs(), **{name: work.set_jobs(name) for name in sets}}
    stages |= work.score_jobs()
    if proxies.early:
        stages["early-steps"] = work.early_jobs("early-steps", work.steps)
    rows = work.do(stages)
    scores = {name: work.on_set(name, rows[name]) for name in sets}
    if proxies.early:
        scores["early-steps"] = work.on_whole("early", rows["early-steps"])
        again = {f"early-cost-{name}": work.early_jobs(f"early-cost-{name}", work.equal_steps(name, scores)) for name in proxies.equal_cost}
        scores |= {name: work.on_whole("early", done) for name, done in work.do(again).items()}
    scores |= {name: work.zero_cost(name, rows[name]) for name in work.score_names}
    if proxies.regression:
        scores["regression"] = work.regression(rows["truth"])
    scores["whole"] = work.on_whole("whole", rows["truth"])
    tested = np.array([score(row, "test") for row in rows["truth"]]).reshape(len(listed), truth.seeds)
    cost = sum(map(work.cost, rows["truth"]))
    draws = np.random.default_rng(derived_seed(seed, "bootstrap"))
    return Result(listed, compared(tested, scores, cost, draws, proxies.resamples, proxies.top), tested, scores, rows["truth"])


def check(data: ImageData, candidates: Sequence[Candidate], sets: Mapping[str, SetProxy], proxies: Proxies) -> None:
    """Check the input of `rank` before any network is trained.

    Raises:
        InputError: a split is missing, a name is taken or unknown, a set does not fit the data, or the regression is not possible.
    """
    if not len(data.validation) or not len(data.test):
        raise InputError(f"data {data.spec.name!r} needs a validation and a test split here; load it with validation=0.1.")
    for name, proxy in sets.items():
        if name in (*SCORES, "early-steps", "regression", WHOLE) or name.startswith("early-cost-"):
            raise InputError(f"a set may not be called {name!r}: a proxy of the study has that name.")
        for condensed in proxy.sets:
            fitted(condensed, data)
            if condensed.whitening is not None and not condensed.whitening.same_as(data.whitening):
                raise InputError(f"set {name!r} is white; give the data white by its transform: data.whitened(the_set.whitening).")
    for name in proxies.equal_cost:
        if name not in sets:
            raise unknown_name("equal_cost: set", name, sets)
    for name in proxies.zero_cost:
        if name not in SCORES:
            raise unknown_name("zero-cost score", name, SCORES)
    if proxies.regression:
        if any(not network.axes for network in candidates):
            raise InputError("main effects need networks of one grid; set proxy.regression = 0 for networks of your own.")
        if proxies.regression > len(candidates):
            raise InputError(f"proxy.regression is {proxies.regression}; allowed: at most the {len(candidates)} networks, or 0.")


@dataclasses.dataclass(frozen=True)
class _Work:
    data: ImageData
    candidates: list[Candidate]
    sets: Mapping[str, SetProxy]
    proxies: Proxies
    truth: Truth
    seed: int
    crew: Crew
    ledger: Ledger
    on_row: OnRow | None

    @property
    def steps(self) -> int:
        """Optimiser steps of a run on the largest set; without sets, on the recipe's own terms."""
        recipe = self.proxies.recipe
        images = max((len(condensed) for proxy in self.sets.values() for condensed in proxy.sets), default=recipe.batch_size)
        steps = recipe.epochs * -(-images // recipe.batch_size)
        return min(steps, recipe.max_steps or steps)

    @property
    def whole_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in (self.data.train.images, self.data.train.labels))

    def cost(self, row: Row) -> float:
        """Core seconds on a CPU, wall seconds on a GPU."""
        return row.get("cpu_seconds", 0.0) if self.crew.device == "cpu" else row.get("seconds", 0.0)

    def numbers(self, block: int, count: int) -> list[int]:
        return [(self.seed * 10 + block) * MAX_SEEDS + k for k in range(count)]

    @functools.cached_property
    def shelf(self) -> Shelf:
        order = torch.randperm(len(self.data.train), generator=generator(self.seed, "zero-cost batch"))
        images = torch.arange(len(self.data.train))[order[: self.proxies.batch]]
        batch = self.data.normalised("train", images).cpu(), self.data.train.labels[images.to(self.data.device)].cpu()
        return Shelf(
            self.data, {f"{name}-{i}": condensed for name, proxy in self.sets.items() for i, condensed in enumerate(proxy.sets)}, batch
        )

    def do(self, stages: Mapping[str, Sequence[Task]]) -> dict[str, list[Row]]:
        """Rows by stage. All stages are one list of jobs, so that workers start once."""
        rows = self.ledger.do([job for jobs in stages.values() for job in jobs], self.shelf, self.crew, self.on_row)
        place = iter(rows)
        return {stage: [next(place) for _ in jobs] for stage, jobs in stages.items()}

    def truth_jobs(self) -> list[Task]:
        recipe, key = self.truth.recipe, data_key(self.data, self.truth.recipe)
        return self._jobs("truth", [(WHOLE, k, key) for k in self.numbers(0, self.truth.seeds)], recipe, ("validation", "test"))

    def set_jobs(self, name: str) -> list[Task]:
        count, recipe = len(self.sets[name].sets), self.proxies.recipe
        keys = [set_key(condensed, self.data, recipe) for condensed in self.sets[name].sets]
        runs = [(f"{name}-{r % count}", k, keys[r % count]) for r, k in enumerate(self.numbers(5, self.proxies.seeds))]
        return self._jobs(name, runs, recipe)

    def early_jobs(self, name: str, steps: int) -> list[Task]:
        """Training on the whole set that ends after ``steps`` optimiser steps."""
        recipe = dataclasses.replace(self.proxies.recipe, epochs=steps, max_steps=steps)
        key = data_key(self.data, recipe)
        return self._jobs(name, [(WHOLE, k, key) for k in self.numbers(5, self.proxies.seeds)], recipe)

    def _jobs(self, stage: str, runs: list[tuple[str, int, str]], recipe: Recipe, splits: tuple[str, ...] = ("validation",)) -> list[Task]:
        return [
            Job(stage, network.id, network.network, source, k, recipe, key, splits)
            for network in self.candidates
            for source, k, key in runs
        ]

    def on_set(self, name: str, rows: list[Row]) -> Scores:
        proxy = self.sets[name]
        size = sum(condensed.nbytes for condensed in proxy.sets[: self.proxies.seeds])
        return dataclasses.replace(self._scores(proxy.kind, rows), one_off=proxy.seconds, bytes=size)

    def on_whole(self, kind: str, rows: list[Row]) -> Scores:
        return dataclasses.replace(self._scores(kind, rows), bytes=self.whole_bytes)

    def _scores(self, kind: str, rows: list[Row]) -> Scores:
        values = np.array([score(row, "validation") for row in rows]).reshape(len(self.candidates), -1)
        failed = sum(row["status"] != "ok" for row in rows)
        return Scores(kind, means(values), 0.0, sum(map(self.cost, rows)), failed=failed)

    def equal_steps(self, name: str, scores: Mapping[str, Scores]) -> int:
        """Steps for which early stopping costs as much as this set's proxy, distillation included.

        The number follows from measured seconds, so it is decided once and kept in the ledger.
        """
        key = data_key(self.data, self.proxies.recipe)
        plan = self.ledger.rows.get(("plan", name, self.seed, key))
        if plan is None:
            ratio = scores[name].total / max(scores["early-steps"].total, 1e-9)
            plan = {"stage": "plan", "id": name, "seed": self.seed, "key": key, "steps": max(1, round(self.steps * ratio))}
            self.ledger.add(plan)
        return int(plan["steps"])

    @functools.cached_property
    def score_names(self) -> dict[str, tuple[str, str | None]]:
        """Label of each zero-cost score -> (score, source of its batch): real images, and each condensed set if the score needs a batch."""
        names = self.proxies.zero_cost
        labels: dict[str, tuple[str, str | None]] = {name: (name, None if name in (*SIZES, *DATA_FREE) else WHOLE) for name in names}
        condensed = [label for label, proxy in self.sets.items() if proxy.kind == "condensed"]
        return labels | {f"{name}-on-{label}": (name, label) for label in condensed for name in names if name in ON_A_BATCH}

    def score_jobs(self) -> dict[str, list[Task]]:
        """Jobs for the zero-cost scores. Untrained networks are foreign code too, so the same workers score them, with the same limit."""
        return {label: self._score_jobs(label, name, source) for label, (name, source) in self.score_names.items()}

    def _score_jobs(self, label: str, name: str, source: str | None) -> list[Task]:
        recipe, key = self.proxies.recipe, data_key(self.data, self.proxies.recipe)
        if source is not None and source != WHOLE:
            source, key = f"{source}-0", set_key(self.sets[source].sets[0], self.data, recipe)
        seeds = self.numbers(9, 1 if name in SIZES else self.proxies.seeds)
        return [ScoreJob(label, network.id, network.network, name, source, k, key) for network in self.candidates for k in seeds]

    def zero_cost(self, label: str, rows: list[Row]) -> Scores:
        _, source = self.score_names[label]
        values = np.array([np.nan if row.get("score") is None else row["score"] for row in rows], dtype=np.float64)
        size, once = 0, 0.0
        if source == WHOLE:
            assert self.shelf.batch is not None
            size = sum(t.numel() * t.element_size() for t in self.shelf.batch)
        elif source is not None:
            proxy = self.sets[source]
            size = sum(t.numel() * t.element_size() for t in (proxy.sets[0].images, proxy.sets[0].labels))
            once = proxy.seconds / len(proxy.sets)
        failed = sum(row["status"] != "ok" for row in rows)
        return Scores("zero-cost", means(values.reshape(len(self.candidates), -1)), once, sum(map(self.cost, rows)), size, failed)

    def regression(self, rows: list[Row]) -> Scores:
        """Main effects fitted to the first seed of a few fully trained networks, whose cost is counted."""
        first = rows[:: self.truth.seeds]
        order = torch.randperm(len(first), generator=generator(self.seed, "regression")).tolist()
        known = sorted(order[: self.proxies.regression])
        values = [score(first[i], "validation") for i in known]
        predicted = main_effects([network.axes for network in self.candidates], known, values)
        return Scores("regression", predicted, sum(self.cost(first[i]) for i in known), 0.0, self.whole_bytes)
