"""A cell of a sweep, in its own process: ``python -m scenarios.cell PARENT ARGUMENTS``."""

import ctypes
import os
import signal
import sys

from scenarios import cli


def main(parent: int, arguments: list[str]) -> None:
    """A cell: `distill` with these arguments, stopped like by Ctrl-C when the process that started it is gone."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a parent in the background may have passed on that it is ignored
    if sys.platform == "linux":
        set_parent_death_signal = 1
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGINT)
    if os.getppid() != parent:
        sys.exit(130)
    sys.argv[1:] = arguments
    cli.main()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
