"""Streams that pass once: recent images wait in a queue, and are merged into the memory when it is time."""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from apps.continual.memory import Memory
from apps.continual.memory_config import MemoryConfig
from distill.errors import InputError, clipped
from distill.randomness import generator

Batch = tuple[Tensor, Tensor, Tensor]  # images (n, C, H, W), labels (n,), tasks (n,)


class Queue:
    """Images that wait, at most ``size``: all of them are handed out every ``every`` calls, and earlier when the queue is full.

    Nothing is dropped: what was added is handed out once, by `add` or, at the end of a stream, by `flush`.
    """

    def __init__(self, size: int, every: int) -> None:
        if not all(type(value) is int and value >= 1 for value in (size, every)):
            raise InputError(f"queue is {clipped(size)} and every is {clipped(every)}; allowed: whole numbers of 1 or more.")
        self.size, self.every, self.calls = size, every, 0
        self.waiting: Batch | None = None

    def __len__(self) -> int:
        return 0 if self.waiting is None else len(self.waiting[0])

    @property
    def nbytes(self) -> int:
        """Bytes of the images, labels and tasks that wait."""
        return 0 if self.waiting is None else sum(t.numel() * t.element_size() for t in self.waiting)

    def add(self, images: Tensor, labels: Tensor, tasks: Tensor | None = None) -> Batch | None:
        """Images (n, C, H, W), labels (n,) and tasks (n,) join the queue; all that waited comes back when it is time."""
        more = images, labels, torch.zeros_like(labels) if tasks is None else tasks
        if self.waiting is not None and self.waiting[0].shape[1:] != images.shape[1:]:
            ours = tuple(self.waiting[0].shape[1:])
            raise InputError(f"images of {tuple(images.shape[1:])} came to a queue with images of {ours}: one stream, one image shape.")
        self.waiting = more if self.waiting is None else tuple(map(torch.cat, zip(self.waiting, more, strict=True)))  # type: ignore[assignment]
        self.calls += 1
        return self.flush() if self.calls >= self.every or len(self) >= self.size else None

    @contextlib.contextmanager
    def kept_if_it_fails(self) -> Iterator[None]:
        """Where what is done with a batch fails (no room for a new class, Ctrl-C), the queue is as before, and nothing is lost."""
        before = self.waiting, self.calls
        try:
            yield
        except BaseException:
            self.waiting, self.calls = before
            raise

    def flush(self) -> Batch | None:
        """All that waits; the queue is empty and its clock at zero afterwards."""
        ready, self.waiting, self.calls = self.waiting, None, 0
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

    What waits at the end of the stream is merged too, and at the end of an experience after which the memory would be empty. It is one
    memory that grows: use it before asking for the next.
    """
    memory, waiting = Memory(config), Queue(queue, every)
    for number, (images, labels) in enumerate(experiences):
        batches = [
            waiting.add(images[part.to(images.device)], labels[part.to(labels.device)])
            for part in torch.randperm(len(labels), generator=generator(seed, "online", number)).split(mini)
        ]
        ready = [batch for batch in batches if batch is not None]
        if number == len(experiences) - 1 or not (memory.groups or ready):
            ready += [batch for batch in [waiting.flush()] if batch is not None]
        for batch in ready:
            memory.merge(*batch[:2], task=batch[2], device=device)
        yield memory
