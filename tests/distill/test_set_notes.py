"""Traps of sets and teachers: each sentence made to appear, and not to appear on what is right."""

import dataclasses
import math

import pytest
import torch

from distill.chance import Working, working
from distill.comparison import notes_on
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.decode import Formation, Frequency
from distill.evaluation import evaluate
from distill.networks import create
from distill.randomness import generator
from distill.recipe import Recipe
from distill.scoring import Plan, score
from distill.set_notes import NEAR_ZERO, set_notes, teacher_notes, unnormalised
from distill.set_parts import StepSizes
from distill.spec import DataSpec
from distill.teachers import Teacher, teacher_network
from tests.conftest import toy

RECIPE = Recipe(max_steps=2, batch_size=8, augmentation="none")
BLIND = Teacher(network="ConvNetD1W8", epochs=1, lr=1e-9, augmentation="none")
GOOD = Teacher(network="ConvNetD1W8", epochs=12, lr=0.05, batch_size=8, augmentation="none")


def a_set(data: ImageData) -> CondensedSet:
    return select(data, "random", [2] * data.spec.num_classes, generator(0, "set"))


@pytest.mark.parametrize(("scale", "kind"), [(1, "pixels"), (255, "bytes")])
def test_images_that_are_not_normalised_are_named(scale: int, kind: str, toy_data: ImageData) -> None:
    right = a_set(toy_data)
    assert set_notes(right) == []
    raw = dataclasses.replace(right, images=right.pixels() * scale)
    (line,) = set_notes(raw)
    assert line.startswith(f"the set's images lie in {float(raw.images.min()):.3g} to {float(raw.images.max()):.3g}, as {kind} do")
    assert f"'toy' begin at {(0 - toy_data.spec.mean[0]) / toy_data.spec.std[0]:.3g}: they look unnormalised" in line


def test_normalised_images_of_every_kind_are_not(toy_data: ImageData) -> None:
    right, white = a_set(toy_data), a_set(toy_data.whitened())
    grids = Formation(2).encoded(right.images.repeat_interleave(4, 0), right.spec)
    rows = Frequency(8).encoded(right.images, right.spec)
    for images, more in (
        (right.images * 3, {}),  # learned values leave the range of pixels
        (torch.zeros_like(right.images), {}),
        (torch.randn(right.images.shape, generator=generator(0, "noise")), {}),
        (white.images, {"whitening": white.whitening}),
        (grids, {"decode": Formation(2)}),
        (rows, {"decode": Frequency(8)}),
        (select(toy_data, "class_mean", [1] * 3, generator(0, "c")).images.repeat_interleave(2, 0), {}),
    ):
        assert set_notes(dataclasses.replace(right, images=images, **more)) == []  # type: ignore[arg-type]
    plain = DataSpec("toy", 1, 8, 8, right.spec.classes, (0.0,), (1.0,))  # where pixels are what networks are trained on
    assert set_notes(dataclasses.replace(right, spec=plain, images=right.pixels())) == []
    assert unnormalised(0.0, 1.0, plain) == unnormalised(0.0, 255.0, plain) == ""


def test_a_learned_step_size_near_zero_is_named(toy_data: ImageData) -> None:
    right = a_set(toy_data)
    for more in ({"lr": NEAR_ZERO}, {"lr": 0.02}, {"step_sizes": StepSizes(torch.tensor([1e-6, 0.02]))}):
        assert set_notes(dataclasses.replace(right, **more)) == []  # type: ignore[arg-type]
    for more in ({"lr": 1e-6}, {"step_sizes": StepSizes(torch.tensor([1e-6, 1e-7]))}):
        (line,) = set_notes(dataclasses.replace(right, **more))  # type: ignore[arg-type]
        assert line.startswith("the learned step size 1e-06 is near zero")


def test_a_teacher_at_chance_is_named(toy_data: ImageData) -> None:
    assert teacher_notes(None, None, toy_data) == []
    assert teacher_notes(GOOD, teacher_network(toy_data, GOOD, progress=False), toy_data) == []
    (line,) = teacher_notes(BLIND, teacher_network(toy_data, BLIND, progress=False), toy_data)
    assert line.startswith(f"the teacher ({BLIND}) is at chance: it classifies ")
    assert "of 36 training images (chance 33.3 %)" in line


def test_chance_is_the_largest_class_and_three_deviations() -> None:
    """Counted by hand: 100 images, a largest class of 25, so 25 + 3 * sqrt(0.25 * 0.75 / 100) * 100 = 37.99 %."""
    limit = 25 + 3 * math.sqrt(0.25 * 0.75 / 100) * 100
    assert Working(limit - 0.01, 25.0, 100).at_chance
    assert not Working(limit + 0.01, 25.0, 100).at_chance
    data = toy()
    network = create("ConvNetD1W8", data.spec, generator(0, "net"))
    found = working(network, data)
    right = sum(int(network(data.normalised("train", torch.tensor([i]))).argmax() == data.train.labels[i]) for i in range(36))
    assert (found.accuracy, found.chance, found.images) == (pytest.approx(100 * right / 36), pytest.approx(100 / 3), 36)
    assert working(None, data) == Working(0.0, found.chance, 36)
    with torch.no_grad():
        next(network.parameters()).fill_(float("nan"))
    assert working(network, data).accuracy == 0.0


def test_evaluations_and_scores_have_the_notes(toy_data: ImageData) -> None:
    recipe = dataclasses.replace(RECIPE, teacher=BLIND)
    tiny = dataclasses.replace(a_set(toy_data), lr=1e-6)
    tiny = dataclasses.replace(tiny, images=tiny.pixels())
    beginnings = ("the set's images lie in", "the learned step size 1e-06", "the teacher (ConvNetD1W8 of 1 epoch (lr")
    found = evaluate(tiny, toy_data, network="ConvNetD1W8", recipe=recipe, seeds=1, baselines=[], progress=False)
    held = toy_data.hold_out(0.25)
    card = score(tiny, held, Plan(network="ConvNetD1W8", recipe=recipe, seeds=1, steps=(1.0,), baselines=("random",)))
    for notes in (found.notes, card.notes):
        assert [next(b for b in beginnings if note.startswith(b)) for note in notes[:3]] == list(beginnings)
    plain = notes_on(a_set(toy_data), toy_data, RECIPE, [])
    assert plain == []
    right = score(a_set(held), held, Plan(network="ConvNetD1W8", recipe=RECIPE, seeds=1, steps=(1.0,), baselines=("random",)))
    assert right.notes == ()


def test_a_white_set_is_scored_on_white_test_images(toy_data: ImageData) -> None:
    """As `evaluate` does: the networks of its row are those that are trained and tested on whitened images."""
    white = toy_data.whitened().hold_out(0.25)
    tiny = a_set(white)
    plan = Plan(network="ConvNetD1W8", recipe=dataclasses.replace(RECIPE, max_steps=20), seeds=2, steps=(1.0,), baselines=("random",))
    given, plain = score(tiny, white, plan), score(tiny, toy_data.hold_out(0.25), plan)
    assert given.measures == plain.measures
    assert min(given.measures[0].values[0]) > 50
