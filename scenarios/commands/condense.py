"""``distill condense``: one data set, one method, without a scenario file."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.options import Device, Out, Quiet, Resume, Root, Seed, Set
from scenarios.commands.study import run_and_print


def condense(
    data: Annotated[str, typer.Option(help="Data set: digits, mnist, ..., folder:PATH (distill list data).")],
    method: Annotated[str, typer.Option(help="Method (distill list methods).")] = "dm",
    ipc: Annotated[int, typer.Option(min=1, help="Images per class.")] = 1,
    settings: Set = None,
    out: Out = Path("runs"),
    seed: Seed = 0,
    device: Device = "auto",
    data_root: Root = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Condense a data set without a scenario file; ``--set`` takes the method's settings, for example ``--set iterations=300``."""
    from scenarios.schema import override, study

    table = override({}, settings or [])
    tables = {"kind": "condense", "data": {"name": data}, "method": {"name": method, "ipc": ipc, **table}}
    run_and_print(study("condense", tables, "distill condense"), out, seed, device, data_root, resume, quiet)
