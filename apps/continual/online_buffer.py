"""`OnlineCondensedBuffer`: the condensed buffer of a stream that passes once, or whose classes come back in every experience."""

from pathlib import Path
from typing import Any

from apps.continual import memory_file
from apps.continual.buffer import CondensedBuffer
from apps.continual.items import Layout
from apps.continual.online import Batch, Queue
from apps.continual.policies import is_der, needs_items, refuse_no_replay
from apps.continual.protocols import Agent, Experience
from distill.errors import InputError, clipped


class OnlineCondensedBuffer(CondensedBuffer):
    """A condensed buffer for online streams, whose experiences are a few items: recent items wait in a queue and are condensed together.

    The waiting images are real, are not replayed, and count neither as items nor in ``nbytes`` (see `queue_nbytes`). None is dropped: call
    `flush` at the end of the stream. The queue is part of the saved file.

    Args:
        max_size: budget in items.
        method: a condensation method or coreset.
        queue: number of waiting items at which they are merged into the exemplars of their classes and tasks (`Memory.merge`).
        every: number of mini-experiences after which they are merged in any case; 1 is for classes that come back in ordinary experiences.
        options: all other arguments of `CondensedBuffer` except ``folder``.

    Raises:
        InputError: an argument is wrong.
    """

    def __init__(self, max_size: int, method: str = "dm", *, queue: int = 64, every: int = 6, **options: Any) -> None:
        if options.get("folder") is not None:
            raise InputError("an online buffer cannot save itself for each mini-experience; leave folder out and call save.")
        if options.get("returning", "merge") != "merge":
            raise InputError(f"returning is {clipped(options['returning'])!r}; an online buffer merges: leave it out.")
        self.queue = Queue(queue, every)
        super().__init__(max_size, method, **options)

    @property
    def queue_nbytes(self) -> int:
        """Bytes of the real images that wait; not part of `nbytes`."""
        return self.queue.nbytes

    def flush(self, agent: Agent | None = None) -> None:
        """Merge the waiting images: at the end of the stream, or before the exemplars are used elsewhere.

        Args:
            agent: the strategy; needed for DER's outputs unless it is attached.
        """
        if agent is None and self.memory.logit_values and len(self.queue):
            agent = self.learner
            if agent is None:
                raise InputError("the buffer stores a network's outputs (DER) with its items; call flush(strategy).")
        with self.queue.kept_if_it_fails():
            self._merge(agent, self.queue.flush())
        self._built = None
        if is_der(agent):
            self._attach_logits(agent)

    def save(self, path: str | Path) -> None:
        """The memory, the real images that wait in the queue, and the queue's clock, as one safetensors file."""
        memory_file.save(self.memory, path, self.queue)

    @classmethod
    def _of_queue(cls, queue: Queue | None) -> dict[str, int]:
        return {} if queue is None else {"queue": queue.size, "every": queue.every}

    def _loaded(self, path: Path, layout: Layout) -> None:
        read, queue = memory_file.load_online(path)
        if queue is not None and (queue.size, queue.every) != (self.queue.size, self.queue.every):
            ours = f"queue={self.queue.size}, every={self.queue.every}"
            raise InputError(f"{path}: was saved with queue={queue.size}, every={queue.every}; here: {ours}; make this one with the same.")
        if queue is not None and queue.waiting is not None:
            layout.check(tuple(queue.waiting[0].shape[1:]), path)
        self._put(read, path, layout)
        self.queue = queue or Queue(self.queue.size, self.queue.every)

    def _add(self, agent: Agent | None, batch: Batch) -> bool:
        self.memory.checked(*batch)
        with self.queue.kept_if_it_fails():
            ready = self.queue.add(*batch)
            if ready is None and not self.memory.groups and needs_items(agent):
                ready = self.queue.flush()
            self._merge(agent, ready)
        return False

    def _merge(self, agent: Agent | None, ready: Batch | None) -> None:
        if ready is not None:
            progress = False if self.progress is None else self.progress
            self.memory.merge(*ready[:2], task=ready[2], device=self._device(agent), progress=progress)

    def _check_replay(self, agent: Agent, exp: Experience) -> None:
        """The first mini-experiences find an empty buffer; what can never be enough is refused at once."""
        refuse_no_replay(agent, self.max_size * self.memory.config.copies, exp)
