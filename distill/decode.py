"""How a condensed set's images are stored: each kind turns stored rows into the images that a learner sees.

A set without one stores its images. Every kind is differentiable, so that a method's gradient for the decoded images is pulled back to what
is stored (`distill.synthetic.Synthetic.descend`). `DECODES` is the table of kinds; a file names its kind and has plain numbers, no code.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Protocol

import pydantic
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.configure import config_class, configure
from distill.errors import InputError, clipped
from distill.spec import DataSpec, column

MAX_FACTOR = 16


class Decode(Protocol):
    """One way to store images. Stored rows are (N, *stored_shape) float32; each gives ``copies`` images with the row's label.

    Attributes:
        kind: its name in `DECODES` and in a file.
        copies: decoded images a stored row.
        pixels: whether stored rows are pixels of the data's shape, which may be clamped to the data's range, quantised and drawn.
    """

    kind: ClassVar[str]
    pixels: ClassVar[bool]

    @property
    def copies(self) -> int: ...
    @property
    def parameters(self) -> dict[str, int]:
        """Plain numbers that a file's header holds with the kind."""
        ...

    def stored_shape(self, spec: DataSpec) -> tuple[int, ...]:
        """Shape of one stored row. Raises `InputError` where images of this spec cannot be stored so."""
        ...

    def pads(self, spec: DataSpec) -> bool:
        """Whether decoding adds grey pixels, which have no place in a white space."""
        ...

    def decoded(self, stored: Tensor, spec: DataSpec) -> Tensor:
        """(N, *stored_shape) to (N * copies, C, H, W), the images of a row next to each other; differentiable. `enlarged` of `parted`."""
        ...

    def encoded(self, images: Tensor, spec: DataSpec) -> Tensor:
        """(N * copies, C, H, W) to (N, *stored_shape): real images in this form, for a start and for baselines. `joined` of `shrunk`."""
        ...

    def parted(self, stored: Tensor, spec: DataSpec) -> Tensor:
        """(N, *stored_shape) to (N * copies, C, h, w): each image's part of its row, as it is stored."""
        ...

    def joined(self, parts: Tensor, spec: DataSpec) -> Tensor:
        """(N * copies, C, h, w) to (N, *stored_shape): rows of these parts."""
        ...

    def enlarged(self, parts: Tensor, spec: DataSpec) -> Tensor:
        """(N, C, h, w) to (N, C, H, W): the image of each part; differentiable."""
        ...

    def shrunk(self, images: Tensor, spec: DataSpec) -> Tensor:
        """(N, C, H, W) to (N, C, h, w): each image as a part."""
        ...


@config_class
class Formation:
    """A grid of ``factor`` x ``factor`` small images in the place of one; each is enlarged (bilinear) to the full size.

    Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization" (IDC), ICML 2022, multi-formation of one scale. Images
    whose height or width is no multiple of the factor are padded at the bottom and right with the pixel value 0.5.
    """

    factor: Annotated[int, pydantic.Field(ge=2, le=MAX_FACTOR)]

    kind: ClassVar[str] = "formation"
    pixels: ClassVar[bool] = True

    @property
    def copies(self) -> int:
        return self.factor**2

    @property
    def parameters(self) -> dict[str, int]:
        return {"factor": self.factor}

    def stored_shape(self, spec: DataSpec) -> tuple[int, ...]:
        """The data's own shape."""
        if min(spec.height, spec.width) < 2 * self.factor:
            raise InputError(
                f"formation with factor {self.factor} of images of {spec.height} x {spec.width} pixels; allowed: a factor of at most "
                f"{min(spec.height, spec.width) // 2}, so that a small image has 2 pixels a side or more."
            )
        return spec.shape

    def pads(self, spec: DataSpec) -> bool:
        return spec.height % self.factor > 0 or spec.width % self.factor > 0

    def decoded(self, stored: Tensor, spec: DataSpec) -> Tensor:
        return self.enlarged(self.parted(stored, spec), spec)

    def encoded(self, images: Tensor, spec: DataSpec) -> Tensor:
        return self.joined(self.shrunk(images, spec), spec)

    def parted(self, stored: Tensor, spec: DataSpec) -> Tensor:
        """Cells from left to right, then downwards."""
        height, width = self._cell(spec)
        padded = _padded(stored, spec, height * self.factor, width * self.factor)
        cells = padded.unfold(2, height, height).unfold(3, width, width)  # (N, C, factor, factor, height, width)
        return cells.permute(0, 2, 3, 1, 4, 5).reshape(-1, spec.channels, height, width)

    def joined(self, parts: Tensor, spec: DataSpec) -> Tensor:
        """What exceeds the data's shape is cut at the bottom and right."""
        factor, (height, width) = self.factor, self._cell(spec)
        cells = parts.reshape(-1, factor, factor, spec.channels, height, width).permute(0, 3, 1, 4, 2, 5)
        grid = cells.reshape(-1, spec.channels, factor * height, factor * width)
        return grid[:, :, : spec.height, : spec.width].contiguous()

    def enlarged(self, parts: Tensor, spec: DataSpec) -> Tensor:
        return F.interpolate(parts, size=(spec.height, spec.width), mode="bilinear", align_corners=False)

    def shrunk(self, images: Tensor, spec: DataSpec) -> Tensor:
        """The average over the pixels that a small pixel covers."""
        return F.interpolate(images, size=self._cell(spec), mode="area")

    def _cell(self, spec: DataSpec) -> tuple[int, int]:
        return math.ceil(spec.height / self.factor), math.ceil(spec.width / self.factor)


@config_class
class Frequency:
    """The ``coefficients`` lowest frequencies of each channel's discrete cosine transform; the image is the inverse transform.

    Shin et al., "Frequency Domain-based Dataset Distillation" (FreD), NeurIPS 2023. FreD keeps the frequencies at which the real images of
    a class vary most; here they are the lowest ones, which reveal nothing of the data. Stored rows are (C, coefficients).
    """

    coefficients: Annotated[int, pydantic.Field(ge=1, le=1 << 20)]

    kind: ClassVar[str] = "frequency"
    pixels: ClassVar[bool] = False
    copies: ClassVar[int] = 1

    @property
    def parameters(self) -> dict[str, int]:
        return {"coefficients": self.coefficients}

    def stored_shape(self, spec: DataSpec) -> tuple[int, ...]:
        """(C, coefficients)."""
        if self.coefficients > spec.height * spec.width:
            raise InputError(f"frequency with {self.coefficients} coefficients; allowed: at most {spec.height * spec.width}, one a pixel.")
        return spec.channels, self.coefficients

    def pads(self, spec: DataSpec) -> bool:
        return False

    def decoded(self, stored: Tensor, spec: DataSpec) -> Tensor:
        return self.enlarged(self.parted(stored, spec), spec)

    def encoded(self, images: Tensor, spec: DataSpec) -> Tensor:
        return self.joined(self.shrunk(images, spec), spec)

    def parted(self, stored: Tensor, spec: DataSpec) -> Tensor:
        """A row is one image's, (N, C, 1, coefficients)."""
        return stored.unsqueeze(2)

    def joined(self, parts: Tensor, spec: DataSpec) -> Tensor:
        return parts.squeeze(2)

    def enlarged(self, parts: Tensor, spec: DataSpec) -> Tensor:
        rows, columns = cosines(spec.height, parts), cosines(spec.width, parts)
        spectrum = parts.new_zeros((len(parts), spec.channels, spec.height * spec.width))
        spectrum = spectrum.index_copy(2, self._positions(spec, parts.device), parts.squeeze(2))
        return rows.T @ spectrum.view(-1, *spec.shape) @ columns

    def shrunk(self, images: Tensor, spec: DataSpec) -> Tensor:
        rows, columns = cosines(spec.height, images), cosines(spec.width, images)
        return (rows @ images @ columns.T).flatten(2)[:, :, None, self._positions(spec, images.device)]

    def _positions(self, spec: DataSpec, device: torch.device) -> Tensor:
        """Flat positions (coefficients,) in a spectrum (H, W), the lowest frequency first; ties go to the smaller row."""
        return _lowest(spec.height, spec.width, device)[: self.coefficients]


@config_class
class LowRank:
    """Each channel is a product of two matrices of ``rank`` columns: rank * (H + W) numbers in the place of H * W.

    Yang et al., "An Efficient Dataset Condensation Plugin and Its Application to Continual Learning", NeurIPS 2023. Stored rows are
    (C, rank, H + W): the columns of the left matrix, then those of the right one.
    """

    rank: Annotated[int, pydantic.Field(ge=1, le=1 << 12)]

    kind: ClassVar[str] = "lowrank"
    pixels: ClassVar[bool] = False
    copies: ClassVar[int] = 1

    @property
    def parameters(self) -> dict[str, int]:
        return {"rank": self.rank}

    def stored_shape(self, spec: DataSpec) -> tuple[int, ...]:
        """(C, rank, H + W)."""
        if self.rank > min(spec.height, spec.width):
            raise InputError(f"lowrank with rank {self.rank}; allowed: at most {min(spec.height, spec.width)}, the shorter side.")
        return spec.channels, self.rank, spec.height + spec.width

    def pads(self, spec: DataSpec) -> bool:
        return False

    def decoded(self, stored: Tensor, spec: DataSpec) -> Tensor:
        return self.enlarged(self.parted(stored, spec), spec)

    def encoded(self, images: Tensor, spec: DataSpec) -> Tensor:
        return self.joined(self.shrunk(images, spec), spec)

    def parted(self, stored: Tensor, spec: DataSpec) -> Tensor:
        """A row is one image's."""
        return stored

    def joined(self, parts: Tensor, spec: DataSpec) -> Tensor:
        return parts

    def enlarged(self, parts: Tensor, spec: DataSpec) -> Tensor:
        return parts[..., : spec.height].transpose(2, 3) @ parts[..., spec.height :]

    def shrunk(self, images: Tensor, spec: DataSpec) -> Tensor:
        """The nearest product: the largest singular values, whose square roots both matrices have."""
        left, values, right = torch.linalg.svd(images, full_matrices=False)
        root = values[..., : self.rank].sqrt()[..., None]
        # A pair of singular vectors has no sign of its own; the same images must give the same rows on every machine.
        sign = left.gather(2, left.abs().argmax(2, keepdim=True)).sign().transpose(2, 3)[:, :, : self.rank]
        return torch.cat([left.transpose(2, 3)[:, :, : self.rank] * root * sign, right[:, :, : self.rank] * root * sign], 3)


@functools.lru_cache(maxsize=32)
def _lowest(height: int, width: int, device: torch.device) -> Tensor:
    """(H * W,): flat positions by frequency, kept on the device."""
    down = torch.arange(height, dtype=torch.float64)[:, None] / height
    right = torch.arange(width, dtype=torch.float64)[None] / width
    return (down.square() + right.square()).flatten().argsort(stable=True).to(device)


_Kind = type[Formation] | type[Frequency] | type[LowRank]
DECODES: dict[str, _Kind] = {"formation": Formation, "frequency": Frequency, "lowrank": LowRank}


def from_parameters(kind: object, parameters: Mapping[str, object]) -> Decode:
    """A decode from a header, checked as foreign data. Raises `InputError` for what this version does not know."""
    if not isinstance(kind, str) or kind not in DECODES:
        raise InputError(
            f"the images are stored in the form {clipped(kind)!r}, which this version cannot decode (known: {', '.join(DECODES)}); they "
            "were made by another version of this toolkit: use that one."
        )
    return configure(DECODES[kind], parameters, f"decode {kind!r}")


def from_text(text: str) -> Decode | None:
    """What a setting says: "none", "formation:2", "frequency:64" or "lowrank:4". Raises `InputError`."""
    if text == "none":
        return None
    kind, _, number = text.partition(":")
    if kind in DECODES and number.isascii() and number.isdigit() and len(number) < 8:
        (name,) = (field.name for field in dataclasses.fields(DECODES[kind]))
        return from_parameters(kind, {name: int(number)})
    raise InputError(
        f"decode is {clipped(text)!r}; allowed: 'none', 'formation:F' (F x F small images in one), 'frequency:K' or 'lowrank:R'."
    )


def as_text(decode: Decode | None) -> str:
    """The setting that `from_text` reads."""
    return "none" if decode is None else f"{decode.kind}:{next(iter(decode.parameters.values()))}"


def check_space(decode: Decode, spec: DataSpec, *, quantised: bool, whitened: bool) -> None:
    """Raises `InputError` where rows of this kind can be neither quantised nor whitened, and the set's are."""
    if quantised and not decode.pixels:
        raise InputError(f"quantisation is of pixels, and this set stores {decode.kind} rows; leave one of the two out.")
    if whitened and decode.pads(spec):
        raise InputError(
            f"{as_text(decode)} pads images of {spec.height} x {spec.width} pixels with grey, which whitened images do not have; take a "
            "factor that divides both sides, or no whitening."
        )


def cosines(size: int, like: Tensor) -> Tensor:
    """The orthonormal discrete cosine transform (type 2) of ``size`` points as a matrix, frequencies in rows."""
    return _cosines(size, like.dtype, like.device)


@functools.lru_cache(maxsize=32)
def _cosines(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    place = torch.arange(size, dtype=torch.float64)
    matrix = torch.cos(math.pi / size * torch.outer(place, place + 0.5)) * math.sqrt(2 / size)
    matrix[0] /= math.sqrt(2)
    return matrix.to(device, dtype)


def _padded(stored: Tensor, spec: DataSpec, height: int, width: int) -> Tensor:
    """``stored`` (N, C, H, W) with grey (pixel value 0.5) at the bottom and right, up to this size."""
    if (height, width) == (spec.height, spec.width):
        return stored
    mean, std = (column(values, stored.dtype, stored.device) for values in (spec.mean, spec.std))
    grey = ((0.5 - mean) / std).expand(len(stored), -1, height, width)
    below = torch.cat([stored, grey[:, :, spec.height :, : spec.width]], 2)
    return torch.cat([below, grey[:, :, :, spec.width :]], 3)
