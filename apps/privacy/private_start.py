"""A private start for the images: k-means within each class, from noised sums. Far better than noise, and cheap: images are few numbers.

Lloyd's algorithm under differential privacy (Blum, Dwork, McSherry and Nissim, PODS 2005: sums and counts of each cluster with noise),
here with one joint release a round: an example adds its clipped difference from its class's mean, and a count, to the one cluster nearest
to it. Centres are only ever those of earlier releases, so the assignment costs nothing.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import scipy.fft
import torch
from torch import Tensor

from apps.privacy.public import smooth_images
from distill.condensed import CondensedSet, Provenance
from distill.errors import InputError
from distill.randomness import generator

if TYPE_CHECKING:
    from apps.privacy.private_statistics import PrivateStatistics

# Public settings, in pixels of [0, 1]. An example's difference from its class's mean is clipped at this many times the root of the number
# of values, which most grey images keep; a count weighs as much as a fifth of the clipping norm.
SPREAD = 0.25
COUNT_WEIGHT = 0.2
# A cluster with a smaller part of its class than this (or a count lost in the noise) starts again beside the largest one.
SMALLEST_PART = 0.02


def private_kmeans(statistics: "PrivateStatistics", ipc: int, seed: int = 0) -> CondensedSet:
    """``ipc`` centres a class, from all ``start_releases`` of the statistics: the first gives class means, the others are rounds of Lloyd.

    Each result is freed of noise by a Wiener filter, which needs to know the noise only. Statistics that are ``centred`` are centred on
    it. Raises `InputError` without planned releases.
    """
    plan, spec = statistics.start_plan, statistics.spec
    if plan is None or plan.releases < 2:
        raise InputError("a private start needs start_releases of 2 or more when making PrivateStatistics; 6 is a good number.")
    classes, size, device = len(statistics.classes), spec.channels * spec.height * spec.width, statistics.device
    norm = SPREAD * size**0.5
    expected = statistics.population / classes

    def pixels(images: Tensor) -> Tensor:
        return spec.denormalise(images).flatten(1)

    def whole(images: Tensor, position: int) -> Iterator[tuple[Tensor, None]]:
        yield pixels(images), None

    means = statistics.release(f"start {seed}: means", plan, 2 * norm, whole, size)[:, 0] / expected
    means = _filtered(means, 2 * norm * plan.noise_multiplier / expected, spec.shape).clamp(0, 1)
    bumps = smooth_images(spec, classes * ipc, generator(seed, "private start")).to(device).view(classes, ipc, size)
    # First all at one small distance from the class mean: an example then goes to the direction that is most its own.
    offsets = 0.2 * norm * torch.nn.functional.normalize(bumps, dim=2)
    for turn in range(1, plan.releases):

        def assigned(images: Tensor, position: int, centres: Tensor = offsets) -> Iterator[tuple[Tensor, Tensor]]:
            rows = pixels(images) - means[position]
            rows = rows * (norm / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp(max=1.0)
            count = torch.full((len(rows), 1), COUNT_WEIGHT * norm, device=rows.device)
            yield torch.cat([rows, count], 1), torch.cdist(rows, centres[position]).argmin(1)

        longest = norm * (1 + COUNT_WEIGHT**2) ** 0.5
        released = statistics.release(f"start {seed}: round {turn}, ipc {ipc}", plan, longest, assigned, size + 1, ipc)
        counts = released[:, :, size] / (COUNT_WEIGHT * norm)
        noise = longest * plan.noise_multiplier
        floor = max(SMALLEST_PART * expected, 2 * plan.noise_multiplier / COUNT_WEIGHT)
        updated = released[:, :, :size] / counts.clamp_min(floor)[:, :, None]
        for position in range(classes):
            spread = noise / counts[position].clamp_min(floor)
            offsets[position] = _filtered(updated[position], spread[:, None], spec.shape)
            largest = int(counts[position].argmax())
            for lost in (counts[position] < floor).nonzero().flatten().tolist():
                offsets[position, lost] = offsets[position, largest] + 0.1 * norm * torch.nn.functional.normalize(
                    bumps[position, lost], dim=0
                )
    centres = (means[:, None, :] + offsets).clamp(0, 1)
    images = spec.normalise(centres.reshape(classes * ipc, *spec.shape))
    labels = torch.tensor(statistics.classes, device=device).repeat_interleave(ipc)
    condensed = CondensedSet(images, labels, spec, provenance=Provenance("private k-means", {"ipc": ipc}, seed, dp=statistics.privacy))
    if statistics.centred:
        statistics.centre_on(condensed)
    return condensed


def _filtered(rows: Tensor, noise: Tensor | float, shape: tuple[int, int, int]) -> Tensor:
    """Images (n, D) with white noise of standard deviation ``noise`` (one number, or (n, 1)), each frequency shrunk to its signal's part.

    Wiener's filter on the cosine transform; a frequency's signal power is what the noise does not explain, averaged over the images.
    """
    waves = torch.from_numpy(scipy.fft.dctn(rows.view(-1, *shape).cpu().double().numpy(), axes=(2, 3), norm="ortho"))
    power = torch.as_tensor(noise, dtype=torch.float64).cpu().square().reshape(-1, 1, 1, 1)
    signal = (waves.square() - power).mean(0, keepdim=True).clamp_min(0)
    # Neighbouring frequencies have similar powers; a single one's estimate is rough.
    signal = torch.nn.functional.avg_pool2d(signal, 3, 1, 1, count_include_pad=False)
    kept = waves * (signal / (signal + power).clamp_min(1e-30))
    return torch.from_numpy(scipy.fft.idctn(kept.numpy(), axes=(2, 3), norm="ortho")).flatten(1).to(rows)
