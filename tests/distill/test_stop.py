"""Ctrl-C: the first one is looked at between steps, however often and wherever it arrives; a later one acts at once."""

import os
import signal

import pytest

from distill import run


def test_signals_inside_the_handler_are_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line that the handler prints is interrupted by the same signal again: no lock to wait on, no second request."""
    printed: list[bytes] = []

    def interrupted_write(descriptor: int, text: bytes) -> int:
        printed.append(text)
        if len(printed) < 4:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
        return len(text)

    monkeypatch.setattr(os, "write", interrupted_write)
    with run._stop_signals(True) as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert len(stop) == len(printed) == 1
        monkeypatch.setattr(run, "SAME_STOP_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
