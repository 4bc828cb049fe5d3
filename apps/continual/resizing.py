"""A memory with a smaller budget: its groups are condensed to their smaller shares."""

import dataclasses
import hashlib

import torch

from apps.continual.memory import Memory
from distill.errors import InputError, clipped


def resize(memory: Memory, items: int, *, device: torch.device | str = "cpu", progress: bool | None = None) -> None:
    """Give the memory a budget of ``items``, at most what it has. Groups above their share are condensed again, from their own images.

    What the memory holds afterwards depends on when this was called; its files name it. Nothing changes where it fails.

    Args:
        memory: is changed.
        items: the new budget.
        device: where images are condensed.
        progress: show a progress bar; None: on terminals.

    Raises:
        InputError: the budget is larger (what was not kept is gone), has no room for the classes, or the memory has no budget in items.
    """
    old, history = memory.config, memory.history
    if old.items is None or type(items) is not int or not 1 <= items <= old.items:
        raise InputError(
            f"a memory of {old.items} items cannot become one of {clipped(items)}; allowed: 1 to {old.items} (what was not kept is gone)."
        )
    if items == old.items:
        return
    try:
        memory.config = dataclasses.replace(old, items=items)
        memory.history = hashlib.sha256(f"{history} resized to {items}".encode()).hexdigest()
        if memory.groups:
            shares = memory.shares(len(memory.groups), memory.groups[0].form.shape)
            named = f"{memory.experiences}-of-{items}"
            memory.groups = memory.shrunk(shares, [], named, device=device, folder=None, progress=progress)
    except BaseException:
        memory.config, memory.history = old, history
        raise
