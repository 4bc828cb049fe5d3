"""The command line: the app, its commands (one file each in scenarios/commands), and what ends with which exit code."""

import errno
import os
import platform
import shlex
import sys
import traceback
from importlib import metadata
from typing import TYPE_CHECKING, Annotated

import typer
from typer.core import TyperCommand

from scenarios.commands import ctrl_c
from scenarios.commands.compare import compare
from scenarios.commands.condense import condense
from scenarios.commands.evaluation.evaluate import evaluate
from scenarios.commands.evaluation.label import label
from scenarios.commands.evaluation.score import score
from scenarios.commands.exchange.export_set import export_set
from scenarios.commands.exchange.import_set import import_set
from scenarios.commands.figures import figures
from scenarios.commands.list import list_names
from scenarios.commands.loading import with_a_line
from scenarios.commands.privacy.attack import attack
from scenarios.commands.privacy.audit import audit
from scenarios.commands.report import report
from scenarios.commands.run import run
from scenarios.commands.show import show
from scenarios.commands.sweep_lr import sweep_lr
from scenarios.commands.table import table
from scenarios.engine.complaints import complaint, printable, terminal_width, wrapped

if TYPE_CHECKING:
    import click

app = typer.Typer(
    name="distill",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)


def _versions(wanted: bool) -> None:
    if wanted:
        found = {name: _version(name) for name in ("distill-apps", "torch")}
        typer.echo(", ".join([*(f"{name} {number}" for name, number in found.items()), f"Python {platform.python_version()}"]))
        raise typer.Exit


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=_versions, is_eager=True, help="Print the versions and exit.")] = False,
) -> None:
    """A data set's knowledge in a handful of synthetic images: make them, evaluate them, use them."""


class _Command(TyperCommand):
    """A command that takes no empty path: Python reads "" as the current folder, and a shell puts it where a variable is not set."""

    def parse_args(self, ctx: "click.Context", args: list[str]) -> list[str]:
        left = super().parse_args(ctx, args)
        for parameter in self.params if not ctx.resilient_parsing else ():  # which completion sets
            value = ctx.params.get(parameter.name or "")
            if parameter.type.name in ("path", "file", "directory") and "" in (value if isinstance(value, list | tuple) else [value]):
                from distill.errors import InputError

                raise InputError(f"{parameter.get_error_hint(ctx)} is an empty path; give a path (the current folder is .).")
        return left


for command in (run, table, compare, condense, evaluate, score, label, attack, audit, show, report, figures):
    app.command(cls=_Command)(with_a_line(command) if command in (run, condense, evaluate, score, label, attack, audit, show) else command)
app.command("import", cls=_Command)(with_a_line(import_set))
app.command("export", cls=_Command)(with_a_line(export_set))
app.command("sweep-lr", cls=_Command)(with_a_line(sweep_lr))
app.command("list", cls=_Command)(list_names)


def main(arguments: list[str] | None = None) -> None:
    """Run the command line and exit: 0 done, 2 wrong input (one line), 1 our fault (traceback), 130 interrupted."""
    from distill.errors import CannotWrite, InputError, clipped
    from distill.memory import keep_freed_memory

    keep_freed_memory()
    given = sys.argv[1:] if arguments is None else arguments
    resumable = given[:1] in (["run"], ["condense"], ["sweep-lr"])
    again = shlex.join(["distill", *given, *([] if "--resume" in given else ["--resume"])])
    interrupted = f"interrupted; continue with: {again}" if resumable else "interrupted"
    if arguments is None:  # this process is the command's own
        ctrl_c.watch(interrupted)
    try:
        code = app(args=given, prog_name="distill", standalone_mode=False)
    except InputError as error:
        unwritten = isinstance(error, CannotWrite) and resumable and "--resume" not in str(error)
        _fail(f"error: {printable(str(error))}{' A run that stopped continues with --resume.' if unwritten else ''}", 2)
    except KeyboardInterrupt:
        code = 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception as error:
        if isinstance(error, OSError) and error.errno == errno.ENAMETOOLONG:  # any argument or setting that is a path
            _fail(f"error: {clipped(str(error.filename))!r} is too long for the name of a file or folder; give a shorter one.", 2)
        # typer's own complaints about options (whichever click it carries) know how to say themselves.
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):
            _fail(f"error: {printable(complaint(error))} (see: distill --help)", 2)
        own = sys.modules.get("scenarios.engine.own")  # loaded by every command that can run a user's own code
        if own is not None and (line := own.blame(error)):
            _fail(f"error: {printable(line)}", 2)
        traceback.print_exc()
        sys.exit(1)
    if code == 130:  # typer turns Ctrl-C into this number
        if arguments is None:
            print(interrupted, file=sys.stderr)
            ctrl_c.end_flushed(130)
        _fail(interrupted, 130)
    sys.exit(code if isinstance(code, int) else 0)


def _fail(text: str, code: int) -> None:
    # A command line to copy stays whole; errors are wrapped at words on a terminal.
    print(text if code == 130 else wrapped(text, terminal_width(sys.stderr)), file=sys.stderr)
    sys.exit(code)


if __name__ == "__main__":
    main()
