"""Whether a run's numbers are still finite, and the error that says which step size to change where they are not."""

import dataclasses
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from distill.errors import Diverged, diverged

# On a GPU a look at a number waits for everything before it.
LATEST = 10


class Watch:
    """Looks at losses and states: on a CPU after every step, on a GPU after ten at the latest, without a wait in each.

    Tensors of the state that are not finite at the start are a method's own business and are left out.
    """

    def __init__(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        self.device = device
        self.every = 1 if device.type == "cpu" else LATEST
        self.left_out = {name for name, value in state.items() if not bool(torch.isfinite(value).all())}
        self._finite: list[Tensor] = []

    def add(self, values: Mapping[str, Tensor | float], state: Mapping[str, Tensor]) -> None:
        """One step's numbers: what it returned, and the state that it left."""
        kept = [value for name, value in state.items() if value.is_floating_point() and name not in self.left_out]
        numbers = [value for value in values.values() if not isinstance(value, Tensor)]
        tensors = [torch.as_tensor(value, device=self.device) for value in (*values.values(), *kept) if isinstance(value, Tensor)]
        finite = [torch.isfinite(tensor).all() for tensor in tensors]
        if numbers:  # a fill, which a GPU does not wait for
            finite.append(torch.full((), all(map(math.isfinite, numbers)), dtype=torch.bool, device=self.device))
        self._finite.append(torch.stack(finite).all() if finite else torch.ones((), dtype=torch.bool, device=self.device))

    def first_bad(self) -> int | None:
        """How many steps after the last look the first one that was not finite came (1 is the next one); None where all are finite."""
        flags = torch.stack(self._finite).tolist() if self._finite else []
        self._finite = []
        return flags.index(False) + 1 if False in flags else None


def step_sizes(distiller: object) -> tuple[dict[str, float], dict[str, float | None]]:
    """(step sizes that are in use, their defaults), by the names of the config's fields: all that begin with ``lr_``, but where a learned
    one starts."""
    config = getattr(distiller, "config", None)
    if not dataclasses.is_dataclass(config):
        return {}, {}
    sizes: dict[str, float] = {}
    usual: dict[str, float | None] = {}
    for field in dataclasses.fields(config):
        given = getattr(config, field.name)
        if field.name.startswith("lr_") and field.name != "lr_init":
            given = getattr(distiller, field.name, None) if given is None else given  # a method's own choice
            if isinstance(given, int | float) and given > 0:
                sizes[field.name] = float(given)
                usual[field.name] = field.default if isinstance(field.default, int | float) else 1.0
    return sizes, usual


def diverged_at(what: str, step: int, total: int, distiller: object, state: Mapping[str, Tensor]) -> Diverged:
    """The error for ``what`` (a method) at ``step``; ``state`` is the last finite one."""
    learned = f" (learned lr {float(state['lr']):.3g})" if "lr" in state and state["lr"].ndim == 0 else ""
    return diverged(what, f"step {step} of {total}{learned}", *step_sizes(distiller))
