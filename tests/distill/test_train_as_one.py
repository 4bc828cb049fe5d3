"""Learners trained as one are those trained one after the other, in float64, and cost a device the launches of about one."""

import dataclasses

import pytest
import torch

from benchmarks.counting import Counting, made_data, moved
from distill import evaluation
from distill.augment import DSA
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.evaluation import accuracies
from distill.networks import create
from distill.randomness import generator
from distill.train import Recipe, train_network
from distill.train_as_one import LAUNCH_BOUND, at_once, train_as_one
from tests.conftest import toy

RECIPE = Recipe(epochs=4, batch_size=5, augmentation=DSA, lr=0.05)
FORMS: dict[str, dict[str, object]] = {
    "sgd": {},
    "step size that drops": {"schedule": "step", "drop_epochs": 1},
    "cosine": {"schedule": "cosine", "momentum": 0.0},
    "milestones": {"milestones": (0.3, 0.6), "decay": 0.5, "augmentation": "none"},
    "adamw": {"optimiser": "adamw", "lr": 0.001},
}


def sets(count: int, *, soft: bool = False) -> list[CondensedSet]:
    """Different sets of eight images in float64."""
    found = []
    for seed in range(count):
        one = select(toy(channels=3), "random", [3, 2, 3], generator(seed, "set"))
        labels = torch.rand(8, 3, generator=generator(seed, "labels")).softmax(1) if soft else one.labels
        found.append(dataclasses.replace(one, labels=labels, lr=0.02))
    return found


@pytest.mark.parametrize("form", [*FORMS, "soft labels"])
def test_each_network_is_the_one_that_is_trained_alone(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def double(*given: object) -> torch.nn.Module:
        return create(*given).double()  # type: ignore[arg-type]

    for module in ("train", "train_as_one"):
        monkeypatch.setattr(f"distill.{module}.create", double)
    sources = sets(3, soft=form == "soft labels")
    for one in sources:
        object.__setattr__(one, "images", one.images.double())
        if form == "soft labels":
            object.__setattr__(one, "labels", one.labels.double())
    recipe = dataclasses.replace(RECIPE, **FORMS.get(form, {}))  # type: ignore[arg-type]
    networks = train_as_one(sources, "ConvNetD2W8", recipe, [4, 0, 7])
    for source, seed, ours in zip(sources, [4, 0, 7], networks, strict=True):
        alone = train_network(source, "ConvNetD2W8", recipe, seed)
        assert not ours.training
        for found, expected in zip(ours.parameters(), alone.parameters(), strict=True):
            # AdamW divides the rounding of a gradient that is zero (of a bias before a norm) by its size.
            assert torch.allclose(found, expected, rtol=0, atol=1e-6 if form == "adamw" else 1e-10)


def test_several_networks_cost_the_launches_of_about_one() -> None:
    tiny = moved(select(made_data(3, 4), "random", 3, generator(0, "set")))
    recipe = dataclasses.replace(RECIPE, augmentation="rotate")

    def step(count: int) -> int:
        found = []
        for steps in (2, 3):
            with Counting() as counts:
                train_as_one([tiny] * count, "ConvNetW16", dataclasses.replace(recipe, max_steps=steps), range(count))
            found.append(counts)
        assert found[0].waits == found[1].waits
        assert not found[1].mixed
        return found[1].operations - found[0].operations

    assert step(5) == step(2) <= 170


def test_what_is_trained_as_one() -> None:
    small = moved(select(made_data(3, 4), "random", 1, generator(0, "set")))
    assert at_once(small, "ConvNetW16", RECIPE, 5) == 5
    for given in ({"mix": "cutmix"}, {"loss": "kl"}, {"precision": "bf16"}, {"augmentation": "dc_crop"}):
        assert at_once(small, "ConvNetW16", dataclasses.replace(RECIPE, **given), 5) == 1  # type: ignore[arg-type]
    for network in ("ConvNetW16BN", "ConvNetW16LN", lambda spec: create("ConvNet", spec, generator(0, "w"))):
        assert at_once(small, network, RECIPE, 5) == 1
    assert at_once(moved(made_data(3, 4)), "ConvNetW16", RECIPE, 5) == 1
    assert at_once(select(toy(), "random", 1, generator(0, "set")), "ConvNetD1W16", RECIPE, 5) == 1, "on a CPU"
    wide = dataclasses.replace(RECIPE, batch_size=256)
    many = moved(select(made_data(3, 100), "random", 100, generator(0, "set")))
    assert 3 * 256 * 101e6 > LAUNCH_BOUND > 3 * 10 * 102e6
    assert at_once(many, "ConvNet", wide, 5) == 1, "one network keeps the device busy"
    assert at_once(many, "ConvNetW8", wide, 20) == 8, "at most 2,048 images"


def test_an_evaluation_trains_groups_of_seeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The accuracies are those of networks trained alone, in the order of the seeds, for sets and baselines."""
    data = toy()
    tiny = select(data, "random", 2, generator(0, "set"))
    recipe = dataclasses.replace(RECIPE, augmentation="none")
    alone = list(accuracies(tiny, data, ["condensed", "random", "whole"], "ConvNetD1W8", recipe, [3, 1, 2]))
    asked: list[list[int]] = []

    def counted(sources: list[CondensedSet], network: str, recipe: Recipe, seeds: list[int]) -> list[torch.nn.Module]:
        asked.append(list(seeds))
        return train_as_one(sources, network, recipe, seeds)

    monkeypatch.setattr(evaluation, "at_once", lambda *given: 2)
    monkeypatch.setattr(evaluation, "train_as_one", counted)
    assert list(accuracies(tiny, data, ["condensed", "random", "whole"], "ConvNetD1W8", recipe, [3, 1, 2])) == alone
    assert asked == [[3, 1]] * 2, "of the set and the baseline; the third network and real data are trained alone"
