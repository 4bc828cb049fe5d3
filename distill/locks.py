"""A lock that processes take on a file, and that the system releases when its process ends, however it ends."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import filelock


class Held(Exception):
    """Another process or thread holds the lock."""


@contextlib.contextmanager
def locked(path: Path, wait: float) -> Iterator[None]:
    """Hold the lock of a file, which is made where it is missing and stays.

    Args:
        path: the file; its content does not matter.
        wait: seconds to wait for another holder; -1 waits without end.

    Raises:
        Held: when the lock was not free in that time.
        OSError: when the file cannot be made, or its file system has no locks.
    """
    # Without flock filelock would put up a marker that outlives a killed process.
    lock = filelock.FileLock(path, timeout=wait, is_singleton=False, fallback_to_soft=False)
    try:
        lock.acquire()
    except filelock.Timeout:
        raise Held from None
    try:
        yield
    finally:
        lock.release()
