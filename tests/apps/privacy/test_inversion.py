"""A gradient of one image gives it away: the label by its sign, the image by search; PSNR and SSIM by their definitions."""

import math

import pytest
import torch
import torch.nn.functional as F

import distill
from apps.privacy.inversion import Inversion, created, decibels, dlg_network, gradient_of, invert, label_in, likeness
from distill.data import ImageData
from distill.errors import InputError
from distill.randomness import generator


@pytest.fixture(scope="module")
def digits() -> ImageData:
    return distill.load("digits")


@pytest.mark.parametrize("network", [dlg_network, "ConvNetD2W32", "MLP", "LeNet"])
def test_the_label_is_read_from_the_gradient(network: object, digits: ImageData) -> None:
    for place in range(20):
        made = created(network, digits.spec, generator(place, "weights"))  # type: ignore[arg-type]
        image, label = digits.normalised("train", torch.tensor([place])).double(), digits.train.labels[[place]]
        assert label_in(gradient_of(made, image, label)) == int(label)


def test_a_gradient_is_that_of_the_mean_cross_entropy(digits: ImageData) -> None:
    made = created("ConvNetD1W32", digits.spec, generator(0, "weights"))
    images, labels = digits.normalised("train", torch.arange(3)).double(), digits.train.labels[:3]
    scores = made(images)
    loss = sum(torch.logsumexp(row, 0) - row[label] for row, label in zip(scores, labels, strict=True)) / 3
    loss.backward()  # type: ignore[union-attr]
    for found, parameter in zip(gradient_of(made, images, labels), made.parameters(), strict=True):
        assert parameter.grad is not None
        assert torch.allclose(found, parameter.grad, atol=1e-12)
    soft = F.one_hot(labels, 10).double()
    assert all(map(torch.allclose, gradient_of(made, images, soft), gradient_of(made, images, labels)))


@pytest.mark.parametrize("rule", ["idlg", "dlg"])
def test_an_image_is_found_in_its_gradient(rule: str, digits: ImageData) -> None:
    values = []
    for place in range(3):
        made = created(dlg_network, digits.spec, generator(place, "weights"))
        image, label = digits.normalised("train", torch.tensor([place])).double(), digits.train.labels[[place]]
        gradients = gradient_of(made, image, label)
        found = invert(made, gradients, digits.spec, generator(place, "start"), Inversion(rule, iterations=40, starts=1))
        assert found.label == int(label)
        again = gradient_of(made, found.image[None], torch.tensor([found.label]))
        apart = sum(float((ours - theirs).square().sum()) for ours, theirs in zip(again, gradients, strict=True))
        assert apart == pytest.approx(found.distance, rel=0.5, abs=1e-6)
        values.append(float(decibels(digits.spec.denormalise(found.image[None]), digits.spec.denormalise(image))))
    assert sorted(values)[1] > 40, "the median of three is seen in full"


def test_of_several_starts_the_nearest_gradient_counts(digits: ImageData) -> None:
    made = created(dlg_network, digits.spec, generator(0, "weights"))
    gradients = gradient_of(made, digits.normalised("train", torch.tensor([5])).double(), digits.train.labels[[5]])
    draws = generator(1, "start")
    alone = [invert(made, gradients, digits.spec, draws, Inversion(iterations=2, starts=1)) for _ in range(3)]
    best = invert(made, gradients, digits.spec, generator(1, "start"), Inversion(iterations=2, starts=3))
    assert best.distance == min(one.distance for one in alone)


def test_peaks_and_likeness_are_those_of_their_definitions() -> None:
    draws = torch.Generator().manual_seed(0)
    true = torch.rand((3, 2, 9, 8), generator=draws)
    found = (true + 0.1 * torch.randn(true.shape, generator=draws)).clamp(0, 1)
    for one, other, value in zip(found, true, decibels(found, true), strict=True):
        error = sum((float(a) - float(b)) ** 2 for a, b in zip(one.flatten(), other.flatten(), strict=True)) / one.numel()
        assert float(value) == pytest.approx(20 * math.log10(1 / math.sqrt(error)), abs=1e-9)
    assert decibels(true, true).tolist() == [100.0] * 3
    assert torch.allclose(likeness(true, true), torch.ones(3, dtype=torch.float64))
    for one, other, value in zip(found, true, likeness(found, true), strict=True):
        assert float(value) == pytest.approx(slow_likeness(one, other), abs=1e-9)


def slow_likeness(one: torch.Tensor, other: torch.Tensor) -> float:
    """Mean SSIM over 7 x 7 windows, sample covariances."""
    values = []
    for first, second in zip(one.double(), other.double(), strict=True):
        for row in range(first.shape[0] - 6):
            for column in range(first.shape[1] - 6):
                a, b = (side[row : row + 7, column : column + 7].flatten() for side in (first, second))
                covariance = torch.cov(torch.stack([a, b]))
                top = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance[0, 1] + 9e-4)
                bottom = (a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (covariance[0, 0] + covariance[1, 1] + 9e-4)
                values.append(float(top / bottom))
    return sum(values) / len(values)


def test_a_network_whose_last_layer_has_no_bias_is_refused() -> None:
    with pytest.raises(InputError, match="does not end with a linear layer's weights and bias"):
        label_in([torch.zeros(3, 4, 5, 5), torch.zeros(10, 4)])
