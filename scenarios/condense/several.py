"""Further sets of a condense study (``[method] sets = 3``), of other seeds: how much of an accuracy's spread is due to the set?

The first set is the study's: its files, figures and baselines are those of a study of one set. Of the others, files ``...-set2`` and so on,
the accuracy is measured.
"""

import math
import statistics as numbers

from distill import sharding
from distill.comparison import compared
from distill.condensed import CondensedSet
from distill.evaluation import Accuracy, Measured, accuracies
from distill.records import append_line
from distill.run import condense
from distill.sizes import Ipc
from scenarios.condense.schema import CondenseStudy
from scenarios.engine.ledger import matching
from scenarios.engine.record import Results
from scenarios.engine.study import Run, say

APART = 10**6  # between the seeds of two sets: evaluation networks take 1,000 from each


def condense_further(study: CondenseStudy, run: Run, largest: int, ipc: Ipc) -> list[CondensedSet]:
    """The second set and all after it at one ipc: finished ones from the folder, the others newly made or continued."""
    found = []
    for number in range(2, study.sets + 1):
        path = run.folder / f"condensed-ipc{largest}-set{number}.safetensors"
        if path.exists():
            found.append(CondensedSet.load(path).to(run.options.device))
            continue
        checkpoint = run.folder / f"checkpoint-ipc{largest}-set{number}.safetensors"
        condensed = condense(
            run.data,
            study.method,
            ipc=ipc,
            seed=run.options.seed + APART * (number - 1),
            checkpoint=checkpoint,
            metrics=run.folder / f"metrics-ipc{largest}-set{number}.jsonl",
            resume=True,
            progress=False if run.options.quiet else None,
            **study.made_with,
        )
        if sharding.rank() == 0:
            condensed.save(path)
            checkpoint.unlink(missing_ok=True)
        found.append(condensed)
    return found


def evaluate_further(study: CondenseStudy, run: Run, further: list[CondensedSet], ipc: int, part: Results) -> None:
    """Add ``sets`` to a part of the record: by network the accuracies of all sets, their mean with its interval over sets, both spreads."""
    table, metrics = study.evaluation, run.folder / "metrics.jsonl"
    if table is None or not further:
        return
    seeds = [run.options.seed * 1000 + k for k in range(table.seeds)]
    part["sets"] = {}
    for network in table.networks:
        first = part.get("cross_architecture", {}).get(network) or part["accuracy"]
        values = [Accuracy.read(first[study.method]).values]
        for number, condensed in enumerate(further, 2):
            recipe = compared(table.recipe or table.protocol, condensed, run.data, network)
            key = {"stage": "evaluate", "set": f"{study.method} (set {number})", "network": network, "ipc": ipc}
            done = {line["seed"]: Measured.read("condensed", line) for line in matching(metrics, key)}
            missing = [seed for seed in seeds if seed not in done]
            with run.console.status(f"training {network} on set {number}, {len(missing)} networks"):
                for one in accuracies(condensed, run.data, ["condensed"], network, recipe, missing, split=table.split):
                    done[one.seed] = one
                    append_line(metrics, {**key, **one.line()})
            values.append(tuple(done[seed].value for seed in seeds))
        part["sets"][network] = spread(values)
        say(run.console, f"  {network} on {len(values)} sets: {sentence(part['sets'][network])}")


def spread(values: list[tuple[float, ...]]) -> Results:
    """For a record: accuracies by set and network, their mean, its 95 % interval over the sets' means, and the standard deviations.

    ``spread_sets`` is of the sets' means, ``spread_networks`` of the networks of one set, in the mean. All are None where a network has no
    accuracy, and the last one where each set has one network.
    """
    if any(math.isnan(value) for one in values for value in one):
        shown = [[None if math.isnan(value) else value for value in one] for one in values]
        return {"values": shown, "mean": None, "low": None, "high": None, "spread_sets": None, "spread_networks": None}
    means = Accuracy(tuple(numbers.fmean(one) for one in values))
    inner = numbers.fmean(numbers.stdev(one) for one in values) if len(values[0]) > 1 else None
    outer = numbers.stdev(means.values)
    ends = {"mean": means.mean, "low": means.low, "high": means.high}
    return {"values": [list(one) for one in values], **ends, "spread_sets": outer, "spread_networks": inner}


def sentence(row: Results) -> str:
    """The figures of `spread` in words."""
    if row["mean"] is None:
        return "no mean, because networks failed"
    half = max(row["high"] - row["mean"], row["mean"] - row["low"])
    inner = "" if row["spread_networks"] is None else f", {row['spread_networks']:.2f} over the networks of a set"
    return f"{row['mean']:.1f} ± {half:.1f} over sets (standard deviation {row['spread_sets']:.2f} over sets{inner})"
