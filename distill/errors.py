"""The one error for wrong input, and the sentence that offers the nearest allowed name."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """What the user (or another party) gave is wrong.

    The message is one line: what was given, what is allowed, what to do. The command line prints it and exits with 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


def clipped(given: object, length: int = 80) -> str:
    """A value's text, at most ``length`` characters, printable, whatever it is."""
    try:
        text = str(given)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, a list inside itself
        text = f"a {type(given).__name__} too long to print"
    text = "".join(char if char.isprintable() else "?" for char in text[: length + 1])
    return text if len(text) <= length else f"{text[:length]}..."


def unknown_name(what: str, given: object, allowed: Iterable[str]) -> InputError:
    """The error for a name that is not in a list: names the list and the nearest entry."""
    names = sorted(allowed)
    text = clipped(given)
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    return InputError(f"{what} {text!r} is not known{hint} Allowed: {', '.join(names)}.")
