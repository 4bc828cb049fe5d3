"""The errors for wrong input and for numbers that are no longer finite, and the sentence that offers the nearest allowed name."""

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # errors are raised before torch is imported, too
    from torch import Tensor

LONGEST_LIST = 400  # characters of a list of names in a message


class InputError(ValueError):
    """Input from the user (or another party) is wrong.

    The message is one line: the value, what is allowed, what to do. The command line prints it and exits with code 2.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))


class CannotWrite(InputError):
    """The system refuses to write a file (disk full, no permission, no such folder). Files written before are complete."""


class Diverged(InputError):
    """A loss, weights or outputs are not finite; the same settings diverge again."""


def diverged(what: str, where: str, sizes: Mapping[str, float], usual: Mapping[str, float | None] | None = None) -> Diverged:
    """The error for a run that diverged, with a smaller value to try for each step size.

    Args:
        what: a method, ``"expert 3"`` or a network.
        where: the moment, for example ``"step 12 of 1000"``.
        sizes: step sizes by the names under which a user gives them.
        usual: their defaults; a step size far above its default is advised to go back to it.
    """
    stated = ", ".join(f"{name} {value:g}" for name, value in sizes.items())
    tries = []
    for name, value in sizes.items():
        default = (usual or {}).get(name)
        tries.append(f"{name}={default if default is not None and default < value / 10 else value / 10:g}")
    advice = f"with {stated}; try a smaller step size: {' or '.join(tries)}" if sizes else "; try a smaller step size"
    return Diverged(f"{what} diverged at {where} {advice}.".replace(" ;", ";"))


def a_kind(value: object) -> str:
    """Type of a value for a message: "an int", "a list"."""
    name = type(value).__name__
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def type_and_shape(tensor: "Tensor") -> str:
    """For a message: ``float32 of shape (2, 3)``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def clipped(value: object, length: int = 80) -> str:
    """Text of any value: printable, at most ``length`` characters."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # a whole number of thousands of digits, a list inside itself
        text = f"{a_kind(value)} too long to print"
    text = "".join(char if char.isprintable() else "?" for char in text[: length + 1])
    return text if len(text) <= length else f"{text[:length]}..."


def unknown_name(what: str, value: object, allowed: Iterable[str], listed_by: str = "") -> InputError:
    """The error for an unknown name, with the nearest allowed name and the allowed names.

    Args:
        what: what the name is of, for example "network".
        value: the unknown name.
        allowed: the allowed names; if they take more than `LONGEST_LIST` characters, only the nearest are listed.
        listed_by: a command that lists them all.
    """
    names = sorted(allowed)
    text = clipped(value)
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else "."
    if not names:
        return InputError(f"{what} {text!r} is not known; none is allowed here.")
    if len(every := ", ".join(names)) <= LONGEST_LIST:
        return InputError(f"{what} {text!r} is not known{hint} Allowed: {every}.")
    nearest = ", ".join(difflib.get_close_matches(text, names, n=5, cutoff=0.0))
    return InputError(
        f"{what} {text!r} is not known{hint} Allowed: {len(names)} names, the nearest are {nearest}"
        + (f"; for all of them: {listed_by}." if listed_by else ".")
    )
