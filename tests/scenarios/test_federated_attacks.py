"""Studies with hostile clients: the rows, their table, and that a study that was killed continues."""

from pathlib import Path
from typing import Any

import pytest

from distill.errors import InputError
from distill.records import read_json, read_lines
from scenarios.catalogue import run_study
from scenarios.catalogue import study as any_study
from scenarios.engine.scenario import parse, shipped
from scenarios.engine.study import Options
from scenarios.federated import cells
from scenarios.federated.attacked import BACKDOOR, rows
from scenarios.federated.schema import study
from scenarios.federated.show import accuracy_table


def tables(**values: Any) -> dict[str, Any]:
    base: dict[str, Any] = {
        "data": {"name": "digits", "validation": 0.2},
        "federation": {"strategies": ["random", "fedavg"], "rounds": 1, "network": "ConvNetW16"},
        "partition": {"num_partitions": 5},
        "admission": {"kind": "reference"},
        "attack": {"kinds": ["flip", "patch_soft"], "clients": [0.2]},
    }
    return base | values


def test_rows_are_the_strategies_with_each_attack_with_and_without_admission() -> None:
    made = study("a", "a", tables(), "a.toml")
    assert [row.name(made) for row in rows(made)] == [
        *("random", "random+admission", "random+flip-0.2", "random+flip-0.2+admission", "random+patch_soft-0.2"),
        *("random+patch_soft-0.2+admission", "fedavg", "fedavg+flip-0.2"),
    ]
    for row in rows(made):
        kind = row.applied(made.settings_for(row.strategy, 0, "cpu")).admission.kind
        assert kind == ("reference" if row.admission and row.strategy == "random" else "none")
    plain = study("a", "a", {key: value for key, value in tables().items() if key != "attack"}, "a.toml")
    assert [row.name(plain) for row in rows(plain)] == ["random", "fedavg"]
    assert all(row.applied(plain.settings).admission.kind == "reference" for row in rows(plain))
    without = study("a", "a", {key: value for key, value in tables().items() if key not in ("attack", "admission")}, "a.toml")
    assert "admission" not in without.merged
    assert len({made.hash, plain.hash, without.hash}) == 3


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"attack": {"kinds": ["flop"]}}, "flip"),
        ({"attack": {"clients": [0.0]}}, "above 0"),
        ({"attack": {"kind": "flip"}}, "kinds"),
        ({"federation": {"strategies": ["random"], "engine": "simulation"}}, "inline"),
        ({"upload": {"decode": "formation:2"}}, "plain"),
    ],
)
def test_wrong_tables_are_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as found:
        study("a", "a", tables(**values), "a.toml")
    assert "\n" not in str(found.value)


def test_the_shipped_study_has_rows_with_backdoors_and_reasons_and_continues(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cells, "at_once", lambda jobs, threads: 1)
    made = any_study("poisoning", parse(shipped()["federated-poisoning-digits"]), "a.toml")
    options = Options(tmp_path, quiet=True)
    folder, record = run_study(made, options)
    found = record["results"]["strategies"]
    assert found["random+flip-0.4"]["accuracy"]["mean"] < found["random+flip-0.4+admission"]["accuracy"]["mean"]
    assert found["random"]["accuracy"]["mean"] - found["random+admission"]["accuracy"]["mean"] <= 1.0
    assert found["random+patch-0.4+admission"]["backdoor"]["mean"] <= found["random+patch-0.4"]["backdoor"]["mean"]
    assert "backdoor" not in found["random+flip-0.4"]
    assert {each["status"] for each in found["random+flip-0.4+admission"]["dropped"]} == {"excluded"}
    assert any("excluded: " in text for text in found["random+flip-0.4+admission"]["left_out"][0])
    table = accuracy_table(record)
    assert "backdoor" in table[0]
    assert [row[0] for row in table[1:]] == list(found)
    assert all(len(row) == len(table[0]) for row in table)
    # A killed study continues: what is missing is computed again, to the same.
    row = folder / "runs" / "random+patch-0.4-s0"
    before, lines = read_json(row / BACKDOOR), list(read_lines(row / "rounds.jsonl"))
    (row / BACKDOOR).unlink()
    (folder / "record.json").unlink()
    again = run_study(made, Options(tmp_path, quiet=True, resume=True))[1]["results"]["strategies"]
    assert read_json(row / BACKDOOR) == before
    assert list(read_lines(row / "rounds.jsonl")) == lines
    assert again["random+patch-0.4"]["backdoor"] == found["random+patch-0.4"]["backdoor"]
