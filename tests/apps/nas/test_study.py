"""The study as a whole: same numbers whoever works and however often it is stopped; honest seeds; hostile input."""

import dataclasses
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest

from apps.nas.ledger import Ledger
from apps.nas.space import Grid, named, own
from apps.nas.study import Proxies, SetProxy, Truth, rank
from apps.nas.workers import Crew
from distill.coresets import select
from distill.errors import InputError
from distill.randomness import generator
from distill.train import Recipe
from tests.apps.nas import networks
from tests.conftest import toy

GRID = Grid(width=(4, 8), depth=(1, 2), norm=("none", "batch"), activation=("relu",), pooling=("avg",))
RECIPE = Recipe(epochs=50, max_steps=6, batch_size=16, lr=0.05, augmentation="none", compile="off")
TRUTH = Truth(seeds=2, recipe=Recipe(epochs=3, batch_size=16, lr=0.05, augmentation="none", compile="off"))
PROXIES = Proxies(seeds=2, recipe=RECIPE, equal_cost=("mine",), regression=5, resamples=100, batch=8)


def data():
    return toy(per_class=20).hold_out(0.3)


def sets(real) -> dict[str, SetProxy]:
    draws = tuple(select(real, "random", 2, generator(i)) for i in range(2))
    return {"mine": SetProxy((select(real, "class_mean", 2, generator(0)),), 0.5), "random": SetProxy(draws, 0.0, "coreset")}


def numbers(result) -> dict:
    """What may not depend on time: early stopping at equal cost takes its steps from a clock."""
    timed = "early-cost-mine"
    return {name: scores.values.tolist() for name, scores in result.scores.items() if name != timed} | {"truth": result.truth.tolist()}


def test_a_study_in_pieces_equals_one_in_a_run(tmp_path: Path) -> None:
    real = data()
    whole = rank(real, GRID.candidates(), sets(real), TRUTH, PROXIES, crew=Crew(0))
    path, stops = tmp_path / "metrics.jsonl", 0
    while True:
        left = 25

        def stop(done: int, of: int, row: dict) -> None:
            nonlocal left
            left -= 1
            if not left:
                raise KeyboardInterrupt

        try:
            pieces = rank(real, GRID.candidates(), sets(real), TRUTH, PROXIES, crew=Crew(0), ledger=Ledger(path), on_row=stop)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3
    assert numbers(pieces) == numbers(whole)
    told: list = []
    again = rank(real, GRID.candidates(), sets(real), TRUTH, PROXIES, ledger=Ledger(path), on_row=lambda *row: told.append(row))
    assert told == []
    assert json.dumps(again.summary) == json.dumps(pieces.summary)


def test_every_proxy_is_there_and_the_seeds_are_apart() -> None:
    real, ledger = data(), Ledger()
    found = rank(real, GRID.candidates(), sets(real), TRUTH, PROXIES, crew=Crew(0), ledger=ledger)
    on_sets = ["naswot-on-mine", "grad_norm-on-mine"]
    zero = ["parameters", "flops", "synflow", "naswot", "grad_norm"]
    assert list(found.scores) == ["mine", "random", "early-steps", "early-cost-mine", *zero, *on_sets, "regression", "whole"]
    assert set(found.summary["proxies"]) == set(found.scores)
    assert found.truth.shape == (8, 2)
    by_stage: dict[str, set[int]] = {}
    for row in ledger.rows.values():
        by_stage.setdefault(row["stage"], set()).add(row["seed"])
    assert not by_stage["truth"] & (by_stage["mine"] | by_stage["early-steps"] | by_stage["synflow"])
    # The truth is on the test split, every score on the validation split.
    rows = [row for row in ledger.rows.values() if row["stage"] == "truth"]
    assert all("test" in row for row in rows)
    assert not any("test" in row for row in ledger.rows.values() if row["stage"] != "truth")
    first = [row for row in rows if row["id"] == found.candidates[0].id]
    assert found.truth[0].tolist() == [row["test"] for row in first]
    assert found.scores["whole"].values[0] == np.mean([row["validation"] for row in first])
    assert found.scores["mine"].one_off == 0.5
    assert found.scores["mine"].bytes == sets(real)["mine"].sets[0].nbytes
    assert found.scores["random"].bytes == sum(one.nbytes for one in sets(real)["random"].sets)


def test_early_stopping_takes_as_many_steps_as_the_sets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six steps of 16 images on the whole set are two epochs less a remainder: the same run, asked for by hand."""
    from distill.evaluation import accuracy
    from distill.train import train_network

    real = data()
    few = dataclasses.replace(PROXIES, equal_cost=(), zero_cost=(), regression=0)
    found = rank(real, GRID.candidates()[:2], sets(real), TRUTH, few, crew=Crew(0))
    for place, one in enumerate(GRID.candidates()[:2]):
        recipe = dataclasses.replace(RECIPE, epochs=6, max_steps=6)
        by_hand = [accuracy(train_network(real, one.network, recipe, k), real, "validation") for k in (500, 501)]
        assert found.scores["early-steps"].values[place] == pytest.approx(np.mean(by_hand))


def test_failing_networks_do_not_end_a_study() -> None:
    real = data()
    mixed = own({"small": networks.small, "broken": networks.broken, "mlp": "MLP", "inf": networks.exploding})
    few = dataclasses.replace(PROXIES, regression=0, zero_cost=("parameters",), equal_cost=())
    found = rank(real, [*mixed, *named(["ConvNetW4D1"])], sets(real), TRUTH, few, crew=Crew(0))
    assert [math.isnan(v) for v in found.scores["parameters"].values] == [False, True, False, False, False]
    assert found.summary["known"] == 3
    assert [math.isnan(v) for v in found.scores["mine"].values] == [False, True, False, True, False]
    assert found.summary["proxies"]["mine"]["failed_runs"] == 4
    assert [row["reason"] for row in found.rows if row["id"] == "inf"] == ["diverged: weights are not finite"] * 2


def test_no_candidate_is_built_in_the_study_s_own_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """One that would fail there has every score, and one that crashes whatever builds it is a row for each of them."""
    monkeypatch.setenv("STUDY_PROCESS", str(os.getpid()))
    made, ledger = own({"apart": networks.apart, "crash": networks.crashing}), Ledger()
    few = dataclasses.replace(PROXIES, seeds=1, early=False, regression=0, zero_cost=("naswot",), equal_cost=())
    found = rank(data(), made, {}, dataclasses.replace(TRUTH, seeds=1), few, crew=Crew(2), ledger=ledger)
    assert {(row["stage"], row["status"]) for row in ledger.rows.values() if row["id"] == "apart"} == {
        (stage, "ok") for stage in ("truth", "naswot")
    }
    crashed = [row for row in ledger.rows.values() if row["id"] == "crash"]
    assert [row["reason"] for row in crashed] == ["its worker process died (signal SIGSEGV)"] * 2
    assert [math.isnan(value) for value in found.scores["naswot"].values] == [False, True]
    assert found.summary["proxies"]["naswot"]["failed_runs"] == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"data": toy()}, "validation and a test split"),
        (lambda a: a | {"sets": {"synflow": SetProxy(())}}, "may not be called"),
        (lambda a: a | {"sets": {"early-cost-x": SetProxy(())}}, "may not be called"),
        (lambda a: a | {"proxies": dataclasses.replace(PROXIES, equal_cost=("dm",))}, "equal_cost"),
        (lambda a: a | {"proxies": dataclasses.replace(PROXIES, regression=9)}, "at most the 8"),
        (lambda a: a | {"candidates": named(["MLP"])}, "one grid"),
        (lambda a: a | {"candidates": []}, "no network"),
    ],
)
def test_wrong_input_fails_before_any_work(change, message: str) -> None:
    real = data()
    given = change({"data": real, "candidates": GRID.candidates(), "sets": sets(real), "truth": TRUTH, "proxies": PROXIES})
    with pytest.raises(InputError, match=message) as error:
        rank(**given, crew=Crew(0))
    assert "\n" not in str(error.value)
