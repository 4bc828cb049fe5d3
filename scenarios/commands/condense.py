"""``distill condense``: one data set, one method, without a scenario file."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.options import (
    Classes,
    Device,
    Imbalance,
    Out,
    Quiet,
    Resume,
    ResumeFrom,
    Root,
    Seed,
    Set,
    Size,
    Validation,
    data_table,
)
from scenarios.commands.study import run_and_print


def condense(
    data: Annotated[str, typer.Option(help="Data set: digits, mnist, ..., folder:PATH (distill list data).")],
    method: Annotated[str | None, typer.Option(help="Method (distill list methods).", show_default="dm")] = None,
    ipc: Annotated[int | None, typer.Option(min=1, help="Images per class.", show_default="1")] = None,
    settings: Set = None,
    size: Size = None,
    classes: Classes = None,
    validation: Validation = None,
    imbalance: Imbalance = None,
    out: Out = Path("runs"),
    seed: Seed = 0,
    device: Device = "auto",
    data_root: Root = None,
    resume: Resume = False,
    resume_from: ResumeFrom = None,
    more_images_than_data: Annotated[
        bool, typer.Option("--more-images-than-data", help="Allow more images a class than the largest class has.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Condense a data set without a scenario file; ``--set`` takes the method's settings, for example ``--set iterations=300``."""
    from distill.errors import InputError, clipped
    from scenarios.catalogue import study
    from scenarios.engine.scenario import override

    table = override({}, settings or [])
    for option, key, given in (("--method", "name", method), ("--ipc", "ipc", ipc)):
        if given is not None and key in table:
            raise InputError(f"{option} {clipped(given)} and --set {key}={clipped(table[key])} are both given; allowed: one of them.")
    named = {"name": "dm" if method is None else method, "ipc": 1 if ipc is None else ipc, **table}
    if more_images_than_data:
        named["more_images_than_data"] = True
    tables = {"kind": "condense", "data": data_table(data, size, classes, validation, imbalance), "method": named}
    run_and_print(
        study("condense", tables, "distill condense"), out, seed, device, data_root, resume=resume, quiet=quiet, resume_from=resume_from
    )
