"""The command line: exit codes, one line for a mistake, and the run folder that scripts rely on."""

import contextlib
import dataclasses
import fcntl
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from PIL import Image

import distill.evaluation
import scenarios.condense.run
import scenarios.engine.folder
from distill.condensed import CondensedSet
from distill.data_sources import load
from distill.errors import Diverged, InputError
from distill.evaluation import Accuracy, fitted
from distill.figures import accuracy_bars
from distill.methods import METHODS
from scenarios import cli
from scenarios.catalogue import run_study, study
from scenarios.engine.scenario import shipped
from scenarios.engine.study import Options
from tests.distill.hostile_files import small_set

ROOT = Path(__file__).parents[2]
SMALL = ["--set", "iterations=2", "--set", "network=ConvNetD1W32", "--set", "batch_real=8"]
CONDENSE = ["condense", "--data", "digits", "--method", "dm", "--ipc", "1", *SMALL, "--device", "cpu"]
SCENARIO = """
kind = "condense"
title = "Tiny & quick"
[data]
name = "digits"
classes = [0, 1]
[method]
name = "dm"
ipc = [1, 2]
iterations = 2
batch_real = 8
network = "ConvNetD1W32"
[evaluation]
networks = ["ConvNetD1W32", "MLP"]
seeds = 2
baselines = ["random", "whole"]
[evaluation.recipe]
max_steps = 3
"""


def call(*arguments: object) -> tuple[int, str, str]:
    """(exit code, standard output, standard error) of the command line, in this process."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), pytest.raises(SystemExit) as stopped:
        cli.main([str(argument) for argument in arguments])
    assert isinstance(stopped.value.code, int)
    return stopped.value.code, out.getvalue(), err.getvalue()


def refused(*arguments: object) -> str:
    """The one line of an input error."""
    code, out, err = call(*arguments)
    assert (code, out) == (2, ""), err
    assert "Traceback" not in err
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert err.endswith("\n")
    return err


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p.relative_to(folder)): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a condense command."""
    out = tmp_path_factory.mktemp("runs here")
    code, _, err = call(*CONDENSE, "--out", out, "--seed", 3)
    assert code == 0, err
    (folder,) = out.iterdir()
    return folder


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """(run folder of a scenario file with evaluation, what the command printed)."""
    place = tmp_path_factory.mktemp("judged")
    (place / "tiny.toml").write_text(SCENARIO)
    code, out, err = call("run", place / "tiny.toml", "--out", place / "out", "--device", "cpu")
    assert code == 0, err
    (folder,) = (place / "out").iterdir()
    return folder, out


# Wrong input: exit 2 and one line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ["condens"],
            "command 'condens' is not known; did you mean 'condense'? Allowed: attack, audit, compare, condense, evaluate, export, ",
        ),
        (
            ["run", "quickstart", "--sed", "1"],
            "option '--sed' is not known; did you mean '--seed'? Allowed: --data-root, --device, --help, --jobs, ",
        ),
        (["run"], "Missing argument 'SCENARIO'."),
        (["run", "quickstart", "--set", "seed=1", "method.ipc=2"], "extra argument (method.ipc=2); each setting needs its own --set: "),
        (["run", "quikstart"], "scenario 'quikstart' is not known; did you mean 'quickstart'? Allowed: "),
        (
            ["run", "none/such.toml"],
            "scenario 'none/such.toml': there is no such file. Allowed: a .toml file, or a shipped scenario's name",
        ),
        (["run", "quickstart", "--seed", "-1"], "'--seed': -1 is not in the range x>=0."),
        (
            ["run", "quickstart", "--set", "evaluation.protocol=lapto"],
            "quickstart.toml: [evaluation]: key 'protocol': value 'lapto' is not known; did you",
        ),
        (
            ["run", "quickstart", "--set", "evaluation.baselines=['randm']"],
            "key 'baselines': value 'randm' is not known; did you mean 'random'? Allowed: ",
        ),
        (["run", "quickstart", "--set", "evaluation.recipe.lr=fast"], "key 'recipe.lr' is \"fast\"; allowed: a number above 0."),
        (["run", "quickstart", "--set", "kind=codense"], "kind 'codense' is not known; did you mean 'condense'? Allowed: "),
        (["condense"], "Missing option '--data'."),
        (["condense", "--data", "digitz"], "data 'digitz' is not known; did you mean 'digits'? Allowed: cifar10, "),
        (
            ["condense", "--data", "digits", "--method", "dmm"],
            "[method]: key 'name': method 'dmm' is not known; did you mean 'dm'? Allowed: ",
        ),
        (["condense", "--data", "digits", "--ipc", "0"], "'--ipc': 0 is not in the range x>=1."),
        (["condense", "--data", "digits", "--ipc", "ten"], "'--ipc': 'ten' is not a valid int"),
        (["condense", "--data", "digits", "--device", "gpu"], "device 'gpu' is not known; did you mean 'cpu'? Allowed: auto, cpu, cuda."),
        (
            ["condense", "--data", "digits", "--set", "iterations"],
            "--set 'iterations': allowed: key.path=value, for example method.ipc=10.",
        ),
        (["condense", "--data", "digits", "--set", "iteration=5"], "key 'iteration' is not known; did you mean 'iterations'? Allowed: "),
        (["condense", "--data", "digits", "--set", "iterations=0"], "key 'iterations' is 0; allowed: a whole number of at least 1."),
        (
            ["condense", "--data", "digits", "--set", "network=ConvNot"],
            "key 'network': network 'ConvNot' is not known; did you mean 'ConvNet'? Allowed: ",
        ),
        (["condense", "--data", "digits", "--set", "network=\udcff"], "use plain text"),
        (["condense", "--data", "digits", "--set", "lr_img=" + "9" * 5000], "key 'lr_img' is \"999"),
        (["condense", "--data", "digits", "--set", "network=a\x1b[2Jb"], "network 'a?[2Jb' is not known"),
        (["evaluate", "none.safetensors", "--data", "digits"], "none.safetensors: cannot be read (No such file or directory)."),
        (
            ["evaluate", "none.safetensors", "--data", "digits", "--network", "MPL"],
            "network 'MPL' is not known; did you mean 'MLP'? Allowed: ",
        ),
        (
            ["--verbose", "run", "quickstart"],
            "option '--verbose' is not known; did you mean '--version'? Allowed: --help, --install-completion,",
        ),
        (["run", "nosuch"], "; for all of them: distill list scenarios.\n"),
        (
            ["condense", "--data", "digits", "--method", "dm", "--set", "name=gm"],
            "--method dm and --set name=gm are both given; allowed: one",
        ),
        (["condense", "--data", "digits", "--ipc", "1", "--set", "ipc=5"], "--ipc 1 and --set ipc=5 are both given; allowed: one of them."),
        (
            ["condense", "--data", "digits", "--set", "iterations=" + "9" * 26],
            "key 'iterations' is a whole number too large; allowed: at most 9",
        ),
        (["condense", "--data", "digits", "--set", 'ipc="1"'], "key 'ipc' is \"1\"; allowed: a whole number from 1 to 100000"),
        (["run", "quickstart", "--set", "method.ipc="], "key 'ipc' is \"\"; allowed: a whole number from 1 to 100000"),
        (["evaluate", "none.safetensors", "--data", "digits", "--baseline", "none", "--baseline", "random"], "--baseline none goes alone"),
        (["condense", "--data", "digits", "--set", "network=os:system"], "your function os:system raised TypeError: "),
        (["show", "none.safetensors"], "none.safetensors: cannot be read (No such file or directory)."),
        (["report", "none"], "none/record.json: cannot be read (No such file or directory)."),
        (
            ["label", "none.safetensors", "--data", "digits", "--teacher", "MLP:1", "--protocol", "dsa"],
            "--protocol has no effect without --views; give --views N, or leave it out.",
        ),
        (
            ["label", "none.safetensors", "--data", "digits", "--teacher", "MLP:1", "--seed", "0", "--protocol", "dsa"],
            "--protocol, --seed have no effect without --views; give --views N, or leave them out.",
        ),
        (
            ["evaluate", "none.safetensors", "--data", "digits", "--scorer", "MLP:1"],
            "--scorer has no effect on --baseline random, whole; give a --baseline that networks choose (herding_features, ",
        ),
        (
            ["evaluate", "none.safetensors", "--data", "digits", "--baseline", "none", "--scorer", "MLP:1"],
            "--scorer has no effect without ",
        ),
        (["score", "none.safetensors", "--data", "digits", "--scorer", "MLP:1"], "--scorer has no effect on --baseline random, herding; "),
        (["evaluate", "none.safetensors", "--data", "digits", "--baseline", "el2n", "--scorer", "MLP:1"], "none.safetensors: cannot be "),
        (["evaluate", "none.safetensors", "--data", "digits", "--baseline", "el2m", "--scorer", "MLP:1"], "none.safetensors: cannot be "),
        (["audit", "--releases", "folder"], "--releases has no effect on the audit of the mechanism; name a set or a file of scores, or "),
        (["audit", "--claimed", "3", "--one-run"], "--claimed, --one-run have no effect on the audit of the mechanism; "),
        (["audit", "none.safetensors", "--claimed", "0"], "--claimed has no effect on the audit of a set; leave it out."),
        (["audit", "none.safetensors", "--epsilon", "1", "--delta", "1e-5"], "--epsilon, --delta have no effect on the audit of a set; "),
        (["audit", "none.csv", "--canaries", "300", "--seed", "0"], "--canaries, --seed have no effect on the audit of scores; "),
        (["attack", "none.csv", "--data", "digits", "--shadows", "2"], "--data, --shadows have no effect on scores; leave them out."),
        (
            ["attack", "none.safetensors", "--data", "digits", "--shadow", "MLP"],
            "--shadow has no effect on a condensed set, on which networks are trained; give --network and --networks, or leave it out.",
        ),
        (["attack", "mine:load", "--data", "digits", "--networks", "3"], "--networks has no effect on a trained model; give --shadow "),
        (["attack", "none.csv", "--out", __file__], "test_cli.py: is there already; give a new file (--out)."),
        (
            ["evaluate", "none.safetensors", "--data", "digits", "--baseline", "random", "--whole-epochs", "3"],
            "--whole-epochs has no effect without the baseline whole; give --baseline whole, or leave it out.",
        ),
        (["sweep-lr", "--data", "digits", "--values", "1,2", "--points", "3"], "--points has no effect with --values; leave it out."),
        (["sweep-lr", "--data", "digits", "--values", "1,2", "--from", "1"], "--from has no effect with --values; leave it out."),
        (["audit", "none.npz", "--releases", "folder"], "--releases has no effect on the audit of scores; leave it out."),
        (["list", "method"], "list 'method' is not known; did you mean 'methods'? Allowed: data, methods, networks, scenarios."),
    ],
    ids=lambda value: " ".join(value)[:40].encode("ascii", "replace").decode() if isinstance(value, list) else "",
)
def test_a_mistake_is_one_line_and_exit_code_2(arguments: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert words in refused(*arguments)
    assert list(tmp_path.iterdir()) == []  # and nothing is left behind


PATHS = [
    (name, parameter.opts[0])
    for name, command in typer.main.get_command(cli.app).commands.items()  # type: ignore[attr-defined]
    for parameter in command.params
    if parameter.type.name == "path" and parameter.opts[0].startswith("--")
]


@pytest.mark.parametrize(("command", "option"), PATHS)
def test_an_empty_path_is_not_the_current_folder(command: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rest = {"run": ["quickstart"], "condense": [], "sweep-lr": [], "list": ["data"]}.get(command, ["x.safetensors"])
    needed = {"export": ["--as", "npz"], "label": ["--data", "digits", "--teacher", "MLP"], "audit": []}
    more = needed.get(command, ["--data", "digits"] if command in ("condense", "evaluate", "score", "attack", "import", "sweep-lr") else [])
    for given in ([option, ""], [f"{option}="]):
        assert f"'{option}' is an empty path; give a path (the current folder is .)." in refused(command, *rest, *more, *given)
    assert list(tmp_path.iterdir()) == []


def test_every_path_is_among_those_that_may_not_be_empty() -> None:
    assert {("condense", "--out"), ("list", "--data-root"), ("audit", "--releases"), ("run", "--resume-from")} < set(PATHS)
    assert "'SET.safetensors' is an empty path" in refused("show", "")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_cuda_without_a_gpu_says_what_to_do(tmp_path: Path) -> None:
    assert "use --device cpu or auto" in refused("condense", "--data", "digits", "--device", "cuda", "--out", tmp_path)


def test_evaluate_names_unknown_protocols_baselines_and_data(finished: Path) -> None:
    tiny = finished / "condensed.safetensors"
    assert "protocol 'lap' is not known" in refused("evaluate", tiny, "--data", "digits", "--protocol", "lap")
    assert "baseline 'hole' is not known; did you mean 'whole'? Allowed: " in refused(
        "evaluate", tiny, "--data", "digits", "--baseline", "hole"
    )
    assert "data 'digit' is not known; did you mean 'digits'? Allowed: " in refused("evaluate", tiny, "--data", "digit")
    assert "'--seeds': 0 is not in the range x>=1." in refused("evaluate", tiny, "--data", "digits", "--seeds", 0)


def test_a_long_list_of_names_is_not_printed() -> None:
    line = refused("run", "nosuch")
    assert len(line) < 400
    assert "quickstart" in refused("run", "quickstrt").partition("the nearest are ")[2]


def test_the_version_and_the_completion_script(monkeypatch: pytest.MonkeyPatch) -> None:
    code, out, err = call("--version")
    assert (code, err) == (0, "")
    assert out.startswith(f"distill-apps {metadata.version('distill-apps')}, torch {torch.__version__.partition('+')[0]}")
    monkeypatch.setenv("_DISTILL_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "distill con")
    monkeypatch.setenv("COMP_CWORD", "1")
    assert call()[:2] == (0, "condense\n")


def test_no_command_shows_the_help() -> None:
    code, out, err = call()
    assert code == 2
    assert "condense" in out
    assert err == "error: no command was given (see: distill --help)\n"


def test_python_dash_m_gives_the_same(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "scenarios.cli", "list", "nothing"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr == "error: list 'nothing' is not known. Allowed: data, methods, networks, scenarios.\n"


# Our fault, and interruption


def test_a_fault_of_ours_is_exit_code_1_with_its_traceback(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def fault(*_: Any) -> None:
        raise RuntimeError("a planted fault")

    monkeypatch.setattr(scenarios.engine.folder, "run_study", fault)
    code, out, err = call(*CONDENSE, "--out", tmp_path)
    assert (code, out) == (1, "")
    assert "Traceback (most recent call last)" in err
    assert "RuntimeError: a planted fault" in err


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_an_interrupted_run_prints_the_command_that_goes_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: list[str]) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scenarios.engine.folder, "run_study", stop)
    given = [*CONDENSE, "--set", "augmentation=color_crop", "--out", str(tmp_path / 'it\'s a "place" $HOME'), *more]
    code, out, err = call(*given)
    assert (code, out) == (130, "")
    line = err.splitlines()[-1]
    assert line.startswith("interrupted; continue with: ")
    words = shlex.split(line.removeprefix("interrupted; continue with: "))
    assert words == ["distill", *given, *([] if more else ["--resume"])]


def test_other_commands_have_nothing_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(CondensedSet, "load", stop)
    assert call("show", "x.safetensors") == (130, "", "interrupted\n")


# The run folder


def test_the_run_folder_is_as_promised(finished: Path) -> None:
    settings = {"network": "ConvNetD1W32", "iterations": 2, "batch_real": 8, "name": "dm", "ipc": 1}
    made = study("condense", {"kind": "condense", "data": {"name": "digits"}, "method": settings}, "test")
    assert finished.name == f"condense-{made.hash}-s3"
    visible = {str(p.relative_to(finished)) for p in finished.rglob("*") if p.is_file() and not p.name.startswith(".")}
    assert visible == {
        "config.json",
        "metrics.jsonl",
        "record.json",
        "condensed.safetensors",
        "report.html",
        "figures/loss.png",
        "figures/images-ipc1.png",
    }
    assert not list(finished.rglob("*.part"))
    for path in finished.glob("figures/*.png"):
        with Image.open(path) as picture:
            assert min(picture.size) > 20
    tiny = CondensedSet.load(finished / "condensed.safetensors")
    assert (tiny.counts, tiny.provenance.seed, tiny.provenance.config["iterations"]) == ((1,) * 10, 3, 2)


def test_config_json_repeats_the_run(finished: Path, tmp_path: Path) -> None:
    config = json.loads((finished / "config.json").read_text())
    assert (config["scenario"], config["seed"], config["device"], config["kind"]) == ("condense", 3, "cpu", "condense")
    tables = {key: {k: v for k, v in config[key].items() if v is not None} for key in ("data", "method")}
    again = study(config["scenario"], {"kind": config["kind"], **tables}, "config.json")
    options = Options(tmp_path, seed=config["seed"], device=config["device"], quiet=True)
    folder, _ = run_study(again, options)
    assert folder.name == finished.name
    first, second = (CondensedSet.load(f / "condensed.safetensors") for f in (finished, folder))
    assert torch.equal(first.images, second.images)
    assert json.loads((folder / "config.json").read_text()) == config | {"title": config["scenario"]}


def test_metrics_are_flat_lines(finished: Path, judged: tuple[Path, str]) -> None:
    for folder in (finished, judged[0]):
        lines = (folder / "metrics.jsonl").read_text().splitlines()
        for line in lines:
            event = json.loads(line, parse_constant=pytest.fail)
            assert all(isinstance(value, str | int | float | None) for value in event.values())
            assert event["stage"] in ("distil", "evaluate")
    assert [json.loads(line)["step"] for line in (finished / "metrics.jsonl").read_text().splitlines()] == [1, 2]
    # 2 networks x 2 seeds x (2 IPCs x (condensed + random) + whole once)
    assert sum('"evaluate"' in line for line in (judged[0] / "metrics.jsonl").read_text().splitlines()) == 2 * 2 * 5


def test_the_record_has_its_schema(finished: Path, judged: tuple[Path, str]) -> None:
    for folder, kind, seed in ((finished, "condense", 3), (judged[0], "condense", 0)):
        record = json.loads((folder / "record.json").read_text(), parse_constant=pytest.fail)
        assert {"schema", "scenario", "kind", "status", "seed", "results", "seconds", "peak_memory_bytes", "environment"} <= set(record)
        assert (record["schema"], record["kind"], record["status"], record["seed"]) == (1, kind, "done", seed)
        assert record["seconds"] > 0
        assert record["peak_memory_bytes"] > 1 << 20
        assert {"python", "processor", "cores", "device", "packages"} <= set(record["environment"])
    results = json.loads((judged[0] / "record.json").read_text())["results"]
    for ipc in ("ipc1", "ipc2"):
        assert set(results[ipc]["accuracy"]) == {"dm", "random", "whole"}
        for network in ("ConvNetD1W32", "MLP"):
            for row in results[ipc]["cross_architecture"][network].values():
                assert len(row["values"]) == 2
                assert row["mean"] == pytest.approx(sum(row["values"]) / 2)
                assert 0 <= row["low"] <= row["mean"] <= row["high"] <= 100
    assert results["ipc1"]["accuracy"]["whole"] == results["ipc2"]["accuracy"]["whole"]
    assert set(results["networks"]) == {"ConvNetD1W32", "MLP"}


def test_the_report_is_one_page_that_loads_nothing(finished: Path, judged: tuple[Path, str]) -> None:
    for folder, pictures in ((finished, 2), (judged[0], 5)):
        page = (folder / "report.html").read_text()
        assert not re.search(r"https?:|src=['\"]?//|url\(|<script|<link|@import", page)
        assert re.findall(r"src='(.{22})", page) == ["data:image/png;base64,"] * pictures
    assert "<h1>Tiny &amp; quick</h1>" in (judged[0] / "report.html").read_text()


def test_what_run_prints_is_what_the_record_says(judged: tuple[Path, str]) -> None:
    folder, out = judged
    results = json.loads((folder / "record.json").read_text())["results"]
    table = out.splitlines()
    assert table[0].split() == ["set", "ipc", "1", "ConvNetD1W32", "ipc", "1", "MLP", "ipc", "2", "ConvNetD1W32", "ipc", "2", "MLP"]
    assert table[1].split()[:2] == ["dm", f"{results['ipc1']['accuracy']['dm']['mean']:.1f}"]
    assert f"{results['ipc2']['accuracy']['dm']['mean']:.1f}" in out
    assert out.rstrip().endswith(f"everything is in {folder}")


def test_a_finished_run_is_not_run_again(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scenarios.condense.run, "condense", lambda *_, **__: pytest.fail("must not run"))
    before = contents(finished)
    for more in ([], ["--resume"]):
        code, out, err = call(*CONDENSE, "--out", finished.parent, "--seed", 3, *more)
        assert code == 0
        assert "is done already" in " ".join(err.split())
        assert str(finished) in out
    assert call(*CONDENSE, "--out", finished.parent, "--seed", 3, "--quiet") == (0, "", "")
    assert contents(finished) == before


def test_an_unfinished_folder_needs_resume_and_then_gives_the_same_set(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    (folder / "record.json").unlink()
    (folder / "condensed.safetensors").unlink()
    before = contents(folder)
    arguments = [*CONDENSE, "--out", tmp_path, "--seed", 3]
    assert refused(*arguments) == f"error: {folder} holds an unfinished run; add --resume to continue it, or delete the folder.\n"
    assert contents(folder) == before
    code, _, err = call(*arguments, "--resume", "--quiet")
    assert (code, err) == (0, "")
    assert json.loads((folder / "record.json").read_text())["status"] == "done"
    again, first = (CondensedSet.load(f / "condensed.safetensors") for f in (folder, finished))
    assert torch.equal(again.images, first.images)


def test_a_killed_process_is_counted_until_its_last_file(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / finished.name
    shutil.copytree(finished, folder)
    record = json.loads((folder / "record.json").read_text())
    (folder / "record.json").write_text(json.dumps(record | {"status": "running", "seconds": 5.0}))
    last = (folder / "metrics.jsonl").stat().st_mtime
    for path in folder.rglob("*"):
        os.utime(path, (last - 50, last - 50))
    os.utime(folder / "record.json", (last - 1000, last - 1000))
    begun = time.monotonic()
    assert call(*CONDENSE, "--out", tmp_path, "--seed", 3, "--resume", "--quiet")[0] == 0
    seconds = json.loads((folder / "record.json").read_text())["seconds"] - 955.0
    assert 0 <= seconds <= time.monotonic() - begun


def test_a_second_process_is_refused_while_the_first_holds_the_folder(finished: Path, tmp_path: Path) -> None:
    folder = tmp_path / finished.name
    folder.mkdir()
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another process is running this study" in refused(*CONDENSE, "--out", tmp_path, "--seed", 3, "--resume")
    assert [p.name for p in folder.iterdir()] == [".lock"]


@pytest.mark.parametrize(("fault", "status", "code"), [(RuntimeError("planted"), "failed", 1), (KeyboardInterrupt(), "interrupted", 130)])
def test_a_stopped_study_says_so_in_its_record(
    fault: BaseException, status: str, code: int, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def stop(*_: Any, **__: Any) -> None:
        raise fault

    monkeypatch.setattr(scenarios.condense.run, "condense", stop)
    assert call(*CONDENSE, "--out", tmp_path)[0] == code
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "record.json").read_text())["status"] == status
    assert "unfinished run" in refused(*CONDENSE, "--out", tmp_path)


def test_another_seed_or_setting_has_a_folder_of_its_own(finished: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []

    def note(made: Any, options: Any) -> None:
        seen.append(f"{made.name}-{made.hash}-s{options.seed}")
        raise KeyboardInterrupt

    monkeypatch.setattr(scenarios.engine.folder, "load_data", note)
    for more in (["--seed", 3], ["--seed", 4], ["--seed", 3, "--set", "momentum=0.4"], ["--seed", 3, "--ipc", 2]):
        assert call(*CONDENSE, "--out", tmp_path, *more)[0] == 130
    assert seen[0] == finished.name
    assert len(set(seen)) == 4


# show, report, list, evaluate


def test_show_prints_the_facts_and_draws_the_set(finished: Path, tmp_path: Path) -> None:
    path = shutil.copy(finished / "condensed.safetensors", tmp_path / "tiny.safetensors")
    code, out, err = call("show", path)
    assert (code, err) == (0, "")
    tiny = CondensedSet.load(path)
    assert out.splitlines()[0] == f"10 images of 1 x 16 x 16 (1 a class), {tiny.nbytes} bytes"
    for words in ("data digits: 10 classes (0, 1, 2,", "method dm, seed 3,", "iterations=2", "privacy guarantee: none"):
        assert words in out
    with Image.open(tmp_path / "tiny.png") as picture:
        assert min(picture.size) > 20
    assert call("show", path, "--out", tmp_path / "other.png")[0] == 0
    assert (tmp_path / "other.png").read_bytes() == (tmp_path / "tiny.png").read_bytes()


def hostile(text: str) -> CondensedSet:
    """A set whose every name is ``text``."""
    made = small_set(0)
    origin = dataclasses.replace(made.provenance, method=text, config={text: text}, dp={text: text})
    return dataclasses.replace(made, spec=dataclasses.replace(made.spec, name=text, classes=(text, text, text)), provenance=origin)


@pytest.mark.parametrize("text", ["\x1b[2J\x1b]0;owned\x07", "a\nb\r\x08c", "\u202e\u2066\x9b31m", "$\\bad{$", "a$b$c", "数字", "\x00"])
def test_no_control_character_of_a_set_reaches_the_terminal(tmp_path: Path, text: str) -> None:
    hostile(text).save(tmp_path / "set.safetensors")
    code, out, err = call("show", tmp_path / "set.safetensors")
    assert (code, err) == (0, "")
    assert all(char.isprintable() for line in out.split("\n") for char in line)
    assert len(out.split("\n")) == 7
    with Image.open(tmp_path / "set.png") as picture:
        assert min(picture.size) > 20


@pytest.mark.parametrize("channels", [2, 4, 5])
def test_show_draws_sets_that_are_neither_grey_nor_coloured(tmp_path: Path, channels: int) -> None:
    small_set(0, channels=channels).save(tmp_path / "set.safetensors")
    assert call("show", tmp_path / "set.safetensors")[0] == 0


def test_a_title_is_no_formula() -> None:
    for title in ("$\\bad{$", "a\x1b[2J", "数字", "x" * 500):
        with Image.open(io.BytesIO(accuracy_bars({"dm": Accuracy((1.0, 2.0))}, title).encoded())) as picture:
            assert max(picture.size) < 3000


def test_errors_about_hostile_names_are_printable(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[2Jb.safetensors"
    path.write_bytes(b"")
    assert "\x1b" not in refused("show", path)


def test_report_of_two_folders_has_both(finished: Path, judged: tuple[Path, str], tmp_path: Path) -> None:
    page = tmp_path / "pages" / "both.html"
    assert call("report", finished, judged[0], "--out", page) == (0, f"{page}\n", "")
    text = page.read_text()
    assert "<h1>2 runs side by side</h1>" in text
    assert [title for title in re.findall("<h2>(.*?)</h2>", text) if title in ("condense", "Tiny &amp; quick")] == [
        "condense",
        "Tiny &amp; quick",
    ]
    assert text.count("data:image/png") == 7
    before = (judged[0] / "report.html").read_bytes()
    assert call("report", judged[0]) == (0, f"{judged[0] / 'report.html'}\n", "")
    assert (judged[0] / "report.html").read_bytes() == before


def test_report_refuses_what_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    for text in ("", "[]", '{"schema": 2, "results": {}}', '{"schema": 1}'):
        (tmp_path / "record.json").write_text(text)
        assert f"{tmp_path / 'record.json'}: is not " in refused("report", tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_lists_name_everything() -> None:
    for what, names in (
        ("methods", list(METHODS)),
        ("scenarios", list(shipped())),
        ("networks", ["ConvNet", "MLP"]),
        ("data", ["digits", "folder:PATH"]),
    ):
        code, out, err = call("list", what)
        assert (code, err) == (0, "")
        found = [line.split()[0] for line in out.splitlines()]
        assert set(names) <= set(found)
        assert len(found) == len(set(found))


def test_evaluate_refuses_a_set_of_other_data(tmp_path: Path) -> None:
    small_set(0).save(tmp_path / "other.safetensors")
    message = refused("evaluate", tmp_path / "other.safetensors", "--data", "digits", "--seeds", 1)
    # The digits are loaded at the set's size, so the first thing that differs is the classes.
    assert message.startswith("error: the set has classes ('a', 'b', 'c') and data 'digits' have classes ('0', '1', ")
    assert message.endswith("; give the data it was made from.\n")
    with pytest.raises(InputError, match="the set has height 4 and data 'digits' have height 16; give the data it was made from"):
        fitted(small_set(0), load("digits", size=16))


def test_evaluate_trains_on_the_set_and_its_baselines(finished: Path) -> None:
    arguments = ["evaluate", finished / "condensed.safetensors", "--data", "digits", "--network", "ConvNetD1W32", "--device", "cpu"]
    code, out, err = call(*arguments, "--seeds", 2, "--baseline", "random")
    assert code == 0, err
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["test", "accuracy,", "%", "ConvNetD1W32"]
    assert [row[0] for row in rows[1:3]] == ["condensed", "random"]
    assert all(20 < float(row[1]) <= 100 for row in rows[1:3])
    assert "mean and 95 % interval over 2 networks, last epoch\none recipe for all (laptop): AdamW, lr 0.001" in out
    code, alone, _ = call(*arguments, "--seeds", 1, "--baseline", "none")
    assert code == 0
    assert [line.split()[0] for line in alone.splitlines()][1:2] == ["condensed"]
    assert "random" not in alone


@pytest.mark.parametrize("failing", [2, 4])
def test_evaluate_ends_with_an_error_where_every_network_failed(finished: Path, failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = distill.evaluation.accuracy, 0

    def accuracy(*given: Any) -> float:
        nonlocal calls
        calls += 1
        if calls <= failing:
            raise Diverged("planted")
        return real(*given)

    monkeypatch.setattr(distill.evaluation, "accuracy", accuracy)
    options = ["--network", "MLP", "--seeds", 2, "--baseline", "random", "--device", "cpu"]
    code, out, err = call("evaluate", finished / "condensed.safetensors", "--data", "digits", *options)
    assert out.count("failed (2 of 2)") == failing // 2
    assert "failed: condensed, MLP: planted" in out
    if failing == 2:
        assert (code, err) == (0, "")
    else:
        assert (code, err.count("\n")) == (2, 1)
        assert err.startswith("error: no accuracy was measured: every one of the 4 networks failed")


# Help is quick


def test_help_imports_nothing_heavy() -> None:
    program = """
import sys
from scenarios import cli
try:
    cli.main(sys.argv[1:])
except SystemExit as stop:
    heavy = ("torch", "numpy", "matplotlib", "pydantic", "scipy", "sklearn", "safetensors", "torchvision",
             "distill.condensed", "scenarios.engine.schema")
    print("HEAVY", [name for name in heavy if name in sys.modules], stop.code)
"""
    for arguments in (["--help"], ["run", "--help"], ["condense", "--help"]):
        done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "HEAVY [] 0"
        assert "--" in done.stdout
