"""DOORPING's trigger: which neuron, that it answers tenfold, that only unclamped pixels leave the range, and where it is refused."""

import pytest
import torch
from torch import nn

import distill
from apps.privacy.doorping import Doorping, key_neuron, learned_alone
from apps.privacy.poisoning import FACTOR
from apps.privacy.triggers import Trigger, stamped, white_square
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import create, embed
from distill.randomness import generator

GREY = Trigger(torch.full((1, 3, 3), 0.6), 4, 3)


def network(data: ImageData) -> nn.Module:
    """Without a norm, which would bound the answer."""
    return create("ConvNetW32D2NN", data.spec, generator(0, "network"))


def answer(made: nn.Module, trigger: Trigger, data: ImageData) -> float:
    return float(embed(made, stamped(torch.zeros((1, *data.spec.shape)), trigger, data.spec)).detach()[0, key_neuron(made)])


def test_the_neuron_has_the_largest_sum_of_absolute_weights(toy_data: ImageData) -> None:
    made = network(toy_data)
    weights = next(layer for layer in made.modules() if isinstance(layer, nn.Linear)).weight.detach()
    sums = [sum(abs(float(weights[k, d])) for k in range(weights.shape[0])) for d in range(weights.shape[1])]
    assert key_neuron(made) == max(range(len(sums)), key=sums.__getitem__)
    with pytest.raises(InputError, match="no linear layer"):
        key_neuron(nn.ReLU())


def test_unclamped_pixels_reach_ten_times_the_first_answer_and_clamped_ones_stay_an_image(toy_data: ImageData) -> None:
    made = network(toy_data)
    before = answer(made, GREY, toy_data)
    assert before > 0
    free, kept = (learned_alone(GREY, made, toy_data.spec, 2000, clamp=clamp) for clamp in (False, True))
    assert answer(made, free, toy_data) >= 0.999 * FACTOR * before
    assert not 0 <= float(free.pixels.min()) <= float(free.pixels.max()) <= 1
    assert 0 <= float(kept.pixels.min()) <= float(kept.pixels.max()) <= 1
    assert before < answer(made, kept, toy_data) < answer(made, free, toy_data)
    one = learned_alone(GREY, made, toy_data.spec, 1)
    assert float((one.pixels - GREY.pixels).abs().max()) == pytest.approx(0.08, rel=1e-3), "Adam's first step is its step size"


@pytest.mark.parametrize("clamp", [True, False])
def test_the_data_carry_the_trigger_that_was_learned(toy_data: ImageData, clamp: bool) -> None:
    made = Doorping(toy_data, white_square(toy_data.spec), 1, 0.2, generator(0, "carriers"), 20, clamp=clamp)
    first = made.trigger.pixels.clone()
    distill.condense(made, "gm", ipc=1, network="ConvNetW32D2", iterations=2, progress=False)
    assert not torch.equal(made.trigger.pixels, first)
    there = made.data.normalised("train", made.carriers)[:, :, 6:, 6:]
    expected = made.spec.normalise(made.trigger.pixels[None]).expand_as(there)
    assert torch.allclose(there, expected, atol=0.01 if clamp else 1e-5)  # bytes, or what no byte holds
    assert (made.data.train.images.dtype == torch.uint8) is clamp
    assert toy_data.train.images.dtype == torch.uint8


def test_a_method_without_trained_networks_is_refused(toy_data: ImageData) -> None:
    made = Doorping(toy_data, white_square(toy_data.spec), 1, 0.2, generator(0, "carriers"))
    with pytest.raises(InputError, match="DOORPING learns its trigger in networks that are trained on the set"):
        distill.condense(made, "dm", ipc=1, network="ConvNetW32D2", iterations=1, progress=False)
