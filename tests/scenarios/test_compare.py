"""`distill compare`: what is paired, what is refused, and what it says."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
import scipy.stats

from scenarios.reporting.compare import compare, group
from scenarios.reporting.runs import read_run
from tests.scenarios.test_cli import call, refused

DM, RANDOM = [90.0, 91.0, 89.0], [70.0, 74.0, 71.0]
DATADAM = [91.5, 92.0, 90.5]


def row(values: list[float | None]) -> dict[str, Any]:
    known = [value for value in values if value is not None]
    mean = sum(known) / len(known) if len(known) == len(values) else None
    return {"mean": mean, "low": None if mean is None else mean - 1, "high": None if mean is None else mean + 1, "values": values}


def run(place: Path, method: str = "dm", values: Any = DM, *, seed: int = 0, status: str = "done", name: str = "", **changes: Any) -> Path:
    """A run folder as a condense study leaves it."""
    evaluation = {"protocol": "laptop", "recipe": None, "networks": ["ConvNet"], "seeds": len(values), "split": "test"}
    evaluation |= {"baselines": ["random"]} | {key: value for key, value in changes.items() if key in evaluation}
    data = {"name": changes.get("data", "digits"), "validation": 0.0, "zca": False}
    config = {"kind": "condense", "data": data, "method": {"name": method, "ipc": [1], "iterations": 5}, "evaluation": evaluation}
    results = {
        "data": {"name": data["name"], "fingerprint": changes.get("fingerprint", "aa")},
        "ipc1": {"images": 10, "augmentation": changes.get("augmentation"), "accuracy": {method: row(values), "random": row(RANDOM)}},
    }
    folder = place / (name or f"condense-{method}-s{seed}")
    folder.mkdir(parents=True)
    record = {"schema": 1, "scenario": "condense", "title": "", "kind": "condense", "seed": seed, "status": status, "results": results}
    (folder / "record.json").write_text(json.dumps(record))
    (folder / "config.json").write_text(json.dumps({"scenario": "condense", "title": "", "seed": seed, "device": "cpu", **config}))
    return folder


def test_two_methods_are_paired_over_their_evaluation_networks(tmp_path: Path) -> None:
    one, other = run(tmp_path, "dm"), run(tmp_path, "datadam", DATADAM)
    code, out, err = call("compare", one, other)
    assert code == 0, err
    known = scipy.stats.ttest_rel(DATADAM, DM)
    low, high = known.confidence_interval(0.95)
    assert f"+1.33 (95 % interval {low:+.2f} to {high:+.2f}), 3 pairs of evaluation networks." in out
    assert "the second is higher" in out
    assert "ipc1.accuracy.random: difference not significant: +0.00 (95 % interval +0.00 to +0.00)" in out
    assert "not about other seeds" in err
    # The other way round: the same difference with the other sign.
    (found, *_), _ = compare(group(other), group(one))
    assert (found.first, found.second) == ("ipc1.accuracy.datadam", "ipc1.accuracy.dm")
    assert (found.difference.mean, found.difference.low) == pytest.approx((-4 / 3, -high))


def test_several_runs_are_paired_over_their_seeds_by_their_means(tmp_path: Path) -> None:
    for seed, shift in ((0, 0.0), (1, 1.0), (2, -2.0)):
        run(tmp_path / "a", "dm", [value + shift for value in DM], seed=seed)
        run(tmp_path / "b", "datadam", [value + shift + 0.1 * seed for value in DATADAM], seed=seed)
    run(tmp_path / "b", "datadam", DATADAM, seed=7)  # has no counterpart
    run(tmp_path / "b", "datadam", DATADAM, seed=8, status="failed")
    (tmp_path / "b" / "report.html").write_text("")  # a pattern takes folders
    left_out: list[str] = []
    (found, _), warnings = compare(group(tmp_path / "a"), group(f"{tmp_path}/b/*", left_out))
    assert len(left_out) == 1
    assert "s8" in left_out[0]
    means = [[90.0 + shift for shift in (0, 1, -2)], [4 / 3 + 90.0 + shift for shift in (0, 1.1, -1.8)]]
    known = scipy.stats.ttest_rel(means[1], means[0])
    assert (found.over, found.difference.pairs) == ("runs", 3), "nine networks of three sets are not nine independent pairs"
    assert found.difference.p == pytest.approx(known.pvalue)
    assert warnings == ["seeds on one side only are left out: 7"]


def test_a_run_that_is_left_out_is_named(tmp_path: Path) -> None:
    run(tmp_path / "a"), run(tmp_path / "b", "datadam", DATADAM), run(tmp_path / "b", "datadam", DATADAM, seed=8, status="failed")
    code, _, err = call("compare", tmp_path / "a", tmp_path / "b")
    assert (code, "s8" in err) == (0, True)


def test_other_augmentation_of_the_evaluation_is_not_measured_alike(tmp_path: Path) -> None:
    """ "auto" is what each set names, so two configurations that read alike may have been evaluated otherwise."""
    one, other = run(tmp_path, "dm", augmentation="none"), run(tmp_path, "datadam", DATADAM, augmentation="color_crop")
    code, _, err = call("compare", one, other)
    assert (code, "the evaluation's augmentation is none and color_crop" in err) == (2, True)


def test_a_network_that_failed_takes_its_pair_along(tmp_path: Path) -> None:
    one, other = run(tmp_path, "dm", [90.0, 91.0, 89.0]), run(tmp_path, "datadam", [91.5, None, 90.5])
    # A row with a failed network has no mean, and so is no figure.
    assert "ipc1.accuracy.datadam" not in read_run(other).figures
    code, out, err = call("compare", one, other)
    assert (code, "ipc1.accuracy.dm" in out) == (0, False)
    assert "ipc1.accuracy.dm: not in both runs (a figure of which a network failed has no mean)" in err
    assert "is no figure" in refused("compare", one, other, "--figure", "ipc1.accuracy.dm=ipc1.accuracy.datadam")


def test_formats_hold_the_same_numbers(tmp_path: Path) -> None:
    one, other = run(tmp_path, "dm"), run(tmp_path, "datadam", DATADAM)
    asked = ("compare", one, other, "--figure", "ipc1.accuracy.dm", "--format")
    (entry,) = json.loads(call(*asked, "json")[1])
    (line,) = csv.DictReader(io.StringIO(call(*asked, "csv")[1]))
    assert (entry["pairs"], entry["significant"], entry["second_figure"]) == (3, True, "ipc1.accuracy.datadam")
    assert float(line["low"]) == entry["low"]
    assert f"| ipc1.accuracy.dm | 90 | 91.33 | +1.33 | {entry['low']:+.2f} to {entry['high']:+.2f} | 3 |" in call(*asked, "markdown")[1]
    assert "did you mean 'markdown'" in refused(*asked, "markdwn")


def test_two_figures_of_one_run(tmp_path: Path) -> None:
    folder = run(tmp_path)
    code, out, _ = call("compare", folder, folder, "--figure", "ipc1.accuracy.random=ipc1.accuracy.dm")
    assert code == 0
    assert "ipc1.accuracy.random = ipc1.accuracy.dm: the second is higher: +18.33" in out


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"protocol": "dm"}, "evaluation.protocol is laptop and dm"),
        ({"recipe": {"lr": 0.1}}, "evaluation.recipe.lr is - and 0.1"),
        ({"networks": ["MLP"]}, 'evaluation.networks is ["ConvNet"] and ["MLP"]'),
        ({"split": "validation"}, "evaluation.split is test and validation"),
        ({"data": "mnist"}, "data.name is digits and mnist"),
        ({"fingerprint": "bb"}, "fingerprint"),
    ],
)
def test_what_was_not_measured_alike_is_refused_without_a_flag(tmp_path: Path, change: dict[str, Any], said: str) -> None:
    one, other = run(tmp_path, "dm"), run(tmp_path, "datadam", DATADAM, **change)
    error = refused("compare", one, other)
    assert said in error
    assert "--anyway" in error
    code, out, err = call("compare", one, other, "--anyway")
    assert code == 0
    assert f"note: not measured alike: {said.partition(' is ')[0]}" in err or said in err
    assert "3 pairs" in out


def test_what_cannot_be_compared_is_one_line(tmp_path: Path) -> None:
    one = run(tmp_path / "a")
    assert "no such folder" in refused("compare", one, tmp_path / "nowhere")
    assert "no run there is done" in refused("compare", one, run(tmp_path / "b", status="interrupted"))
    assert "no seed is in both (seed 0 and seed 4)" in refused("compare", one, run(tmp_path / "c", seed=4))
    assert "has ipc1.accuracy.dm" in refused("compare", one, one, "--figure", "nothing*")
    run(tmp_path / "d", "dm")
    run(tmp_path / "d", "gm")
    assert "runs of 2 studies" in refused("compare", one, tmp_path / "d")


def test_fewer_networks_on_one_side_leave_fewer_pairs(tmp_path: Path) -> None:
    one, other = run(tmp_path, "dm"), run(tmp_path, "datadam", DATADAM[:1])
    code, out, _ = call("compare", one, other, "--figure", "ipc1.accuracy.dm")
    assert code == 0
    assert "+1.50; 1 pair of evaluation networks, so no interval" in out
