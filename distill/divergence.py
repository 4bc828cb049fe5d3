"""Detects losses and states that are not finite, and makes the error that advises smaller step sizes."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from distill.errors import Diverged, diverged

# Reading a number from a GPU waits for all work before it.
LATEST = 10


class Watch:
    """Checks losses and states: on a CPU after every step, on a GPU after at most ten, so that a step does not wait for the result.

    Tensors of the state that are not finite at the start are not checked.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        self.device = device
        self.every = 1 if device.type == "cpu" else LATEST
        self.left_out = {name for name, value in state.items() if not bool(torch.isfinite(value).all())}
        self._finite: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor | float], state: Mapping[str, Tensor]) -> None:
        """Record the losses of one step and the state after it."""
        kept = [value for name, value in state.items() if value.is_floating_point() and name not in self.left_out]
        numbers = [value for value in values.values() if not isinstance(value, Tensor)]
        tensors = [torch.as_tensor(value, device=self.device) for value in (*values.values(), *kept) if isinstance(value, Tensor)]
        finite = [torch.isfinite(tensor).all() for tensor in tensors]
        if numbers:  # a fill, which a GPU does not wait for
            finite.append(torch.full((), all(map(math.isfinite, numbers)), dtype=torch.bool, device=self.device))
        self._finite.append(torch.stack(finite).all() if finite else torch.ones((), dtype=torch.bool, device=self.device))

    def first_bad(self) -> int | None:
        """The first step that was not finite, counted from the last call (1 is the step after it); None if all are finite."""
        flags = torch.stack(self._finite).tolist() if self._finite else []
        self._finite = []
        return flags.index(False) + 1 if False in flags else None


def step_sizes(distiller: object) -> tuple[dict[str, float], dict[str, float | None]]:
    """(step sizes in use, their defaults) by field of the config: all that begin with ``lr_``, except ``lr_init``."""
    config = getattr(distiller, "config", None)
    if not dataclasses.is_dataclass(config):
        return {}, {}
    sizes: dict[str, float] = {}
    usual: dict[str, float | None] = {}
    for field in dataclasses.fields(config):
        size = getattr(config, field.name)
        if field.name.startswith("lr_") and field.name != "lr_init":
            size = getattr(distiller, field.name, None) if size is None else size  # chosen by the method
            if isinstance(size, int | float) and size > 0:
                sizes[field.name] = float(size)
                usual[field.name] = field.default if isinstance(field.default, int | float) else 1.0
    return sizes, usual


def diverged_at(what: str, step: int, total: int, distiller: object, state: Mapping[str, Tensor]) -> Diverged:
    """The error for ``what`` (a method) at ``step``; ``state`` is the last finite state."""
    learned = f" (learned lr {float(state['lr']):.3g})" if "lr" in state and state["lr"].ndim == 0 else ""
    return diverged(what, f"step {step} of {total}{learned}", *step_sizes(distiller))
