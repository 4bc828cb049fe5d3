"""Online streams: a few images at a time, seen once. Recent ones wait in a queue and are condensed together."""

from collections.abc import Iterator

import torch
from torch import Tensor

from apps.continual.memory import Memory, MemoryConfig
from distill.errors import InputError
from distill.randomness import generator


class Queue:
    """The ``size`` most recent images; every ``every`` calls they are handed out and the queue is empty again."""

    def __init__(self, size: int, every: int) -> None:
        if size < 1 or every < 1:
            raise InputError(f"queue is {size} and every is {every}; allowed: 1 or more.")
        self.size, self.every, self.calls = size, every, 0
        self.waiting: tuple[Tensor, Tensor] | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the images and labels that wait."""
        return 0 if self.waiting is None else sum(t.numel() * t.element_size() for t in self.waiting)

    def add(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor] | None:
        """Images (n, C, H, W) and labels (n,) join the queue; what waited comes back when it is time."""
        if self.waiting is not None:
            images, labels = torch.cat([self.waiting[0], images]), torch.cat([self.waiting[1], labels])
        self.waiting = (images[-self.size :], labels[-self.size :])
        self.calls += 1
        if self.calls % self.every:
            return None
        ready, self.waiting = self.waiting, None
        return ready


def online_memories(
    experiences: list[tuple[Tensor, Tensor]],
    config: MemoryConfig,
    *,
    mini: int,
    queue: int,
    every: int,
    seed: int,
    device: torch.device | str = "cpu",
) -> Iterator[Memory]:
    """The memory at the end of each experience (images, labels) of a stream that passes once, shuffled, ``mini`` images at a time.

    It is one memory that grows: use it before asking for the next.
    """
    memory, waiting = Memory(config), Queue(queue, every)
    for number, (images, labels) in enumerate(experiences):
        for part in torch.randperm(len(labels), generator=generator(seed, "online", number)).split(mini):
            ready = waiting.add(images[part.to(images.device)], labels[part.to(labels.device)])
            if ready is not None:
                memory.merge(*ready, device=device)
        yield memory
