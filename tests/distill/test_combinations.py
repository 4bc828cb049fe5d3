"""Every method with every stored form and every pool of networks: all pairs in the ordinary suite, all of them under the slow marker."""

import itertools
from pathlib import Path
from typing import NamedTuple, get_args

import pytest
import torch
from torch import Tensor

from distill import batches
from distill.checkpoint import load_checkpoint, save_checkpoint, state_of
from distill.configure import configure
from distill.data import ImageData
from distill.decode import as_text, from_text
from distill.errors import InputError
from distill.methods import METHODS
from distill.randomness import generator
from distill.shared_config import SHARED, PoolKind
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set
from tests.conftest import toy

DECODES = ("none", "formation:2", "frequency:9", "lowrank:2")
POOLS = get_args(PoolKind)
SHAPES = {"none": (1, 8, 8), "formation:2": (1, 8, 8), "frequency:9": (1, 9), "lowrank:2": (1, 2, 16)}  # of a stored row of 8 x 8 pixels
SETTINGS: dict[str, object] = {"network": "ConvNetD1W32", "batch_real": 8, "pool_networks": 2, "pool_epochs": 2}
ALSO: dict[str, dict[str, object]] = {
    **{
        name: {"outer_steps": 2, "inner_epochs": 1}
        for name in ("gm", "dsa", "dcc", "dsac", "cafe", "idc", "accdd", "dream", "olcgm", "ssd")
    },
    "dcc": {"outer_steps": 2, "inner_epochs": 1, "warm_updates": 1},  # the first step class by class, the second of all
    "ncfm": {"frequencies": 64},
    "mtt": {"experts": 2, "max_start_epoch": 1, "expert_epochs": 1, "syn_steps": 2, "expert_lr": 0.05, "lr_img": 30.0},
}


class Case(NamedTuple):
    method: str
    decode: str
    pool: str


def refusal(case: Case, *, clamp: bool = False, **settings: object) -> str | None:
    """What the one line of a refused combination holds; None where it runs. ``settings`` have values that are not the default."""
    if case.method == "mtt":
        refused = [name for name in ("pool", "calibration", "flipped", "real_batches") if name in settings]
        if case.pool != "random" or refused:
            name = "pool" if case.pool != "random" else refused[0]
            return f"key '{name}' is not known"
    if clamp and case.method == "olcgm" and case.decode not in ("frequency:9", "lowrank:2"):
        return "clamp keeps pixels in the data's range, where combinations of real images are; leave it out"
    if clamp and case.decode in ("frequency:9", "lowrank:2"):
        return f"clamp keeps pixels in the data's range, and {case.decode} rows are no pixels; leave it out"
    return None


def pairs(case: Case) -> set[tuple[str, str]]:
    return set(itertools.combinations(case, 2))


def covering(cases: list[Case]) -> list[Case]:
    """Some of these cases that have every pair of values that any of them has: in turn the case with the most new pairs."""
    missing, chosen = set().union(*map(pairs, cases)), []
    while missing:
        chosen.append(max(cases, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


EVERYTHING = [Case(*values) for values in itertools.product(METHODS, DECODES, POOLS)]
RUNS = [case for case in EVERYTHING if refusal(case) is None]
CHOSEN = covering(RUNS)


def ids(case: Case) -> str:
    return "-".join(case)


def make(case: Case, data: ImageData, **settings: object):
    config, kind = METHODS[case.method]
    common = {**SETTINGS, **ALSO.get(case.method, {}), "iterations": 3, "initial": "real", "clamp": False}
    values = {**common, "decode": case.decode, "pool": case.pool, **settings}
    if case.method == "mtt":  # which has no setting for networks that images are compared in
        off = {name for name, value in values.items() if value == SHARED.get(name, ...) and not hasattr(config, name)}
        values = {name: value for name, value in values.items() if name not in {*off, "pool_networks", "pool_epochs"}}
    made = configure(config, values, case.method)
    statistics = ExactStatistics(data)
    return kind(made, initial_set(statistics, made.initial, 1, generator(0, "initial"), from_text(made.decode))), statistics


def direction(distiller) -> Tensor:
    """The first update's gradient as the optimiser keeps it: unlike Adam's step, it does not depend on the sign of a rounding error."""
    return distiller.state()["velocity"].clone()


def check(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stored rows are learned and stay finite; an interrupted run continues to the same bits; pieces of a batch add up."""
    data, draws = toy(), generator(0, "steps")
    whole, statistics = make(case, data)
    start = whole.condensed.images.clone()
    whole.step(statistics, draws)
    first = direction(whole)
    save_checkpoint(folder / "c.safetensors", {"run": 1}, state_of(whole.state(), draws, 1), 0.0)
    for _ in range(2):
        whole.step(statistics, draws)  # the last of them draws the next network, where a method keeps one for two steps
    made = whole.condensed
    assert as_text(made.decode) == case.decode
    assert tuple(made.images.shape) == (3, *SHAPES[case.decode])
    assert made.labels.tolist() == [0, 1, 2]
    assert bool(made.images.isfinite().all())
    assert bool((made.images != start).flatten(1).any(1).all()), "every row is learned"

    again, statistics = make(case, data)
    later = generator(9, "other")
    load_checkpoint(folder / "c.safetensors", {"run": 1}, again, later)
    for _ in range(2):
        again.step(statistics, later)
    assert torch.equal(again.condensed.images, made.images)

    with monkeypatch.context() as patch:
        patch.setattr(batches, "chunk_size", lambda images: 3)
        patch.setattr(batches, "ROWS", 5)
        pieces, statistics = make(case, data)
        pieces.step(statistics, generator(0, "steps"))
    assert float((direction(pieces) - first).norm()) <= 1e-4 * float(first.norm())


def test_the_chosen_cases_have_every_pair() -> None:
    assert set().union(*map(pairs, CHOSEN)) == set().union(*map(pairs, RUNS))
    for method, decode, pool in itertools.product(set(METHODS) - {"mtt"}, DECODES, POOLS):
        for pair in ((method, decode), (method, pool), (decode, pool)):
            assert any(set(pair) <= set(case) for case in CHOSEN), pair
    assert len(CHOSEN) < 0.45 * len(RUNS)


@pytest.mark.parametrize("case", CHOSEN, ids=ids)
def test_every_pair_of_method_form_and_pool(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("case", [case for case in RUNS if case not in CHOSEN], ids=ids)
def test_every_combination(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check(case, tmp_path, monkeypatch)


@pytest.mark.parametrize("clamp", [False, True])
def test_what_is_refused_is_one_line(clamp: bool) -> None:
    data = toy()
    refused = [(case, text) for case in EVERYTHING if (text := refusal(case, clamp=clamp))]
    assert len(refused) == (16 * 6 * 2 + 2 * 6 + 5 * 2 if clamp else 5 * 4)
    for case, text in refused:
        with pytest.raises(InputError) as caught:
            make(case, data, clamp=clamp)
        assert "\n" not in str(caught.value)
        assert text in str(caught.value)


# Of each shared setting that is no axis above: off, and on.
SWITCHES: dict[str, tuple[object, object]] = {
    "optimizer": ("sgd", "adam"),
    "schedule": ("constant", "cosine"),
    "clamp": (False, True),
    "updates": ("together", "per_class"),
    "flipped": (False, True),
    "calibration": (0.0, 5.0),
    "real_batches": ("random", "kmeans"),
}
LATER = {"calibration_every", *(name for name in SHARED if name.startswith("pool_"))}  # of those: tests/distill/test_pool.py


def test_every_shared_setting_is_an_axis_or_a_switch() -> None:
    assert {"decode", "pool", *SWITCHES, *LATER} == set(SHARED)
    assert {name: off for name, (off, _) in SWITCHES.items()} == {name: SHARED[name] for name in SWITCHES}


@pytest.mark.parametrize("method", METHODS)
def test_no_shared_setting_is_ignored(method: str) -> None:
    """Three steps with a setting on give other images than with all of them off, or the setting is refused."""
    case, data, off = Case(method, "none", "random"), toy(), {name: value for name, (value, _) in SWITCHES.items()}

    def made(**settings: object) -> Tensor:
        # One class's update changes the next only by the momentum of an earlier step; a large step leaves the data's range.
        distiller, statistics = make(case, data, **{**off, "lr_img": 30.0, "network": "ConvNetD1W32", **settings})
        draws = generator(0, "steps")
        for _ in range(3):
            distiller.step(statistics, draws)
        return distiller.condensed.images

    plain = made()
    for name, (_, on) in SWITCHES.items():
        if text := refusal(case, **{name: on}):
            with pytest.raises(InputError, match=text):
                made(**{name: on})
        else:
            assert not torch.equal(made(**{name: on}), plain), name
