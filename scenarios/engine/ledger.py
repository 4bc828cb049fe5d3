"""Lines of a study's metrics.jsonl as a ledger: what is there is not computed again."""

from collections.abc import Iterable, Mapping
from pathlib import Path

from distill.records import read_lines
from scenarios.engine.record import Line


def matching(lines: Path | Iterable[Line], key: Mapping[str, object]) -> list[Line]:
    """The lines that have every value of ``key``.

    Args:
        lines: a file of JSON lines, or lines that have been read.
        key: values by name, for example ``{"stage": "evaluate", "network": "ConvNet"}``.
    """
    source = read_lines(lines) if isinstance(lines, Path) else lines
    return [line for line in source if all(line.get(name) == value for name, value in key.items())]
