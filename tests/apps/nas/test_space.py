"""The space: 720 networks, ids that never change, and names that mean the same network."""

import itertools

import pytest
import torch
from torch import nn

from apps.nas.space import Candidate, Grid, candidate, check_candidates, drawn, named, own
from distill.errors import InputError
from distill.networks import create, embed, parameter_count
from distill.pooling import AveragePool
from distill.randomness import generator
from distill.spec import DataSpec

SPEC = DataSpec("digits", 1, 16, 16, tuple("0123456789"), (0.3,), (0.3,))


def tiny(spec: DataSpec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(256, spec.num_classes))


def test_the_720() -> None:
    grid = Grid()
    ids = [one.id for one in grid.candidates()]
    assert len(grid) == len(ids) == len(set(ids)) == 720
    assert ids[0] == "w32-d1-none-sigmoid-none"
    assert ids[-1] == "w256-d4-group-leaky-avg"
    assert "w128-d3-instance-relu-avg" in ids
    assert [candidate(id) for id in ids] == grid.candidates()
    assert len({one.network for one in grid.candidates()}) == 720


@pytest.mark.parametrize("seed", range(8))
def test_an_id_builds_the_network_it_names(seed: int) -> None:
    """The layers, counted from the id's own words."""
    one = Grid().candidates()[generator(seed, "pick").initial_seed() % 720]
    width, depth, norm, activation, pooling = one.axes
    body = list(create(one.network, SPEC, generator(0)).body)  # type: ignore[arg-type,call-overload]
    convolutions = [layer for layer in body if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [int(width)] * int(depth)
    norms = [layer for layer in body if isinstance(layer, nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)]
    groups = {"instance": int(width), "group": 4}
    if norm == "none":
        assert not norms
    elif norm in groups:
        assert [layer.num_groups for layer in norms] == [groups[norm]] * int(depth)
    else:
        assert [type(layer) for layer in norms] == [{"batch": nn.BatchNorm2d, "layer": nn.LayerNorm}[norm]] * int(depth)
    kind = {"sigmoid": nn.Sigmoid, "relu": nn.ReLU, "leaky": nn.LeakyReLU}[activation]
    assert sum(type(layer) is kind for layer in body) == int(depth)
    kind = {"none": nn.Identity, "max": nn.MaxPool2d, "avg": AveragePool}[pooling]
    assert sum(type(layer) is kind for layer in body) == int(depth)


def test_a_part_of_the_grid_keeps_the_order_and_the_ids() -> None:
    part = Grid(width=(32, 64), depth=(2,), norm=("batch", "none"), activation=("relu",), pooling=("avg", "max"))
    expected = [f"w{w}-d2-{n}-relu-{p}" for w, n, p in itertools.product((32, 64), ("batch", "none"), ("avg", "max"))]
    assert [one.id for one in part.candidates()] == expected
    assert set(expected) <= {one.id for one in Grid().candidates()}


@pytest.mark.parametrize(
    "id", ["", "w128-d3-instance-relu", "w128-d3-instance-gelu-avg", "w0-d3-none-relu-avg", "w1-d99-none-relu-avg", "x\n"]
)
def test_a_wrong_id_is_one_line(id: str) -> None:
    with pytest.raises(InputError) as error:
        candidate(id)
    assert "\n" not in str(error.value)


def test_an_id_may_not_break_what_a_network_needs() -> None:
    with pytest.raises(InputError, match="4 norm groups"):
        candidate("w6-d1-group-relu-avg")


def test_own_and_named_networks() -> None:
    mixed = check_candidates([*named(["LeNet"]), *own({"tiny": tiny, "mine-2": "MLP"})])
    assert [one.id for one in mixed] == ["LeNet", "tiny", "mine-2"]
    assert [one.axes for one in mixed] == [()] * 3
    assert parameter_count(create(mixed[2].network, SPEC, generator(0))) == 256 * 128 + 128 + 128 * 128 + 128 + 1290


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: own({"a b": "MLP"}), "letters, digits"),
        (lambda: own({"a": "MPL"}), "did you mean 'MLP'"),
        (lambda: own({"a": 3}), "give a function"),  # type: ignore[dict-item]
        (lambda: named(["LeNett"]), "did you mean 'LeNet'"),
        (lambda: check_candidates([]), "no network"),
        (lambda: check_candidates([Candidate("a", "MLP"), Candidate("a", "LeNet")]), "twice"),
        (lambda: Grid(width=(8, 8)).candidates(), "twice"),
    ],
)
def test_wrong_lists_are_refused(make, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()


def test_networks_drawn_from_a_space_are_all_of_it_and_repeat() -> None:
    space = [*Grid((4,), (1, 2), ("none",), ("relu",), ("avg",)).candidates(), *own({"mine": tiny})]
    factory, images = drawn(space), torch.randn(5, *SPEC.shape, generator=generator(0, "images"))
    streams = [generator(3, "networks") for _ in range(2)]
    kinds = set()
    for _ in range(30):
        network, same = (create(factory, SPEC, stream) for stream in streams)
        assert torch.equal(network(images), same(images))
        assert torch.allclose(embed(network, images).norm(dim=1), torch.ones(5), atol=1e-5)
        kinds.add(parameter_count(network))
    assert kinds == {parameter_count(create(one.network, SPEC, generator(0, "any"))) for one in space}
