"""Text for the terminal: strips control characters, and adds the allowed names to typer's error messages."""

import shutil
import sys
import textwrap
from collections.abc import Sequence
from typing import Any, TextIO

from distill.errors import unknown_name


def printable(text: str) -> str:
    """A set's names come from elsewhere: no control characters reach the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def terminal_width(stream: TextIO | None = None) -> int | None:
    """Columns of the terminal that ``stream`` (standard output when None) goes to; None for a pipe or a file, where lines stay whole."""
    to = sys.stdout if stream is None else stream
    return max(40, shutil.get_terminal_size().columns) if to.isatty() else None


def wrapped(text: str, width: int | None) -> str:
    """Each line of the text, broken between words where it is longer than ``width``; unchanged without a width."""
    if width is None:
        return text
    lines = (textwrap.wrap(line, width, break_long_words=False, break_on_hyphens=False) for line in text.splitlines())
    return "\n".join("\n".join(parts) for parts in lines)


def columns(rows: Sequence[tuple[str, str]], width: int | None) -> str:
    """Names and their texts in two columns, the second one wrapped at words."""
    first = max(len(name) for name, _ in rows) + 2
    lines = []
    for name, text in rows:
        parts = wrapped(text, None if width is None else max(20, width - first)).splitlines() or [""]
        lines += [f"{head.ljust(first)}{part}".rstrip() for head, part in zip([name, *[""] * len(parts)], parts, strict=False)]
    return "\n".join(lines)


def complaint(error: Any) -> str:
    """What typer says about a command line, with the names that are allowed."""
    text = " ".join(error.format_message().split())
    if text.startswith("No such command"):
        name = text.removeprefix("No such command ").partition(". ")[0].strip("'\".")
        return str(unknown_name("command", name, error.ctx.command.commands))
    if text.startswith("No such option"):
        options = error.ctx.command.get_params(error.ctx)  # --help among them
        return str(unknown_name("option", error.option_name, [name for option in options for name in option.opts if name[0] == "-"]))
    extra = text.startswith("Got unexpected extra argument") and "=" in text
    if extra and any("--set" in option.opts for option in error.ctx.command.get_params(error.ctx)):
        return f"{text.rstrip('.')}; each setting needs its own --set: --set KEY=VALUE --set KEY=VALUE."
    return text or "no command was given"
