"""Text for the terminal: strips control characters, and adds the allowed names to typer's error messages."""

from typing import Any

from distill.errors import unknown_name


def printable(text: str) -> str:
    """A set's names come from elsewhere: no control characters reach the terminal."""
    return "".join(char if char.isprintable() else "?" for char in text)


def complaint(error: Any) -> str:
    """What typer says about a command line, with the names that are allowed."""
    text = " ".join(error.format_message().split())
    command = getattr(getattr(error, "ctx", None), "command", None)
    if text.startswith("No such command"):
        return str(unknown_name("command", text.removeprefix("No such command ").partition(". ")[0].strip("'\"."), command.commands))
    if text.startswith("No such option"):
        options = command.get_params(error.ctx)  # --help among them
        return str(unknown_name("option", error.option_name, [name for option in options for name in option.opts if name[0] == "-"]))
    return text or "no command was given"
