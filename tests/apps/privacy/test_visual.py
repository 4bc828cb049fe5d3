"""Visual privacy: distances against double loops, copies are seen, and nothing is seen where nothing was copied."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from apps.privacy import distances
from apps.privacy.distances import Fetch, nearest, root_mean_square, structure
from apps.privacy.figures import closest_pairs
from apps.privacy.visual import closeness, main, visual_privacy
from distill.condensed import CondensedSet
from distill.coresets import select
from distill.data import ImageData
from distill.errors import InputError
from distill.randomness import generator
from tests.conftest import toy


def draws(seed: int = 0) -> torch.Generator:
    return generator(seed, "test")


def slow_ssim(x: np.ndarray, y: np.ndarray, window: int) -> float:
    """Wang et al.'s formula window by window, in float64."""
    values = []
    for channel in range(x.shape[0]):
        for row in range(x.shape[1] - window + 1):
            for column in range(x.shape[2] - window + 1):
                a, b = (z[channel, row : row + window, column : column + window].astype(np.float64).ravel() for z in (x, y))
                covariance = ((a - a.mean()) * (b - b.mean())).sum() / (len(a) - 1)
                top = (2 * a.mean() * b.mean() + 1e-4) * (2 * covariance + 9e-4)
                values.append(top / ((a.mean() ** 2 + b.mean() ** 2 + 1e-4) * (a.var(ddof=1) + b.var(ddof=1) + 9e-4)))
    return float(np.mean(values))


@pytest.mark.parametrize(("shape", "window"), [((1, 9, 9), 7), ((3, 8, 11), 7), ((1, 6, 8), 5)])
def test_structure_is_its_definition(shape: tuple[int, int, int], window: int) -> None:
    points, others = torch.rand((3, *shape), generator=draws()), torch.rand((4, *shape), generator=draws(1))
    others[1] = points[2]
    others[2] = 0.5 + 0.01 * others[2]
    found = structure(points, others, window)
    slow = [[1 - slow_ssim(x.numpy(), y.numpy(), window) for y in others] for x in points]
    assert np.allclose(found.numpy(), slow, atol=1e-4)
    assert float(found[2, 1]) == pytest.approx(0.0, abs=1e-5)


def test_an_image_smaller_than_the_window_is_one_window() -> None:
    points, others = torch.rand((2, 1, 4, 4), generator=draws()), torch.rand((2, 1, 4, 4), generator=draws(1))
    assert np.allclose(
        structure(points, others).numpy(), [[1 - slow_ssim(x.numpy(), y.numpy(), 4) for y in others] for x in points], atol=1e-4
    )


def test_pixels_are_the_root_of_the_mean_square_and_a_copy_is_exactly_nothing() -> None:
    points, others = torch.rand((30, 2, 8, 8), generator=draws()), torch.rand((40, 2, 8, 8), generator=draws(1))
    others[7] = points[3]
    found = root_mean_square(points, others)
    slow = [[float((x - y).double().square().mean().sqrt()) for y in others] for x in points]
    assert np.allclose(found.numpy(), slow, atol=1e-6)
    assert float(found[3, 7]) == 0.0


def test_the_nearest_are_those_of_a_sort_over_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distances, "AT_ONCE", 5)
    points, others = torch.rand((6, 1, 4, 4), generator=draws()), torch.rand((23, 1, 4, 4), generator=draws(1))
    chosen = torch.tensor([22, 3, 4, 9, 0, 1, 15, 16, 8, 7, 21])
    found = nearest(points, lambda index: others[index], chosen, root_mean_square)
    for place in range(6):
        slow = sorted((float((points[place] - others[k]).square().mean().sqrt()), int(k)) for k in chosen)
        assert float(found.distance[place]) == pytest.approx(slow[0][0])
        assert float(found.second[place]) == pytest.approx(slow[1][0])
        assert int(found.position[place]) == slow[0][1]


def pool(images: Tensor) -> tuple[int, Fetch]:
    return len(images), lambda index: images[index]


def test_copies_are_seen_among_many_images() -> None:
    """Ten copies among six times as many training as holdout images."""
    train, holdout = torch.rand((600, 1, 4, 4), generator=draws()), torch.rand((100, 1, 4, 4), generator=draws(1))
    found = closeness(train[20:30], pool(train), pool(holdout), root_mean_square)
    assert found.found.position.tolist() == list(range(20, 30))
    assert found.share_closer.value == found.share_outstanding.value == 1.0
    assert found.first_to_second == 0.0
    assert found.chance == pytest.approx(6 / 7)
    assert found.copied
    assert "COPIES" in str(found)
    alone = closeness(train[:20], pool(train[:100]), pool(holdout), root_mean_square)
    assert alone.share_closer.low > 0.8 > alone.chance == 0.5
    assert alone.median_ratio == 0.0


def test_near_copies_are_seen_too() -> None:
    train, holdout = torch.rand((300, 1, 6, 6), generator=draws()), torch.rand((300, 1, 6, 6), generator=draws(1))
    points = train[:30] + 0.1 * torch.rand((30, 1, 6, 6), generator=draws(2))
    assert closeness(points, pool(train), pool(holdout), root_mean_square).copied


@pytest.mark.parametrize("sizes", [(500, 100), (100, 500), (300, 300)])
def test_more_training_than_holdout_images_do_not_look_like_copying(sizes: tuple[int, int]) -> None:
    """All images from one distribution: both shares are what chance gives, whatever the sizes, and hardly any verdict is wrong."""
    closer, outstanding, ratios, wrong = [], [], [], 0
    for seed in range(60):
        points = torch.rand((20, 1, 3, 3), generator=draws(seed))
        train, holdout = (torch.rand((count, 1, 3, 3), generator=draws(1000 * seed + k + 1)) for k, count in enumerate(sizes))
        found = closeness(points, pool(train), pool(holdout), root_mean_square, seed)
        closer.append(found.share_closer.value)
        outstanding.append(found.share_outstanding.value)
        ratios.append(found.median_ratio)
        wrong += found.copied
    assert abs(np.mean(closer) - sizes[0] / sum(sizes)) < 4 * np.std(closer) / 60**0.5
    assert abs(np.mean(outstanding) - 0.5) < 4 * np.std(outstanding) / 60**0.5
    assert abs(np.mean(ratios) - 1) < 0.05
    assert wrong <= 9  # each share is wrong in 2.5 % at most


def test_a_set_of_real_images_is_told_from_one_of_others(toy_data: ImageData) -> None:
    copied = select(toy_data, "random", 3, draws())
    rows = visual_privacy(copied, toy_data, network="MLP")
    assert set(rows) == {"pixels", "structure", "features"}
    for row in rows.values():
        assert row.share_closer.value == 1.0
        assert row.copied
    images = toy_data.normalised("train", rows["pixels"].found.position)
    assert torch.allclose(images, copied.images, atol=1e-5)
    strange = select(toy(seed=77), "random", 3, draws())
    strange = CondensedSet(toy_data.spec.normalise(strange.pixels()), strange.labels, toy_data.spec)
    assert visual_privacy(strange, toy_data, measures=["pixels"])["pixels"].first_to_second > 0.5
    assert closest_pairs(copied, toy_data, {name: row.found for name, row in rows.items()}, "copied").encoded().startswith(b"\x89PNG")


def test_positions_are_those_of_the_training_split_under_a_limit(toy_data: ImageData) -> None:
    copied = select(toy_data, "random", 1, draws())
    row = visual_privacy(copied, toy_data, measures=["pixels"], limit=20)["pixels"]
    for place in range(len(copied)):
        there = toy_data.normalised("train", row.found.position[place : place + 1])
        apart = (toy_data.spec.denormalise(there) - copied.pixels()[place : place + 1]).square().mean().sqrt()
        assert float(apart) == pytest.approx(float(row.found.distance[place]), abs=1e-5)


def test_mistakes_are_one_line(toy_data: ImageData) -> None:
    some = select(toy_data, "random", 1, draws())
    with pytest.raises(InputError, match="has no validation images"):
        visual_privacy(some, toy_data, holdout="validation")
    with pytest.raises(InputError, match="measure 'pixel' is not known; did you mean 'pixels'"):
        visual_privacy(some, toy_data, measures=["pixel"])


def test_the_command_takes_the_users_own_set(tmp_path: Path, digits: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "mine.safetensors"
    select(digits, "random", 1, draws()).save(path)
    assert main([str(path), "--data", "digits", "--limit", "200"]) == 0
    printed = capsys.readouterr().out
    assert "pixels" in printed
    assert "no proof of privacy" in printed
    assert (tmp_path / "mine-pairs.png").is_file()
    assert main([str(tmp_path / "none.safetensors"), "--data", "digits"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
