"""Compiled and bfloat16 forms give the values of the plain forward; where nothing compiles, one warning and the plain forward."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch

from distill import fast
from distill.fast import WORTH_FLOPS, Fast, accelerated
from distill.networks import create, embed
from distill.randomness import generator
from distill.run import condense
from distill.train import Recipe, train_network
from tests.conftest import toy

CPU = torch.device("cpu")


def network(name: str = "ConvNetD2W32") -> torch.nn.Module:
    return create(name, toy().spec, generator(0, "weights"))


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 1, 8, 8, generator=generator(0, "images"))


@pytest.mark.parametrize("name", ["ConvNetD2W32", "ConvNetD2W32GN"])
def test_compiled_values_and_gradients(name: str) -> None:
    plain, x = network(name), images()
    quick = Fast(plain, CPU, 0.0, compile="on")
    assert torch.allclose(quick(x), plain(x), atol=1e-5)
    labels = torch.tensor([0, 1, 2, 0, 1, 2])
    gradients = [torch.autograd.grad(torch.nn.functional.cross_entropy(f(x), labels), list(plain.parameters())) for f in (quick, plain)]
    for ours, theirs in zip(*gradients, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert [p.data_ptr() for p in quick.parameters()] == [p.data_ptr() for p in plain.parameters()]


def test_compiled_gradients_of_a_smooth_network_have_no_kinks() -> None:
    """Single images' gradients, which the switch of one ReLU changes by percents, against float64."""
    plain = network()
    for module in plain.modules():
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.Softplus())
    exact = copy.deepcopy(plain).double()

    def gradient(features: Callable[[torch.Tensor], torch.Tensor], x: torch.Tensor) -> torch.Tensor:
        leaf = x.clone().requires_grad_(True)
        return torch.autograd.grad(features(leaf).mean(0).square().sum(), leaf)[0].double()

    x = images(8)
    found = gradient(accelerated(lambda part: embed(plain, part), CPU, 0.0, compile="on"), x)
    truth = gradient(lambda part: embed(exact, part), x.double())
    assert float(((found - truth).flatten(1).norm(dim=1) / truth.flatten(1).norm(dim=1)).max()) < 1e-5


def test_bfloat16_is_near_and_comes_back_as_float32() -> None:
    plain = network()
    for compile in ("off", "on"):
        found = accelerated(lambda x: embed(plain, x), CPU, 0.0, "bf16", compile)(images())
        truth = embed(plain, images())
        assert found.dtype == torch.float32
        assert 0 < float((found - truth).detach().norm()) < 0.03 * float(truth.detach().norm())


def test_automatic_compiling_looks_at_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: calls.append(function) or function)
    plain = network()
    repays, near = WORTH_FLOPS["cpu", "float32"], WORTH_FLOPS["cpu", "bf16"]
    assert near < repays  # bfloat16 gains more
    for work, precision, compile, expected in (
        (0.5 * repays, "float32", "auto", 0),
        (2 * repays, "float32", "auto", 1),
        (2 * repays, "float32", "off", 1),
        (0.0, "float32", "on", 2),
        (0.5 * near, "bf16", "auto", 2),
        (2 * near, "bf16", "auto", 3),
    ):
        accelerated(plain, CPU, work, precision, compile)(images())  # type: ignore[arg-type]
        assert len(calls) == expected


def test_without_a_compiler_one_warning_and_the_same_values(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(function: object, **_: object) -> object:
        def run(x: torch.Tensor) -> torch.Tensor:
            raise RuntimeError("no C++ compiler found\nsecond line")

        return run

    monkeypatch.setattr(torch, "compile", broken)
    monkeypatch.setattr(fast, "_warned", set())
    plain = network()
    with pytest.warns(UserWarning, match=r"torch.compile does not work here \(no C\+\+ compiler found\)") as caught:
        found = [accelerated(plain, CPU, 0.0, compile="on")(images()) for _ in range(2)]
    assert all(torch.equal(one, plain(images())) for one in found)
    assert len(caught) == 1


def test_without_bfloat16_one_warning_and_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a processor with AVX2 only torch computes a convolution in bfloat16 by plain loops."""
    monkeypatch.setattr(fast, "has_bfloat16", lambda device: device != "cpu")
    monkeypatch.setattr(fast, "_warned", set())
    plain = network()
    with pytest.warns(UserWarning, match="precision is 'bf16', which this processor does not have; float32 is used") as caught:
        found = [accelerated(plain, CPU, 0.0, "bf16", compile="off")(images()) for _ in range(2)]
    assert all(torch.equal(one, plain(images())) for one in found)
    assert len(caught) == 1
    assert fast.usable("bf16", torch.device("cuda")) == "bf16"


def test_a_learner_trained_in_bfloat16_learns() -> None:
    data = toy()
    recipe = Recipe(max_steps=60, batch_size=12, lr=0.05, schedule="cosine", augmentation="none")
    from distill.evaluation import accuracy

    exact, near = (train_network(data, "ConvNetD1W32", Recipe(**{**recipe.__dict__, "precision": p}), 0) for p in ("float32", "bf16"))
    assert accuracy(exact, data) > 90
    assert accuracy(near, data, precision="bf16") > 90
    assert not torch.equal(next(exact.parameters()), next(near.parameters()))
    assert all(p.dtype == torch.float32 for p in near.parameters())


def test_a_step_of_compiled_or_bfloat16_networks_is_the_plain_one() -> None:
    """Real images, synthetic images and the calibration: each has a function that is compiled, or runs in bfloat16."""

    def images_after(lr_img: float = 10.0, **settings: object) -> torch.Tensor:
        shared = {"iterations": 2, "network": "ConvNetD1W32", "batch_real": 4, "lr_img": lr_img, "augmentation": "none"}
        pool = {"calibration": 1.0, "pool_networks": 1, "pool_epochs": 1, "decode": "formation:2"}
        return condense(toy(), "dm", ipc=2, **shared, **pool, **settings, progress=False).images

    start, plain = images_after(lr_img=1e-9), images_after(compile="off")
    moved = float((plain - start).norm())
    assert moved > 0.05 * float(start.norm())
    assert float((images_after(compile="on") - plain).norm()) < 1e-4 * moved
    assert 0 < float((images_after(compile="off", precision="bf16") - plain).norm()) < 0.05 * moved


def test_no_warning_in_ordinary_use() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        accelerated(network(), CPU, 0.0, compile="on")(images())
