"""docs/speed.md says what the kept record says, and the record is of what the page promises."""

import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import equal_cost, launches, layers, steps
from benchmarks.core import KEPT, PAGE, TARGETS
from benchmarks.page import with_launches, with_layers, with_steps, with_table
from distill.errors import InputError
from distill.records import append_line, read_json
from scenarios.reporting.text import replaced


def test_the_page_is_made_from_the_record() -> None:
    assert PAGE.read_text() == with_table(PAGE.read_text(), read_json(KEPT))


def test_a_table_goes_between_its_marks_and_nowhere_else() -> None:
    assert replaced("a\n<b>\nold\n<e>\nz <e>", "<b>", "new", "<e>") == "a\n<b>\nnew\n<e>\nz <e>"
    for page in ("no mark", "<e> <b>", "<b> only"):
        with pytest.raises(InputError, match="has no place for a table; put <b> and <e>"):
            replaced(page, "<b>", "new", "<e>")


def test_the_record_has_every_part_at_the_promised_setting() -> None:
    record = read_json(KEPT)
    assert (record["width"], record["ipc"], record["batch_real"], record["classes"]) == (128, 10, 256, 10)
    assert record["rounds"] >= 3
    assert set(TARGETS) <= set(record["results"])
    for part in TARGETS:
        forms = record["results"][part]
        for row in forms.values():
            assert len(row["times"]) == record["rounds"]
            assert row["seconds"] == statistics.median(row["times"])
            assert row["ratio"] == forms["plain"]["seconds"] / row["seconds"]
        for label in TARGETS[part]:
            assert any(form.startswith(label) for form in forms)


def test_float32_forms_are_the_same_arithmetic() -> None:
    results = read_json(KEPT)["results"]
    for part in ("dm", "gm", "datadam"):
        for form, row in results[part].items():
            if form.startswith("float32"):
                assert row["gradient_error"] < 1e-3, (part, form)


def test_the_table_of_steps_is_made_from_its_record() -> None:
    record = read_json(steps.KEPT)
    assert PAGE.read_text() == with_steps(PAGE.read_text(), record)
    assert (record["ipc"], record["batch_real"], set(record["results"])) == (10, 128, {"64", "128"})
    for rows in record["results"].values():
        assert set(rows) == set(steps.FORMS)
        for name, row in rows.items():
            base = steps.FORMS[name].base
            assert len(row["times"]) >= 3
            assert row["seconds"] == statistics.median(row["times"])
            if base:
                pairs = zip(row["times"], rows[base]["times"], strict=True)
                assert (row["base"], row["ratio"]) == (base, statistics.median(ours / other for ours, other in pairs))


def test_the_table_of_layers_is_made_from_its_record() -> None:
    record = read_json(layers.KEPT)
    assert PAGE.read_text() == with_layers(PAGE.read_text(), record)
    assert set(record["microseconds"]) == {f"{precision}, {chunk} images" for precision in layers.PRECISIONS for chunk in layers.CHUNKS}
    for row in record["microseconds"].values():
        assert sum(value for name, value in row.items() if name.startswith("convolution")) < row["compiled"] < row["plain"]


def test_the_parts_of_a_pass_are_its_convolutions() -> None:
    made = layers.forms("float32", 2)
    shapes = [tuple(made[f"convolution {place}"]().shape) for place in (1, 2, 3)]  # type: ignore[attr-defined]
    assert shapes == [(2, 128, 32, 32), (2, 128, 16, 16), (2, 128, 8, 8)]


def test_the_table_of_launches_is_made_from_its_record_which_is_within_the_limits() -> None:
    record = read_json(launches.KEPT)
    assert PAGE.read_text() == with_launches(PAGE.read_text(), record)
    for method, limit in launches.LIMIT.items():
        rows = record["results"][method]
        assert {str(classes) for classes in launches.CLASSES} <= set(rows)
        for row in rows.values():
            assert (row["waits"], row["mixed"]) == ({}, {})
            assert row["operations"] <= limit * row["groups"]
    for name in launches.OTHERS:
        for row in record["results"][name].values():
            assert sum(row["waits"].values()) == (name == "test pass"), "its result"
            assert row["operations"] <= 250 * row["groups"]
    for method in launches.LARGE:
        assert record["results"][method][launches.LARGE_ROW]["peak_bytes"] < launches.LARGE_LIMIT


def test_equal_cost_counts_the_last_whole_run_of_a_method(tmp_path: Path) -> None:
    ledger = tmp_path / "ledger.jsonl"

    def point(minutes: int, accuracy: float) -> equal_cost.Point:
        seconds, accuracies = 60.0 * minutes, [accuracy, accuracy + 2]
        return {"method": "dm", "minutes": minutes, "seconds": seconds, "prepared": 30.0, "steps": 10 * minutes, "accuracy": accuracies}

    for line in (point(2, 40.0), point(2, 42.0), point(5, 44.0)):  # the first run was stopped
        append_line(ledger, dict(line))
    assert equal_cost.finished(ledger) == {}
    append_line(ledger, {"method": "dm", "done": True})
    points = equal_cost.finished(ledger)["dm"]
    assert points == [point(2, 42.0), point(5, 44.0)]
    record: equal_cost.Comparison = {
        "data": "digits",
        "ipc": 1,
        "network": "ConvNetW16",
        "networks": 2,
        "recipe": {},
        "environment": {"processor": "a processor"},
        "points": points,
    }
    assert equal_cost.table(record).splitlines()[-1] == "| `dm` | 43.0 | 45.0 | 0.5 min | 5.40 |"


def test_equal_cost_counts_processes_that_trained_networks() -> None:
    before = equal_cost.cpu_seconds()
    subprocess.run([sys.executable, "-c", "import time\nwhile time.process_time() < 0.5: pass"], check=True)
    assert 0.4 < equal_cost.cpu_seconds() - before < 5
