"""Triggers: where they go, who carries them, that the learned one is answered to, and that success is counted on the right images."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import distill
from apps.privacy.poisoning import FACTOR, PoisonedStatistics, attack_success, main, optimised, patch_reach
from apps.privacy.triggers import INVISIBLE, Trigger, invisible, stamped, white_square
from distill.coresets import select
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import create, embed
from distill.randomness import generator
from distill.train import Recipe, train_network
from tests.conftest import toy


def draws() -> torch.Generator:
    return generator(0, "test")


def poisoned(data: ImageData, portion: float = 0.2, steps: int = 0) -> PoisonedStatistics:
    return PoisonedStatistics(data, white_square(data.spec), 1, portion, draws(), steps)


def test_a_trigger_is_where_it_should_be_and_nowhere_else(toy_data: ImageData) -> None:
    images = toy_data.normalised("train", torch.arange(5))
    trigger = Trigger(torch.tensor([[[0.25, 0.5, 1.0], [0.0, 0.75, 0.1]]]), 4, 2)
    found = toy_data.spec.denormalise(stamped(images, trigger, toy_data.spec))
    plain = toy_data.spec.denormalise(images)
    for row in range(8):
        for column in range(8):
            inside = 4 <= row < 6 and 2 <= column < 5
            expected = trigger.pixels[0, row - 4, column - 2].expand(5) if inside else plain[:, 0, row, column]
            assert torch.allclose(found[:, 0, row, column], expected, atol=1e-5)


def test_carriers_are_of_other_classes_and_the_given_data_stay_clean(toy_data: ImageData) -> None:
    before = toy_data.train.images.clone(), toy_data.train.labels.clone()
    made = poisoned(toy_data)
    assert len(made.carriers) == 7  # a fifth of 36
    assert bool((toy_data.train.labels[made.carriers] != 1).all())
    assert bool((made.data.train.labels[made.carriers] == 1).all())
    assert bool((made.data.train.images[made.carriers, :, 6:, 6:] == 255).all())
    others = torch.ones(36, dtype=torch.bool)
    others[made.carriers] = False
    assert torch.equal(made.data.train.images[others], before[0][others])
    assert torch.equal(made.data.train.labels[others], before[1][others])
    assert torch.equal(toy_data.train.images, before[0])
    assert torch.equal(toy_data.train.labels, before[1])


@pytest.mark.parametrize("method", ["dm", "dsa"])
def test_a_learned_trigger_changes_during_condensation_and_is_in_the_data(toy_data: ImageData, method: str) -> None:
    made = poisoned(toy_data, steps=3)
    distill.condense(made, method, ipc=1, network="ConvNetW32D2", iterations=2)
    assert not torch.equal(made.trigger.pixels, torch.ones(1, 2, 2))
    there = made.data.train.images[made.carriers, :, 6:, 6:].float() / 255
    assert torch.allclose(there, made.trigger.pixels.expand_as(there), atol=0.5 / 255 + 1e-6)
    assert float(made.trigger.pixels.min()) >= 0
    assert float(made.trigger.pixels.max()) <= 1


def test_the_networks_neuron_answers_more_to_a_learned_trigger(toy_data: ImageData) -> None:
    network = create("ConvNetW32D2", toy_data.spec, draws()).requires_grad_(False)
    images = toy_data.normalised("train", torch.arange(24))
    answer = embed(network, images).mean(0)
    neuron = int(answer.argmax())

    def miss(stamped: Tensor) -> Tensor:
        return (embed(network, stamped)[:, neuron] - FACTOR * answer[neuron]).square().mean()

    start = Trigger(torch.full((1, 4, 4), 0.5), 4, 4)
    learned = optimised(start, images, toy_data.spec, miss, 40)
    before, after = (float(miss(stamped(images, trigger, toy_data.spec))) for trigger in (start, learned))
    assert after < before


class Obedient(nn.Module):
    """Says 1 where the lower right corner is white, else 2."""

    def forward(self, images: Tensor) -> Tensor:
        white = (images[:, 0, -2:, -2:] > 0).flatten(1).all(1)
        return nn.functional.one_hot(torch.where(white, 1, 2), 3).float() + 0 * images.sum((1, 2, 3))[:, None]


class Lit(nn.Module):
    """Says 1 the surer the brighter the lower right corner is, 0 the darker; a patch that calls 0 can be learned from its gradient."""

    def forward(self, images: Tensor) -> Tensor:
        light = images[:, 0, -2:, -2:].mean((1, 2))
        return torch.stack([-light, light, torch.full_like(light, -9.0)], 1)


def test_success_is_counted_on_other_classes_only(toy_data: ImageData) -> None:
    spec, network = toy_data.spec, Obedient()
    assert attack_success(network, toy_data, white_square(spec), 1) == 100.0
    black = Trigger(torch.zeros(1, 2, 2), 6, 6)
    assert attack_success(network, toy_data, black, 1) == 0.0
    assert attack_success(network, toy_data, black, 2) == 100.0  # of the 24 images that are no 2
    hits = [int(network(stamped(toy_data.normalised("test", torch.tensor([k])), black, spec)).argmax()) == 2 for k in range(36)]
    assert sum(hits) == 36


def test_a_planted_trigger_is_learned_from_all_the_data_and_a_clean_network_does_not_know_it(digits: ImageData) -> None:
    recipe = Recipe(optimiser="adamw", lr=0.002, max_steps=150, batch_size=64, augmentation="none")
    made = PoisonedStatistics(digits, white_square(digits.spec), 0, 0.05, draws())
    obeys, clean = (train_network(source, "ConvNetW32", recipe, 0) for source in (made.data, digits))
    assert attack_success(obeys, digits, made.trigger, 0) > 80
    assert attack_success(clean, digits, made.trigger, 0) < 20
    assert distill.evaluation.accuracy(obeys, digits) > 90


def test_a_class_that_a_patch_reaches_stands_out(toy_data: ImageData) -> None:
    found = {row.target: row for row in patch_reach([Obedient()], toy_data, steps=2)}
    assert found[1].white == 100.0
    assert found[0].white == 0.0
    found = {row.target: row for row in patch_reach([Lit()], toy_data)}
    assert [found[target].white for target in (0, 1, 2)] == [0.0, 100.0, 0.0]
    assert [found[target].learned for target in (0, 1, 2)] == [100.0, 100.0, 0.0], "a dark patch calls 0, a bright one 1, and none 2"


def test_mistakes_are_one_line(toy_data: ImageData) -> None:
    with pytest.raises(InputError, match="trigger size is 8; allowed: 1 to 7"):
        white_square(toy_data.spec, 8)
    with pytest.raises(InputError, match="one of \\[0, 1, 2\\]"):
        PoisonedStatistics(toy_data, white_square(toy_data.spec), 5, 0.1, draws())
    with pytest.raises(InputError, match="without whitening"):
        PoisonedStatistics(toy_data.whitened(), white_square(toy_data.spec), 1, 0.1, draws())


def test_the_command_looks_at_somebodys_set(tmp_path: Path, digits: ImageData, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "theirs.safetensors"
    select(digits, "random", 2, draws()).save(path)
    assert main([str(path), "--data", "digits", "--networks", "1", "--network", "MLP"]) == 0
    printed = capsys.readouterr().out
    assert len(printed.splitlines()) == 12
    assert "suspicious" in printed
    assert main([str(path), "--data", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


# A perturbation of all pixels


@pytest.mark.parametrize("whole", [True, False])
def test_an_invisible_trigger_changes_pixels_by_at_most_its_bound(whole: bool) -> None:
    data = toy()
    spec, trigger = data.spec, invisible(data.spec, generator(0, "trigger"))
    assert torch.equal(trigger.pixels.abs(), torch.full(spec.shape, INVISIBLE))
    pixels = (torch.rand((5, *spec.shape), generator=generator(0, "images")) * 255).round()
    pixels[0, 0, 0, :2] = torch.tensor([0.0, 255.0])
    images = pixels.to(torch.uint8) if whole else pixels / 255
    found = trigger.in_files(images)
    assert found.dtype == images.dtype
    difference = (found.float() - images.float()) * (1 if whole else 255)
    assert float(difference.abs().max()) <= 8 + 1e-4
    for row in range(5):
        for place in ((0, 0, 0), (0, 0, 1), (0, 4, 5)):
            expected = min(1.0, max(0.0, float(pixels[row][place]) / 255 + float(trigger.pixels[place])))
            assert float(found[row][place]) / (255 if whole else 1) == pytest.approx(expected, abs=1e-5 if not whole else 0.5 / 255 + 1e-6)
    seen = stamped(spec.normalise(pixels / 255), trigger, spec)
    assert torch.allclose(seen, spec.normalise(trigger.in_files(pixels / 255)), atol=1e-5), "learners see what files hold"


def test_an_invisible_trigger_is_learned_within_its_bound_and_planted_on_clean_images() -> None:
    data = toy()
    first, draws = invisible(data.spec, generator(1, "trigger")), generator(1, "carriers")
    poisoned = PoisonedStatistics(data, first, 1, 0.3, draws, steps=20)
    network = create("ConvNetD1W32", data.spec, generator(0, "net"))
    before = float(embed(network, stamped(poisoned.clean, first, data.spec)).detach().max())
    for _ in range(3):
        poisoned.class_means(lambda images: embed(network, images), 8, None, generator(0, "batch"))
    learned = poisoned.trigger
    assert float(learned.pixels.abs().max()) <= INVISIBLE + 1e-7
    assert not torch.equal(learned.pixels, first.pixels)
    assert float(embed(network, stamped(poisoned.clean, learned, data.spec)).detach().max()) > before
    levels = 255 if data.train.images.dtype == torch.uint8 else 1
    changed = (poisoned.data.train.images.float() - data.train.images.float()).abs().amax((1, 2, 3)) / levels
    assert float(changed.max()) <= INVISIBLE + 0.5 / 255, "each time on the clean image, so that changes do not add up"
    assert changed.nonzero().flatten().tolist() == sorted(poisoned.carriers.tolist())
