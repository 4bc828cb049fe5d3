"""Worker processes: independent jobs side by side, and no worker that outlives the process that started it."""

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

from distill.errors import InputError
from distill.memory import keep_freed_memory

Job = TypeVar("Job")
BYTES_A_PROCESS = 2 << 30  # what a small study takes, with a margin


class WorkerFailed(Exception, Generic[Job]):
    """``job`` was not done, for the ``reason``, which is one line; ``error`` is the worker's own where it said what was wrong."""

    def __init__(self, job: Job, reason: str, error: InputError | None = None) -> None:
        super().__init__(reason)
        self.job, self.reason, self.error = job, reason, error


def cores() -> list[int]:
    """The cores that this process may use, as the system numbers them."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def free_bytes() -> int:
    """Memory that new processes can take."""
    import psutil

    return int(psutil.virtual_memory().available)


def at_once(jobs: int, threads: int = 1) -> int:
    """How many processes of so many threads each to start for so many jobs: at least one, as far as cores and free memory go."""
    return max(1, min(jobs, len(cores()) // threads, free_bytes() // BYTES_A_PROCESS))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread inside the block, as in a worker: the sums are then the same in both."""
    import torch  # here: a sweep needs no torch of its own

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    prepare: Callable[..., Callable[[Job], None]], arguments: tuple[object, ...], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, float]]:
    """(job, seconds) of each job as it ends, worked on by so many processes.

    A worker calls ``prepare(*arguments)`` once (a function at the top of a module) and what that returns on every job it is given; both
    say themselves how many threads they take. Raises `WorkerFailed`; then, and when the caller stops early, all workers are ended.
    """
    context = multiprocessing.get_context("spawn")
    todo = list(jobs)
    team: dict[Connection, tuple[SpawnProcess, Job, float]] = {}

    def give(pipe: Connection, process: SpawnProcess) -> None:
        job = todo.pop(0)
        pipe.send(job)
        team[pipe] = (process, job, time.monotonic())

    try:
        for _ in range(min(workers, len(todo))):
            ours, theirs = context.Pipe()
            process = context.Process(target=_work, args=(theirs, prepare, arguments), daemon=True)
            with _main_left_out(), without_ctrl_c():
                process.start()
            theirs.close()
            give(ours, process)
        while team:
            for pipe in multiprocessing.connection.wait(list(team)):
                assert isinstance(pipe, Connection)
                process, job, start = team[pipe]
                try:
                    trouble = pipe.recv()
                except (EOFError, ConnectionResetError):  # reset: it ended before it had read its job
                    process.join()
                    trouble = f"its process ended with exit code {process.exitcode}; see above"
                if trouble is not None:
                    raise WorkerFailed(job, str(trouble), trouble if isinstance(trouble, InputError) else None)
                yield job, time.monotonic() - start
                if todo:
                    give(pipe, process)
                else:
                    del team[pipe]
                    pipe.close()
                    process.join()
    finally:
        for process, _, _ in team.values():
            process.kill()
            process.join()


@contextlib.contextmanager
def without_ctrl_c() -> Iterator[None]:
    """A process started here never sees Ctrl-C, which a terminal sends to the whole group: the parent decides, and nothing is printed."""
    resource_tracker.ensure_running()  # its start, which otherwise is part of the process's, would let the signal through again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """A process started here does not import the caller's script, which without a guard for ``__main__`` would run a second time in it."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: Connection, prepare: Callable[..., Callable[[Job], None]], arguments: tuple[object, ...]) -> None:
    """A worker's life: take a job, do it, send None or what was wrong with the input, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    keep_freed_memory()
    end_with_parent()
    try:
        work = prepare(*arguments)
        while True:
            job = pipe.recv()
            try:
                work(job)
            except InputError as error:
                pipe.send(error)
            else:
                pipe.send(None)
    except EOFError:
        return
    except Exception:
        traceback.print_exc()
        os._exit(1)


def first_to_be_killed() -> None:
    """In a worker: when memory runs out, the system (Linux) ends this process rather than the one that started it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def end_with_parent() -> None:
    """In a worker of `multiprocessing`: when the process that started it is gone, however it went, this one ends at once.

    A worker whose parent was killed would go on with its job, and might write beside the run that continues it.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
