"""``distill compare``: the paired difference of two finished runs."""

from typing import Annotated

import typer

from scenarios.engine.complaints import printable, terminal_width, wrapped


def compare(
    first: Annotated[str, typer.Argument(metavar="RUN", help="A run folder, or a folder (or a pattern in quotes) of runs of one study.")],
    second: Annotated[str, typer.Argument(metavar="RUN", help="The same for the other side; the difference is second minus first.")],
    figures: Annotated[
        list[str] | None,
        typer.Option("--figure", metavar="PATTERN", help="Figures by name, for example 'ipc*.accuracy.*', or LEFT=RIGHT; may be repeated."),
    ] = None,
    form: Annotated[str, typer.Option("--format", help="text, markdown, csv or json.")] = "text",
    anyway: Annotated[bool, typer.Option("--anyway", help="Compare runs with other data, split, recipe or evaluation networks.")] = False,
) -> None:
    """Print the paired difference of two finished runs with its 95 % interval.

    Pairs are evaluation networks of equal seed, or, where a side has several runs, runs of equal seed.
    """
    from distill.errors import unknown_name
    from scenarios.catalogue import KINDS
    from scenarios.reporting import compare as comparing

    if form not in comparing.FORMATS:
        raise unknown_name("format", form, comparing.FORMATS)
    left_out: list[str] = []
    first_runs, second_runs = (comparing.group(side, left_out, KINDS) for side in (first, second))
    comparisons, warnings = comparing.compare(first_runs, second_runs, figures or [], anyway=anyway)
    for line in [*left_out, *warnings]:
        typer.echo(f"note: {printable(line)}", err=True)
    width = terminal_width() if form == "text" else None
    typer.echo(
        "\n".join(
            wrapped(printable(line), width) if "  " not in line else printable(line)
            for line in comparing.shown(comparisons, form, width).splitlines()
        )
    )
