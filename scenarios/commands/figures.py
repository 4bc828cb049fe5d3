"""``distill figures``: the figures of a finished run again, for print."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.options import Dpi


def figures(
    folder: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run folder.")],
    form: Annotated[str, typer.Option("--format", help="png, pdf or svg.")] = "pdf",
    dpi: Dpi = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: figures in the run folder.")] = None,
) -> None:
    """Draw the figures of a finished run again as PDF, SVG or PNG, for example ``--format png --dpi 300``."""
    from scenarios.catalogue import KINDS
    from scenarios.engine.complaints import printable
    from scenarios.engine.public_part import handing_on, is_private
    from scenarios.reporting.redraw import redraw
    from scenarios.reporting.runs import read_run

    written, kept = redraw(folder, form, dpi, out or folder / "figures", KINDS)
    for path in written:
        typer.echo(printable(str(path)))
    run = read_run(folder)
    if is_private(folder, run.config):
        typer.echo(printable(handing_on(run.record, "these figures")), err=True)
    if kept:
        typer.echo(printable(f"not drawn again, since they need the data: {', '.join(path.name for path in kept)}"), err=True)
