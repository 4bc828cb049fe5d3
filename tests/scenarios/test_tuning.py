"""Tuning of the strategies that send weights, rounds by strategy, rounds to a target, and what is shown of a run while it works."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
import safetensors

from apps.federated import live, server_app
from apps.federated.inline import run_inline
from distill.data_sources import load
from distill.errors import InputError
from scenarios.catalogue import run_study, study
from scenarios.engine.study import Options
from scenarios.federated import cells as federated_cells
from scenarios.federated import tuning
from scenarios.federated.cells import Cell
from scenarios.federated.run import reached, summary
from scenarios.federated.schema import TuningTable
from scenarios.federated.show import NOTE, accuracy_table, answer, missing
from scenarios.federated.watch import Watch

STRATEGIES = ["random", "fedavg", "scaffold", "fednova", "fedadam", "feddyn", "central"]
TABLES: dict[str, Any] = {
    "kind": "federated",
    "title": "test",
    "data": {"name": "digits"},
    "federation": {"strategies": STRATEGIES, "rounds": 1, "network": "ConvNetD1W32", "targets": [5.0, 99.5]},
    "partition": {"partitioner": "iid", "num_partitions": 2},
    "upload": {"ipc": 1},
    "server": {"recipe": {"max_steps": 2, "batch_size": 8}},
    "local": {"max_steps": 2, "batch_size": 8},
    "tuning": {
        "lr": [1e-5, 0.02],
        "momentum": [0.0, 0.5],
        "fedadam_lr": [0.01, 1e-6],
        "feddyn_alpha": [0.1],
        "own_trials": 4,
        "extended": 1,
        "extended_rounds": 2,
    },
}


def changed(**changes: Any) -> dict[str, Any]:
    return {**TABLES, **{key: {**TABLES.get(key, {}), **value} for key, value in changes.items()}}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], list[str]]:
    """A finished study: its folder, its record, and the splits that accuracy was measured on, in order."""
    splits: list[str] = []
    real = server_app.accuracy

    def accuracy(network: Any, data: Any, split: str) -> float:
        splits.append(split)
        return real(network, data, split)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(federated_cells, "at_once", lambda jobs, threads: 1)
        patch.setattr(server_app, "accuracy", accuracy)
        folder, record = run_study(study("test", TABLES, "test.toml"), Options(tmp_path_factory.mktemp("runs"), quiet=True))
    return folder, record, splits


def test_every_pair_is_tried_and_the_best_on_validation_images_is_used(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, record, splits = done
    found = record["results"]["tuning"]
    assert found["counts"] == {"fedavg": 4, "scaffold": 4, "fedadam": 2, "feddyn": 1}
    assert found["own_trials"] == 4
    trials = {name: [trial for trial in found["trials"] if trial["strategy"] == name] for name in found["counts"]}
    for name in ("fedavg", "scaffold"):
        pairs = [(trial["settings"]["lr"], trial["settings"]["momentum"]) for trial in trials[name]]
        assert pairs == [(1e-5, 0.0), (1e-5, 0.5), (0.02, 0.0), (0.02, 0.5)]
        best = max(trial["accuracy"] for trial in trials[name])
        assert found["chosen"][name] == next(trial["settings"] for trial in trials[name] if trial["accuracy"] == best)
    pair = found["chosen"]["fedavg"]
    assert pair["lr"] == 0.02
    assert found["chosen"]["fednova"] == found["chosen"]["central"] == pair
    assert found["chosen"]["feddyn"] == {**pair, "feddyn_alpha": 0.1}
    assert [trial["settings"] for trial in trials["fedadam"]] == [{**pair, "fedadam_lr": 0.01}, {**pair, "fedadam_lr": 1e-6}]
    assert found["chosen"]["fedadam"]["fedadam_lr"] == 0.01
    # Eleven trials of two measurements each come first; none of them is of the test split.
    assert splits[:22] == ["validation"] * 22
    assert set(splits[22:]) == {"test"}
    for name, values in found["chosen"].items():
        if name not in ("central", "random"):
            with safetensors.safe_open(folder / "runs" / f"{name}-s0" / "checkpoint.safetensors", framework="pt") as file:
                used = json.loads(json.loads(file.metadata()["checkpoint"])["key"])[0]
            assert {key: {**used["local"], **used["averaging"]}[key] for key in values} == values
            assert used["validation"] == 0.0


def test_uploads_are_tuned_with_as_many_trials_and_by_the_same_rule(tmp_path: Path) -> None:
    tables = changed(
        federation={"strategies": ["feddm", "random", "fedavg"], "targets": []},
        upload={"iterations": 1, "batch_real": 8},
        tuning={"upload": {"lr_img": [1.0, 30.0], "initial": ["noise", "real"]}, "extended": 0, "extended_rounds": None},
    )
    made = study("test", tables, "test.toml")
    assert made.hash != study("test", {**tables, "tuning": {**tables["tuning"], "upload": {}}}, "test.toml").hash
    folder, record = run_study(made, Options(tmp_path, quiet=True))
    found = record["results"]["tuning"]
    assert found["counts"] == {"feddm": 4, "fedavg": 4}
    trials = [trial for trial in found["trials"] if trial["strategy"] == "feddm"]
    assert [trial["settings"] for trial in trials] == [
        {"lr_img": lr, "initial": initial} for lr in (1.0, 30.0) for initial in ("noise", "real")
    ]
    best = max(trial["accuracy"] for trial in trials)
    chosen = next(trial["settings"] for trial in trials if trial["accuracy"] == best)
    assert found["chosen"]["feddm"] == chosen
    with safetensors.safe_open(folder / "runs" / "feddm-s0" / "checkpoint.safetensors", framework="pt") as file:
        used = json.loads(json.loads(file.metadata()["checkpoint"])["key"])[0]
    assert {key: used["upload"]["settings"][key] for key in chosen} == chosen
    assert {row[0]: row[-1] for row in accuracy_table(record)[1:]}["feddm"] == tuning.in_words(chosen)
    assert tuning.at_edge({"initial": "noise", "lr_img": 1.0}, [trial["settings"] for trial in trials]) == [
        "lr_img 1 is the smallest that was tried"
    ]


@pytest.mark.parametrize(
    ("strategies", "upload", "words"),
    [
        (["random", "fedavg"], {"lr_img": [1.0]}, "upload is of strategies that condense"),
        (["feddm", "fedavg"], {"decode": ["none", "formation:2"]}, "upload.decode is the same for all strategies"),
        (["feddm", "fedavg"], {"ipc": [1.0, 2.0]}, "upload.ipc is the same for all strategies"),
        (["feddm", "fedavg"], {"lr_img": [1.0, -1.0]}, "lr_img"),
        (["feddm", "fedavg"], {"iterations": [1, 0]}, "iterations"),
        (["feddm", "fedavg"], {"zzz": [1.0]}, "zzz"),
        (["feddm", "random"], {}, "no strategy of the study sends weights"),
    ],
)
def test_what_cannot_be_tried_is_refused(strategies: list[str], upload: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        study("test", changed(federation={"strategies": strategies}, tuning={"upload": upload}), "test.toml")


def test_the_best_at_an_edge_of_the_grid_is_said(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    folder, record, _ = done
    edges = record["results"]["tuning"]["edges"]
    assert edges["fedavg"][0] == "lr 0.02 is the largest that was tried"
    assert edges["fedadam"] == ["fedadam_lr 0.01 is the largest that was tried"], "the pair is FedAvg's and the same in all its trials"
    assert "feddyn" not in edges, "one value was no choice"
    sentences = missing(record, json.loads((folder / "config.json").read_text()))
    assert any(sentence.startswith("fedavg may not be at its best: lr 0.02 is the largest that was tried") for sentence in sentences)
    tried = [{"lr": lr, "momentum": momentum} for lr in (0.01, 0.03, 0.1) for momentum in (0.0, 0.5, 0.9)]
    assert tuning.at_edge({"lr": 0.03, "momentum": 0.5}, tried) == []
    assert tuning.at_edge({"lr": 0.03, "momentum": 0.0}, tried) == [], "nothing is below no momentum"
    assert tuning.at_edge({"lr": 0.01, "momentum": 0.9}, tried) == [
        "lr 0.01 is the smallest that was tried",
        "momentum 0.9 is the largest that was tried",
    ]


def test_a_trial_is_a_run_on_the_data_without_the_held_out_images(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, record, _ = done
    made = study("test", TABLES, "test.toml")
    data = load("digits", validation=0.1, seed=0)
    settings = tuning.with_values(made.settings_for("fedavg", 0, "cpu"), {"lr": 0.02, "momentum": 0.5})
    lines = run_inline(tuning.dataclasses.replace(settings, validation=0.1, split="validation"), data)
    trial = next(each for each in record["results"]["tuning"]["trials"] if each["settings"] == {"lr": 0.02, "momentum": 0.5})
    assert trial["accuracy"] == lines[-1]["accuracy"]


def test_the_best_strategies_get_more_rounds_and_the_table_says_all(done: tuple[Path, dict[str, Any], list[str]]) -> None:
    _, record, _ = done
    results = record["results"]
    accuracies: dict[str, float] = {}
    for trial in results["tuning"]["trials"]:
        accuracies[trial["strategy"]] = max(trial["accuracy"], accuracies.get(trial["strategy"], 0.0))
    (longer,) = results["tuning"]["extended"]
    assert accuracies[longer] == max(accuracies.values())
    assert {name: len(part["rounds"]) - 1 for name, part in results["strategies"].items()} == {
        name: 2 if name == longer else 1 for name in STRATEGIES
    }
    rows = accuracy_table(record)
    assert rows[0] == ["strategy", "round 1", "round 2", "MB up", "MB down", "client s", "to 5 %", "to 99.5 %", "dropped", "tuned"]
    by_name = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[1:]}
    assert bool(by_name[longer]["round 2"])
    assert by_name["random"]["round 2"] == by_name["random"]["tuned"] == by_name["central"]["client s"] == ""
    assert by_name["fednova"]["tuned"] == by_name["fedavg"]["tuned"]
    assert by_name["fedavg"]["tuned"].startswith("lr 0.02, momentum 0")
    first = next(line["round"] for line in results["strategies"]["fedavg"]["rounds"] if line["accuracy"]["mean"] >= 5)
    assert by_name["fedavg"]["to 5 %"] == f"{first:.1f}"
    assert by_name["fedavg"]["to 99.5 %"] == "0 of 1"
    assert f"{longer} " in answer(record)
    assert " in 2 rounds" in answer(record)
    assert "client seconds" in NOTE
    config = study("test", TABLES, "test.toml").merged
    assert not any("not tuned" in sentence for sentence in missing(record, config))
    assert any("not tuned" in sentence for sentence in missing(record, {k: v for k, v in config.items() if k != "tuning"}))


def test_a_study_that_goes_on_repeats_only_the_trials_that_it_lacks(
    done: tuple[Path, dict[str, Any], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, record, _ = done
    (folder / "record.json").write_text(json.dumps({**json.loads((folder / "record.json").read_text()), "status": "interrupted"}))
    lost = folder / "tuning" / "scaffold-lr0.02-momentum0.5"
    for path in (lost / "rounds.jsonl", lost / "checkpoint.safetensors"):
        path.unlink()
    ran = []
    real = federated_cells.run_cell
    monkeypatch.setattr(federated_cells, "at_once", lambda jobs, threads: 1)
    monkeypatch.setattr(federated_cells, "run_cell", lambda made, cell, *rest: (ran.append(cell.name), real(made, cell, *rest))[1])
    _, again = run_study(study("test", TABLES, "test.toml"), Options(folder.parent, resume=True, quiet=True))
    assert ran == ["trial of scaffold, lr 0.02, momentum 0.5"]
    assert again["results"]["tuning"] == record["results"]["tuning"]


def test_a_pipe_gets_the_number_of_trials_and_a_line_for_each_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(federated_cells, "at_once", lambda jobs, threads: 1)
    tables = changed(federation={"strategies": ["fedavg"], "targets": []}, tuning={"lr": [0.01], "momentum": [0.0], "extended": 0})
    run_study(study("test", tables, "test.toml"), Options(tmp_path))
    said = capsys.readouterr().err
    assert "trials of fedavg 1; of the study's own method, as its author states: 4" in said
    assert "fedavg: lr 0.01, momentum 0 (" in said
    (line,) = [line for line in said.splitlines() if "round 1 of 1" in line]
    assert line.startswith("fedavg, seed 0: round 1 of 1, ")
    assert "2 of 2 clients, " in line
    assert "client seconds" in line
    assert line.endswith(" MB")
    assert not list(tmp_path.rglob("live.json")), "no round is in progress any more"


def test_a_trial_of_which_no_weights_are_finite_keeps_the_first_accuracy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(federated_cells, "at_once", lambda jobs, threads: 1)
    tables = changed(federation={"strategies": ["fedavg"]}, tuning={"lr": [1e30, 0.01], "momentum": [0.0], "extended": 0})
    _, record = run_study(study("test", tables, "test.toml"), Options(tmp_path, quiet=True))
    assert record["status"] == "done"
    assert record["results"]["tuning"]["chosen"]["fedavg"]["lr"] == 0.01


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"tuning": {"lr": []}}, "lr"),
        ({"tuning": {"momentum": [1.0]}}, "momentum"),
        ({"tuning": {"lr": [0.1, 0.1]}}, "each once"),
        ({"tuning": {"extended_rounds": 1}}, "more than the study's 1 rounds"),
        ({"tuning": {"extended_rounds": None}}, "extended_rounds|allowed"),
        ({"tuning": {"leraning": 1}}, "leraning"),
        ({"federation": {"strategies": ["feddm"]}}, "no strategy of the study sends weights"),
        ({"federation": {"rounds_of": {"random": 3}}}, "rounds_of names 'random'; allowed: fedavg"),
        ({"federation": {"rounds_of": {"fedavg": 0}}}, "rounds_of"),
        ({"federation": {"targets": [101.0]}}, "targets"),
        ({"averaging": {"fedavgm_momentum": 1.0}}, "fedavgm_momentum"),
        ({"averaging": {"scaffold_weights": "half"}}, "scaffold_weights"),
        ({"local": {"augmentation": "crop_mirror"}}, "mirror"),
    ],
)
def test_mistakes_are_one_line(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        study("test", changed(**changes), "test.toml")
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("test.toml")


def test_options_that_are_not_used_leave_the_hash() -> None:
    plain = {key: value for key, value in TABLES.items() if key != "tuning"} | {"federation": {"strategies": ["fedavg"]}}
    merged = study("test", plain, "test.toml").merged
    assert "averaging" not in merged
    assert "tuning" not in merged
    assert set(merged["federation"]) == {"strategies", "engine", "seeds"}
    assert "augmentation" not in merged["local"]
    hashes = {study("test", {**plain, **more}, "test.toml").hash for more in ({}, {"tuning": {}}, {"averaging": {"fedavgm_lr": 0.5}})}
    assert len(hashes) == 3


def test_rounds_of_single_strategies() -> None:
    made = study("test", changed(federation={"rounds": 2, "rounds_of": {"fedavg": 7}}, tuning={"extended": 0}), "test.toml")
    assert [made.settings_for(name, 0, "cpu").rounds for name in ("fedavg", "scaffold", "random")] == [7, 2, 2]


def test_six_pairs_are_tried_by_default_and_fedavg_is_tuned_for_those_that_follow_it() -> None:
    found = tuning.grids(TuningTable(), ["feddm", "fedprox", "feddyn"])
    assert {name: len(values) for name, values in found.items()} == {"fedavg": 6, "fedprox": 6}
    assert list(tuning.grids(TuningTable(), ["fedavgm", "local"])) == ["fedavgm"]


# Rounds to a target


def lines(*accuracies: float) -> list[dict[str, Any]]:
    client = {"client": 0, "status": "accepted", "why": "", "seconds": 2.0}
    same = {"down": 50, "images": 0, "dropped": 0, "note": ""}
    return [{"round": k, "accuracy": a, "up": 100 * k, **same, "clients": [client] * bool(k)} for k, a in enumerate(accuracies)]


def test_a_target_is_reached_in_the_first_round_that_has_it() -> None:
    runs = [lines(10, 60, 85, 70), lines(10, 50, 75, 80)]
    assert reached(runs, 80) == {"reached": 2, "rounds": 2.5, "bytes": ((300 + 3 * 50) + (600 + 4 * 50)) / 2}
    assert reached(runs, 82) == {"reached": 1, "rounds": None, "bytes": None}
    assert summary(runs, (80, 99.5))["targets"]["99.5"]["reached"] == 0
    assert "targets" not in summary(runs)
    assert [line.get("client_seconds") for line in summary(runs)["rounds"]] == [None, 2.0, 2.0, 2.0]


# While it works


def test_who_watches_sees_rounds_clients_seconds_bytes_and_accuracy(tmp_path: Path) -> None:
    settings = study("test", TABLES, "test.toml").settings_for("fedavg", 0, "cpu")
    made = [Cell(tuning.dataclasses.replace(settings, rounds=3), tmp_path / str(k), f"fedavg, seed {k}") for k in range(4)]
    for cell in made:
        cell.folder.mkdir()
    watch = Watch(made)
    assert (watch.done(), watch.now(), watch.news()) == (0, "", [])
    (made[0].folder / "rounds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines(10, 60)))
    state = live.begin(made[0].folder, 2, 5)
    state = live.heard(made[0].folder, state, 3)
    assert watch.done() == 1
    assert watch.now().startswith("fedavg, seed 0: round 2 of 3, 1 of 5 clients, last client 3, ")
    assert watch.now().endswith(" s, 60.0 %, 0.00 MB")
    assert watch.news() == ["fedavg, seed 0: round 1 of 3, 60.0 %, 1 of 1 clients, 2 client seconds, 0.000 MB"]
    assert watch.news() == []
    for cell in made[1:]:
        live.begin(cell.folder, 1, 5)
    assert watch.now().endswith("; 2 more")
    live.end(made[0].folder)
    assert "seed 0" not in watch.now()
    (made[1].folder / "live.json").write_text("{")  # of another version, or damaged
    assert live.read(made[1].folder) is None


def test_the_server_says_which_clients_have_answered_as_they_do(tmp_path: Path) -> None:
    from apps.federated.client_app import client_app

    data, seen = load("digits"), []
    app = client_app(data)
    settings = study("test", TABLES, "test.toml").settings_for("fedavg", 0, "cpu")

    def client(message: Any, context: Any) -> Any:
        if message.metadata.message_type == "train.fit":
            seen.append(live.read(tmp_path))
        return app(message, context)

    run_inline(tuning.dataclasses.replace(settings, rounds=2), data, tmp_path, client=client)
    assert [(each.round, each.clients, each.answered, each.last) for each in seen] == [
        (1, 2, 0, None),
        (1, 2, 1, 0),
        (2, 2, 0, None),
        (2, 2, 1, 0),
    ]
    assert 0 <= time.time() - seen[0].began < 600
    assert live.read(tmp_path) is None
