"""The study of kind "sweep_lr": condense with several step sizes, and choose one on held-out training images.

Every step size starts from the same images and sees the same random draws; every set is evaluated by networks of the same seeds, so that
differences are paired. Test images are never looked at. A step size that diverges is a row with its reason, not the end of the study.
"""

import json
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field

from distill.condensed import CondensedSet
from distill.configure import config_class, configure
from distill.data import ImageData
from distill.distiller import Config as MethodConfig
from distill.drawing import Drawing
from distill.errors import Diverged, InputError, clipped
from distill.evaluation import Accuracy, Measured, accuracies, summed_up
from distill.figures import step_size_curve
from distill.methods import METHODS
from distill.networks import create
from distill.paired import paired_difference
from distill.randomness import generator
from distill.records import append_line, read_lines
from distill.run import condense
from distill.shared_config import SHARED
from scenarios.condense.schema import CondenseStudy, condense_study
from scenarios.condense.step_sizes import NETWORKS, VALIDATION
from scenarios.engine.ledger import matching
from scenarios.engine.record import Config, Record, Results, Rows, Tables
from scenarios.engine.schema import DataTable, config_hash
from scenarios.engine.study import Run, say
from scenarios.reporting.text import shown

BAR = 24
NOTE = "Accuracy on held-out training images in percent: mean and 95 % interval over networks, last step of training."


@config_class
class SweepTable:
    """``[sweep]``: the setting that is varied, its values, and the settings that are smaller here than in the run that follows."""

    values: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=2)]
    key: str = "lr_img"
    shortened: tuple[str, ...] = ()


@dataclass(frozen=True)
class SweepStudy:
    """``kind = "sweep_lr"``."""

    base: CondenseStudy
    sweep: SweepTable
    merged: Config
    kind: str = "sweep_lr"

    @property
    def name(self) -> str:
        return self.base.name

    @property
    def title(self) -> str:
        return self.base.title

    @property
    def data(self) -> DataTable:
        return self.base.data

    @property
    def hash(self) -> str:
        return config_hash(self.merged)


def text(value: float) -> str:
    """A step size as text, in files, records and commands."""
    return f"{value:.4g}"


def study(name: str, title: str, tables: Tables, source: str) -> SweepStudy:
    """Check the tables [data], [method], [evaluation] (as of a condense study) and [sweep]."""
    tables = dict(tables)
    given = tables.pop("sweep", None)
    if not isinstance(given, dict):
        raise InputError(f"{source}: table [sweep] is missing; for example: [sweep] values = [0.1, 1.0, 10.0].")
    sweep = configure(SweepTable, given, f"{source}: [sweep]")
    if isinstance(tables.get("data"), dict):
        tables["data"] = {"validation": VALIDATION, **tables["data"]}
    evaluation = tables.get("evaluation", {})
    if isinstance(evaluation, dict):
        tables["evaluation"] = {"seeds": NETWORKS, "baselines": [], "split": "validation", **evaluation}
    base = condense_study(name, title, tables, source)
    assert base.evaluation is not None
    its = base.evaluation
    if its.split != "validation" or its.baselines or its.best or len(its.networks) != 1:
        raise InputError(
            f"{source}: [evaluation]: a step size is chosen on split 'validation' by one network and without baselines; leave "
            "'split', 'baselines' and 'best' out, and name one network."
        )
    if len(base.ipc) != 1:
        raise InputError(f"{source}: [method]: key 'ipc' is {list(base.ipc)}; allowed: one number of images a class.")
    known = [field for field, hint in _numbers(base.settings).items() if hint and field not in SHARED]
    if sweep.key not in known:
        raise InputError(
            f"{source}: [sweep]: key 'key' is {clipped(sweep.key)!r}; allowed for {base.method}: {', '.join(known) or 'nothing'}."
        )
    if len({text(value) for value in sweep.values}) < len(sweep.values):
        raise InputError(f"{source}: [sweep]: key 'values': a value is there twice; allowed: different ones (to four digits).")
    values = tuple(sorted(float(text(value)) for value in sweep.values))  # what is run is what is written
    for value in values:  # a value that the method does not take is an error now
        configure(METHODS[base.method][0], {**_settings(base), sweep.key: value}, f"{source}: [sweep]: method {base.method!r}")
    merged = {**base.merged, "kind": "sweep_lr", "sweep": {"values": list(values), "key": sweep.key, "shortened": list(sweep.shortened)}}
    return SweepStudy(base, SweepTable(values, sweep.key, sweep.shortened), merged)


def _numbers(settings: MethodConfig) -> dict[str, bool]:
    """Whether each setting is a step size: its name begins with lr_ or ends with _lr."""
    return {name: name.startswith("lr") or name.endswith("_lr") for name in vars(settings)}


def _settings(base: CondenseStudy) -> Results:
    return base.made_with


def check(study: SweepStudy, data: ImageData) -> None:
    """Raise `InputError` for what would fail after minutes of work."""
    assert study.base.evaluation is not None
    for name in (study.base.settings.network, *study.base.evaluation.networks):
        create(name, data.spec, generator(0, "check"))
    if not len(data.validation):
        raise InputError(f"data {data.spec.name!r} have no held-out images; set data.validation (for example 0.2).")


def fill(study: SweepStudy, run: Run) -> None:
    """Condense and evaluate at each step size, then choose."""
    data, results, console = run.data, run.results, run.console
    base, key = study.base, study.sweep.key
    own = _settings(base)
    results["data"] = {
        "name": data.spec.name,
        "train": len(data.train),
        "validation": len(data.validation),
        "fingerprint": data.fingerprint,
    }
    results |= {"method": base.method, "key": key, "iterations": own.get("iterations")}
    results["scale"] = getattr(sys.modules.get(METHODS[base.method][1].__module__), "STEP_SIZE", "") if key == "lr_img" else ""
    rows: dict[str, Results] = {}
    results["step_sizes"] = rows
    for place, value in enumerate(study.sweep.values, 1):
        row = rows[text(value)] = _one(study, run, value)
        if "reason" in row:
            say(console, f"[{place}/{len(study.sweep.values)}] {key} {text(value)}: failed: {row['reason']}")
        else:
            say(console, f"[{place}/{len(study.sweep.values)}] {key} {text(value)}: {shown(row['accuracy'])} %")
    results |= chosen({float(name): Accuracy.read(row["accuracy"]) for name, row in rows.items() if "reason" not in row}, rows)
    shortened = {name: own[name] for name in study.sweep.shortened if name in own}
    results["shortened"] = shortened
    results["command"] = _command(study, results["chosen"])


def _one(study: SweepStudy, run: Run, value: float) -> Results:
    """A step size's row: its accuracy, or the reason why it has none. metrics.jsonl is the ledger of both."""
    options, data, folder = run.options, run.data, run.folder
    base, name, metrics = study.base, text(value), folder / "metrics.jsonl"
    assert base.evaluation is not None
    for line in read_lines(metrics):
        if line.get("stage") == "failed" and line.get("step_size") == name:
            return {"reason": line["reason"]}
    path, checkpoint = folder / f"condensed-{name}.safetensors", folder / f"checkpoint-{name}.safetensors"
    settings = {**_settings(base), study.sweep.key: value}
    try:
        if path.exists():
            condensed = CondensedSet.load(path).to(options.device)
        else:
            condensed = condense(
                data,
                base.method,
                ipc=base.ipc[0],
                seed=options.seed,
                checkpoint=checkpoint,
                metrics=metrics,
                resume=True,
                progress=False if options.quiet else None,
                tags={"step_size": name},
                **settings,
            )
            condensed.save(path)
    except Diverged as error:
        checkpoint.unlink(missing_ok=True)
        append_line(metrics, {"stage": "failed", "step_size": name, "reason": str(error)})
        return {"reason": str(error)}
    checkpoint.unlink(missing_ok=True)
    table = base.evaluation
    recipe, network = table.recipe or table.protocol, table.networks[0]
    seeds = [options.seed * 1000 + k for k in range(table.seeds)]
    mark = {"stage": "evaluate", "step_size": name, "network": network}
    lines = matching(metrics, mark)
    done = {line["seed"]: Measured.read(name, line) for line in lines}
    missing = [seed for seed in seeds if seed not in done]
    for measured in accuracies(condensed, data, ["condensed"], network, recipe, missing, split="validation"):
        done[measured.seed] = measured
        append_line(metrics, {**mark, **measured.line()})
    accuracy = summed_up([done[seed] for seed in seeds])
    row: Results = {"accuracy": accuracy.as_dict(), "distil_seconds": condensed.provenance.seconds}
    return row | ({"reason": accuracy.reason} if accuracy.failed else {})


def chosen(accuracy: dict[float, Accuracy], rows: Results) -> Results:
    """The step size of the highest mean, its margin over the next best (paired over networks), and whether it lies at the range's edge.

    ``rows`` are all step sizes that were tried; ``accuracy`` those with an accuracy. Of equal means the smaller step size is taken.
    ``level`` are the others that are not significantly lower. ``edge`` is "low", "high" or None: beside a step size that failed there is
    no edge. Raises `InputError` where all failed.
    """
    if not accuracy:
        raise InputError(f"every step size failed; the first one: {next(iter(rows.values()))['reason']}")
    best = max(sorted(accuracy), key=lambda value: accuracy[value].mean)
    differences = {value: paired_difference(other.values, accuracy[best].values) for value, other in accuracy.items() if value != best}
    tried = sorted(float(name) for name in rows)
    result: Results = {"chosen": best, "margin": None, "edge": {tried[0]: "low", tried[-1]: "high"}.get(best)}
    if differences:
        second = max(sorted(differences), key=lambda value: accuracy[value].mean)
        margin = differences[second]
        result["margin"] = {"mean": margin.mean, "low": margin.low, "high": margin.high, "against": second}
    result["level"] = sorted(value for value, found_there in differences.items() if not found_there.significant)
    return result


def _command(study: SweepStudy, value: float) -> str:
    """The command that condenses with the chosen value: the user's own settings, without what the sweep made shorter."""
    base, data = study.base, study.base.data
    kind = METHODS[base.method][0]
    defaults = {name: field.default for name, field in kind.__dataclass_fields__.items()}
    own = {k: v for k, v in _settings(base).items() if k not in (study.sweep.key, *study.sweep.shortened)}
    usual = configure(kind, {}, "defaults")
    changed = {k: v for k, v in own.items() if v != defaults.get(k) and v != getattr(usual, k)}
    parts = ["--data", data.name, "--method", base.method, "--ipc", str(base.ipc[0])]
    for option, number in (("--size", data.size), ("--imbalance", data.imbalance)):
        parts += [option, str(number)] if number is not None else []
    if data.classes is not None:
        parts += ["--classes", ",".join(map(str, data.classes))]
    settings = {study.sweep.key: text(value), **{k: v if isinstance(v, str) else json.dumps(v) for k, v in changed.items()}}
    for name, given in settings.items():
        parts += ["--set", f"{name}={given}"]
    unsaid = {"zca = true": data.zca, "its classes": data.class_names, "its mean and std": data.mean}
    needed = ", ".join(key for key, value in unsaid.items() if value)
    return shlex.join(["distill", "condense", *parts]) + (f"  # needs {needed} in the [data] of a scenario file" if needed else "")


def draw(folder: Path, record: Record) -> Iterator[tuple[str, Drawing]]:
    """Accuracy against the step size."""
    results = record["results"]
    rows = {float(name): Accuracy.read(row["accuracy"]) for name, row in results["step_sizes"].items() if "reason" not in row}
    failed = [float(name) for name, row in results["step_sizes"].items() if "reason" in row]
    yield "step-sizes", step_size_curve(rows, failed, results["chosen"], results["key"])


def accuracy_table(record: Record) -> Rows:
    """Header and rows: one row a step size, with a bar between the lowest and the highest mean."""
    results = record["results"]
    rows = results.get("step_sizes", {})
    means = [row["accuracy"]["mean"] for row in rows.values() if "reason" not in row]
    if not rows:
        return []
    table = [[results["key"], "held-out accuracy, %", "from the lowest to the highest".ljust(BAR)]]
    for name, row in rows.items():
        if "reason" in row:
            table.append([name, "failed", "".ljust(BAR)])
            continue
        share = (row["accuracy"]["mean"] - min(means)) / ((max(means) - min(means)) or 1)
        mark = " <" if float(name) == results.get("chosen") else ""
        table.append([name, shown(row["accuracy"]), ("#" * (1 + round(share * (BAR - 3))) + mark).ljust(BAR)])
    return table


def answer(record: Record) -> str:
    """What was chosen, by what margin, and what to do with it; one sentence a line."""
    results = record["results"]
    if "chosen" not in results:
        return f"No step size was chosen. Status: {record['status']}."
    key, best, margin, edge = results["key"], text(results["chosen"]), results["margin"], results["edge"]
    accuracy = shown(results["step_sizes"][best]["accuracy"])
    lines = [f"{key}={best} is best on {results['data']['validation']} held-out training images: {accuracy} %."]
    if margin:
        low, high = margin["low"], margin["high"]
        spread = "one network: no interval" if low is None else f"95 % interval {low:+.1f} to {high:+.1f}, paired over networks"
        sure = low is not None and low > 0
        lines.append(
            f"It is {margin['mean']:.1f} points above {key}={text(margin['against'])} ({spread}){'' if sure else ': not significant'}."
        )
    if results["level"]:
        lines.append(f"Not significantly below it: {', '.join(map(text, results['level']))}.")
    if edge:
        ends = (results["chosen"] / 30, results["chosen"]) if edge == "low" else (results["chosen"], results["chosen"] * 30)
        way = "smallest" if edge == "low" else "largest"
        lines.append(f"It is the {way} that was tried: extend the range, for example --from {text(ends[0])} --to {text(ends[1])}.")
    for name, row in results["step_sizes"].items():
        if "reason" in row:
            lines.append(f"{key}={name} failed: {row['reason']}")
    if shorter := results["shortened"]:
        stated = ", ".join(f"{name}={value}" for name, value in shorter.items())
        lines.append(f"Chosen in a short run ({stated}). Short runs favour large step sizes: for a much longer run also try a third of it.")
    lines += [results["scale"]] if results["scale"] else []
    return "\n".join([*lines, f"Use it: {results['command']}"])


def question(config: Config) -> str:
    """The study's question in a sentence."""
    return f"Which {config['sweep']['key']} suits {config['method']['name']} on {config['data']['name']}, by held-out training images?"


def missing(record: Record, config: Config) -> list[str]:
    """What a reader could miss."""
    sentences = [] if record.get("status") == "done" else [f"The run is not finished (status {record.get('status')})."]
    return [*sentences, "One seed of the condensation; the test images were not used."]
