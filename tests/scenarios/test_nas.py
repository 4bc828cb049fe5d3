"""Studies of kind "nas" from the command line's side: shipped files, mistakes, resume, the report and the kept figures."""

import csv
import io
import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from apps.nas import ranking
from apps.nas.ledger import read_table
from distill.condensed import CondensedSet
from distill.decode import as_text as as_form
from distill.errors import InputError
from distill.teachers import teacher_network
from kept import pages as tables
from scenarios.catalogue import run_study, study
from scenarios.cli import main
from scenarios.engine.folder import load_data
from scenarios.engine.scenario import override, read_scenario, shipped
from scenarios.engine.study import Options
from scenarios.nas import labels
from scenarios.nas import run as nas
from scenarios.nas.show import accuracy_table, answer
from scenarios.reporting.text import as_text

TINY = [
    *("space.width=[4]", "space.depth=[1,2]", 'space.norm=["none","batch"]', "truth.recipe.epochs=1", "truth.seeds=2", "proxy.seeds=2"),
    *("proxy.recipe.max_steps=3", "proxy.regression=3", "proxy.resamples=100", "proxy.top=[1,2]", "sets.ipc=2"),
    *('sets.coresets=["random"]', "methods.dm.iterations=3", 'methods.dm.network="ConvNetW8D1"', "run.workers=0"),
]


def tiny(*settings: str) -> Any:
    name, tables = read_scenario("nas-smoke")
    latest = {setting.partition("=")[0]: setting for setting in (*TINY, *settings)}
    return study(name, override(tables, list(latest.values())), "nas-smoke.toml")


def run(out: Path, *settings: str, resume: bool = False) -> tuple[Path, dict]:
    return run_study(tiny(*settings), Options(out=out, resume=resume, quiet=True))


def lines(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict]:
    return run(tmp_path_factory.mktemp("nas"))


def test_shipped_files_are_right() -> None:
    sizes = {"nas-smoke": 12, "nas-digits": 72, "nas-small": 72, "nas-small-space": 72, "nas-720": 720}
    for name in [name for name in shipped() if name.startswith("nas-")]:
        made: Any = study(*read_scenario(name), f"{name}.toml")
        assert len(made.candidates) == sizes[name]
    assert set(sizes) == {name for name in shipped() if name.startswith("nas-")}


def test_the_record_and_its_folder(done: tuple[Path, dict]) -> None:
    folder, record = done
    assert record["status"] == "done"
    assert {path.name for path in (folder / "figures").iterdir()} == {"accuracy.png", "correlation.png", "regret.png"}
    results = json.loads((folder / "record.json").read_text())["results"]
    assert results["networks"] == results["known"] == 4
    rows = lines(folder / "scores.csv")
    truth = np.array([float(line["truth"]) for line in rows])
    # The table is what the files say: each proxy's correlation and regret again, from the scores.
    for name, row in results["proxies"].items():
        scores = [float(line[name]) for line in rows]
        value = row["spearman"]["value"]
        assert (np.nan if value is None else value) == pytest.approx(ranking.spearman(scores, truth), abs=1e-6, nan_ok=True)
        assert row["regret@1"]["value"] == pytest.approx(ranking.regret(scores, truth), abs=1e-3)
    tested = {}
    for row in read_table(folder / "truth.csv"):
        tested.setdefault(row["id"], []).append(row["test"])
    np.testing.assert_allclose([np.mean(tested[line["id"]]) for line in rows], truth, rtol=1e-5)
    table = accuracy_table(record)
    assert [row[0] for row in table[1:]] == list(results["proxies"])
    assert {len(row) for row in table} == {len(table[0])}
    assert "4 networks" in answer(record)
    page = (folder / "report.html").read_text()
    assert "Proxies are scored on the validation split" in page
    assert page.count("<img") == 3


def test_a_run_in_slices_gives_the_same_scores(done: tuple[Path, dict], tmp_path: Path) -> None:
    slices = 0
    while True:
        try:
            folder, _ = run(tmp_path, *(["run.minutes=0.00001"] if slices < 5 else []), resume=slices > 0)
            break
        except KeyboardInterrupt:
            slices += 1
    assert slices == 5
    assert folder.name == done[0].name  # how it is run does not change what it is
    theirs, ours = (lines(path / "scores.csv") for path in (done[0], folder))
    for row in (*theirs, *ours):
        del row["early-cost-dm"]  # its steps come from a clock
    assert theirs == ours


def test_a_truth_table_spares_the_training(done: tuple[Path, dict], tmp_path: Path) -> None:
    folder, _ = run(tmp_path, f'run.table="{done[0]}/truth.csv"')
    stages = {json.loads(line)["stage"] for line in (folder / "metrics.jsonl").read_text().splitlines()}
    assert "truth" not in stages
    assert "dm" in stages
    assert (folder / "truth.csv").read_text() == (done[0] / "truth.csv").read_text()


def test_a_set_is_made_through_all_networks_of_the_space(done: tuple[Path, dict], tmp_path: Path) -> None:
    one, other = (run(tmp_path / name, 'methods.dm.network="space"')[0] for name in ("one", "other"))
    first, again = (CondensedSet.load(folder / "dm-0.safetensors") for folder in (one, other))
    assert torch.equal(first.images, again.images), "the same networks in the same order"
    assert not torch.equal(first.images, CondensedSet.load(done[0] / "dm-0.safetensors").images)
    assert first.provenance.config["network"] == "given: drawn from the 4 networks of the space, features of length 1"


def test_a_decoded_set_has_rivals_in_its_own_form(tmp_path: Path) -> None:
    form = "formation:2"
    settings = [f'methods.dm.decode="{form}"', 'space.norm=["batch"]', "proxy.regression=0", 'sets.coresets=["random","herding"]']
    _, record = run(tmp_path, *settings)
    proxies = record["results"]["proxies"]
    coresets = [name for name, row in proxies.items() if row["kind"] == "coreset"]
    assert coresets == ["random", "herding", "random-decoded", "herding-decoded"]
    labels = nas._forms(tiny(*settings))
    assert {label: None if form is None else as_form(form) for label, (_, form) in labels.items()} == {
        "random": None,
        "herding": None,
        "random-decoded": form,
        "herding-decoded": form,
    }
    assert "random-decoded" in record["results"]["differences"]["dm"]


def test_every_network_learns_from_the_same_labels_of_one_teacher(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = ('sets.teacher.network="MLP"', "sets.teacher.epochs=2", "sets.teacher.batch_size=600")
    seen: dict[str, list[Any]] = {}
    real = nas.rank

    def watched(data: Any, candidates: Any, sets: Any, *rest: Any, **named: Any) -> Any:
        seen["sets"] = [sets]
        return real(data, candidates, sets, *rest, **named)

    monkeypatch.setattr(nas, "rank", watched)
    folder, record = run(tmp_path, *teacher)
    (sets,) = seen["sets"]
    assert record["scenario"] == "nas-smoke"
    assert list(sets) == ["random", "dm", "random-labelled", "dm-labelled", "label-only"]
    assert set(sets) <= set(record["results"]["proxies"])
    for name in ("random", "dm"):
        for plain, taught in zip(sets[name].sets, sets[f"{name}-labelled"].sets, strict=True):
            assert torch.equal(plain.images, taught.images)
            assert (taught.label_kind, taught.labels.shape) == ("logits", (20, 10))
        assert sets[f"{name}-labelled"].seconds > sets[name].seconds, "the teacher's training is part of the cost"
    assert [len(one) for one in sets["label-only"].sets] == [20, 20]
    # The teacher is that of `distill label`, and a run that continues does not train it again.
    again = tiny(*teacher)
    network = teacher_network(load_data(again, Options(out=tmp_path)), again.sets.teacher, progress=False)
    taught = sets["random-labelled"].sets[0]
    assert torch.allclose(network(taught.images), taught.labels, atol=1e-5)
    monkeypatch.setattr(labels, "teacher_network", lambda *given, **named: pytest.fail("trained again"))
    (folder / "record.json").unlink()
    _, record_again = run(tmp_path, *teacher, resume=True)
    assert record_again["results"]["proxies"]["dm-labelled"] == record["results"]["proxies"]["dm-labelled"]
    for table in ("truth", "proxy"):
        with pytest.raises(InputError, match="a teacher labels each set once, for all networks"):
            tiny(f"{table}.recipe.teacher.epochs=1")


def test_named_networks(tmp_path: Path) -> None:
    settings = ['space.networks=["MLP","LeNet","ConvNetW4D1"]', "proxy.regression=0", "proxy.equal_cost=[]", "proxy.early=false"]
    _, record = run(tmp_path, *settings)
    assert record["results"]["networks"] == 3
    assert "regression" not in record["results"]["proxies"]


def test_kept_figures_are_the_records(done: tuple[Path, dict], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "EXPECTED", tmp_path)
    monkeypatch.setattr(tables, "TRUTH", tmp_path / "nas")
    paths = tables.keep(done[0])
    names = ("nas-smoke.csv", "nas-smoke-truth.csv", "nas-smoke-scores.csv", "nas-smoke.json")
    assert [path.relative_to(tmp_path) for path in paths] == [Path("nas", name) for name in names]
    assert [row["id"] for row in lines(paths[2])] == list(dict.fromkeys(row["id"] for row in lines(paths[1])))
    rows = lines(paths[0])
    results = done[1]["results"]
    assert [row["proxy"] for row in rows] == list(results["proxies"])
    dm = next(row for row in rows if row["proxy"] == "dm")
    assert float(dm["regret@1.value"]) == pytest.approx(results["proxies"]["dm"]["regret@1"]["value"], rel=1e-3, abs=1e-9)
    assert len(read_table(paths[1])) == 8
    text = tables.page_text("nas")
    assert text.startswith(f"**`nas-smoke`**: {answer(done[1])}\n\n| proxy |")
    assert text.count("\n| ") == 2 + len(rows)  # header, its rule, and rows


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["truth.sedes=1"], "did you mean 'seeds'"),
        (['space.norm=["bach"]'], "norm"),
        (["space.width=[]"], "width"),
        (["space.width=[4,4]"], "twice"),
        (['sets.coresets=["randon"]'], "did you mean 'random'"),
        (["methods.dmm.iterations=3"], "did you mean 'dm'"),
        (["methods.dm.iteration=3"], "did you mean 'iterations'"),
        (["data.validation=0"], "validation and a test split"),
        (["proxy.regression=5"], "at most the 4"),
        (['proxy.equal_cost=["gm"]'], "equal_cost"),
        (['proxy.zero_cost=["synflo"]'], "did you mean 'synflow'"),
        (["space.depth=[5]", "proxy.regression=0"], "at least 32x32"),
        (['run.table="nothing"'], "cannot be read"),
        (['methods.mtt.network="space"'], "name the experts' network"),
        (["prox.seeds=1"], "did you mean 'proxy'"),
        (['run.ray="127.0.0.1:9"'], "no Ray pool answers"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(tmp_path: Path, settings: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        run(tmp_path, *settings)
    assert "\n" not in str(error.value)
    assert not list(tmp_path.glob("*/metrics.jsonl"))


def test_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [part for setting in TINY for part in ("--set", setting)]
    with pytest.raises(SystemExit) as end:
        main(["run", "nas-smoke", "--out", str(tmp_path), "--device", "cpu", *flags])
    assert end.value.code == 0
    said = capsys.readouterr().out
    assert "Spearman" in said
    assert "4 networks; noise ceiling" in said


def test_the_answer_names_a_difference_significant_only_if_its_interval_leaves_out_zero() -> None:
    def figures(kind: str, value: float | None, regret: float) -> dict:
        return {
            "kind": kind,
            "spearman": {"value": value, "low": value and value - 0.1, "high": value and value + 0.1},
            "regret@2": {"value": regret},
        }

    kinds = {
        "dm": "condensed",
        "gm": "condensed",
        "random": "coreset",
        "early-steps": "early",
        "parameters": "zero-cost",
        "regression": "x",
    }
    proxies = {name: figures(kind, 0.1 * place, place) for place, (name, kind) in enumerate(kinds.items(), 3)}
    bounds = {"random": (-0.2, 0.1), "early-steps": (-0.3, -0.1), "parameters": (0.1, 0.3), "regression": (0.0, 0.2)}
    differences = {"gm": {name: {"value": 0.0, "low": low, "high": high} for name, (low, high) in bounds.items()}}
    record = {"results": {"known": 9, "ceiling": {"reliability": 0.94}, "proxies": proxies, "differences": differences}}
    assert answer(record | {"kind": "nas"}) == (
        "9 networks; noise ceiling 0.94. gm: Spearman 0.40 [0.30, 0.50], regret@2 4.00 points; no significant difference from"
        " random (0.50, regret@2 5.00), regression (0.80, regret@2 8.00); worse than early-steps (0.60, regret@2 6.00);"
        " better than parameters (0.70, regret@2 7.00)."
    )
    proxies["dm"]["spearman"]["value"] = proxies["gm"]["spearman"]["value"] = None
    assert answer(record | {"kind": "nas"}) == "9 networks; noise ceiling 0.94."


def test_the_columns_say_what_they_are(done: tuple[Path, dict]) -> None:
    header, *rows = accuracy_table(done[1])
    assert header[:4] == ["proxy", "Spearman [95 %]", "regret@1", "regret@2"]
    assert {"break-even, networks", "rho, true top 10", "rho, true top 5 %"} < set(header)
    found = dict(zip(header, next(row for row in rows if row[0] == "dm"), strict=True))
    record = done[1]["results"]["proxies"]["dm"]
    assert float(found["regret@2"]) == pytest.approx(record["regret@2"]["value"], abs=0.006)
    assert float(found["overlap@2 (chance)"].split()[0]) == pytest.approx(record["overlap@2"]["value"], abs=0.006)
    assert found["overlap@2 (chance)"].endswith(" (0.50)")
    assert found["rho, true top 10"] == f"{record['spearman_top10']['value']:.2f}"
    assert float(found["seconds (once)"].split(" (")[0]) == pytest.approx(record["seconds"]["total"], rel=0.01)


def test_the_table_fits_a_terminal(done: tuple[Path, dict]) -> None:
    """Nothing is lost in the fold: the parts side by side are the table, each with the proxies' names."""
    rows = accuracy_table(done[1])
    text = as_text(rows, width=80)
    assert max(map(len, text.splitlines())) <= 80
    parts = [[re.split(r" {2,}", line.strip()) for line in part.splitlines()] for part in text.split("\n\n")]
    assert 2 <= len(parts) <= 4
    assert [row[0] for row in parts[0]] == [row[0] for row in parts[-1]] == [row[0] for row in rows]
    assert [sum((part[place][1:] for part in parts), [line[0]]) for place, line in enumerate(rows)] == rows
    assert as_text(rows, width=1000) == as_text(rows)
    narrow = as_text([["name", "column"], ["a", "b" * 20]], width=20)
    assert max(map(len, narrow.splitlines())) <= 20
    assert narrow.count("b") == 20


@pytest.mark.parametrize(("terminal", "expected"), [(True, 1), (False, 2)])
def test_progress_is_a_status_line_or_a_line_a_minute(monkeypatch: pytest.MonkeyPatch, terminal: bool, expected: int) -> None:
    """A failure is always said; that work goes on only where no status line is seen, once a minute."""
    now = iter([0.0, 30.0, 61.0, 90.0, 100.0])
    monkeypatch.setattr(nas, "time", SimpleNamespace(monotonic=lambda: next(now)))
    said, shown = io.StringIO(), []
    clock = nas._Clock(None, Console(file=said, force_terminal=terminal, width=200, no_color=True, highlight=False))
    clock.show = shown.append
    for count, more in enumerate(({}, {"left_seconds": 300.0}, {"left_seconds": 200.0}, {"reason": "diverged"}), 1):
        clock.told(count, 9, {"stage": "truth", "id": "w8", **more})
    assert shown[:2] == ["truth: 1 of 9 runs; w8", "truth: 2 of 9 runs, about 5 min left; w8"]
    assert len(said.getvalue().splitlines()) == expected
    assert said.getvalue().splitlines()[-1] == "truth: 4 of 9 runs; w8 failed: diverged"


def test_engines_are_not_imported_by_the_scenarios() -> None:
    """Neither by the studies' modules, nor by the room of continual learning."""
    code = (
        "import sys, apps.continual, distill, scenarios.continual.run, scenarios.nas.run\n"
        "sys.exit(any(name in sys.modules for name in ('avalanche', 'ray', 'optuna')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
