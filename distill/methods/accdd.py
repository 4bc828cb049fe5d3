"""Acc-DD: IDC with networks of an early stage of training, perturbed.

Zhang et al., "Accelerating Dataset Distillation via Model Augmentation", CVPR 2023. What it changes in idc.py is the pool: five networks
of two epochs, whose filters are moved at random (`distill.pool.perturb`).
"""

import dataclasses
from typing import Annotated

from pydantic import Field

from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.methods import idc
from distill.methods.presets import Paper
from distill.networks import Factory
from distill.shared_config import PoolKind

PRESETS = dataclasses.replace(
    idc.PRESETS,
    paper=lambda data, ipc: Paper("ncsu-dk-lab/Acc-DD, argument.py and weight_perturbation.py; its code does not start", protocol="idc"),
)
STEP_SIZE = "Acc-DD's loss is IDC's; its authors take lr_img 0.01 on CIFAR-10 and CIFAR-100, times ipc / 10, for pixels in [0, 1]."


@config_class
class AccDDConfig(idc.IDCConfig):
    """IDC's settings with a pool of five networks of two epochs, and a fifth of the networks (the authors' "5x")."""

    iterations: Annotated[int, Field(ge=1)] = 400
    pool: PoolKind = "early"
    pool_networks: Annotated[int, Field(ge=1)] = 5
    pool_epochs: Annotated[int, Field(ge=1)] = 2


class AccDD(idc.IDC):
    """IDC in networks of an early stage of training, whose filters are perturbed."""

    presets = PRESETS

    def __init__(self, config: AccDDConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        super().__init__(config, initial, network)
        self.lr_img = config.lr_img or 2 * idc.image_step(initial.spec, initial.ipc, config.distance)  # 0.01 where IDC takes 0.005
