"""Tables of scenario files that kinds of studies share: [data], [method], [evaluation]; and the hash of a study's settings."""

import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from distill.augment import strategy
from distill.comparison import TAUGHT, no_baseline
from distill.configure import config_class, configure, quoted
from distill.errors import InputError, unknown_name
from distill.evaluation import BASELINES
from distill.methods import METHODS
from distill.networks import check_name
from distill.protocols import PROTOCOLS
from distill.recipe import Recipe
from distill.records import Json
from distill.scored_coresets import Scorer, check_scorer
from distill.shared_config import SharedConfig, stated
from distill.teachers import check_teacher
from scenarios.engine.data_table import DataTable as DataTable
from scenarios.engine.record import Config, Tables

# Options that came later: where they are not used, hashes stay.
LATER = (
    *("returning", "classes_each", "blurred", "degrees", "exemplar_transform", "others", "scr_temperature", "last"),
    "whole_epochs",
    "drop_epochs",
    "imbalance",
    "min_clients",
    "wait",
    "mean",
    "std",
    "class_names",
    "mix",
    "milestones",
    "decay",
    "decode",
    "loss",
    "temperature",
    "hard_weight",
    "teacher",
    "warmup",
    "lr_end",
    "mix_probability",
    "mix_alpha",
    "ema",
    "labels",
    "soft_share",
    "scorer",
    "best",
)
MAX_IPC = 100_000


@config_class
class EvaluationTable:
    """``[evaluation]``: how sets are evaluated. ``[evaluation.recipe]`` replaces the protocol by a recipe of one's own.

    ``whole_epochs`` trains the baseline "whole" for as many epochs; without it for as many steps as the others, which may be part of one.
    ``[evaluation.scorer]`` are the networks that baselines such as "el2n" choose by. ``best = true`` also reports the best of several tests
    during each training, which is selected on the split.
    """

    DIFFERENT = ("networks", "baselines")

    protocol: str = "laptop"
    recipe: Recipe | None = None
    networks: Annotated[tuple[str, ...], Field(min_length=1)] = ("ConvNet",)
    seeds: Annotated[int, Field(ge=1)] = 5
    baselines: tuple[str, ...] = ("random",)
    split: Literal["test", "validation"] = "test"
    whole_epochs: Annotated[int, Field(ge=1)] | None = None
    scorer: Scorer | None = None
    best: bool | None = None


def check_tables(tables: Tables, known: Sequence[str], source: str, kind: str, needs: Sequence[str] = ()) -> None:
    """Check a scenario's top level.

    Args:
        tables: the scenario without its kind and title.
        known: names of the kind's tables.
        source: opens the messages, for example ``"study.toml"``.
        kind: of study, for the messages.
        needs: names of tables that must be there.

    Raises:
        InputError: for an unknown key, a value that is no table, and where one of ``needs`` is missing.
    """
    for key, table in tables.items():
        if key not in known:
            raise unknown_name(f"{source}: key", key, ("kind", "title", *known))
        if not isinstance(table, dict):
            raise InputError(f"{source}: [{key}] is {shown_value(table)[:40]!r}; allowed: a table of settings.")
    for key in needs:
        if key not in tables:
            raise InputError(f"{source}: table [{key}] is missing; a {kind} study needs it.")


def config_hash(merged: Config) -> str:
    """Eight letters that change with any setting."""
    return hashlib.sha256(json.dumps(_older(merged), sort_keys=True).encode()).hexdigest()[:8]


def method_of(table: Tables, where: str) -> tuple[str, tuple[int, ...], Any]:
    """Check a ``[method]`` table.

    Args:
        table: the table; ``name`` and ``ipc`` are taken out of it.
        where: opens the messages, for example ``"study.toml: [method]"``.

    Returns:
        The method's name, its images per class (one number or several different ones), and its config.

    Raises:
        InputError: for an unknown method, key, network or augmentation, and for a value out of range.
    """
    name, ipc = table.pop("name", "dm"), table.pop("ipc", 1)
    if not isinstance(name, str) or name not in METHODS:
        raise unknown_name(f"{where}: key 'name': method", shown_value(name), METHODS)
    numbers = tuple(ipc) if isinstance(ipc, list) else (ipc,)
    if not numbers or not all(type(n) is int and 1 <= n <= MAX_IPC for n in numbers) or len(set(numbers)) != len(numbers):
        raise InputError(f"{where}: key 'ipc' is {quoted(ipc)}; allowed: a whole number from 1 to {MAX_IPC}, or a list of different ones.")
    kind = METHODS[name][0]
    allowed = {"name", "ipc", *kind.__dataclass_fields__}
    for key in table:
        if key not in allowed:
            raise unknown_name(f"{where}: key", key, allowed)
    settings = configure(kind, table, where)
    checked(where, "network", lambda: check_name(settings.network))
    checked(where, "augmentation", lambda: strategy("" if settings.augmentation == "auto" else settings.augmentation))
    return name, numbers, settings


def evaluation_of(table: Tables, where: str) -> EvaluationTable:
    """Check an ``[evaluation]`` table; ``where`` opens the messages.

    Raises:
        InputError: for an unknown protocol, baseline, network or augmentation, and for a value out of range.
    """
    evaluation = configure(EvaluationTable, table, where)
    if evaluation.protocol not in PROTOCOLS:
        raise unknown_name(f"{where}: key 'protocol': value", evaluation.protocol, PROTOCOLS)
    for name in evaluation.baselines:
        if name not in BASELINES:
            raise no_baseline(f"{where}: key 'baselines': value", name)
    for name in evaluation.networks:
        checked(where, "networks", functools.partial(check_name, name))
    if evaluation.recipe is not None:
        text = evaluation.recipe.augmentation
        checked(where, "recipe.augmentation", lambda: strategy("" if text == "auto" else text))
        if (teacher := evaluation.recipe.teacher) is not None:
            checked(where, "recipe.teacher", lambda: check_teacher(teacher))
    if (scorer := evaluation.scorer) is not None:
        checked(where, "scorer", lambda: check_scorer(scorer))
    labelled = [name for name in evaluation.baselines if name in TAUGHT]
    if labelled and (evaluation.recipe or PROTOCOLS[evaluation.protocol]).teacher is None:
        raise InputError(f"{where}: baseline {labelled[0]} has the labels of a teacher; give a table [evaluation.recipe.teacher].")
    return evaluation


def checked(where: str, key: str, check: Callable[[], object]) -> None:
    """Run a check of a key's value; its `InputError` then names table and key."""
    try:
        check()
    except InputError as error:
        raise InputError(f"{where}: key {key!r}: {error}") from None


def shown_value(value: object) -> str:
    """A value of any kind for a message."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, default=str)[:80]
    except (ValueError, RecursionError):  # a number of thousands of digits, a table in a table in a table
        return "too long to show"


def plain_values(value: object) -> Config:
    """A config dataclass as plain values for config.json, without options of later versions that are not used."""
    plain: Config = pydantic.TypeAdapter(type(value)).dump_python(value, mode="json")
    if isinstance(value, SharedConfig):
        plain = stated(value, plain)
    return {key: _older(inner) for key, inner in plain.items() if not (key in LATER and inner is None)}


def _older(value: Json) -> Json:
    """Plain values without the options of later versions that are not used: studies that do not use them keep their hash."""
    if isinstance(value, dict):
        return {key: _older(inner) for key, inner in value.items() if not (key in LATER and inner is None)}
    return [_older(inner) for inner in value] if isinstance(value, list) else value
