"""The values of a run's files as types, and the name of its folder: every place that makes or reads a folder's name asks here."""

import re
from pathlib import Path
from typing import Any, NamedTuple, NotRequired, TypedDict

Tables = dict[str, Any]  # of a scenario file, before a kind has checked them
Config = dict[str, Any]  # a study's settings as plain values: config.json
Results = dict[str, Any]  # what a kind found: ``results`` of record.json, and a part of it; docs/results.md names its keys
Line = dict[str, Any]  # of a file of JSON lines
Rows = list[list[str]]  # a table: the header, then its rows

_FOLDER = re.compile(r"(?P<study>.+)-(?P<hash>[^-]+)-s(?P<seed>[^-]+)")


class Record(TypedDict):
    """record.json. One that comes from elsewhere is checked where it is read (`scenarios.reporting.runs.read_run`)."""

    schema: int
    scenario: str
    title: str
    kind: str
    seed: int
    status: str
    results: Results
    seconds: float
    peak_memory_bytes: int
    environment: dict[str, Any]
    notes: list[str]
    reason: NotRequired[str]


class RunName(NamedTuple):
    """The parts of a run folder's name: study, hash of its settings, seed."""

    study: str
    hash: str
    seed: str

    def same_study(self, name: str) -> bool:
        """Whether a folder of this name is of the same study at the same seed, whatever its settings."""
        other = parsed(name)
        return other is not None and (other.study, other.seed) == (self.study, self.seed)


def run_name(study: str, settings_hash: str, seed: int) -> Path:
    """The name of a run's folder, ``<study>-<hash>-s<seed>``."""
    return Path(f"{study}-{settings_hash}-s{seed}")


def parsed(name: str) -> RunName | None:
    """The parts of a run folder's name; None where it is not of this form."""
    parts = _FOLDER.fullmatch(name)
    return RunName(**parts.groupdict()) if parts else None
