"""One study from start to end, with its answer on the terminal: what ``run`` and ``condense`` share."""

import signal
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from distill import stopping
from scenarios.commands.options import torch_device
from scenarios.engine.complaints import printable, terminal_width, wrapped

if TYPE_CHECKING:
    from scenarios.engine.study import Study


def run_and_print(
    study: "Study",
    out: Path,
    seed: int,
    device: str,
    data_root: Path | None,
    *,
    resume: bool,
    quiet: bool,
    resume_from: Path | None = None,
) -> None:
    """Run, continue or find a study; prints its table, answer and folder unless ``quiet``."""
    from distill.errors import InputError, clipped
    from scenarios.catalogue import KINDS, run_study
    from scenarios.engine.public_part import handing_on, is_private
    from scenarios.engine.study import Options
    from scenarios.reporting.report import view_of
    from scenarios.reporting.text import as_text
    from scenarios.sweep.grid import MAX_SEED

    if seed > MAX_SEED:
        raise InputError(f"--seed is {clipped(seed)}; allowed: 0 to {MAX_SEED}.")
    before = signal.signal(signal.SIGTERM, stopping.at_once)  # a scheduler's stop saves as Ctrl-C does
    try:
        folder, record = run_study(study, Options(out, data_root, seed, torch_device(device), resume, quiet, resume_from))
    finally:
        signal.signal(signal.SIGTERM, before)
    if not quiet and record["results"]:
        width, view = terminal_width(), view_of(record, KINDS)
        if rows := view.table(record):
            typer.echo("\n".join(map(printable, as_text(rows, width=width).splitlines())))
        lines = view.answer(record).splitlines()
        for line in lines:
            text = f"- {printable(line)}" if len(lines) > 1 else printable(line)
            typer.echo(wrapped(text, None if ": distill " in text else width))  # a command is copied whole
        typer.echo(f"{record['seconds']:.0f} s, peak memory {record['peak_memory_bytes'] / 1e9:.2f} GB; everything is in {folder}")
        if is_private(folder, study.merged):
            typer.echo(wrapped(printable(handing_on(record, "this output")), width))
