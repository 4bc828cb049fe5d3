"""The tables of a study of kind "nas"."""

import functools
from dataclasses import dataclass
from typing import Annotated, TypeVar

from pydantic import Field

from apps.nas.space import Candidate, Grid, check_candidates, named
from apps.nas.study import Proxies, Truth
from apps.nas.workers import LIMIT
from distill.configure import config_class, configure
from distill.coresets import CORESETS
from distill.distiller import Config as MethodConfig
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.teachers import Teacher, check_teacher
from scenarios.engine.given import Given
from scenarios.engine.record import Config, Tables
from scenarios.engine.schema import DataTable, check_tables, checked, config_hash, plain_values

TABLES = ("data", "space", "truth", "proxy", "sets", "methods", "run")


T = TypeVar("T")


@config_class
class SetsTable:
    """``[sets]``: which sets stand for the data. Each method's settings are in ``[methods.<name>]``; ``copies`` sets of each, made
    independently. ``train`` is the number of training images a class that the whole study may use (None: all). ``[sets.teacher]`` adds
    each set with the labels of a network that is trained on the study's images ("NAME-labelled"), and images of noise with them."""

    DIFFERENT = ("coresets",)

    ipc: Annotated[int, Field(ge=1)] = 10
    copies: Annotated[int, Field(ge=1, le=20)] = 2
    coresets: tuple[str, ...] = ("random",)
    teacher: Teacher | None = None
    train: Annotated[int, Field(ge=1)] | None = None


@config_class
class SpaceTable(Grid):
    """``[space]``: lists of the five choices (default: all 720), or ``networks``, a list of names instead."""

    networks: tuple[str, ...] = ()


@config_class
class RunTable:
    """``[run]``: how, not what; no result depends on it, so it is no part of the folder's name. ``minutes`` ends a slice of a long
    study, which --resume continues. ``table`` is a truth table (a file, or a shipped one's name) whose networks are not trained again.
    ``limit`` is the seconds after which one training or score of a network is given up (0: never)."""

    workers: Annotated[int, Field(ge=0, le=1024)] | None = None
    ray: str | None = None
    limit: Annotated[float, Field(ge=0)] = LIMIT
    minutes: Annotated[float, Field(gt=0)] | None = None
    table: str | None = None


@dataclass(frozen=True)
class NasStudy:
    """``kind = "nas"``: rank architectures on condensed sets, and compare the ranking with full training."""

    name: str
    title: str
    data: DataTable
    space: SpaceTable
    truth: Truth
    proxy: Proxies
    sets: SetsTable
    methods: dict[str, MethodConfig]
    run: RunTable
    merged: Config
    given: Given | None = None  # of a pipeline: one more set that stands for the data
    kind: str = "nas"

    @property
    def hash(self) -> str:
        """Eight letters that change with any setting but those of ``[run]``."""
        return config_hash({key: value for key, value in self.merged.items() if key != "run"})

    @property
    def candidates(self) -> list[Candidate]:
        """The architectures that are ranked."""
        return check_candidates(named(self.space.networks)) if self.space.networks else self.space.candidates()


def study(name: str, title: str, tables: Tables, source: str) -> NasStudy:
    """Check the tables of a scenario of kind "nas"; ``source`` opens every message.

    Raises:
        InputError: names file, table, key, what was given and what is allowed.
    """
    check_tables(tables, TABLES, source, "nas", ["data"])

    def read(key: str, kind: type[T]) -> T:
        return configure(kind, tables.get(key, {}), f"{source}: [{key}]")

    data, space, truth = read("data", DataTable), read("space", SpaceTable), read("truth", Truth)
    proxy, sets, how = read("proxy", Proxies), read("sets", SetsTable), read("run", RunTable)
    methods: dict[str, MethodConfig] = {}
    for method, settings in tables.get("methods", {}).items():
        if method not in METHODS:
            raise unknown_name(f"{source}: [methods]: method", method, METHODS)
        if not isinstance(settings, dict):
            raise InputError(f"{source}: [methods]: key {method!r} is not a table; write [methods.{method}].")
        if method == "mtt" and settings.get("network") == "space":
            raise InputError(
                f"{source}: [methods.mtt]: network 'space' is for methods that draw a network a step; name the experts' network."
            )
        methods[method] = configure(METHODS[method][0], settings, f"{source}: [methods.{method}]")
    for part, recipe in (("truth", truth.recipe), ("proxy", proxy.recipe)):
        if recipe.teacher is not None:
            raise InputError(f"{source}: [{part}]: a teacher labels each set once, for all networks; give [sets.teacher] instead.")
    if sets.teacher is not None:
        checked(f"{source}: [sets]", "teacher", functools.partial(check_teacher, sets.teacher))
    for coreset in sets.coresets:
        if coreset not in CORESETS:
            raise unknown_name(f"{source}: [sets]: key 'coresets': value", coreset, CORESETS)
    parts = {"data": data, "space": space, "truth": truth, "proxy": proxy, "sets": sets, "run": how}
    merged = {"kind": "nas", **{key: plain_values(value) for key, value in parts.items()}}
    merged["methods"] = {method: plain_values(settings) for method, settings in methods.items()}
    return NasStudy(name, title, data, space, truth, proxy, sets, methods, how, merged)
