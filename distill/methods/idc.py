"""IDC: gradient matching in networks that train on real data, of images stored in a formation.

Kim et al., "Dataset Condensation via Efficient Synthetic-Data Parameterization", ICML 2022. The loop is gm.py's; IDC compares gradients of
convolutions, takes networks from a training on real data (`distill.pool`, "walk") and stores several small images in the place of one.
IDC-I is the same with ``decode = "none"``.
"""

from typing import Annotated, Literal

from pydantic import Field

from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.methods.gm import GM, Distance, GMConfig
from distill.methods.presets import Paper, Presets
from distill.networks import Factory
from distill.shared_config import PoolKind
from distill.spec import DataSpec
from distill.synthetic import Initial


def absolute(data: str) -> dict[str, str]:
    """Absolute differences for MNIST and FashionMNIST, as the authors compare them."""
    return {"distance": "convolutions-l1"} if data in ("mnist", "fashion-mnist") else {}


SHORT = {"iterations": 300, "outer_steps": 1, "pool_networks": 2, "pool_epochs": 2}
DIGITS = {
    "iterations": 60,
    "outer_steps": 1,
    "network": "ConvNetW32",
    "decode": "none",
    "augmentation": "auto",
    "pool_networks": 2,
    "pool_epochs": 2,
}
PRESETS = Presets(
    paper=lambda data, ipc: Paper(
        "snu-mllab/Efficient-Dataset-Condensation, argument.py and misc/reproduce.py", protocol="idc", settings=absolute(data)
    ),
    short=SHORT,
    digits=DIGITS,
    memory={
        "decode": "none",
        "clamp": False,
        "iterations": 40,
        "outer_steps": 1,
        "batch_real": 64,
        "network": "ConvNetW32",
        "pool_networks": 1,
        "pool_epochs": 1,
    },
    sweep={"batch_real": 32},
    cost=4,
    published_ipc={"": 50},
    above="compare decode 'formation:2' and 'none' on validation images: the formation loses at many images a class",
)
STEP_SIZE = (
    "IDC's loss is a sum of differences of gradients, so its scale goes with them; the authors take lr_img 0.005 (0.0001 for MNIST and "
    "FashionMNIST, with absolute differences), times ipc / 10, for pixels in [0, 1]."
)


@config_class
class IDCConfig(GMConfig):
    """Defaults are those of the authors' code for CIFAR-10: 2,000 networks of 100 updates each, which see 2,000 real images between two.

    ``lr_img`` None is `image_step`'s rule; for MNIST and FashionMNIST the authors take the distance "convolutions-l1".
    Here a network's training is recorded once and its stages are taken from the record, so that it walks on a training's path again
    after ``pool_networks`` of them; it has neither CutMix nor weight decay.
    """

    iterations: Annotated[int, Field(ge=1)] = 2000
    outer_steps: Annotated[int, Field(ge=1)] | None = 100
    inner_epochs: Annotated[int, Field(ge=0)] | None = 0
    batch_real: Annotated[int, Field(ge=1)] = 64
    augmentation: str = "color_crop_cutout"
    initial: Initial = "real"
    distance: Distance = "convolutions-mse"
    decode: str = "formation:2"
    clamp: bool = True
    updates: Literal["together", "per_class"] = "per_class"
    pool: PoolKind = "walk"
    pool_networks: Annotated[int, Field(ge=1)] = 10
    pool_epochs: Annotated[int, Field(ge=1)] = 4

    def __post_init__(self) -> None:
        """The step size depends on the data, which the config does not know."""


def image_step(spec: DataSpec, ipc: int, distance: str) -> float:
    """The authors' step size, of normalised pixels: 0.005 (0.0001 for absolute differences) times ipc / 10 over their variance."""
    variance = sum(value**2 for value in spec.std) / len(spec.std)
    return (1e-4 if distance == "convolutions-l1" else 5e-3) * ipc / 10 / variance


class IDC(GM):
    """Gradient matching in networks that train on real data, of images stored in a formation."""

    presets = PRESETS

    def __init__(self, config: IDCConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        super().__init__(config, initial, network)
        self.lr_img = config.lr_img or image_step(initial.spec, initial.ipc, config.distance)
