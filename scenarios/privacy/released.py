"""The study of kind "released", a pipeline's stage: the set as it was released is attacked, and the mechanism behind it audited.

Members are the training images that the set was made from, others the held-out ones; chance alone divided them. Each arm's networks are
attacked by their loss (Yeom et al., CSF 2018): those trained on the released set, on as many random members, and on all members; beside
them stands the distance of a point to the nearest released image. The audit examines the installed mechanism at the epsilon that the set
states, and says nothing about the code that made a set from elsewhere.
"""

import dataclasses
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from apps.privacy.attacks import losses_and_margins, nearest_scores, threshold_scores
from apps.privacy.canaries import audit
from apps.privacy.figures import roc_curves
from apps.privacy.metrics import auc, by_run, membership
from distill.comparison import compared, formed
from distill.condensed import CondensedSet
from distill.configure import config_class, configure
from distill.coresets import select
from distill.data import ImageData
from distill.drawing import Drawing
from distill.errors import InputError
from distill.evaluation import accuracy, fitted
from distill.networks import check_name, create
from distill.protocols import check_untaught
from distill.randomness import derived_seed, generator
from distill.recipe import Recipe
from distill.train import train_network
from scenarios.engine.given import Given
from scenarios.engine.record import Config, Record, Results, Tables
from scenarios.engine.schema import DataTable, check_tables, checked, config_hash, plain_values
from scenarios.engine.study import Run
from scenarios.privacy.attack import save_arrays
from scenarios.reporting.text import few, series

TABLES = ("data", "attack", "audit")
NEAREST, DECODED = "nearest image", "random-decoded"


@config_class
class AttackTable:
    """``[attack]``: each arm trains ``networks`` networks on the same images; a point's loss is their mean. ``others`` is the split that
    nobody trained on; "validation" comes from the same pool as the members, by chance alone. Where the released set is decoded, random
    images come in its form, too ("random-decoded")."""

    arms: Annotated[tuple[Literal["released", "random", "whole"], ...], Field(min_length=1)] = ("released", "random", "whole")
    networks: Annotated[int, Field(ge=1)] = 4
    others: Literal["validation", "test"] = "validation"
    network: str = "ConvNet"
    protocol: str = "laptop"
    recipe: Recipe | None = None


@config_class
class AuditTable:
    """``[audit]``: see `apps.privacy.canaries.audit`; ``epsilon`` and ``delta`` None are those that the set states."""

    epsilon: Annotated[float, Field(gt=0)] | None = None
    delta: Annotated[float, Field(gt=0, lt=1)] | None = None
    runs: Annotated[int, Field(ge=200, le=2304)] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.999


@dataclass(frozen=True)
class ReleasedStudy:
    """``kind = "released"``, in a pipeline."""

    name: str
    title: str
    data: DataTable
    attack: AttackTable | None
    audit: AuditTable | None
    merged: Config
    given: Given | None = None
    kind: str = "released"

    @property
    def hash(self) -> str:
        """Eight letters that change with any setting, and with the set that it takes."""
        return config_hash(self.merged)


def study(name: str, title: str, tables: Tables, source: str) -> ReleasedStudy:
    """Check the tables; `InputError` names file, key and what is allowed."""
    check_tables(tables, ("from", *TABLES), source, "released", ["data"])
    data = configure(DataTable, tables["data"], f"{source}: [data]")
    attack = configure(AttackTable, tables["attack"], f"{source}: [attack]") if "attack" in tables else None
    canaries = configure(AuditTable, tables["audit"], f"{source}: [audit]") if "audit" in tables else None
    if attack is None and canaries is None:
        raise InputError(f"{source}: has neither of the tables [attack] and [audit]; a stage that takes a released set needs one.")
    if attack is not None:
        checked(f"{source}: [attack]", "network", lambda: check_name(attack.network))
        check_untaught(attack.recipe, attack.protocol, f"{source}: [attack]")
    parts = {"data": data, "attack": attack, "audit": canaries}
    merged: Config = {key: None if part is None else plain_values(part) for key, part in parts.items()}
    return ReleasedStudy(name, title, data, attack, canaries, {"kind": "released", **merged})


def check(study: ReleasedStudy, data: ImageData) -> None:
    """Raise `InputError` for what would fail after minutes of work."""
    if study.attack is not None:
        create(study.attack.network, data.spec, generator(0, "check"))
        if len(getattr(data, study.attack.others)) < 20:
            raise InputError(
                f"[attack]: others is {study.attack.others!r}, a split of {len(getattr(data, study.attack.others))} images; allowed: 20 or "
                "more (set data.validation)."
            )


def fill(study: ReleasedStudy, run: Run) -> None:
    """First the audit: figures about a broken mechanism's set would be worth nothing."""
    assert study.given is not None
    data = fitted(study.given.made, run.data)
    run = dataclasses.replace(run, data=data)
    run.results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test)}
    if study.audit is not None:
        _audit(study.audit, study.given, run)
    if study.attack is not None:
        _attack(study.attack, study.given, run)


def _audit(table: AuditTable, given: Given, run: Run) -> None:
    stated = given.made.provenance.dp or {}
    epsilon, delta = table.epsilon or stated.get("epsilon"), table.delta or stated.get("delta") or 1e-5
    if not epsilon:
        raise InputError(f"[audit]: the set of {given.name!r} states no epsilon; set audit.epsilon, or leave [audit] out.")
    start = time.monotonic()
    result = audit(epsilon=epsilon, delta=delta, runs=table.runs, confidence=table.confidence, seed=run.options.seed)
    run.results["audit"] = {**result.as_dict(), "seconds": time.monotonic() - start}
    run.say(f"audit of the installed code, not of the code that made the set: {result}")
    if not result.holds:
        raise AssertionError(f"the mechanism reveals more than its account states: {result}")


def _attack(table: AttackTable, given: Given, run: Run) -> None:
    """One network after the other, each a file; then the figures of each arm, from its networks' mean losses."""
    options, data, folder = run.options, run.data, run.folder
    run.results["attack"] = {}
    splits = [
        (data.normalised(name, torch.arange(len(getattr(data, name)), device=data.device)), getattr(data, name).labels)
        for name in ("train", table.others)
    ]
    more = [DECODED] if "random" in table.arms and given.made.decode is not None else []
    for arm in (*table.arms, *more, *([NEAREST] if "released" in table.arms else [])):
        right = []
        for number in range(1 if arm == NEAREST else table.networks):
            file = _file(folder, arm, number)
            if not file.exists():
                save_arrays(file, _attacked(table, given, run, splits, arm, number))
            with np.load(file, allow_pickle=False) as saved:
                right += [float(saved["accuracy"])] if "accuracy" in saved else []
        members, others = scores(folder, arm)
        figures = membership(members, others, seed=options.seed)
        low = figures.rates[0.01]
        row: Results = {
            "accuracy": dataclasses.asdict(by_run(right)) if right else None,
            "advantage_percent": {key: 100 * value for key, value in dataclasses.asdict(figures.advantage).items()},
            "auc": {"value": figures.auc, **auc_by_point(members, others)},
            "tpr_at_1_percent": None if low is None else dataclasses.asdict(low),
            "runs": len(right) or 1,
        }
        run.results["attack"][arm] = row
        run.say(f"attack on {arm}: advantage {row['advantage_percent']['value']:.1f} %, AUC {row['auc']['value']:.3f}")


def _file(folder: Path, arm: str, number: int) -> Path:
    return folder / "attack" / f"{arm.replace(' ', '-')}-{number}.npz"


def scores(folder: Path, arm: str) -> tuple[np.ndarray, np.ndarray]:
    """Scores of members and of others (n,), each the mean over the arm's networks.

    All networks saw the same members: an interval is over points, not over networks.
    """
    found: dict[str, list[np.ndarray]] = {"in_scores": [], "out_scores": []}
    while (file := _file(folder, arm, len(found["in_scores"]))).exists():
        with np.load(file, allow_pickle=False) as saved:
            for key, values in found.items():
                values.append(saved[key])
    return np.mean(found["in_scores"], 0), np.mean(found["out_scores"], 0)


def auc_by_point(members: np.ndarray, others: np.ndarray, draws: int = 500) -> dict[str, float]:
    """Ends of the AUC's 95 % interval: percentile bootstrap over points, members and others apart."""
    picks = np.random.default_rng(0)
    again = [auc(picks.choice(members, len(members)), picks.choice(others, len(others))) for _ in range(draws)]
    low, high = np.quantile(again, [0.025, 0.975])
    return {"low": float(low), "high": float(high)}


def _attacked(
    table: AttackTable, given: Given, run: Run, splits: Sequence[tuple[Tensor, Tensor]], arm: str, number: int
) -> dict[str, np.ndarray]:
    """Scores of all members and others, and the network's test accuracy where there is one."""
    options, data = run.options, run.data
    ((members, _), (others, _)), condensed = splits, given.made.to(data.device)
    if arm == NEAREST:
        images = condensed.decoded().images
        return {"in_scores": nearest_scores(members, images), "out_scores": nearest_scores(others, images)}
    # The random members are one draw for all networks: they stand for a set that was released once.
    draws, source = generator(options.seed, "released", "random arm"), None
    if arm == "random":
        source = select(data, "random", condensed.counts, draws)
    elif arm == DECODED and condensed.decode is not None:
        source = formed(data, "random", condensed.counts, condensed.decode, draws)
    recipe = compared(table.recipe or table.protocol, condensed, data, table.network)
    seed = derived_seed(options.seed, "released", arm, number) % 1_000_000_000
    sets: dict[str, CondensedSet | ImageData] = {"released": condensed, "whole": data}
    network = train_network(source or sets[arm], table.network, recipe, seed, data.device)
    point_scores = [threshold_scores(losses_and_margins([network], images, labels)[0]) for images, labels in splits]
    return {"in_scores": point_scores[0], "out_scores": point_scores[1], "accuracy": np.array(accuracy(network, data))}


def draw(folder: Path, record: Record) -> Iterator[tuple[str, Drawing]]:
    """Log-log curves of the attacks."""
    results = record["results"]
    curves = {arm: scores(folder, arm) for arm in results.get("attack", {})}
    if curves:
        yield "roc", roc_curves(curves)


def question(config: Config) -> str:
    """The stage's question in a sentence."""
    parts = ["Does the installed mechanism keep its promise at the epsilon that the set states?"] if config.get("audit") else []
    if config.get("attack"):
        parts.append(f"Whom does membership inference find in networks trained on: {series(config['attack']['arms'])}?")
    return " ".join(parts)


def missing(record: Record, config: Config) -> list[str]:
    """What a reader could miss."""
    results, sentences = record["results"], []
    for part, words in (("audit", "The installed mechanism was not audited"), ("attack", "The released set was not attacked")):
        if config.get(part) is None:
            sentences.append(f"{words}: the stage has no [{part}] table.")
        elif part not in results:
            sentences.append(f"{words} yet.")
    return [*sentences, *(few(config["attack"]["networks"], "network for each arm") if config.get("attack") else [])]
