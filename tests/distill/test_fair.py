"""Fair comparisons: no accuracy where outputs are no numbers, baselines as large as the set, rows that say how they were trained."""

import json
import math

import pytest
from torch import Tensor, nn

from distill.coresets import select
from distill.data import ImageData
from distill.errors import Diverged
from distill.evaluation import Accuracy, Measured, accuracies, accuracy, evaluate
from distill.networks import create
from distill.randomness import generator
from distill.spec import DataSpec
from distill.train import Recipe

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
