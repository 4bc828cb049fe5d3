"""OLCGM: each image is a linear combination of images of its class, and only the coefficients are learned, by gradient matching.

Sangermano et al., "Sample Condensation in Online Continual Learning", IJCNN 2022, and its code (MattiaSangermano/OLCGM). The loss and the
loop are gm.py's. Coefficients are at least 0 and add up to 1 in each image: negative ones become 0, and an image without any left becomes
its first component. The first component of an image is its initial image (in a replay memory, what was stored before), the others are real
images that are drawn in the first step. Differences: networks are new or of the pool, where the authors take the learner's current model;
with a ``decode`` the combinations are of stored rows.
"""

import dataclasses
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.errors import InputError
from distill.methods.gm import GM, GMConfig
from distill.methods.presets import Presets
from distill.networks import Factory
from distill.statistics import RealStatistics
from distill.synthetic import Initial, Synthetic, initial_set

PRESETS = Presets(
    short={"iterations": 5, "batch_real": 64},
    digits={"iterations": 5, "batch_real": 64, "network": "ConvNetW32"},
    memory={"iterations": 3, "batch_real": 64, "network": "ConvNetW32"},
    sweep={"batch_real": 64},
    cost=5,
    published_ipc={"": 10},  # a memory of 100 images of ten classes
    above="give each image more components, or take herding: real images are enough where there are many",
)
STEP_SIZE = "OLCGM's step size is of coefficients that add up to 1 in each image; its authors take lr_img=0.01."


@config_class
class OLCGMConfig(GMConfig):
    """As `GMConfig`, with the authors' loops and step size: 20 image updates a network, three passes between two of them.

    Attributes:
        components: images that are combined in each image, the initial one among them.
    """

    iterations: Annotated[int, Field(ge=1)] = 10
    outer_steps: Annotated[int, Field(ge=1)] | None = 20
    inner_epochs: Annotated[int, Field(ge=0)] | None = 3
    lr_img: Annotated[float, Field(gt=0)] | None = 0.01
    initial: Initial = "real"
    components: Annotated[int, Field(ge=2)] = 10


class Mixtures(Synthetic):
    """Images whose optimised rows are coefficients (N, M) of components (N, M, *stored_shape).

    Args:
        initial: set whose rows are the first components.
        config: as for `Synthetic`.
        total_steps: likewise.
        others: (N, M - 1, *stored_shape), the other components, in the order of the initial set's classes.
        coefficients: (N, M), at least 0, rows that add up to 1.
    """

    def __init__(self, initial: CondensedSet, config: object, total_steps: int, others: Tensor, coefficients: Tensor) -> None:
        super().__init__(initial, config, total_steps)
        self.components = torch.cat([self.stored[:, None], others], 1)
        self.stored = coefficients.clone()
        self.velocity = torch.zeros_like(self.stored)
        self.squares = torch.zeros_like(self.stored) if self.adam else None

    def _rows(self, coefficients: Tensor) -> Tensor:
        """(N, *stored_shape): the combinations."""
        return torch.einsum("nm,nm...->n...", coefficients, self.components)

    @property
    def images(self) -> Tensor:
        """(N, C, H, W): the decoded images, without gradients."""
        rows = self._rows(self.stored)
        return rows if self.decode is None else self.decode.decoded(rows, self.spec)

    def _pulled_back(self, gradient: Tensor) -> Tensor:
        """The gradient of the coefficients from that of the decoded images."""
        stored = self.stored.detach().requires_grad_(True)
        rows = self._rows(stored)
        (pulled,) = torch.autograd.grad(rows if self.decode is None else self.decode.decoded(rows, self.spec), stored, gradient)
        return pulled

    def descend(self, gradients: list[Tensor], lr: float, momentum: float) -> None:
        """One update of the coefficients, which stay at least 0 and add up to 1."""
        super().descend(gradients, lr, momentum)
        self.stored.clamp_(min=0)
        sums = self.stored.sum(1, keepdim=True)
        first = torch.zeros_like(self.stored)
        first[:, 0] = 1
        self.stored.copy_(torch.where(sums > 0, self.stored / sums.clamp_min(torch.finfo(sums.dtype).tiny), first))

    def to_set(self, augmentation: str | None, lr: float | None = None, labels: Tensor | None = None) -> CondensedSet:
        """The combinations as a set."""
        rows, labels = self._rows(self.stored), (self.stored_labels if labels is None else labels).clone()
        return dataclasses.replace(self.template, images=rows, labels=labels, augmentation=augmentation, lr=lr)

    def state(self) -> dict[str, Tensor]:
        """Coefficients, components and the optimiser's state."""
        return {**super().state(), "components": self.components}


class OLCGM(GM):
    """Gradient matching of linear combinations."""

    presets = PRESETS
    config: OLCGMConfig

    def __init__(self, config: OLCGMConfig, initial: CondensedSet, network: Factory | None = None) -> None:
        super().__init__(config, initial, network)
        if config.clamp:
            raise InputError("clamp keeps pixels in the data's range, where combinations of real images are; leave it out.")

    def step(self, statistics: RealStatistics, generator: torch.Generator) -> dict[str, Tensor]:
        """As GM's; the first one draws the components."""
        self.begin(statistics, generator)
        return super().step(statistics, generator)

    def begin(self, statistics: RealStatistics, generator: torch.Generator) -> None:
        """Draw the components, once. Raises `InputError` for private statistics, which give no images."""
        if not isinstance(self.synthetic, Mixtures):
            self.synthetic = self._mixtures(statistics, generator)

    def _mixtures(self, statistics: RealStatistics, generator: torch.Generator) -> Mixtures:
        synthetic, further = self.synthetic, self.config.components - 1
        sizes = [0] * statistics.spec.num_classes
        for label, count in zip(synthetic.classes, synthetic.counts, strict=True):
            sizes[label] = count // synthetic.copies * further
        drawn = initial_set(statistics, "real", sizes, generator, synthetic.decode).images
        others = drawn.view(len(synthetic.stored), further, *drawn.shape[1:])
        shape = len(others), self.config.components
        coefficients = torch.rand(shape, generator=generator, device=generator.device).to(others)
        coefficients = coefficients / coefficients.sum(1, keepdim=True)
        return Mixtures(synthetic.to_set(None), self.config, self.total_steps, others, coefficients)

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Restore `state`."""
        if "components" in state and not isinstance(self.synthetic, Mixtures):
            components = state["components"].to(self.synthetic.stored)
            first = dataclasses.replace(self.synthetic.to_set(None), images=components[:, 0])
            self.synthetic = Mixtures(first, self.config, self.total_steps, components[:, 1:], state["images"].to(components))
        super().load_state(state)
