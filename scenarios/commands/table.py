"""``distill table``: figures of many runs, as mean and interval over seeds."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.engine.complaints import printable, terminal_width


def table(
    folders: Annotated[list[Path], typer.Argument(metavar="RUNS...", help="Run folders, or folders that hold some.")],
    form: Annotated[str, typer.Option("--format", help="text, markdown or csv.")] = "text",
    figures: Annotated[
        list[str] | None, typer.Option(metavar="PATTERN", help="Figures by name, for example 'ipc*.accuracy.*' or '*'; may be repeated.")
    ] = None,
) -> None:
    """Print mean and 95 % interval over seeds; runs that differ in their seed only come together."""
    from distill.errors import InputError, unknown_name
    from scenarios.catalogue import KINDS
    from scenarios.reporting import runs as tables

    if form not in tables.FORMATS:
        raise unknown_name("format", form, tables.FORMATS)
    runs, left = tables.finished(tables.find_runs(folders, KINDS))
    for line in left:
        typer.echo(printable(line), err=True)
    if not runs:
        raise InputError("none of the runs is done; finish one with --resume.")
    rows = tables.summary(runs, figures or [])
    if len(rows) == 1:
        raise tables.no_figures(runs, figures or [])
    typer.echo("\n".join(map(printable, tables.shown(rows, form, terminal_width()).splitlines())))
