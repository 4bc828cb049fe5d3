"""Step sizes over a training, as functions of the part of it that is over."""

import math
from collections.abc import Callable


def falling(part: float) -> float:
    """Half a cosine wave, from 1 at 0 to 0 at 1."""
    return 0.5 * (1 + math.cos(math.pi * part))


def _smooth_steep(part: float) -> float:
    return falling(part / 2) if part <= 5 / 6 else falling(5 / 12) * (1 - part)


# What a step size is multiplied with, as a function of the part of the training that is over, 0 to below 1: in steps, or in whole epochs,
# where the authors' schedulers are advanced once an epoch. "step" is `Descent`'s own: it resets the momentum, too.
SCHEDULES: dict[str, tuple[Callable[[float], float], bool]] = {
    "constant": (lambda part: 1.0, False),
    "cosine": (falling, False),
    # VILA-Lab/SRe2L, small_dataset/relabel_cifar.py: CosineAnnealingLR.
    "epoch-cosine": (falling, True),
    # LINs-lab/RDED, validation/main.py: the first half of a cosine over twice the epochs, which ends at half the step size.
    "half-cosine": (lambda part: falling(part / 2), True),
    # shaoshitong/EDC, train/direct_train.py, "cos2" at st 2: the same for five sixths of the epochs, then a line to 0 from a sixth of it.
    "smooth-steep": (_smooth_steep, True),
}
