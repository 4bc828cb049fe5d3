"""Worker processes for independent jobs; no worker outlives the process that started it."""

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
BYTES_A_PROCESS = 2 << 30  # memory of a small study, with a margin


class WorkerFailed(Exception, Generic[Job]):
    """A job failed.

    Attributes:
        job: the job.
        reason: one line.
        error: the worker's `InputError`, if it raised one.
    """

    def __init__(self, job: Job, reason: str, error: InputError | None = None) -> None:
        super().__init__(reason)
        self.job, self.reason, self.error = job, reason, error


def cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))


def free_bytes() -> int:
    """Available memory in bytes."""
    import psutil

    return int(psutil.virtual_memory().available)


def at_once(jobs: int, threads: int = 1) -> int:
    """Number of worker processes to start for ``jobs`` jobs of ``threads`` threads each, limited by cores and free memory (at least 1)."""
    return max(1, min(jobs, len(cores()) // threads, free_bytes() // BYTES_A_PROCESS))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Limit torch to one thread inside the block, as in a worker, so that sums are equal to the bit."""
    import torch  # here, because a sweep does not need torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def side_by_side(
    prepare: Callable[..., Callable[[Job], None]], arguments: tuple[object, ...], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, float]]:
    """Do jobs in worker processes; all workers are ended when a job fails or the caller stops early.

    Args:
        prepare: a function at the top of a module that each worker calls once, with ``arguments``; the function that it returns is
            called with each job. Both set their number of threads themselves.
        arguments: see ``prepare``.
        jobs: the jobs.
        workers: number of processes.

    Yields:
        (job, seconds) of each job when it ends.

    Raises:
        WorkerFailed: for the first job that fails.
    """
    context = multiprocessing.get_context("spawn")
    todo = list(jobs)
    team: dict[Connection, tuple[SpawnProcess, Job, float]] = {}

    def send_job(pipe: Connection, process: SpawnProcess) -> None:
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
            send_job(ours, process)
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
                    send_job(pipe, process)
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
    """Processes started inside the block ignore Ctrl-C, which a terminal sends to the whole group: the parent handles it."""
    resource_tracker.ensure_running()  # started later, it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGINT])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def _main_left_out() -> Iterator[None]:
    """Processes started inside the block do not import the caller's script, which without a ``__main__`` guard would run again."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def _work(pipe: Connection, prepare: Callable[..., Callable[[Job], None]], arguments: tuple[object, ...]) -> None:
    """Loop of a worker until the pipe closes: receive a job, do it, send None or the `InputError`."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # handled by the parent
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
    """In a worker: let the system (Linux) end this process first when memory runs out."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


def end_with_parent() -> None:
    """In a worker of `multiprocessing`: end this process as soon as its parent has ended.

    A worker whose parent was killed would continue its job, and might write to the files of the run that is resumed.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
