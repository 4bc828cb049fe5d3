"""MTT's gradient at constant memory against one graph through all steps, and what it costs in memory."""

import copy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks import plain
from distill.adjoint import Student, matching_gradient, stateless, stepwise
from distill.augment import apply, draw, strategy
from distill.networks import create
from distill.randomness import generator
from tests.conftest import toy

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.plain_layers


def segment(name: str, soft: bool, seed: int) -> tuple[torch.nn.Module, tuple[object, ...]]:
    """A float64 network and everything a matching gradient is made from: augmented, overlapping batches, an uneven step size."""
    spec = toy().spec
    network = create(name, spec, generator(seed, "weights")).double()
    start = torch.nn.utils.parameters_to_vector(network.parameters()).detach()
    draws = generator(seed, "segment")
    target = start + 0.05 * torch.randn(start.shape, generator=draws, dtype=torch.float64)
    images = torch.randn(6, 1, 8, 8, generator=draws, dtype=torch.float64)
    labels = torch.rand(6, 3, generator=draws, dtype=torch.float64).softmax(1) if soft else torch.arange(3).repeat_interleave(2)
    transforms = strategy("color_crop_cutout_scale_rotate")
    batches = [torch.randperm(6, generator=draws)[:4] for _ in range(30)]
    parameters = [draw(transforms, draws, 8, 8, 4) for _ in range(30)]

    def view(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return apply(x[batches[step]], parameters[step]), y[batches[step]]

    return network, (start, target, images, labels, torch.tensor(0.1, dtype=torch.float64), view)


@pytest.mark.parametrize("steps", [2, 10, 30])
@pytest.mark.parametrize(("name", "soft"), [("ConvNetD2W32", False), ("ConvNetD2W32", True), ("ConvNetD1W32BN", False), ("MLP", True)])
def test_equals_the_full_unroll(name: str, soft: bool, steps: int) -> None:
    for seed in range(2):
        network, parts = segment(name, soft, seed)
        other = copy.deepcopy(network)
        stateless(other)  # BatchNorm on the batch's statistics, as in a student
        loss, images, lr, labels = plain.mtt(other, *parts, steps=steps)  # type: ignore[arg-type]
        found = matching_gradient(Student(network), *parts[:5], stepwise(parts[5]), steps=steps)  # type: ignore[arg-type]
        assert float((found.loss - loss).abs()) <= 1e-10 * float(loss)
        assert float((found.images - images).norm()) <= 1e-10 * float(images.norm())
        assert float((found.lr - lr).abs()) <= 1e-10 * float(lr.abs())
        assert (found.labels is None) == (not soft)
        if soft:
            assert float((found.labels - labels).norm()) <= 1e-10 * float(labels.norm())


def test_compiled_is_the_same_gradient() -> None:
    network, parts = segment("ConvNetD1W32", True, 0)
    plainly, compiled = (matching_gradient(Student(network, compile=c), *parts[:5], stepwise(parts[5]), steps=3) for c in (False, True))  # type: ignore[arg-type]
    for name in ("loss", "images", "labels", "lr"):
        ours, theirs = getattr(compiled, name), getattr(plainly, name)
        assert float((ours - theirs).norm()) <= 1e-10 * float(theirs.norm())


def test_dropping_later_weights_is_another_gradient() -> None:
    """The test above can fail: without the Hessian's part the gradient is several per cent off."""
    network, parts = segment("ConvNetD2W32", False, 0)
    start, target, images, labels, lr, view = parts
    exact = matching_gradient(Student(network), *parts[:5], stepwise(parts[5]), steps=10).images  # type: ignore[arg-type]
    logits = stateless(network)
    weights, total, path = start.clone(), torch.zeros_like(images), []
    for step in range(10):
        leaf, x = weights.detach().requires_grad_(True), images.detach().requires_grad_(True)
        a, b = view(step, x, labels)
        (gradient,) = torch.autograd.grad(torch.nn.functional.cross_entropy(logits(leaf, a), b), leaf, create_graph=True)
        path.append((gradient, x))
        weights = weights - lr * gradient.detach()
    adjoint = 2 * (weights - target) / (start - target).square().sum()
    for gradient, x in path:
        total += -lr * torch.autograd.grad(gradient @ adjoint, x)[0]
    assert float((total - exact).norm()) > 0.01 * float(exact.norm())


FORMS = """
import os, sys
from benchmarks.core import segment_alone
for form in sys.argv[1:]:
    child = os.fork()
    if not child:
        segment_alone(form, 16)
        sys.stdout.flush()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a forked child's peak starts at what its parent holds")
def test_memory_does_not_grow_with_the_steps() -> None:
    """Peak resident memory of fresh processes: 15 steps take at most 1.1 times what 5 do; a full unroll of 12 takes more than both."""
    command = [sys.executable, "-c", FORMS, "adjoint-5", "adjoint-15", "plain-12"]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    few, many, plain = map(int, done.stdout.split())
    assert many <= 1.1 * few
    assert plain > 1.5 * many
