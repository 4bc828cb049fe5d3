"""A stop in one long call into C, where no handler in Python runs, ends the process all the same; workers never see Ctrl-C."""

import signal
import subprocess
import sys
import time

import pytest

# One call of minutes that lets other threads run, as torch's decompositions do; with a handler that notices, the loop goes on.
CALL = "hashlib.pbkdf2_hmac('sha256', b'a', b'b', 500_000_000)"
PROGRAM = """
import hashlib, signal, time
from distill import stopping
from scenarios.commands.ctrl_c import watch
signal.signal(signal.SIGINT, signal.default_int_handler)
watch('last words')
signal.signal(signal.SIGTERM, stopping.at_once)
print('ready', flush=True)
"""

NOTICED = """
with stopping.stop_signals(True) as stop:
    while not stop:
        time.sleep(0.01)
    time.sleep(2.5)
print('saved')
"""

# Python only reports the KeyboardInterrupt that is raised in a finaliser; here one after the other, then in a callback.
LOST = """
import gc
class Held:
    def __del__(self):
        time.sleep(60)
for _ in range(2):
    Held()
gc.callbacks.append(lambda phase, info: time.sleep(60))
gc.collect()
gc.callbacks.pop()
time.sleep(60)
"""

# A library's own way to lose it.
SWALLOWED = """
from scenarios.commands import ctrl_c
ctrl_c.END_SECONDS = 1.0
try:
    time.sleep(60)
except BaseException:
    time.sleep(60)
"""

OTHER = """
class Held:
    def __del__(self):
        raise ValueError("reported")
Held()
"""


def started(work: str) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", PROGRAM + work], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    time.sleep(1.0)
    return child


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_in_one_long_call_ends_the_process(number: signal.Signals) -> None:
    child = started(CALL)
    child.send_signal(number)
    try:
        _, errors = child.communicate(timeout=40)
    finally:
        child.kill()
    assert child.returncode == 130
    assert errors == "last words\n"


def test_a_stop_that_was_noticed_is_left_to_its_handler() -> None:
    child = started(NOTICED)
    child.send_signal(signal.SIGINT)
    out, _ = child.communicate(timeout=60)
    assert (child.returncode, out) == (0, "saved\n")


def test_a_lost_interrupt_is_raised_again_without_a_word() -> None:
    child = started(LOST)
    began = time.monotonic()
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=40)
    assert child.returncode == -signal.SIGINT  # Python's own end of a KeyboardInterrupt
    assert errors.startswith("Traceback (most recent call last)")  # of the last one, which nothing catches in this program
    assert "ignored" not in errors
    assert time.monotonic() - began < 10


def test_an_interrupt_that_is_swallowed_ends_the_process_all_the_same() -> None:
    child = started(SWALLOWED)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=40)
    assert (child.returncode, errors) == (130, "last words\n")


def test_other_errors_of_finalisers_are_reported() -> None:
    child = started(OTHER)
    _, errors = child.communicate(timeout=40)
    assert errors.startswith("Exception ignored in: <function Held.__del__")
