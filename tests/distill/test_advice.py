"""The authors' settings by images a class and by network, and the lines where a run leaves what they published."""

import dataclasses

import pytest

from distill.coresets import select
from distill.data import ImageData
from distill.methods import METHODS
from distill.methods.advice import advice
from distill.methods.dm import DM, DMConfig, image_step
from distill.methods.gm import GMConfig
from distill.networks import create
from distill.randomness import generator
from distill.spec import DataSpec


def spec(name: str) -> DataSpec:
    return DataSpec(name, 3, 32, 32, ("a", "b"), (0.5,) * 3, (0.25,) * 3)


# The readme of VICO-UoE/DatasetCondensation: CIFAR-10 1 for 1/10/50, 10 for 100/200/500/1000/1250; CIFAR-100 1 for 1/10/50/100/125.
@pytest.mark.parametrize(("data", "ipc", "step"), [("cifar10", n, 1.0) for n in (1, 10, 50)] + [("cifar10", n, 10.0) for n in (100, 1250)])
@pytest.mark.parametrize("other", ["cifar100"])
def test_dms_step_size_is_the_authors_by_data_set(data: str, ipc: int, step: float, other: str) -> None:
    assert image_step(spec(data), ipc) == step
    assert image_step(spec(other), ipc) == 1.0


def test_the_method_uses_the_rule(toy_data: ImageData) -> None:
    for name, step in (("cifar100", 1.0), ("cifar10", 10.0), ("mine", 10.0)):
        data = dataclasses.replace(toy_data, spec=dataclasses.replace(toy_data.spec, name=name))
        few = select(data, "random", 1, generator(0, "set"))
        large = dataclasses.replace(few, images=few.images.repeat(51, 1, 1, 1), labels=few.labels.repeat(51))
        assert DM(DMConfig(), large).lr_img == step
        assert DM(DMConfig(lr_img=3.0), large).lr_img == 3.0


def test_an_mlp_takes_a_tenth_of_gradient_matchings_step() -> None:
    assert (GMConfig().lr_img, GMConfig(network="MLP").lr_img, GMConfig(network="MLP", lr_img=0.3).lr_img) == (0.1, 0.01, 0.3)
    assert METHODS["dsa"][0](network="MLP").lr_img == 0.01


@pytest.mark.parametrize("name", ["gm", "dsa", "dm", "datadam", "mtt"])
def test_published_settings_need_no_advice(name: str) -> None:
    config = METHODS[name][0]()
    for ipc in (1, 10, 50):
        assert advice(name, config, spec("cifar10"), ipc) == []
        assert advice(name, config, spec("folder"), ipc) == []


@pytest.mark.parametrize(
    ("name", "data", "most"),
    [
        ("gm", "mnist", 50),
        ("dsa", "cifar10", 50),
        ("dm", "cifar10", 1250),
        ("dm", "cifar100", 125),
        ("dm", "svhn", 50),
        ("mtt", "cifar10", 50),
    ],
)
def test_above_the_published_range_one_line_says_what_to_do(name: str, data: str, most: int) -> None:
    config = METHODS[name][0]()
    assert advice(name, config, spec(data), most) == []
    (line,) = advice(name, config, spec(data), most + 1)
    assert line.startswith(f"{name} is published for up to {most:,} images a class on data such as {data}, not {most + 1:,}; ")
    assert line.endswith(".")


def test_deep_and_batch_norm_networks_are_named() -> None:
    (deep,) = advice("dm", METHODS["dm"][0](network="ResNet18"), spec("cifar10"), 10)
    assert "network 'ResNet18' has 20 convolutions" in deep
    (own,) = advice("dm", METHODS["dm"][0](), spec("cifar10"), 10, lambda spec: create("ConvNetD1W32BN", spec, generator(0, "net")))
    assert own.startswith("your network has batch norm")
    (norm,) = advice("gm", METHODS["gm"][0](network="ConvNetBN"), spec("cifar10"), 1)
    assert "batch norm" in norm
    # A step size of one's own is a decision; DataDAM's released form is batch norm.
    assert advice("dm", METHODS["dm"][0](network="ResNet18", lr_img=0.1), spec("cifar10"), 10) == []
    assert advice("datadam", METHODS["datadam"][0](form="released"), spec("cifar10"), 10) == []
    assert advice("mine", object(), spec("cifar10"), 10_000) == []
