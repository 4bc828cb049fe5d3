"""`Exemplars`: the images of one class as a memory stores them, float32 or uint8 on a grid, and the bytes they take."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import InputError
from distill.quantise import Grid, decode, encode, grid_of, pairs

LABEL_BYTES = 8  # an int64 for each item, as a condensed set's file stores it
GRID_BYTES = 8  # low and step of each channel, two float32

Key = tuple[int, int]  # (task, label): class 0 of one task is not class 0 of another


@dataclass(frozen=True, eq=False)
class Exemplars:
    """Some images of one class of one task, from one experience or (online) from all.

    ``values`` (n, C, H, W): float32 images in the learner's space, or uint8 codes with ``grid``, a (low, step) pair a channel:
    image = low + step * code. ``logits`` (n, K) float32 are a network's outputs for them (DER), or None. ``seen`` is how many real images
    they stand for. ``kept`` says that they are images of the stream as they came, because their class had no more than its share.
    """

    label: int
    task: int
    experience: int
    seen: int
    values: Tensor
    grid: Grid | None = None
    logits: Tensor | None = None
    kept: bool = False

    def __post_init__(self) -> None:
        values, channels = self.values, self.values.shape[1] if self.values.ndim == 4 else 0
        if values.ndim != 4 or not len(values) or values.dtype != (torch.float32 if self.grid is None else torch.uint8):
            raise InputError(f"exemplars are {values.dtype} {tuple(values.shape)}; allowed: float32 (n, C, H, W), or uint8 with a grid.")
        if self.grid is not None and (len(self.grid) != channels or not all(step > 0 for _, step in self.grid)):
            raise InputError(
                f"an exemplars' grid is {str(self.grid)[:80]}; allowed: a low and a positive step for each of {channels} channels."
            )
        if self.logits is not None and (self.logits.ndim != 2 or len(self.logits) != len(values) or self.logits.dtype != torch.float32):
            raise InputError(f"exemplars' logits are {tuple(self.logits.shape)}; allowed: float32 ({len(values)}, K).")

    def __len__(self) -> int:
        return len(self.values)

    @property
    def images(self) -> Tensor:
        """(n, C, H, W) float32."""
        return self.values if self.grid is None else decode(self.values, self.grid)

    @property
    def nbytes(self) -> int:
        """Bytes of images, labels, grid and stored outputs."""
        logits = 0 if self.logits is None else 4 * self.logits.numel()
        grid = GRID_BYTES * len(self.grid or ())
        return self.values.numel() * self.values.element_size() + LABEL_BYTES * len(self) + grid + logits


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


def item_bytes(shape: tuple[int, ...], storage: str, logits: int = 0) -> int:
    """Bytes of one item of this image shape (C, H, W)."""
    pixels = shape[0] * shape[1] * shape[2]
    return pixels * (1 if storage == "uint8" else 4) + LABEL_BYTES + 4 * logits


def group_bytes(shape: tuple[int, ...], storage: str) -> int:
    """Bytes that a class takes beside its items."""
    return GRID_BYTES * shape[0] if storage == "uint8" else 0


def stored(images: Tensor, storage: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> tuple[Tensor, Grid | None]:
    """(values, grid) of images (n, C, H, W): own copies on the CPU without gradients.

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
