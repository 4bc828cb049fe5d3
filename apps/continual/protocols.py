"""What this package uses of Avalanche's objects, which carry no types: strategies, experiences, data sets and buffers."""

from collections.abc import Iterable, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn


class AvalancheData(Protocol):
    """A data set of Avalanche: items are (x, y) or (x, y, task label)."""

    @property
    def targets(self) -> Sequence[int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> tuple[Tensor, Tensor | int]: ...
    def eval(self) -> "AvalancheData": ...


class Experience(Protocol):
    """One step of a stream."""

    @property
    def dataset(self) -> AvalancheData: ...
    @property
    def current_experience(self) -> int: ...


class Benchmark(Protocol):
    """A stream for training and one for tests."""

    @property
    def train_stream(self) -> Iterable[Experience]: ...
    @property
    def test_stream(self) -> Iterable[Experience]: ...


class Agent(Protocol):
    """The learner that a buffer belongs to."""

    model: nn.Module
    device: torch.device | str


class Strategy(Agent, Protocol):
    """A strategy in training."""

    experience: Experience

    def train(self, experiences: Experience, *, num_workers: int = 0) -> None: ...


class ReplayBuffer(Protocol):
    """A storage policy."""

    @property
    def max_size(self) -> int: ...


@runtime_checkable
class Holder(Protocol):
    """A strategy or plugin with a storage policy that can be replaced."""

    storage_policy: ReplayBuffer


@runtime_checkable
class Limited(Protocol):
    """A strategy or plugin that knows the size of its memory."""

    mem_size: int
