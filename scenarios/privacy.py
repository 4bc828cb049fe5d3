"""The study of kind "privacy": private condensed sets and what they cost, an audit of the mechanism, and attacks on what was trained.

Three parts, each there when its table is: [privacy] with [method] and [evaluation] makes and judges private sets; [audit] looks for
canaries in the mechanism's own releases and fails when they say more than the account; [attack] asks whom membership inference finds.
"""

import dataclasses
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console

from apps.privacy.attacks import losses_and_margins, threshold_scores
from apps.privacy.canaries import audit
from apps.privacy.figures import roc_curves
from apps.privacy.metrics import by_run, membership
from apps.privacy.networks import drawn_once
from apps.privacy.private_start import private_kmeans
from apps.privacy.private_statistics import PrivateStatistics
from apps.privacy.statement import guarantee
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.evaluation import Accuracy, accuracies, accuracy
from distill.figures import accuracy_bars, image_grid
from distill.methods import METHODS
from distill.networks import create
from distill.randomness import derived_seed, generator
from distill.records import append_line, read_lines, write_json, write_whole
from distill.run import distil
from distill.train import protocol, train_network
from scenarios.folder import Options, say
from scenarios.privacy_schema import AttackTable, AuditTable, PrivacyStudy, PrivacyTable
from scenarios.privacy_schema import study as study
from scenarios.report import shown


class GuaranteeBroken(AssertionError):
    """An audit found more than the account says."""


def check(study: PrivacyStudy, data: ImageData) -> None:
    """What would fail after minutes of work fails now."""
    for name in (*study.evaluation.networks, METHODS[study.method][0](**study.settings).network or "ConvNet"):
        create(name, data.spec, generator(0, "check"))
    if study.privacy is not None:
        _statistics(study, data, study.privacy.epsilon[0], None)


def fill(study: PrivacyStudy, options: Options, data: ImageData, folder: Path, results: dict[str, Any], console: Console) -> None:
    """The mechanism is audited first: there is no point in sets from a broken one."""
    results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test)}
    if study.audit is not None:
        _audit(study.audit, options, folder, results, console)
    if study.privacy is not None:
        for epsilon in study.privacy.epsilon:
            _private(study, study.privacy, options, data, folder, results, epsilon, console)
    if study.attack is not None:
        _attack(study, study.attack, options, data, folder, results, console)


def _audit(table: AuditTable, options: Options, folder: Path, results: dict[str, Any], console: Console) -> None:
    start = time.monotonic()
    found = audit(epsilon=table.epsilon, delta=table.delta, runs=table.runs, confidence=table.confidence, seed=options.seed)
    results["audit"] = {**found.as_dict(), "seconds": time.monotonic() - start}
    say(console, f"audit: {found}")
    if not found.holds:
        write_json(folder / "audit.json", results["audit"])
        raise GuaranteeBroken(str(found))


# Private sets


def _statistics(study: PrivacyStudy, data: ImageData, epsilon: float, ledger: Path | None) -> PrivateStatistics:
    table = study.privacy
    assert table is not None
    return PrivateStatistics(
        data,
        epsilon,
        table.delta,
        releases=table.networks or None,
        sample_rate=table.sample_rate,
        start_releases=table.start_releases if table.start == "kmeans" else 0,
        start_share=table.start_share,
        clip=table.clip,
        population=table.population,
        classes=study.data.classes,
        ledger=ledger,
    )


def _condense(study: PrivacyStudy, source: Any, seed: int, start: Any, options: Options, checkpoint: Path | None) -> CondensedSet:
    """The study's method on private or exact statistics: the same networks, the same start."""
    table, settings = study.privacy, dict(study.settings)
    network: Any = None
    if table is not None and table.networks:
        name = settings.pop("network", "ConvNet")
        network = drawn_once(name, table.networks)
        settings.setdefault("augmentation", "none")  # a new augmentation would be a new release
    if start is not None:
        settings.pop("initial", None)
    return distil(
        source,
        study.method,
        ipc=study.ipc,
        seed=seed,
        network=network,
        initial=start,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        progress=False if options.quiet or checkpoint is None else None,
        **settings,
    )


def _private_set(
    study: PrivacyStudy, data: ImageData, epsilon: float, seed: int, options: Options, folder: Path | None, name: str = ""
) -> tuple[CondensedSet, CondensedSet | None]:
    """(the private set, the private start where there is one)."""
    table = study.privacy
    assert table is not None
    statistics = _statistics(study, data, epsilon, folder / f"{name}-releases" if folder else None)
    start = private_kmeans(statistics, study.ipc, seed) if table.start == "kmeans" else None
    return _condense(study, statistics, seed, start, options, folder / f"checkpoint-{name}.safetensors" if folder else None), start


def _private(
    study: PrivacyStudy,
    table: PrivacyTable,
    options: Options,
    data: ImageData,
    folder: Path,
    results: dict[str, Any],
    epsilon: float,
    console: Console,
) -> None:
    name = f"epsilon{epsilon:g}"
    path, twin, first = folder / f"condensed-{name}.safetensors", folder / f"exact-{name}.safetensors", folder / f"start-{name}.safetensors"
    part: dict[str, Any] = results.setdefault(name, {})
    if not path.exists():
        made, start = _private_set(study, data, epsilon, options.seed, options, folder, name)
        if start is not None:
            start.save(first)
        made.save(path)
        (folder / f"checkpoint-{name}.safetensors").unlink(missing_ok=True)
    private = CondensedSet.load(path).to(options.device)
    part |= {"privacy": private.provenance.dp, "distil_seconds": private.provenance.seconds, "guarantee": guarantee(private.provenance.dp)}
    say(console, f"{study.method} at ipc {study.ipc}, {private.provenance.seconds:.0f} s. {part['guarantee']}")
    sets = {f"private {study.method}": private}
    if table.twin:
        if not twin.exists():
            start = CondensedSet.load(first).to(options.device) if first.exists() else "noise"
            _condense(study, data, options.seed, start, options, folder / f"checkpoint-exact-{name}.safetensors").save(twin)
            (folder / f"checkpoint-exact-{name}.safetensors").unlink(missing_ok=True)
        sets[f"{study.method} without noise"] = CondensedSet.load(twin).to(options.device)
    if first.exists():
        sets["private start"] = CondensedSet.load(first).to(options.device)
    part["accuracy"] = _judge(study, options, data, folder, sets, name, console)


def _judge(
    study: PrivacyStudy, options: Options, data: ImageData, folder: Path, sets: dict[str, CondensedSet], name: str, console: Console
) -> dict[str, Any]:
    """Accuracies by set; metrics.jsonl is the ledger, so that a stopped study loses one network at most."""
    table, metrics, rows = study.evaluation, folder / "metrics.jsonl", {}
    recipe = table.recipe or protocol(table.protocol, data.spec)
    seeds = [options.seed * 1000 + k for k in range(table.seeds)]
    some = next(iter(sets.values()))
    for label in (*sets, *table.baselines):
        key = {"stage": "evaluate", "set": label, "network": table.networks[0], "part": name}
        done = {line["seed"]: line["accuracy"] for line in read_lines(metrics) if all(line.get(k) == v for k, v in key.items())}
        missing = [seed for seed in seeds if seed not in done]
        kind = "condensed" if label in sets else label
        for _, seed, value in accuracies(sets.get(label, some), data, [kind], table.networks[0], recipe, missing, table.split):
            done[seed] = value
            append_line(metrics, {**key, "seed": seed, "accuracy": value})
        rows[label] = Accuracy(tuple(done[seed] for seed in seeds)).as_dict()
        say(console, f"  {name}, {table.networks[0]} on {label}: {shown(rows[label])} %")
    return rows


# Attacks


def _attack(
    study: PrivacyStudy, table: AttackTable, options: Options, data: ImageData, folder: Path, results: dict[str, Any], console: Console
) -> None:
    """Each arm learns from the images that a coin put in; all are attacked by their loss."""
    scores_of: dict[str, list[tuple[np.ndarray, np.ndarray]]] = {arm: [] for arm in table.arms}
    accuracies_of: dict[str, list[float]] = {arm: [] for arm in table.arms}
    for run in range(table.runs):
        seed = derived_seed(options.seed, "attack", run) % 1_000_000
        draws = np.random.default_rng(derived_seed(options.seed, "coins", run))
        pool = draws.permutation(len(data.train))[: table.pool]
        coins = draws.random(len(pool)) < 0.5
        chosen = torch.from_numpy(np.sort(pool[coins]))
        inside = dataclasses.replace(data, train=data.train.at(chosen.to(data.device)))
        points = torch.from_numpy(pool)
        for arm in table.arms:
            file = folder / "attack" / f"{arm.replace(' ', '-')}-{run}.npz"
            if not file.exists():
                scores, right = _attacked(study, table, options, data, inside, points, arm, seed)
                _save(file, {"in_scores": scores[coins], "out_scores": scores[~coins], "accuracy": np.array(right)})
            with np.load(file) as saved:
                scores_of[arm].append((saved["in_scores"], saved["out_scores"]))
                accuracies_of[arm].append(float(saved["accuracy"]))
    results["attack"] = {}
    for arm in table.arms:
        found = [membership(members, others, seed=run) for run, (members, others) in enumerate(scores_of[arm])]
        low = [m.rates[0.01].value for m in found if m.rates[0.01] is not None]
        row = {
            "accuracy": dataclasses.asdict(by_run(accuracies_of[arm])),
            "advantage_percent": dataclasses.asdict(by_run([100 * m.advantage.value for m in found])),
            "auc": dataclasses.asdict(by_run([m.auc for m in found])),
            "tpr_at_1_percent": dataclasses.asdict(by_run(low)) if low else None,
            "runs": table.runs,
        }
        results["attack"][arm] = row
        accurate, auc, advantage = _cell(row["accuracy"], 1), _cell(row["auc"], 3), _cell(row["advantage_percent"], 2)
        say(console, f"attack on {arm}: accuracy {accurate} %, AUC {auc}, advantage {advantage} %")


def _attacked(
    study: PrivacyStudy, table: AttackTable, options: Options, data: ImageData, inside: ImageData, points: torch.Tensor, arm: str, seed: int
) -> tuple[np.ndarray, float]:
    """(scores of all points, mean test accuracy) of one arm in one run."""
    source: Any = inside
    if arm == "random":
        source = select(inside, "random", study.ipc, generator(seed, "random arm"))
    elif arm == "method":
        source = _condense(study, inside, seed, "noise", options, None)
    elif arm == "private":
        assert study.privacy is not None
        source, _ = _private_set(study, inside, study.privacy.epsilon[0], seed, options, None)
    recipe = study.evaluation.recipe or protocol(study.evaluation.protocol, data.spec)
    networks = [train_network(source, study.evaluation.networks[0], recipe, seed * 100 + k, data.device) for k in range(table.networks)]
    losses = []
    for part in points.split(4096):
        part = part.to(data.device)
        losses.append(losses_and_margins(networks, data.normalised("train", part), data.train.labels[part])[0])
    return threshold_scores(np.concatenate(losses)), float(np.mean([accuracy(network, data) for network in networks]))


def _save(file: Path, arrays: dict[str, np.ndarray]) -> None:
    import io

    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    write_whole(file, buffer.getvalue())


# What a reader sees


def _cell(found: dict[str, float] | None, digits: int) -> str:
    return "n/a" if found is None else f"{found['value']:.{digits}f} ({found['low']:.{digits}f} to {found['high']:.{digits}f})"


def draw(study: PrivacyStudy, folder: Path, results: dict[str, Any]) -> None:
    """Images and accuracies of each budget; log-log curves of the attacks."""
    for key, part in results.items():
        if key.startswith("epsilon"):
            write_whole(folder / f"figures/images-{key}.png", image_grid(CondensedSet.load(folder / f"condensed-{key}.safetensors")))
            rows = {name: Accuracy(tuple(row["values"])) for name, row in part["accuracy"].items()}
            write_whole(folder / f"figures/accuracy-{key}.png", accuracy_bars(rows, f"{study.title}, epsilon {key[7:]}"))
    if study.attack is not None:
        curves = {}
        for arm in study.attack.arms:
            with np.load(folder / "attack" / f"{arm}-0.npz") as saved:
                curves[arm] = (saved["in_scores"], saved["out_scores"])
        write_whole(folder / "figures/roc.png", roc_curves(curves))


def accuracy_table(record: dict[str, Any]) -> list[list[str]]:
    """One row a set and one column a budget; without sets, one row an attacked arm."""
    results = record["results"]
    columns = {f"epsilon {key[7:]}": part["accuracy"] for key, part in results.items() if key.startswith("epsilon") and "accuracy" in part}
    if columns:
        names = list(dict.fromkeys(name for rows in columns.values() for name in rows))
        return [["set", *columns], *([name, *(shown(rows[name]) if name in rows else "" for rows in columns.values())] for name in names)]
    if "attack" in results:
        rows = [
            [arm, _cell(row["accuracy"], 1), _cell(row["advantage_percent"], 2), _cell(row["auc"], 3), _cell(row["tpr_at_1_percent"], 4)]
            for arm, row in results["attack"].items()
        ]
        return [["attacked", "accuracy, %", "advantage, %", "AUC", "TPR at 1 % FPR"], *rows]
    return []


def answer(record: dict[str, Any]) -> str:
    """What was guaranteed, what was found."""
    parts = []
    for key, part in record["results"].items():
        if key.startswith("epsilon") and "accuracy" in part:
            rows = part["accuracy"]
            first = next(iter(rows))
            others = ", ".join(f"{name} {shown(row)}" for name, row in rows.items() if name != first)
            parts.append(f"{first} at epsilon {key[7:]} trains a network to {shown(rows[first])} % ({others}). {part['guarantee']}")
    found = record["results"].get("audit")
    if found:
        highest = max(found["gaussian_bound"], found["rates_bound"], found["one_run_bound"], found["size_bound"])
        verdict = "contradict the account" if not found["holds"] else "do not contradict it, which proves nothing more"
        parts.append(f"The account says epsilon {found['claimed_epsilon']:.2f}, canaries find at least {highest:.2f}: they {verdict}.")
    attacked = record["results"].get("attack", {})
    if attacked:
        said = ", ".join(f"{arm} {_cell(row['advantage_percent'], 2)} %" for arm, row in attacked.items())
        parts.append(f"Loss-based membership advantage: {said}; an advantage near 0 is no proof of privacy.")
    return " ".join(parts) or f"Nothing was found. Status: {record['status']}."
