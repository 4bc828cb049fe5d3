"""``distill report``: an HTML page about one or several runs."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="One or more run folders.")],
    out: Annotated[Path | None, typer.Option(help="The page; default: report.html in the first folder.")] = None,
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from scenarios.report import write_report

    page = out or folders[0] / "report.html"
    write_report(folders, page)
    typer.echo(str(page))
