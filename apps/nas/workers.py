"""Many small networks at once: worker processes of one thread each, which take one job at a time; or a Ray pool (ray_pool.py).

A worker that dies takes only its own network with it: that becomes a row with the reason, and a new worker starts. The number of workers
never changes a result: every network is trained by one thread with its own streams of random numbers.
"""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import torch

from apps.nas.training import WHOLE, Job, Shelf, failed, measure
from distill.errors import InputError
from distill.memory import keep_freed_memory
from distill.processes import end_with_parent, one_thread
from distill.train import Recipe

Row = dict[str, Any]


@dataclass(frozen=True)
class Crew:
    """Who does the work. ``workers`` None is one a core (four on a GPU), 0 is this process; ``ray`` the address of a Ray pool that
    already runs ("10.0.0.5:6379"), used instead of processes; ``limit`` the wall seconds after which a network is given up."""

    workers: int | None = None
    ray: str | None = None
    limit: float | None = None
    device: str = "cpu"

    @property
    def size(self) -> int:
        """Networks at a time."""
        if self.workers is not None:
            return self.workers
        return (
            4
            if self.device.startswith("cuda")
            else len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )


def rows(jobs: Sequence[Job], shelf: Shelf, crew: Crew) -> Iterator[Row]:
    """A row for each job, in the order in which they finish."""
    if not jobs:
        return
    if crew.ray is not None:
        from apps.nas.ray_pool import ray_rows

        yield from ray_rows(jobs, shelf, crew.ray, crew.device, crew.limit)
    elif crew.size == 0:
        yield from _here(jobs, shelf.to(crew.device))
    else:
        yield from _processes(jobs, shelf, crew)


def _here(jobs: Sequence[Job], shelf: Shelf) -> Iterator[Row]:
    for job in jobs:
        with one_thread():
            row = measure(job, shelf)
        yield row


@dataclass
class _Worker:
    process: Any
    pipe: Connection
    job: Job | None = None
    since: float = 0.0


def _processes(jobs: Sequence[Job], shelf: Shelf, crew: Crew) -> Iterator[Row]:
    waiting = deque(jobs)
    content = packed(shelf)
    team: list[_Worker] = []
    try:
        team = [_start(content, crew.device) for _ in range(min(crew.size, len(waiting)))]
        for worker in team:
            _wait_until_ready(worker)
        while True:
            for worker in team:
                if worker.job is None and waiting:
                    _give(worker, waiting.popleft())
            busy = [worker for worker in team if worker.job is not None]
            if not busy:
                return
            ready = multiprocessing.connection.wait([worker.pipe for worker in busy], 1.0)
            for worker in busy:
                job = worker.job
                assert job is not None
                if worker.pipe in ready:
                    row = _row_of(worker)
                    alive = row is not None
                    row = row or failed(job, f"its worker process died (exit code {worker.process.exitcode})")
                elif crew.limit is not None and time.monotonic() - worker.since > crew.limit:
                    row, alive = failed(job, f"took longer than {crew.limit:g} s"), False
                else:
                    continue
                worker.job = None
                if not alive:
                    _end(worker)
                    team.remove(worker)
                    if waiting:
                        team.append(_start(content, crew.device))
                        _wait_until_ready(team[-1])
                yield row
    finally:
        for worker in team:
            _end(worker)


def packed(shelf: Shelf) -> bytes:
    """The shelf as bytes for a worker of ours. (Files from elsewhere are never read this way.)"""
    return pickle.dumps(shelf.to("cpu"))


def _start(content: bytes, device: str) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, content, device), daemon=True)
    process.start()
    theirs.close()
    return _Worker(process, ours)


def _wait_until_ready(worker: _Worker) -> None:
    try:
        worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join(5)
        raise RuntimeError(f"a worker process could not start (exit code {worker.process.exitcode}); see its message above.") from None


def _give(worker: _Worker, job: Job) -> None:
    try:
        worker.pipe.send(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise InputError(
            f"network {job.id!r} cannot be sent to a worker process ({str(error)[:100]}); put its function at the top of an importable"
            " file, or run in this process with workers = 0."
        ) from None
    except OSError:
        pass  # it has died; the broken pipe is found when its row is read
    worker.job, worker.since = job, time.monotonic()


def _row_of(worker: _Worker) -> Row | None:
    try:
        row: Row = worker.pipe.recv()
        return row
    except (EOFError, OSError):
        worker.process.join(5)
        return None


def _end(worker: _Worker) -> None:
    worker.pipe.close()
    worker.process.terminate()
    worker.process.join(5)
    if worker.process.is_alive():
        worker.process.kill()
        worker.process.join()


def serve(pipe: Connection, content: bytes, device: str) -> None:
    """A worker's life: take a job, send its row, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    end_with_parent()
    torch.set_num_threads(1)
    keep_freed_memory()
    shelf = pickle.loads(content).to(device)
    # What a process does once (loading kernels and optimisers) is not the first network's cost.
    measure(Job("warm", "warm", "ConvNetW4D1NP", WHOLE, 0, Recipe(max_steps=1, batch_size=8, compile="off"), ""), shelf)
    try:
        pipe.send("ready")
        while True:
            pipe.send(measure(pipe.recv(), shelf))
    except (EOFError, OSError):
        return
