"""DSA's augmentation of exemplars as they are read, for buffers with ``transform="dsa"``."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from distill.augment import augment, for_data, strategy
from distill.errors import InputError, clipped
from distill.randomness import generator
from distill.spec import DataSpec

Transform = Callable[[Tensor], Tensor]
DSA = "dsa"


class Augmented:
    """A transform of one image (C, H, W) in the learner's space: DSA's augmentation (Zhao and Bilen, ICML 2021), drawn at each reading.

    It has a generator, and a worker process of a loader has another one, from the worker's seed. (Copies with one state would distort the
    images of all workers in the same way.)

    Args:
        data_name: name of the data set: digits are not flipped.
        seed: of the draws in the process that made it.
        turn: another number, other draws.
    """

    def __init__(self, data_name: str, seed: int, turn: int) -> None:
        spec = DataSpec(data_name, 1, 1, 1, ("0",), (0.0,), (1.0,))
        self.strategy, self.draws, self.worker = strategy(for_data(spec)), generator(seed, "exemplars", turn), -1

    def __call__(self, image: Tensor) -> Tensor:
        worker = get_worker_info()
        if worker is not None and worker.seed != self.worker:  # torch gives each worker a seed of its own in each epoch
            self.draws, self.worker = torch.Generator().manual_seed(worker.seed % 2**63), worker.seed
        return augment(image[None], self.strategy, self.draws)[0]

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "draws": self.draws.get_state()}  # a generator cannot be copied by pickle in every version of torch

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.draws = torch.Generator()
        assert isinstance(state["draws"], Tensor)
        self.draws.set_state(state["draws"])


def check_transform(transform: object) -> None:
    """`InputError` unless this is a function, "dsa" or None."""
    if transform is not None and not callable(transform) and transform != DSA:
        raise InputError(f'transform is {clipped(transform)!r}; allowed: a function of an image tensor (C, H, W), "{DSA}", or None.')


def made(transform: Transform | str | None, data_name: str, seed: int, turn: int) -> Transform | None:
    """The function that a buffer applies: its ``transform``, or an `Augmented` for "dsa"."""
    if isinstance(transform, str):
        return Augmented(data_name, seed, turn)
    return transform
