"""A sweep: the cells of a grid (grid.py), each a `distill run` of its own in a process of its own, all cores at work.

As many processes run at a time as ``--jobs`` says; each has its own share of the cores, and as many threads. A cell that is done is
skipped, a cell that fails is named at the end and does not stop the others. A cell ends with the process that started it, however that
one ends.
"""

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from distill import processes, stopping
from distill.errors import InputError
from distill.records import read_json
from scenarios.catalogue import study
from scenarios.engine.progress import LINE_SECONDS, time_left
from scenarios.engine.record import run_name
from scenarios.engine.scenario import override, read_scenario
from scenarios.sweep.grid import Cell, cells

COMMAND = (sys.executable, "-m", "scenarios.cell")
STOP_SECONDS = 5.0  # a cell ends itself within two (ctrl_c.py); what does not has stopped answering


def sweep(
    scenario: str,
    combinations: list[tuple[list[str], list[str]]],
    seeds: list[int],
    *,
    out: Path,
    device: str = "cpu",
    data_root: Path | None = None,
    jobs: int | None = None,
    resume: bool = False,
    told: Callable[[str], None],
) -> tuple[list[Path], dict[str, tuple[int, str]]]:
    """Run every combination with every seed that is not done; (folders that are done now, what failed).

    Of what failed: its exit code (2 for wrong input, 1 for a fault of ours) and its last words. Raises `InputError` when the settings of
    all are wrong.
    """
    name, tables = read_scenario(scenario)
    source = scenario if scenario.endswith(".toml") else f"{name}.toml"

    def folder_of(settings: list[str], seed: int) -> Path:
        return out / run_name(name, study(name, override(tables, settings), source).hash, seed)

    good, wrong = cells(combinations, seeds, folder_of)
    if not good:
        raise next(iter(wrong.values()))
    failed = {label: (2, str(error)) for label, error in wrong.items()}
    todo = [cell for cell in good if not is_done(cell.folder)]
    done = len(good) - len(todo)
    for cell in todo if not resume else []:
        if cell.folder.exists() and any(cell.folder.iterdir()):
            failed[cell.label] = (2, f"{cell.folder} holds an unfinished run; add --resume to continue it, or delete the folder.")
    todo = [cell for cell in todo if cell.label not in failed]
    jobs = jobs_for(jobs, max(1, len(todo)), gpu=device != "cpu")
    share = max(1, len(processes.cores()) // jobs)
    counts = f"{len(good) + len(wrong)} runs: {done} done already, {len(failed)} that cannot be run, {len(todo)} to do"
    told(f"{counts}, {jobs} at a time with {share} core{'s' if share > 1 else ''} each")
    shared = ["run", scenario, "--out", str(out), "--device", device, "--quiet", *(["--resume"] if resume else [])]
    failed |= run_cells(todo, [*shared, *(["--data-root", str(data_root)] if data_root else [])], jobs, told)
    return [cell.folder for cell in good if is_done(cell.folder)], failed


def is_done(folder: Path) -> bool:
    record = folder / "record.json"
    found = read_json(record) if record.exists() else None
    return isinstance(found, dict) and found.get("status") == "done"


def jobs_for(wanted: int | None, count: int, *, gpu: bool) -> int:
    """How many runs at a time: as asked, else one a core as far as memory goes, and one on a GPU."""
    most = len(processes.cores())
    if wanted is not None:
        if not 1 <= wanted <= most:
            raise InputError(f"--jobs {wanted}: allowed: 1 to {most}, the cores that are here.")
        return min(wanted, count)
    return 1 if gpu else processes.at_once(count)


@dataclass
class _Worker:
    cell: Cell
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    share: int
    start: float


def run_cells(todo: list[Cell], shared: list[str], jobs: int, told: Callable[[str], None]) -> dict[str, tuple[int, str]]:
    """Run the cells, ``jobs`` at a time; (exit code, last words) of those that failed, by label.

    ``shared`` is a `distill run` command line without the cells' own part. Ctrl-C and SIGTERM stop all cells, wait until they have saved
    themselves (a second Ctrl-C does not wait), and raise `KeyboardInterrupt`.
    """
    here = processes.cores()
    threads = max(1, len(here) // max(1, jobs))
    waiting, free, busy = deque(todo), list(range(jobs)), list[_Worker]()
    failed: dict[str, tuple[int, str]] = {}
    finished, start = 0, time.monotonic()
    last = start
    with _sigterm_as_ctrl_c():
        try:
            while waiting or busy:
                while waiting and free:
                    busy.append(_start(waiting.popleft(), shared, here, threads, free.pop(0)))
                time.sleep(0.05)
                if (now := time.monotonic()) - last > LINE_SECONDS:
                    left = time_left(finished, len(todo), now - start)
                    running = ", ".join(worker.cell.label for worker in busy)
                    told(f"[{finished}/{len(todo)}] running: {running}{'; ' if left else ''}{left}")
                    last = now
                for worker in [worker for worker in busy if worker.process.poll() is not None]:
                    busy.remove(worker)
                    free.append(worker.share)
                    finished += 1
                    code, said = _end(worker)
                    if code:
                        failed[worker.cell.label] = (code, said)
                    words = f"{worker.cell.label}, {time.monotonic() - worker.start:.0f} s, {worker.cell.folder}"
                    told(f"[{finished}/{len(todo)}] {'failed' if code else 'done'}: {words}")
        finally:
            _stop(busy)
    return failed


def _start(cell: Cell, shared: list[str], here: list[int], threads: int, share: int) -> _Worker:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        given = environment.get(name, "")
        environment[name] = str(min(threads, int(given)) if given.isdigit() and int(given) > 0 else threads)
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the cell has ended)
    command = [*COMMAND, str(os.getpid()), *shared, *cell.arguments]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True)
    if hasattr(os, "sched_setaffinity"):  # rooms that start processes of their own count the cores they are given
        with contextlib.suppress(OSError):
            os.sched_setaffinity(process.pid, here[share * threads : (share + 1) * threads] or here)
    return _Worker(cell, process, errors, share, time.monotonic())


def _end(worker: _Worker) -> tuple[int, str]:
    """(exit code, last words) of a cell that has ended, and the end of whatever it has left behind."""
    _signal_group(worker, signal.SIGKILL)
    worker.errors.seek(0)
    said = worker.errors.read().decode(errors="replace").strip()
    worker.errors.close()
    code = worker.process.returncode
    if code < 0:
        return 1, f"ended by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return code, said if code == 1 else said.rpartition("\n")[2].removeprefix("error: ")


def _stop(busy: list[_Worker]) -> None:
    """End all cells: they are asked first; after `STOP_SECONDS`, or at another Ctrl-C, they are not asked any more."""
    try:
        for worker in busy:
            _signal_group(worker, signal.SIGINT)
        deadline = time.monotonic() + STOP_SECONDS
        while any(worker.process.poll() is None for worker in busy) and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        for worker in busy:
            _signal_group(worker, signal.SIGKILL)
            worker.process.wait()
            worker.errors.close()


def _signal_group(worker: _Worker, number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(worker.process.pid, number)


@contextlib.contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, stopping.at_once)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
