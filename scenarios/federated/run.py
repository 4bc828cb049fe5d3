"""The study of kind "federated": strategies under one split, one model and one byte meter, over several seeds (see apps/federated)."""

import dataclasses
from pathlib import Path

from apps.federated.condense import partition_of
from apps.federated.settings import ALONE
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import Accuracy
from distill.networks import create
from distill.randomness import generator
from scenarios.engine.composition import one_after_another
from scenarios.engine.progress import watched
from scenarios.engine.public_part import hand_over, mark
from scenarios.engine.record import Line, Results
from scenarios.engine.study import Run, say
from scenarios.federated import left_out, unions
from scenarios.federated.cells import answered, lines_of_cell, run_cells
from scenarios.federated.node import check_statistics
from scenarios.federated.schema import FederatedStudy


def check(study: FederatedStudy, data: ImageData) -> None:
    """Raise `InputError` for what would fail after minutes of work."""
    create(study.settings.network, data.spec, generator(0, "check"))
    if not len(getattr(data, study.federation.split)):
        raise InputError(f"the study evaluates on the {study.federation.split} split, which data {data.spec.name!r} does not have.")
    for place in range(study.federation.seeds):
        partition_of(data, dataclasses.replace(study.settings, seed=place))
    if study.privacy is not None:  # the clients will not say why they fail
        check_statistics(study.privacy, study.settings, data)
    if study.federation.engine != "inline" or any(s not in ALONE for s in study.federation.strategies):
        import apps.federated.messages  # noqa: F401  (says how to install Flower, when it is not there)


def fill(study: FederatedStudy, run: Run) -> None:
    """One run for each strategy and seed, each in its own folder, which is its ledger; then the table."""
    options, data, folder, results, console = run.options, run.data, run.folder, run.results, run.console
    if study.settings.privacy is not None:
        if study.privacy is not None:
            check_statistics(study.privacy, study.settings, data, str(options.data_root or ""))
        mark(folder)
    seeds = [options.seed * 1000 + k for k in range(study.federation.seeds)]
    settings = study.settings_for(study.federation.strategies[0], seeds[0], options.device)
    labels = data.train.labels.cpu().numpy()
    splits = {seed: partition_of(data, dataclasses.replace(settings, seed=seed)) for seed in seeds}
    results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test), "fingerprint": data.fingerprint}
    results["split"] = {
        "hashes": {str(seed): split.hash for seed, split in splits.items()},
        "counts": splits[seeds[0]].counts(labels, data.spec.num_classes).tolist(),
        "classes": list(data.spec.classes),
    }
    results["engine"] = study.federation.engine
    cells = {name: [study.settings_for(name, seed, options.device) for seed in seeds] for name in study.federation.strategies}
    every = [cell for part in cells.values() for cell in part]
    rounds = len(every) * study.federation.rounds
    say(console, f"{len(every)} federations ({', '.join(cells)}), {rounds} rounds in all")
    with watched(console, "rounds", rounds, lambda: sum(len(lines_of_cell(cell, folder)) for cell in every)):
        run_cells(study, every, options, data, folder, lambda text: say(console, text))
    results["strategies"] = {name: summary([answered(cell, lines_of_cell(cell, folder)) for cell in part]) for name, part in cells.items()}
    if study.settings.privacy is not None:
        results["public"] = public_part(study, options.seed, folder)


def public_part(study: FederatedStudy, seed: int, folder: Path) -> Results:
    """Put the unions of the private uploads into public/: each with the total of its clients' rounds, and all seeds' total."""
    sets = {name: unions.load(study, folder, path) for name, path in unions.sets(study, seed).items() if (folder / path).exists()}
    stated = [condensed.provenance.dp for condensed in sets.values()]
    return hand_over(folder, sets, stated[0] if len(stated) == 1 else one_after_another(stated))


def summary(runs: list[list[Line]]) -> Results:
    """Of one strategy: accuracy by round with its interval over seeds, mean bytes by round, and who was dropped."""
    rounds = []
    for number in range(len(runs[0])):
        accuracy = Accuracy(tuple(lines[number]["accuracy"] for lines in runs))
        moved = {way: sum(lines[number][way] for lines in runs) / len(runs) for way in ("up", "down", "images", "dropped")}
        total = sum(line["up"] + line["down"] for lines in runs for line in lines[: number + 1]) / len(runs)
        rounds.append({"round": runs[0][number]["round"], "accuracy": accuracy.as_dict(), **moved, "cumulative_bytes": total})
    refused = [
        {"run": place, "round": line["round"], "client": client["client"], "status": client["status"], "why": client["why"]}
        for place, lines in enumerate(runs)
        for line in lines
        for client in line["clients"]
        if client["status"] not in ("accepted", "empty")
    ]
    notes = [
        {"run": place, "round": line["round"], "note": line["note"]} for place, lines in enumerate(runs) for line in lines if line["note"]
    ]
    return {
        "rounds": rounds,
        "accuracy": rounds[-1]["accuracy"],
        "bytes": rounds[-1]["cumulative_bytes"],
        "dropped": refused,
        "notes": notes,
        "left_out": [left_out.left_out(lines) for lines in runs],
    }
