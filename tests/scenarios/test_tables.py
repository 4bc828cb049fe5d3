"""The README says what the kept records say."""

import csv
import json
from pathlib import Path

import pytest

from distill.errors import InputError
from scenarios.schema import shipped
from scenarios.tables import BEGIN, COLUMNS, EXPECTED, kept, pages, readme_table, rows_of
from scenarios.template import from_template


def test_the_tables_of_the_pages_are_those_that_the_csv_files_make() -> None:
    for page, text in pages().items():
        assert BEGIN in text
        assert page.read_text() == text


def test_every_kept_file_belongs_to_a_shipped_scenario() -> None:
    for path in EXPECTED.glob("*.csv"):
        assert path.stem == "published" or path.stem in shipped() or from_template(path.stem)
    for row in kept():
        assert tuple(row) == COLUMNS
        assert 0 <= float(row["low"]) <= float(row["mean"]) <= float(row["high"]) <= 100
        assert int(row["seeds"]) >= 5


def test_rows_of_a_record(tmp_path: Path) -> None:
    found = {"mean": 89.123, "low": 88.0, "high": 90.25, "values": [1, 2, 3]}
    record = {
        "status": "done",
        "scenario": "x",
        "seconds": 12.3,
        "peak_memory_bytes": 5,
        "environment": {"gpu": None, "cores": 2, "processor": "p"},
        "results": {"data": {}, "ipc1": {"accuracy": {"dm": found, "whole": found}}, "ipc10": {"accuracy": {"dm": found, "whole": found}}},
    }
    config = {
        "data": {"name": "mnist"},
        "method": {"name": "dm", "iterations": 7},
        "evaluation": {"networks": ["ConvNet"], "recipe": None, "protocol": "laptop"},
    }
    (tmp_path / "record.json").write_text(json.dumps(record))
    (tmp_path / "config.json").write_text(json.dumps(config))
    rows = rows_of(tmp_path)
    assert [(r["ipc"], r["set"], r["published"], r["iterations"]) for r in rows] == [
        ("1", "dm", "89.7", "7"),
        ("", "whole", "99.6", ""),
        ("10", "dm", "97.5", "7"),
    ]
    assert rows[0]["mean"] == "89.12"
    assert "| `x` | 1 | **dm** | ConvNet | 89.1 (88.0 to 90.2) | 89.7 | yes |" in readme_table(rows)
    (tmp_path / "record.json").write_text(json.dumps({**record, "status": "interrupted"}))
    with pytest.raises(InputError, match="only a finished run"):
        rows_of(tmp_path)


def test_published_figures_have_a_source() -> None:
    with (EXPECTED / "published.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            assert row["source"]
            assert 0 < float(row["accuracy"]) < 100


def test_a_record_read_back_still_has_its_method_first(tmp_path: Path) -> None:
    """The report takes the first row of an accuracy table for its subject."""
    from distill.records import read_json, write_json
    from scenarios.report import answer

    row = {"mean": 90.0, "low": None, "high": None, "values": [90.0]}
    record = {"status": "done", "results": {"ipc1": {"accuracy": {"dm": row, "class_mean": row}}}}
    write_json(tmp_path / "record.json", record)
    assert answer(read_json(tmp_path / "record.json")).startswith("1 image a class by dm train")
