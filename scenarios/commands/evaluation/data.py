"""The data that a set was made from, as it was then: size, classes and what was held out."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

from scenarios.commands.options import data_table
from scenarios.engine.complaints import printable

if TYPE_CHECKING:
    from distill.condensed import CondensedSet
    from distill.data import ImageData


def data_for(
    condensed: "CondensedSet",
    name: str,
    size: int | None,
    classes: str | None,
    validation: float | None,
    imbalance: float | None,
    *,
    root: Path | None,
    device: str,
) -> "ImageData":
    """Load the data set ``name`` for a set, with the set's normalisation and class names; notes go to stderr."""
    from distill.configure import configure
    from scenarios.engine.folder import data_of
    from scenarios.engine.schema import DataTable
    from scenarios.engine.study import Options

    chosen = data_table(name, size or _resized(condensed, name), classes, validation, imbalance)
    stated = condensed.spec.given.items()
    given = {"class_names" if key == "classes" else key: list(value) for key, value in stated if isinstance(value, tuple)}
    table = configure(DataTable, given | chosen, "distill evaluate")
    # The set's own seed, so that what was held out when it was made (a folder's test images) is held out now.
    images = data_of(table, Options(data_root=root, device=device, seed=condensed.provenance.seed or 0))
    for note in images.notes:
        typer.echo(f"note: {printable(note)}", err=True)
    return images


def _resized(condensed: "CondensedSet", data: str) -> int | None:
    """What can be resized gets the set's own size, where it is square."""
    square = condensed.spec.height == condensed.spec.width
    return condensed.spec.height if data.partition(":")[0] in ("folder", "mhist", "digits") and square else None
