"""DSA, differentiable Siamese augmentation: gradient matching with one shared random transform on both sides.

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021. The loop is gm.py's; what DSA changes is the
augmentation, which is on, and the images' start, which is real.
"""

import pydantic

from distill.methods.gm import GM, GMConfig
from distill.synthetic import Initial

STEP_SIZE = "DSA's loss is GM's: a sum of cosine distances over classes, layers and their output units; the authors take lr_img=0.1."


@pydantic.dataclasses.dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid", strict=True, allow_inf_nan=False))
class DSAConfig(GMConfig):
    """As `GMConfig`; the strategy is the paper's for the data, without flips for digits."""

    augmentation: str = "auto"
    initial: Initial = "real"


class DSA(GM):
    """Gradient matching under `DSAConfig`."""
