"""Unequal images a class: counts by class or in proportion, through every method and baseline; the bits of even sets do not move."""

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

import distill.run
from apps.privacy import PrivateStatistics
from distill.comparison import learner_set
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import evaluate
from distill.methods import METHODS
from distill.randomness import generator
from distill.run import condense
from distill.sizes import counts_of, proportional
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set
from distill.train import Recipe
from tests.conftest import toy
from tests.distill.test_every_method import METHOD, small

QUICK = Recipe(max_steps=3, batch_size=8, augmentation="none", compile="off")


def long_tailed() -> ImageData:
    """12, 6 and 2 training images of classes 0, 1 and 3; none of class 2."""
    data = toy(classes=4)
    kept = torch.cat([data.class_indices(label)[:count] for label, count in ((0, 12), (1, 6), (3, 2))])
    return dataclasses.replace(data, train=data.train.at(kept))


def test_numpys_whole_numbers_are_whole_numbers(toy_data: ImageData) -> None:
    settings: dict[str, Any] = {"network": "ConvNetD1W8", "iterations": 2}
    made = condense(toy_data, "dm", ipc=cast(Any, np.int64(2)), seed=cast(Any, np.int64(3)), **settings)
    assert torch.equal(made.images, condense(toy_data, "dm", ipc=2, seed=3, **settings).images)
    assert made.provenance is not None
    assert made.provenance.seed == 3
    for wrong in (1.5, "3", None):
        with pytest.raises(InputError, match=r"seed is .*; allowed: a whole number"):
            condense(toy_data, "dm", ipc=2, seed=cast(Any, wrong), **settings)


@METHOD
@pytest.mark.parametrize("ipc", [{0: 4, "rest": 1}, {"0": 4, "1": 1, "3": 1}, "proportional:3"])
def test_every_method_makes_unequal_classes(method: str, ipc: Any) -> None:
    data = long_tailed()
    wanted = (5, 3, 0, 1) if isinstance(ipc, str) else (4, 1, 0, 1)
    made = condense(data, method, ipc=ipc, iterations=2, **small(method))
    assert (made.counts, made.ipc, len(made)) == (wanted, max(wanted), sum(wanted))
    assert bool(made.images.isfinite().all())
    assert torch.equal(made.labels, made.labels.sort().values)
    stated = made.provenance.config["ipc"]
    assert stated == {"0": wanted[0], "1": wanted[1], "3": wanted[3]}
    assert CondensedSet.from_bytes(made.to_bytes()).counts == wanted
    assert not torch.equal(made.images, condense(data, method, ipc=ipc, seed=1, iterations=2, **small(method)).images)


@METHOD
def test_equal_counts_have_the_bits_of_one_number(method: str, toy_data: ImageData) -> None:
    one = condense(toy_data, method, ipc=2, iterations=2, **small(method))
    for ipc in ({0: 2, 1: 2, 2: 2}, {"rest": 2}, {"1": 2, "rest": 2}, "proportional:2"):
        other = condense(toy_data, method, ipc=ipc, iterations=2, **small(method))
        assert torch.equal(one.images, other.images)
        assert one.provenance.config == other.provenance.config


@METHOD
def test_an_uneven_run_resumes_to_the_same_bits(method: str, toy_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distill.run, "CHECKPOINT_SECONDS", 0.0)
    settings = {**small(method), "iterations": 3}
    whole = condense(toy_data, method, ipc={0: 3, "rest": 1}, **settings)
    calls: list[int] = []
    kind, distiller = METHODS[method]

    class Stopping(distiller):  # type: ignore[valid-type, misc]
        def step(self, *arguments: Any) -> Any:
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return super().step(*arguments)

    monkeypatch.setitem(METHODS, method, (kind, Stopping))
    with pytest.raises(KeyboardInterrupt):
        condense(toy_data, method, ipc={0: 3, "rest": 1}, checkpoint=tmp_path / "c", **settings)
    assert (tmp_path / "c").exists()
    monkeypatch.setitem(METHODS, method, (kind, distiller))
    again = condense(toy_data, method, ipc={"0": 3, "1": 1, "2": 1}, checkpoint=tmp_path / "c", resume=True, **settings)
    assert torch.equal(again.images, whole.images)


def test_an_uneven_set_is_compared_with_baselines_of_its_counts() -> None:
    data = long_tailed()
    made = condense(data, "dm", ipc={0: 4, "rest": 1}, iterations=1, **small("dm"))
    found = evaluate(made, data, network="ConvNetD1W32", recipe=QUICK, seeds=1, baselines=("random", "herding"), progress=False)
    assert {name: row.images for name, row in found.training.items()} == {"condensed": 6, "random": 6, "herding": 6}
    assert learner_set("random", made, data, 0).counts == made.counts


@pytest.mark.parametrize("kind", ["real", "noise", "herding", "class_mean"])
def test_first_images_have_the_counts_and_even_ones_keep_their_bits(toy_data: ImageData, kind: str) -> None:
    statistics = ExactStatistics(toy_data)
    even, again = (initial_set(statistics, kind, ipc, generator(0, "first")) for ipc in (2, (2, 2, 2)))
    assert torch.equal(even.images, again.images)
    many = initial_set(statistics, kind, (20, 1, 3), generator(0, "first"))  # of 12 images
    assert many.counts == (20, 1, 3)
    assert len(torch.unique(many.images[many.labels == 0], dim=0)) == 20


@pytest.mark.parametrize("sizes", [(12, 6, 2), (100, 1, 1, 1), (5, 5, 5), (1000, 300, 77, 20, 3), (1,)])
@pytest.mark.parametrize("mean", [1, 2, 10])
def test_proportional_is_websters_method(sizes: tuple[int, ...], mean: int) -> None:
    """At least one each, the right total, and no class can give one up that another deserves more (the method's defining inequality)."""
    found = proportional(sizes, mean)
    assert sum(found) == mean * len(sizes)
    assert min(found) >= 1
    for giver, count in zip(sizes, found, strict=True):
        if count > 1:
            assert all(giver / (count - 0.5) >= taker / (own + 0.5) for taker, own in zip(sizes, found, strict=True))


@pytest.mark.parametrize(
    ("ipc", "message"),
    [
        ({}, "allowed"),
        ({0: 0, "rest": 1}, "allowed"),
        ({0: 1.0, "rest": 1}, "allowed"),
        ({0: True, "rest": 1}, "allowed"),
        ({0: 2, "0": 3, "rest": 1}, "allowed"),
        ({"a": 2, "rest": 1}, "allowed"),
        ({"-1": 2, "rest": 1}, "allowed"),
        ({"00": 2, "rest": 1}, "allowed"),
        ({7: 2, "rest": 1}, r"classes \[7\], which have no training images"),
        ({2: 2, "rest": 1}, r"classes \[2\], which have no training images"),
        ({0: 2}, r"no count for the classes \[1, 3\]"),
        ("proportional", "allowed"),
        ("proportional:0", "allowed"),
        ("proportional:1.5", "allowed"),
        ("Proportional:3", "allowed"),
        (0, "allowed: 1"),
        (-3, "allowed: 1"),
        (1.5, "allowed: 1"),
        (True, "allowed: 1"),
        (None, "allowed: 1"),
        (10**9, "allowed: 1"),
        ([3], "allowed: 1"),
    ],
)
def test_wrong_sizes_are_one_line(ipc: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        condense(long_tailed(), "dm", ipc=ipc)
    assert "\n" not in str(caught.value)


def test_sizes_of_private_classes_are_not_asked_for(toy_data: ImageData) -> None:
    assert not hasattr(PrivateStatistics, "class_sizes")
    hidden = types.SimpleNamespace(classes=(0, 1, 2), spec=toy_data.spec)
    with pytest.raises(InputError, match="do not show how large"):
        counts_of("proportional:3", hidden)  # type: ignore[arg-type]
    assert counts_of({0: 2, "rest": 1}, hidden) == (2, 1, 1)  # type: ignore[arg-type]
    assert json.dumps(counts_of({"rest": 4}, hidden)) == "4"  # type: ignore[arg-type]
