"""Settings chosen on validation images before the rows of a study are run.

Every tuned strategy that sends weights gets the same pairs of step size and momentum, those that condense the same combinations of the
method's settings, on one split and one seed; the test images are not used. Each trial is a run in a folder of its own, which is its
ledger: a study that is continued does not repeat it.
"""

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apps.federated.settings import ALONE, CONDENSING, WEIGHTS, Settings
from scenarios.engine.folder import load_data
from scenarios.engine.progress import watched
from scenarios.engine.record import Results
from scenarios.engine.study import Run
from scenarios.federated.cells import Cell, run_cells
from scenarios.federated.schema import FederatedStudy, TuningTable
from scenarios.federated.watch import Watch
from scenarios.reporting.text import series

Values = dict[str, float | str]  # of settings, by name

TUNED = ("fedavg", "fedavgm", "fedprox", "scaffold")
# All other strategies that send weights take FedAvg's pair, as local and central do. These have a setting of their server, tuned with it.
OWN = {"fedadam": "fedadam_lr", "feddyn": "feddyn_alpha"}


@dataclass(frozen=True)
class Tuned:
    """The chosen settings of each strategy, and the number of rounds of those that get more; ``results`` are for the record."""

    chosen: Mapping[str, Values] = field(default_factory=dict)
    rounds: Mapping[str, int] = field(default_factory=dict)
    results: Results = field(default_factory=dict)

    def applied(self, settings: Settings) -> Settings:
        """A run's settings with what was chosen for its strategy."""
        name = settings.strategy
        return dataclasses.replace(with_values(settings, self.chosen.get(name, {})), rounds=self.rounds.get(name, settings.rounds))


def with_values(settings: Settings, values: Values) -> Settings:
    """The settings with these values: of the condensing method, or of `LocalConfig` and `AveragingConfig`."""
    if settings.strategy in CONDENSING:
        upload = dataclasses.replace(settings.upload, settings={**settings.upload.settings, **values})
        return dataclasses.replace(settings, upload=upload)
    parts = {}
    for part in ("local", "averaging"):
        config = getattr(settings, part)
        own = {field.name for field in dataclasses.fields(config)}
        parts[part] = dataclasses.replace(config, **{name: value for name, value in values.items() if name in own})
    return dataclasses.replace(settings, **parts)


def in_words(values: Values) -> str:
    """``lr 0.1, momentum 0``."""
    return ", ".join(f"{name} {_short(value)}" for name, value in values.items())


def _short(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:g}"


def grids(tuning: TuningTable, strategies: Sequence[str]) -> dict[str, list[Values]]:
    """What each tuned strategy tries: combinations of the method's settings, or pairs of step size and momentum; FedAvg's where others
    follow it, too."""
    several = [dict(zip(tuning.upload, values, strict=True)) for values in itertools.product(*tuning.upload.values())]
    own: dict[str, list[Values]] = {name: several for name in CONDENSING if name in strategies and tuning.upload}
    pairs: list[Values] = [{"lr": lr, "momentum": momentum} for lr, momentum in itertools.product(tuning.lr, tuning.momentum)]
    follows = any(name in WEIGHTS and name not in TUNED for name in strategies)
    return {**own, **{name: pairs for name in TUNED if name in strategies or (name == "fedavg" and follows)}}


def following_grids(tuning: TuningTable, strategies: Sequence[str], pair: Values) -> dict[str, list[Values]]:
    """For each strategy that takes FedAvg's ``pair`` and has a setting of its own, the pair with every value of it."""
    return {name: [{**pair, key: value} for value in getattr(tuning, key)] for name, key in OWN.items() if name in strategies}


def at_edge(chosen: Values, tried: Sequence[Values]) -> list[str]:
    """In words: which chosen settings are the smallest or the largest of those tried, so that a better one may lie beyond.

    No value is below a momentum of 0, and a setting with one value was not tuned.
    """
    said = []
    for name, value in chosen.items():
        values = [each[name] for each in tried]
        numbers = [each for each in values if not isinstance(each, str)]
        if isinstance(value, str) or len(numbers) < len(values):
            continue
        low, high = min(numbers), max(numbers)
        if low < high and value in (low, high) and (name, value) != ("momentum", 0.0):
            said.append(f"{name} {value:g} is the {'smallest' if value == low else 'largest'} that was tried")
    return said


def tune(study: FederatedStudy, run: Run) -> Tuned:
    """All trials of a study, those that its folder holds not again, and what follows from them; nothing without a [tuning] table."""
    if (tuning := study.tuning) is None:
        return Tuned()
    names = study.federation.strategies
    trial_study = _trial_study(study, tuning)
    first = grids(tuning, names)
    counts = [f"{name} {len(values)}" for name, values in first.items()]
    counts += [f"{name} {len(values)}" for name, values in following_grids(tuning, names, {}).items()]
    stated = "" if tuning.own_trials is None else f"; of the study's own method, as its author states: {tuning.own_trials}"
    run.say(f"tuning on validation images, one split and seed: trials of {', '.join(counts)}{stated}")
    found = _accuracies(trial_study, run, first)
    chosen = {name: _best(found[name]) for name in first}
    pair = chosen.get("fedavg", {})
    if second := following_grids(tuning, names, pair):
        found |= _accuracies(trial_study, run, second)
        chosen |= {name: _best(found[name]) for name in second}
    chosen |= {name: pair for name in names if name in (*WEIGHTS, *ALONE) and name not in chosen and pair}
    edges = {name: said for name, trials in found.items() if (said := at_edge(chosen[name], [values for values, _ in trials]))}
    best = {name: max(accuracy for _, accuracy in trials) for name, trials in found.items() if name in names}
    longer = sorted((name for name in best if name in WEIGHTS), key=lambda name: -best[name])[: tuning.extended]
    results = {
        "split": "validation",
        "seed": run.options.seed * 1000,
        "rounds": tuning.rounds or study.federation.rounds,
        "trials": [
            {"strategy": name, "settings": values, "accuracy": accuracy} for name, trials in found.items() for values, accuracy in trials
        ],
        "counts": {name: len(trials) for name, trials in found.items()},
        "own_trials": tuning.own_trials,
        "chosen": {name: chosen[name] for name in names if name in chosen},
        "extended": longer,
        "edges": edges,
    }
    for name in names:
        if name in chosen:
            run.say(f"{name}: {in_words(chosen[name])}{f' ({best[name]:.2f} % on validation images)' if name in best else ''}")
    for name, said in edges.items():
        run.say(f"warning: {name}: {series(said)}; a longer list may give it a higher accuracy")
    if longer:
        run.say(f"{tuning.extended_rounds} rounds for {series(longer)}, the best on validation images")
    return Tuned(chosen, dict.fromkeys(longer, tuning.extended_rounds or 0), results)


def _trial_study(study: FederatedStudy, tuning: TuningTable) -> FederatedStudy:
    """The study with held-out images, on the inline engine, whose bits are those of the others."""
    validation, rounds = study.data.validation or tuning.validation, tuning.rounds or study.federation.rounds
    return dataclasses.replace(
        study,
        data=dataclasses.replace(study.data, validation=validation),
        federation=dataclasses.replace(study.federation, engine="inline", rounds=rounds, rounds_of={}),
        settings=dataclasses.replace(study.settings, validation=validation, split="validation", rounds=rounds),
    )


def _accuracies(study: FederatedStudy, run: Run, wanted: Mapping[str, list[Values]]) -> dict[str, list[tuple[Values, float]]]:
    """The trials of each strategy with the accuracy after the last round, in percent."""
    seed, device = run.options.seed * 1000, run.options.device
    cells = {
        name: [_trial(with_values(study.settings_for(name, seed, device), values), values, run.folder) for values in several]
        for name, several in wanted.items()
    }
    every = [cell for part in cells.values() for cell in part]
    watch = Watch(every)
    with watched(run.console, "rounds of trials", sum(cell.settings.rounds for cell in every), watch.done, now=watch.now):
        run_cells(study, every, run.options, load_data(study, run.options), run.say)
    return {
        name: [(values, float(cell.lines()[-1]["accuracy"])) for values, cell in zip(wanted[name], part, strict=True)]
        for name, part in cells.items()
    }


def _trial(settings: Settings, values: Values, folder: Path) -> Cell:
    name = "-".join([settings.strategy, *(f"{key}{_short(value)}" for key, value in values.items())]).replace(":", "")
    return Cell(settings, folder / "tuning" / name, f"trial of {settings.strategy}, {in_words(values)}", may_fail=True)


def _best(trials: Sequence[tuple[Values, float]]) -> Values:
    """The settings with the highest accuracy; of equal ones the first."""
    return max(trials, key=lambda trial: trial[1])[0]
