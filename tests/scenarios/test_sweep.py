"""Grids of runs: the parser of alternatives, processes that share the cores, cells that fail, stop and go on, and the table of seeds."""

import csv
import io
import json
import os
import shlex
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from distill import processes
from distill.errors import InputError
from scenarios.catalogue import KINDS
from scenarios.engine.scenario import override, plain_value
from scenarios.reporting.runs import by_seed, find_runs, read_run, summary
from scenarios.reporting.text import as_csv, as_markdown, as_text
from scenarios.sweep import sweep
from scenarios.sweep.grid import MAX_CELLS, Cell, alternatives, cells, combinations, seeds
from tests.scenarios.test_cli import call, refused

SCENARIO = """
kind = "condense"
[data]
name = "digits"
classes = [0, 1]
[method]
name = "dm"
iterations = {iterations}
batch_real = 8
network = "ConvNetD1W8"
[evaluation]
networks = ["ConvNetD1W8"]
seeds = 2
baselines = ["random"]
[evaluation.recipe]
max_steps = 3
"""

# The parser of alternatives

numbers = st.integers(-1000, 1000) | st.floats(-10, 10).map(lambda x: round(x, 3)) | st.booleans()
texts = st.text(st.characters(codec="ascii", exclude_categories=["Cc"]), max_size=8)
values = st.recursive(numbers | texts, lambda inner: st.lists(inner, max_size=3), max_leaves=6)


@given(st.lists(values, min_size=1, max_size=5))
def test_values_between_commas_come_apart_as_they_were_put_together(wanted: list[Any]) -> None:
    written = [json.dumps(value) for value in wanted]  # JSON of these is TOML, too
    if len(set(written)) < len(written):
        with pytest.raises(InputError, match="there twice"):
            alternatives(",".join(written))
    else:
        found = alternatives(" , ".join(written)) if len(written) > 1 else alternatives(written[0])
        assert found == written
        assert [plain_value(text) for text in found] == wanted


@given(st.text(st.sampled_from("ab1,[]{}\"'\\= "), max_size=14))
def test_any_value_gives_alternatives_or_one_line(value: str) -> None:
    try:
        found = alternatives(value)
    except InputError:
        return
    assert "".join(",".join(found).split()) == "".join(value.split())
    assert all(alternatives(one) == [one] for one in found), "an alternative has no alternatives of its own"


@pytest.mark.parametrize(
    ("value", "found"),
    [
        ("1,10,50", ["1", "10", "50"]),
        ("[1,10]", ["[1,10]"]),
        ("[1,10],5", ["[1,10]", "5"]),
        ('"a,b",c', ['"a,b"', "c"]),
        ('"a\\",b",c', ['"a\\",b"', "c"]),
        ("'a\\',b", ["'a\\'", "b"]),
        ("{lr=1,x=[2,3]}, none", ["{lr=1,x=[2,3]}", "none"]),
        ("it's", ["it's"]),
        ("don't,do", ["don't", "do"]),
        ("", [""]),
    ],
)
def test_alternatives(value: str, found: list[str]) -> None:
    assert alternatives(value) == found


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("1,,2", "an alternative is empty"),
        ("1,", "an alternative is empty"),
        ("1, 1", "there twice"),
        ("[1,2", "']' is missing|\\] is missing"),
        ('"a,b', '" is missing'),
    ],
)
def test_wrong_alternatives_are_one_line(value: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        alternatives(value)


@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), min_size=1, max_size=4))
def test_seeds_are_ranges_with_both_ends(ranges: list[tuple[int, int]]) -> None:
    wanted = [number for first, more in ranges for number in range(first, first + more + 1)]
    text = ",".join(str(first) if not more else f"{first}..{first + more}" for first, more in ranges)
    if len(set(wanted)) < len(wanted):
        with pytest.raises(InputError, match="there twice"):
            seeds(text)
    else:
        assert seeds(text) == wanted


@pytest.mark.parametrize("text", ["", "a", "-1", "3..1", "1..", "..2", "1...3", "0..99999999999999999999", "٣", "1,,2", f"0..{MAX_CELLS}"])
def test_wrong_seeds_are_one_line(text: str) -> None:
    with pytest.raises(InputError, match=r"--seeds|the grid has"):
        seeds(text)


def test_combinations_are_all_of_them_and_say_what_varies() -> None:
    found = combinations(["a.b=1,2", "c=[1,2]", "d=x,y"])
    assert [settings for settings, _ in found] == [[f"a.b={a}", "c=[1,2]", f"d={d}"] for a in (1, 2) for d in "xy"]
    assert found[1][1] == ["a.b=1", "d=y"]
    assert [override({}, settings)["a"]["b"] for settings, _ in found] == [1, 1, 2, 2]
    assert combinations([]) == [([], [])]
    with pytest.raises(InputError, match=f"the grid has {101**2} runs; allowed: at most {MAX_CELLS}"):
        combinations([f"{key}={','.join(map(str, range(101)))}" for key in "ab"])


def test_two_cells_of_one_folder_are_refused_and_wrong_ones_named() -> None:
    def folder_of(settings: list[str], seed: int) -> Path:
        if settings == ["x=bad"]:
            raise InputError("x is bad")
        return Path(f"{settings[0].strip('[]')}-{seed}")

    good, wrong = cells(combinations(["x=1,bad"]), [0, 1], folder_of)
    assert [cell.label for cell in good] == ["x=1 seed 0", "x=1 seed 1"]
    assert good[0].arguments == ("--set", "x=1", "--seed", "0")
    assert list(wrong) == ["x=bad seed 0", "x=bad seed 1"]
    with pytest.raises(InputError, match=r"'x=1 seed 0' and 'x=1\] seed 0' are the same run"):
        cells([(["x=1"], ["x=1"]), (["x=1]"], ["x=1]"])], [0], folder_of)


# Processes


def fake(monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Cells that run a line of Python instead of a study; sys.argv[2:] are the cell's arguments."""
    monkeypatch.setattr(sweep, "COMMAND", (sys.executable, "-c", script))


def some(count: int) -> list[Cell]:
    return [Cell(f"cell {number}", (str(number),), Path("nowhere")) for number in range(count)]


def test_cells_have_their_own_cores_and_as_many_threads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    here = processes.cores()
    fake(
        monkeypatch,
        "import json, os, sys, time; start = time.time(); time.sleep(0.3);"
        "found = [start, time.time(), sorted(os.sched_getaffinity(0)), os.environ['OMP_NUM_THREADS']];"
        f"json.dump(found, open(r'{tmp_path}/' + sys.argv[2], 'w'))",
    )
    monkeypatch.setenv("OMP_NUM_THREADS", "64")
    jobs = min(2, len(here))
    told: list[str] = []
    assert sweep.run_cells(some(5), [], jobs, told.append) == {}
    assert [line.partition(" ")[0] for line in told] == [f"[{number}/5]" for number in range(1, 6)]
    found = [json.loads((tmp_path / str(number)).read_text()) for number in range(5)]
    for start, end, mine, threads in found:
        assert len(mine) == len(here) // jobs == int(threads)
        assert sum(other[0] <= start < other[1] for other in found) <= jobs
        beside = [other for other in found if other[0] < end and start < other[1] and other[:2] != [start, end]]
        assert all(not set(mine) & set(other[2]) for other in beside), "two cells on one core"


def test_a_failing_cell_is_named_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    fake(
        monkeypatch,
        "import os, sys; n = int(sys.argv[2]); print('words\\nerror: last line', file=sys.stderr);"
        "os.kill(os.getpid(), 9) if n == 3 else sys.exit(n)",
    )
    told: list[str] = []
    assert sweep.run_cells(some(5), [], 1, told.append) == {
        "cell 1": (1, "words\nerror: last line"),
        "cell 2": (2, "last line"),
        "cell 3": (1, "ended by signal 9 (out of memory?)"),
        "cell 4": (4, "last line"),
    }
    assert [("failed" in line) for line in told] == [False, True, True, True, True]


def test_what_a_cell_leaves_behind_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(
        monkeypatch,
        f"import subprocess; p = subprocess.Popen(['sleep', '600']); open(r'{tmp_path}/pid', 'w').write(str(p.pid))",
    )
    assert sweep.run_cells(some(1), [], 1, lambda text: None) == {}
    assert gone(int((tmp_path / "pid").read_text()))


def test_a_cell_that_does_not_listen_is_ended_at_last(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake(
        monkeypatch,
        f"import os, signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); open(r'{tmp_path}/pid', 'w').write(str(os.getpid()));"
        "time.sleep(600)",
    )
    monkeypatch.setattr(sweep, "STOP_SECONDS", 0.2)
    real = time.sleep

    def impatient(seconds: float) -> None:
        real(seconds)
        if (tmp_path / "pid").exists() and (tmp_path / "pid").read_text() and not stopped:
            stopped.append(1)
            raise KeyboardInterrupt

    stopped: list[int] = []
    monkeypatch.setattr(sweep.time, "sleep", impatient)
    with pytest.raises(KeyboardInterrupt):
        sweep.run_cells(some(1), [], 1, lambda text: None)
    assert gone(int((tmp_path / "pid").read_text()))


def gone(pid: int) -> bool:
    """Whether the process ends within some seconds (a zombie of somebody else's counts as ended)."""
    for _ in range(200):
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_jobs_follow_the_cores_and_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "cores", lambda: list(range(8)))
    monkeypatch.setattr(processes, "free_bytes", lambda: 5 << 30)
    assert sweep.jobs_for(None, 20, gpu=False) == 2
    monkeypatch.setattr(processes, "free_bytes", lambda: 0)
    assert sweep.jobs_for(None, 20, gpu=False) == 1
    monkeypatch.setattr(processes, "free_bytes", lambda: 1 << 50)
    assert [sweep.jobs_for(None, count, gpu=False) for count in (1, 3, 20)] == [1, 3, 8]
    assert sweep.jobs_for(None, 20, gpu=True) == 1
    assert sweep.jobs_for(6, 20, gpu=True) == 6
    for wanted in (0, 9):
        with pytest.raises(InputError, match=f"--jobs {wanted}: allowed: 1 to 8"):
            sweep.jobs_for(wanted, 20, gpu=False)


# The command, on digits


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sweep") / "quick.toml"
    path.write_text(SCENARIO.format(iterations=2))
    return path


@pytest.fixture(scope="module")
def swept(study: Path) -> tuple[Path, int, str, str]:
    """(folder of the runs, exit code, output, errors) of a grid with a wrong alternative."""
    out = study.parent / "runs"
    return out, *call("run", study, "--seeds", "0..1", "--set", "method.ipc=1,0", "--out", out, "--device", "cpu")


def test_a_grid_runs_what_can_be_run_and_names_the_rest(swept: tuple[Path, int, str, str]) -> None:
    out, code, printed, errors = swept
    assert code == 2
    assert sorted(path.name[-3:] for path in out.iterdir()) == ["-s0", "-s1"]
    assert all(json.loads((path / "record.json").read_text())["status"] == "done" for path in out.iterdir())
    assert "4 runs: 0 done already, 2 that cannot be run, 2 to do, " in errors
    failed = [line for line in errors.splitlines() if line.startswith("failed: ")]
    assert [line.partition(": ")[2].partition(":")[0] for line in failed] == ["method.ipc=0 seed 0", "method.ipc=0 seed 1"]
    assert all("key 'ipc' is 0; allowed: a whole number from 1" in line for line in failed)
    assert printed.splitlines()[0].split()[:3] == ["run", "figure", "seeds"]


def test_what_is_done_is_skipped(swept: tuple[Path, int, str, str], study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweep, "_start", lambda *_: pytest.fail("must not run"))
    code, printed, errors = call("run", study, "--seeds", "0..1", "--out", swept[0], "--device", "cpu")
    assert code == 0
    assert "2 runs: 2 done already, 0 that cannot be run, 0 to do" in errors
    assert printed == swept[2]


def test_an_unfinished_cell_needs_resume(swept: tuple[Path, int, str, str], study: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = sorted(swept[0].iterdir())[0]
    whole = (first / "record.json").read_text()
    (first / "record.json").write_text(whole.replace('"done"', '"interrupted"'))
    started: list[Cell] = []
    monkeypatch.setattr(sweep, "run_cells", lambda todo, shared, jobs, told: started.extend(todo) or {})
    arguments = ["run", study, "--seeds", "0..1", "--out", swept[0], "--device", "cpu", "--quiet"]
    code, _, errors = call(*arguments)
    assert code == 2
    assert errors == f"failed: seed 0: {first} holds an unfinished run; add --resume to continue it, or delete the folder.\n"
    assert call(*arguments, "--resume")[0] == 0
    assert [cell.folder for cell in started] == [first]
    (first / "record.json").write_text(whole)


def test_the_table_is_the_mean_over_seeds(swept: tuple[Path, int, str, str]) -> None:
    code, printed, errors = call("table", swept[0], "--format", "csv")
    assert (code, errors) == (0, "")
    rows = {row["figure"]: row for row in csv.DictReader(io.StringIO(printed))}
    records = [json.loads((path / "record.json").read_text())["results"] for path in sorted(swept[0].iterdir())]
    for name in ("dm", "random"):
        values = [record["ipc1"]["accuracy"][name]["mean"] for record in records]
        half = scipy.stats.t.interval(0.95, len(values) - 1)[1] * statistics.stdev(values) / len(values) ** 0.5
        row = rows[f"ipc1.accuracy.{name}"]
        assert (row["run"], row["seeds"], row["interval over"]) == ("quick", "2", "seeds")
        wanted = [statistics.fmean(values), statistics.fmean(values) - half, statistics.fmean(values) + half]
        assert [float(row[key]) for key in ("mean", "low", "high")] == pytest.approx(wanted, rel=1e-4)
    text = call("table", *swept[0].iterdir())[1]
    assert text == swept[2], "what the grid printed at its end"
    assert call("table", swept[0], "--format", "markdown")[1].splitlines()[1] == "|" + " --- |" * 6
    assert len(call("table", swept[0], "--figures", "*.dm")[1].splitlines()) == 2


def test_wrong_tables_and_grids_are_one_line(swept: tuple[Path, int, str, str], study: Path, tmp_path: Path) -> None:
    out = swept[0]
    assert "format 'html' is not known" in refused("table", out, "--format", "html")
    assert "holds no run" in refused("table", tmp_path)
    assert "no figure is named 'x'; there are: ipc1.accuracy.dm, " in refused("table", out, "--figures", "x")
    assert "--seed and --seeds are both given" in refused("run", study, "--seed", 1, "--seeds", "1..2")
    assert "--seeds 'x'" in refused("run", study, "--seeds", "x")
    assert "key 'ipc' is 0" in refused("run", study, "--set", "method.ipc=0,-1", "--out", tmp_path)
    assert "--jobs 0: allowed: 1 to " in refused("run", study, "--seeds", "7,8", "--jobs", 0, "--out", tmp_path)
    one = next(out.iterdir())
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("record.json", "config.json"):
        (copy / name).write_text((one / name).read_text())
    assert "are the same study with the same seed" in refused("table", one, copy)
    assert list(tmp_path.iterdir()) == [copy]


def test_interrupted_with_ctrl_c_saved_and_no_process_left(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Ctrl-C ends all cells with their state saved; and when the parent is killed, its cells stop by themselves."""
    scenario = tmp_path / "long.toml"
    scenario.write_text(SCENARIO.format(iterations=1_000_000))
    out = tmp_path / "runs"

    def started(jobs: int, *more: str) -> tuple[subprocess.Popen[str], list[str]]:
        """The command, as soon as all its first cells are at work."""
        arguments = ["run", str(scenario), "--seeds", "0..1", "--jobs", str(jobs), "--out", str(out), "--device", "cpu", *more]
        command = [sys.executable, "-m", "scenarios.cli", *arguments]
        parent = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        request.addfinalizer(parent.wait)
        request.addfinalizer(parent.kill)
        deadline = time.monotonic() + 120
        while statuses(out).count("running") < jobs or len(list(out.glob("*/metrics.jsonl"))) < jobs:
            assert parent.poll() is None, parent.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        return parent, arguments

    jobs = min(2, len(processes.cores()))
    parent, arguments = started(jobs)
    assert len(with_words(str(scenario))) == 1 + jobs
    parent.send_signal(signal.SIGINT)
    _, errors = parent.communicate(timeout=120)
    assert parent.returncode == 130
    line = errors.strip().splitlines()[-1]
    assert shlex.split(line.removeprefix("interrupted; continue with: ")) == ["distill", *arguments, "--resume"]
    assert with_words(str(scenario)) == []
    assert statuses(out) == ["interrupted"] * jobs

    parent, _ = started(1, "--resume")
    parent.kill()
    parent.communicate()
    deadline = time.monotonic() + 60
    while with_words(str(scenario)):
        assert time.monotonic() < deadline, "a cell has outlived the process that started it"
        time.sleep(0.1)
    assert statuses(out) == ["interrupted"] * jobs


def statuses(out: Path) -> list[str]:
    return [json.loads(path.read_text())["status"] for path in sorted(out.glob("*/record.json"))]


def with_words(words: str) -> list[int]:
    """The processes that have these words in their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            line = (path / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if words in line.split("\0") and int(path.name) != os.getpid():
            found.append(int(path.name))
    return found


# Tables of any record


def folder(place: Path, seed: int, results: dict[str, Any], kind: str = "federated", **config: Any) -> Path:
    place.mkdir(parents=True)
    record = {"schema": 1, "scenario": "x", "kind": kind, "seed": seed, "status": "done", "results": results}
    (place / "record.json").write_text(json.dumps(record))
    (place / "config.json").write_text(json.dumps({"scenario": "x", "title": "t", "seed": seed, "device": "cpu", "kind": kind, **config}))
    return place


def test_figures_of_every_shape_have_a_name(tmp_path: Path) -> None:
    interval = {"mean": 1.5, "low": 1, "high": 2, "values": [1, 2]}
    results = {
        "strategies": {"feddm": {"rounds": [{"round": 1, "accuracy": interval}, {"round": 2, "accuracy": interval}], "accuracy": interval}},
        "cells": [
            {"strategy": "gdumb", "method": "dm", "accuracy": interval},
            {"strategy": "gdumb", "method": "dm", "forgetting": interval},
        ],
        "proxies": {"dm": {"spearman": {"value": 0.5, "low": None, "high": None}, "kendall": {"value": None, "low": None, "high": None}}},
        "plain": {"mean": 3.0},
        "list": [[1, 2], 3],
    }
    run = read_run(folder(tmp_path / "a", 0, results), KINDS)
    assert list(run.figures) == [
        *("strategies.feddm.rounds.1.accuracy", "strategies.feddm.rounds.2.accuracy", "strategies.feddm.accuracy"),
        *("cells.gdumb dm.accuracy", "cells.gdumb dm #2.forgetting", "proxies.dm.spearman"),
    ]
    assert run.figures["proxies.dm.spearman"] == (0.5, None, None)
    assert list(run.main_figures) == ["strategies.feddm.accuracy"]
    assert summary([run])[1:] == [["x", "strategies.feddm.accuracy", "1", "1.5", "1", "2", "within the run"]]
    assert summary([run], ["proxies.*"])[1:] == [["x", "proxies.dm.spearman", "1", "0.5", "", "", ""]]


def test_runs_that_differ_in_more_than_the_seed_stay_apart(tmp_path: Path) -> None:
    for ipc in (1, 10):
        for seed in (0, 1):
            found = {"strategies": {"feddm": {"accuracy": {"mean": ipc + seed, "low": None, "high": None}}}}
            folder(tmp_path / f"{ipc}-{seed}", seed, found, upload={"ipc": ipc}, device=f"cuda:{seed}")
    runs = find_runs([tmp_path, tmp_path / "1-0"])
    assert len(runs) == 4
    assert [[run.record["seed"] for run in group] for group in by_seed(runs)] == [[0, 1], [0, 1]]
    rows = summary(runs)
    assert [row[0] for row in rows[1:]] == ["x upload.ipc=1", "x upload.ipc=10"]
    assert [row[3] for row in rows[1:]] == ["1.5", "10.5"]


def test_records_of_others_are_checked(tmp_path: Path) -> None:
    place = folder(tmp_path / "a", 0, {})
    for record in ({"schema": 1, "results": {}}, {"schema": 1, "results": {}, "scenario": "x", "seed": True}):
        (place / "record.json").write_text(json.dumps(record))
        with pytest.raises(InputError, match="is not a complete record"):
            read_run(place)
    (place / "record.json").write_text('{"schema": 1, "scenario": "x", "seed": 0, "results": ' + '{"a":' * 5000 + "1" + "}" * 5001)
    with pytest.raises(InputError, match=r"is not (valid JSON|a record of this program)"):
        read_run(place)


def test_three_forms_of_a_table() -> None:
    rows = [["a", "b"], ["x|y", "1"]]
    assert as_text(rows) == "a    b\nx|y  1"
    assert as_markdown(rows) == "| a | b |\n| --- | --- |\n| x\\|y | 1 |"
    assert as_csv(rows) == "a,b\nx|y,1\n"
    assert as_text([]) == as_markdown([]) == as_csv([]) == ""
