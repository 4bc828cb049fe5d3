"""The same rows from a Ray pool on several machines, which somebody else has started (``ray start --head``); Ray is never started here.

Every machine of the pool needs this package installed. One processor (and, on GPUs, a quarter of a GPU) a network.
"""

import socket
import time
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

import torch

from apps.nas.training import Job, Shelf, failed, measure
from distill.errors import InputError

GPU_SHARE = 0.25


def ray_rows(jobs: Sequence[Job], shelf: Shelf, address: str, device: str, limit: float | None) -> Iterator[dict[str, Any]]:
    """A row for each job as they finish. `InputError` when Ray is missing or nothing answers at ``address``."""
    ray = _connected(address)
    try:
        share = GPU_SHARE if device.startswith("cuda") else 0
        remote = ray.remote(num_cpus=1, num_gpus=share, max_retries=0)(_measure_there)
        there = ray.put(shelf.to("cpu"))
        waiting, running = deque(jobs), {}
        width = max(1, int(ray.cluster_resources().get("GPU", 0) / share if share else ray.cluster_resources().get("CPU", 1)))
        while waiting or running:
            while waiting and len(running) < width:
                job = waiting.popleft()
                running[remote.remote(job, there, device)] = (job, time.monotonic())
            for done in ray.wait(list(running), num_returns=1, timeout=1.0)[0]:
                job, _ = running.pop(done)
                yield _row(ray, done, job)
            for late in [ref for ref, (_, since) in running.items() if limit is not None and time.monotonic() - since > limit]:
                ray.cancel(late, force=True)
                yield failed(running.pop(late)[0], f"took longer than {limit:g} s")
    finally:
        ray.shutdown()  # leaves the pool; the pool itself goes on


def _connected(address: str) -> Any:
    try:
        import ray
    except ImportError:
        raise InputError('a Ray pool needs Ray: pip install "distill-apps[ray]", or pip install ray.') from None
    if not address or address in ("auto", "local"):
        raise InputError(f"ray address {address!r}: give the pool's own address, for example 10.0.0.5:6379.")
    host, _, port = address.removeprefix("ray://").rpartition(":")
    try:
        # Ray waits minutes for an address where nobody listens.
        socket.create_connection((host.strip("[]"), int(port)), 5).close()
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Tip: In future versions of Ray", FutureWarning)  # advice about settings that are not used
            ray.init(address=address, log_to_driver=False, logging_level="error", configure_logging=False)
    except (OSError, RuntimeError, ValueError) as error:
        text = (str(error).splitlines() or [""])[0]
        raise InputError(f"no Ray pool answers at {address[:80]!r} ({text[:120]}); start one with: ray start --head.") from None
    return ray


def _measure_there(job: Job, shelf: Shelf, device: str) -> dict[str, Any]:
    torch.set_num_threads(1)
    return measure(job, shelf.to(device))


def _row(ray: Any, done: Any, job: Job) -> dict[str, Any]:
    try:
        row: dict[str, Any] = ray.get(done)
        return row
    except ray.exceptions.RayError as error:
        return failed(job, f"its Ray worker failed ({type(error).__name__})")
