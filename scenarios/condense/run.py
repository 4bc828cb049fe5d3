"""The study of kind "condense": condense a data set at each IPC, and evaluate the sets."""

import time

from rich.console import Console

from distill import sharding
from distill.comparison import DECODED, LABELLED, compared, coreset_of, notes_on, rows_of, training_of
from distill.condensed import CondensedSet
from distill.coresets import train_scorer
from distill.data import ImageData
from distill.errors import Diverged, InputError
from distill.evaluation import Accuracy, Measured, accuracies, best_line, summed_up
from distill.methods.advice import advice
from distill.networks import create, flops, parameter_count
from distill.randomness import generator
from distill.records import append_line, read_lines
from distill.run import condense
from distill.set_file import check_size
from distill.set_notes import set_notes
from distill.sizes import Ipc, counts_of
from distill.statistics import ExactStatistics
from distill.synthetic import check_count
from distill.teachers import teacher_for
from scenarios.condense import curve as set_curve
from scenarios.condense import several
from scenarios.condense.continued import checkpoint as checkpoint_name
from scenarios.condense.continued import take_lines
from scenarios.condense.schema import CondenseStudy
from scenarios.engine.ledger import matching
from scenarios.engine.record import Results
from scenarios.engine.schema import EvaluationTable
from scenarios.engine.study import Run, say


def fill(study: CondenseStudy, run: Run) -> None:
    """Condense at each IPC, then evaluate the sets."""
    options, data, folder, results, console = run.options, run.data, run.folder, run.results, run.console
    metrics = folder / "metrics.jsonl"
    results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test), "fingerprint": data.fingerprint}
    asked = by_largest(study, data)
    sets = {largest: _condense(study, run, largest, ipc) for largest, ipc in asked.items()}
    further = {largest: several.condense_further(study, run, largest, ipc) for largest, ipc in asked.items()}
    others = sharding.rank() > 0
    sharding.end()
    if others:  # judging is the first process's
        return
    for ipc, condensed in sets.items():
        say(console, f"{study.method} at ipc {ipc}: {len(condensed)} images, {condensed.provenance.seconds:.0f} s")
        part: Results = {"images": len(condensed), "bytes": condensed.nbytes, "distil_seconds": condensed.provenance.seconds}
        losses = [line["loss"] for line in read_lines(metrics) if line.get("stage") == "distil" and line.get("ipc") == ipc]
        part |= {"counts": list(condensed.counts)} if not isinstance(asked[ipc], int) else {}
        part |= {"first_loss": losses[0], "last_loss": losses[-1]} if losses else {}
        results[f"ipc{ipc}"] = part
        if study.evaluation is None:
            _note(part, set_notes(condensed), console)
        else:
            _judge(study.evaluation, study.method, run, condensed, ipc, part)
            several.evaluate_further(study, run, further[ipc], ipc, part)
        reached = part["accuracy"][study.method]["mean"] if study.evaluation is not None else None
        along, sentence = set_curve.measured(study, options.seed, data, folder, ipc, condensed, accuracy=reached)
        part |= {"curve": along} if along else {}
        _note(part, [sentence] if sentence else [], console)
    if study.evaluation is not None:
        results["networks"] = {}
        for name in study.evaluation.networks:
            network = create(name, data.spec, generator(0, "count"))
            results["networks"][name] = {"parameters": parameter_count(network), "flops": flops(network, data.spec)}


def _note(part: Results, notes: list[str], console: Console) -> None:
    """Print sentences and put those that it does not have yet into the record's part."""
    new = [note for note in notes if note not in part.get("notes", [])]
    if new:
        part["notes"] = [*part.get("notes", []), *new]
        say(console, "\n".join(f"  {note}" for note in new))


def advised(study: CondenseStudy, data: ImageData) -> list[str]:
    """See `distill.methods.advice`: lines for each number of images a class."""
    return [line for largest in by_largest(study, data) for line in advice(study.method, study.settings, data.spec, largest)]


def by_largest(study: CondenseStudy, data: ImageData) -> dict[int, Ipc]:
    """The study's sizes, by the largest class's number of images, which names results and files."""
    sizes: dict[int, Ipc] = {}
    for ipc in study.ipc:
        counts = counts_of(ipc, ExactStatistics(data))
        sizes[counts if isinstance(counts, int) else max(counts)] = ipc
    return sizes


def _condense(study: CondenseStudy, run: Run, largest: int, ipc: Ipc) -> CondensedSet:
    """The finished set of this folder, or a newly made one."""
    options, data, folder = run.options, run.data, run.folder
    name = "condensed" if len(study.ipc) == 1 else f"condensed-ipc{largest}"
    path = folder / f"{name}.safetensors"
    if path.exists():
        return CondensedSet.load(path).to(options.device)
    checkpoint = folder / checkpoint_name(largest)
    earlier = options.resume_from / checkpoint.name if options.resume_from is not None else None
    if earlier is not None and not earlier.is_file():
        earlier = None
    if earlier is not None and not checkpoint.exists() and sharding.rank() == 0:
        take_lines(earlier.parent, folder / "metrics.jsonl", largest)
    try:
        condensed = condense(
            data,
            study.method,
            ipc=ipc,
            seed=options.seed,
            checkpoint=checkpoint,
            metrics=folder / "metrics.jsonl",
            resume=True,
            resume_from=earlier,
            progress=False if options.quiet else None,
            tags={"ipc": largest},
            snapshots=set_curve.snapshots(study, data, folder, largest),
            **study.made_with,
        )
    except Diverged as error:
        if not checkpoint.exists() or folder.parent.name == "stages" or not isinstance(ipc, int):
            raise
        raise Diverged(f"{error} Add --resume-from {folder} to continue from its last workable state with another step size.") from None
    if sharding.rank() > 0:
        return condensed
    condensed.save(path)
    checkpoint.unlink(missing_ok=True)
    return condensed


def _judge(table: EvaluationTable, method: str, run: Run, condensed: CondensedSet, ipc: int, part: Results) -> None:
    """Train the evaluation networks that metrics.jsonl does not have yet: a stopped study loses at most one network."""
    options, data, console, metrics = run.options, run.data, run.console, run.folder / "metrics.jsonl"
    seeds = [options.seed * 1000 + k for k in range(table.seeds)]
    start, selected = time.monotonic(), list[str]()
    for network in table.networks:
        recipe = compared(table.recipe or table.protocol, condensed, data, network)
        accuracies_by_set: dict[str, Accuracy] = {}
        # Trained before the evaluation networks.
        teacher = teacher_for(recipe.teacher, condensed, data, progress=False if options.quiet else None)
        names = rows_of(table.baselines, condensed, recipe)
        train_scorer([coreset_of(name) for name in names], data, table.scorer, progress=False if options.quiet else None)
        for label in ("condensed", *names):
            # The whole set does not depend on the IPC: it is trained once for the study.
            key: dict[str, str | int] = {"stage": "evaluate", "set": method if label == "condensed" else label, "network": network}
            key |= {"ipc": ipc} if label != "whole" else {}
            done = {line["seed"]: Measured.read(label, line) for line in matching(metrics, key)}
            missing = [seed for seed in seeds if seed not in done]
            title = f"{network} on {key['set']}"
            with console.status(f"training {title}, {len(missing)} networks") as status:
                for one in accuracies(
                    condensed,
                    data,
                    [label],
                    network,
                    recipe,
                    missing,
                    split=table.split,
                    whole_epochs=table.whole_epochs,
                    scorer=table.scorer,
                    best=bool(table.best),
                ):
                    done[one.seed] = one
                    append_line(metrics, {**key, **one.line()})
                    status.update(f"training {title}: {len(done)} of {len(seeds)} networks, the last at {one.value:.1f} %")
            row = accuracies_by_set[str(key["set"])] = summed_up([done[seed] for seed in seeds])
            say(console, f"  {title}: {row}: {row.reason}" if row.failed else f"  {title}: {row} %")
            selected += [best_line(title, row, table.split)] if row.best else []
        kinds = {method: "condensed"}
        trained = {n: training_of(kinds.get(n, n), condensed, data, recipe, table.whole_epochs).as_dict() for n in accuracies_by_set}
        named = {name: {**row.as_dict(), **trained[name]} for name, row in accuracies_by_set.items()}
        if network == table.networks[0]:
            part["accuracy"] = named
        if len(table.networks) > 1:
            part.setdefault("cross_architecture", {})[network] = named
    part["augmentation"] = recipe.augmentation
    notes = notes_on(condensed, data, recipe, table.baselines, teacher, scorer=table.scorer)
    _note(part, [*notes, *selected], console)
    part["evaluate_seconds"] = time.monotonic() - start


def check(study: CondenseStudy, data: ImageData) -> None:
    """Raise `InputError` for what would fail after minutes of work."""
    for ipc in study.ipc:
        mean = int(ipc.partition(":")[2]) if isinstance(ipc, str) else ipc
        if isinstance(mean, int):  # before counts are dealt out one by one
            check_size(mean * len(data.classes), data.spec)
        sizes = counts_of(ipc, ExactStatistics(data))
        check_size(sizes * len(data.classes) if isinstance(sizes, int) else sum(sizes), data.spec)
        if not study.merged["method"].get("more_images_than_data"):
            check_count(data.counts, sizes if isinstance(sizes, int) else max(sizes))
    formed = [name for name in (study.evaluation.baselines if study.evaluation else ()) if LABELLED.get(name, name) in DECODED]
    if formed and getattr(study.settings, "decode", "none") == "none":
        raise InputError(f"baseline {formed[0]} is stored in the form of a decoded set, and decode is 'none'; leave it out.")
    networks = [study.settings.network, *(study.evaluation.networks if study.evaluation else ())]
    for name in networks:
        create(name, data.spec, generator(0, "check"))
    by_largest(study, data)
    split = study.evaluation.split if study.evaluation else "train"
    if not len(getattr(data, split)):
        raise InputError(
            f"the study evaluates on the {split} split, which data {data.spec.name!r} does not have; set data.validation, or add images."
        )
