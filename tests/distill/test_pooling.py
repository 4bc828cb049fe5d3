"""`AveragePool` has the values and all derivatives of torch's own average pooling."""

import copy
import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill.networks import create
from distill.pooling import AveragePool
from distill.spec import DataSpec

with warnings.catch_warnings():  # forward derivatives of gradients import it, and it uses what is deprecated
    warnings.simplefilter("ignore")
    import torch._decomp.decompositions_for_jvp

SHAPES = [(2, 3, 4, 6), (1, 1, 2, 2), (5, 4, 8, 8), (2, 3, 7, 4), (2, 3, 5, 5)]
POOL = AveragePool()


def plain(images: Tensor) -> Tensor:
    return F.avg_pool2d(images, 2)


def images_of(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> Tensor:
    draws = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=draws, dtype=torch.float64).mul(torch.tensor([1e-3, 1.0, 1e4])[seed % 3]).to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(3))
def test_values_and_gradients_are_torchs_own(shape: tuple[int, ...], dtype: torch.dtype, seed: int) -> None:
    images = images_of(shape, dtype, seed).requires_grad_()
    ours, theirs = POOL(images), plain(images)
    assert torch.equal(ours, theirs)
    upstream = images_of(tuple(ours.shape), dtype, seed + 10)
    assert torch.equal(torch.autograd.grad(ours, images, upstream)[0], torch.autograd.grad(theirs, images, upstream)[0])


def test_values_that_are_not_finite_stay_so() -> None:
    images = torch.tensor([[[[1.0, torch.inf], [2.0, 3.0]]], [[[torch.nan, 1.0], [2.0, 3.0]]]])
    torch.testing.assert_close(POOL(images), plain(images), rtol=0, atol=0, equal_nan=True)
    assert POOL(images)[0].item() == torch.inf


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_other_layouts_and_views(layout: torch.memory_format) -> None:
    images = images_of((4, 3, 8, 8), torch.float32, 1).contiguous(memory_format=layout)
    for part in (images, images[:, :, 1:-1], images.transpose(2, 3), images.expand(2, -1, -1, -1, -1)[1]):
        assert torch.equal(POOL(part), plain(part))


def test_derivatives_of_every_order_and_kind() -> None:
    images = images_of((2, 2, 4, 4), torch.float64, 1).requires_grad_()
    with torch.random.fork_rng():  # they draw directions from the global state
        assert torch.autograd.gradcheck(POOL, images, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
        assert torch.autograd.gradgradcheck(POOL, images, check_batched_grad=True)


@pytest.mark.parametrize("transform", ["vmap", "grad", "vmap grad", "jvp grad", "vmap grad grad"])
def test_function_transforms(transform: str) -> None:
    def through(pool: Callable[[Tensor], Tensor]) -> Tensor:
        images, tangent = (images_of((3, 2, 4, 4), torch.float64, seed) for seed in (0, 1))

        def loss(one: Tensor) -> Tensor:
            return (pool(one[None]).exp() ** 2).sum()

        gradient = torch.func.grad(loss)
        found: Tensor = {
            "vmap": lambda: torch.func.vmap(lambda one: pool(one[None]))(images),
            "grad": lambda: gradient(images[0]),
            "vmap grad": lambda: torch.func.vmap(gradient)(images),
            "jvp grad": lambda: torch.func.jvp(gradient, (images[0],), (tangent[0],))[1],
            "vmap grad grad": lambda: torch.func.vmap(torch.func.grad(lambda one: (gradient(one) ** 2).sum()))(images),
        }[transform]()
        return found

    assert torch.allclose(through(POOL), through(plain), rtol=1e-12)


@pytest.mark.parametrize("name", ["ConvNetW8", "ConvNetW8D2BN", "ResNet18BN_AP"])
def test_a_networks_gradients_are_bit_for_bit_those_with_torchs_pooling(name: str) -> None:
    spec = DataSpec("toy", 3, 32, 32, ("a", "b", "c"), (0.5,) * 3, (0.25,) * 3)
    ours = create(name, spec, torch.Generator().manual_seed(0))
    theirs = copy.deepcopy(ours)
    replaced = 0
    for module in theirs.modules():
        for key, child in list(module.named_children()):
            if isinstance(child, AveragePool):
                setattr(module, key, torch.nn.AvgPool2d(2))
                replaced += 1
    assert replaced
    images, found = images_of((4, 3, 32, 32), torch.float32, 1), []
    for network in (ours, theirs):
        outputs = network(images)
        F.cross_entropy(outputs, torch.tensor([0, 1, 2, 0])).backward()
        found.append([outputs, *(parameter.grad for parameter in network.parameters())])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
