"""Scores: published reference values, a slow definition from single predictions, and equal effort for every row."""

import dataclasses
import math
import statistics

import pytest
import torch

from distill.comparison import learner_set
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.decode import Formation
from distill.errors import InputError
from distill.evaluation import accuracy
from distill.randomness import generator
from distill.scores import Measure, Row, augmentation_robust, bounded, label_robust, scorecard
from distill.scoring import CHOOSING_SEED, Plan, measures, rows_of, score
from distill.teachers import Teacher, teacher_network
from distill.train import Recipe, train_network
from tests.conftest import toy_arrays

NETWORK = "ConvNetD1W16"
RECIPE = Recipe(max_steps=6, batch_size=8, optimiser="adamw", lr=0.003, schedule="cosine", augmentation="crop")
PLAN = Plan(network=NETWORK, recipe=RECIPE, seeds=2, steps=(0.1, 1.0, 10.0))
# CIFAR-10, ConvNet-3 at 1, 10 and 50 images a class: the methods' published accuracies, random images 15.4, 31.0 and 50.6, the whole set
# 84.8. All have class labels, so that the score is the place between random images and the whole set.
PUBLISHED = {
    "DC": ((28.3, 44.9, 53.9), (0.186, 0.217, 0.214)),
    "DSA": ((28.8, 52.1, 60.6), (0.187, 0.245, 0.240)),
    "DM": ((26.0, 48.9, 63.0), (0.178, 0.232, 0.249)),
    "DataDAM": ((32.0, 54.2, 67.0), (0.199, 0.253, 0.266)),
    "MTT": ((46.2, 65.4, 71.6), (0.253, 0.302, 0.286)),
    "IDC": ((50.6, 67.5, 74.5), (0.271, 0.312, 0.299)),
    "DANCE": ((47.1, 70.8, 76.1), (0.256, 0.328, 0.306)),
    "NCFM": ((49.5, 71.8, 77.4), (0.266, 0.332, 0.312)),
}
RANDOM, WHOLE = (15.4, 31.0, 50.6), 84.8


def data(validation: float = 0.25) -> ImageData:
    return ImageData.from_arrays("toy", *toy_arrays(0), *toy_arrays(1000)).hold_out(validation)


def shuffled() -> ImageData:
    """The same with labels by chance, so that accuracies and choices vary."""
    (pixels, labels), other = toy_arrays(0, per_class=24), toy_arrays(1000, per_class=24)
    mixed = [part[torch.randperm(len(part), generator=generator(0, "labels")).numpy()] for part in (labels, other[1])]
    return ImageData.from_arrays("toy", pixels, mixed[0], other[0], mixed[1]).hold_out(0.25)


def a_set(images: ImageData, ipc: int = 2, seed: int = 0) -> CondensedSet:
    return select(images, "random", [ipc] * images.spec.num_classes, generator(seed, "a set"))


@pytest.mark.parametrize("method", PUBLISHED)
def test_the_label_robust_score_of_published_accuracies(method: str) -> None:
    accuracies, scores = PUBLISHED[method]
    for value, random, expected in zip(accuracies, RANDOM, scores, strict=True):
        found = label_robust((value - random) / 100, (WHOLE - value) / 100)
        assert round(found, 3) == pytest.approx(expected, abs=0.0011)  # the reference rounds once more
        assert found == pytest.approx(bounded((value - (random + WHOLE) / 2) / 100))


def test_hand_worked_values() -> None:
    assert bounded(-1) == 0
    assert bounded(1) == 1
    assert round(bounded(0), 4) == 0.2689  # (1 - 1/e) / (e - 1/e) = 1 / (e + 1)
    # 0.5 * 0.2 + 0.5 * 0 = 0.1: (1.105171 - 0.367879) / 2.350402
    assert augmentation_robust(0.2, 0.0) == pytest.approx(0.313687, abs=1e-6)
    # 0.5 * 0.1 - 0.5 * 0.3 = -0.1: (0.904837 - 0.367879) / 2.350402
    assert augmentation_robust(0.1, -0.3) == pytest.approx(0.228454, abs=1e-6)
    assert label_robust(0.3, 0.1, weight=1.0) == bounded(0.3)
    assert augmentation_robust(0.3, 0.1, weight=0.0) == bounded(0.1)


def test_scores_from_single_predictions() -> None:
    """Every score again, from made-up predictions of each network for each image."""
    draws, labels = generator(3, "predictions"), torch.randint(4, (50,), generator=generator(3, "labels"))

    def predictions(right: float) -> torch.Tensor:
        wrong = torch.rand(50, generator=draws) > right
        return torch.where(wrong, (labels + 1) % 4, labels)

    chances = {"condensed": 0.6, "random": 0.4, "herding": 0.5, "whole": 0.9}
    images = data()
    condensed = a_set(images)
    rows = rows_of(condensed, dataclasses.replace(PLAN, architectures=("MLP",)), "adamw")
    sets = 2
    shown = {
        row: [[predictions(chances[row.images]) for _ in range(3)] for _ in range(sets if row.images == "condensed" else 1)] for row in rows
    }

    def percent(one: torch.Tensor) -> float:
        return 100.0 * sum(int(a) == int(b) for a, b in zip(one, labels, strict=True)) / 50

    made = [Measure(row, (0.1,), tuple(tuple(map(percent, part)) for part in shown[row]), 10) for row in rows]
    card = scorecard([condensed] * sets, made, training_images=100, split="test")

    def fraction(row: Row, k: int, seed: int) -> float:
        part = shown[row][k if row.images == "condensed" else 0][seed]
        return sum(int(a) == int(b) for a, b in zip(part, labels, strict=True)) / 50

    own, random, whole = (
        Row(name, kind, "own", NETWORK, "adamw") for name, kind in (("condensed", "own"), ("random", "hard"), ("whole", "hard"))
    )
    own_plain, random_plain = (dataclasses.replace(row, augmentation="none") for row in (own, random))
    other = dataclasses.replace(own, network="MLP")
    expected: dict[str, list[float]] = {}
    for k in range(sets):
        for seed in range(3):
            hlr = fraction(whole, 0, seed) - fraction(own, k, seed)
            ior = fraction(own, k, seed) - fraction(random, 0, seed)
            alpha = 0.5 * ior - 0.5 * hlr
            beta = 0.5 * ior + 0.5 * (fraction(own_plain, k, seed) - fraction(random_plain, 0, seed))
            for name, value in (
                ("hard-label recovery", hlr),
                ("improvement over random", ior),
                ("label-robust score", (math.exp(alpha) - 1 / math.e) / (math.e - 1 / math.e)),
                ("augmentation-robust score", (math.exp(beta) - 1 / math.e) / (math.e - 1 / math.e)),
                ("cross-architecture drop", fraction(own, k, seed) - fraction(other, k, seed)),
            ):
                expected.setdefault(name, []).append(value)
    assert [one.name for one in card.scores] == list(expected)
    for one in card.scores:
        assert one.values == pytest.approx(expected[one.name], abs=1e-12)
        assert one.mean == pytest.approx(statistics.fmean(expected[one.name]))
    means = [statistics.fmean(map(percent, part)) for part in shown[own]]
    assert card.spread_sets == pytest.approx(statistics.stdev(means))
    assert card.keep == len(condensed) / 100


def test_every_row_has_its_step_size_from_validation_images_and_the_same_seeds() -> None:
    images = shuffled()
    condensed = a_set(images)
    card = score(condensed, images, PLAN)
    assert {(one.row.images, one.row.augmentation) for one in card.measures} == {
        *((name, "own") for name in ("condensed", "random", "herding", "whole")),
        *((name, "none") for name in ("condensed", "random")),
    }
    for one in card.measures:
        recipe = dataclasses.replace(RECIPE, augmentation="none") if one.row.augmentation == "none" else RECIPE

        def trained(lr: float, seed: int, split: str, one: Measure = one, recipe: Recipe = recipe) -> float:
            source = condensed if one.row.images == "condensed" else learner_set(one.row.images, condensed, images, seed)
            return accuracy(train_network(source, NETWORK, dataclasses.replace(recipe, lr=lr), seed), images, split)

        tried = {step * RECIPE.lr: trained(step * RECIPE.lr, CHOOSING_SEED, "validation") for step in PLAN.steps}
        assert one.lr == (max(tried, key=lambda lr: tried[lr]),)
        assert one.values == (tuple(trained(one.lr[0], seed, "test") for seed in range(2)),)
        assert one.images_seen == 6 * min(8, len(images.train) if one.row.images == "whole" else len(condensed))
    assert len({one.lr for one in card.measures}) > 1  # the rows do not all choose the same


def test_sets_in_a_form_are_compared_with_random_images_in_that_form() -> None:
    images = data()
    form = Formation(2)
    stored = dataclasses.replace(a_set(images), images=form.encoded(a_set(images, 8).images, images.spec), decode=form)
    other = dataclasses.replace(stored, images=form.encoded(a_set(images, 8, seed=1).images, images.spec))
    card = score([stored, other], images, dataclasses.replace(PLAN, optimisers=("sgd",), architectures=("MLP",)))
    names = [(one.row.images, one.row.augmentation, one.row.network, one.row.optimiser) for one in card.measures]
    for name in ("random", "herding", "random-decoded", "herding-decoded"):
        assert (name, "own", NETWORK, "adamw") in names
    assert ("random-decoded", "none", NETWORK, "adamw") in names
    assert ("random-decoded", "own", NETWORK, "sgd") in names
    assert ("condensed", "own", "MLP", "adamw") in names
    by_row = {one.row: one for one in card.measures}
    own = by_row[Row("condensed", "own", "own", NETWORK, "adamw")]
    rival = by_row[Row("random-decoded", "hard", "own", NETWORK, "adamw")]
    gain = next(one for one in card.scores if one.name == "improvement over random")
    pairs = [(a - b) / 100 for values in own.values for a, b in zip(values, rival.values[0], strict=True)]
    assert gain.values == pytest.approx(pairs)
    means = [sum(values) / len(values) for values in own.values]
    assert card.spread_sets == pytest.approx(abs(means[0] - means[1]) / 2**0.5)
    assert [row[0] for row in card.table()[1:]] == [name[0] for name in names]
    assert "points from random images" in card.sentence()


def test_soft_labels_have_a_row_with_class_labels() -> None:
    images = shuffled()
    plain = a_set(images)
    soft = torch.nn.functional.one_hot(plain.labels, images.spec.num_classes).float() * 0.3 + 0.7 / images.spec.num_classes
    longer = dataclasses.replace(PLAN, recipe=dataclasses.replace(RECIPE, max_steps=40, augmentation="none"), steps=(3.0,))
    made = list(measures([dataclasses.replace(plain, labels=soft)], images, longer))
    own, hard = made[0], made[1]
    assert (own.row.labels, hard.row.labels) == ("own", "hard")
    assert hard.values == score(plain, images, longer).measures[0].values
    assert own.values != hard.values


def test_rows_that_are_done_are_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    images = data()
    first = list(measures([a_set(images)], images, PLAN))
    monkeypatch.setattr("distill.scoring.train_network", None)
    assert list(measures([a_set(images)], images, PLAN, done=first)) == first


def test_wrong_input_is_one_line() -> None:
    images = data()
    with pytest.raises(InputError, match="no set was given"):
        score([], images, PLAN)
    with pytest.raises(InputError, match="no validation images"):
        score(a_set(images), data(0.0), PLAN)
    with pytest.raises(InputError, match="'random' must be one"):
        score(a_set(images), images, dataclasses.replace(PLAN, baselines=("herding",)))
    with pytest.raises(InputError, match="baseline 'best' is not known"):
        score(a_set(images), images, dataclasses.replace(PLAN, baselines=("random", "best")))
    with pytest.raises(InputError, match="differ"):
        score([a_set(images), a_set(images, 3)], images, PLAN)
    with pytest.raises(InputError, match="set 3 has the images of an earlier one"):
        score([a_set(images), a_set(images, seed=1), a_set(images)], images, PLAN)
    with pytest.raises(InputError, match="diverged at every step size"):
        score(a_set(images), images, dataclasses.replace(PLAN, steps=(1e30,)))


def test_under_a_teacher_the_set_and_random_images_have_its_labels() -> None:
    images = shuffled()
    teacher = Teacher(network="MLP", epochs=2, batch_size=9, lr=0.05)
    plan = dataclasses.replace(PLAN, recipe=dataclasses.replace(RECIPE, loss="kl", temperature=4.0, teacher=teacher), steps=(3.0,))
    condensed = a_set(images)
    card = score(condensed, images, plan)
    by_row = {one.row: one.values[0] for one in card.measures}
    labelled = Row("random-labelled", "own", "own", NETWORK, "adamw")
    network = teacher_network(images, teacher)
    recipe = dataclasses.replace(plan.recipe, lr=3.0 * RECIPE.lr)
    expected = [
        accuracy(train_network(learner_set("random", condensed, images, seed), NETWORK, recipe, seed, teacher=network), images)
        for seed in range(2)
    ]
    assert by_row[labelled] == pytest.approx(expected)
    own, hard = (Row("condensed", kind, "own", NETWORK, "adamw") for kind in ("own", "hard"))
    assert by_row[hard] == score(condensed, images, dataclasses.replace(PLAN, steps=(3.0,))).measures[0].values[0]
    gain = next(one for one in card.scores if one.name == "improvement over random")
    assert gain.values == pytest.approx([(a - b) / 100 for a, b in zip(by_row[own], by_row[labelled], strict=True)])
    recovery = next(one for one in card.scores if one.name == "hard-label recovery")
    whole = by_row[Row("whole", "hard", "own", NETWORK, "adamw")]
    assert recovery.values == pytest.approx([(a - b) / 100 for a, b in zip(whole, by_row[hard], strict=True)])
    assert Row("random-labelled", "own", "none", NETWORK, "adamw") in by_row
