"""Ctrl-C: one request, however often and wherever it arrives; a step is left in the middle, and a later Ctrl-C acts at once."""

import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
import safetensors
import torch

from distill import stopping
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.methods.dm import DM, DMConfig
from distill.randomness import generator
from distill.run import condense
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set


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
    with stopping.stop_signals(True) as stop:
        assert not stop
        signal.raise_signal(signal.SIGINT)
        assert stop
        assert len(printed) == 1
        monkeypatch.setattr(stopping, "SAME_STOP_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


class Slow:
    """A method whose third step takes a minute, half way through which it has changed its images; the others take no time."""

    total_steps = 5

    def __init__(self, initial: CondensedSet, minute: bool) -> None:
        self.inner, self.minute, self.made = DM(DMConfig(network="ConvNetD1W32", batch_real=4), initial), minute, 0
        self.condensed = initial

    def step(self, statistics: ExactStatistics, draws: torch.Generator) -> dict[str, torch.Tensor]:
        found = self.inner.step(statistics, draws)
        self.condensed, self.made = self.inner.condensed, self.made + 1
        if self.made == 3 and self.minute:
            threading.Timer(0.1, os.kill, (os.getpid(), signal.SIGINT)).start()
            time.sleep(60)
        return found

    def state(self) -> dict[str, torch.Tensor]:
        return self.inner.state()

    def load_state(self, state: dict[str, torch.Tensor]) -> None:
        self.inner.load_state(state)


def test_a_step_of_a_minute_is_left_in_the_middle_and_the_run_goes_on_to_the_same_bits(toy_data: ImageData, tmp_path: Path) -> None:
    statistics = ExactStatistics(toy_data)
    first = initial_set(statistics, "real", 1, generator(0, "first"))
    with pytest.raises(stopping.Interrupted):
        condense(statistics, Slow(first, True), checkpoint=tmp_path / "c", metrics=tmp_path / "m")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    with safetensors.safe_open(tmp_path / "c", framework="pt") as file:
        assert json.loads(file.metadata()["checkpoint"])["step"] == 2
    rest = Slow(first, False)
    stopped = condense(statistics, rest, checkpoint=tmp_path / "c", metrics=tmp_path / "m", resume=True)
    assert rest.made == 3
    whole = condense(statistics, Slow(first, False), metrics=tmp_path / "whole")
    assert torch.equal(stopped.images, whole.images)
    assert (tmp_path / "m").read_text() == (tmp_path / "whole").read_text()


def test_a_stop_that_came_between_two_steps_does_not_wait_for_the_next_one() -> None:
    with stopping.stop_signals(True) as stop:
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(stopping.Cut), stop.cutting(True):
            pytest.fail("the step began")
        with stop.cutting(False):
            pass


def test_what_is_held_back_acts_when_the_writes_are_done() -> None:
    written = []

    def write() -> None:
        with stopping.held_back():
            signal.raise_signal(signal.SIGINT)
            written.append("both")

    with pytest.raises(KeyboardInterrupt):
        write()
    assert written == ["both"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
