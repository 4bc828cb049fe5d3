"""``distill report``: an HTML page about one or several runs."""

from pathlib import Path
from typing import Annotated

import typer


def report(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN_DIR...", help="One or more run folders.")],
    out: Annotated[Path | None, typer.Option(help="The page, an .html file; default: report.html in the first folder.")] = None,
) -> None:
    """Write one self-contained HTML page about one or several runs."""
    from distill.errors import InputError
    from scenarios.catalogue import KINDS
    from scenarios.reporting.report import write_report

    if out is not None and out.suffix.lower() not in (".html", ".htm"):
        given = f"ends in {out.suffix!r}" if out.suffix else "is a folder" if out.is_dir() else "has no suffix"
        raise InputError(f"{out}: {given}; a report's file ends in .html.")
    page = out or folders[0] / "report.html"
    write_report(folders, page, KINDS)
    typer.echo(str(page))
