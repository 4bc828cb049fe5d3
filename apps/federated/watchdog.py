"""Ends what runs under a Flower home when the process that owns the home is gone, however it went, and removes the home.

Run as a script by `engines.flower`, with the owner's end of a pipe as its standard input: the system closes it with the owner. It imports
nothing but the standard library, so that it costs little while it waits.
"""

import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO

STOP_SECONDS = 10.0
PREFIX, OWNER = "flwr-", "owner.lock"


def carrying(home: Path) -> list[int]:
    """Ids of living processes with ``FLWR_HOME`` set to this folder (Linux)."""
    mark = f"FLWR_HOME={home}".encode()
    ids = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):
            if mark in entry.read_bytes().split(b"\0") and int(entry.parent.name) != os.getpid():
                ids.append(int(entry.parent.name))
    return ids


def end_all(home: Path, children: Sequence["subprocess.Popen[bytes]"] = (), *, gently: bool = True) -> None:
    """End every process that carries this Flower home: what was started with it (``children``), and what that started."""
    deadline = time.monotonic() + (STOP_SECONDS if gently else 0.0)
    number = signal.SIGTERM if gently else signal.SIGKILL
    while carriers := carrying(home):
        if time.monotonic() > deadline:
            number = signal.SIGKILL
        for pid in carriers:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, number)
        for child in children:  # they leave an entry until they are waited for
            child.poll()
        if time.monotonic() > deadline + STOP_SECONDS:
            break
        time.sleep(0.3)
    for child in children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(STOP_SECONDS)


def new_home() -> tuple[Path, TextIO]:
    """A folder for a Flower home, and its lock, which the system lets go of when this process ends."""
    home = Path(tempfile.mkdtemp(prefix=PREFIX))  # short, because Ray puts sockets below it
    lock = (home / f".{OWNER}").open("w")
    fcntl.flock(lock, fcntl.LOCK_EX)
    (home / f".{OWNER}").rename(home / OWNER)  # a sweep sees it locked or not at all
    return home, lock


def sweep() -> None:
    """Remove homes whose owners are gone, with all that runs under them, where the watchdog was ended too."""
    for path in Path(tempfile.gettempdir()).glob(f"{PREFIX}*/{OWNER}"):
        with contextlib.suppress(OSError), path.open("r+") as lock:
            if path.stat().st_uid != os.getuid():
                continue
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # somebody's: OSError
            remove(path.parent)


def remove(home: Path) -> None:
    """End what runs under a home that nobody owns, without asking, and remove it."""
    end_all(home, gently=False)
    shutil.rmtree(home, ignore_errors=True)


def watch(home: Path) -> "subprocess.Popen[bytes]":
    """A watchdog for this process's ``home``; it ends when its standard input is closed."""
    return subprocess.Popen(
        [sys.executable, "-I", __file__, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # a Ctrl-C or a closed terminal is for the owner
    )


if __name__ == "__main__":
    sys.stdin.buffer.read()  # until the owner's end of the pipe is closed
    remove(Path(sys.argv[1]))
