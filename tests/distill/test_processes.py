"""Worker processes: every job is done, what goes wrong is named, and nothing is left running."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from distill.errors import InputError
from distill.processes import WorkerFailed, at_once, side_by_side

ROOT = Path(__file__).parents[2]


def writer(folder: Path) -> Callable[[str], None]:
    def work(job: str) -> None:
        if job in ("wrong", "dies", "fails"):  # not before the long job runs, which must end with it
            while not (folder / "long").exists() or not (folder / "long").read_text():
                time.sleep(0.01)
        if job == "wrong":
            raise InputError("the job is wrong.")
        if job == "dies":
            os._exit(3)
        if job == "fails":
            raise ZeroDivisionError("by zero")
        (folder / job).write_text(str(os.getpid()))
        if job == "long":
            time.sleep(600)

    return work


def gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_every_job_is_done_once_by_the_workers(tmp_path: Path) -> None:
    jobs = [f"job{number}" for number in range(5)]
    found = dict(side_by_side(writer, (tmp_path,), jobs, 2))
    assert sorted(found) == jobs
    assert all(seconds >= 0 for seconds in found.values())
    pids = {int((tmp_path / job).read_text()) for job in jobs}
    assert 1 <= len(pids) <= 2
    assert os.getpid() not in pids
    assert all(gone(pid) for pid in pids)
    assert list(side_by_side(writer, (tmp_path,), [], 2)) == []


@pytest.mark.parametrize(
    ("job", "reason"),
    [
        ("wrong", "the job is wrong."),
        ("dies", "its process ended with exit code 3; see above"),
        ("fails", "its process ended with exit code 1"),
    ],
)
def test_a_job_that_goes_wrong_is_named_and_the_others_end(
    tmp_path: Path, job: str, reason: str, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(WorkerFailed) as failed:
        list(side_by_side(writer, (tmp_path,), ["first", "long", job] if job != "dies" else ["long", job], 2))
    assert failed.value.job == job
    assert failed.value.reason.startswith(reason)
    assert ("ZeroDivisionError: by zero" in capfd.readouterr().err) == (job == "fails")
    assert gone(int((tmp_path / "long").read_text()))


def test_a_caller_that_stops_early_leaves_no_worker(tmp_path: Path) -> None:
    running = side_by_side(writer, (tmp_path,), ["first", "long", "long"], 1)
    assert next(running)[0] == "first"
    running.close()
    assert gone(int((tmp_path / "first").read_text()))


def test_a_script_without_a_guard_runs_once(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "print('script')\n"
        "from pathlib import Path\n"
        "from distill.processes import side_by_side\n"
        "from tests.distill.test_processes import writer\n"
        f"print(sorted(job for job, _ in side_by_side(writer, (Path({str(tmp_path)!r}),), ['a', 'b'], 2)))\n"
    )
    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, timeout=120, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert (done.returncode, done.stdout) == (0, "script\n['a', 'b']\n"), done.stderr


def test_as_many_as_cores_and_memory_allow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.processes.cores", lambda: list(range(8)))
    monkeypatch.setattr("distill.processes.free_bytes", lambda: 1 << 50)
    assert [at_once(jobs) for jobs in (0, 1, 3, 20)] == [1, 1, 3, 8]
    assert [at_once(20, threads) for threads in (2, 3, 16)] == [4, 2, 1]
    monkeypatch.setattr("distill.processes.free_bytes", lambda: 5 << 30)
    assert at_once(20) == 2


def test_peak_memory_counts_workers_that_have_ended() -> None:
    """In a process of its own. Its peak begins with that of the process that started it, so the worker takes more than that."""
    program = (
        "import subprocess, sys\nfrom distill.records import peak_memory_bytes\nbefore = peak_memory_bytes()\nsize = before + (1 << 28)\n"
        "subprocess.run([sys.executable, '-c', f'x = bytearray({size})'], check=True)\nprint(before, size, peak_memory_bytes())"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    before, size, after = map(int, done.stdout.split())
    assert before < size <= after
