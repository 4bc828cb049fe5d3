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


def run(storage: Path | str, **changes):
    data = toy(per_class=20).hold_out(0.3)
    tiny = select(data, "class_mean", 1, generator(0))
    options = {"budget": BUDGET, "proxy": PROXY, "truth": TRUTH, "crew": Crew(0)} | changes
    return search(data, tiny, options.pop("space", GRID), storage, **options)


def test_a_search_promotes_its_best_and_resumes(tmp_path: Path) -> None:
    storage, rows = tmp_path / "search.db", []
    budget = Budget(trials=5, at_once=3, finalists=2, final_seeds=2)
    short = run(storage, budget=budget, on_row=lambda *told: rows.append(told))
    assert len(short.trials) == 5
    found = run(storage, on_row=lambda *told: rows.append(told))
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
    again = run(storage, on_row=lambda *told: pytest.fail("trained something twice"))
    assert [one.id for one, *_ in again.finalists] == [one.id for one, *_ in found.finalists]


def test_a_search_stopped_in_training_goes_on(tmp_path: Path) -> None:
    def stop(done: int, of: int, row: dict) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "search.db", on_row=stop)
    assert len(run(tmp_path / "search.db").trials) == 12


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_same_seed_same_search(tmp_path: Path, sampler) -> None:
    budget = Budget(trials=12, at_once=3, finalists=1, final_seeds=1)
    one, other = (run(tmp_path / f"{name}.db", sampler=sampler, budget=budget) for name in ("a", "b"))
    assert [c.id for c, _ in one.trials] == [c.id for c, _ in other.trials]
    third = run(tmp_path / "c.db", sampler=sampler, budget=budget, seed=1)
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


ONE = Budget(trials=1, at_once=1, finalists=1, final_seeds=1)


@pytest.mark.parametrize("name", ["plain.db", "a?b.db", "a%20b#c.db", "folder/ü x.db"])
def test_the_file_is_the_one_that_was_named(tmp_path: Path, name: str) -> None:
    first = run(str(tmp_path / name), budget=ONE)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {name, name.removesuffix(".db") + ".jsonl"}
    again = run(tmp_path / name, budget=ONE, on_row=lambda *told: pytest.fail("trained something twice"))
    assert again == first


def test_a_file_that_cannot_hold_a_search_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "folder.db").mkdir()
    (tmp_path / "notes.db").write_text("a shopping list\n" * 100)
    for storage, message in (
        (tmp_path / "folder.db", "no place for an SQLite file"),
        (tmp_path / "rows.jsonl", "no place for an SQLite file"),
        (".", "no place for an SQLite file"),
        (tmp_path / "notes.db", "cannot be used as the SQLite file of a search .file is not a database"),
        (tmp_path / "notes.db" / "inside.db", "cannot be written"),
    ):
        with pytest.raises(InputError, match=message) as error:
            run(storage, budget=ONE)
        assert "\n" not in str(error.value)
    assert (tmp_path / "notes.db").read_text() == "a shopping list\n" * 100
    assert {path.name for path in tmp_path.iterdir()} == {"folder.db", "notes.db"}


def test_finalists_that_all_fail_end_the_search_with_the_reason(tmp_path: Path) -> None:
    wild = Recipe(epochs=2, batch_size=16, lr=1e30, augmentation="none", compile="off")
    with pytest.raises(InputError, match=r"none of the 1 finalists could be trained .*(diverged|not finite)") as error:
        run(tmp_path / "search.db", budget=ONE, truth=wild)
    assert "\n" not in str(error.value)


def test_a_search_asks_for_its_pool_before_any_work(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with pytest.raises(InputError, match="no Ray pool answers"):
        run(tmp_path / "search.db", budget=ONE, crew=Crew(ray="127.0.0.1:9"))
    assert not list(tmp_path.iterdir())
