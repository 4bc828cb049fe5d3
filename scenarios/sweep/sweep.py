"""A sweep: the cells of a grid (grid.py), each a `distill run` in its own process; all cores are used.

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
    report: Callable[[str], None],
) -> tuple[list[Path], dict[str, tuple[int, str]]]:
    """Run every combination of settings with every seed that is not done.

    Args:
        scenario: a scenario's name or file.
        combinations: (all settings, those that vary) of each.
        seeds: one run each.
        out: the folder of the run folders.
        device: "cpu" or "cuda".
        data_root: where the data are; None for the default.
        jobs: runs at a time; None: as many as cores and memory allow.
        resume: continue unfinished runs.
        report: takes lines about the progress.

    Returns:
        The folders that are done now, and what failed by label: its exit code (2 for wrong input, 1 for a fault of ours) and last words.

    Raises:
        InputError: when the settings of all runs are wrong.
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
    report(f"{counts}, {jobs} at a time with {share} core{'s' if share > 1 else ''} each")
    shared = ["run", scenario, "--out", str(out), "--device", device, "--quiet", *(["--resume"] if resume else [])]
    failed |= run_cells(todo, [*shared, *(["--data-root", str(data_root)] if data_root else [])], jobs, report)
    return [cell.folder for cell in good if is_done(cell.folder)], failed


def is_done(folder: Path) -> bool:
    """Whether the folder holds a finished run."""
    record = folder / "record.json"
    content = read_json(record) if record.exists() else None
    return isinstance(content, dict) and content.get("status") == "done"


def jobs_for(asked: int | None, count: int, *, gpu: bool) -> int:
    """Number of runs at a time: as asked for, else one a core as far as memory allows, and one on a GPU. Raises `InputError`."""
    most = len(processes.cores())
    if asked is not None:
        if not 1 <= asked <= most:
            raise InputError(f"--jobs {asked}: allowed: 1 to {most}, the cores that are here.")
        return min(asked, count)
    return 1 if gpu else processes.at_once(count)


@dataclass
class _Worker:
    cell: Cell
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    share: int
    start: float


def run_cells(todo: list[Cell], shared: list[str], jobs: int, report: Callable[[str], None]) -> dict[str, tuple[int, str]]:
    """Run the cells, ``jobs`` at a time.

    Ctrl-C and SIGTERM stop all cells, wait until they have saved themselves (a second Ctrl-C does not wait), and raise
    `KeyboardInterrupt`.

    Args:
        todo: the cells.
        shared: a `distill run` command line without the cells' part.
        jobs: processes at a time, each with its share of the cores.
        report: takes lines about the progress.

    Returns:
        (exit code, last words) of the cells that failed, by label.
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
                    report(f"[{finished}/{len(todo)}] running: {running}{'; ' if left else ''}{left}")
                    last = now
                for worker in [worker for worker in busy if worker.process.poll() is not None]:
                    busy.remove(worker)
                    free.append(worker.share)
                    finished += 1
                    code, words_of_cell = _end(worker)
                    if code:
                        failed[worker.cell.label] = (code, words_of_cell)
                    words = f"{worker.cell.label}, {time.monotonic() - worker.start:.0f} s, {worker.cell.folder}"
                    report(f"[{finished}/{len(todo)}] {'failed' if code else 'done'}: {words}")
        finally:
            _stop(busy)
    return failed


def _start(cell: Cell, shared: list[str], here: list[int], threads: int, share: int) -> _Worker:
    environment = dict(os.environ)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        value = environment.get(name, "")
        environment[name] = str(min(threads, int(value)) if value.isdigit() and int(value) > 0 else threads)
    errors = tempfile.TemporaryFile()  # noqa: SIM115  (closed when the cell has ended)
    command = [*COMMAND, str(os.getpid()), *shared, *cell.arguments]
    process = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors, start_new_session=True)
    if hasattr(os, "sched_setaffinity"):  # studies that start processes count the cores they may use
        with contextlib.suppress(OSError):
            os.sched_setaffinity(process.pid, here[share * threads : (share + 1) * threads] or here)
    return _Worker(cell, process, errors, share, time.monotonic())


def _end(worker: _Worker) -> tuple[int, str]:
    """(exit code, last words) of a cell that has ended, and the end of whatever it has left behind."""
    _signal_group(worker, signal.SIGKILL)
    worker.errors.seek(0)
    output = worker.errors.read().decode(errors="replace").strip()
    worker.errors.close()
    code = worker.process.returncode
    if code < 0:
        return 1, f"ended by signal {-code}" + (" (out of memory?)" if code == -signal.SIGKILL else "")
    return code, output if code == 1 else output.rpartition("\n")[2].removeprefix("error: ")


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
