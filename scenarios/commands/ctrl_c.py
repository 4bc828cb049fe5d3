"""Ctrl-C and SIGTERM end the command line within two seconds, also in a long call into C, and without Python's own end.

Longer take Flower's engines, whose processes are ended one after the other (10 s), sweeps, which wait 5 s for their runs, and torchrun,
where a step is made to its end.

A signal handler in Python runs between two bytecodes. A matrix decomposition or a large sort is one bytecode and may take minutes. What a
study has finished is on the disk at every moment (it survives ``kill -9``), so a process that does not notice a signal is ended.

A `KeyboardInterrupt` can also be lost: Python only reports one that is raised in a finaliser or in a callback of the garbage collector.
It is raised again instead, after that call. A process that still runs `END_SECONDS` after one was raised is ended as well.
"""

import contextlib
import functools
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from distill import stopping

ANSWER_SECONDS = 1.5
AGAIN_SECONDS = 0.05
END_SECONDS = 30.0  # longer than Flower's engines and sweeps take to end
_before: set[int] = set()  # children that a shell left to this process; they are not ours to end


def watch(last_words: str) -> None:
    """From here on a stop that the main thread does not notice within `ANSWER_SECONDS`, or that has raised `KeyboardInterrupt` without an
    end within `END_SECONDS`, ends the process, after these words on stderr."""
    if signal.getsignal(signal.SIGINT) is not signal.default_int_handler:  # a command in the background ignores Ctrl-C
        return
    _before.update(_children())
    signal.signal(signal.SIGINT, stopping.at_once)
    sys.unraisablehook = functools.partial(_again, sys.unraisablehook)
    read, written = socket.socketpair()
    written.setblocking(False)
    signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)  # written to by the C handler, wherever the main thread is
    threading.Thread(target=_wait, args=(read, written, last_words), daemon=True).start()


def _again(report: Callable[["sys.UnraisableHookArgs"], object], lost: "sys.UnraisableHookArgs") -> None:
    """Send the signal of a lost `KeyboardInterrupt` again, and report any other error."""
    if issubclass(lost.exc_type, KeyboardInterrupt):
        # Later and from another thread, because the main thread is still in the call that loses it.
        timer = threading.Timer(AGAIN_SECONDS, signal.pthread_kill, [threading.main_thread().ident, signal.SIGINT])
        timer.daemon = True
        timer.start()
    else:
        report(lost)


def _wait(read: socket.socket, written: socket.socket, last_words: str) -> None:
    """The thread's work; ``written`` is held so that it stays open."""
    while True:
        try:
            number = read.recv(1)[0]
        except TimeoutError:  # `KeyboardInterrupt` was raised, and lost
            _end_with_words(last_words)
        if number in stopping.STOPS:
            asked = time.monotonic()
            while not (noticed := stopping.noticed_since(asked)) and time.monotonic() < asked + ANSWER_SECONDS:
                time.sleep(0.05)
            if not noticed:
                _end_with_words(last_words)
            read.settimeout(END_SECONDS if stopping.raised_since(asked) else None)


def _end_with_words(last_words: str) -> NoReturn:
    # The plain system call: the main thread may hold the lock of a stream.
    show_cursor = "\x1b[?25h\n" if os.isatty(2) else ""  # which a progress bar that is cut short has hidden
    os.write(2, f"{show_cursor}{last_words}\n".encode())
    stopping.before_the_end()
    end(130)


def end(code: int) -> NoReturn:
    """End this process and its workers now. Python's own end frees every object of torch first, which takes seconds."""
    for process in multiprocessing.active_children():
        process.kill()
    # One that is just being started is in no list of Python's yet; left alone it would print that its parent is gone.
    for child in _children() - _before:
        with contextlib.suppress(OSError):
            os.kill(child, signal.SIGKILL)
    os._exit(code)


def _children() -> set[int]:
    """Process ids of this process's children; none where the system does not list them."""
    found: set[int] = set()
    for listed in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError, ValueError):
            found |= set(map(int, listed.read_text().split()))
    return found


def end_flushed(code: int) -> NoReturn:
    """`end`, after what was printed."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # nobody reads any more
            stream.flush()
    end(code)
