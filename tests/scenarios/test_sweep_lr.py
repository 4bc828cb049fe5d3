"""`distill sweep-lr`: the choice against its definition, held-out images only, step sizes that fail, and stops."""

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

import scenarios.condense.sweep_lr as room
import scenarios.engine.folder
from distill.data import Split
from distill.data_sources import load
from distill.errors import InputError
from distill.evaluation import Accuracy
from distill.methods import METHODS
from scenarios.catalogue import run_study, study
from scenarios.condense import step_sizes
from scenarios.condense.sweep_lr import chosen
from scenarios.engine.study import Options
from tests.conftest import stopped_at
from tests.scenarios.test_cli import call, refused

NETWORK = "ConvNetD1W8"
SMALL = {
    "kind": "sweep_lr",
    "data": {"name": "digits", "classes": [0, 1, 2]},
    "method": {"name": "dm", "ipc": 1, "iterations": 4, "batch_real": 8, "network": NETWORK},
    "evaluation": {"networks": [NETWORK], "seeds": 2, "recipe": {"epochs": 100, "max_steps": 8, "batch_size": 8}},
    "sweep": {"values": [1.0, 0.1, 1e38], "shortened": ["iterations"]},
}


def small(**tables: dict[str, Any]) -> Any:
    return study("sweep-lr", {**SMALL, **tables}, "test")


def rows_of(found: dict[float, Accuracy], *failed: float) -> dict[str, Any]:
    return {f"{v:.4g}": {"accuracy": one.as_dict()} for v, one in found.items()} | {f"{v:.4g}": {"reason": "diverged"} for v in failed}


# The choice


def test_the_highest_mean_is_chosen_and_its_margin_is_paired() -> None:
    found = {
        0.1: Accuracy((70.0, 75.0, 72.0)),
        1.0: Accuracy((80.0, 86.0, 83.0)),
        10.0: Accuracy((79.0, 84.5, 81.8)),
        30.0: Accuracy((50.0, 95.0, 70.0)),
    }
    result = chosen(found, rows_of(found))
    low, high = scipy.stats.ttest_rel(found[1.0].values, found[10.0].values).confidence_interval(0.95)
    assert (result["chosen"], result["edge"]) == (1.0, None)
    assert result["margin"] == pytest.approx({"mean": 83.0 - 81.766666666, "low": low, "high": high, "against": 10.0})
    # 30 varies so much that three networks do not tell it from the best; 10 is near, and still told from it, because it is paired.
    assert result["level"] == [30.0]


@pytest.mark.parametrize(
    ("means", "failed", "edge"), [((9, 5, 1), (), "low"), ((1, 5, 9), (), "high"), ((1, 5, 9), (100.0,), None), ((9, 5, 1), (0.01,), None)]
)
def test_an_edge_of_the_range_is_no_edge_where_the_next_one_failed(
    means: tuple[int, ...], failed: tuple[float, ...], edge: str | None
) -> None:
    found = {value: Accuracy((mean, mean + 1.0)) for value, mean in zip((0.1, 1.0, 10.0), means, strict=True)}
    assert chosen(found, rows_of(found, *failed))["edge"] == edge


def test_of_equal_means_the_smaller_step_is_taken_and_without_any_there_is_no_choice() -> None:
    found = {3.0: Accuracy((80.0, 80.0)), 1.0: Accuracy((80.0, 80.0))}
    assert chosen(found, rows_of(found))["chosen"] == 1.0
    with pytest.raises(InputError, match="every step size failed; the first one: diverged"):
        chosen({}, rows_of({}, 1.0))


# The range


def test_step_sizes_are_spaced_around_the_methods_own_one() -> None:
    assert step_sizes.spaced(0.1, 10.0, 5) == [0.1, 0.32, 1.0, 3.2, 10.0]
    for method, ipc, own in (("dm", 1, 1.0), ("dm", 60, 10.0), ("gm", 1, 0.1), ("dsa", 1, 0.1), ("datadam", 1, 1.0), ("mtt", 1, 1000.0)):
        assert step_sizes.default_step_size(method, {}, ipc, "lr_img") == own
        values = step_sizes.tables_for("digits", method, ipc, {})["sweep"]["values"]
        assert (len(values), values[3]) == (7, own), "the method's own step size is in the middle, and tried"
        assert values[0] == pytest.approx(own / 31.6, rel=0.02)
        made = study("sweep-lr", step_sizes.tables_for("digits", method, ipc, {}), "test")
        assert made.merged["sweep"]["key"] == "lr_img"
    assert step_sizes.tables_for("digits", "mtt", 1, {}, key="lr_lr")["sweep"]["values"][3] == 1e-5


def test_the_commands_defaults_are_those_of_the_tables() -> None:
    import inspect

    from scenarios.commands.sweep_lr import sweep_lr

    given = inspect.signature(sweep_lr).parameters
    assert (given["steps"].default, given["seeds"].default) == (step_sizes.STEPS, step_sizes.NETWORKS)
    made = study("sweep-lr", step_sizes.tables_for("digits", "dm", 1, {}), "test").merged
    images = made["method"]["iterations"] * made["method"]["batch_real"]
    assert images <= 15 * 32, "what a short run costs"
    assert made["evaluation"]["recipe"]["max_steps"] <= 30


def test_what_the_user_gave_is_not_shortened() -> None:
    tables = step_sizes.tables_for("digits", "dm", 1, {"iterations": 500})
    assert (tables["method"]["iterations"], tables["sweep"]["shortened"]) == (500, ["batch_real"])
    assert step_sizes.tables_for("digits", "gm", 5, {}, steps=20)["method"]["iterations"] == 4, "five image updates each"


def test_every_method_explains_the_scale_of_its_step_size() -> None:
    import sys

    for name, (_, made) in METHODS.items():
        if made.__module__.startswith("distill.methods."):
            assert "lr_img" in sys.modules[made.__module__].STEP_SIZE, name


# The study


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return run_study(small(), Options(tmp_path_factory.mktemp("runs"), quiet=True))


def test_a_step_size_that_diverges_is_a_row_with_its_reason(finished: tuple[Path, dict[str, Any]]) -> None:
    folder, record = finished
    rows = record["results"]["step_sizes"]
    assert list(rows) == ["0.1", "1", "1e+38"]
    assert re.search(r"diverged at step \d of 4 with lr_img 1e\+38", rows["1e+38"]["reason"])
    assert record["status"] == "done"
    assert record["results"]["chosen"] in (0.1, 1.0)
    said = room.answer(record)
    assert "lr_img=1e+38 failed: dm diverged" in said
    assert "squared distance of mean features" in said
    assert "Chosen in a short run (iterations=4)" in said
    table = room.accuracy_table(record)
    assert [row[0] for row in table] == ["lr_img", "0.1", "1", "1e+38"]
    assert sum("<" in row[2] for row in table) == 1
    assert table[3][1] == "failed"
    assert max(len("  ".join(row)) for row in table) < 80
    assert (folder / "figures/step-sizes.png").stat().st_size > 2000
    assert "held-out training images" in (folder / "report.html").read_text()
    code, out, _ = call("table", folder)
    assert (code, "step_sizes.0.1.accuracy" in out) == (0, True)
    code, out, _ = call("compare", folder, folder)
    figures = [line.split()[0] for line in out.splitlines() if line.startswith("step_sizes.")]
    assert (code, figures[:2]) == (0, ["step_sizes.0.1.accuracy", "step_sizes.1.accuracy"])
    assert not re.search("^(margin|chosen)", out, re.MULTILINE), "accuracies only"


def test_the_command_that_is_printed_is_a_condense_command_with_the_users_settings(finished: tuple[Path, dict[str, Any]]) -> None:
    results = finished[1]["results"]
    command = shlex.split(results["command"])
    assert command[:8] == ["distill", "condense", "--data", "digits", "--method", "dm", "--ipc", "1"]
    given = [word for word in command if "=" in word]
    assert given[0] == f"lr_img={results['chosen']:.4g}"
    assert set(given[1:]) == {f"network={NETWORK}", "batch_real=8"}, "but not the short run's iterations"


def test_the_printed_command_has_the_data_options_and_can_be_copied(tmp_path: Path) -> None:
    place = f"folder:{tmp_path}/my images"
    made = small(data={"name": place, "size": 32, "imbalance": 10.0, "classes": [0, 2]})
    command = shlex.split(room._command(made, 0.1))
    assert command[:4] == ["distill", "condense", "--data", place]
    options = dict(zip(command[8::2], command[9::2], strict=True))
    assert options.items() >= {"--size": "32", "--imbalance": "10.0", "--classes": "0,2"}.items()


def test_a_step_size_is_run_as_it_is_written() -> None:
    assert small(sweep={"values": [0.123456, 1.0]}).sweep.values == (0.1235, 1.0)


def test_other_failures_than_divergence_are_no_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk or a damaged file says nothing of a step size: it ends the study, and resuming tries again."""

    def damaged(*arguments: Any, **options: Any) -> None:
        raise InputError("x.safetensors: is damaged")

    monkeypatch.setattr(room, "condense", damaged)
    with pytest.raises(InputError, match="is damaged"):
        run_study(small(), Options(tmp_path, quiet=True))
    folder = next(tmp_path.iterdir())
    assert not (folder / "metrics.jsonl").exists() or "failed" not in (folder / "metrics.jsonl").read_text()


def test_test_images_are_never_looked_at(finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def without_test(*arguments: Any, **options: Any) -> Any:
        data = load(*arguments, **options)
        return dataclasses.replace(data, test=Split(data.test.images[:0], data.test.labels[:0]))

    monkeypatch.setattr(scenarios.engine.folder, "load", without_test)
    _, record = run_study(small(), Options(tmp_path, quiet=True))
    assert kept(record) == kept(finished[1])
    assert record["results"]["data"]["validation"] > 0


def kept(record: dict[str, Any]) -> Any:
    """The results without the seconds."""
    return json.loads(json.dumps(record["results"]), object_hook=lambda part: {k: v for k, v in part.items() if k != "distil_seconds"})


def test_a_stopped_sweep_goes_on_to_the_same_record(
    finished: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with stopped_at(monkeypatch, room, 3):
        run_study(small(), Options(tmp_path, quiet=True))
    with pytest.raises(InputError, match="--resume"):
        run_study(small(), Options(tmp_path, quiet=True))
    folder, record = run_study(small(), Options(tmp_path, resume=True, quiet=True))
    assert kept(record) == kept(finished[1])
    stages = [json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert stages.count("evaluate") == 4, "no network was trained twice"


# The command


def test_the_command_on_few_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ("--set", f"network={NETWORK}", "--set", "batch_real=8", "--network", NETWORK, "--steps", 2, "--seeds", 2, "--device", "cpu")
    code, out, err = call("sweep-lr", "--data", "digits", "--from", 0.5, "--to", 2, "--points", 2, *small, "--out", tmp_path)
    assert code == 0, err
    assert "Use it: distill condense --data digits --method dm --ipc 1 --set lr_img=" in out
    assert "that was tried: extend the range" in out
    monkeypatch.setattr("scenarios.commands.study.terminal_width", lambda: 60)
    folder = next(tmp_path.glob("*/record.json")).parent
    out = call("sweep-lr", "--data", "digits", "--from", 0.5, "--to", 2, "--points", 2, *small, "--out", tmp_path)[1]
    use = next(line for line in out.splitlines() if "Use it:" in line)
    assert use.endswith(json.loads((folder / "record.json").read_text())["results"]["command"]), "a command is one line on any terminal"
    assert max(len(line) for line in out.splitlines() if "in a short run" in line or "extend the range" in line) <= 60
    assert "(iterations=2)" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--values", "1,x"], "numbers between commas"),
        (["--values", "1"], "with at least 2"),
        (["--values", "1,1"], "a value is there twice"),
        (["--values", "1,-1"], "above 0"),
        (["--values", "1,nan"], "NaN"),
        (["--values", "1,2", "--from", "1"], "--from has no effect with --values"),
        (["--from", "3", "--to", "1"], "0 < from < to"),
        (["--validation", "0"], "no held-out images"),
        (["--validation", "2"], "validation"),
        (["--key", "iterations"], "allowed for dm: lr_img"),
        (["--set", "lr_img=1"], "--values instead"),
        (["--method", "dmm"], "did you mean 'dm'"),
        (["--set", "iteration=1"], "did you mean 'iterations'"),
        (["--network", "ConvNett"], "did you mean 'ConvNet'"),
    ],
)
def test_wrong_input_is_one_line_and_leaves_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    assert said in refused("sweep-lr", "--data", "digits", "--device", "cpu", *arguments, "--out", tmp_path / "runs")
    assert not (tmp_path / "runs").exists()
