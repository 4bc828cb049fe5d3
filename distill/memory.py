"""One setting of the C library that makes training small networks on a CPU faster."""

import contextlib
import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # numbers from <malloc.h>


def keep_freed_memory() -> bool:
    """Make glibc keep freed blocks instead of returning them to the system, which costs page faults for every activation tensor.

    It applies to the whole process, so the command line calls it and the library never does. Returns whether it took effect.
    """
    if not sys.platform.startswith("linux"):
        return False
    with contextlib.suppress(OSError, AttributeError):
        libc = ctypes.CDLL(None)
        return bool(libc.mallopt(_MMAP_THRESHOLD, 1 << 30)) and bool(libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1))
    return False
