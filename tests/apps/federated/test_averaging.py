"""The rivals' formulas against slow definitions, and the server's arithmetic on unions."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apps.federated.averaging import LocalResult, control_variate, fednova, local_sgd, normaliser, scaffold, state
from apps.federated.tables import LocalConfig, ServerConfig
from apps.federated.union import learn, union, within_ball
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.networks import create
from distill.randomness import generator
from distill.spec import DataSpec
from distill.train import Recipe
from tests.conftest import toy

NETWORK = "ConvNetD1W32"


def data() -> ImageData:
    return toy(per_class=10)


def network(seed: int = 0) -> torch.nn.Module:
    return create(NETWORK, data().spec, generator(seed, "net"))


@pytest.mark.parametrize(("steps", "momentum"), [(1, 0.9), (7, 0.9), (13, 0.5), (20, 0.0)])
def test_normaliser_counts_each_gradient_s_weight_in_the_sum(steps: int, momentum: float) -> None:
    # A gradient at step t is applied at t, t + 1, ... with weights 1, m, m^2, ...
    slow = sum(sum(momentum**k for k in range(steps - t)) for t in range(steps))
    assert normaliser(steps, momentum) == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize(("mu", "corrected"), [(0.0, False), (0.3, False), (0.0, True)])
def test_local_sgd_is_the_written_out_loop(mu: float, corrected: bool) -> None:
    config = LocalConfig(epochs=2, batch_size=8, lr=0.05, momentum=0.9, max_steps=6)
    net = network()
    names = [name for name, _ in net.named_parameters()]
    correction = {n: torch.full_like(p, 0.01 * (k + 1)) for k, (n, p) in enumerate(net.named_parameters())} if corrected else None
    result = local_sgd(network(), data(), config, generator(0, "order"), mu, correction)
    assert (result.steps, result.examples) == (6, 30)

    draws, done = generator(0, "order"), 0
    start = {n: p.detach().clone() for n, p in net.named_parameters()}
    velocity = {n: torch.zeros_like(p) for n, p in net.named_parameters()}
    while done < 6:
        order = torch.randperm(30, generator=draws)
        for first in range(0, 30, 8):
            if done == 6:
                break
            batch = order[first : first + 8]
            loss = F.cross_entropy(net(data().normalised("train", batch)), data().train.labels[batch])
            loss = loss + mu / 2 * sum((p - start[n]).square().sum() for n, p in net.named_parameters())
            gradients = torch.autograd.grad(loss, list(net.parameters()))
            with torch.no_grad():
                for name, parameter, gradient in zip(names, net.parameters(), gradients, strict=True):
                    velocity[name] = 0.9 * velocity[name] + gradient + (correction[name] if correction else 0)
                    parameter -= 0.05 * velocity[name]
            done += 1
    for name, parameter in net.named_parameters():
        assert torch.allclose(result.weights[name], parameter, atol=2e-5)


def results(seed: int, steps: list[int]) -> tuple[dict[str, torch.Tensor], list[LocalResult]]:
    draws = generator(seed, "results")
    old = {"a": torch.randn(3, generator=draws), "n": torch.tensor(4)}
    made = [
        LocalResult({"a": torch.randn(3, generator=draws), "n": torch.tensor(k)}, 10 * (k + 1), each, normaliser(each, 0.5))
        for k, each in enumerate(steps)
    ]
    return old, made


@pytest.mark.parametrize("seed", range(3))
def test_fednova_is_its_definition(seed: int) -> None:
    old, made = results(seed, [3, 8, 1])
    total = sum(r.examples for r in made)
    effective = sum(r.examples / total * r.normaliser for r in made)
    expected = old["a"].double().clone()
    for r in made:
        for i in range(3):
            expected[i] -= effective * (r.examples / total) * (float(old["a"][i]) - float(r.weights["a"][i])) / r.normaliser
    found = fednova(old, made)
    assert torch.allclose(found["a"].double(), expected, atol=1e-6)
    assert int(found["n"]) == 2


def test_fednova_with_equal_steps_is_fedavg() -> None:
    old, made = results(0, [5, 5, 5])
    total = sum(r.examples for r in made)
    mean = sum(r.weights["a"] * (r.examples / total) for r in made)
    assert torch.allclose(fednova(old, made)["a"], mean, atol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_scaffold_s_control_is_the_mean_gradient_when_gradients_are_constant(momentum: float) -> None:
    gradient, lr, steps = torch.tensor([0.3, -1.0]), 0.1, 9
    w, v = torch.zeros(2), torch.zeros(2)
    for _ in range(steps):
        v = momentum * v + gradient
        w = w - lr * v
    zero = {"a": torch.zeros(2)}
    new = control_variate(zero, zero, zero, LocalResult({"a": w}, 5, steps, normaliser(steps, momentum)), lr)
    assert torch.allclose(new["a"], gradient, atol=1e-6)
    moved = scaffold({"a": torch.zeros(2)}, {"a": torch.ones(2)}, [LocalResult({"a": w}, 5, steps, 1.0)], [new], 4)
    assert torch.allclose(moved[1]["a"], 1 + gradient / 4)
    assert torch.allclose(moved[0]["a"], w)


# Unions


def small(labels: list[int], seed: int, spec: DataSpec | None = None) -> CondensedSet:
    spec = spec or data().spec
    return CondensedSet(torch.randn((len(labels), *spec.shape), generator=generator(seed, "set")), torch.tensor(labels), spec)


def test_shares_weigh_each_image_s_loss() -> None:
    parts, shares = [small([0, 1, 2], 0), small([0], 1)], [0.2, 0.8]
    joined = union(parts, [torch.full((len(part),), share / len(part)) for part, share in zip(parts, shares, strict=True)])
    logits = torch.randn((4, 3), generator=generator(0, "logits"))
    found = F.cross_entropy(logits, joined.labels, reduction="sum") / 4
    each = [0.2 / 3, 0.2 / 3, 0.2 / 3, 0.8]
    slow = sum(w * -torch.log_softmax(logits[i], 0)[label] for i, (w, label) in enumerate(zip(each, [0, 1, 2, 0], strict=True)))
    assert float(found) == pytest.approx(float(slow), rel=1e-5)
    assert union(parts).labels.dtype == torch.int64


@pytest.mark.parametrize("radius", [0.01, 0.5, 1e6])
def test_the_ball_holds_and_points_inside_stay(radius: float) -> None:
    start = state(network())
    config = Recipe(max_steps=10, batch_size=8, lr=0.1, schedule="constant", augmentation="none")
    free = learn(start, small([0, 1, 2] * 4, 0), NETWORK, ServerConfig(config), 0)
    held = learn(start, small([0, 1, 2] * 4, 0), NETWORK, ServerConfig(config, radius=radius), 0)
    away = np.sqrt(sum(float((free[n] - start[n]).double().square().sum()) for n in start))
    length = np.sqrt(sum(float((held[n] - start[n]).double().square().sum()) for n in start))
    assert length == pytest.approx(min(radius, away), rel=1e-3)
    line = torch.cat([(held[n] - start[n]).flatten() for n in start]), torch.cat([(free[n] - start[n]).flatten() for n in start])
    assert float(F.cosine_similarity(*line, dim=0)) > 0.999
    assert within_ball(start, start, 1.0, set(start)).keys() == start.keys()


def test_the_server_learns_from_the_weights_that_it_sent() -> None:
    config = ServerConfig(Recipe(max_steps=1, batch_size=8, lr=1e-9, schedule="constant", augmentation="none", weight_decay=0.0))
    start = state(network(3))
    found = learn(start, small([0, 1, 2], 0), NETWORK, config, 0)
    assert all(torch.allclose(found[name], start[name], atol=1e-6) for name in start)
