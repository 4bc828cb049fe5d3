"""The template's names are studies, and `make reproduce` runs what has no kept record, a slice at a time."""

import contextlib
import csv
import dataclasses
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import distill.methods
from distill.coresets import select
from distill.methods.dm import PRESETS
from distill.methods.mtt import MTT
from distill.methods.presets import Presets, presets_of
from distill.randomness import generator
from distill.records import read_json, read_lines
from kept import pages as tables
from kept import reproduce
from kept.published import PUBLISHED, reproduced
from scenarios.catalogue import study
from scenarios.cli import main
from scenarios.engine.scenario import read_scenario
from scenarios.engine.template import ARCHITECTURES, DATA, FORMS, IPC, LONG_STEPS, METHODS, SEAMS, SMALL, from_template, names
from tests.conftest import toy

EVERY = [name for form in FORMS for name in names(form)]


AT_WIDTH_64 = ("small", "seams", "labels")


@pytest.mark.parametrize("name", [name for name in EVERY if not name.startswith(AT_WIDTH_64) or name.endswith("cifar10-ipc10")])
def test_every_name_is_a_study(name: str) -> None:
    given, described = read_scenario(name)
    made: Any = study(name, described, name)
    assert given == name
    form, method, *_ = name.split("-")
    assert made.method == ("dm" if form == "seams" else method)
    assert made.ipc == (int(name.rpartition("ipc")[2]),)
    assert f"-{made.data.name}-" in name
    assert made.evaluation.seeds == (3 if form in AT_WIDTH_64 else 5)
    if form in ("paper", "released"):  # the authors' iterations and protocols
        later = {"dcc": 1000, "dsac": 1000, "cafe": 2000, "idc": 2000, "accdd": 400, "dream": 2000}
        later |= {"idm": 20_000, "dance": 10_000, "ncfm": 20_000}
        expected = later | {"gm": 1000, "dsa": 1000, "dm": 20_000, "datadam": 8000 if form == "paper" else 20_000, "mtt": 5000}
        evaluated = dict.fromkeys(("idc", "accdd", "dream", "dance"), "idc") | {"dcc": "dc", "dsac": "dsa", "cafe": "dc", "idm": "dsa"}
        evaluated |= {"ncfm": "ncfm", "gm": "dc", "dsa": "dsa", "datadam": "datadam-paper" if form == "paper" else "datadam"}
        assert made.evaluation.protocol == evaluated.get(method, "dm")
        # The file that the settings come from: repository/name and file, issue or paper.
        assert re.search(r"settings of [\w-]+/[\w-]+, .*(\.py|\.md|issue \d+)", made.title)
        assert made.settings.iterations == expected[method]
        assert made.evaluation.recipe is None
    else:
        assert made.settings.iterations <= (800 if method == "dance" else 500)  # DANCE's take 30 minutes of two cores at width 128
    assert (made.evaluation.networks == ARCHITECTURES) == (form == "cross")


def test_all_combinations_are_there_and_nothing_else_is_taken() -> None:
    assert len(EVERY) == len(set(EVERY)) == (5 * len(METHODS) + 1 + len(SEAMS)) * len(DATA) * len(IPC) + len(METHODS)
    for wrong in (
        "paper-dm-cifar10",
        "paper-xx-cifar10-ipc1",
        "long-dm-cifar10-ipc1",
        "paper-dm-cifar10-ipc1.toml",
        "paper-dm-cifar10-ipcx",
        "paper-dm-digits-ipc1",
        "released-dm-cifar10-ipc1",
        "seams-dm-cifar10-ipc1",
        "small-decode-cifar10-ipc1",
        "small-dm-digits-ipc1",
    ):
        assert from_template(wrong) is None
    assert study("x", from_template("paper-dm-svhn-ipc20"), "x").merged["method"]["ipc"] == [20]  # type: ignore[arg-type]


def test_a_seam_is_the_small_form_of_dm_and_one_more_setting() -> None:
    plain: Any = study("x", from_template("small-dm-cifar10-ipc10"), "x")  # type: ignore[arg-type]
    assert plain.evaluation.baselines == ("random", "herding")
    assert plain.settings.network == "ConvNetW64"
    for seam, settings in SEAMS.items():
        made: Any = study("x", from_template(f"seams-{seam}-cifar10-ipc10"), "x")  # type: ignore[arg-type]
        assert made.settings == dataclasses.replace(plain.settings, **settings)
        assert made.evaluation.baselines == (("random-decoded", "herding-decoded") if seam == "decode" else ())
        assert made.merged["evaluation"]["recipe"] == plain.merged["evaluation"]["recipe"]


def test_a_step_for_each_image_depends_on_the_channels() -> None:
    steps = {(data, ipc): from_template(f"small-dance-{data}-ipc{ipc}") for data in ("cifar10", "fashion-mnist") for ipc in (1, 10)}
    found = {key: made["method"]["lr_img"] for key, made in steps.items() if made is not None}
    assert found == {("cifar10", 1): 1.0, ("cifar10", 10): 10.0, ("fashion-mnist", 1): 0.2, ("fashion-mnist", 10): 2.0}
    assert PRESETS.short_form(10, 1) == PRESETS.short_form(10, 3)  # of DM, one step for all


def test_a_short_form_may_differ_by_data_set() -> None:
    augmentation = {data: from_template(f"short-dance-{data}-ipc10")["method"].get("augmentation") for data in DATA}  # type: ignore[index]
    assert augmentation == {data: "auto" if data == "mnist" else None for data in DATA}
    presets = Presets(short={"lr_img": 1.0, "iterations": 5}, short_step=2.0, short_by_data={"usps": {"lr_img": 3.0}})
    assert presets.short_form(10, 1, "usps") == {"lr_img": 3.0, "iterations": 5}
    assert presets.short_form(10, 1) == presets.short_form(10, 1, "mnist") == {"lr_img": 20.0, "iterations": 5}


def test_decoded_sets_and_colour_images_are_trained_on_for_longer() -> None:
    """400 decoded images want three times the steps of 100; small forms differ from short ones as each method's file says."""

    def made(name: str) -> Any:
        return study("x", from_template(name), "x")  # type: ignore[arg-type]

    steps = {name: made(name).merged["evaluation"]["recipe"]["max_steps"] for name in ("short-dm-mnist-ipc10", "short-dance-mnist-ipc10")}
    assert steps == {"short-dm-mnist-ipc10": 400, "short-dance-mnist-ipc10": LONG_STEPS}
    assert made("short-dm-cifar10-ipc10").merged["evaluation"]["recipe"]["max_steps"] == LONG_STEPS
    short, small = made("short-dance-cifar10-ipc10").settings, made("small-dance-cifar10-ipc10").settings
    assert small.iterations < short.iterations
    assert small == dataclasses.replace(short, **{**SMALL, **presets_of(distill.methods.METHODS["dance"][1]).small})


def test_mtt_rows_are_the_authors() -> None:
    made: Any = study("x", from_template("paper-mtt-cifar10-ipc1"), "x")  # type: ignore[arg-type]
    s = made.settings
    assert (s.syn_steps, s.expert_epochs, s.lr_img, s.lr_lr, s.lr_init) == (50, 2, 100, 1e-7, 0.01)
    assert made.data.zca
    large: Any = study("x", from_template("paper-mtt-cifar100-ipc50"), "x")  # type: ignore[arg-type]
    assert large.settings.batch_syn == 125
    between: Any = study("x", from_template("paper-mtt-cifar100-ipc20"), "x")  # type: ignore[arg-type]
    assert between.settings.syn_steps == 20  # the nearest row of CIFAR-100, not CIFAR-10's


@pytest.mark.parametrize(("data", "ipc", "argument"), [("cifar10", 1, 2), ("cifar10", 10, 20), ("cifar100", 50, 40), ("mnist", 1, 5)])
def test_mtt_presets_start_at_the_epochs_of_the_authors_code(data: str, ipc: int, argument: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """``np.random.randint(0, args.max_start_epoch)`` draws 0 to max_start_epoch - 1; the epochs here are those that `MTT.step` asks for."""
    made: Any = study("x", from_template(f"paper-mtt-{data}-ipc{ipc}"), "x")  # type: ignore[arg-type]
    drawn: set[int] = set()

    class Stop(Exception): ...

    class Experts:
        experts, epochs = 1, made.settings.max_start_epoch + made.settings.expert_epochs

        def weights(self, expert: int, epoch: int, device: object) -> torch.Tensor:
            drawn.add(epoch)
            raise Stop

    method = MTT(made.settings, select(toy(), "random", 1, generator(0, "set")))
    monkeypatch.setattr(method, "trajectories", Experts())
    source = generator(0, "draws")
    for _ in range(60 * argument):
        with contextlib.suppress(Stop):
            method.step(None, source)  # type: ignore[arg-type]
    assert drawn == set(range(argument))


def test_datadams_two_forms_are_evaluated_as_each_says() -> None:
    """The released code: its ConvNet is batch norm, as evaluation network too. The paper's settings as users quote them: ZCA on CIFAR."""
    released: Any = study("x", from_template("released-datadam-cifar10-ipc10"), "x")  # type: ignore[arg-type]
    assert (released.settings.form, released.settings.network, released.settings.batch_real) == ("released", "ConvNetBN", 64)
    assert (released.evaluation.networks, released.evaluation.protocol, released.data.zca) == (("ConvNetBN",), "datadam", False)
    paper: Any = study("x", from_template("paper-datadam-cifar10-ipc10"), "x")  # type: ignore[arg-type]
    assert (paper.evaluation.networks, paper.evaluation.protocol, paper.data.zca) == (("ConvNet",), "datadam-paper", True)
    assert not study("x", from_template("paper-datadam-mnist-ipc1"), "x").data.zca  # type: ignore[arg-type]


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
                time.sleep(0.05)
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
    reproduce.main([str(scenario), "--out", str(started), "--minutes", "0"])
    assert "the same command continues from here" in capsys.readouterr().out


def test_what_is_kept_or_has_no_data_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "EXPECTED", tmp_path)
    wanted = ["short-dm-mnist-ipc1", "short-dm-mnist-ipc10", "short-dm-svhn-ipc1"]
    (tmp_path / "condense").mkdir()
    (tmp_path / "condense/short-dm-mnist-ipc10.csv").write_text("")
    assert reproduce.missing(wanted, {"mnist"}) == (["short-dm-mnist-ipc1"], ["short-dm-svhn-ipc1"])


def test_a_child_that_fails_ends_the_run_with_its_code(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="exit code 2"):
        reproduce.run_slice("no-such-scenario", tmp_path, 60)


def test_reproduced_is_two_sided() -> None:
    said = {"accuracy": "48.9", "judging": "DSA"}
    for low, high, expected in ((47.0, 48.5, "yes"), (47.0, 48.3, "no"), (49.3, 60.0, "yes"), (49.5, 60.0, "no"), (40.0, 60.0, "yes")):
        assert reproduced(low, high, said, "DSA") == expected
        assert reproduced(low, high, {**said, "judging": "presumably DSA"}, "DSA") == expected
        assert reproduced(low, high, {**said, "judging": "not stated"}, "DSA") == expected
        assert reproduced(low, high, said, "none") == "no, other evaluation"
    assert reproduced(40.0, 60.0, {}, "DSA") == ""


def test_published_figures_cover_the_methods() -> None:
    with PUBLISHED.open(newline="") as file:
        rows = {(r["dataset"], r["ipc"], r["set"]): r for r in csv.DictReader(file)}
    assert rows["cifar10", "10", "dm"]["accuracy"] == "48.9"
    for method in METHODS:  # of Acc-DD no table could be read
        assert any(key[2] == method for key in rows) == (method != "accdd")


def test_a_study_prints_and_records_its_advice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "s.toml"
    path.write_text(
        'kind = "condense"\n[data]\nname = "digits"\n'
        '[method]\nname = "dm"\nipc = [1, 60]\niterations = 1\nnetwork = "ConvNetD1W32"\nbatch_real = 4\n'
    )
    with pytest.raises(SystemExit) as ended:
        main(["run", str(path), "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    (record,) = (tmp_path / "out").rglob("record.json")
    (line,) = read_json(record)["notes"]
    assert line.startswith("dm is published for up to 50 images a class on data such as digits, not 60; ")
    assert line.replace("'", "&#x27;") in record.with_name("report.html").read_text()
    captured = capsys.readouterr()
    assert f"note: {line}" in captured.out + captured.err
