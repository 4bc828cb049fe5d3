"""The template's names are studies, and `make reproduce` runs what has no kept record, a slice at a time."""

import csv
import subprocess
from pathlib import Path
from typing import Any

import pytest

from distill.records import read_json, read_lines
from distill.train import PROTOCOLS
from scenarios import reproduce, tables
from scenarios.schema import read_scenario, study
from scenarios.template import ARCHITECTURES, DATA, FORMS, IPC, METHODS, MTT, from_template, names

EVERY = [name for form in FORMS for name in names(form)]


@pytest.mark.parametrize("name", EVERY)
def test_every_name_is_a_study(name: str) -> None:
    given, described = read_scenario(name)
    made: Any = study(name, described, name)
    assert given == name
    form, method, *_ = name.split("-")
    assert made.method == method
    assert made.ipc == (int(name.rpartition("ipc")[2]),)
    assert f"-{made.data.name}-" in name
    assert made.evaluation.seeds == 5
    if form == "paper":  # the papers' iterations and protocols
        expected = {"gm": 1000, "dsa": 1000, "dm": 20_000, "datadam": 8000, "mtt": 5000}
        assert made.settings.iterations == expected[method]
        assert made.evaluation.recipe is None
        assert made.evaluation.protocol in PROTOCOLS
    else:
        assert made.settings.iterations <= 500
    assert (made.evaluation.networks == ARCHITECTURES) == (form == "cross")


def test_all_combinations_are_there_and_nothing_else_is_taken() -> None:
    assert len(EVERY) == len(set(EVERY)) == 3 * len(METHODS) * len(DATA) * len(IPC) + len(METHODS) == 230
    for wrong in (
        "paper-dm-cifar10",
        "paper-xx-cifar10-ipc1",
        "long-dm-cifar10-ipc1",
        "paper-dm-cifar10-ipc1.toml",
        "paper-dm-cifar10-ipcx",
        "paper-dm-digits-ipc1",
    ):
        assert from_template(wrong) is None
    assert study("x", from_template("paper-dm-svhn-ipc20"), "x").merged["method"]["ipc"] == [20]  # type: ignore[arg-type]


def test_mtt_rows_are_the_authors() -> None:
    made: Any = study("x", from_template("paper-mtt-cifar10-ipc1"), "x")  # type: ignore[arg-type]
    s = made.settings
    assert (
        (s.syn_steps, s.expert_epochs, s.max_start_epoch, s.lr_img, s.lr_lr, s.lr_init)
        == MTT["cifar10", 1][:6]
        == (50, 2, 2, 100, 1e-7, 0.01)
    )
    assert made.data.zca
    large: Any = study("x", from_template("paper-mtt-cifar100-ipc50"), "x")  # type: ignore[arg-type]
    assert large.settings.batch_syn == 125


def test_a_slice_stops_cleanly_and_the_next_one_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A scenario longer than its slice: interrupted with its state saved; then finished, kept as a csv, and not run again."""
    scenario = tmp_path / "tiny.toml"
    scenario.write_text(
        'kind = "condense"\n[data]\nname = "digits"\n[method]\nname = "dm"\niterations = 4000\nnetwork = "ConvNetD1W32"\nbatch_real = 8\n'
        '[evaluation]\nnetworks = ["ConvNetD1W32"]\nseeds = 2\nbaselines = ["random"]\n[evaluation.recipe]\nmax_steps = 3\nbatch_size = 8\n'
    )
    started = tmp_path / "out"
    real = subprocess.Popen

    class Watched(real):  # type: ignore[misc, valid-type]
        """Let the child take its first steps before the clock may end it."""

        def wait(self, timeout: float | None = None) -> int:
            while timeout is not None and self.poll() is None and not any(p.stat().st_size for p in started.rglob("metrics.jsonl")):
                pass
            return int(super().wait(timeout))

    monkeypatch.setattr(reproduce.subprocess, "Popen", Watched)
    assert not reproduce.run_slice(str(scenario), started, 0.5)
    (folder,) = started.iterdir()
    assert read_json(folder / "record.json")["status"] == "interrupted"
    done = max(line["step"] for line in read_lines(folder / "metrics.jsonl"))
    assert 0 < done < 4000
    assert list(folder.glob("checkpoint*"))

    monkeypatch.setattr(tables, "EXPECTED", tmp_path / "expected")
    (tmp_path / "expected").mkdir()
    (tmp_path / "expected" / "published.csv").write_text("dataset,ipc,set,accuracy,source\n")
    reproduce.main([str(scenario), "--out", str(started), "--minutes", "0"])
    assert "the same command goes on from here" in capsys.readouterr().out


def test_what_is_kept_or_has_no_data_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "EXPECTED", tmp_path)
    wanted = ["short-dm-mnist-ipc1", "short-dm-mnist-ipc10", "short-dm-svhn-ipc1"]
    (tmp_path / "short-dm-mnist-ipc10.csv").write_text("")
    assert reproduce.missing(wanted, {"mnist"}) == (["short-dm-mnist-ipc1"], ["short-dm-svhn-ipc1"])


def test_a_child_that_fails_ends_the_run_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 2"):
        reproduce.run_slice("no-such-scenario", tmp_path, 60)


def test_reproduced_follows_the_interval() -> None:
    assert tables.reproduced(48.5, "48.9") == "yes"
    assert tables.reproduced(48.3, "48.9") == "no"
    assert tables.reproduced(60.0, "48.9") == "yes"
    assert tables.reproduced(60.0, "") == ""


def test_published_figures_cover_the_methods() -> None:
    with (tables.EXPECTED / "published.csv").open(newline="") as file:
        rows = {(r["dataset"], r["ipc"], r["set"]): r for r in csv.DictReader(file)}
    assert rows["cifar10", "10", "dm"]["accuracy"] == "48.9"
    for method in METHODS:
        assert any(key[2] == method for key in rows)
