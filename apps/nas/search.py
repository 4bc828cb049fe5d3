"""Search in a space too large to enumerate: a condensed set is the cheap objective, the most promising networks are trained on everything.

Optuna (extra ``nas``) proposes and remembers; its SQLite file is the search's whole state, so a stopped search goes on where it was.
Workers and rules are those of the ranking study: choices by validation accuracy, the test split once.
"""

import dataclasses
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from apps.nas.ledger import Ledger, data_key, set_key
from apps.nas.space import AXES, Candidate, Grid, candidate
from apps.nas.training import WHOLE, Job, Shelf, score
from apps.nas.workers import Crew, Row, check_crew
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError, clipped
from distill.randomness import derived_seed
from distill.records import writing
from distill.train import Recipe

STUDY = "apps.nas.search"


@dataclasses.dataclass(frozen=True)
class Budget:
    """``trials`` networks on the condensed set (``seeds`` runs each), asked for ``at_once`` at a time; the best ``finalists`` are promoted
    to the whole set (``final_seeds`` runs each)."""

    trials: int = 60
    at_once: int = 2
    seeds: int = 1
    finalists: int = 5
    final_seeds: int = 3

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise InputError(f"search: {field.name} is {str(value)[:40]}; allowed: a whole number of 1 or more.")


@dataclasses.dataclass(frozen=True)
class Found:
    """``best``: chosen by validation accuracy on the whole set, its ``accuracy`` the mean test accuracy. ``finalists``: (network, proxy
    accuracy, validation accuracy, test accuracy), best first by validation. ``trials``: (network, proxy accuracy) in order."""

    best: Candidate
    accuracy: float
    finalists: list[tuple[Candidate, float, float, float]]
    trials: list[tuple[Candidate, float]]


def search(
    data: ImageData,
    tiny: CondensedSet,
    space: Grid,
    storage: Path | str,
    *,
    budget: Budget | None = None,
    proxy: Recipe | None = None,
    truth: Recipe | None = None,
    sampler: Literal["tpe", "random"] = "tpe",
    seed: int = 0,
    crew: Crew | None = None,
    told: Callable[[int, int, Row], None] | None = None,
) -> Found:
    """Search ``space`` with Optuna's sampler. ``storage`` is the SQLite file; trained networks are kept beside it (``.jsonl``).

    A network that the sampler proposes again costs nothing: its row is in the ledger. One that fails is told as failed and never promoted.
    Raises `InputError` when the file is none of a search, no Ray pool answers, or every network or every finalist failed.
    """
    optuna = _optuna()
    budget, crew = budget or Budget(), crew or Crew()
    proxy = proxy or Recipe(epochs=1001, max_steps=200, compile="off")
    truth = truth or Recipe(epochs=20, compile="off")
    if not len(data.validation) or not len(data.test):
        raise InputError(f"data {data.spec.name!r} needs a validation and a test split here; load it with validation=0.1.")
    check_crew(crew, {})
    storage = _file(storage)
    ledger = Ledger(storage.with_suffix(".jsonl"))
    shelf, key = Shelf(data, {"condensed": tiny}), set_key(tiny, data, proxy)
    study = _study(optuna, storage, sampler, seed, f"{key} {dataclasses.asdict(space)}")
    trials = _trials(optuna, study)
    while (left := budget.trials - len(trials)) > 0:
        asked = [_ask(optuna, study, space) for _ in range(min(budget.at_once, left))]
        runs = [(trial, one, _jobs("condensed", one, "condensed", proxy, key, seed * 1000 + 500, budget.seeds)) for trial, one in asked]
        # Two that were asked for at once may be the same network; it is trained once.
        unique = {job.name: job for _, _, jobs in runs for job in jobs}
        ledger.do(list(unique.values()), shelf, crew, told)
        for trial, one, jobs in runs:
            value = _mean([ledger.rows[job.name] for job in jobs], "validation")
            trial.set_user_attr("id", one.id)
            study.tell(trial, value) if np.isfinite(value) else study.tell(trial, state=optuna.trial.TrialState.FAIL)
        trials = _trials(optuna, study)
    return _promote(trials, data, ledger, crew, truth=truth, seed=seed, budget=budget, told=told)


def _promote(
    trials: list[tuple[Candidate, float]],
    data: ImageData,
    ledger: Ledger,
    crew: Crew,
    *,
    truth: Recipe,
    seed: int,
    budget: Budget,
    told: Callable[[int, int, Row], None] | None,
) -> Found:
    """Full training of the best different networks; the last choice is made by their validation accuracy, the test split only reports."""
    best = {one.id: (one, value) for one, value in sorted(trials, key=lambda pair: pair[1]) if np.isfinite(value)}
    if not best:
        raise InputError(
            "search: every network failed on the condensed set; look at the reasons in the file of results, and at the recipe."
        )
    chosen = sorted(best.values(), key=lambda pair: (-pair[1], pair[0].id))[: budget.finalists]
    key = data_key(data, truth)
    jobs = {one.id: _jobs("truth", one, WHOLE, truth, key, seed * 1000, budget.final_seeds) for one, _ in chosen}
    ledger.do([job for group in jobs.values() for job in group], Shelf(data, {}), crew, told)
    rows = {id: [ledger.rows[job.name] for job in group] for id, group in jobs.items()}
    finalists = [(one, value, _mean(rows[one.id], "validation"), _mean(rows[one.id], "test")) for one, value in chosen]
    if not any(np.isfinite(row[2]) for row in finalists):
        reason = next((row["reason"] for group in rows.values() for row in group if "reason" in row), "no accuracy")
        raise InputError(
            f"search: none of the {len(finalists)} finalists could be trained on the full data (the first: {reason}); change the recipe of"
            " the full training (truth), and delete the search's files or choose another storage."
        )
    finalists.sort(key=lambda row: -row[2] if np.isfinite(row[2]) else np.inf)
    return Found(finalists[0][0], finalists[0][3], finalists, trials)


def _jobs(stage: str, one: Candidate, source: str, recipe: Recipe, key: str, first: int, count: int) -> list[Job]:
    splits = ("validation", "test") if source == WHOLE else ("validation",)
    return [Job(stage, one.id, one.network, source, first + k, recipe, key, splits) for k in range(count)]


def _mean(rows: list[Row], split: str) -> float:
    values = [score(row, split) for row in rows]
    return float(np.mean(values))


# Optuna


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise InputError('the search needs Optuna: pip install "distill-apps[nas]".') from None
    return optuna


def _file(storage: Path | str) -> Path:
    """The SQLite file's path, its folder made; `InputError` for what can be none."""
    path = Path(storage)
    if not path.name or path.is_dir() or path.suffix == ".jsonl":
        raise InputError(f"search: storage {clipped(storage)!r} is no place for an SQLite file; give a file's name, for example search.db.")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _url(storage: Path) -> str:
    import sqlalchemy

    text = sqlalchemy.URL.create("sqlite", database=str(storage)).render_as_string()
    if sqlalchemy.make_url(text).database != str(storage):  # before SQLAlchemy 2.1 a "?" in a name cannot be written in an address
        raise InputError(f"search: storage {clipped(storage)!r} has a name that SQLAlchemy does not take; choose one without '?'.")
    return text


def _opened(optuna: Any, storage: Path, sampler: Any) -> Any:
    """Optuna's study in this file, new or as it was; `InputError` when the file is not SQLite or cannot be written."""
    import sqlalchemy

    try:
        return optuna.create_study(storage=_url(storage), study_name=STUDY, direction="maximize", load_if_exists=True, sampler=sampler)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        text = clipped(getattr(error, "orig", None) or error, 120)
        raise InputError(f"search: {storage} cannot be used as the SQLite file of a search ({text}); choose another file.") from None


def _study(optuna: Any, storage: Path, sampler: str, seed: int, settings: str) -> Any:
    """The study of this file, new or continued; `InputError` when the file is another search's."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first = optuna.samplers.RandomSampler(0)  # replaced below
    made = _opened(optuna, storage, first)
    known = made.user_attrs.get("settings")
    if known is not None and known != settings:
        raise InputError(f"{storage}: belongs to a search with another space, set, data or recipe; choose another file or delete it.")
    made.set_user_attr("settings", settings)
    for trial in made.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        made.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # was being trained when the search was stopped
    # A sampler's own random state is not in the file, so its seed moves on with the trials that are: no draw comes twice.
    number = derived_seed(seed, "search", len(made.get_trials(deepcopy=False))) % 2**32
    kinds = {"tpe": optuna.samplers.TPESampler, "random": optuna.samplers.RandomSampler}
    if sampler not in kinds:
        raise InputError(f"search: sampler is {sampler[:40]!r}; allowed: tpe, random.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        options = {"constant_liar": True, "multivariate": True} if sampler == "tpe" else {}
        made.sampler = kinds[sampler](seed=number, **options)
    return made


def _ask(optuna: Any, study: Any, space: Grid) -> tuple[Any, Candidate]:
    choices = {axis: optuna.distributions.CategoricalDistribution(list(getattr(space, axis))) for axis in AXES}
    trial = study.ask(choices)
    parts = trial.params
    return trial, candidate(f"w{parts['width']}-d{parts['depth']}-{parts['norm']}-{parts['activation']}-{parts['pooling']}")


def _trials(optuna: Any, study: Any) -> list[tuple[Candidate, float]]:
    """Finished trials in order, those that failed by themselves with NaN."""
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    found = [trial for trial in study.get_trials(deepcopy=False, states=states) if "id" in trial.user_attrs]
    return [(candidate(trial.user_attrs["id"]), np.nan if trial.value is None else float(trial.value)) for trial in found]
