"""Continual learning: a replay memory of condensed exemplars, and the same for Avalanche's strategies. See README.md in this folder."""

from typing import Any

from apps.continual.memory import Memory as Memory
from apps.continual.memory import MemoryConfig as MemoryConfig

_OF_AVALANCHE = ("CondensedBuffer", "OnlineCondensedBuffer", "attach")


def __getattr__(name: str) -> Any:
    # Avalanche takes seconds to import: only those who ask for a buffer wait for it.
    if name in _OF_AVALANCHE:
        from apps.continual import buffer, online_buffer

        return getattr(online_buffer if name == "OnlineCondensedBuffer" else buffer, name)
    raise AttributeError(f"module 'apps.continual' has no attribute {name!r}")
