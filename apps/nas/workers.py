"""Many small networks at once: worker processes of one thread each, which take one job at a time; or a Ray pool (ray_pool.py).

A candidate network is foreign code, so only a worker builds and runs it, for training and for zero-cost scores alike. A worker that dies
loses only its own network, which gets a row with the reason, and a new worker starts. The number of workers never changes a
result: every network is trained by one thread with its own streams of random numbers.
"""

import multiprocessing
import multiprocessing.connection
import os
import pickle
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

import torch

from apps.nas.training import Row as Row
from apps.nas.training import Shelf, Task, failed, given_up, reason_of, warm
from distill.errors import InputError
from distill.memory import keep_freed_memory
from distill.networks import Factory
from distill.processes import end_with_parent, first_to_be_killed, one_thread, without_ctrl_c

LIMIT = 6 * 3600.0  # seconds; a network that hangs must not hold up a study for ever


@dataclass(frozen=True)
class Crew:
    """The workers of a study.

    Args:
        workers: number of processes. None: one per core (four on a GPU). 0: this process; then a network that ends its process ends the
            study, and there is no time limit.
        ray: address of a running Ray pool ("10.0.0.5:6379"), used instead of processes.
        limit: wall seconds for one training or one score, after which the network is given up. Starting a worker and waiting in a queue
            do not count. None: no limit.
        device: the device that networks are trained on.
    """

    workers: int | None = None
    ray: str | None = None
    limit: float | None = LIMIT
    device: str = "cpu"

    @property
    def size(self) -> int:
        """The number of networks trained at the same time."""
        if self.workers is not None:
            return self.workers
        return (
            4
            if self.device.startswith("cuda")
            else len(os.sched_getaffinity(0))
            if hasattr(os, "sched_getaffinity")
            else os.cpu_count() or 1
        )


def check_crew(crew: Crew, networks: Mapping[str, Factory]) -> None:
    """Check before the work begins that it can be distributed.

    Raises:
        InputError: no Ray pool answers, or one of ``networks`` (by id) cannot be sent to a process.
    """
    if crew.ray is not None:
        from apps.nas.ray_pool import knock

        knock(crew.ray)
    elif crew.size:
        for id, network in networks.items():
            if not isinstance(network, str):
                try:
                    pickle.dumps(network)
                except Exception as error:
                    raise _not_sent(id, error) from None


def rows(jobs: Sequence[Task], shelf: Shelf, crew: Crew) -> Generator[Row, None, None]:
    """Yield a row for each job, in the order in which they finish."""
    if not jobs:
        return
    if crew.ray is not None:
        from apps.nas.ray_pool import ray_rows

        yield from ray_rows(jobs, shelf, crew.ray, crew.device, crew.limit)
    elif crew.size == 0:
        yield from _here(jobs, shelf.to(crew.device))
    else:
        yield from _processes(jobs, shelf, crew)


def _here(jobs: Sequence[Task], shelf: Shelf) -> Iterator[Row]:
    for job in jobs:
        with one_thread():
            row = job.row(shelf)
        yield row


@dataclass
class _Worker:
    process: SpawnProcess
    pipe: Connection
    job: Task | None = None
    since: float = 0.0


def _processes(jobs: Sequence[Task], shelf: Shelf, crew: Crew) -> Iterator[Row]:
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
                # Asked again: while another worker was started, or the caller wrote a row down, this one may have finished in time.
                if worker.pipe in ready or worker.pipe.poll():
                    row = _row_of(worker)
                    alive = row is not None
                    row = row or failed(job, _death(worker.process.exitcode))
                elif crew.limit is not None and time.monotonic() - worker.since > crew.limit:
                    row, alive = given_up(job, crew.limit), False
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
    """The shelf as bytes for this study's own workers. (Files from elsewhere are never unpickled.)"""
    return pickle.dumps(shelf.to("cpu"))


def _start(content: bytes, device: str) -> _Worker:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=serve, args=(theirs, content, device), daemon=True)
    with without_ctrl_c():
        process.start()
    theirs.close()
    return _Worker(process, ours)


def _wait_until_ready(worker: _Worker) -> None:
    try:
        worker.pipe.recv()
    except (EOFError, ConnectionError):
        worker.process.join(5)
        raise RuntimeError(f"a worker process could not start (exit code {worker.process.exitcode}); see its message above.") from None


def _give(worker: _Worker, job: Task) -> None:
    try:
        worker.pipe.send(job)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise _not_sent(job.id, error) from None
    except OSError:
        pass  # it has died; the broken pipe is found when its row is read
    worker.job, worker.since = job, time.monotonic()


def _not_sent(id: str, error: Exception) -> InputError:
    return InputError(
        f"network {id!r} cannot be sent to a worker process ({str(error)[:100]}); put its function at the top of an importable"
        " file, or run in this process with workers = 0."
    )


def _death(code: int | None) -> str:
    """The reason for a row whose worker died, from the exit code of its process."""
    if code is None or code >= 0:
        return f"its worker process died (exit code {code})"
    name = signal.Signals(-code).name if -code in set(signal.Signals) else str(-code)
    return f"its worker process died (signal {name}{': the system may be short of memory' if name == 'SIGKILL' else ''})"


def _row_of(worker: _Worker) -> Row | None:
    try:
        answer: Row | str = worker.pipe.recv()
        assert worker.job is not None
        return failed(worker.job, answer) if isinstance(answer, str) else answer
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
    """Main function of a worker process: receive a job, send its row, until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole group; the parent decides
    end_with_parent()
    first_to_be_killed()
    torch.set_num_threads(1)
    keep_freed_memory()
    shelf = pickle.loads(content).to(device)
    warm(shelf)
    try:
        pipe.send("ready")
        while True:
            pipe.send(_next_row(pipe, shelf))
    except (EOFError, OSError):
        return


def _next_row(pipe: Connection, shelf: Shelf) -> Row | str:
    """The row of the next job, or the reason why the job could not be read."""
    content = pipe.recv_bytes()
    try:
        job: Task = pickle.loads(content)
    except Exception as error:  # the file of the network's function cannot be imported here
        return reason_of(error)
    return job.row(shelf)
