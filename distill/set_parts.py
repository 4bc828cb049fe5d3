"""What a condensed set may carry beside images and labels: step sizes in their order, start weights, and images that are stored encoded.

Each part checks itself, wherever it comes from. `distill.set_file` says how they are stored.
"""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from distill.errors import InputError, clipped
from distill.records import Json
from distill.spec import MAX_NAME, DataSpec

ORDERS = ("sequence", "cycle")
MAX_STEPS = 1_000_000
MAX_TENSORS = 2000  # of start weights, or of encoded images
MAX_WEIGHT_BYTES = 256 << 20
# (parameters, tensors, spec, number of images) to images (N, C, H, W) float32, or `InputError`; by kind. This version has none yet.
Decoder = Callable[[Mapping[str, Json], Mapping[str, Tensor], DataSpec, int], Tensor]
DECODERS: dict[str, Decoder] = {}


@dataclass(frozen=True, eq=False)
class StepSizes:
    """Learned step sizes for training on a set, one a step.

    ``values`` (n,) float32, positive. In the ``order`` "sequence" step i of n steps takes values[i], and training ends with the last; in a
    "cycle" step i takes values[i mod n]. ``batches`` (n, b) int64 are the positions of the images of each step; None leaves the choice to
    the learner. Raises `InputError`.
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
        """`InputError` where a batch names an image that a set of so many images does not have."""
        if self.batches is not None and not 0 <= int(self.batches.min()) <= int(self.batches.max()) < images:
            low, high = int(self.batches.min()), int(self.batches.max())
            raise InputError(f"step_batches name the images {low}..{high}; allowed: 0..{images - 1}.")

    @property
    def tensors(self) -> dict[str, Tensor]:
        """By their names in a file."""
        return {"step_sizes": self.values} | ({} if self.batches is None else {"step_batches": self.batches})

    def to(self, device: torch.device | str) -> "StepSizes":
        return StepSizes(self.values.to(device), self.order, None if self.batches is None else self.batches.to(device))

    def same_as(self, other: "StepSizes | None") -> bool:
        """Whether both are the same steps."""
        return other is not None and self.order == other.order and _alike(self.tensors, other.tensors)


@dataclass(frozen=True, eq=False)
class StartWeights:
    """The weights that networks start from when they are trained on a set.

    ``tensors`` by parameter name, float32 (or int64, as counters of steps are); or ``sha256``, the digest of a file that holds them and is
    not in the set. ``network`` is the name of their architecture, or None; names are looked up, never imported. Raises `InputError`.
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


@dataclass(frozen=True, eq=False)
class Encoded:
    """Images as they are stored: ``tensors``, from which the decoder of this ``kind`` makes them with these plain ``parameters``.

    `DECODERS` has the kinds of this version. Raises `InputError`, for a kind that is not among them, too.
    """

    kind: str
    parameters: Mapping[str, Json] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or self.kind not in DECODERS:
            known = ", ".join(sorted(DECODERS)) or "none"
            raise InputError(
                f"the images are stored in the form {clipped(self.kind)!r}, which this version cannot decode (known: {known}); they were "
                "made by another version of this toolkit: use that one."
            )
        _check_named(self.tensors, "decode", (torch.float32, torch.uint8, torch.int64))
        if not self.tensors:
            raise InputError("decode has no tensors; allowed: those that its kind is made of.")
        try:
            json.dumps(dict(self.parameters), allow_nan=False)
        except (TypeError, ValueError, RecursionError):
            raise InputError(f"decode has the parameters {clipped(self.parameters)}; allowed: finite numbers, texts, lists.") from None

    def images(self, spec: DataSpec, count: int) -> Tensor:
        """(N, C, H, W) float32: the images that a set of ``count`` images holds."""
        made = DECODERS[self.kind](self.parameters, self.tensors, spec, count)
        if made.dtype != torch.float32 or tuple(made.shape) != (count, *spec.shape):
            raise InputError(f"decoding ({self.kind}) gives {type_and_shape(made)}; allowed: float32 of shape {(count, *spec.shape)}.")
        return made

    @property
    def nbytes(self) -> int:
        return _nbytes(self.tensors)

    def to(self, device: torch.device | str) -> "Encoded":
        return Encoded(self.kind, self.parameters, {name: value.to(device) for name, value in self.tensors.items()})


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


def type_and_shape(tensor: Tensor) -> str:
    """For a message: ``float32 of shape (2, 3)``."""
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
