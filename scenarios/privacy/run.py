"""The study of kind "privacy": private condensed sets and what they cost, an audit of the mechanism, and attacks on what was trained.

Six parts, each there when its table is: [privacy] with [method] and [evaluation] makes and judges private sets; [audit] examines the
installed mechanism and fails when it gives more away than the account says; [attack] asks whom membership inference finds; [visual] asks
whether sets look like their training images; [poisoning] whether planted triggers survive condensation; [inversion] what a client's
messages show of its images.
"""

import time

import torch

from apps.privacy.canaries import audit
from distill.comparison import DECODED
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.decode import from_text
from distill.errors import InputError
from distill.methods import METHODS
from distill.methods.advice import advice
from distill.methods.presets import matched_by
from distill.networks import create
from distill.randomness import generator
from distill.records import write_json
from distill.spec import DataSpec
from scenarios.engine.public_part import mark
from scenarios.engine.study import Run
from scenarios.privacy.attack import arms_of, fill_attack
from scenarios.privacy.checks import fill_poisoning, fill_visual
from scenarios.privacy.inversion import check_inversion, fill_inversion
from scenarios.privacy.schema import AuditTable, PrivacyStudy
from scenarios.privacy.sets import fill_private, kept_elsewhere, statistics_of


class GuaranteeBroken(AssertionError):
    """An audit found more than the account says."""


def check(study: PrivacyStudy, data: ImageData) -> None:
    """Raise `InputError` for what would fail after minutes of work."""
    for name in (*study.evaluation.networks, *(METHODS[each.method][0](**each.settings).network or "ConvNet" for each in study.made)):
        create(name, data.spec, generator(0, "check"))
    if study.privacy is not None:
        for each in study.made:
            statistics_of(each, data, study.privacy.epsilon[0], None)
        forms = [name for name in study.evaluation.baselines if name in DECODED]
        if forms and all(from_text(getattr(METHODS[each.method][0](**each.settings), "decode", "none")) is None for each in study.made):
            raise InputError(f"[evaluation]: baseline {forms[0]} has the form of a decoded set, and the study makes none; leave it out.")
    if study.attack is not None:
        smallest = min(data.counts[label] for label in data.classes) / 4
        for arm in arms_of(study, study.attack, data):
            if arm.ipc > smallest:
                raise InputError(
                    f"[attack]: arm {arm.label!r} has {arm.ipc} images a class; allowed: at most {int(smallest)} of these data."
                )
    if study.poisoning is not None and study.poisoning.target not in data.classes:
        raise InputError(f"[poisoning]: target {study.poisoning.target}; allowed: one of the classes {list(data.classes)[:20]}.")
    for each in study.made:
        weight = getattr(METHODS[each.method][0](**each.settings), "relation", 0.0)
        if each.privacy is not None and weight:
            raise InputError(
                f"[method]: relation of {each.method!r} is {weight:g}, a second release in each step, which is not planned; allowed: 0."
            )
        if each.privacy is not None and each.privacy.networks and (updates := _updates_a_network(each, data.spec)) > 1:
            raise InputError(
                f"[method]: {each.method!r} has {updates} image updates a network, which trains in between, so that a network of [privacy] "
                "networks comes back changed and each update is a new release; allowed: outer_steps = 1, or networks = 0."
            )
    trained = matched_by(METHODS[study.method][1]) == "gradients"
    if study.poisoning is not None and not trained and any(name.startswith("doorping") for name in study.poisoning.triggers):
        raise InputError(
            f"[poisoning]: triggers has doorping, which learns in networks that are trained on the set, and {study.method!r} has none; "
            "allowed: methods that match gradients, as gm."
        )
    if study.inversion is not None:
        check_inversion(study, study.inversion, data)


def _updates_a_network(study: PrivacyStudy, spec: DataSpec) -> int:
    config, (_, distiller) = METHODS[study.method][0](**study.settings), METHODS[study.method]
    start = CondensedSet(torch.zeros(study.ipc, *spec.shape), torch.zeros(study.ipc, dtype=torch.int64), spec)
    return int(distiller(config, start, None).total_steps) // int(config.iterations)


def advised(study: PrivacyStudy, data: ImageData) -> list[str]:
    """See `distill.methods.advice`: of the study's method and those of its arms, where it makes sets."""
    parts = (study.privacy, study.visual, study.attack, study.poisoning, study.inversion)
    made = study.made if any(part is not None for part in parts) else ()
    return [line for each in made for line in advice(each.method, METHODS[each.method][0](**each.settings), data.spec, each.ipc)]


def fill(study: PrivacyStudy, run: Run) -> None:
    """The mechanism is audited first: there is no point in sets from a broken one."""
    data = run.data
    run.results["data"] = {"name": data.spec.name, "train": len(data.train), "test": len(data.test)}
    if study.audit is not None:
        _audit(study.audit, run)
    sets: dict[str, CondensedSet] = {}
    if study.privacy is not None:
        mark(run.folder, *kept_elsewhere(study))
        names: list[str] = []
        for epsilon in study.privacy.epsilon:
            condensed_sets, names = fill_private(study, run, epsilon, names)
            sets |= {f"{label}, epsilon {epsilon:g}": condensed for label, condensed in condensed_sets.items()}
    if study.visual is not None:
        fill_visual(study, study.visual, run, sets)
    if study.attack is not None:
        fill_attack(study, study.attack, run)
    if study.poisoning is not None:
        fill_poisoning(study, study.poisoning, run)
    if study.inversion is not None:
        fill_inversion(study, study.inversion, run)


def _audit(table: AuditTable, run: Run) -> None:
    start = time.monotonic()
    result = audit(epsilon=table.epsilon, delta=table.delta, runs=table.runs, confidence=table.confidence, seed=run.options.seed)
    run.results["audit"] = {**result.as_dict(), "seconds": time.monotonic() - start}
    run.say(f"audit: {result}")
    if not result.holds:
        write_json(run.folder / "audit.json", run.results["audit"])
        raise GuaranteeBroken(str(result))
