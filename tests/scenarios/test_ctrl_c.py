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

# Python ignores the KeyboardInterrupt that is raised in a finaliser.
LOST = """
from scenarios.commands import ctrl_c
ctrl_c.END_SECONDS = 1.0
class Held:
    def __del__(self):
        time.sleep(60)
held = Held()
del held
time.sleep(60)
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


def test_a_lost_interrupt_ends_the_process_all_the_same() -> None:
    child = started(LOST)
    child.send_signal(signal.SIGINT)
    _, errors = child.communicate(timeout=40)
    assert child.returncode == 130
    assert errors.startswith("Exception ignored in: <function Held.__del__")
    assert errors.endswith("last words\n")
