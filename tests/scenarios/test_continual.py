"""The study of kind "continual": tables are checked, runs resume to the same numbers, reports tell what was found."""

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("avalanche")

from apps.continual.memory_file import load
from distill.errors import InputError
from distill.records import read_json, read_lines
from kept.continual import kept_rows
from scenarios.catalogue import run_study, study
from scenarios.continual.show import accuracy_table, answer, missing, question
from scenarios.engine.scenario import parse, shipped
from scenarios.engine.study import Options

QUICK: dict[str, Any] = {
    "kind": "continual",
    "data": {"name": "digits", "classes": [0, 1]},
    "stream": {"experiences": 2, "orders": 2},
    "memory": {"methods": ["random", "dm"], "per_class": [1], "bytes_of": [1]},
    "learner": {
        "strategies": ["scratch", "replay", "none", "joint"],
        "network": "ConvNetD1W8",
        "nets": 2,
        "recipe": {"max_steps": 2, "batch_size": 8},
    },
    "training": {"epochs": 1, "batch_size": 64},
    "settings": {"dm": {"iterations": 4, "network": "ConvNetD1W8", "batch_real": 8}},
}


def changed(**tables: Any) -> dict[str, Any]:
    copy = json.loads(json.dumps(QUICK))
    for key, table in tables.items():
        copy[key] = {**copy.get(key, {}), **table}
    return copy


def run(tables: dict[str, Any], out: Path, resume: bool = False) -> tuple[Path, dict[str, Any]]:
    return run_study(study("quick", tables, "quick.toml"), Options(out=out, quiet=True, resume=resume))


def same(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells without their times."""
    return [{key: value for key, value in cell.items() if key != "condense_seconds"} for cell in record["results"]["cells"]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    return run(QUICK, tmp_path_factory.mktemp("whole"))


def test_every_cell_is_there_with_its_items_and_bytes(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, record = whole
    cells = {(c["strategy"], c["budget"], c["method"], c["storage"]): c for c in record["results"]["cells"]}
    assert len(cells) == 2 * 3 * 2 + 2
    pixels = 16 * 16
    for (strategy, budget, method, storage), cell in cells.items():
        assert len(cell["accuracy"]["values"]) == 2
        if strategy == "joint":
            continue
        assert len(cell["matrix"]) == len(cell["matrix"][0]) == 2
        assert cell["accuracy"]["values"][0] == pytest.approx(sum(cell["matrix"][-1]) / 2)
        assert cell["forgetting"]["values"][0] == pytest.approx(cell["matrix"][0][0] - cell["matrix"][1][0])
        assert cell["backward_transfer"]["mean"] == pytest.approx(-cell["forgetting"]["mean"])
        if not method:
            continue
        if budget == "items1":
            assert (cell["items"], cell["bytes"], storage) == (2, 2 * (4 * pixels + 8), "float32")
        else:
            limit = 2 * (4 * pixels + 8)
            assert cell["bytes"] <= limit < cell["bytes"] + 2 * (pixels * (1 if storage == "uint8" else 4) + 8)
            assert cell["items"] == (6 if storage == "uint8" else 2)
    assert (folder / "report.html").stat().st_size > 10_000
    names = {path.name for path in (folder / "figures").glob("*.png")}
    assert {"accuracy-scratch-items1.png", "matrix-replay-bytes1.png", "memory-items1-dm-float32-order0.png"} <= names
    lines = list(read_lines(folder / "metrics.jsonl"))
    assert len({json.dumps({k: v for k, v in line.items() if k not in ("accuracies", "seconds")}) for line in lines}) == len(lines)


def test_table_answer_and_kept_rows(whole: tuple[Path, dict[str, Any]]) -> None:
    folder, record = whole
    table = accuracy_table(record)
    assert len(table) == 1 + len(record["results"]["cells"])
    assert all(len(row) == len(table[0]) for row in table)
    assert any("bytes of 1 float32 a class" in row[0] and row[2] == "uint8" and row[3] == "6" for row in table)
    assert "leads with" in answer(record)
    assert "intervals" in answer(record)
    rows = kept_rows(folder)
    assert {row["method"] for row in rows} == {"random", "dm", ""}
    assert all(row["dataset"] == "digits" and float(row["accuracy_mean"]) >= 0 for row in rows)


@pytest.mark.parametrize("moment", [4, 15])
def test_a_stopped_run_resumes_to_the_same_numbers(
    moment: int, whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped after so many ledger lines (between units, between and inside experiences), then resumed."""
    import scenarios.continual.parts as room

    real, count = room.append_line, []

    def failing(path: Path, event: dict[str, Any]) -> None:
        real(path, event)
        count.append(1)
        if len(count) == moment:
            raise KeyboardInterrupt

    monkeypatch.setattr(room, "append_line", failing)
    with pytest.raises(KeyboardInterrupt):
        run(QUICK, tmp_path)
    (folder,) = tmp_path.iterdir()
    assert read_json(folder / "record.json")["status"] == "interrupted"
    monkeypatch.setattr(room, "append_line", real)
    with pytest.raises(InputError, match="unfinished run"):
        run(QUICK, tmp_path)
    _, record = run(QUICK, tmp_path, resume=True)
    assert same(record) == same(whole[1])


def test_parts_side_by_side_make_the_same_bits(whole: tuple[Path, dict[str, Any]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped while a finished part's lines are taken in, of two processes, then resumed in this one: as in one process at one go."""
    import scenarios.continual.parts as room

    monkeypatch.setattr(room, "WORTH_WORKERS", -1.0)
    monkeypatch.setattr(room, "at_once", lambda jobs: min(jobs, 2))
    real, count = room.append_line, []

    def failing(path: Path, event: dict[str, Any]) -> None:
        real(path, event)
        count.append(1)
        if len(count) == 7:
            raise KeyboardInterrupt

    monkeypatch.setattr(room, "append_line", failing)
    with pytest.raises(KeyboardInterrupt):
        run(QUICK, tmp_path)
    monkeypatch.setattr(room, "append_line", real)
    monkeypatch.setattr(room, "WORTH_WORKERS", 1e9)
    folder, record = run(QUICK, tmp_path, resume=True)
    assert same(record) == same(whole[1])
    assert not list((folder / "parts").iterdir())
    lines = [
        sorted(json.dumps({k: v for k, v in line.items() if k != "seconds"}) for line in read_lines(place / "metrics.jsonl"))
        for place in (folder, whole[0])
    ]
    assert lines[0] == lines[1]


def test_a_part_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import scenarios.continual.parts as room

    monkeypatch.setattr(room, "WORTH_WORKERS", -1.0)
    monkeypatch.setattr(room, "at_once", lambda jobs: min(jobs, 2))
    tables = changed(learner={"strategies": ["scratch"], "nets": 1}, memory={"methods": ["random"], "bytes_of": []})
    del tables["settings"]
    blocked = study("quick", tables, "quick.toml")
    place = tmp_path / f"quick-{blocked.hash}-s0" / "memories"
    place.mkdir(parents=True)
    (place / "items1-random-float32-order1").write_text("in the way")
    with pytest.raises(InputError, match=r"items1-random-float32-order1: .*--resume"):
        run(tables, tmp_path, resume=True)


def test_the_condensed_memory_of_a_stopped_run_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import apps.continual.pools as core

    tables = changed(learner={"strategies": ["scratch", "replay", "der"]}, memory={"methods": ["dm"], "bytes_of": []}, stream={"orders": 1})
    real, calls = core.condense_images, []
    monkeypatch.setattr(core, "condense_images", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    run(tables, tmp_path)
    assert len(calls) == 2, "one condensation an experience, shared by every strategy"


def test_plain_and_decoded_memories_have_the_same_bytes(tmp_path: Path) -> None:
    """Four images in the place of one, in the form's bytes; "dm-decoded" has the settings of "dm" and its own over them."""
    tables = changed(
        stream={"orders": 1},
        memory={"methods": ["random", "dm", "random-decoded", "dm-decoded"], "decode": "formation:2", "per_class": []},
        learner={"strategies": ["scratch", "er_ace"], "nets": 1},
        settings={"dm-decoded": {"lr_img": 2.0}},
    )
    made = study("quick", tables, "quick.toml")
    assert made.settings["random-decoded"] == {"decode": "formation:2"}
    assert made.settings["dm-decoded"] == {**made.settings["dm"], "decode": "formation:2", "lr_img": 2.0}
    assert "decode" not in study("quick", QUICK, "quick.toml").merged["memory"], "studies without it keep their hash"
    folder, record = run(tables, tmp_path)
    cells = {(c["strategy"], c["method"], c["storage"]): c for c in record["results"]["cells"]}
    assert len(cells) == 2 * 4 * 2
    for (_, method, storage), cell in cells.items():
        plain = cells["scratch", method.removesuffix("-decoded"), storage]
        assert (cell["items"], cell["bytes"]) == (plain["items"], plain["bytes"])
    assert all(cell["accuracy"]["low"] is cell["forgetting"]["high"] is None for cell in cells.values()), "one class order"
    assert not any(word in answer(record) for word in ("nan", "intervals"))
    held = load(folder / "memories" / "bytes1-dm-decoded-float32-order0" / "memory-1.safetensors")
    assert (len(held), held.count) == (2, 8)
    assert "those named -decoded store formation:2" in question(made.merged)
    assert "memory-bytes1-dm-decoded-uint8-order0.png" in {path.name for path in (folder / "figures").glob("*.png")}


def test_a_form_that_does_not_fit_the_images_is_refused_before_any_work(tmp_path: Path) -> None:
    for decode, match in (("formation:3", "pads images of 16 x 16"), ("frequency:9", "uint8 is of pixels")):
        with pytest.raises(InputError, match=match):
            run(changed(memory={"methods": ["dm", "random-decoded"], "decode": decode}), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("setting", ["domain", "online"])
def test_other_streams_run(setting: str, tmp_path: Path) -> None:
    stream = {"setting": setting, "orders": 1, "mini": 40, "every": 2, **({"domains": ["digits"]} if setting == "domain" else {})}
    learner = {"strategies": ["scratch", "replay"], "nets": 1}
    tables = changed(stream=stream, learner=learner, memory={"methods": ["reservoir", "dm"], "bytes_of": []})
    _, record = run(tables, tmp_path)
    cells = record["results"]["cells"]
    assert [cell["items"] for cell in cells] == [2] * 4


RETURNING = {
    "permuted": ({}, 2, 4),
    "rotated": ({"degrees": 90.0}, 2, 4),
    "repetition": ({"experiences": 3, "classes_each": 1}, 2, 3),
    "blurry": ({"blurred": 0.2}, 2, 4),
    "domain": ({"domains": ["digits"]}, 2, 4),
}


@pytest.mark.parametrize("setting", RETURNING)
def test_streams_whose_classes_come_back_run(setting: str, tmp_path: Path) -> None:
    """Merged, two classes have two images at the end; kept separate, as many as there are classes in all experiences."""
    options, merged, separate = RETURNING[setting]
    for returning, items in (("merge", merged), ("separate", separate)):
        tables = changed(
            stream={"setting": setting, "orders": 1, **options},
            learner={"strategies": ["scratch", "replay"], "nets": 1},
            memory={"methods": ["random", "reservoir", "dm"], "bytes_of": [], "returning": returning},
        )
        _, record = run(tables, tmp_path)
        assert [cell["items"] for cell in record["results"]["cells"]] == [items] * 6
        assert "arrive" in question(study("quick", tables, "quick.toml").merged)


def test_other_networks_learn_from_the_same_memories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each learner again with an MLP and a GroupNorm ConvNet; memories are condensed once, and the first network's rows stay."""
    import apps.continual.pools as core

    tables = changed(
        stream={"orders": 1},
        memory={"methods": ["dm"], "bytes_of": []},
        learner={"strategies": ["scratch", "replay", "none", "joint"], "nets": 1},
    )
    made = study("quick", tables, "quick.toml")
    assert "others" not in made.merged["learner"], "studies without it keep their hash"
    _, alone = run(tables, tmp_path / "alone")
    tables["learner"]["others"] = ["MLP", "ConvNetD1W8GN"]
    real, calls = core.condense_images, []
    monkeypatch.setattr(core, "condense_images", lambda *a, **k: (calls.append(1), real(*a, **k))[1])
    folder, record = run(tables, tmp_path / "more")
    assert len(calls) == 2, "one condensation an experience, shared by every learner"
    cells = {cell["strategy"]: cell for cell in record["results"]["cells"]}
    strategies = ["scratch", "replay", "none", "joint"]
    assert list(cells) == [*strategies, *(f"{name}@{network}" for network in ("MLP", "ConvNetD1W8GN") for name in strategies)]
    for before in same(alone):
        now = {key: value for key, value in cells[before["strategy"]].items() if key not in ("condense_seconds", "network")}
        assert now == before
    assert {name: cell["network"] for name, cell in cells.items()}["replay@MLP"] == "MLP"
    assert cells["scratch@MLP"]["bytes"] == cells["scratch"]["bytes"]
    assert len({json.dumps(cells[name]["matrix"]) for name in ("none", "none@MLP", "none@ConvNetD1W8GN")}) > 1
    rows = {row["strategy"]: row["network"] for row in kept_rows(folder)}
    assert (rows["scratch"], rows["scratch@MLP"]) == ("ConvNetD1W8", "MLP")
    assert "again with MLP and ConvNetD1W8GN as @network" in question(study("quick", tables, "quick.toml").merged)
    lines = (folder / "metrics.jsonl").read_text()
    _, again = run(tables, tmp_path / "more", resume=True)
    assert again["results"] == record["results"]
    assert (folder / "metrics.jsonl").read_text() == lines


def test_a_network_that_takes_long_learns_once_from_the_last_memory_of_the_first_order(tmp_path: Path) -> None:
    """Its accuracy is that of the same network trained from scratch at the last experience."""
    tables = changed(
        stream={"orders": 2},
        memory={"methods": ["random", "dm"], "bytes_of": []},
        learner={"strategies": ["scratch"], "nets": 1, "others": ["ConvNetD1W8GN"]},
    )
    assert "last" not in study("quick", tables, "quick.toml").merged["learner"], "studies without it keep their hash"
    tables["learner"]["last"] = ["ConvNetD1W8GN"]
    folder, record = run(tables, tmp_path)
    cells = {(cell["strategy"], cell["method"]): cell for cell in record["results"]["cells"]}
    lines = [line for line in read_lines(folder / "metrics.jsonl") if line["stage"] == "learn" and line["strategy"] == "last@ConvNetD1W8GN"]
    assert [(line["order"], line["experience"]) for line in lines] == [(0, 1), (0, 1)], "one for each memory"
    for method in ("random", "dm"):
        (value,) = cells["last@ConvNetD1W8GN", method]["accuracy"]["values"]
        matrix = cells["scratch@ConvNetD1W8GN", method]["matrix"]
        assert value == sum(matrix[-1]) / 2
        assert cells["last@ConvNetD1W8GN", method]["network"] == "ConvNetD1W8GN"
        assert cells["last@ConvNetD1W8GN", method]["accuracy"]["low"] is None
    assert {row["strategy"] for row in kept_rows(folder)} >= {"last@ConvNetD1W8GN"}
    assert "ConvNetD1W8GN from scratch on the last memory" in question(study("quick", tables, "quick.toml").merged)
    _, again = run(tables, tmp_path, resume=True)
    assert again["results"] == record["results"]


def test_a_row_at_chance_is_named() -> None:
    """Ten classes: 10 % is one answer for all images. A learner without a memory, which knows its last experience, is above it."""
    experiences = [{"classes": [2 * k, 2 * k + 1]} for k in range(5)]

    def cell(strategy: str, method: str, values: list[float]) -> dict[str, Any]:
        return {"strategy": strategy, "budget": "items3" if method else "", "method": method, "storage": "", "accuracy": {"values": values}}

    cells = [cell("replay", "dm", [10.0, 31.2, 11.9]), cell("replay", "random", [30.0, 28.0, 31.0]), cell("none", "", [18.9, 19.1, 19.3])]
    config = {
        "learner": {"strategies": ["replay", "none"], "split": "test"},
        "memory": {"methods": ["dm", "random"]},
        "stream": {"orders": 3},
    }
    found = [line for line in missing({"results": {"experiences": experiences, "cells": cells}}, config) if "chance" in line]
    assert found == ["replay, 3 a class dm: at chance (10 %) in 2 of 3 class orders; if its training diverged, lower lr."]


def test_a_shrinking_share_holds_as_much_from_the_start(tmp_path: Path) -> None:
    tables = changed(
        stream={"orders": 1},
        memory={"methods": ["random"], "share": "shrinking", "per_class": [3], "bytes_of": []},
        learner={"strategies": ["scratch"]},
    )
    del tables["settings"]
    folder, _ = run(tables, tmp_path)
    items = [line["items"] for line in read_lines(folder / "metrics.jsonl") if line["stage"] == "memory"]
    assert items == [6, 6]


@pytest.mark.parametrize(
    ("tables", "match"),
    [
        ({"memory": {"methods": ["herdin"]}}, "did you mean 'herding'"),
        ({"memory": {"methods": []}}, "methods"),
        ({"memory": {"per_class": [0]}}, "per_class"),
        ({"memory": {"per_class": [], "bytes_of": []}}, "give at least one number"),
        ({"learner": {"strategies": ["ewc"]}}, "strategies"),
        ({"learner": {"strategies": ["der"]}}, "bytes_of with strategy"),
        ({"learner": {"network": "ConvNetX"}}, "ConvNet"),
        ({"stream": {"setting": "domain"}}, "domains are for setting"),
        ({"stream": {"domains": ["usps"]}}, "domains are for setting"),
        ({"stream": {"setting": "online"}, "memory": {"share": "shrinking"}}, "allowed with an online stream"),
        ({"stream": {"orders": 0}}, "orders"),
        ({"stream": {"degrees": 90.0}}, "degrees is for setting 'rotated'; setting is 'class'"),
        ({"stream": {"setting": "rotated", "blurred": 0.1}}, "blurred is for setting 'blurry'"),
        ({"stream": {"setting": "blurry", "blurred": 1.5}}, "blurred"),
        ({"learner": {"others": ["MLPP"]}}, "did you mean 'MLP'"),
        ({"learner": {"others": ["ConvNetD1W8"]}}, "which is the learner's network"),
        ({"learner": {"others": ["MLP", "MLP"]}}, "allowed: different ones, each once"),
        ({"learner": {"others": []}}, "others"),
        ({"learner": {"last": ["MLPP"]}}, "did you mean 'MLP'"),
        ({"learner": {"last": ["MLP", "MLP"]}}, "allowed: different ones, each once"),
        ({"memory": {"methods": ["dm", "dm"]}}, "allowed: different ones, each once"),
        ({"training": {"exemplar_transform": "flip"}}, "exemplar_transform"),
        ({"training": {"exemplar_transform": "dsa"}, "memory": {"methods": ["reservoir"]}}, "not for the memory 'reservoir'"),
        ({"memory": {"returning": "merge"}}, "returning is for classes that come back"),
        ({"stream": {"setting": "blurry"}, "memory": {"methods": ["random-zlib"]}}, 'with returning = "separate" where classes come back'),
        ({"data": {"zca": True}}, "zca"),
        ({"memory": {"methods": ["random-decoded"]}}, "go together; give both"),
        ({"memory": {"decode": "formation:2"}}, "go together; give both"),
        ({"memory": {"methods": ["reservoir-decoded"], "decode": "formation:2"}}, "did you mean 'reservoir'"),
        ({"memory": {"methods": ["dm", "random-decoded"], "decode": "formation"}}, "decode is 'formation'"),
        ({"settings": {"gm": {}}}, "method 'gm' is not known"),
        ({"settings": {"dm": {"iteration": 3}}}, "did you mean 'iterations'"),
        ({"replay": {}}, "replay"),
    ],
)
def test_wrong_tables_are_one_line(tables: dict[str, Any], match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        study("quick", changed(**tables), "quick.toml")
    assert "\n" not in str(caught.value)


def test_what_does_not_divide_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="2 classes do not divide into 3 experiences; allowed: 1, 2"):
        run(changed(stream={"experiences": 3}), tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_shipped_scenarios_are_whole() -> None:
    found = [name for name in shipped() if name.startswith("continual-")]
    assert len(found) >= 7
    for name in found:
        made = study(name, parse(shipped()[name]), name)
        assert made.merged["kind"] == "continual"
        assert shipped()[name].read_text().startswith(f"# distill run {name}")
