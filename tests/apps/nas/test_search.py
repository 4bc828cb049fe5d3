"""The search: resumes from its SQLite file, trains no network twice, chooses by validation accuracy only."""

from pathlib import Path

import numpy as np
import pytest

from apps.nas.ledger import Ledger
from apps.nas.search import Budget, search
from apps.nas.space import Grid
from apps.nas.training import score
from apps.nas.workers import Crew
from distill.coresets import select
from distill.errors import InputError
from distill.randomness import generator
from distill.train import Recipe
from tests.conftest import toy

pytest.importorskip("optuna")
GRID = Grid(width=(4, 8), depth=(1, 2), norm=("none", "batch"), activation=("relu", "sigmoid"), pooling=("avg",))
PROXY = Recipe(epochs=50, max_steps=4, batch_size=16, lr=0.05, augmentation="none", compile="off")
TRUTH = Recipe(epochs=2, batch_size=16, lr=0.05, augmentation="none", compile="off")
BUDGET = Budget(trials=12, at_once=3, finalists=2, final_seeds=2)


def run(storage: Path, **changes):
    data = toy(per_class=20).hold_out(0.3)
    tiny = select(data, "class_mean", 1, generator(0))
    options = {"budget": BUDGET, "proxy": PROXY, "truth": TRUTH, "crew": Crew(0)} | changes
    return search(data, tiny, options.pop("space", GRID), storage, **options)


def test_a_search_promotes_its_best_and_resumes(tmp_path: Path) -> None:
    storage, rows = tmp_path / "search.db", []
    budget = Budget(trials=5, at_once=3, finalists=2, final_seeds=2)
    short = run(storage, budget=budget, told=lambda *told: rows.append(told))
    assert len(short.trials) == 5
    found = run(storage, told=lambda *told: rows.append(told))
    assert len(found.trials) == 12
    assert [one.id for one, _ in found.trials[:5]] == [one.id for one, _ in short.trials]
    trained = [(row["stage"], row["id"], row["seed"]) for _, _, row in rows]
    assert len(trained) == len(set(trained))
    # The finalists are the best different networks by the condensed set, and the winner the best of those by validation.
    values = {one.id: value for one, value in found.trials}
    assert {one.id for one, *_ in found.finalists} == set(sorted(values, key=lambda id: (-values[id], id))[:2])
    ledger = Ledger(storage.with_suffix(".jsonl"))
    for one, _, validation, test in found.finalists:
        group = [row for row in ledger.rows.values() if row["stage"] == "truth" and row["id"] == one.id]
        assert (validation, test) == (np.mean([score(r, "validation") for r in group]), np.mean([score(r, "test") for r in group]))
    assert found.finalists[0][2] == max(row[2] for row in found.finalists)
    assert (found.best, found.accuracy) == (found.finalists[0][0], found.finalists[0][3])
    again = run(storage, told=lambda *told: pytest.fail("trained something twice"))
    assert [one.id for one, *_ in again.finalists] == [one.id for one, *_ in found.finalists]


def test_a_search_stopped_in_training_goes_on(tmp_path: Path) -> None:
    def stop(done: int, of: int, row: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "search.db", told=stop)
    assert len(run(tmp_path / "search.db").trials) == 12


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_same_seed_same_search(tmp_path: Path, sampler) -> None:
    one, other = (run(tmp_path / f"{name}.db", sampler=sampler) for name in ("a", "b"))
    assert [c.id for c, _ in one.trials] == [c.id for c, _ in other.trials]
    third = run(tmp_path / "c.db", sampler=sampler, seed=1)
    assert [c.id for c, _ in one.trials] != [c.id for c, _ in third.trials]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"space": Grid(width=(4,))}, "another space"),
        ({"proxy": TRUTH}, "another space"),
        ({"sampler": "grid"}, "tpe, random"),
    ],
)
def test_another_searchs_file_is_refused(tmp_path: Path, change: dict, message: str) -> None:
    run(tmp_path / "search.db", budget=Budget(trials=1, finalists=1, final_seeds=1))
    with pytest.raises(InputError, match=message):
        run(tmp_path / "search.db", **change)


def test_a_budget_is_checked() -> None:
    with pytest.raises(InputError, match="1 or more"):
        Budget(trials=0)
