"""Neural Cleanse: its steps against the paper's formulas written out; it finds planted triggers and leaves clean classes alone."""

import math
import statistics

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distill
from apps.privacy import cleanse as module
from apps.privacy.cleanse import Reversed, Search, anomalies, cleanse, covered, smallest_patch
from apps.privacy.poisoning import PoisonedStatistics, attack_success
from apps.privacy.triggers import white_square
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from distill.train import Recipe, train_network
from tests.conftest import toy

NETWORK = "ConvNetD1W32"


def test_covered_images_are_mixed_pixel_by_pixel() -> None:
    spec = toy().spec
    draws = generator(0, "images")
    images = torch.randn((2, *spec.shape), generator=draws)
    mask, pattern = torch.rand(spec.shape[1:], generator=draws), torch.rand(spec.shape, generator=draws)
    found = covered(images, mask, pattern, spec)
    for channel in range(spec.channels):
        for row in (0, 3):
            for column in (1, 5):
                own = (float(pattern[channel, row, column]) - spec.mean[channel]) / spec.std[channel]
                share = float(mask[row, column])
                expected = (1 - share) * float(images[1, channel, row, column]) + share * own
                assert float(found[1, channel, row, column]) == pytest.approx(expected, abs=1e-5)


def test_an_anomaly_is_counted_in_median_deviations_below_the_median() -> None:
    sizes = [40.0, 41.0, 39.0, 42.0, 8.0]
    middle = sorted(sizes)[2]
    spread = 1.4826 * sorted(abs(size - middle) for size in sizes)[2]
    assert anomalies(sizes) == pytest.approx([(middle - size) / spread for size in sizes])
    assert anomalies([3.0, 3.0, 3.0, 1.0]) == [0.0] * 4, "no spread to compare with"
    draws = [float(value) for value in 50 + 3 * torch.randn(1001, generator=generator(0, "normal"))]
    assert statistics.pstdev(anomalies(draws)) == pytest.approx(1.0, abs=0.1), "standard deviations, of normal sizes"


def test_the_smallest_patch_that_works_is_taken_or_the_last_one() -> None:
    def made(size: float, success: float) -> Reversed:
        return Reversed(0, torch.full((1, 1), size), torch.zeros(1, 1, 1), success)

    taken = {
        (new, old): module._better(made(*new), made(*old), 0.9)
        for new in ((2.0, 0.95), (2.0, 0.5))
        for old in ((3.0, 0.95), (1.0, 0.95), (1.0, 0.5))
    }
    assert [each for each, better in taken.items() if better] == [
        ((2.0, 0.95), (3.0, 0.95)),  # smaller
        ((2.0, 0.95), (1.0, 0.5)),  # works
        ((2.0, 0.5), (1.0, 0.5)),  # later
    ]


class Linear(nn.Module):
    """Outputs that are linear in the pixels."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight

    def forward(self, images: Tensor) -> Tensor:
        return images.flatten(1) @ self.weight


def test_two_updates_are_adam_on_the_stated_loss() -> None:
    """One round of two steps, with autograd on the formula and Adam written out (Kingma and Ba, algorithm 1)."""
    data = toy(classes=3)
    size = math.prod(data.spec.shape)
    networks = [Linear(0.1 * torch.randn((size, 3), generator=generator(k, "weights"))) for k in range(2)]
    images = torch.randn((7, *data.spec.shape), generator=generator(0, "images"))
    search = Search(rounds=1, steps=2, batch_size=4, lr=0.2, cost=0.03)
    found = smallest_patch(networks, images, data.spec, 1, search, 5)
    draws = generator(5, "cleanse", 1)
    values = [torch.rand(data.spec.shape[1:], generator=draws) * 2 - 1, torch.rand(data.spec.shape, generator=draws) * 2 - 1]
    first, second = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values]
    for step in (1, 2):
        values = [v.detach().requires_grad_(True) for v in values]
        mask, pattern = (values[0].tanh() + 1) / 2, (values[1].tanh() + 1) / 2
        rows = torch.randint(7, (4,), generator=draws)
        mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (data.spec.mean, data.spec.std))
        seen = (1 - mask) * images[rows] + mask * (pattern - mean) / std
        losses = [F.cross_entropy(network(seen), torch.ones(4, dtype=torch.int64)) for network in networks]
        gradients = torch.autograd.grad(sum(losses[1:], losses[0]) / 2 + 0.03 * mask.sum(), values)
        for k, gradient in enumerate(gradients):
            first[k] = 0.5 * first[k] + 0.5 * gradient
            second[k] = 0.9 * second[k] + 0.1 * gradient**2
            update = (first[k] / (1 - 0.5**step)) / ((second[k] / (1 - 0.9**step)).sqrt() + 1e-8)
            values[k] = values[k].detach() - 0.2 * update
    assert torch.allclose(found.mask, (values[0].tanh() + 1) / 2, atol=1e-4)
    assert torch.allclose(found.pattern, (values[1].tanh() + 1) / 2, atol=1e-4)


def test_a_pattern_may_leave_the_range_as_far_as_it_is_allowed() -> None:
    data = toy(classes=3)
    network = create(NETWORK, data.spec, generator(0, "net")).eval()
    images = data.normalised("test", torch.arange(6))
    for overshoot in (0.0, 1.5):
        found = smallest_patch([network], images, data.spec, 0, Search(rounds=3, steps=5, lr=3.0, overshoot=overshoot), 0)
        assert -overshoot <= float(found.pattern.min()) <= float(found.pattern.max()) <= 1 + overshoot
        assert float(found.pattern.min()) < -0.5 * overshoot + 0.1
        assert 0 <= float(found.mask.min()) <= float(found.mask.max()) <= 1


def trained(data: ImageData, seed: int) -> nn.Module:
    recipe = Recipe(optimiser="adamw", lr=0.002, batch_size=32, max_steps=250, schedule="cosine", augmentation="none")
    return train_network(data, NETWORK, recipe, seed)


@pytest.mark.parametrize("seed", range(2))
def test_a_planted_trigger_is_found_and_its_class_is_not_suspicious_without_it(seed: int, digits: ImageData) -> None:
    square, target, search = white_square(digits.spec), 3 + seed, Search(rounds=15)
    poisoned = PoisonedStatistics(digits, square, target, 0.05, generator(seed, "plant")).data
    network = trained(poisoned, seed)
    assert attack_success(network, digits, square, target) > 50, "there is a backdoor to be found"
    found = cleanse([network], digits, search, seed=seed)
    (own,) = [each for each in found if each.target == target]
    assert own.suspicious
    assert own.index == max(each.index for each in found)
    corner = own.mask[-2:, -2:].sum() / own.mask.sum()
    assert float(corner) > 0.15, "the mask is where the trigger is, on 4 of the pixels"
    clean = cleanse([trained(digits, seed)], digits, search, seed=seed)
    (own,) = [each for each in clean if each.target == target]
    assert not own.suspicious


def test_data_that_cannot_be_compared_are_refused(digits: ImageData) -> None:
    with pytest.raises(InputError, match="plain images"):
        cleanse([], toy(classes=3).whitened())
    with pytest.raises(InputError, match="has 2 classes; allowed: at least 3"):
        cleanse([], toy(classes=2))


def test_the_command_shows_a_row_for_each_class(
    tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path_factory.mktemp("set") / "set.safetensors"
    distill.select(distill.load("digits"), "random", 2, generator(0, "set")).save(path)
    monkeypatch.setattr(module, "Search", lambda **given: Search(rounds=1, steps=1, **given))
    assert module.main([str(path), "--data", "digits", "--network", NETWORK, "--networks", "1"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 11
    assert "anomaly index" in said[0]
    assert module.main([str(path), "--data", "digits", "--networks", "0"]) == 2
    assert "allowed: 1 or more" in capsys.readouterr().err
