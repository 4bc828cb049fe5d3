"""ZCA whitening: pixels whose covariance over the training images is close to the identity, as MTT uses on CIFAR."""

from dataclasses import dataclass

import torch
from torch import Tensor

from distill.errors import InputError

# Larger images would need a matrix of more than 600 MB.
MAX_PIXELS = 12_288


@dataclass(frozen=True, eq=False)
class Whitening:
    """``white = (pixels - mean) @ matrix`` for pixels in [0, 1] flattened to D = C * H * W. Raises `InputError`.

    It is stored in a condensed set, so that a receiver can whiten test images in the same way and convert the set back to pixels.

    Attributes:
        mean: (D,) float32.
        matrix: (D, D) float32, symmetric and positive definite.
    """

    mean: Tensor
    matrix: Tensor

    def __post_init__(self) -> None:
        size = self.mean.numel()
        if self.mean.dtype != torch.float32 or self.mean.ndim != 1 or not 1 <= size <= MAX_PIXELS:
            raise InputError(
                f"whitening mean is {self.mean.dtype} {tuple(self.mean.shape)}; allowed: float32 (D,), D at most {MAX_PIXELS}."
            )
        if self.matrix.dtype != torch.float32 or self.matrix.shape != (size, size):
            raise InputError(f"whitening matrix is {self.matrix.dtype} {tuple(self.matrix.shape)}; allowed: float32 ({size}, {size}).")
        if not bool(torch.isfinite(self.mean).all() & torch.isfinite(self.matrix).all()):
            raise InputError("whitening holds values that are not finite; allowed: finite numbers only.")

    @staticmethod
    def fit(images: Tensor, eps: float = 0.1) -> "Whitening":
        """Fit to training images: U diag(1 / sqrt(s + eps)) U' of their covariance U diag(s) U'.

        Args:
            images: (N, C, H, W), uint8 or float in [0, 1].
            eps: added to the eigenvalues; the default is that of Cazenavette et al., CVPR 2022.
        """
        size = images[0].numel()
        if size > MAX_PIXELS:
            raise InputError(f"whitening images of {size} values was asked for; allowed: at most {MAX_PIXELS} (64 x 64 in colour).")
        total = torch.zeros(size, dtype=torch.float64, device=images.device)
        for part in images.split(1024):
            total += _flat(part).sum(0, dtype=torch.float64)
        mean = (total / len(images)).float()
        covariance = torch.zeros(size, size, dtype=torch.float64, device=images.device)
        for part in images.split(1024):
            centred = _flat(part) - mean
            covariance += (centred.T @ centred).double()
        values, vectors = torch.linalg.eigh(covariance / len(images))
        matrix = (vectors / (values.clamp_min(0) + eps).sqrt()) @ vectors.T
        return Whitening(mean, matrix.float())

    @property
    def nbytes(self) -> int:
        """Bytes of mean and matrix."""
        return 4 * (self.mean.numel() + self.matrix.numel())

    def apply(self, images: Tensor) -> Tensor:
        """Whiten images (N, C, H, W), uint8 (0 to 255) or float (0 to 1), to float32."""
        return ((_flat(images) - self.mean.to(images.device)) @ self.matrix.to(images.device)).view(images.shape)

    def undo(self, images: Tensor) -> Tensor:
        """Convert whitened images (N, C, H, W) back to pixels, not clipped."""
        try:
            flat = torch.linalg.solve(self.matrix.to(images.device).double(), images.flatten(1).double().T).T
        except RuntimeError:  # torch's LinAlgError
            raise InputError("the whitening matrix has no inverse; allowed: one that can be undone, as `Whitening.fit` makes.") from None
        pixels: Tensor = (flat + self.mean.to(images.device).double()).float().view(images.shape)
        return pixels

    def to(self, device: torch.device | str) -> "Whitening":
        """The same transform on ``device``."""
        return Whitening(self.mean.to(device), self.matrix.to(device))

    def same_as(self, other: "Whitening | None") -> bool:
        """Whether both transforms are equal."""
        return other is not None and torch.equal(self.mean.cpu(), other.mean.cpu()) and torch.equal(self.matrix.cpu(), other.matrix.cpu())


def _flat(images: Tensor) -> Tensor:
    flat = images.flatten(1).float()
    return flat / 255.0 if images.dtype == torch.uint8 else flat
