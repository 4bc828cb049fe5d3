"""Zero-cost scores and main effects against definitions written out; the comparison against numbers known beforehand."""

import itertools
import math

import numpy as np
import pytest
import torch
from torch import nn

from apps.nas import zero_cost as zc
from apps.nas.compare import Scores, compared, means
from apps.nas.regression import main_effects
from apps.nas.space import Grid, candidate, own
from distill.errors import InputError
from distill.networks import create, flops, parameter_count
from distill.randomness import generator
from tests.conftest import toy

NORMS = ("none", "batch", "layer", "instance", "group")


def batch(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    data = toy()
    places = torch.arange(count) * 5
    return data.normalised("train", places), data.train.labels[places]


@pytest.mark.parametrize("norm", NORMS)
def test_synflow_by_hand(norm: str) -> None:
    """sum of w dR/dw, each derivative by a difference quotient: R is linear in any one weight of a ReLU network with positive weights."""
    spec = toy().spec
    network = create(candidate(f"w4-d2-{norm}-relu-avg").network, spec, generator(1)).double()
    kept = [layer for layer in network.body if not isinstance(layer, nn.BatchNorm2d | nn.GroupNorm | nn.LayerNorm)]
    bare = nn.Sequential(*kept, nn.Flatten(), network.head)
    with torch.no_grad():
        for parameter in bare.parameters():
            parameter.abs_()
        ones = torch.ones((1, *spec.shape), dtype=torch.float64)
        base, total = float(bare(ones).sum()), 0.0
        for parameter in bare.parameters():
            flat = parameter.view(-1)
            for i in range(len(flat)):
                before = float(flat[i])
                flat[i] = 0.0
                total += base - float(bare(ones).sum())  # linear: w dR/dw = R(w) - R(0)
                flat[i] = before
    again = create(candidate(f"w4-d2-{norm}-relu-avg").network, spec, generator(1))
    assert zc.synflow(again, spec) == pytest.approx(math.log(total), rel=1e-9)


@pytest.mark.parametrize("activation", ["relu", "leaky", "sigmoid"])
def test_naswot_by_hand(activation: str) -> None:
    images, _ = batch()
    network = create(candidate(f"w4-d2-none-{activation}-max").network, toy().spec, generator(2)).train()
    codes: list[list[bool]] = [[] for _ in images]
    for n in range(len(images)):
        x = images[n : n + 1]
        for layer in network.body:
            if isinstance(layer, nn.ReLU | nn.LeakyReLU | nn.Sigmoid):
                codes[n] += [bool(v > 0) for v in x.detach().flatten()]
            x = layer(x)
    kernel = np.array([[sum(a == b for a, b in zip(one, other, strict=True)) for other in codes] for one in codes], dtype=float)
    assert zc.naswot(network, images) == pytest.approx(np.linalg.slogdet(kernel)[1], rel=1e-9)


def test_grad_norm_by_hand() -> None:
    images, labels = batch()
    network = create("ConvNetW4D1", toy().spec, generator(3))
    total = 0.0
    output = torch.log_softmax(network(images), 1)
    loss = -sum(output[i, int(labels[i])] for i in range(len(labels))) / len(labels)
    for g in torch.autograd.grad(loss, list(network.parameters())):
        total += sum(float(v) ** 2 for v in g.flatten())
    assert zc.grad_norm(network, images, labels) == pytest.approx(math.sqrt(total), rel=1e-5)


@pytest.mark.parametrize("name", zc.SCORES)
def test_every_score_is_finite_on_the_whole_grid_and_repeats(name: str) -> None:
    images, labels = batch()
    grid = Grid(width=(4, 8), depth=(1, 2), norm=NORMS, activation=("sigmoid", "relu", "leaky"), pooling=("none", "max", "avg"))
    for one in grid.candidates()[:: 1 if name in zc.SIZES else 7]:
        values = [zc.zero_cost(name, one, toy().spec, 0, images, labels)[0] for _ in range(2)]
        assert math.isfinite(values[0])
        assert values[0] == values[1]
    network = create(one.network, toy().spec, generator(0))
    expected = {"parameters": parameter_count(network), "flops": flops(network, toy().spec)}
    assert values[0] == expected.get(name, values[0])


def test_a_score_that_does_not_exist_is_nan() -> None:
    from tests.apps.nas.networks import small

    images, labels = batch()
    assert math.isnan(zc.zero_cost("naswot", own({"small": small})[0], toy().spec, 0, images, labels)[0])
    with pytest.raises(InputError, match="did you mean 'synflow'"):
        zc.zero_cost("synflo", own({"small": small})[0], toy().spec, 0)


def test_main_effects_find_an_additive_truth_exactly() -> None:
    axes = [one.axes for one in Grid(width=(4, 8), depth=(1, 2, 3), activation=("relu",)).candidates()]
    rng = np.random.default_rng(0)
    effect = {(place, value): rng.normal() for place in range(5) for value in {row[place] for row in axes}}
    truth = np.array([50 + sum(effect[place, value] for place, value in enumerate(row)) for row in axes])
    known = rng.permutation(len(axes))[:40]
    np.testing.assert_allclose(main_effects(axes, known, truth[known]), truth, atol=1e-9)


def test_main_effects_are_least_squares_and_leave_out_what_failed() -> None:
    """Against the normal equations with dummy columns, and with a failed network among the known."""
    axes = [
        one.axes for one in Grid(width=(4, 8), depth=(1, 2), norm=("none", "batch"), activation=("relu",), pooling=("avg",)).candidates()
    ]
    values = np.array([1.0, 4, 2, 8, 5, 7, 3, 6])
    design = np.array([[1.0, *(row[i] == axes[-1][i] for i in range(3))] for row in axes])
    weights = np.linalg.solve(design.T @ design, design.T @ values)
    np.testing.assert_allclose(main_effects(axes, range(8), values), design @ weights, atol=1e-9)
    holed = [*values[:7], math.nan]
    weights = np.linalg.solve(design[:7].T @ design[:7], design[:7].T @ values[:7])
    np.testing.assert_allclose(main_effects(axes, range(8), holed), design @ weights, atol=1e-9)
    assert np.isnan(main_effects(axes, [0], [math.nan])).all()
    with pytest.raises(InputError, match="one grid"):
        main_effects([(), ()], [0], [1.0])


def test_a_value_that_no_known_network_has_counts_as_average() -> None:
    axes = [(a, b) for a, b in itertools.product("xyz", "pq")]
    predicted = main_effects(axes, [0, 1, 2, 3], [10.0, 12.0, 20.0, 22.0])  # no z
    np.testing.assert_allclose(predicted, [10, 12, 20, 22, 15, 17], atol=1e-9)


def test_means_of_what_is_there() -> None:
    found = means(np.array([[1.0, 3.0], [math.nan, 5.0], [math.nan, math.nan]]))
    np.testing.assert_array_equal(found, [2.0, 5.0, math.nan])


def test_the_comparison_says_what_was_put_in() -> None:
    rng = np.random.default_rng(4)
    quality = rng.normal(80, 5, 72)
    truth = quality[:, None] + rng.normal(0, 0.5, (72, 3))
    truth[3] = math.nan
    proxies = {
        "good": Scores("condensed", quality + rng.normal(0, 1, 72), 10.0, 72.0, 100),
        "random": Scores("coreset", quality + rng.normal(0, 8, 72), 0.0, 72.0, 100),
        "parameters": Scores("zero-cost", np.ones(72)),
    }
    found = compared(truth, proxies, 720.0, rng, 400)
    assert (found["networks"], found["known"]) == (72, 71)
    assert found["ceiling"]["reliability"] > 0.97
    good = found["proxies"]["good"]
    assert good["spearman"]["low"] < good["spearman"]["value"] < good["spearman"]["high"]
    assert found["differences"]["good"]["random"]["low"] > 0
    assert list(found["differences"]) == ["good"]
    assert good["break_even"] == 3  # 10 + n + 10 < 10 n from n = 3
    assert good["seconds"] == {"one_off": 10.0, "networks": 72.0, "total": 82.0}
    assert good["overlap@5"]["chance"] == pytest.approx(5 / 71)
    assert (good["spearman_top5pct"]["networks"], good["spearman_top10"]["networks"]) == (4, 10)
    assert math.isnan(found["proxies"]["parameters"]["spearman"]["value"])
    expected = np.nanmax(truth.mean(1)) - np.nanmean(truth.mean(1))
    assert found["proxies"]["parameters"]["regret@1"]["value"] == pytest.approx(expected)
