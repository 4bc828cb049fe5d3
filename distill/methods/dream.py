"""DREAM: IDC with real batches that represent a class: the images nearest to the centres of its clusters.

Liu et al., "DREAM: Efficient Dataset Distillation by Representative Matching", ICCV 2023. What it changes in idc.py is the choice of real
images (`distill.statistics.RealStatistics.choose`) and the start. The choice reads every image, so that there is no private form.
"""

import dataclasses
from typing import Annotated, Literal

from pydantic import Field

from distill.configure import config_class
from distill.methods import idc
from distill.methods.presets import Paper
from distill.synthetic import Initial

PRESETS = dataclasses.replace(
    idc.PRESETS, paper=lambda data, ipc: Paper("lyq312318224/DREAM, condense.py, new_strategy.py and argument.py", protocol="idc"), cost=5
)
STEP_SIZE = idc.STEP_SIZE


@config_class
class DREAMConfig(idc.IDCConfig):
    """IDC's settings with clustered batches of 128 images a class, chosen anew every ten updates."""

    batch_real: Annotated[int, Field(ge=1)] = 128
    initial: Initial = "kmeans"
    real_batches: Literal["random", "kmeans"] = "kmeans"


class DREAM(idc.IDC):
    """IDC with the real images nearest to cluster centres as batches."""

    presets = PRESETS
