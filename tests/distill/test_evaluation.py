"""Accuracy and its interval, the training loop and the recipes, against definitions written out here."""

import numpy as np
import pytest
import scipy.stats
import torch
import torch.nn.functional as F

from distill.augment import DSA, DSA_DIGITS
from distill.coresets import CORESETS, select
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import Accuracy, accuracy, evaluate
from distill.networks import create
from distill.randomness import generator
from distill.train import PROTOCOLS, Recipe, protocol, train_network, train_on
from tests.conftest import toy

NET = "ConvNetD1W32"


@pytest.mark.parametrize("seed", range(5))
def test_interval_is_students(seed: int) -> None:
    values = np.random.default_rng(seed).uniform(60, 90, 2 + seed)
    found = Accuracy(tuple(values.tolist()))
    low, high = scipy.stats.t.interval(0.95, len(values) - 1, values.mean(), scipy.stats.sem(values))
    assert (found.mean, found.low, found.high) == pytest.approx((values.mean(), max(0, low), min(100, high)))


def test_the_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = [a.low <= 80 <= a.high for a in (Accuracy(tuple(rng.normal(80, 2, 5))) for _ in range(2000))]
    assert 0.93 < np.mean(hits) < 0.97


def test_one_seed_has_no_interval() -> None:
    assert np.isnan(Accuracy((80.0,)).low)
    assert str(Accuracy((80.0,))) == "80.0"


def test_accuracy_counts(toy_data: ImageData) -> None:
    network = create(NET, toy_data.spec, generator(0, "net")).eval()
    images = toy_data.spec.normalise(toy_data.test.images)
    right = sum(int(network(image[None]).argmax()) == int(label) for image, label in zip(images, toy_data.test.labels, strict=True))
    assert accuracy(network, toy_data) == pytest.approx(100 * right / len(images))
    with pytest.raises(InputError, match="no validation images"):
        accuracy(network, toy_data, "validation")


@pytest.mark.parametrize("soft", [False, True])
def test_training_is_plain_sgd(soft: bool) -> None:
    """A set smaller than the batch: every step is the whole set, so the loop can be written out with torch.optim alone."""
    data = toy()
    tiny = select(data, "random", 2, generator(0, "set"))
    if soft:
        import dataclasses

        tiny = dataclasses.replace(tiny, labels=F.softmax(torch.randn(6, 3, generator=generator(0, "soft")), 1))
    recipe = Recipe(epochs=7, augmentation="none")
    ours = train_network(tiny, NET, recipe, seed=3)
    network = create(NET, data.spec, generator(3, "weights"))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for epoch in range(7):
        if epoch == 4:  # E + 1 = 7 epochs, dropped at E / 2 + 1 = 4, with a new optimiser
            optimiser = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
        optimiser.zero_grad()
        F.cross_entropy(network(tiny.images), tiny.labels).backward()
        optimiser.step()
    for a, b in zip(ours.parameters(), network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_learned_step_size_is_used() -> None:
    import dataclasses

    tiny = select(toy(), "random", 2, generator(0, "set"))
    recipe = Recipe(epochs=3, augmentation="none", lr=0.05)
    learned = train_network(dataclasses.replace(tiny, lr=0.05), NET, Recipe(epochs=3, augmentation="none", lr=0.9), 0)
    for a, b in zip(learned.parameters(), train_network(tiny, NET, recipe, 0).parameters(), strict=True):
        assert torch.equal(a, b)


def test_same_seed_same_network_and_seeds_differ(toy_data: ImageData) -> None:
    one, again, other = (train_network(toy_data, NET, Recipe(max_steps=5), seed) for seed in (0, 0, 1))
    first, second, third = (torch.cat([p.flatten() for p in n.parameters()]) for n in (one, again, other))
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert len(train_on(toy_data, NET, Recipe(max_steps=1), seeds=[4, 5])) == 2


@pytest.mark.parametrize("schedule", ["step", "cosine", "constant"])
@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_every_recipe_learns_a_separable_toy(schedule: str, optimiser: str) -> None:
    data = toy()
    recipe = Recipe(max_steps=60, batch_size=12, optimiser=optimiser, schedule=schedule, lr=0.01 if optimiser == "sgd" else 1e-3)
    assert accuracy(train_network(data, NET, recipe, 0), data) > 80


def test_protocols() -> None:
    grey, colour = toy().spec, toy(channels=3).spec
    import dataclasses

    digits = dataclasses.replace(grey, name="mnist")
    assert protocol("dc", colour) == Recipe(epochs=301, augmentation="none")
    assert protocol("dc", digits).augmentation == "dc_crop_scale_rotate"
    assert protocol("dsa", colour).epochs == 1001
    assert "flip" in DSA
    assert "flip" not in DSA_DIGITS
    with pytest.raises(InputError, match="did you mean 'laptop'"):
        protocol("labtop", grey)
    assert set(PROTOCOLS) == {"dc", "dc-augmented", "dsa", "dm", "laptop"}


def test_evaluate_prints_all_rows(toy_data: ImageData) -> None:
    tiny = select(toy_data, "class_mean", 1, generator(0, "set"))
    recipe = Recipe(max_steps=10, batch_size=8)
    found = evaluate(tiny, toy_data, network=[NET, "MLP"], recipe=recipe, seeds=2, baselines=("random", "herding", "whole"))
    assert list(found.rows) == ["condensed", "random", "herding", "whole"]
    assert list(found.rows["whole"]) == [NET, "MLP"]
    assert all(name in str(found) for name in ("condensed", "whole", NET, "MLP", "±"))
    alone = accuracy(train_network(tiny, "MLP", recipe, 1), toy_data)
    assert found.rows["condensed"]["MLP"].values[1] == alone
    with pytest.raises(InputError, match="did you mean 'herding'"):
        evaluate(tiny, toy_data, baselines=("hearding",))
    with pytest.raises(InputError, match="height"):
        evaluate(tiny, toy(side=16))


# Coresets


def slow_herding(rows: np.ndarray, count: int) -> list[int]:
    picks: list[int] = []
    for _ in range(count):
        free = [i for i in range(len(rows)) if i not in picks]
        picks.append(min(free, key=lambda i: float(((rows[[*picks, i]].mean(0) - rows.mean(0)) ** 2).sum())))
    return picks


def slow_kcenter(rows: np.ndarray, count: int) -> list[int]:
    picks = [min(range(len(rows)), key=lambda i: float(((rows[i] - rows.mean(0)) ** 2).sum()))]
    while len(picks) < count:
        picks.append(max(range(len(rows)), key=lambda i: min(float(((rows[i] - rows[p]) ** 2).sum()) for p in picks)))
    return picks


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", ["herding", "kcenter"])
def test_greedy_coresets(name: str, seed: int) -> None:
    data = toy(seed)
    tiny = select(data, name, 5, generator(seed, "set"))
    for label in range(3):
        pool = data.normalised("train", data.class_indices(label))
        picks = {"herding": slow_herding, "kcenter": slow_kcenter}[name](pool.flatten(1).double().numpy(), 5)
        assert torch.equal(tiny.images[tiny.labels == label], pool[picks])


@pytest.mark.parametrize("name", CORESETS)
def test_coresets_are_sets_of_the_right_size(name: str) -> None:
    data = toy()
    tiny, again = (select(data, name, 4, generator(0, "set")) for _ in range(2))
    assert tiny.counts == (4, 4, 4)
    assert torch.equal(tiny.images, again.images)
    for label in range(3):
        pool = data.normalised("train", data.class_indices(label)).flatten(1)
        chosen = tiny.images[tiny.labels == label].flatten(1)
        is_real = [any(torch.equal(image, real) for real in pool) for image in chosen]
        assert all(is_real) == (name != "class_mean")
        assert len(torch.unique(chosen, dim=0)) == 4
        if name == "class_mean":
            assert torch.allclose(chosen.mean(0), pool.mean(0), atol=1e-5)
    assert select(data, name, 50, generator(0, "set")).counts == (12, 12, 12)


def test_coresets_on_features_and_wrong_ones(toy_data: ImageData) -> None:
    network = create(NET, toy_data.spec, generator(0, "net"))
    by_feature = select(toy_data, "herding", 3, generator(0, "set"), network.embed)
    assert not torch.equal(by_feature.images, select(toy_data, "herding", 3, generator(0, "set")).images)
    with pytest.raises(InputError, match="did you mean 'kmeans'"):
        select(toy_data, "kmean", 1, generator(0, "set"))
    with pytest.raises(InputError, match="1 or more"):
        select(toy_data, "random", 0, generator(0, "set"))
