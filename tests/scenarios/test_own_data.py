"""A user's own data on the command line and in scenario files: size, classes, validation, imbalance, notes, and relative paths."""

import json
from pathlib import Path

import pytest

from distill.errors import InputError
from scenarios.catalogue import study
from scenarios.commands.options import class_numbers
from scenarios.engine import folder as rooms
from scenarios.engine.scenario import override, parse, read_scenario
from tests.distill.test_data import picture
from tests.distill.test_folders import build
from tests.scenarios.test_cli import SMALL, call

STUDY = 'kind = "condense"\n[data]\nname = "folder:own/tt"\nsize = 8\n[method]\nname = "dm"\n'


def mixed_sizes(top: Path) -> None:
    """Two classes of images of 4 x 4 and one of 6 x 9, and a class without images."""
    build(top, ["cat/ 6", "dog/ 6", "bare/"])
    picture(top / "cat" / "large.png", 9, 6)


def test_the_command_of_the_page_about_own_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    mixed_sizes(tmp_path / "my-images")
    command = ["condense", "--data", "folder:my-images", "--method", "dm", *SMALL, "--device", "cpu", "--out", tmp_path / "runs"]
    code, _, error = call(*command)
    assert code == 2
    assert "give a size to resize them: --size 32, [data] size = 32" in error
    assert f"folder:{tmp_path / 'my-images'}: " in error
    code, out, error = call(*command, "--size", 8, "--validation", 0.25, "--seed", 3)
    assert (code, "note: " in error) == (0, True), error
    (folder,) = (tmp_path / "runs").iterdir()
    config = json.loads((folder / "config.json").read_text())
    assert config["data"] == {
        "name": "folder:my-images",
        "validation": 0.25,
        "size": 8,
        "classes": None,
        "zca": False,
    }
    record = json.loads((folder / "record.json").read_text())
    assert (record["results"]["data"]["train"], record["results"]["data"]["test"]) == (8, 2)
    (note,) = record["notes"]
    assert note == f"{tmp_path / 'my-images'}: class folders without images are left out: bare."
    assert f"note: {note}\n" in error
    # A folder without a test split gives other test images for another seed, so the set's own seed is taken.
    seen, real = [], rooms.load
    monkeypatch.setattr(rooms, "load", lambda *a, **options: seen.append((options["seed"], options["size"])) or real(*a, **options))
    evaluate = ["evaluate", folder / "condensed.safetensors", "--data", "folder:my-images", "--seeds", 1, "--network", "ConvNetD1W32"]
    code, out, error = call(*evaluate, "--baseline", "random", "--validation", 0.25, "--device", "cpu")
    assert (code, "random" in out, seen) == (0, True, [(3, 8)]), error
    assert f"note: {note}\n" in error
    code, _, error = call(*evaluate, "--size", 16)
    assert code == 2
    code, _, error = call(*evaluate, "--validation", 1)
    assert (code, "'validation' is 1.0" in error) == (2, True), error


def test_imbalance_and_classes_reach_the_data(tmp_path):
    command = ["condense", "--data", "digits", *SMALL, "--device", "cpu", "--out", tmp_path / "runs", "--quiet"]
    assert call(*command, "--classes", "0,2..4", "--imbalance", 10, "--size", 8)[0] == 0
    (folder,) = (tmp_path / "runs").iterdir()
    data = json.loads((folder / "config.json").read_text())["data"]
    assert (data["classes"], data["imbalance"], data["size"]) == ([0, 2, 3, 4], 10.0, 8)
    # The digits have 128, 127, 133 and 131 training images of these classes; the largest is 133.
    counts = [min(held, int(133 * 10 ** (-place / 3))) for place, held in enumerate((128, 127, 133, 131))]
    assert json.loads((folder / "record.json").read_text())["results"]["data"]["train"] == sum(counts)
    for option, value, message in (
        ("--imbalance", 0.5, "key 'imbalance' is 0.5; allowed: a number of at least 1 or nothing"),
        ("--imbalance", 1e9, "imbalance is 1000000000.0; allowed: 1 to"),
        ("--classes", "cat", "--classes 'cat': allowed: class numbers from 0 and ranges"),
        ("--classes", "4..1", "--classes '4..1': allowed"),
        ("--classes", "0,0", "--classes '0,0' names class 0 twice; give each class once."),
        ("--classes", "3,1..4", "--classes '3,1..4' names class 3 twice"),
        ("--classes", "11", "allowed: at least one of 0..9"),
        ("--size", 0, "--size"),
    ):
        code, _, error = call(*command, option, value)
        assert (code, message in error) == (2, True), error


@pytest.mark.parametrize(("text", "numbers"), [("3", [3]), ("0..2,7", [0, 1, 2, 7]), (" 5 , 1..1 ", [1, 5]), ("4..6,3", [3, 4, 5, 6])])
def test_class_numbers(text, numbers):
    assert class_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", ",", "1,", "-1", "1.5", "..", "1..", "٣", "9" * 30, "0..999999"])
def test_class_numbers_that_are_none(text):
    with pytest.raises(InputError, match=r"--classes .* allowed: class numbers"):
        class_numbers(text)


@pytest.mark.parametrize(("text", "number"), [("0,0", 0), ("1..3,2", 2), ("4,0..9", 4), ("7..7,7", 7)])
def test_a_class_is_named_once(text, number):
    with pytest.raises(InputError, match=rf"--classes '{text}' names class {number} twice; give each class once\."):
        class_numbers(text)


def test_an_imbalance_changes_the_hash_and_none_leaves_it():
    """A study without it has the hash that it had before there was an imbalance."""
    tables = {"kind": "condense", "data": {"name": "digits"}, "method": {"name": "dm"}}
    plain, tailed = study("x", tables, "x"), study("x", override(tables, ["data.imbalance=100"]), "x")
    assert plain.merged["data"] == {"name": "digits", "validation": 0.0, "size": None, "classes": None, "zca": False}
    assert tailed.merged["data"]["imbalance"] == 100.0
    assert plain.hash != tailed.hash


def test_a_federated_study_refuses_an_imbalance():
    with pytest.raises(InputError, match="zca, classes and imbalance are not for federated studies"):
        study("x", {"kind": "federated", "data": {"name": "digits", "imbalance": 2.0}}, "x.toml")


def test_a_path_in_a_scenario_is_beside_the_file_wherever_it_is_run(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "study.toml").write_text(STUDY)
    expected = f"folder:{tmp_path / 'own' / 'own' / 'tt'}"
    hashes = set()
    for here, given in ((tmp_path, "own/study.toml"), (tmp_path / "own", "study.toml"), (Path("/"), str(tmp_path / "own" / "study.toml"))):
        monkeypatch.chdir(here)
        name, tables = read_scenario(given)
        made = study(name, tables, given)
        assert made.data.name == expected
        hashes.add(made.hash)
    assert len(hashes) == 1
    monkeypatch.chdir(tmp_path)
    code, _, error = call("run", "own/study.toml", "--out", tmp_path / "runs")
    assert (code, error) == (2, f"error: {expected}: is not a folder.\n")
    tables = {"kind": "continual", "data": {"name": "mhist:/a"}, "stream": {"setting": "domain", "domains": ["folder:../b", "digits"]}}
    made = study("x", tables, str(tmp_path / "own" / "x.toml"))
    assert made.data.name == "mhist:/a"
    assert made.stream.domains == (f"folder:{tmp_path / 'b'}", "digits")
    assert tables["stream"]["domains"] == ["folder:../b", "digits"]


def test_a_scenario_that_begins_with_a_byte_order_mark_is_read(tmp_path):
    file = tmp_path / "x.toml"
    file.write_bytes(STUDY.encode("utf-8-sig"))
    assert parse(file)["data"]["size"] == 8
