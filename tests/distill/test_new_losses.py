"""Losses of the methods after 2023 against slow definitions: Python loops over classes, images and numbers, in float64."""

import cmath
import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from distill import batches
from distill.data import ImageData
from distill.matching import characteristic_distance, gradient_distance, mirrored, phases
from distill.methods.cafe import CAFE, CAFEConfig
from distill.methods.dcc import DCC, DCCConfig
from distill.methods.idm import IDM, IDMConfig
from distill.networks import activations, create, embed
from distill.randomness import generator
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set
from tests.conftest import toy

NETWORK = "ConvNetD1W32"


def numbers(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_means(features: Tensor, frequencies: Tensor) -> list[complex]:
    """The characteristic function of features of length 1, frequency by frequency."""
    rows = [[value / math.sqrt(sum(v * v for v in row)) for value in row] for row in features.tolist()]
    columns = frequencies.T.tolist()
    return [sum(cmath.exp(1j * sum(a * b for a, b in zip(row, t, strict=True))) for row in rows) / len(rows) for t in columns]


def slow_distance(real: list[complex], synthetic: list[complex], amplitude: float) -> float:
    total = 0.0
    for r, s in zip(real, synthetic, strict=True):
        phase = 2 * (abs(r) * abs(s) - (r * s.conjugate()).real)
        total += math.sqrt(amplitude * (abs(r) - abs(s)) ** 2 + (1 - amplitude) * phase)
    return total / len(real)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("amplitude", [0.5, 0.1, 0.9])
def test_the_distance_of_characteristic_functions(seed: int, amplitude: float) -> None:
    frequencies = numbers(seed, 5, 7)
    real, synthetic = ([numbers(10 * seed + 3 * side + c, 4 + side, 5) for c in range(2)] for side in (0, 1))
    means = [torch.stack([phases(part, frequencies).mean(0) for part in side]) for side in (real, synthetic)]
    pairs = zip(real, synthetic, strict=True)
    slow = sum(slow_distance(slow_means(r, frequencies), slow_means(s, frequencies), amplitude) for r, s in pairs)
    assert float(characteristic_distance(means[0], means[1], amplitude)) == pytest.approx(slow, rel=1e-9)


def test_the_gradient_of_the_characteristic_distance_is_that_of_the_definition() -> None:
    frequencies, real, synthetic = numbers(0, 3, 4), numbers(1, 6, 3), numbers(2, 2, 3).requires_grad_(True)
    mean = phases(real, frequencies).mean(0, keepdim=True)
    (found,) = torch.autograd.grad(characteristic_distance(mean, phases(synthetic, frequencies).mean(0, keepdim=True), 0.5), synthetic)
    step = 1e-6
    for row in range(2):
        for column in range(3):
            values = []
            for sign in (1, -1):
                moved = synthetic.detach().clone()
                moved[row, column] += sign * step
                values.append(slow_distance(slow_means(real, frequencies), slow_means(moved, frequencies), 0.5))
            assert float(found[row, column]) == pytest.approx((values[0] - values[1]) / (2 * step), abs=1e-7)


def test_every_row_of_phases_has_length_one_and_equal_sets_no_distance() -> None:
    rows = phases(100 * numbers(3, 8, 5), numbers(4, 5, 16))
    assert torch.allclose(rows.norm(dim=1), torch.ones(8, dtype=torch.float64), atol=1e-12)
    mean = rows.mean(0, keepdim=True).requires_grad_(True)
    loss = characteristic_distance(mean.detach(), mean, 0.5)
    assert float(loss.detach()) == pytest.approx(2**0.5 * 1e-6, rel=1e-3)
    (gradient,) = torch.autograd.grad(loss, mean)
    assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("seed", range(2))
def test_the_kernel_distance_tends_to_the_mean_discrepancy_of_the_gaussian_kernel(seed: int) -> None:
    """M3D's squared discrepancy by its definition over pairs, against random features: within three standard errors of their number."""
    real, synthetic = (F.normalize(numbers(10 * seed + side, 5, 4)) for side in (1, 2))

    def kernel(a: Tensor, b: Tensor) -> float:
        pairs = [math.exp(-sum((x - y) ** 2 for x, y in zip(p, q, strict=True)) / 2) for p in a.tolist() for q in b.tolist()]
        return sum(pairs) / len(pairs)

    exact = kernel(real, real) - 2 * kernel(real, synthetic) + kernel(synthetic, synthetic)
    count = 200_000
    frequencies = torch.randn((4, count), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    difference = phases(real, frequencies).mean(0) - phases(synthetic, frequencies).mean(0)
    each = difference[:count].square() + difference[count:].square()  # of one frequency, divided by their number
    error = float(each.std()) * count / math.sqrt(count)
    assert float(difference.square().sum()) == pytest.approx(exact, abs=3 * error)


@pytest.mark.parametrize("seed", range(2))
def test_differences_over_convolutions_only(seed: int) -> None:
    shapes = [(4, 3, 3, 3), (4,), (5, 2, 2), (6, 7), (6,)]
    real, synthetic = ([numbers(10 * seed + 5 * side + k, *shape) for k, shape in enumerate(shapes)] for side in (0, 1))
    a = [v for part in real if part.ndim > 2 for v in part.flatten().tolist()]
    b = [v for part in synthetic if part.ndim > 2 for v in part.flatten().tolist()]
    squares, sizes = sum((x - y) ** 2 for x, y in zip(a, b, strict=True)), sum(abs(x - y) for x, y in zip(a, b, strict=True))
    assert float(gradient_distance(real, synthetic, "convolutions-mse")) == pytest.approx(squares, rel=1e-12)
    assert float(gradient_distance(real, synthetic, "convolutions-l1")) == pytest.approx(sizes, rel=1e-12)


class Whole(ExactStatistics):
    """Answers in float64 from all images of a class, without chance."""

    def __init__(self, data: ImageData) -> None:
        super().__init__(data)

    def images(self, position: int) -> Tensor:
        return self.data.normalised("train", self.data.class_indices(self.classes[position]))


def made(method: type, config: object) -> tuple[object, Whole]:
    statistics = Whole(toy())
    return method(config, initial_set(statistics, "real", 2, generator(0, "start"))), statistics


def test_contrast_compares_the_gradient_of_all_classes_together() -> None:
    distiller, statistics = made(DCC, DCCConfig(network=NETWORK, warm_networks=0, outer_steps=1))
    assert isinstance(distiller, DCC)
    network = create(NETWORK, statistics.spec, generator(1, "net"))
    parameters = list(network.parameters())
    real = []
    for position, label in enumerate(statistics.classes):
        images = statistics.images(position)
        loss = F.cross_entropy(network(images), torch.full((len(images),), label))
        real.append(list(torch.autograd.grad(loss, parameters)))
    classes = distiller.synthetic.per_class()
    assert distiller.compares_together(0, statistics)
    of_all = statistics.class_gradients(network, 10_000, None, generator(3, "batches"), together=True)
    loss, gradients = distiller.compared(network, of_all, classes, lambda images, position: images, statistics, generator(2, "more"))
    mean = [sum(part) / 3 for part in zip(*real, strict=True)]
    leaves = [images.detach().clone().requires_grad_(True) for images, _ in classes]
    # The mean over all images, one by one.
    entropies = [
        F.cross_entropy(network(image[None]), labels[:1]) for part, (_, labels) in zip(leaves, classes, strict=True) for image in part
    ]
    synthetic = torch.autograd.grad(torch.stack(entropies).mean(), parameters, create_graph=True)
    slow = sum(
        1 - (a * b).sum() / (a.norm() * b.norm() + 1e-6)
        for r, s in zip(mean, synthetic, strict=True)
        if r.ndim > 1
        for a, b in zip(r.flatten(1), s.flatten(1), strict=True)
    )
    assert float(loss) == pytest.approx(float(slow.detach()), rel=1e-4)
    for found, expected in zip(gradients, torch.autograd.grad(slow, leaves), strict=True):
        assert torch.allclose(found, expected, atol=1e-5)


def test_alignment_of_layers_and_discrimination_by_class_means(toy_data: ImageData) -> None:
    config = CAFEConfig(network=NETWORK, batch_real=10_000, outer_steps=1, discrimination=0.3, initial="real", lr_img=1.0, momentum=0.0)
    distiller, statistics = made(CAFE, config)
    assert isinstance(distiller, CAFE)
    before = distiller.synthetic.images.clone()
    draws = generator(7, "steps")
    twin = create(NETWORK, statistics.spec, generator(7, "steps"))
    found = distiller.step(statistics, draws)
    leaf = before.clone().requires_grad_(True)
    total = torch.zeros(())
    means = [embed(twin, leaf[2 * c : 2 * c + 2]).mean(0) for c in range(3)]
    for c in range(3):
        real, synthetic = statistics.images(c), leaf[2 * c : 2 * c + 2]
        *layers, last = zip(activations(twin, real), activations(twin, synthetic), strict=True)
        for weight, (r, s) in zip([0.1, 0.1, 1.0], layers, strict=False):
            total = total + weight * (r.mean(0) - s.mean(0)).square().sum()
        total = total + 2 * (last[0].mean(0) - last[1].mean(0)).square().sum()
    entropy = torch.zeros(())
    for c in range(3):
        features = embed(twin, statistics.images(c)).detach()
        logits = torch.stack([features @ mean for mean in means], 1)
        # Each class's mean times the batch size that was asked for, so that a sum over that many images is what a full class gives.
        entropy = entropy + 10_000 * F.cross_entropy(logits, torch.full((len(features),), c))
    (expected,) = torch.autograd.grad(total + 0.3 * entropy, leaf)
    assert float(found["loss"]) == pytest.approx(float(total.detach()), rel=1e-3)
    change = before - distiller.synthetic.images
    assert torch.allclose(change, expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("logits", [False, True])
def test_the_entropy_weight_is_the_accuracy_in_percent(logits: bool) -> None:
    settings = {"decode": "none", "pool_networks": 1, "pool_epochs": 1, "augmentation": "none", "network": NETWORK, "updates": "together"}
    config = IDMConfig(batch_real=10_000, lr_img=1.0, momentum=0.0, entropy_weight=0.5, logits=logits, **settings)  # type: ignore[arg-type]
    distiller, statistics = made(IDM, config)
    assert isinstance(distiller, IDM)
    before = distiller.synthetic.images.clone()
    found = distiller.step(statistics, generator(0, "steps"))
    network = distiller.network
    assert network is not None
    leaf, total, right = before.clone().requires_grad_(True), torch.zeros(()), []
    for c in range(3):
        images = statistics.images(c)
        right.append(sum(int(row.argmax()) == c for row in network(images)) / len(images))
        synthetic = leaf[2 * c : 2 * c + 2]
        for view in (embed, lambda network, images: network(images))[: 1 + logits]:
            total = total + (view(network, images).mean(0) - view(network, synthetic).mean(0)).square().sum()
    accuracy = 100 * sum(right) / 3
    assert float(found["accuracy"]) == pytest.approx(accuracy, rel=1e-5)
    for c in range(3):
        total = total + 0.5 * accuracy * F.cross_entropy(network(leaf[2 * c : 2 * c + 2]), torch.full((2,), c))
    (expected,) = torch.autograd.grad(total, leaf)
    assert torch.allclose(before - distiller.synthetic.images, expected, rtol=1e-3, atol=1e-4 * float(expected.abs().max()))


def test_mirrored_images_stand_beside_the_plain_ones() -> None:
    images = numbers(0, 2, 1, 3, 4)
    both = mirrored(images)
    assert torch.equal(both[:2], images)
    assert both[3, 0, 1].tolist() == images[1, 0, 1].tolist()[::-1]


def test_features_in_two_stages_are_those_of_both_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """In pieces of other sizes for each stage; the second sees many images at once, which is what it is for."""
    images, weights, frequencies, seen = numbers(0, 11, 1, 4, 4), numbers(1, 16, 5), numbers(2, 5, 6), []

    def after(features: Tensor) -> Tensor:
        seen.append(len(features))
        return phases(features, frequencies)

    monkeypatch.setattr(batches, "chunk_size", lambda images: 3)
    monkeypatch.setattr(batches, "ROWS", 7)
    staged = batches.Staged(lambda part: part.flatten(1) @ weights, after)
    expected = phases(images.flatten(1) @ weights, frequencies).sum(0)
    assert torch.allclose(batches.chunked_sum(staged, images), expected, atol=1e-12)
    assert seen == [7, 4]
    assert torch.allclose(staged(images).sum(0), expected, atol=1e-12)
