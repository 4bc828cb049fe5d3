"""Each transform against a per-pixel definition in float64 loops; the draws against the papers' ranges."""

import math
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import chisquare
from torch import Tensor

from distill import augment
from distill.augment import DSA, DSA_DIGITS, Parameters, Strategy, apply, draw, strategy
from distill.errors import InputError
from distill.spec import DataSpec

Array = NDArray[np.float64]
NAMES = ("color", "crop", "cutout", "flip", "scale", "rotate")
DC_NAMES = ("dc_crop", "dc_scale", "dc_rotate", "dc_noise")
SIZES = [(6, 6), (5, 8), (7, 4), (1, 3)]


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, height: int, width: int, seed: int = 0, channels: int = 3) -> Tensor:
    return torch.randn((count, channels, height, width), generator=generator(seed), dtype=torch.float64)


def slow(image: Array, transform: str, row: list[float]) -> Array:
    """One image (C, H, W), one row of parameters, pixel by pixel."""
    channels, height, width = image.shape
    result = np.zeros_like(image)
    if transform == "color":
        return slow_color(image, *row)
    for c in range(channels):

        def pixel(i: int, j: int, c: int = c) -> float:
            return float(image[c, i, j]) if 0 <= i < height and 0 <= j < width else 0.0

        for i in range(height):
            for j in range(width):
                if transform == "crop":
                    result[c, i, j] = pixel(i + int(row[0]), j + int(row[1]))
                elif transform == "cutout":
                    top, left, tall, wide = row
                    hidden = top <= i < top + tall and left <= j < left + wide
                    result[c, i, j] = 0.0 if hidden else image[c, i, j]
                elif transform == "flip":
                    result[c, i, j] = image[c, i, width - 1 - j] if row[0] else image[c, i, j]
                else:
                    y, x = (2 * i + 1) / height - 1, (2 * j + 1) / width - 1  # the places of affine_grid, align_corners=False
                    if transform == "scale":
                        y, x = y * row[0], x * row[1]
                    else:
                        angle = math.radians(row[0])
                        down, right = y * height / 2, x * width / 2
                        y = (math.sin(angle) * right + math.cos(angle) * down) * 2 / height
                        x = (math.cos(angle) * right - math.sin(angle) * down) * 2 / width
                    result[c, i, j] = slow_bilinear(pixel, ((y + 1) * height - 1) / 2, ((x + 1) * width - 1) / 2)
    return result


def slow_bilinear(pixel, y: float, x: float) -> float:  # type: ignore[no-untyped-def]
    i, j = math.floor(y), math.floor(x)
    upper = (1 - (x - j)) * pixel(i, j) + (x - j) * pixel(i, j + 1)
    lower = (1 - (x - j)) * pixel(i + 1, j) + (x - j) * pixel(i + 1, j + 1)
    return float((1 - (y - i)) * upper + (y - i) * lower)


def slow_color(image: Array, brightness: float, saturation: float, contrast: float) -> Array:
    channels, height, width = image.shape
    result = np.zeros_like(image)
    for i in range(height):
        for j in range(width):
            lit = [image[c, i, j] + brightness for c in range(channels)]
            grey = sum(lit) / channels
            for c in range(channels):
                result[c, i, j] = grey + saturation * (lit[c] - grey)
    level = sum(result.flatten().tolist()) / result.size
    return np.array([level + contrast * (value - level) for value in result.flatten()]).reshape(result.shape)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("text", NAMES)
@pytest.mark.parametrize("shared", [True, False])
def test_each_transform_equals_its_slow_definition(text: str, size: tuple[int, int], shared: bool) -> None:
    for seed in range(4):
        images = pictures(3, *size, seed=seed, channels=1 + seed % 3)
        before = images.clone()
        parameters = draw(strategy(text), generator(seed), *size, count=None if shared else 3)
        assert parameters.transform == text
        assert parameters.values.shape[0] == (1 if shared else 3)
        result = apply(images, parameters)
        rows = parameters.values.double().tolist()
        for n in range(3):
            expected = slow(images[n].numpy(), parameters.transform, rows[0 if shared else n])
            np.testing.assert_allclose(result[n].numpy(), expected, rtol=1e-9, atol=1e-11)
        assert torch.equal(images, before)
        single = apply(images.float(), parameters)
        assert single.dtype == torch.float32
        torch.testing.assert_close(single, result.float(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_scale_and_rotate_are_the_published_affine_grids(seed: int) -> None:
    images = pictures(4, 8, 8, seed)
    for name in ("scale", "rotate"):
        parameters = draw(strategy(name), generator(seed), 8, 8, count=4)
        theta = torch.zeros(4, 2, 3, dtype=torch.float64)
        if name == "scale":
            theta[:, 0, 0], theta[:, 1, 1] = parameters.values[:, 1], parameters.values[:, 0]
        else:
            angle = torch.deg2rad(parameters.values[:, 0].double())
            theta[:, 0, 0], theta[:, 0, 1], theta[:, 1, 0], theta[:, 1, 1] = angle.cos(), -angle.sin(), angle.sin(), angle.cos()
        grid = F.affine_grid(theta, [4, 3, 8, 8], align_corners=False)
        expected = F.grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
        torch.testing.assert_close(apply(images, parameters), expected, rtol=1e-9, atol=1e-11)


def test_the_identity_of_each_transform() -> None:
    images = pictures(2, 5, 7)
    for name, row in {
        "color": [0, 1, 1],
        "crop": [0, 0],
        "cutout": [0, 0, 0, 0],
        "flip": [0],
        "scale": [1, 1],
        "rotate": [0],
    }.items():
        torch.testing.assert_close(
            apply(images, Parameters(name, torch.tensor([row], dtype=torch.float64))), images, rtol=1e-12, atol=1e-12
        )
    half_turn = apply(images, Parameters("rotate", torch.tensor([[180.0]], dtype=torch.float64)))
    torch.testing.assert_close(half_turn, images.flip(2, 3), rtol=1e-9, atol=1e-9)


def _check_derivatives(plain: Callable[[Tensor], Tensor], curved: Callable[[Tensor], Tensor], images: Tensor) -> None:
    assert torch.autograd.gradcheck(plain, (images,))
    assert torch.autograd.gradcheck(curved, (images,))
    assert torch.autograd.gradgradcheck(curved, (images,))


@pytest.mark.parametrize("text", NAMES)
@pytest.mark.parametrize("count", [None, 2])
def test_first_and_second_derivatives(text: str, count: int | None) -> None:
    images = pictures(2, 4, 5, channels=2).requires_grad_()
    parameters = draw(strategy(text), generator(3), 4, 5, count)

    def curved(x: Tensor) -> Tensor:
        # The transforms are affine; the sines give them a second derivative that is not zero.
        return apply(x.sin(), parameters).sin()

    with torch.random.fork_rng(devices=[]):  # the checkers draw from the global generator
        _check_derivatives(lambda x: apply(x, parameters), curved, images)


@pytest.mark.parametrize("text", NAMES)
def test_shared_parameters_treat_real_and_synthetic_images_alike(text: str) -> None:
    for seed in range(4):
        real, synthetic = pictures(5, 8, 10, seed).float(), pictures(2, 8, 10, seed + 10).float()
        synthetic[1] = real[3]
        parameters = draw(strategy(text), generator(seed), 8, 10)
        one, two = apply(real, parameters), apply(synthetic, parameters)
        assert torch.equal(one[3], two[1])
        # A batch may be cut into chunks.
        torch.testing.assert_close(torch.cat([apply(real[:2], parameters), apply(real[2:], parameters)]), one, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("text", [*NAMES, *DC_NAMES])
def test_each_image_gets_its_own_parameters(text: str) -> None:
    same = pictures(1, 16, 16).float().expand(12, -1, -1, -1)
    own = apply(same, draw(strategy(text), generator(1), 16, 16, count=12))
    shared = apply(same, draw(strategy(text), generator(1), 16, 16))
    different = {tuple(image.flatten().tolist()) for image in own}
    assert len(different) == 2 if text == "flip" else len(different) > 6
    assert len({tuple(image.flatten().tolist()) for image in shared}) == 1


def many(text: str, height: int, width: int, draws: int = 2000) -> Tensor:
    source = generator(11)
    return torch.cat([draw(strategy(text), source, height, width).values for _ in range(draws)])


@pytest.mark.parametrize(
    ("text", "bounds"),
    [
        ("color", [(-0.5, 0.5), (0.0, 2.0), (0.5, 1.5)]),
        ("scale", [(1 / 1.2, 1.2)] * 2),
        ("rotate", [(-15.0, 15.0)]),
    ],
)
def test_draws_fill_the_stated_ranges(text: str, bounds: list[tuple[float, float]]) -> None:
    values = many(text, 32, 32)
    assert values.shape == (2000, len(bounds))
    for column, (low, high) in zip(values.double().unbind(1), bounds, strict=True):
        near = (high - low) * 0.01
        assert low - 1e-6 <= column.min() < low + near
        assert high - near < column.max() <= high + 1e-6
        # The mean of n uniform numbers, four standard errors.
        assert abs(column.mean() - (low + high) / 2) < 4 * (high - low) / math.sqrt(12 * 2000)
    if len(bounds) > 1:
        assert abs(torch.corrcoef(values.T)[0, 1]) < 0.1


@pytest.mark.parametrize(("side", "most"), [(32, 4), (28, 4), (16, 2), (20, 3), (4, 1), (3, 0)])
def test_crop_shifts_by_an_eighth(side: int, most: int) -> None:
    values = many("crop", side, 32, 600)
    assert set(values[:, 0].tolist()) == set(range(-most, most + 1))
    assert set(values[:, 1].tolist()) == set(range(-4, 5))


@pytest.mark.parametrize(("side", "cut"), [(32, 16), (28, 14), (9, 5), (3, 2), (2, 1)])
def test_cutout_is_half_a_side_and_its_centre_is_anywhere(side: int, cut: int) -> None:
    values = many("cutout", side, 6, 1500)
    assert set(values[:, 2].tolist()) == {cut}
    assert set(values[:, 3].tolist()) == {3}
    centres = (values[:, 0] + cut // 2).tolist()
    assert set(centres) == (set(range(side + 1)) if cut % 2 == 0 else set(range(side)))
    assert chisquare(list(Counter(centres).values())).pvalue > 1e-3
    hidden = apply(torch.ones(1, 1, side, 6), Parameters("cutout", torch.tensor([[-1.0, 0.0, 3.0, 2.0]]))) == 0
    assert hidden.sum() == min(2, side) * 2


def test_flip_turns_half_of_the_images() -> None:
    values = many("flip", 4, 4)
    assert set(values.flatten().tolist()) == {0.0, 1.0}
    assert abs(values.mean() - 0.5) < 4 * 0.5 / math.sqrt(2000)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("text", [DSA, DSA_DIGITS, "flip_color"])
def test_one_transform_is_chosen_with_equal_chances(text: str, seed: int) -> None:
    source = generator(seed)
    plan = strategy(text)
    counts = Counter(draw(plan, source, 8, 8).transform for _ in range(2400))
    assert set(counts) == set(plan.transforms)
    assert chisquare(list(counts.values())).pvalue > 1e-3


@pytest.mark.parametrize("text", [DSA, "dc_crop_scale_rotate_noise"])
def test_same_seed_same_bits_and_no_global_randomness(text: str) -> None:
    images = pictures(6, 12, 9).float()
    state = torch.get_rng_state()
    runs = []
    for seed in (0, 0, 1):
        source = generator(seed)
        runs.append([augment.augment(images, strategy(text), source) for _ in range(20)])
    assert torch.equal(state, torch.get_rng_state())
    assert all(torch.equal(a, b) for a, b in zip(runs[0], runs[1], strict=True))
    assert not all(torch.equal(a, b) for a, b in zip(runs[0], runs[2], strict=True))


def test_augment_draws_for_each_image_of_the_batch() -> None:
    images = pictures(6, 12, 9)
    for seed in range(12):
        expected = apply(images, draw(strategy(DSA), generator(seed), 12, 9, count=6))
        assert torch.equal(augment.augment(images, strategy(DSA), generator(seed)), expected)


@pytest.mark.parametrize("text", [*NAMES, *DC_NAMES])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_single_image_works(text: str, channels: int) -> None:
    for count in (None, 1):
        for seed in range(4):
            images = pictures(1, 8, 8, seed, channels).requires_grad_()
            result = apply(images, draw(strategy(text), generator(seed), 8, 8, count))
            assert result.shape == images.shape
            assert torch.isfinite(result).all()
            result.square().sum().backward()
            assert images.grad is not None
            assert torch.isfinite(images.grad).all()


def test_low_precision_images_keep_their_precision_of_coordinates() -> None:
    images = pictures(2, 32, 32).to(torch.bfloat16)
    for name in NAMES:
        parameters = draw(strategy(name), generator(2), 32, 32, count=2)
        result = apply(images, parameters)
        assert result.dtype == torch.bfloat16
        torch.testing.assert_close(result.float(), apply(images.float(), parameters), rtol=0.05, atol=0.05)


@pytest.mark.parametrize("text", ["none", ""])
def test_no_augmentation_draws_nothing(text: str) -> None:
    source = generator()
    before = source.get_state()
    images = pictures(3, 4, 4)
    assert strategy(text) == Strategy(())
    assert torch.equal(augment.augment(images, strategy(text), source), images)
    assert torch.equal(apply(images, draw(strategy(text), source, 4, 4)), images)
    assert torch.equal(source.get_state(), before)


def test_parser_reads_names_in_order() -> None:
    assert strategy(DSA).transforms == NAMES
    assert strategy(DSA_DIGITS).transforms == tuple(name for name in NAMES if name != "flip")
    assert strategy("rotate_color").transforms == ("rotate", "color")
    old, new = strategy("dc_crop_noise"), strategy("crop")
    assert old.transforms == ("crop", "noise")
    assert (old.dc, new.dc) == (True, False)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("colour", "augmentation 'colour' is not known; did you mean 'color'? Allowed: color, crop, cutout, flip, rotate, scale."),
        ("crop_noise", "augmentation 'noise' is not known. Allowed: color, crop, cutout, flip, rotate, scale."),
        ("dc_flip", "dc_ augmentation 'flip' is not known. Allowed: crop, noise, rotate, scale."),
        ("dc_", "dc_ augmentation '' is not known. Allowed: crop, noise, rotate, scale."),
        ("flip_color_flip", "augmentation 'flip_color_flip' names a transform twice; name each at most once."),
        (None, f"augmentation is a NoneType; give a text such as '{DSA}' or 'none'."),
    ],
)
def test_parser_errors(text: str, message: str) -> None:
    with pytest.raises(InputError) as caught:
        strategy(text)
    assert str(caught.value) == message


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=40) | st.lists(st.sampled_from(["dc", "none", "noise", *NAMES])).map("_".join))
def test_any_text_is_a_strategy_or_an_input_error(text: str) -> None:
    parts = text.removeprefix("dc_").split("_")
    allowed = {"crop", "scale", "rotate", "noise"} if text.startswith("dc_") else set(NAMES)
    if text in ("", "none"):
        assert strategy(text).transforms == ()
    elif set(parts) <= allowed and len(set(parts)) == len(parts):
        assert strategy(text).transforms == tuple(parts)
    else:
        with pytest.raises(InputError):
            strategy(text)


def test_the_strategy_for_a_data_set() -> None:
    for name, expected in {
        "digits": DSA_DIGITS,
        "mnist": DSA_DIGITS,
        "SVHN": DSA_DIGITS,
        "usps": DSA_DIGITS,
        "cifar10": DSA,
        "fashion-mnist": DSA,
    }.items():
        assert augment.for_data(DataSpec(name, 1, 8, 8, ("a",), (0.0,), (1.0,))) == expected


def test_apply_refuses_wrong_input() -> None:
    parameters = draw(strategy("flip"), generator(), 4, 4, count=3)
    for images, message in (
        (torch.zeros(2, 1, 4, 4), "augmentation parameters are for 3 images, but 2 images were given."),
        (torch.zeros(3, 4, 4), "augmentation needs float images (N, C, H, W); got torch.float32 of shape (3, 4, 4)."),
        (
            torch.zeros(3, 1, 4, 4, dtype=torch.uint8),
            "augmentation needs float images (N, C, H, W); got torch.uint8 of shape (3, 1, 4, 4).",
        ),
    ):
        with pytest.raises(InputError) as caught:
            apply(images, parameters)
        assert str(caught.value) == message
    with pytest.raises(InputError, match="transform 'sharpen' is not known"):
        apply(torch.zeros(1, 1, 4, 4), Parameters("sharpen", torch.zeros(1, 1)))
