"""`Exemplars`: the images of one class as a memory stores them, float32 or uint8 on a grid, and the bytes they take."""

from dataclasses import dataclass

import torch
from torch import Tensor

from apps.continual.form import GRID_BYTES, LABEL_BYTES, Form
from distill.errors import InputError, clipped
from distill.quantise import Grid, decode, encode, grid_of, pairs

MAX_LABEL = 2**31 - 1
Key = tuple[int, int]  # (task, label): class 0 of one task is not class 0 of another


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Some images of one class of one task, from one experience or (online) from all.

    ``values`` (n, C, h, w) are n images as ``form`` stores them (plainly: C, H, W): float32 in the learner's space, or uint8 codes with
    ``grid``, a (low, step) pair a channel: value = low + step * code. ``logits`` (n, K) float32 are a network's outputs for the images
    (DER), or None. ``seen`` is how many real images they stand for. ``kept`` says that they are images of the stream, which the form alone
    has changed, because their class had no more than its share. The length is the number of stored items, ``count`` that of images.
    """

    label: int
    task: int
    experience: int
    seen: int
    values: Tensor
    form: Form
    grid: Grid | None = None
    logits: Tensor | None = None
    kept: bool = False

    def __post_init__(self) -> None:
        values, channels = self.values, self.values.shape[1] if self.values.ndim == 4 else 0
        if values.ndim != 4 or not len(values) or values.dtype != (torch.float32 if self.grid is None else torch.uint8):
            raise InputError(f"exemplars are {values.dtype} {tuple(values.shape)}; allowed: float32 (n, C, H, W), or uint8 with a grid.")
        if tuple(values.shape[1:]) != self.form.part_shape:
            raise InputError(f"exemplars are of {tuple(values.shape[1:])}; allowed: {self.form.part_shape}, as their form stores images.")
        if self.grid is not None and (len(self.grid) != channels or not all(step > 0 for _, step in self.grid)):
            raise InputError(
                f"an exemplars' grid is {str(self.grid)[:80]}; allowed: a low and a positive step for each of {channels} channels."
            )
        if self.logits is not None and (self.logits.ndim != 2 or len(self.logits) != len(values) or self.logits.dtype != torch.float32):
            raise InputError(f"exemplars' logits are {tuple(self.logits.shape)}; allowed: float32 ({len(values)}, K).")

    def __len__(self) -> int:
        return self.form.items(self.count)

    @property
    def count(self) -> int:
        """Number of images."""
        return len(self.values)

    @property
    def parts(self) -> Tensor:
        """(n, C, h, w) float32: the images as they are stored."""
        return self.values if self.grid is None else decode(self.values, self.grid)

    @property
    def images(self) -> Tensor:
        """(n, C, H, W) float32."""
        return self.form.enlarged(self.parts)

    @property
    def nbytes(self) -> int:
        """Bytes of images, labels, grid and stored outputs."""
        logits = 0 if self.logits is None else 4 * self.logits.numel()
        grid = GRID_BYTES * len(self.grid or ())
        return self.values.numel() * self.values.element_size() + LABEL_BYTES * len(self) + grid + logits


def checked(
    images: Tensor, labels: Tensor, task: int | Tensor, shape: tuple[int, ...] | None = None, mean: tuple[float, ...] | None = None
) -> Tensor:
    """The tasks (N,) of an experience. Raises `InputError` unless its images have this shape, and as many channels as ``mean``."""
    if not isinstance(labels, Tensor):
        raise InputError(f"labels are {clipped(type(labels).__name__)}; allowed: an int64 torch tensor (N,).")
    if images.ndim != 4 or labels.shape != images.shape[:1] or not len(images):
        raise InputError(
            f"an experience has images {tuple(images.shape)} and labels {tuple(labels.shape)}; allowed: (N, C, H, W) and (N,)."
        )
    if shape is not None and tuple(images.shape[1:]) != shape:
        raise InputError(f"an experience has images of {tuple(images.shape[1:])}; the memory holds {shape}: one memory, one image shape.")
    if mean is not None and len(mean) != images.shape[1]:
        raise InputError(f"mean and std have {len(mean)} channels and the stream's images {images.shape[1]}.")
    if not bool(torch.isfinite(images).all()):
        raise InputError("an experience's images hold values that are not finite; allowed: finite numbers only.")
    tasks = task if isinstance(task, Tensor) else torch.full(labels.shape, task)
    for what, tensor in (("labels", labels), ("tasks", tasks)):
        if tensor.dtype != torch.int64 or tensor.shape != labels.shape or not 0 <= int(tensor.min()) <= int(tensor.max()) <= MAX_LABEL:
            kind = f"{clipped(tensor.dtype)} {tuple(tensor.shape)} from {tensor.min()} to {tensor.max()}"
            raise InputError(f"an experience's {what} are {kind}; allowed: int64 (N,), 0 to {MAX_LABEL}.")
    return tasks.cpu()


def by_class(images: Tensor, labels: Tensor, tasks: Tensor) -> dict[Key, Tensor]:
    """Each class's images (n, C, H, W), float32 on the CPU without gradients, by (task, label): tasks rising, then labels."""
    pairs = torch.stack([tasks.cpu(), labels.cpu()], 1)
    keys = [(int(task), int(label)) for task, label in pairs.unique(dim=0).tolist()]
    places = {key: (pairs == torch.tensor(key)).all(1).to(images.device) for key in keys}
    return {key: images[places[key]].detach().to("cpu", torch.float32) for key in keys}


def reservoir(past: Tensor, seen: int, recent: Tensor, count: int, draws: torch.Generator) -> Tensor:
    """At most ``count`` images, a uniform sample of everything seen: ``past`` is one of ``seen`` images, ``recent`` are all new.

    Of a sample of everything, as many as fall on recent images are drawn from these, the others from the stored ones.
    """
    drawn = torch.randperm(seen + len(recent), generator=draws)[:count]
    new = int((drawn >= seen).sum())
    old = min(len(drawn) - new, len(past))
    kept = past[torch.randperm(len(past), generator=draws)[:old]]
    return torch.cat([kept, recent[torch.randperm(len(recent), generator=draws)[:new]]])


def stored(images: Tensor, storage: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> tuple[Tensor, Grid | None]:
    """(values, grid) of images as they are stored (n, C, h, w): own copies on the CPU without gradients.

    uint8 takes the pixels' own grid where mean and std are known and the images lie on it (real images: nothing is lost), else 256
    steps from each channel's lowest to its highest value.
    """
    own = images.detach().to("cpu", torch.float32, copy=True).contiguous()
    if storage == "float32":
        return own, None
    if mean is not None and std is not None:
        pixels = tuple((_single(-m / s), _single(1 / (255 * s))) for m, s in zip(mean, std, strict=True))
        codes = encode(own, pixels)
        if bool(((decode(codes, pixels) - own).abs().amax((0, 2, 3)) <= 0.01 * torch.tensor([step for _, step in pixels])).all()):
            return codes, pixels
    grid = pairs(grid_of(own).float())  # four bytes are counted for each number
    return encode(own, grid), grid


def _single(value: float) -> float:
    """Rounded to what four bytes hold, because that is what is counted."""
    return float(torch.tensor(value, dtype=torch.float32))
