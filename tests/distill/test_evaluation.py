"""Accuracy and its interval, the training loop and the recipes, against definitions written out here."""

import dataclasses
from typing import Any, cast

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
from distill.run import condense
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
        tiny = dataclasses.replace(tiny, labels=F.softmax(torch.randn(6, 3, generator=generator(0, "soft")), 1))
    recipe = Recipe(epochs=7, augmentation="none")
    ours = train_network(tiny, NET, recipe, seed=3)
    network = create(NET, data.spec, generator(3, "weights"))
    optimiser = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
    for epoch in range(7):
        if epoch == 4:  # half way, with a new optimiser
            optimiser = torch.optim.SGD(network.parameters(), lr=0.001, momentum=0.9, weight_decay=5e-4)
        optimiser.zero_grad()
        F.cross_entropy(network(tiny.images), tiny.labels).backward()
        optimiser.step()
    for a, b in zip(ours.parameters(), network.parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_a_learned_step_size_is_used() -> None:
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


def published_step_sizes(last: int) -> list[float]:
    """The authors' loop (`evaluate_synset` of VICO-UoE/DatasetCondensation, utils.py): the step size that each epoch is trained with.

    Its schedule is [E // 2 + 1], it runs over range(E + 1), and it looks at the schedule after the epoch.
    """
    lr, used, schedule = 0.01, [], [last // 2 + 1]
    for epoch in range(last + 1):
        used.append(lr)
        if epoch in schedule:
            lr *= 0.1
    return used


@pytest.mark.parametrize(("drop", "count", "last"), [(5, 6, 6), (6, 4, 8)])
def test_a_step_recipe_is_the_published_loop(drop: int, count: int, last: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two batches an epoch: the step size of every optimiser step, and momentum forgotten where it drops."""
    used: list[float] = []
    fresh: list[bool] = []
    step = torch.optim.SGD.step

    def recorded(self: torch.optim.SGD) -> None:
        used.append(self.param_groups[0]["lr"])
        fresh.append(not self.state)
        step(self)

    monkeypatch.setattr(torch.optim.SGD, "step", recorded)
    tiny = select(toy(), "random", 2, generator(0, "set"))
    train_network(tiny, NET, Recipe(epochs=last + 1, batch_size=count, augmentation="none", drop_epochs=drop), 0)
    per_epoch = -(-len(tiny) // count)
    assert used == pytest.approx([lr for lr in published_step_sizes(last) for _ in range(per_epoch)])
    assert [number for number, new in enumerate(fresh) if new] == [0, drop * per_epoch]


def test_the_authors_protocols_drop_where_their_loops_do() -> None:
    for name, last in {"dc": 300, "dc-augmented": 1000, "dsa": 1000, "dm": 1000, "datadam": 1800, "datadam-paper": 1800}.items():
        sizes, recipe = published_step_sizes(last), PROTOCOLS[name]
        assert recipe.schedule == "step"
        assert (recipe.epochs, recipe.drop_epochs) == (len(sizes), sizes.count(0.01))
    assert published_step_sizes(1000).count(0.01) == 502
    assert published_step_sizes(300).count(0.01) == 152
    assert PROTOCOLS["laptop"].drop_epochs is None


def test_protocols() -> None:
    grey, colour = toy().spec, toy(channels=3).spec
    assert protocol("dsa", colour).epochs == 1001
    assert "flip" in DSA
    assert "flip" not in DSA_DIGITS
    with pytest.raises(InputError, match="did you mean 'laptop'"):
        protocol("labtop", grey)
    # DataDAM's released code: 1,800 epochs, batch_train 64; the settings that users quote from the paper: batch 256.
    assert (PROTOCOLS["datadam"].epochs, PROTOCOLS["datadam"].batch_size, PROTOCOLS["datadam"].augmentation) == (1801, 64, "auto")
    assert PROTOCOLS["datadam-paper"] == dataclasses.replace(PROTOCOLS["datadam"], batch_size=256)


@pytest.mark.parametrize(
    ("data", "network", "epochs", "augmentation"),
    [
        # The authors' `get_daparam`: MNIST alone, and networks called ConvNetBN.
        ("mnist", "ConvNet", 1001, "dc_crop_scale_rotate"),
        ("mnist", "MLP", 1001, "dc_crop_scale_rotate"),
        ("fashion-mnist", "ConvNet", 301, "none"),
        ("svhn", "ConvNet", 301, "none"),
        ("cifar10", "ConvNet", 301, "none"),
        ("cifar100", "ResNet18", 301, "none"),
        ("usps", "ConvNet", 301, "none"),
        ("digits", "ConvNet", 301, "none"),
        ("mnist", "ConvNetBN", 1001, "dc_crop_noise"),
        ("cifar10", "ConvNetBN", 1001, "dc_crop_noise"),
        ("cifar10", "ConvNetW32BN", 301, "none"),
        ("cifar10", lambda spec: None, 301, "none"),
    ],
)
def test_dc_augments_what_its_authors_augment(data: str, network: object, epochs: int, augmentation: str) -> None:
    found = protocol("dc", dataclasses.replace(toy().spec, name=data), network)
    assert (found.epochs, found.augmentation) == (epochs, augmentation)
    assert protocol("dsa", dataclasses.replace(toy().spec, name=data), network) == PROTOCOLS["dsa"]


def test_a_protocol_is_looked_up_for_each_evaluation_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """One call with two networks: the batch-norm one is trained for 1,000 epochs with crops and noise, the other for 300 without."""
    seen: dict[str, Recipe] = {}

    def recorded(source: object, network: str, recipe: Recipe, seed: int, device: object, **named: object) -> torch.nn.Module:
        seen[network] = recipe
        return create("MLP", data.spec, generator(0, "net"))

    monkeypatch.setattr("distill.evaluation.train_network", recorded)
    data = toy(side=16)
    evaluate(select(data, "random", 1, generator(0, "set")), data, network=["ConvNet", "ConvNetBN"], recipe="dc", seeds=1, baselines=())
    assert {name: (recipe.epochs, recipe.augmentation) for name, recipe in seen.items()} == {
        "ConvNet": (301, "none"),
        "ConvNetBN": (1001, "dc_crop_noise"),
    }


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
        assert all(is_real) == (name not in ("class_mean", "noise"))
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


def test_wrong_arguments_are_refused_before_anything_is_trained(toy_data: ImageData) -> None:
    made = select(toy_data, "random", 1, generator(0))
    asked: list[tuple[dict[str, Any], str]] = [
        ({"split": "x"}, "split 'x' is not known"),
        ({"split": "validation"}, "has no validation images"),
        ({"recipe": {"max_steps": 3}}, "recipe is .*; allowed: a distill.Recipe"),
        ({"seeds": [0.5]}, "seed is 0.5; allowed: a whole number"),
    ]
    for given, words in asked:
        with pytest.raises(InputError, match=words):
            evaluate(made, toy_data, network="ConvNetD1W8", **given)
    for source in ("digits", None):
        with pytest.raises(InputError, match=r"the source is .*; allowed: an ImageData"):
            condense(cast(Any, source), "dm")
