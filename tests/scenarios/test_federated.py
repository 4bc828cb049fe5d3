"""The federated study: its tables, its record, its pictures, and that it goes on where it stopped."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import pytest

from apps.federated.settings import to_json
from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.records import read_lines
from scenarios.catalogue import run_study, study
from scenarios.cli import main
from scenarios.engine.folder import load_data
from scenarios.engine.scenario import parse, shipped
from scenarios.engine.study import Options
from scenarios.federated import cells as federated_cells
from scenarios.federated.attacked import Row
from scenarios.federated.cells import row_cell, run_cell
from scenarios.federated.left_out import CLAIMS, left_out
from scenarios.federated.show import accuracy_table, answer, remarks

TABLES: dict[str, Any] = {
    "kind": "federated",
    "title": "test",
    "data": {"name": "digits"},
    "federation": {"strategies": ["feddm", "random", "fedavg", "local", "central"], "rounds": 1, "seeds": 2, "network": "ConvNetD1W32"},
    "partition": {"partitioner": "pathological", "num_partitions": 5, "num_classes_per_partition": 2},
    "upload": {"ipc": 2, "iterations": 3, "batch_real": 8},
    "server": {"recipe": {"max_steps": 20, "batch_size": 16, "lr": 0.02, "schedule": "constant", "augmentation": "none"}},
    "local": {"max_steps": 3},
}


def with_changes(**changes: Any) -> dict[str, Any]:
    return {
        key: {**value, **changes.get(key, {})} if isinstance(value, dict) else value
        for key, value in {**TABLES, **{k: TABLES.get(k, {}) for k in changes}}.items()
    }


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """In this process; workers have a test of their own."""
    out = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated_cells, "at_once", lambda jobs, threads: 1)
        return run_study(study("test", TABLES, "test.toml"), Options(out, quiet=True))


def test_the_record_has_every_strategy_with_its_interval_and_bytes(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    assert record["status"] == "done"
    found = json.loads((folder / "record.json").read_text())["results"]
    assert list(found["strategies"]) == TABLES["federation"]["strategies"]
    for name, part in found["strategies"].items():
        assert len(part["accuracy"]["values"]) == 2
        assert part["accuracy"]["low"] <= part["accuracy"]["mean"] <= part["accuracy"]["high"]
        assert (part["bytes"] == 0) == (name in ("local", "central"))
        assert part["dropped"] == []
    assert len(set(found["split"]["hashes"].values())) == 2
    assert sum(map(sum, found["split"]["counts"])) == found["data"]["train"]
    up = {name: sum(line["up"] for line in part["rounds"]) for name, part in found["strategies"].items()}
    assert up["feddm"] == pytest.approx(up["random"], rel=0.05), "naive rivals upload as many bytes"


def test_a_run_where_no_client_was_ever_accepted_fails_and_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Accuracy at chance with every upload refused is no result; neither is it one when the run is looked at again."""
    from apps.federated import client_answers

    def fails(*arguments: Any, **named: Any) -> None:
        raise ValueError("the shard cannot be read")

    monkeypatch.setattr(client_answers, "upload", fails)
    tables = with_changes(federation={"strategies": ["feddm"], "seeds": 1})
    for _ in range(2):
        with pytest.raises(InputError, match=r"no client was accepted in any round.*the shard cannot be read.*5 of 5"):
            run_study(study("test", tables, "test.toml"), Options(tmp_path, quiet=True, resume=True))
    (folder,) = tmp_path.iterdir()
    record = json.loads((folder / "record.json").read_text())
    assert record["status"] == "failed"
    assert "the shard cannot be read" in record["reason"]


def test_who_is_left_out_is_told_in_the_terminal_and_the_report_with_the_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from apps.federated import client_answers

    real = client_answers.upload

    def fails(data: Any, settings: Any, server_round: int, client: int, *rest: Any) -> Any:
        if client == 1:
            raise ValueError("the disk <b>of client 1</b> is full")
        return real(data, settings, server_round, client, *rest)

    monkeypatch.setattr(client_answers, "upload", fails)
    tables = with_changes(federation={"strategies": ["feddm"], "seeds": 1, "rounds": 2})
    folder, record = run_study(study("test", tables, "test.toml"), Options(tmp_path))
    said = "rounds 1 to 2: client 1 failed: ValueError: the disk <b>of client 1</b> is full"
    assert record["results"]["strategies"]["feddm"]["left_out"] == [[said]]
    assert said in " ".join(capsys.readouterr().err.split())
    page = (folder / "report.html").read_text()
    assert f"feddm, {said}".replace("<b>", "&lt;b&gt;").replace("</b>", "&lt;/b&gt;") in page


def test_lines_of_who_is_left_out() -> None:
    asked = {"client": 0, "status": "accepted", "why": "", "note": ""}
    absent = {"client": 1, "status": "absent", "why": "no node", "note": ""}
    back = {"client": 1, "status": "accepted", "why": "", "note": "came back after round 1"}
    lines = [
        {"round": number, "clients": [asked, absent], "unknown": [{"node": "7", "why": "no key"}], "overrun": 0.0, "note": ""}
        for number in (1, 2, 3, 5)
    ]
    lines.insert(
        3, {"round": 4, "clients": [asked, back], "late": [{"client": 1, "round": "3", "within": 2.0}], "overrun": 2.5, "note": "odd"}
    )
    assert left_out(lines) == [
        "rounds 1 to 3 and 5: client 1 absent: no node",
        "rounds 1 to 3 and 5: node 7 left out: no key",
        "round 4: client 1: came back after round 1",
        "round 4: client 1: its answer to round 3 came after the end of that round and was not used",
        "round 4: 2.5 s longer than the timeout",
        "round 4: odd",
    ]
    many = [{"round": 1, "clients": [{**absent, "client": number} for number in range(100)]}]
    assert left_out(many)[-1] == "80 more are in rounds.jsonl"
    record = {"results": {"engine": "deployment", "strategies": {"feddm": {"left_out": [[], ["round 1: x"]]}}}}
    assert remarks(record) == ["feddm, run 2, round 1: x", CLAIMS]


def test_table_sentence_figures_and_report(done: tuple[Path, dict[str, Any]]) -> None:
    folder, record = done
    rows = accuracy_table(record)
    assert rows[0] == ["strategy", "round 1", "MB up", "MB down", "client s", "dropped"]
    assert [row[0] for row in rows[1:]] == TABLES["federation"]["strategies"]
    assert answer(record).startswith("After 1 round: feddm ")
    names = {path.name for path in (folder / "figures").glob("*.png")}
    assert names == {"1-split.png", "2-rounds.png", "3-bytes.png", "4-union-feddm.png", "4-union-random.png"}
    assert all((folder / "figures" / name).stat().st_size > 2000 for name in names)
    assert "feddm" in (folder / "report.html").read_text()


def test_runs_that_are_there_are_not_done_again(done: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    folder, record = done
    unfinished = {**json.loads((folder / "record.json").read_text()), "status": "interrupted"}
    (folder / "record.json").write_text(json.dumps(unfinished))
    monkeypatch.setattr("apps.federated.inline.run_inline", lambda *_, **__: pytest.fail("a finished run was done again"))
    _, again = run_study(study("test", TABLES, "test.toml"), Options(folder.parent, resume=True, quiet=True))
    assert again["results"] == record["results"]


def test_shipped_scenarios_are_valid() -> None:
    names = [name for name in shipped() if name.startswith("federated-")]
    assert "federated-smoke" in names
    for name in names:
        made = study(name, parse(shipped()[name]), f"{name}.toml")
        assert made.kind == "federated"
        assert shipped()[name].read_text().startswith(f"# distill run {name}\n")


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"federation": {"strategies": ["fedmd"]}}, "strategies"),
        ({"federation": {"strategies": ["feddm", "feddm"]}}, "allowed: different ones, each once"),
        ({"federation": {"engine": "ray"}}, "engine"),
        ({"federation": {"rounds": 0}}, "rounds"),
        ({"partition": {"alpha": 0.0}}, "alpha"),
        ({"partition": {"partitoner": "iid"}}, "did you mean 'partitioner'"),
        ({"upload": {"itertions": 5}}, "did you mean 'iterations'"),
        ({"upload": {"pixels": "int8"}}, "pixels"),
        ({"upload": {"networks": "fresh", "radius": 2.0}}, "fresh"),
        ({"upload": {"network": "ConvNet"}}, "run's network"),
        ({"server": {"radius": -1.0}}, "radius"),
        ({"local": {"momentum": 1.0}}, "momentum"),
        ({"extra": {"a": 1}}, "extra"),
        ({"data": {"zca": True}}, "zca"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        study("test", with_changes(**changes), "test.toml")
    assert str(caught.value).startswith("test.toml")
    assert "\n" not in str(caught.value)


def test_privacy_refuses_real_first_images_and_other_strategies() -> None:
    with pytest.raises(InputError, match="no private form"):
        study("test", with_changes(privacy={"epsilon": 1.0}), "test.toml")
    alone = {"strategies": ["feddm"]}
    with pytest.raises(InputError, match="noise"):
        study("test", with_changes(privacy={"epsilon": 1.0}, federation=alone), "test.toml")
    noise = {"initial": "noise", "networks": "fresh"}
    for text in ("apps.privacy.nowhere:Nothing", "os:system"):
        with pytest.raises(InputError, match=r"'statistics'.*is not known"):
            study("test", with_changes(privacy={"epsilon": 1.0, "statistics": text}, federation=alone, upload=noise), "test.toml")
    with pytest.raises(InputError, match="draw their networks themselves"):
        study("test", with_changes(privacy={"epsilon": 1.0}, federation=alone, upload={"initial": "noise"}), "test.toml")


def test_a_server_asks_its_clients_for_epsilon_and_says_nothing_else_of_privacy() -> None:
    """The [privacy] table is the clients' own file: no path, seed, size or budget of it goes down to them."""
    private = {"epsilon": 6.0, "population": 100, "insecure_seed": 3}
    upload = {"initial": "noise", "networks": "fresh"}
    changes = with_changes(privacy=private, federation={"strategies": ["feddm"], "rounds": 3}, upload=upload)
    made = study("test", changes, "test.toml")
    assert json.loads(to_json(made.settings))["privacy"] == {"epsilon": 2.0}
    assert made.privacy == {"statistics": "apps.privacy.private_statistics:PrivateStatistics", **private}
    assert made.merged["privacy"] == made.privacy


def test_the_command_line_runs_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["federation.engine=inline", "federation.rounds=1", "federation.network=ConvNetD1W32", "upload.iterations=2", "upload.ipc=1"]
    settings = [part for value in small for part in ("--set", value)]
    with pytest.raises(SystemExit) as caught:
        main(["run", "federated-smoke", "--out", str(tmp_path), "--device", "cpu", *settings])
    assert caught.value.code == 0
    assert "After 1 round: feddm" in capsys.readouterr().out
    (folder,) = tmp_path.iterdir()
    assert [line["round"] for line in read_lines(folder / "runs/feddm-s0/rounds.jsonl")] == [0, 1]


def test_side_by_side_or_alone_a_run_has_the_same_bits(done: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, _ = done
    made = study("test", TABLES, "test.toml")
    options = Options(tmp_path)
    settings = made.settings_for("feddm", 1, "cpu")
    alone = run_cell(made, row_cell(made, Row(settings.strategy), settings, tmp_path), options, load_data(made, options))
    beside = row_cell(made, Row(settings.strategy), settings, folder).lines()
    assert len(alone) == len(beside) == 2
    for one, other in zip(alone, beside, strict=True):
        assert {key: value for key, value in one.items() if key != "clients"} == {k: v for k, v in other.items() if k != "clients"}
    unions = [(where / "runs/feddm-s1/union.safetensors") for where in (folder, tmp_path)]
    first, second = (CondensedSet.load(path) for path in unions)
    assert (first.images == second.images).all()


def test_a_worker_that_fails_is_named_and_the_others_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(federated_cells, "at_once", lambda jobs, threads: 2)  # on one core, too
    made = study("test", with_changes(federation={"strategies": ["random", "herding"], "seeds": 1}), "test.toml")
    folder = tmp_path / f"test-{made.hash}-s0"
    (folder / "runs").mkdir(parents=True)
    (folder / "runs" / "herding-s0").write_text("a file where a folder should be")
    with pytest.raises(InputError, match=r"herding, seed 0: its process ended.*--resume"):
        run_study(made, Options(tmp_path, resume=True, quiet=True))
    assert "FileExistsError" in capfd.readouterr().err
    assert json.loads((folder / "record.json").read_text())["status"] == "failed"
    assert multiprocessing.active_children() == []
    (folder / "runs" / "herding-s0").unlink()
    monkeypatch.setattr(federated_cells, "at_once", lambda jobs, threads: 1)
    _, record = run_study(made, Options(tmp_path, resume=True, quiet=True))
    assert set(record["results"]["strategies"]) == {"random", "herding"}
