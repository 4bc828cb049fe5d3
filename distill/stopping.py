"""Ctrl-C and SIGTERM during a step: the step is interrupted if the state before it was kept, else the run stops after it."""

import contextlib
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

# One press of Ctrl-C can arrive several times: from the terminal, passed on by a parent, and when that parent ends.
SAME_STOP_SECONDS = 0.5
STOPS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The user interrupted the run and its state was saved; ``resume`` continues it."""


class Cut(KeyboardInterrupt):
    """The current step was interrupted: its changes are incomplete."""


_noticed = [-math.inf]  # when a handler ran last; a list, because a signal handler takes no lock
_raised = [-math.inf]  # when `at_once` ran last


def noticed_since(moment: float) -> bool:
    """Whether one of these handlers has run since ``moment`` (`time.monotonic`), or just before it for the same key press."""
    return _noticed[0] > moment - SAME_STOP_SECONDS


def raised_since(moment: float) -> bool:
    """Whether `at_once` has run since ``moment``, or just before it for the same key press: the process is about to end."""
    return _raised[0] > moment - SAME_STOP_SECONDS


def at_once(number: int, frame: FrameType | None) -> None:
    """A signal handler: raises `KeyboardInterrupt`, as Python's own does, and records the time for `noticed_since`."""
    _noticed[0] = _raised[0] = time.monotonic()
    raise KeyboardInterrupt


_wishes: list[Callable[[], None]] = []


@contextlib.contextmanager
def last_wish(keep: Callable[[], None]) -> Iterator[None]:
    """Register ``keep`` inside the block, to be called by `before_the_end`."""
    _wishes.append(keep)
    try:
        yield
    finally:
        _wishes.remove(keep)


def before_the_end() -> None:
    """Call all functions registered by `last_wish`, before a process that does not respond is ended; errors are ignored."""
    for keep in [*_wishes]:
        with contextlib.suppress(Exception):
            keep()


class Stop:
    """A request to stop: false until the first signal."""

    def __init__(self) -> None:
        self.asked: float | None = None
        self._may_cut = False

    def __bool__(self) -> bool:
        return self.asked is not None

    @contextlib.contextmanager
    def cutting(self, allowed: bool) -> Iterator[None]:
        """Inside the block a request raises `Cut` immediately if ``allowed``."""
        self._may_cut = allowed
        if allowed and self:
            raise Cut
        try:
            yield
        finally:
            self._may_cut = False

    def request(self) -> None:
        """Record the time. Safe in a signal handler, which may interrupt itself or a print: takes no lock, writes by a system call."""
        self.asked = time.monotonic()
        cut, self._may_cut = self._may_cut, False
        if cut:
            os.write(2, b"stopping; the state before this step is saved\n")
            raise Cut
        os.write(2, b"stopping after this step; press Ctrl-C again to stop at once\n")


@contextlib.contextmanager
def stop_signals(handled: bool) -> Iterator[Stop]:
    """Turn the first Ctrl-C or SIGTERM inside the block into a request (`Stop`); a second one acts as without the block.

    Args:
        handled: False leaves the signals unchanged.
    """
    stop = Stop()
    if not handled or threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.getsignal(number) for number in STOPS}

    def request(number: int, frame: FrameType | None) -> None:
        _noticed[0] = time.monotonic()
        if stop.asked is None:
            stop.request()
        elif time.monotonic() - stop.asked > SAME_STOP_SECONDS:
            signal.signal(number, before[signal.Signals(number)] or signal.SIG_DFL)
            signal.raise_signal(number)

    for number in before:
        signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler or signal.SIG_DFL)


@contextlib.contextmanager
def held_back() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM to the end of the block, for writes that belong together."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    arrived: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        _noticed[0] = time.monotonic()
        arrived.append(number)

    before = {stop: signal.signal(stop, note) for stop in STOPS}
    try:
        yield
    finally:
        for stop, handler in before.items():
            signal.signal(stop, handler or signal.SIG_DFL)
        for number in dict.fromkeys(arrived):
            signal.raise_signal(number)
