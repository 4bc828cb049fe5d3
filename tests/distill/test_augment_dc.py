"""The evaluation augmentation of "Dataset Condensation" against the authors' procedure written out image by image with scipy and torch."""

import math
from collections import Counter

import numpy as np
import pytest
import scipy.ndimage
import torch
import torch.nn.functional as F
from scipy.stats import chisquare
from torch import Tensor

from distill.augment import Parameters, apply, augment, draw, strategy
from distill.augment_dc import NAMES
from tests.conftest import toy

MNIST = "dc_crop_scale_rotate"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, height: int, width: int, channels: int = 3, seed: int = 0) -> Tensor:
    return torch.randn((count, channels, height, width), generator=generator(seed), dtype=torch.float64)


def by_hand(images: Tensor, number: int, row: list[float]) -> Tensor:
    """One image of a batch: pad with the batch's means and cut; resize by the nearest pixel into zeros; or turn with scipy and cut."""
    picture, (channels, height, width) = images[number].numpy(), images.shape[1:]
    means = [float(images[:, c].mean()) for c in range(channels)]
    name, (down, right, tall, wide, degrees) = NAMES[int(row[0])], map(int, row[1:])
    if name == "crop":
        padded = np.stack([np.pad(picture[c], 4, constant_values=means[c]) for c in range(channels)])
        return torch.from_numpy(padded[:, 4 + down : 4 + down + height, 4 + right : 4 + right + width])
    if name == "scale":
        resized = F.interpolate(images[number][None], [tall, wide])[0]  # nearest is its default
        side = max(tall, wide, height, width)
        square = torch.zeros(channels, side, side, dtype=images.dtype)
        top, left = (side - tall) // 2, (side - wide) // 2
        square[:, top : top + tall, left : left + wide] = resized
        top, left = (side - height) // 2, (side - width) // 2
        return square[:, top : top + height, left : left + width]
    turned = scipy.ndimage.rotate(picture, degrees, axes=(-2, -1), cval=float(np.mean(means)))
    top, left = int((turned.shape[1] - height) / 2), int((turned.shape[2] - width) / 2)
    return torch.from_numpy(turned[:, top : top + height, left : left + width])


@pytest.mark.parametrize(("side", "channels"), [(28, 1), (32, 3), (27, 1)])
def test_images_are_changed_as_the_authors_change_them(side: int, channels: int) -> None:
    """A batch in which every image has chosen for itself, all 90 turns and both ends of every range among them."""
    images = pictures(120, side, side, channels)
    values = draw(strategy(MNIST), generator(1), side, side, count=120).values
    values[:90, 0], values[:90, 5] = NAMES.index("rotate"), torch.arange(-45, 45).float()
    values[90:94, 0] = NAMES.index("crop")
    values[90:94, 1:3] = torch.tensor([[-4, -4], [-4, 3], [3, -4], [3, 3]]).float()
    values[94:98, 0] = NAMES.index("scale")
    low, high = int(0.8 * side), int(1.2 * side)
    values[94:98, 3:5] = torch.tensor([[low, low], [low, high], [high, low], [high, high]]).float()
    before = images.clone()
    result = apply(images, Parameters(MNIST, values))
    single = apply(images.float(), Parameters(MNIST, values))
    for n in range(120):
        torch.testing.assert_close(result[n], by_hand(images, n, values[n].tolist()), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(single, result.float(), rtol=1e-4, atol=1e-4)
    assert torch.equal(images, before)


@pytest.mark.parametrize(("height", "width"), [(12, 9), (8, 13)])
def test_images_that_are_not_square_are_turned_as_scipy_turns_them(height: int, width: int) -> None:
    images = pictures(3, height, width)
    for degrees in (-45, -17, 0, 8, 44):
        values = torch.tensor([[NAMES.index("rotate"), 0, 0, height, width, degrees]]).float()
        found = apply(images, Parameters(MNIST, values))
        turned = scipy.ndimage.rotate(images[1].numpy(), degrees, axes=(-2, -1), cval=float(images.mean()))
        rows, columns = (turned.shape[1] - height) / 2, (turned.shape[2] - width) / 2
        if min(rows, columns) >= 0:  # the authors' cut is not defined where the turned image is smaller
            expected = turned[:, int(rows) : int(rows) + height, int(columns) : int(columns) + width]
            np.testing.assert_allclose(found[1].numpy(), expected, atol=1e-9)
        assert torch.isfinite(found).all()


def test_each_image_chooses_its_transform_with_equal_chances() -> None:
    values = draw(strategy("dc_rotate_crop_noise"), generator(3), 28, 28, count=3000).values
    counts = Counter(NAMES[int(number)] for number in values[:, 0])
    assert set(counts) == {"rotate", "crop", "noise"}
    assert chisquare(list(counts.values())).pvalue > 1e-3


def test_draws_are_whole_numbers_over_the_authors_ranges() -> None:
    values = draw(strategy(MNIST), generator(4), 28, 32, count=20_000).values
    assert set(values[:, 1].tolist()) == set(values[:, 2].tolist()) == set(range(-4, 4))  # permutation(8)[0] less the padding of 4
    assert set(values[:, 5].tolist()) == set(range(-45, 45))  # randint(-45, 45)
    sizes = [Counter(values[:, column].tolist()) for column in (3, 4)]
    for side, counts in zip((28, 32), sizes, strict=True):  # int(uniform(0.8, 1.2) * side)
        assert set(counts) == set(range(math.floor(0.8 * side), math.ceil(1.2 * side)))
        assert all(abs(counts[n] / 20_000 - 1 / (0.4 * side)) < 0.02 for n in range(math.ceil(0.8 * side), math.floor(1.2 * side)))


def test_noise_has_its_standard_deviation_and_its_seed() -> None:
    images = torch.zeros(50, 3, 20, 20, dtype=torch.float64)
    own = draw(strategy("dc_noise"), generator(5), 20, 20, count=50)
    noise = apply(images, own)
    assert abs(noise.std() / 0.001 - 1) < 4 / math.sqrt(2 * noise.numel())
    again, other = (draw(strategy("dc_noise"), generator(seed), 20, 20, count=50) for seed in (5, 6))
    assert torch.equal(noise, apply(images, again))
    assert not torch.equal(noise, apply(images, other))
    assert not torch.equal(noise[0], noise[1])
    assert not torch.equal(noise[0, 0], noise[0, 1])


def test_the_fill_is_the_batch_s_mean() -> None:
    images = torch.stack([torch.zeros(1, 28, 28), torch.full((1, 28, 28), 3.0)])
    values = torch.tensor([[NAMES.index("crop"), -4, 0, 28, 28, 0]]).float()
    cropped = apply(images, Parameters("dc_crop", values))
    assert torch.allclose(cropped[:, :, :4], torch.tensor(1.5))
    assert torch.equal(cropped[:, :, 4:], images[:, :, 4:])


def test_learners_draw_a_row_for_each_image() -> None:
    data = toy(side=28)
    images = data.spec.normalise(data.train.images[:12])
    found = augment(images, strategy(MNIST), generator(7))
    assert torch.equal(found, apply(images, draw(strategy(MNIST), generator(7), 28, 28, count=12)))
    assert torch.equal(found, augment(images, strategy(MNIST), generator(7)))
    assert not torch.equal(found, augment(images, strategy(MNIST), generator(8)))


def test_it_is_affine_in_the_images_and_has_its_gradient() -> None:
    """The change of the output is the derivative times the change of the images, and the derivative does not depend on them."""
    images, change = pictures(9, 10, 12), pictures(9, 10, 12, seed=1)
    parameters = draw(strategy("dc_crop_scale_rotate_noise"), generator(2), 10, 12, count=9)
    assert len(set(parameters.values[:, 0].tolist())) == 4
    found, along = torch.autograd.functional.jvp(lambda x: apply(x, parameters), images, change)
    torch.testing.assert_close(apply(images + change, parameters), found + along, rtol=1e-9, atol=1e-9)
    images.requires_grad_()
    (slope,) = torch.autograd.grad(apply(images, parameters).square().sum(), images, create_graph=True)
    (curvature,) = torch.autograd.grad(slope, images, change)  # the second derivative along the change
    (expected,) = torch.autograd.grad(apply(images, parameters), images, 2 * along.detach())
    torch.testing.assert_close(curvature, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["crop", "scale", "rotate"])
def test_one_row_for_all_images_is_the_same_row_for_each(name: str) -> None:
    """The two ways of applying rows: one transform for all images (as on a GPU), and the images that chose it by themselves."""
    images = pictures(5, 28, 28)
    row = torch.tensor([[NAMES.index(name), -3, 2, 24, 33, 17]]).float()
    shared = apply(images, Parameters(MNIST, row))
    torch.testing.assert_close(apply(images, Parameters(MNIST, row.expand(5, -1))), shared, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(shared[2], by_hand(images, 2, row[0].tolist()), rtol=1e-9, atol=1e-9)
