"""``distill list``: the names that the other commands take."""

from typing import Annotated

import typer

from scenarios.commands.options import Root
from scenarios.engine.complaints import columns, terminal_width


def list_names(
    what: Annotated[str, typer.Argument(help="methods, data, networks or scenarios.")],
    data_root: Root = None,
) -> None:
    """List the names that the other commands take."""
    from distill.errors import unknown_name

    width = terminal_width()

    if what == "methods":
        from distill.methods import METHODS

        typer.echo(columns([(name, (method.__doc__ or " ").splitlines()[0]) for name, (_, method) in METHODS.items()], width))
    elif what == "data":
        from distill.data_sources import describe

        rows = [(f"{name:16} {'ready' if there else 'missing'}", text) for name, text, there in describe(data_root)]
        typer.echo(columns(rows, width))
    elif what == "networks":
        from distill.networks import NAMES

        typer.echo("\n".join(NAMES))
    elif what == "scenarios":
        from scenarios.engine.scenario import parse, shipped

        typer.echo(columns([(name, str(parse(path).get("title", ""))) for name, path in shipped().items()], width))
        from scenarios.engine import template

        forms = [f"{form}-{'METHOD' if which == template.METHODS else '|'.join(which)}-DATA-ipcN" for form, which in template.FORMS.items()]
        typer.echo(f"{', '.join(forms)}: {', '.join(template.METHODS)} on {', '.join(template.DATA)}")
    else:
        raise unknown_name("list", what, ["methods", "data", "networks", "scenarios"])
