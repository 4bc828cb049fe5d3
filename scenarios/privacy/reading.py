"""A privacy study from a scenario's tables, which are checked against each other."""

import dataclasses
import functools
import re
from typing import TypeVar

from apps.privacy.inversion import DLG
from distill.comparison import coreset_of
from distill.configure import configure
from distill.coresets import TRAINED
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.methods.presets import matched_by
from distill.networks import check_name
from distill.protocols import PROTOCOLS
from distill.teachers import Teacher
from scenarios.engine.record import Config, Tables
from scenarios.engine.schema import (
    DataTable,
    EvaluationTable,
    check_tables,
    checked,
    evaluation_of,
    method_of,
    plain_values,
)
from scenarios.privacy.schema import (
    ARMS,
    ATTACKED,
    EXPERTS_SHARE,
    MEASURES,
    NAIVE_OPTIMISED,
    ArmTable,
    AttackTable,
    AuditTable,
    InversionTable,
    PoisoningTable,
    PrivacyStudy,
    PrivacyTable,
    VisualTable,
)

# Keys that came later: where they are not used, hashes stay as they were.
LATER: dict[str, Config] = {
    "privacy": {"experts_share": EXPERTS_SHARE, "experts_clip": 1.0, "public_experts": "", "teacher_share": 0.3, "centred": False},
    "attack": {"attacks": ATTACKED},
    "poisoning": {"triggers": NAIVE_OPTIMISED, "doorping_steps": 1000},
}
PARTS = ("privacy", "audit", "attack", "visual", "poisoning", "inversion")
SHARED = ("epsilon", "delta", "population")  # of all arms
T = TypeVar("T")


def study(name: str, title: str, tables: Tables, source: str) -> PrivacyStudy:
    """Check the tables; `InputError` names file, key and what is allowed."""
    check_tables(tables, ("data", *PARTS, "method", "arms", "evaluation"), source, "privacy")

    def read(key: str, kind: type[T]) -> T | None:
        return configure(kind, tables[key], f"{source}: [{key}]") if key in tables else None

    privacy, audit, attack = read("privacy", PrivacyTable), read("audit", AuditTable), read("attack", AttackTable)
    visual, poisoning, inversion = read("visual", VisualTable), read("poisoning", PoisoningTable), read("inversion", InversionTable)
    parts = dict(zip(PARTS, (privacy, audit, attack, visual, poisoning, inversion), strict=True))
    if not any(parts.values()):
        raise InputError(f"{source}: has none of the tables {', '.join(f'[{key}]' for key in PARTS)}; a privacy study needs one.")
    data = configure(DataTable, tables["data"], f"{source}: [data]") if "data" in tables else DataTable("digits")
    table = dict(tables.get("method", {}))
    method, ipc, settings = method_of(dict(table), f"{source}: [method]")
    if len(ipc) != 1:
        raise InputError(f"{source}: [method]: key 'ipc' is {list(ipc)}; allowed: one whole number in a privacy study.")
    plain_settings = {key: value for key, value in table.items() if key not in ("name", "ipc")}
    evaluation = evaluation_of(dict(tables.get("evaluation", {})), f"{source}: [evaluation]")
    _check_evaluation(evaluation, f"{source}: [evaluation]", tables)
    if attack is not None:
        _check_arms(attack, f"{source}: [attack]", private=privacy is not None)
    if visual is not None:
        _check_visual(visual, f"{source}: [visual]")
    for network in () if inversion is None else inversion.networks:
        if network != DLG:
            checked(f"{source}: [inversion]", "networks", functools.partial(check_name, network))
    if privacy is not None and privacy.centred:
        _check_centred(privacy, method, f"{source}: [privacy]")
    # A table that came later and is not given leaves the hash of older studies as it was.
    plain: Config = {k: plain_values(v) if v else None for k, v in parts.items() if v or k in ("privacy", "audit", "attack")}
    for part, defaults in LATER.items():
        for key in [key for key, default in defaults.items() if parts[part] is not None and getattr(parts[part], key) == default]:
            plain[part].pop(key)
    merged = {"kind": "privacy", "data": plain_values(data), "method": {"name": method, "ipc": ipc[0], **plain_values(settings)}}
    merged |= {**plain, "evaluation": plain_values(evaluation)}
    arms = _arms(name, title, tables, source)
    if arms:
        merged["arms"] = {arm: {key: made.merged[key] for key in ("method", "privacy")} for arm, made in arms.items()}
    parts_made = (privacy, evaluation, audit, attack, visual, poisoning, inversion)
    return PrivacyStudy(name, title, data, method, ipc[0], plain_settings, *parts_made, merged, arms)


def _arms(name: str, title: str, tables: Tables, source: str) -> dict[str, PrivacyStudy]:
    """The studies of ``[arms]``, each checked as a study by itself."""
    made, own = {}, tables.get("arms", {})
    if own and "privacy" not in tables:
        raise InputError(f"{source}: [arms] are private sets; give a table [privacy], which has their epsilon.")
    for arm, given in own.items():
        where = f"{source}: [arms.{arm}]"
        if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", arm):
            raise InputError(f"{where}: allowed: names of small letters, digits and hyphens, as ncfm-public.")
        table = configure(ArmTable, given, where)
        for key, inner, other in [("ipc", table.method, "method"), *((key, table.privacy, "privacy") for key in SHARED)]:
            if key in inner:
                raise InputError(f"{where}: key {key!r} of {other} is not for here; allowed: one for all arms, in [{other}].")
        ipc = {key: value for key, value in tables.get("method", {}).items() if key == "ipc"}
        its: Tables = {key: value for key, value in tables.items() if key in ("data", "evaluation")}
        its |= {"method": {**ipc, **table.method}, "privacy": {**tables["privacy"], **table.privacy}}
        made[arm] = dataclasses.replace(study(name, title, its, where), arm=arm)
    if (clash := dict(tables.get("method", {})).get("name", "dm")) in made:
        raise InputError(f"{source}: [arms.{clash}]: is the name of the study's own method; give the arm another one, as {clash}-public.")
    return made


def _check_evaluation(evaluation: EvaluationTable, where: str, tables: Tables) -> None:
    """`InputError` for rows that private images would be seen in, or that say nothing of sets with a guarantee."""
    if (teacher := (evaluation.recipe or PROTOCOLS[evaluation.protocol]).teacher) is not None:
        _check_teacher(teacher, where, tables)
    if chosen := [name for name in evaluation.baselines if coreset_of(name) in TRAINED]:
        raise InputError(
            f"{where}: baseline {chosen[0]} is chosen by networks that are trained on the private images without noise, and "
            "these are kept outside the run's folder; allowed: random, herding, kcenter, kmeans, class_mean, whole."
        )
    if evaluation.best:
        raise InputError(f"{where}: best reproduces published figures of sets without a guarantee; leave it out.")


def _check_visual(visual: VisualTable, where: str) -> None:
    for measure in visual.measures:
        if measure not in MEASURES:
            raise unknown_name(f"{where}: key 'measures': value", measure, MEASURES)
    checked(where, "network", functools.partial(check_name, visual.network))


def _check_centred(privacy: PrivacyTable, method: str, where: str) -> None:
    """`InputError` unless features are released: gradients and weights are not, as differences from a start's."""
    if privacy.start != "kmeans":
        raise InputError(f'{where}: centred = true needs something to be centred on; add start = "kmeans".')
    if (matches := matched_by(METHODS[method][1])) != "features":
        words = f"matches {matches}" if matches else 'does not state that (class attribute matches = "features")'
        raise InputError(f"{where}: centred = true is for methods that match features, as dm and datadam; {method!r} {words}.")


def _check_teacher(teacher: Teacher, where: str, tables: Tables) -> None:
    """`InputError` unless a teacher is trained within the budget of private sets, which are released with its labels."""
    if "privacy" not in tables:
        raise InputError(f"{where}: a teacher is trained on the private images without noise; leave recipe.teacher out, or add [privacy].")
    if teacher.labels != "images":
        raise InputError(f'{where}: a private set is released with its labels; set recipe.teacher.labels = "images".')
    if others := [name for name in ("attack", "poisoning") if name in tables]:
        raise InputError(f"{where}: recipe.teacher labels private sets, and [{others[0]}] trains on others; make it a separate study.")


def _check_arms(table: AttackTable, where: str, *, private: bool) -> None:
    for arm in table.arms:
        if arm not in (*ARMS, *METHODS):
            raise unknown_name(f"{where}: key 'arms': value", arm, (*ARMS, *METHODS))
    from apps.privacy.attacks import ATTACKS, FEWEST_RUNS, SHADOWED  # takes seconds to load

    for name in table.attacks:
        if name not in ATTACKS:
            raise unknown_name(f"{where}: key 'attacks': value", name, ATTACKS)
        if name in SHADOWED[1:] and (table.runs < FEWEST_RUNS or table.runs % 2):
            raise InputError(f"{where}: the attack {name!r} with {table.runs} runs; allowed: an even number of runs from {FEWEST_RUNS}.")
    if "private" in table.arms and not private:
        raise InputError(f"{where}: the arm 'private' needs a table [privacy].")
    for name, settings in table.methods.items():
        if name not in table.arms:
            raise unknown_name(f"{where}: key 'methods': an arm", name, table.arms)
        for key in ("name", "ipc"):
            if key in settings:
                raise InputError(f"{where}: methods.{name}: key {key!r} is not for here; allowed: the method's settings.")
        method_of({"name": name, **settings}, f"{where}: methods.{name}")
