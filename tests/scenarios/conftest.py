"""Runs of their own for tests that kill, stop or hinder them: forked, so that a run costs what it does and not ten seconds of imports."""

import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.forked import forking


def child(arguments: list[str], log: str, cores: int | None) -> None:
    """`distill` with these arguments in a process group of its own, on ``cores`` cores; what it says goes to ``log``."""
    import distill.run
    from scenarios.cli import main

    os.setpgrp()
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for number in (1, 2):
        os.dup2(output, number)
    torch.set_num_threads(1)
    if cores is not None and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    distill.run.CHECKPOINT_SECONDS = 0.0  # a checkpoint at every step, so that a kill lands between, before and inside them
    sys.argv[1:] = arguments
    main()


Run = Callable[..., Any]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """``start(scenario, out, cores=1)`` begins or continues a run; whatever is left at the end of the test is killed."""
    context = forking()
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    begun = []

    def begin(scenario: Path, out: Path, cores: int | None = 1) -> Any:
        arguments = ["run", str(scenario), "--out", str(out), "--device", "cpu", "--resume"]
        process = context.Process(target=child, args=(arguments, str(tmp_path / "log"), cores))
        process.start()
        begun.append(process)
        return process

    yield begin
    for process in begun:
        kill(process)


def kill(process: Any) -> bool:
    """SIGKILL to the whole group; whether that is what ended it."""
    for attempt in (os.killpg, os.kill):  # its group is there a moment after itself
        with contextlib.suppress(ProcessLookupError):
            attempt(process.pid, signal.SIGKILL)
    process.join()
    return bool(process.exitcode == -signal.SIGKILL)
