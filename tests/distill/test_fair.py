"""Fair comparisons: no accuracy where outputs are no numbers, baselines as large as the set, rows that say how they were trained."""

import dataclasses
import json
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from distill import coresets
from distill.augment import DSA
from distill.comparison import compared, learner_set, recipe_of
from distill.condensed import CondensedSet, Provenance
from distill.coresets import CORESETS, select
from distill.data import ImageData
from distill.errors import Diverged, InputError
from distill.evaluation import Accuracy, Measured, accuracies, accuracy, evaluate
from distill.methods import METHODS
from distill.networks import create
from distill.randomness import generator
from distill.run import condense
from distill.spec import DataSpec
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set
from distill.train import PROTOCOLS, Recipe, train_network

NET = "ConvNetD1W32"
QUICK = Recipe(max_steps=4, batch_size=8, augmentation="none", compile="off")


# Networks whose outputs are not numbers


class _Odd(nn.Module):
    """A linear network with finite weights that answers ``value`` for some images once it is evaluated."""

    def __init__(self, spec: DataSpec, value: float, every: int) -> None:
        super().__init__()
        self.layer = nn.Linear(spec.channels * spec.height * spec.width, spec.num_classes)
        self.value, self.every = value, every

    def forward(self, images: Tensor) -> Tensor:
        outputs = self.layer(images.flatten(1))
        if not self.training:
            outputs[:: self.every, 1] = self.value
        return outputs


def odd(value: float, every: int = 1):
    def odd_network(spec: DataSpec) -> nn.Module:
        return _Odd(spec, value, every)

    return odd_network


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("every", [1, 1000])
def test_outputs_that_are_not_finite_are_no_accuracy(toy_data: ImageData, value: float, every: int) -> None:
    network = create(odd(value, every), toy_data.spec, generator(0, "net"))
    with pytest.raises(Diverged, match="NaN or infinite"):
        accuracy(network, toy_data)
    network.value = 0.0
    assert 0 <= accuracy(network, toy_data) <= 100


def test_a_row_of_failed_networks_says_so_and_the_others_stay(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", 2, generator(0, "set"))
    found = evaluate(tiny, toy_data, network=[NET, odd(math.nan)], recipe=QUICK, seeds=2, baselines=("random",), progress=False)
    bad, good = found.rows["condensed"]["odd_network"], found.rows["condensed"][NET]
    assert (bad.failed, good.failed) == (2, 0)
    assert math.isnan(bad.mean)
    assert bad.as_dict() == {"mean": None, "low": None, "high": None, "values": [None, None], "failed": 2, "reason": bad.reason}
    assert "failed (2 of 2)" in str(found)
    assert f"failed: random, odd_network: {bad.reason}" in str(found)
    assert f"{good}" in str(found)


def test_one_failed_network_of_several_leaves_no_mean_and_survives_a_record() -> None:
    some = Accuracy((90.0, math.nan, 92.0), "diverged")
    assert str(some) == "failed (1 of 3)"
    assert math.isnan(some.mean)
    again = Accuracy.read(json.loads(json.dumps(some.as_dict())))
    assert (again.values[0], again.failed, again.reason) == (90.0, 1, "diverged")
    for one in (Measured("dm", 3, 91.5), Measured("dm", 3, math.nan, "diverged")):
        back = Measured.read("dm", json.loads(json.dumps(one.line(), allow_nan=False)))
        assert repr(back) == repr(one)


def test_a_recipe_that_diverges_is_a_failure_and_not_chance(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", 2, generator(0, "set"))
    recipe = Recipe(max_steps=30, lr=1e30, augmentation="none", compile="off")
    for one in accuracies(tiny, toy_data, ["condensed", "whole"], "MLP", recipe, [0]):
        assert math.isnan(one.value)
        assert one.reason


# Baselines are as large as the set, class by class


def uneven(counts: tuple[int, ...], data: ImageData) -> CondensedSet:
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    return CondensedSet(torch.randn(len(labels), *data.spec.shape, generator=generator(0, "images")), labels, data.spec)


def soft(data: ImageData, images: int, favourite: int = 0) -> CondensedSet:
    """Probabilities of which ``favourite`` is the most likely class of all images but one."""
    logits = torch.randn(images, data.spec.num_classes, generator=generator(0, "labels"))
    logits[1:, favourite] += 10
    made = CondensedSet(torch.randn(images, *data.spec.shape, generator=generator(0, "images")), logits.softmax(1), data.spec)
    return dataclasses.replace(made, provenance=Provenance("mtt", {"ipc": images // data.spec.num_classes}))


@pytest.mark.parametrize("name", CORESETS)
@pytest.mark.parametrize("counts", [(4, 1, 2), (3, 0, 1), (0, 0, 5), (2, 2, 2)])
def test_a_baseline_has_the_sets_counts(toy_data: ImageData, name: str, counts: tuple[int, ...]) -> None:
    found = learner_set(name, uneven(counts, toy_data), toy_data, 0)
    assert isinstance(found, CondensedSet)
    assert found.counts == counts
    part = uneven((4, 4, 4), toy_data).subset([0, 2])
    assert learner_set(name, part, toy_data, 0).counts == (4, 0, 4)


@pytest.mark.parametrize("name", CORESETS)
def test_soft_labels_count_as_storage(toy_data: ImageData, name: str) -> None:
    one = soft(toy_data, 9)
    assert one.hard_labels.bincount().max() >= 8
    assert (one.ipc, one.counts) == (3, (3, 3, 3))
    assert learner_set(name, one, toy_data, 0).counts == (3, 3, 3)
    assert learner_set(name, soft(toy_data, 5), toy_data, 0).counts == (2, 2, 1)
    assert learner_set(name, one.made_for([0, 2]), toy_data, 0).counts == (5, 0, 4)


def test_soft_sets_remember_the_classes_they_were_made_for(toy_data: ImageData) -> None:
    one = soft(toy_data, 6, favourite=2).subset([2])
    assert one.counts == (0, 0, len(one))
    assert CondensedSet.from_bytes(one.to_bytes()).counts == one.counts
    assert CondensedSet.concat([one, one]).counts == (0, 0, 2 * len(one))
    assert CondensedSet.concat([one, soft(toy_data, 6)]).classes == (0, 1, 2)
    part = toy_data.subset([0, 2])
    made = condense(
        part, "mtt", ipc=2, network=NET, iterations=1, experts=1, syn_steps=1, expert_epochs=1, max_start_epoch=1, soft_labels=True
    )
    assert made.labels.is_floating_point()
    assert made.counts == (2, 0, 2)
    for odd_classes in (["a"], [9], [], 3, [True], None):
        origin = dataclasses.replace(made.provenance, config={"classes": odd_classes})
        assert dataclasses.replace(made, provenance=origin).counts == (2, 1, 1)


@pytest.mark.parametrize("name", CORESETS)
@pytest.mark.parametrize("white", [False, True])
def test_coresets_of_one_size_keep_their_bits(toy_data: ImageData, name: str, white: bool) -> None:
    """The draws and the images of the definition that normalises every image first, class by class."""
    data, draws = toy_data.whitened() if white else toy_data, generator(3, "set")
    expected = []
    for label in range(3):
        pool = data.normalised("train", data.class_indices(label))
        if name == "random":
            expected.append(pool[torch.randperm(len(pool), generator=draws)[:4]])
        elif name == "noise":
            expected.append(torch.randn(4, *data.spec.shape, generator=draws))
        elif name == "class_mean":
            order = torch.randperm(len(pool), generator=draws)
            expected.append(torch.stack([pool[part].mean(0) for part in order.tensor_split(4)]))
        else:
            picks = getattr(coresets, {"kmeans": "clustered"}.get(name, f"_{name}"))(pool.flatten(1), 4, draws)
            expected.append(pool[picks])
    assert torch.equal(select(data, name, 4, generator(3, "set")).images, torch.cat(expected))
    assert torch.equal(select(data, name, [4, 4, 4], generator(3, "set")).images, torch.cat(expected))


def test_random_images_are_picked_before_they_are_normalised(toy_data: ImageData, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    normalise = DataSpec.normalise
    monkeypatch.setattr(DataSpec, "normalise", lambda spec, images: seen.append(len(images)) or normalise(spec, images))
    select(toy_data, "random", 2, generator(0, "set"))
    initial_set(ExactStatistics(toy_data), "real", 2, generator(0, "set"))
    assert seen == [2] * 6


@pytest.mark.parametrize("ipc", [[1, 2], [1, 2, -1], [0, 0, 0], [1, 2, 3, 4], [1.0, 1, 1], [True, 1, 1], 0])
def test_wrong_counts_are_one_line(toy_data: ImageData, ipc: Any) -> None:
    with pytest.raises(InputError, match=r"allowed|no training images"):
        select(toy_data, "random", ipc, generator(0, "set"))


def test_the_table_says_where_sizes_differ(toy_data: ImageData) -> None:
    few = toy_data.hold_out(0.75)  # 3 of 12 images a class
    found = evaluate(uneven((5, 2, 4), few), few, network=NET, recipe=QUICK, seeds=1, baselines=("random", "herding"), progress=False)
    text = "the set has 11 images and random and herding 8, because the data have fewer in classes 0, 2"
    assert text in str(found)
    assert (found.training["random"].images, found.training["condensed"].images) == (8, 11)
    assert "sizes differ" not in str(evaluate(uneven((3, 2, 3), few), few, network=NET, recipe=QUICK, seeds=1, progress=False))


# How the rows were trained


def test_whole_is_named_by_its_steps_and_trained_for_epochs_on_request(toy_data: ImageData) -> None:
    """36 training images in batches of 8 are 5 steps an epoch."""
    tiny = select(toy_data, "random", 1, generator(0, "set"))
    recipe = Recipe(epochs=100, max_steps=3, batch_size=8, augmentation="none", compile="off")
    cut = evaluate(tiny, toy_data, network=NET, recipe=recipe, seeds=1, baselines=("whole",), progress=False)
    assert "whole (3 steps, 0.6 epochs)" in str(cut)
    assert list(cut.rows) == ["condensed", "whole"]
    assert cut.training["whole"].as_dict() == {"images": 36, "steps": 3, "epochs": 0.6, "labels": "class"}
    long = evaluate(tiny, toy_data, network=NET, recipe=recipe, seeds=1, baselines=("whole",), whole_epochs=7, progress=False)
    assert "whole (35 steps, 7 epochs)" in str(long)
    own = dataclasses.replace(recipe, epochs=7, max_steps=None)
    assert long.rows["whole"][NET].values == (accuracy(train_network(toy_data, NET, own, 0), toy_data),)
    assert long.rows["condensed"] == cut.rows["condensed"]
    with pytest.raises(InputError, match="whole_epochs is 0"):
        evaluate(tiny, toy_data, whole_epochs=0)


@pytest.mark.parametrize("named", [None, "none", "color"])
def test_auto_means_the_sets_augmentation_in_every_row(toy_data: ImageData, named: str | None) -> None:
    tiny = dataclasses.replace(select(toy_data, "class_mean", 2, generator(0, "set")), augmentation=named)
    auto, baselines = dataclasses.replace(QUICK, augmentation="auto"), ("random", "whole")
    stated = dataclasses.replace(QUICK, augmentation=named or DSA)
    found, expected = (
        evaluate(tiny, toy_data, network=NET, recipe=recipe, seeds=2, baselines=baselines, progress=False) for recipe in (auto, stated)
    )
    assert found.rows == expected.rows
    assert f"augmentation {named or DSA}" in str(found)
    networks = [train_network(tiny, NET, recipe, 0) for recipe in (auto, stated)]
    assert all(torch.equal(a, b) for a, b in zip(*(network.parameters() for network in networks), strict=True))


@pytest.mark.parametrize("method", sorted(METHODS))
def test_sets_made_with_default_settings_are_evaluated_with_the_datas_strategy(toy_data: ImageData, method: str) -> None:
    kind, distiller = METHODS[method]
    first = select(toy_data, "random", 1, generator(0, "set"))
    assert compared("laptop", distiller(kind(), first, None).condensed, toy_data).augmentation == DSA
    named = distiller(kind(augmentation="color"), first, None).condensed
    assert compared("laptop", named, toy_data).augmentation == "color"
    if kind().augmentation != "none":  # a method that augments nothing names nothing
        assert compared("laptop", distiller(kind(augmentation="none"), first, None).condensed, toy_data).augmentation == "none"


@pytest.mark.parametrize(("optimiser", "said"), [("adamw", "is not used by AdamW"), ("sgd", "is used for the set in place of 0.05")])
def test_a_learned_step_size_is_used_or_missed_out_loud(toy_data: ImageData, optimiser: str, said: str) -> None:
    tiny = dataclasses.replace(select(toy_data, "random", 1, generator(0, "set")), lr=0.0123)
    recipe = dataclasses.replace(QUICK, optimiser=optimiser, lr=0.05)
    found = evaluate(tiny, toy_data, network=NET, recipe=recipe, seeds=1, progress=False)
    assert f"the set's learned lr 0.0123 {said}" in str(found)
    assert "learned" not in str(evaluate(dataclasses.replace(tiny, lr=None), toy_data, network=NET, recipe=recipe, seeds=1, progress=False))


def test_whole_epochs_drop_the_step_size_half_way_through_them() -> None:
    """The authors' protocols drop after epoch 502 of 1,001; 50 epochs on the whole data would never get there."""
    whole = recipe_of("whole", PROTOCOLS["dsa"], 50)
    assert (whole.epochs, whole.drop_epochs) == (50, None)
    assert recipe_of("random", PROTOCOLS["dsa"], 50) == recipe_of("whole", PROTOCOLS["dsa"], None) == PROTOCOLS["dsa"]


def test_what_is_listed_twice_would_narrow_the_interval_and_is_refused(toy_data: ImageData) -> None:
    tiny = select(toy_data, "random", 1, generator(0, "twice"))
    for twice in ({"baselines": ["random", "random"]}, {"network": ["MLP", "MLP"]}, {"seeds": [1, 1]}):
        with pytest.raises(InputError, match="different ones, each once"):
            evaluate(tiny, toy_data, **twice)  # type: ignore[arg-type]


def test_a_row_with_a_failed_network_has_no_interval() -> None:
    row = Accuracy((90.0, math.nan, 92.0), "diverged")
    assert all(map(math.isnan, (row.low, row.high, row.half_width)))
