"""Optional parts of a condensed set: step sizes and start weights. Each is checked on construction.

`distill.set_file` defines how they are stored.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.errors import InputError, clipped, type_and_shape
from distill.spec import MAX_NAME

ORDERS = ("sequence", "cycle")
MAX_STEPS = 1_000_000
MAX_TENSORS = 2000  # of start weights
MAX_WEIGHT_BYTES = 256 << 20


@dataclass(frozen=True, eq=False)
class StepSizes:
    """Learned step sizes for training on a set. Raises `InputError`.

    Attributes:
        values: (n,) float32, positive.
        order: "sequence": step i uses values[i], and training ends after n steps; "cycle": step i uses values[i mod n].
        batches: (n, b) int64, positions of the images of each step; None: not prescribed.
    """

    values: Tensor
    order: str = "sequence"
    batches: Tensor | None = None

    def __post_init__(self) -> None:
        values, batches = self.values, self.batches
        if values.dtype != torch.float32 or values.ndim != 1 or not 1 <= len(values) <= MAX_STEPS:
            raise InputError(f"step_sizes are {type_and_shape(values)}; allowed: float32 of shape (n,), n from 1 to {MAX_STEPS}.")
        if not bool((torch.isfinite(values) & (values > 0)).all()):
            raise InputError("step_sizes hold values that are not positive finite numbers; allowed: such numbers only.")
        if self.order not in ORDERS:
            raise InputError(f"step_sizes have the order {clipped(self.order)!r}; allowed: {' or '.join(ORDERS)}.")
        if batches is None:
            return
        if batches.dtype != torch.int64 or batches.ndim != 2 or len(batches) != len(values) or not batches.numel():
            raise InputError(f"step_batches are {type_and_shape(batches)}; allowed: int64 of shape ({len(values)}, b), b at least 1.")

    def check(self, images: int) -> None:
        """Raises `InputError` if a batch has a position beyond a set of ``images`` images."""
        if self.batches is not None and not 0 <= int(self.batches.min()) <= int(self.batches.max()) < images:
            low, high = int(self.batches.min()), int(self.batches.max())
            raise InputError(f"step_batches name the images {low}..{high}; allowed: 0..{images - 1}.")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in a file."""
        return {"step_sizes": self.values} | ({} if self.batches is None else {"step_batches": self.batches})

    def to(self, device: torch.device | str) -> "StepSizes":
        return StepSizes(self.values.to(device), self.order, None if self.batches is None else self.batches.to(device))

    def same_as(self, other: "StepSizes | None") -> bool:
        """Whether both are the same steps."""
        return other is not None and self.order == other.order and _alike(self.tensors, other.tensors)


@dataclass(frozen=True, eq=False)
class StartWeights:
    """Weights from which networks are trained on a set. Raises `InputError`.

    Attributes:
        tensors: by parameter name, float32 (int64 for counters).
        sha256: in place of tensors, the digest of a file that holds them.
        network: name of the architecture, or None; names are looked up, never imported.
    """

    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    sha256: str | None = None
    network: str | None = None

    def __post_init__(self) -> None:
        if bool(self.tensors) == (self.sha256 is not None):
            raise InputError("start_weights are tensors or the sha256 of a file that holds them; give one of the two.")
        if self.sha256 is not None and not (isinstance(self.sha256, str) and re.fullmatch(r"[0-9a-f]{64}", self.sha256)):
            raise InputError(f"start_weights have the sha256 {clipped(self.sha256)!r}; allowed: 64 digits of 0-9 and a-f.")
        if self.network is not None and not _name(self.network):
            raise InputError(f"start_weights are of the network {clipped(self.network)!r}; allowed: a name of 1 to {MAX_NAME} characters.")
        _check_named(self.tensors, "start_weights", (torch.float32, torch.int64))
        if (size := _nbytes(self.tensors)) > MAX_WEIGHT_BYTES:
            raise InputError(f"start_weights take {size} bytes; allowed: at most {MAX_WEIGHT_BYTES}; or give a file's sha256.")

    def to(self, device: torch.device | str) -> "StartWeights":
        return StartWeights({name: value.to(device) for name, value in self.tensors.items()}, self.sha256, self.network)

    def same_as(self, other: "StartWeights | None") -> bool:
        """Whether both are the same weights."""
        return other is not None and (self.sha256, self.network) == (other.sha256, other.network) and _alike(self.tensors, other.tensors)


def _check_named(tensors: Mapping[str, Tensor], what: str, dtypes: tuple[torch.dtype, ...]) -> None:
    if len(tensors) > MAX_TENSORS:
        raise InputError(f"{what} are {len(tensors)} tensors; allowed: at most {MAX_TENSORS}.")
    for name, value in tensors.items():
        if not _name(name):
            raise InputError(f"{what} have a tensor named {clipped(name)!r}; allowed: 1 to {MAX_NAME} characters.")
        if value.dtype not in dtypes or value.ndim > 4:
            kinds = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise InputError(f"{what}: {clipped(name)} is {type_and_shape(value)}; allowed: {kinds} of at most 4 dimensions.")
        if not bool(torch.isfinite(value).all()):
            raise InputError(f"{what}: {clipped(name)} holds values that are not finite; allowed: finite numbers only.")


def _name(text: object) -> bool:
    return isinstance(text, str) and 1 <= len(text) <= MAX_NAME and text.isprintable()


def _nbytes(tensors: Mapping[str, Tensor]) -> int:
    return sum(math.prod(value.shape) * value.element_size() for value in tensors.values())


def _alike(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor]) -> bool:
    return set(ours) == set(theirs) and all(torch.equal(value.cpu(), theirs[name].cpu()) for name, value in ours.items())
