"""DSA, differentiable Siamese augmentation: gradient matching with one shared random transform on both sides.

Zhao and Bilen, "Dataset Condensation with Differentiable Siamese Augmentation", ICML 2021. The loop is that of gm.py; DSA
differs in its augmentation and in its initial images, which are real.
"""

from distill.configure import config_class
from distill.methods.gm import GM, GMConfig
from distill.methods.presets import Paper, Presets
from distill.synthetic import Initial

PRESETS = Presets(
    paper=lambda data, ipc: Paper("VICO-UoE/DatasetCondensation, main.py --method DSA and utils.py", protocol="dsa"),
    short={"iterations": 80, "outer_steps": 1, "lr_img": 0.5, "batch_real": 64},
    digits={"iterations": 100, "lr_img": 0.5, "network": "ConvNetW32"},
    memory={"iterations": 60, "outer_steps": 1, "inner_epochs": 1, "lr_img": 0.5, "batch_real": 64, "network": "ConvNetW32"},
    sweep={"batch_real": 64},
    cost=3,
    published_ipc={"": 50},
    above="take outer_steps 50, inner_epochs 10 or 20, 25, or dm",
    batchnorm_at_50=True,
)
STEP_SIZE = "DSA's loss is GM's: a sum of cosine distances over classes, layers and their output units; the authors take lr_img=0.1."


@config_class
class DSAConfig(GMConfig):
    """Settings of DSA: as `GMConfig`, with the paper's augmentation for the data (no flips for digits) and real initial images."""

    augmentation: str = "auto"
    initial: Initial = "real"


class DSA(GM):
    """Gradient matching of real and synthetic images under one shared random transform."""

    presets = PRESETS
