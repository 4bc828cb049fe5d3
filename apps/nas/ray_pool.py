"""The same rows from a running Ray pool of several machines (``ray start --head``); Ray is never started here.

Every machine of the pool needs this package installed. A worker takes one processor and, on GPUs, a quarter of a GPU. It is a Ray actor
that gets one job at a time once it has started, so neither its start nor waiting for a processor in a shared pool counts against a job's
time limit.
"""

import importlib.util
import logging
import os
import socket
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import torch

from apps.nas.training import Row, Shelf, Task, failed, given_up, warm
from distill.errors import InputError, clipped
from distill.memory import keep_freed_memory

GPU_SHARE = 0.25
Handle: TypeAlias = Any  # an actor, reference or module of Ray: Ray adds its methods at run time
KNOCK_SECONDS = 5.0
_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])  # HTTP/2's first bytes and an empty SETTINGS frame


def knock(address: str) -> None:
    """Check within seconds that a pool answers at ``address`` (Ray itself waits for minutes).

    Raises:
        InputError: Ray is not installed, the address is malformed, or no pool answers.
    """
    host, port = _host_and_port(address)
    if importlib.util.find_spec("ray") is None:
        raise InputError("a Ray pool needs Ray, which is not installed here: pip install ray.")
    try:
        with socket.create_connection((host, port), KNOCK_SECONDS) as line:
            if os.environ.get("RAY_USE_TLS", "0").lower() not in ("1", "true"):
                line.settimeout(KNOCK_SECONDS)
                line.sendall(_HELLO)
                answer = line.recv(9)
                if len(answer) < 4 or answer[3] != 4:  # a server of HTTP/2, as Ray's is, answers with its own SETTINGS frame
                    raise InputError(
                        f"what answers at {clipped(address)!r} is no Ray pool; give the address that 'ray start --head' printed"
                        " (port 6379 unless set), not that of the dashboard."
                    )
    except socket.gaierror as error:
        raise InputError(f"ray address {clipped(address)!r}: the host {clipped(host)!r} is not known ({error.strerror}).") from None
    except OSError as error:
        raise _nobody(address, error) from None


def _host_and_port(address: str) -> tuple[str, int]:
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not address or address in ("auto", "local"):
        raise InputError(f"ray address {address!r}: give the pool's own address, for example 10.0.0.5:6379.")
    if not colon or not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 65536:
        raise InputError(f"ray address {clipped(address)!r}: is no host:port; give both, for example 10.0.0.5:6379.")
    return host.strip("[]"), int(port)


def ray_rows(jobs: Sequence[Task], shelf: Shelf, address: str, device: str, limit: float | None) -> Iterator[Row]:
    """Yield a row for each job as they finish.

    Args:
        jobs: the work.
        shelf: data and sets, sent to the pool once.
        address: of the pool, host:port.
        device: the device of the pool's machines that networks are trained on.
        limit: wall seconds for one job, or None.

    Raises:
        InputError: Ray is missing or no pool answers at ``address``.
    """
    ray = _connected(address)
    try:
        yield from _Team(ray, shelf, device, limit).rows(jobs)
    finally:
        ray.shutdown()  # leaves the pool, which ends our workers; the pool continues to run


class _Team:
    """The workers in the pool: ``starting`` by the reference of their readiness, ``busy`` by the reference of the row they work on."""

    def __init__(self, ray: Handle, shelf: Shelf, device: str, limit: float | None) -> None:
        self.ray, self.device, self.limit = ray, device, limit
        share, owned = (GPU_SHARE, "GPU") if device.startswith("cuda") else (0.0, "CPU")
        self.width = max(1, int(ray.cluster_resources().get(owned, 1) / (share or 1)))
        self.kind = ray.remote(num_cpus=1, num_gpus=share, max_restarts=0, max_task_retries=0)(_Worker)
        self.shelf = ray.put(shelf.to("cpu"))
        self.starting: dict[Handle, Handle] = {}
        self.idle: list[Handle] = []
        self.busy: dict[Handle, tuple[Handle, Task, float]] = {}

    def rows(self, jobs: Sequence[Task]) -> Iterator[Row]:
        waiting = deque(jobs)
        while waiting or self.busy:
            while waiting and self.idle:
                worker, job = self.idle.pop(), waiting.popleft()
                self.busy[worker.row.remote(job)] = (worker, job, time.monotonic())
            for _ in range(min(self.width - len(self.busy), len(waiting)) - len(self.starting)):
                worker = self.kind.remote(self.shelf, self.device)
                self.starting[worker.ready.remote()] = worker
            for done in self._done([*self.starting, *self.busy], 1.0):
                if done in self.starting:
                    self._came_up(done)
                else:
                    yield self._finished(done)
            yield from self._given_up()

    def _done(self, references: list[Handle], seconds: float) -> list[Handle]:
        ready: list[Handle] = self.ray.wait(references, num_returns=1, timeout=seconds)[0]
        return ready

    def _came_up(self, reference: Handle) -> None:
        worker = self.starting.pop(reference)
        try:
            self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            text = clipped(" ".join(str(error).split()[-20:]), 200)
            raise InputError(f"a worker of the Ray pool cannot start; is this package installed on its machines? ({text})") from None
        self.idle.append(worker)

    def _finished(self, reference: Handle) -> Row:
        worker, job, _ = self.busy.pop(reference)
        try:
            row: Row = self.ray.get(reference)
        except self.ray.exceptions.RayError as error:
            self.ray.kill(worker)  # an error in the worker itself; one that died is not harmed
            return failed(job, f"its Ray worker failed ({type(error).__name__})")
        self.idle.append(worker)
        return row

    def _given_up(self) -> Iterator[Row]:
        """Jobs past the limit. Each is checked once more: it may have finished while another's row was being written."""
        for reference, (worker, job, since) in list(self.busy.items()):
            if self.limit is not None and time.monotonic() - since > self.limit and not self._done([reference], 0):
                del self.busy[reference]
                self.ray.kill(worker)
                yield given_up(job, self.limit)


class _Worker:
    """The actor that runs in the pool: it holds the shelf and works on one job at a time."""

    def __init__(self, shelf: Shelf, device: str) -> None:
        torch.set_num_threads(1)
        keep_freed_memory()
        self.shelf = shelf.to(device)
        warm(self.shelf)

    def ready(self) -> None:
        """Returns when the worker is up."""

    def row(self, job: Task) -> Row:
        return job.row(self.shelf)


def _connected(address: str) -> Handle:
    knock(address)
    import ray

    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)  # advice about settings that are not used
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        raise _nobody(address, error) from None
    return ray


def _nobody(address: str, error: Exception) -> InputError:
    text = clipped((str(error).splitlines() or [""])[0], 120)
    return InputError(f"no Ray pool answers at {clipped(address)!r} ({text}); start one with: ray start --head.")
