"""The file of a pipeline: stages, what each takes from which other, and everything about it that can be wrong before anything runs."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from distill.configure import configure
from distill.data import ImageData
from distill.errors import InputError, clipped, unknown_name
from scenarios.engine import scenario
from scenarios.engine.given import Given
from scenarios.engine.record import Config, Tables
from scenarios.engine.schema import DataTable, config_hash
from scenarios.engine.study import AnyKind, Kinds, Study

MAX_STAGES = 32
_NAME = re.compile(r"[a-z][a-z0-9_-]{0,31}")


@dataclass(frozen=True)
class Stage:
    """One study of the pipeline. ``sources`` are (stage, set) pairs, whose union it takes; empty where it starts from the data alone."""

    name: str
    kind: AnyKind
    study: Study
    sources: tuple[tuple[str, str], ...] = ()

    @property
    def taken(self) -> str:
        """The names of the stages whose sets it takes, separated by commas."""
        return ", ".join(dict.fromkeys(stage for stage, _ in self.sources))

    def given(self, given: Given) -> Study:
        """The study with what it takes; its hash is then that of its settings and of the set's content."""
        made: Any = self.study
        merged = made.merged if given.condensed is None else {**made.merged, "given": {"from": given.name, "set": given.fingerprint}}
        study: Study = dataclasses.replace(made, given=given, merged=merged)
        return study


@dataclass(frozen=True)
class PipelineStudy:
    """``kind = "pipeline"``; stages in an order in which each comes after those it takes from."""

    name: str
    title: str
    data: DataTable
    stages: tuple[Stage, ...]
    merged: Config
    kind: str = "pipeline"

    @property
    def hash(self) -> str:
        """Eight letters that change with the data and with any stage's hash or sources."""
        # Of the stages' own hashes: a setting on which no result depends is in none of them.
        return config_hash(
            {"data": self.merged["data"], "stages": {s.name: [[list(p) for p in s.sources], s.study.hash] for s in self.stages}}
        )


def study(kinds: Kinds, name: str, title: str, tables: Tables, source: str) -> PipelineStudy:
    """Check the complete file of a pipeline.

    Args:
        kinds: the kinds that its stages may have.
        name: the study's name.
        title: one line for people.
        tables: those of the scenario file, without kind and title.
        source: the file's name, which opens every message.

    Raises:
        InputError: names file, stage, key and what is allowed.
    """
    for key in tables:
        if key not in ("data", "stages"):
            raise unknown_name(f"{source}: key", key, ("kind", "title", "data", "stages"))
    for key in ("data", "stages"):
        if not isinstance(tables.get(key), dict) or not tables[key]:
            raise InputError(
                f"{source}: table [{key}] is {'missing or empty' if not tables.get(key) else 'not a table'}; a pipeline needs it."
            )
    if len(tables["stages"]) > MAX_STAGES:
        raise InputError(f"{source}: {len(tables['stages'])} stages; allowed: at most {MAX_STAGES}.")
    data = configure(DataTable, tables["data"], f"{source}: [data]")
    if data.classes is not None or data.zca:
        raise InputError(
            f"{source}: [data]: classes and zca are for a stage, not for a whole pipeline; write [stages.NAME.data] classes = [...]."
        )
    sources_of, studies = {}, {}
    for stage, table in tables["stages"].items():
        where = f"{source}: [stages.{clipped(stage, 40)}]"
        if not _NAME.fullmatch(stage) or not isinstance(table, dict):
            raise InputError(f"{where}: allowed: a table whose name is a small letter, then up to 31 small letters, digits, - and _.")
        sources_of[stage], studies[stage] = _stage(kinds, stage, title, dict(table), tables["data"], where)
    sources = {
        stage: tuple(_source(kinds, stage, text, studies, f"{source}: [stages.{stage}]") for text in sources_of[stage]) for stage in studies
    }
    order = _ordered({stage: [other for other, _ in taken] for stage, taken in sources.items()}, source)
    stages = tuple(Stage(stage, kinds[studies[stage].kind], studies[stage], sources[stage]) for stage in order)
    plain = {stage.name: {"from": [".".join(pair) for pair in stage.sources], **stage.study.merged} for stage in stages}
    return PipelineStudy(name, title, data, stages, {"kind": "pipeline", "data": dataclasses.asdict(data), "stages": plain})


def _stage(kinds: Kinds, stage: str, title: str, table: Tables, data: Tables, where: str) -> tuple[list[str], Study]:
    """(texts of ``from``, the stage's study)."""
    kind, sources = table.get("kind"), table.pop("from", [])
    if not isinstance(kind, str) or kind not in kinds or not kinds[kind].staged:
        raise unknown_name(f"{where}: kind", kind, [name for name in kinds if kinds[name].staged])
    texts = [sources] if isinstance(sources, str) else sources
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts) or len(texts) > MAX_STAGES:
        raise InputError(f"{where}: key 'from' is {clipped(sources)}; allowed: a stage's name, or a list of some.")
    if texts and kinds[kind].with_set:
        kind = table["kind"] = kinds[kind].with_set
    if texts and not kinds[kind].takes:
        takers = ", ".join(name for name in kinds if kinds[name].takes)
        raise InputError(f"{where}: a {kind} stage takes nothing from others; those that do: {takers}.")
    own = table.get("data", {})
    if not isinstance(own, dict) or set(own) - {"classes"}:
        raise InputError(f"{where}: [data] holds {clipped(own)}; allowed: classes only, so that all stages hold out the same images.")
    table["data"] = {**data, **own}
    table.setdefault("title", f"{title}: {stage}")
    return texts, scenario.study(kinds, stage, table, where, stage=bool(texts))


def _source(kinds: Kinds, stage: str, text: str, studies: Mapping[str, Study], where: str) -> tuple[str, str]:
    """(stage, set) that a text of ``from`` means: ``clients``, or ``clients.NAME`` where there are several sets."""
    other, _, name = text.partition(".")
    if other not in studies:
        raise unknown_name(f"{where}: key 'from': stage", other, [key for key in studies if key != stage])
    sets = list(kinds[studies[other].kind].sets(studies[other], 0))
    if not sets:
        raise InputError(
            f"{where}: takes a condensed set from {other!r}, a {studies[other].kind} stage that hands on none with its settings."
        )
    if name and name not in sets:
        raise unknown_name(f"{where}: key 'from': set of stage {other!r}", name, sets)
    if not name and len(sets) > 1:
        choices = ", ".join(f'"{other}.{choice}"' for choice in sets[:8])
        raise InputError(
            f"{where}: stage {other!r} hands on {len(sets)} sets; say which, or list several for their union: from = {choices}."
        )
    return other, name or sets[0]


def _ordered(needs: dict[str, list[str]], source: str) -> list[str]:
    """Stages after those they need, otherwise in the file's order."""
    order: list[str] = []
    while len(order) < len(needs):
        ready = [stage for stage in needs if stage not in order and all(other in order for other in needs[stage])]
        if not ready:
            waiting = [stage for stage in needs if stage not in order]
            raise InputError(
                f"{source}: the stages {', '.join(waiting)} go round in a circle: each waits for another of them; take a 'from' away."
            )
        order.append(ready[0])
    return order


def planned(study: PipelineStudy, stage: Stage, data: ImageData) -> Given | None:
    """The set that a stage will take, as far as it is known before anything has run; None where it takes none.

    Raises:
        InputError: where the classes of the set and of the stage's data do not fit.
    """
    if not stage.sources:
        return None
    by_name = {other_stage.name: other_stage for other_stage in study.stages}
    parts = [by_name[other].kind.classes(by_name[other].study) or data.classes for other, _ in stage.sources]
    classes = tuple(sorted({label for part in parts for label in part}))
    if any(label not in data.classes for label in classes):
        raise InputError(
            f"stage {stage.taken!r}: hands on the classes {clipped(list(classes))}; the data have {clipped(list(data.classes))}."
        )
    judged = tuple(sorted(set(stage.study.data.classes or data.classes)))
    if not stage.kind.some_classes and judged != classes:
        raise InputError(
            f"stage {stage.name!r} evaluates on the classes {clipped(list(judged))} and is given {clipped(list(classes))}; set "
            f"stages.{stage.name}.data.classes = {clipped(list(classes))}."
        )
    if not set(classes) <= set(judged):
        raise InputError(f"stage {stage.name!r} is given the classes {clipped(list(classes))}; its own are {clipped(list(judged))}.")
    return Given(stage.taken, classes)
