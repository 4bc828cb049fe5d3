"""The accuracy curve of a set: its steps, its cost, when it is called flat, and a study that has one."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import scenarios.condense.curve as room
from distill.condensed import CondensedSet
from distill.curves import curve, curve_steps, flat_early, networks_within, rounded_up
from distill.errors import InputError
from distill.run import condense
from scenarios.catalogue import run_study, study
from scenarios.engine.study import Options
from tests.conftest import stopped_at, toy

STEPS = (1, 2, 4, 8, 16, 32)
NETWORK = "ConvNetD1W8"


def noisy(means: list[float], count: int = 200, spread: float = 1.0) -> list[Any]:
    """Curves of three networks at each step around ``means``."""
    draws = torch.Generator().manual_seed(0)
    values = torch.tensor(means)[None, :, None] + spread * torch.randn(count, len(means), 3, generator=draws)
    return [curve(STEPS, one) for one in values.tolist()]


def test_steps_are_halves_of_the_run_and_the_cost_is_bounded() -> None:
    assert curve_steps(20000) == (625, 1250, 2500, 5000, 10000, 20000)
    assert (curve_steps(2), curve_steps(4), curve_steps(0)) == ((), (1, 2, 4), ())
    for total in range(1, 2000, 7):
        points = len(curve_steps(total))
        networks = networks_within(total, points, 50)
        assert networks <= 3
        assert networks * points * 50 <= 3 * total
    assert [networks_within(total, 6, 50) for total in (99, 100, 300, 30000)] == [0, 1, 3, 3]


def test_flat_at_is_the_first_step_after_which_all_stay() -> None:
    still = [[70.0, 71.0, 72.0]] * 6
    assert curve(STEPS, still).flat_at == 1
    rising = [[m - 1.0, m, m + 1.0] for m in (10.0, 20.0, 30.0, 40.0, 50.0, 60.0)]
    assert (curve(STEPS, rising).flat_at, curve(STEPS, rising[::-1]).flat_at) == (None, None), "rising and falling to the end"
    late = [[m - 1.0, m, m + 1.0] for m in (10.0, 60.0, 30.0, 60.0, 60.0, 60.0)]
    found = curve(STEPS, late)
    assert found.flat_at == 8, "a step that happens to be there is not flat when a later one is not"
    # Three points of variance 1 in the second half: t with 6 degrees of freedom.
    assert found.half_width == pytest.approx(2.446912 / 3**0.5, rel=1e-5)
    assert curve(STEPS, [[50.0]] * 6).flat_at is None, "single networks have no spread"
    for steps, values in (((1, 2), [[1.0]] * 2), ((1, 2, 2), [[1.0]] * 3), ((1, 2, 3), [[1.0], [1.0], [1.0, 2.0]])):
        with pytest.raises(InputError, match="rising steps"):
            curve(steps, values)


def test_rates_of_a_wrong_verdict() -> None:
    """Spread 1 point: a rise of 4 points a doubling is called flat early never, of 2 points in at most 2 %; a flat one is in most."""
    called = {
        rise: sum(flat_early(one) is not None for one in noisy([60.0 - rise * k for k in range(5, -1, -1)])) / 200 for rise in (0, 2, 4)
    }
    assert called[4] == 0
    assert called[2] <= 0.02
    assert called[0] > 0.6
    early = noisy([20.0, 40.0, 60.0, 60.0, 60.0, 60.0])
    assert not any(one.flat_at in (1, 2) for one in early), "never before it was"


def test_the_sentence_says_how_many_iterations_would_do() -> None:
    values = [[50.0, 51.0, 52.0], *[[69.0, 70.0, 71.0]] * 5]
    gm = curve((40, 80, 160, 320, 640, 1280), [(80.0, 81.0, 82.0)] * 6)
    assert "iterations = 5 would do" in str(flat_early(gm, steps_each=10)), "50 steps of a method with ten to an iteration"
    said = flat_early(curve((600, 1200, 2500, 5000, 10000, 20000), values))
    assert said is not None
    assert said.startswith("flat from step 1,200 of 20,000 (within 1.4 points): iterations = 1500 would do")
    assert flat_early(curve((600, 1200, 2500, 5000, 10000, 20000), values), accuracy=77.0) == said
    brief = str(flat_early(curve((600, 1200, 2500, 5000, 10000, 20000), values), accuracy=80.0))
    assert "too briefly to tell" in brief
    assert "(70.0 %, and 80.0 % when trained in full)" in brief
    assert [rounded_up(n) for n in (7, 99, 101, 1500, 1563)] == [7, 99, 110, 1500, 1600]


def test_snapshots_are_the_set_after_these_steps_and_leave_the_run_as_it_is(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"ipc": 1, "network": NETWORK, "batch_real": 4, "progress": False}
    plain = condense(toy(), "dm", iterations=5, **settings)
    files = {2: tmp_path / "2.safetensors", 5: tmp_path / "5.safetensors"}
    with_them = condense(toy(), "dm", iterations=5, snapshots=files, **settings)
    assert torch.equal(plain.images, with_them.images)
    for step, file in files.items():
        assert torch.equal(CondensedSet.load(file).images, condense(toy(), "dm", iterations=step, **settings).images)


def made(iterations: int, **data: Any) -> Any:
    method = {"name": "dm", "ipc": 1, "iterations": iterations, "batch_real": 4, "network": NETWORK}
    evaluation = {"networks": [NETWORK], "seeds": 1, "baselines": [], "recipe": {"epochs": 1, "max_steps": 1}}
    tables = {"kind": "condense", "data": {"name": "digits", "classes": [0, 1], **data}, "method": method, "evaluation": evaluation}
    return study("curve", tables, "test")


def test_the_last_step_is_that_of_the_method(tmp_path: Path) -> None:
    data = toy()
    for method, settings, total in (
        ("gm", {"iterations": 40}, 400),
        ("mtt", {"iterations": 300}, 300),
        ("datadam", {"iterations": 320}, 320),
    ):
        tables = {"kind": "condense", "data": {"name": "digits"}, "method": {"name": method, "ipc": 10, **settings}}
        assert list(room.snapshots(study("curve", tables, "test"), data, tmp_path, 10))[-1] == total // 2


def test_a_study_records_the_curve_and_a_stopped_one_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "TRAINING_STEPS", 3)
    folder, record = run_study(made(12), Options(tmp_path / "whole", quiet=True))
    found = record["results"]["ipc1"]["curve"]
    assert (found["steps"], found["split"], found["networks"]) == ([1, 2, 3, 6, 12], "train", 2)
    assert len(found["accuracy"]) == len(found["low"]) == len(found["high"]) == 5
    assert "flat_at" in found
    assert (folder / "figures/curve.png").stat().st_size > 2000
    assert not list(folder.glob("snapshot*"))
    with stopped_at(monkeypatch, room, 4):
        run_study(made(12), Options(tmp_path / "stopped", quiet=True))
    other, again = run_study(made(12), Options(tmp_path / "stopped", resume=True, quiet=True))
    assert again["results"]["ipc1"]["curve"] == found
    assert not list(other.glob("snapshot*"))
    lines = [json.loads(line) for line in (other / "metrics.jsonl").read_text().splitlines()]
    assert sum(line["stage"] == "curve" for line in lines) == 10, "no network was trained twice"
    monkeypatch.setattr(room, "snapshots", lambda *_: {})
    without, record = run_study(made(12), Options(tmp_path / "without", quiet=True))
    assert "curve" not in record["results"]["ipc1"]
    sets = [CondensedSet.load(place / "condensed.safetensors").images for place in (folder, without)]
    assert torch.equal(*sets), "the set does not depend on the curve"
