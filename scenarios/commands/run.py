"""``distill run``: a study from a scenario file, or a grid of them."""

import os
import sys
from pathlib import Path
from typing import Annotated, NoReturn

import typer

from scenarios.commands.options import Device, Grid, Jobs, Out, Quiet, Resume, ResumeFrom, Root, Seeds, torch_device
from scenarios.commands.study import run_and_print
from scenarios.engine.complaints import printable, terminal_width, wrapped


def run(
    scenario: Annotated[str, typer.Argument(help="A .toml file, or a shipped scenario's name (distill list scenarios).")],
    settings: Grid = None,
    out: Out = Path("runs"),
    seed: Annotated[int | None, typer.Option(min=0, help="Same seed, same bits; default 0.")] = None,
    seeds: Seeds = None,
    jobs: Jobs = None,
    device: Device = "auto",
    data_root: Root = None,
    resume: Resume = False,
    resume_from: ResumeFrom = None,
    quiet: Quiet = False,
) -> None:
    """Run a study from a scenario file; leaves a run folder with its record, sets, figures and report.

    With --seeds 0..4, or several values in a --set (method.ipc=1,10,50; a list like [1,10] is one value), all combinations are run, in
    parallel; those that are done are skipped. `distill table` puts them together.
    """
    from distill.errors import InputError
    from scenarios.catalogue import study
    from scenarios.engine.scenario import override, read_scenario
    from scenarios.sweep import grid

    if seed is not None and seeds is not None:
        raise InputError("--seed and --seeds are both given; allowed: one of them.")
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs {jobs}: allowed: 1 to the number of cores that are here.")
    combinations, numbers = grid.combinations(settings or []), [seed or 0] if seeds is None else grid.seeds(seeds)
    if len(combinations) * len(numbers) > 1:
        if resume_from is not None:
            raise InputError("--resume-from continues one run; leave the grid out.")
        _sweep(scenario, combinations, numbers, jobs, quiet=quiet, out=out, device=torch_device(device), data_root=data_root, resume=resume)
    name, tables = read_scenario(scenario)
    source = scenario if scenario.endswith(".toml") else f"{name}.toml"
    run_and_print(
        study(name, override(tables, combinations[0][0]), source),
        out,
        numbers[0],
        device,
        data_root,
        resume=resume,
        quiet=quiet,
        resume_from=resume_from,
    )


def _sweep(
    scenario: str,
    combinations: list[tuple[list[str], list[str]]],
    seeds: list[int],
    jobs: int | None,
    *,
    quiet: bool,
    out: Path,
    device: str,
    data_root: Path | None,
    resume: bool,
) -> NoReturn:
    from distill.errors import InputError
    from scenarios.catalogue import KINDS
    from scenarios.engine.public_part import MARK
    from scenarios.reporting.runs import find_runs, shown, summary
    from scenarios.sweep.sweep import sweep

    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("a grid is shared out run by run; call it without torchrun.")

    def told(text: str) -> None:
        if not quiet:
            typer.echo(wrapped(printable(text), terminal_width(sys.stderr)), err=True)

    done, failed = sweep(scenario, combinations, seeds, out=out, device=device, data_root=data_root, jobs=jobs, resume=resume, report=told)
    rows = summary(find_runs(done, KINDS)) if done and not quiet else []
    if len(rows) > 1:
        typer.echo(shown(rows, "text", terminal_width()))
    if not quiet and (private := [path.name for path in done if (path / MARK).exists()]):
        typer.echo(
            wrapped(f"Private: of {', '.join(private)} hand on public/ only; guarantees of several runs add up.", terminal_width()),
            err=True,
        )
    for label, (code, reason) in failed.items():
        lines = reason.splitlines()
        typer.echo("\n".join(map(printable, [f"failed: {label}: {reason}"] if code == 2 else [f"failed: {label}:", *lines])), err=True)
    raise typer.Exit(0 if not failed else 2 if all(code == 2 for code, _ in failed.values()) else 1)
