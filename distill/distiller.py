"""`Distiller`: the interface of a method, and checks of what a user's own method returns."""

from typing import Protocol

import torch
from torch import Tensor

from distill.condensed import CondensedSet
from distill.errors import InputError, a_kind, clipped
from distill.statistics import RealStatistics


class Config(Protocol):
    """Fields that the config of every method, a frozen dataclass with defaults, has."""

    @property
    def network(self) -> str: ...
    @property
    def augmentation(self) -> str: ...
    @property
    def initial(self) -> str: ...


class Stateful(Protocol):
    """What a checkpoint needs of a method: its tensors by name."""

    def state(self) -> dict[str, Tensor]: ...
    def load_state(self, state: dict[str, Tensor]) -> None: ...


class Distiller(Stateful, Protocol):
    """Interface of a method; there is no base class.

    A method may also have ``prepare(statistics, progress=None)``, which `distill.run.condense` calls once before the first step.

    Attributes:
        total_steps: number of steps of a run.
        condensed: the set in its current state.
    """

    total_steps: int

    @property
    def condensed(self) -> CondensedSet: ...
    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """Update the images once; returns losses (0-dimensional) by name."""
        ...


def check_distiller(distiller: Distiller) -> None:
    """Check ``total_steps``, ``condensed`` and ``state()`` before the first step; raises `InputError`."""
    total: object = distiller.total_steps  # of a user's own class, so perhaps another type
    if isinstance(total, bool) or not isinstance(total, int) or total < 0:
        raise _wrong(distiller, "total_steps", "is", total, "a whole number, 0 or more")
    check_condensed(distiller)
    check_tensors(distiller, "state()", distiller.state())


def check_condensed(distiller: Distiller) -> None:
    """Raises `InputError` if ``condensed`` is no `CondensedSet`."""
    value: object = distiller.condensed
    if not isinstance(value, CondensedSet):
        raise _wrong(distiller, "condensed", "is", value, "a CondensedSet" + (" (decorate it with @property)" if callable(value) else ""))


def check_tensors(distiller: object, part: str, returned: object, *, scalars: bool = False) -> None:
    """Raises `InputError` unless the value that ``part`` returned is a dict of tensors by name, 0-dimensional if ``scalars``."""
    allowed = f"a dict from name to {'a 0-dimensional real tensor' if scalars else 'a tensor'}"
    if not isinstance(returned, dict):
        raise _wrong(distiller, part, "returns", returned, allowed)
    for name, value in returned.items():
        if not isinstance(name, str):
            raise _wrong(distiller, part, f"has the key {clipped(name, 40)},", name, allowed)
        if scalars and isinstance(value, int | float):
            continue  # numbers are accepted as well
        if not isinstance(value, Tensor):
            raise _wrong(distiller, part, f"has under {clipped(name, 40)!r}", value, allowed)
        if scalars and (value.ndim or value.is_complex()):
            form = f"a tensor of shape {tuple(value.shape)} and type {value.dtype}"
            raise InputError(f"method {type(distiller).__name__}: {part} has under {clipped(name, 40)!r} {form}; allowed: {allowed}.")


def load_state(distiller: Stateful, state: dict[str, Tensor], path: object) -> None:
    """Restore a checkpoint's tensors. Where a user's own method raises, `InputError` names the file and the class."""
    try:
        distiller.load_state(state)
    except Exception as error:
        if type(distiller).__module__.startswith("distill."):
            raise
        if isinstance(error, InputError):
            raise
        raise InputError(
            f"{path}: method {type(distiller).__name__}: load_state raised {type(error).__name__}: {clipped(error, 160)}; allowed: "
            "to take what state() returned. Correct it, or delete the file to start again."
        ) from error


def _wrong(distiller: object, part: str, verb: str, value: object, allowed: str) -> InputError:
    text = f" {clipped(repr(value), 40)}" if isinstance(value, str | int | float) else ""
    kind = "None" if value is None else a_kind(value)
    return InputError(f"method {type(distiller).__name__}: {part} {verb} {kind}{text}; allowed: {allowed}.")
