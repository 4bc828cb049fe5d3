"""How a method's real batches are chosen: at random, or the images that represent their class (DREAM, Liu et al., ICCV 2023)."""

import torch
from torch import Tensor

from distill.batches import Embed
from distill.statistics import RealStatistics

CHOICE_EVERY = 10  # image updates with the same clustered batches (DREAM's code)


class RealBatches:
    """The batches of one run. Chosen ones are part of a checkpoint, so that a resumed run sees the same images."""

    def __init__(self, kind: str) -> None:
        """``kind`` is "random" or "kmeans"."""
        self.clustered = kind == "kmeans"
        self.chosen: list[Tensor] = []

    def renew(self, statistics: RealStatistics, embed: Embed, batch_size: int, generator: torch.Generator, *, step: int) -> None:
        """Before update number ``step``: choose batches where they are due. Raises `InputError` where data are private."""
        if self.clustered:
            due = step % CHOICE_EVERY == 0
            self.chosen = statistics.choose(embed, batch_size, generator, None if due else self.chosen)

    def state(self) -> dict[str, Tensor]:
        """Positions of the chosen images by class, for a checkpoint."""
        return {f"batches.{place}": chosen for place, chosen in enumerate(self.chosen)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Put `state` back."""
        self.chosen = [state[f"batches.{place}"] for place in range(sum(name.startswith("batches.") for name in state))]
