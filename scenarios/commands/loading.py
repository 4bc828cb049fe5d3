"""A sign of life on a terminal while torch is loaded, which takes seconds."""

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

TEXT = "loading torch ..."
Arguments = ParamSpec("Arguments")


def with_a_line(command: Callable[Arguments, None]) -> Callable[Arguments, None]:
    """The command, after torch was loaded with a separate line on the terminal; in a pipe and with ``--quiet`` nothing is added."""

    @functools.wraps(command)
    def run(*arguments: Arguments.args, **options: Arguments.kwargs) -> None:
        if sys.stderr.isatty() and not options.get("quiet") and "torch" not in sys.modules:
            print(TEXT, end="", file=sys.stderr, flush=True)
            try:
                import torch as torch
            finally:
                print(f"\r{' ' * len(TEXT)}\r", end="", file=sys.stderr, flush=True)
        command(*arguments, **options)

    return run
