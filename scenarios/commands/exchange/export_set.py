"""``distill export``: a condensed set in formats that other programs read."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.engine.complaints import printable, terminal_width, wrapped


def export_set(
    condensed: Annotated[Path, typer.Argument(metavar="SET.safetensors", help="A condensed set's file.")],
    form: Annotated[str, typer.Option("--as", metavar="FORMAT", help="png, npz, pt, or datasets (Hugging Face's image folder).")],
    out: Annotated[Path | None, typer.Option(help="A new folder; default: the set's name and the format, next to the set.")] = None,
    stored: Annotated[bool, typer.Option("--stored", help="npz, pt: keep grids of small images as they are stored.")] = False,
) -> None:
    """Write a set as PNG folders, npz, pt or a Hugging Face data set, with a README that says what a consumer must undo."""
    from distill.condensed import CondensedSet
    from distill.errors import clipped
    from distill.foreign.writing import export

    target = out or condensed.with_name(f"{condensed.stem}-{form}")
    written = export(CondensedSet.load(condensed), target, form, stored=stored)
    lines = [f"{target}: {len(written.files)} files", *written.notes]
    typer.echo("\n".join(wrapped(clipped(printable(line), 2000), terminal_width()) for line in lines))
