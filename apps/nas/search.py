"""Search in a space too large to enumerate: a condensed set is the cheap objective, the most promising networks are trained on everything.

Optuna (extra ``nas``) proposes and remembers; its SQLite file is the search's whole state, so a stopped search continues where it was.
As in the ranking study, networks are chosen by validation accuracy, and the test split is used once.
"""

import dataclasses
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from apps.nas.ledger import Ledger, OnRow, data_key, set_key
from apps.nas.space import AXES, Candidate, Grid, candidate
from apps.nas.training import WHOLE, Job, Row, Shelf, score
from apps.nas.workers import Crew, check_crew
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError, clipped
from distill.randomness import derived_seed
from distill.records import writing
from distill.train import Recipe

if TYPE_CHECKING:
    import optuna
    from optuna.samplers import BaseSampler

STUDY = "apps.nas.search"


@dataclasses.dataclass(frozen=True)
class Budget:
    """How much a search may train.

    Args:
        trials: networks trained on the condensed set.
        at_once: networks proposed at a time.
        seeds: runs of each trial.
        finalists: best networks that are then trained on the whole training split.
        final_seeds: runs of each finalist.
    """

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
    """What `search` returns; accuracies are in percent.

    Args:
        best: the finalist with the highest validation accuracy after training on the whole set.
        accuracy: its mean test accuracy.
        finalists: (network, proxy accuracy, validation accuracy, test accuracy), best first by validation accuracy.
        trials: (network, proxy accuracy) in order; NaN for a failed network.
    """

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
    on_row: OnRow | None = None,
) -> Found:
    """Search ``space`` with a sampler of Optuna.

    A network that the sampler proposes again costs nothing, because its row is in the ledger. A network that fails is reported to the
    sampler as failed and never promoted.

    Args:
        data: real images with validation and test splits.
        tiny: the condensed set that networks are first trained on.
        space: the grid of networks.
        storage: the SQLite file of the search; the rows of trained networks are kept next to it (``.jsonl``).
        budget: numbers of trials, seeds and finalists.
        proxy: recipe for the condensed set.
        truth: recipe for the finalists on the whole training split.
        sampler: "tpe" or "random".
        seed: of the sampler and of all training.
        crew: the workers.
        on_row: called as ``on_row(done, total, row)`` after each row.

    Returns:
        The best network, the finalists and all trials.

    Raises:
        InputError: Optuna is missing, the file belongs to something else, no Ray pool answers, or every network or finalist failed.
    """
    _check_installed()
    import optuna

    budget, crew = budget or Budget(), crew or Crew()
    proxy = proxy or Recipe(epochs=1001, max_steps=200, compile="off")
    truth = truth or Recipe(epochs=20, compile="off")
    if not len(data.validation) or not len(data.test):
        raise InputError(f"data {data.spec.name!r} needs a validation and a test split here; load it with validation=0.1.")
    check_crew(crew, {})
    storage = _file(storage)
    ledger = Ledger(storage.with_suffix(".jsonl"))
    shelf, key = Shelf(data, {"condensed": tiny}), set_key(tiny, data, proxy)
    study = _study(storage, sampler, seed, f"{key} {dataclasses.asdict(space)}")
    trials = _trials(study)
    while (left := budget.trials - len(trials)) > 0:
        asked = [_ask(study, space) for _ in range(min(budget.at_once, left))]
        runs = [
            (trial, network, _jobs("condensed", network, "condensed", proxy, key, seed * 1000 + 500, budget.seeds))
            for trial, network in asked
        ]
        # Two that were asked for at once may be the same network; it is trained once.
        unique = {job.name: job for _, _, jobs in runs for job in jobs}
        ledger.do(list(unique.values()), shelf, crew, on_row)
        for trial, network, jobs in runs:
            value = _mean([ledger.rows[job.name] for job in jobs], "validation")
            trial.set_user_attr("id", network.id)
            study.tell(trial, value) if np.isfinite(value) else study.tell(trial, state=optuna.trial.TrialState.FAIL)
        trials = _trials(study)
    return _promote(trials, data, ledger, crew, truth=truth, seed=seed, budget=budget, on_row=on_row)


def _promote(
    trials: list[tuple[Candidate, float]],
    data: ImageData,
    ledger: Ledger,
    crew: Crew,
    *,
    truth: Recipe,
    seed: int,
    budget: Budget,
    on_row: OnRow | None,
) -> Found:
    """Train the best different networks fully and choose among them by validation accuracy; the test accuracy is only reported."""
    best = {network.id: (network, value) for network, value in sorted(trials, key=lambda pair: pair[1]) if np.isfinite(value)}
    if not best:
        raise InputError(
            "search: every network failed on the condensed set; look at the reasons in the file of results, and at the recipe."
        )
    chosen = sorted(best.values(), key=lambda pair: (-pair[1], pair[0].id))[: budget.finalists]
    key = data_key(data, truth)
    jobs = {network.id: _jobs("truth", network, WHOLE, truth, key, seed * 1000, budget.final_seeds) for network, _ in chosen}
    ledger.do([job for group in jobs.values() for job in group], Shelf(data, {}), crew, on_row)
    rows = {id: [ledger.rows[job.name] for job in group] for id, group in jobs.items()}
    finalists = [(network, value, _mean(rows[network.id], "validation"), _mean(rows[network.id], "test")) for network, value in chosen]
    if not any(np.isfinite(row[2]) for row in finalists):
        reason = next((row["reason"] for group in rows.values() for row in group if "reason" in row), "no accuracy")
        raise InputError(
            f"search: none of the {len(finalists)} finalists could be trained on the full data (the first: {reason}); change the recipe of"
            " the full training (truth), and delete the search's files or choose another storage."
        )
    finalists.sort(key=lambda row: -row[2] if np.isfinite(row[2]) else np.inf)
    return Found(finalists[0][0], finalists[0][3], finalists, trials)


def _jobs(stage: str, network: Candidate, source: str, recipe: Recipe, key: str, first: int, count: int) -> list[Job]:
    splits = ("validation", "test") if source == WHOLE else ("validation",)
    return [Job(stage, network.id, network.network, source, first + k, recipe, key, splits) for k in range(count)]


def _mean(rows: list[Row], split: Literal["validation", "test"]) -> float:
    values = [score(row, split) for row in rows]
    return float(np.mean(values))


# Optuna


def _check_installed() -> None:
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise InputError('the search needs Optuna: pip install "distill-apps[nas]".') from None


def _file(storage: Path | str) -> Path:
    """The path of the SQLite file, whose folder is created; `InputError` for a path that cannot be one."""
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


def _opened(storage: Path, sampler: "BaseSampler") -> "optuna.Study":
    """Create or load Optuna's study in this file; `InputError` if the file is not SQLite or cannot be written."""
    import optuna
    import sqlalchemy

    try:
        return optuna.create_study(storage=_url(storage), study_name=STUDY, direction="maximize", load_if_exists=True, sampler=sampler)
    except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.OptunaError, RuntimeError) as error:
        text = clipped(getattr(error, "orig", None) or error, 120)
        raise InputError(f"search: {storage} cannot be used as the SQLite file of a search ({text}); choose another file.") from None


def _study(storage: Path, sampler: str, seed: int, settings: str) -> "optuna.Study":
    """The study of this file, new or continued; `InputError` if the file belongs to another search."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    first = optuna.samplers.RandomSampler(0)  # replaced below
    study = _opened(storage, first)
    known = study.user_attrs.get("settings")
    if known is not None and known != settings:
        raise InputError(f"{storage}: belongs to a search with another space, set, data or recipe; choose another file or delete it.")
    study.set_user_attr("settings", settings)
    for trial in study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.RUNNING,)):
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)  # was being trained when the search was stopped
    # The random state of a sampler is not in the file, so its seed depends on the number of trials: no draw is repeated.
    number = derived_seed(seed, "search", len(study.get_trials(deepcopy=False))) % 2**32
    if sampler not in ("tpe", "random"):
        raise InputError(f"search: sampler is {sampler[:40]!r}; allowed: tpe, random.")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        if sampler == "tpe":
            study.sampler = optuna.samplers.TPESampler(seed=number, constant_liar=True, multivariate=True)
        else:
            study.sampler = optuna.samplers.RandomSampler(seed=number)
    return study


def _ask(study: "optuna.Study", space: Grid) -> "tuple[optuna.trial.Trial, Candidate]":
    from optuna.distributions import BaseDistribution, CategoricalDistribution

    choices: dict[str, BaseDistribution] = {axis: CategoricalDistribution(list(getattr(space, axis))) for axis in AXES}
    trial = study.ask(choices)
    parts = trial.params
    return trial, candidate(f"w{parts['width']}-d{parts['depth']}-{parts['norm']}-{parts['activation']}-{parts['pooling']}")


def _trials(study: "optuna.Study") -> list[tuple[Candidate, float]]:
    """Finished trials in order; NaN for those that failed."""
    from optuna.trial import TrialState

    states = (TrialState.COMPLETE, TrialState.FAIL)
    trials = [trial for trial in study.get_trials(deepcopy=False, states=states) if "id" in trial.user_attrs]
    return [(candidate(trial.user_attrs["id"]), np.nan if trial.value is None else float(trial.value)) for trial in trials]
