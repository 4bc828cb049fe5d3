"""``distill sweep-lr``: choose a step size on held-out training images."""

from pathlib import Path
from typing import Annotated

import typer

from scenarios.commands.options import Classes, Device, Imbalance, Out, Quiet, Resume, Root, Seed, Set, Size, data_table, refuse_unused
from scenarios.commands.study import run_and_print


def sweep_lr(
    data: Annotated[str, typer.Option(help="Data set: digits, mnist, ..., folder:PATH (distill list data).")],
    method: Annotated[str, typer.Option(help="Method (distill list methods).")] = "dm",
    ipc: Annotated[int, typer.Option(min=1, help="Images per class.")] = 1,
    key: Annotated[str, typer.Option(help="The step size that is varied, for example lr_img or mtt's lr_lr.")] = "lr_img",
    values: Annotated[str | None, typer.Option(metavar="A,B,...", help="The step sizes; default: spaced around the method's own.")] = None,
    low: Annotated[float | None, typer.Option("--from", help="The smallest step size of a spaced range.")] = None,
    high: Annotated[float | None, typer.Option("--to", help="The largest step size of a spaced range.")] = None,
    points: Annotated[int | None, typer.Option(min=2, max=100, help="How many step sizes the range has.", show_default="7")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Image updates for each step size (a short run).")] = 15,
    validation: Annotated[float, typer.Option(help="Share of the training images that is held out.")] = 0.2,
    network: Annotated[str, typer.Option(help="Evaluation network.")] = "ConvNet",
    seeds: Annotated[int, typer.Option(min=1, help="Evaluation networks for each step size.")] = 3,
    settings: Set = None,
    size: Size = None,
    classes: Classes = None,
    imbalance: Imbalance = None,
    out: Out = Path("runs"),
    seed: Seed = 0,
    device: Device = "auto",
    data_root: Root = None,
    resume: Resume = False,
    quiet: Quiet = False,
) -> None:
    """Condense with several step sizes, evaluate each on held-out training images, and say which to use.

    The test images are not used. ``--set`` takes the method's settings, which the sweep then leaves as given.
    """
    from distill.errors import InputError, clipped
    from scenarios.catalogue import study
    from scenarios.condense.step_sizes import tables_for
    from scenarios.engine.scenario import override

    if values is not None:
        refuse_unused({"--from": low, "--to": high, "--points": points}, "with --values")
    try:
        numbers = [float(part) for part in values.split(",")] if values is not None else []
    except ValueError:
        raise InputError(f"--values {clipped(values)!r}: allowed: numbers between commas, for example 0.1,1,10.") from None
    tables = tables_for(
        data,
        method,
        ipc,
        override({}, settings or []),
        key=key,
        values=numbers,
        low=low,
        high=high,
        points=points or 7,
        steps=steps,
        network=network,
        networks=seeds,
        validation=validation,
    )
    tables["data"] = data_table(data, size, classes, validation, imbalance)
    run_and_print(study("sweep-lr", tables, "distill sweep-lr"), out, seed, device, data_root, resume=resume, quiet=quiet)
