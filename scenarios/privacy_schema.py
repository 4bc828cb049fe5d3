"""The tables of a privacy study, checked."""

from dataclasses import dataclass
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from distill.configure import configure
from distill.errors import InputError, unknown_name
from scenarios.schema import DataTable, EvaluationTable, _evaluation, _method, _plain, config_hash

_STRICT = pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
ARMS = ("method", "private", "random", "whole")


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class PrivacyTable:
    """``[privacy]``: the budget, and what it is spent on.

    ``start`` "kmeans" spends ``start_share`` of the budget on a private start in ``start_releases`` releases. ``networks`` is how many
    random networks there are: with 0 every step has a network and a release of its own. ``twin`` makes a second set without noise or
    clipping from the same start with the same networks, so that one sees what the noise costs.
    """

    epsilon: tuple[Annotated[float, Field(gt=0)], ...] = (1.0,)
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    sample_rate: Annotated[float, Field(gt=0, le=1)] | None = None
    clip: Annotated[float, Field(gt=0)] | None = None
    population: Annotated[int, Field(ge=1)] | None = None
    start: Literal["noise", "kmeans"] = "noise"
    start_releases: Annotated[int, Field(ge=2)] = 7
    start_share: Annotated[float, Field(gt=0, lt=1)] = 0.3
    networks: Annotated[int, Field(ge=0)] = 0
    twin: bool = True


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class AuditTable:
    """``[audit]``: see `apps.privacy.canaries.audit`."""

    epsilon: Annotated[float, Field(gt=0)] = 4.0
    delta: Annotated[float, Field(gt=0, lt=1)] = 1e-5
    runs: Annotated[int, Field(ge=200, le=2304)] = 2000
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.999


@pydantic.dataclasses.dataclass(frozen=True, config=_STRICT)
class AttackTable:
    """``[attack]``: in each of ``runs``, a fair coin puts every image of ``pool`` (None: all) in or out; each arm learns from those in.

    ``networks`` networks are trained on each arm's set, their losses averaged; all points of the pool are attacked.
    """

    runs: Annotated[int, Field(ge=2)] = 4
    arms: tuple[str, ...] = ("method", "random", "whole")
    networks: Annotated[int, Field(ge=1)] = 1
    pool: Annotated[int, Field(ge=100)] | None = None


@dataclass(frozen=True)
class PrivacyStudy:
    name: str
    title: str
    data: DataTable
    method: str
    ipc: int
    settings: dict[str, Any]  # of the method, as they were given
    privacy: PrivacyTable | None
    evaluation: EvaluationTable
    audit: AuditTable | None
    attack: AttackTable | None
    merged: dict[str, Any]
    kind: str = "privacy"

    @property
    def hash(self) -> str:
        return config_hash(self.merged)


def study(name: str, title: str, tables: dict[str, Any], source: str) -> PrivacyStudy:
    """Check the tables; `InputError` names file, key and what is allowed."""
    known = {"data": DataTable, "privacy": PrivacyTable, "audit": AuditTable, "attack": AttackTable}
    for key, table in tables.items():
        if key not in (*known, "method", "evaluation"):
            raise unknown_name(f"{source}: key", key, ("kind", "title", *known, "method", "evaluation"))
        if not isinstance(table, dict):
            raise InputError(f"{source}: [{key}] is not a table; a privacy study needs one.")
    made = {key: configure(kind, tables[key], f"{source}: [{key}]") if key in tables else None for key, kind in known.items()}
    if not any(made[key] for key in ("privacy", "audit", "attack")):
        raise InputError(f"{source}: has none of the tables [privacy], [audit] and [attack]; a privacy study needs one.")
    table = dict(tables.get("method", {}))
    method, ipc, settings = _method(dict(table), f"{source}: [method]")
    if len(ipc) != 1:
        raise InputError(f"{source}: [method]: key 'ipc' is {list(ipc)}; allowed: one whole number in a privacy study.")
    given = {key: value for key, value in table.items() if key not in ("name", "ipc")}
    evaluation = _evaluation(dict(tables.get("evaluation", {})), f"{source}: [evaluation]")
    for arm in made["attack"].arms if made["attack"] else ():
        if arm not in ARMS:
            raise unknown_name(f"{source}: [attack]: key 'arms': value", arm, ARMS)
    if made["attack"] and "private" in made["attack"].arms and made["privacy"] is None:
        raise InputError(f"{source}: [attack]: the arm 'private' needs a table [privacy].")
    data = made["data"] or DataTable("digits")
    parts = {key: _plain(value) if value else None for key, value in made.items() if key != "data"}
    merged = {"kind": "privacy", "data": _plain(data), "method": {"name": method, "ipc": ipc[0], **_plain(settings)}}
    merged |= {**parts, "evaluation": _plain(evaluation)}
    return PrivacyStudy(name, title, data, method, ipc[0], given, made["privacy"], evaluation, made["audit"], made["attack"], merged)
