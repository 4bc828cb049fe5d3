"""The study of kind "federated": strategies under one split, one model and one byte meter, over several seeds (see apps/federated)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from apps.federated.admission import held_out_images
from apps.federated.condense import partition_of
from apps.federated.settings import ALONE, CONDENSING, method_config
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import Accuracy
from distill.methods.advice import advice
from distill.networks import create
from distill.randomness import generator
from scenarios.engine.composition import one_after_another
from scenarios.engine.progress import watched
from scenarios.engine.public_part import hand_over, mark
from scenarios.engine.record import Line, Results
from scenarios.engine.study import Run
from scenarios.federated import left_out, unions
from scenarios.federated.attacked import backdoor, rows
from scenarios.federated.cells import row_cell, run_cells
from scenarios.federated.node import check_statistics
from scenarios.federated.schema import FederatedStudy
from scenarios.federated.tuning import tune
from scenarios.federated.watch import Watch, client_seconds, moved


def check(study: FederatedStudy, data: ImageData) -> None:
    """Raise `InputError` for what would fail after minutes of work."""
    create(study.settings.network, data.spec, generator(0, "check"))
    if not len(getattr(data, study.federation.split)):
        raise InputError(f"the study evaluates on the {study.federation.split} split, which data {data.spec.name!r} does not have.")
    for place in range(study.federation.seeds):
        partition_of(data, dataclasses.replace(study.settings, seed=place))
    held_out_images(data, study.settings.admission)
    if study.privacy is not None:  # the clients will not say why they fail
        check_statistics(study.privacy, study.settings, data)
    if study.federation.engine != "inline" or any(s not in ALONE for s in study.federation.strategies):
        import apps.federated.messages  # noqa: F401  (says how to install Flower, when it is not there)


def advised(study: FederatedStudy, data: ImageData) -> list[str]:
    """See `distill.methods.advice`: of the uploads, where a strategy has condensed ones."""
    upload = study.settings.upload
    makes = any(strategy in CONDENSING for strategy in study.federation.strategies)
    return advice(upload.method, method_config(study.settings), data.spec, upload.ipc) if makes else []


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
    tuned = tune(study, run)
    if tuned.results:
        results["tuning"] = tuned.results
    cells = {
        row.name(study): [
            row_cell(study, row, tuned.applied(study.settings_for(row.strategy, seed, options.device)), folder) for seed in seeds
        ]
        for row in rows(study)
    }
    every = [cell for part in cells.values() for cell in part]
    rounds = sum(cell.settings.rounds for cell in every)
    run.say(f"{len(every)} federations ({', '.join(cells)}), {rounds} rounds in all")
    watch = Watch(every)
    with watched(console, "rounds", rounds, watch.done, now=watch.now, news=watch.news) as say_news:

        def say(line: str) -> None:
            say_news()  # a run's rounds stand before its end, whatever the clock
            run.say(line)

        run_cells(study, every, options, data, say)
    targets = study.federation.targets
    results["strategies"] = {name: summary([cell.answered(cell.lines()) for cell in part], targets) for name, part in cells.items()}
    for name, part in cells.items():
        opened = [value for cell in part if (value := backdoor(cell.folder, cell.settings, cell.attack, data)) is not None]
        if opened:
            results["strategies"][name]["backdoor"] = Accuracy(tuple(opened)).as_dict()
    if study.settings.privacy is not None:
        results["public"] = public_part(study, options.seed, folder)


def public_part(study: FederatedStudy, seed: int, folder: Path) -> Results:
    """Put the unions of the private uploads into public/: each with the total of its clients' rounds, and all seeds' total."""
    sets = {name: unions.load(study, folder, path) for name, path in unions.sets(study, seed).items() if (folder / path).exists()}
    stated = [condensed.provenance.dp for condensed in sets.values()]
    return hand_over(folder, sets, stated[0] if len(stated) == 1 else one_after_another(stated))


def summary(runs: list[list[Line]], targets: Sequence[float] = ()) -> Results:
    """Of one strategy: accuracy by round with its interval over seeds, mean bytes and client seconds by round, and who was dropped."""
    rounds = []
    for number in range(len(runs[0])):
        accuracy = Accuracy(tuple(lines[number]["accuracy"] for lines in runs))
        moved = {way: sum(lines[number][way] for lines in runs) / len(runs) for way in ("up", "down", "images", "dropped")}
        total = sum(line["up"] + line["down"] for lines in runs for line in lines[: number + 1]) / len(runs)
        seconds = [client_seconds(lines[number]) for lines in runs]
        known = [each for each in seconds if each is not None]
        mean = {"client_seconds": sum(known) / len(known)} if len(known) == len(runs) else {}
        rounds.append({"round": runs[0][number]["round"], "accuracy": accuracy.as_dict(), **moved, "cumulative_bytes": total, **mean})
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
        **({"targets": {f"{target:g}": reached(runs, target) for target in targets}} if targets else {}),
    }


def reached(runs: list[list[Line]], target: float) -> Results:
    """When a strategy first had ``target`` percent: ``reached`` of its runs ever had, and their mean round, bytes and client seconds.

    The means are None unless all runs reached it, since those that did are the faster ones.
    """
    firsts = [next((place for place, line in enumerate(lines) if line["accuracy"] >= target), None) for lines in runs]
    parts = [lines[: first + 1] for lines, first in zip(runs, firsts, strict=True) if first is not None]
    if len(parts) < len(runs):
        return {"reached": len(parts), "rounds": None, "bytes": None}
    rounds = sum(lines[-1]["round"] for lines in parts) / len(parts)
    return {"reached": len(parts), "rounds": rounds, "bytes": 1e6 * sum(moved(lines) for lines in parts) / len(parts)}
