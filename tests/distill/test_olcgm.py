"""OLCGM: images are convex combinations of their own components, and a step is that of GM on the coefficients, written out in float64."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.continual import Memory, MemoryConfig
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.matching import gradient_distance
from distill.methods import OLCGMConfig
from distill.methods.olcgm import OLCGM, Mixtures
from distill.networks import create
from distill.randomness import generator
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set
from tests.conftest import toy

NETWORK = "ConvNetD1W32"


def made(data: ImageData, ipc: int = 2, **settings: object) -> tuple[OLCGM, ExactStatistics]:
    config = OLCGMConfig(network=NETWORK, batch_real=6, iterations=1, outer_steps=3, inner_epochs=1, components=4, **settings)  # type: ignore[arg-type]
    statistics = ExactStatistics(data)
    return OLCGM(config, initial_set(statistics, "real", ipc, generator(0, "first"))), statistics


def test_every_image_is_a_convex_combination_of_real_images_of_its_class() -> None:
    data = toy()
    method, statistics = made(data, lr_img=0.5)
    start, draws = method.condensed, generator(1, "steps")
    for _ in range(3):
        method.step(statistics, draws)
        mixtures = method.synthetic
        assert isinstance(mixtures, Mixtures)
        assert float(mixtures.stored.min()) >= 0
        assert torch.allclose(mixtures.stored.sum(1), torch.ones(len(start)))
        assert torch.equal(mixtures.components[:, 0], start.images), "an image's first component is its initial image"
        for row, label in enumerate(start.labels.tolist()):
            real = data.normalised("train", data.class_indices(label))
            for component in mixtures.components[row]:
                assert float((real - component).abs().amax((1, 2, 3)).min()) < 1e-5, "a real image of its class"
            expected = sum(float(c) * image for c, image in zip(mixtures.stored[row], mixtures.components[row], strict=True))
            assert torch.allclose(method.condensed.images[row], expected, atol=1e-5)
    others = mixtures.components[:, 1:].flatten(0, 1).flatten(1)
    assert len(others.unique(dim=0)) == len(others), "the further components of a class are drawn without replacement"


@pytest.mark.parametrize("seed", range(2))
def test_a_step_is_gradient_descent_on_the_coefficients(seed: int) -> None:
    """The loss as a function of the coefficients alone, in float64, and the projection written out."""
    data = toy()
    method, statistics = made(data, lr_img=0.3)
    draws = generator(seed, "steps")
    method.synthetic = method._mixtures(statistics, draws)
    before, components = method.synthetic.stored.double(), method.synthetic.components.double()
    real: list[list[Tensor]] = []
    original = statistics.class_gradients
    statistics.class_gradients = lambda *given, **named: real.extend(original(*given, **named)) or real  # type: ignore[method-assign, func-returns-value]
    network: list[dict[str, Tensor]] = []
    pool = method.pool.draw

    def draw(*given: object):
        drawn = pool(*given)  # type: ignore[arg-type]
        network.append({name: value.clone() for name, value in drawn.state_dict().items()})
        return drawn

    method.pool.draw = draw  # type: ignore[method-assign]
    loss = float(method.step(statistics, draws)["loss"])
    net = create(NETWORK, data.spec, generator(0, "net"))
    net.load_state_dict(network[0])
    net = net.double()
    coefficients = before.clone().requires_grad_(True)
    images = torch.einsum("nm,nm...->n...", coefficients, components)
    total = torch.zeros((), dtype=torch.float64)
    for place, label in enumerate(data.classes):
        rows = method.synthetic.labels == label
        cost = F.cross_entropy(net(images[rows]), method.synthetic.labels[rows])
        found = torch.autograd.grad(cost, list(net.parameters()), create_graph=True)
        total = total + gradient_distance([g.double() for g in real[place]], found)
    (slope,) = torch.autograd.grad(total, coefficients)
    assert loss == pytest.approx(float(total.detach()), rel=1e-4)
    moved = (before - 0.3 * slope).clamp_min(0)
    for row in range(len(moved)):
        moved[row] = moved[row] / moved[row].sum() if moved[row].sum() > 0 else torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    assert torch.allclose(method.synthetic.stored.double(), moved, atol=1e-4)


def test_an_image_whose_coefficients_are_all_negative_becomes_its_first_component() -> None:
    data = toy()
    method, statistics = made(data)
    mixtures = method._mixtures(statistics, generator(0, "draws"))
    gradient = [torch.zeros_like(part) for part, _ in mixtures.per_class()]
    mixtures.velocity = torch.full_like(mixtures.velocity, 10.0)
    mixtures.descend(gradient, 1.0, 0.5)
    assert torch.equal(mixtures.stored, F.one_hot(torch.zeros(len(mixtures.stored), dtype=torch.int64), 4).float())
    assert torch.equal(mixtures.images, mixtures.components[:, 0])


def test_a_memory_combines_what_it_had_with_what_comes() -> None:
    """Merging: the first component of each image is the stored one."""
    seen: list[Tensor] = []
    original = OLCGM._mixtures

    def mixtures(self: OLCGM, statistics: ExactStatistics, draws: torch.Generator) -> Mixtures:
        made = original(self, statistics, draws)
        seen.append(made.components[:, 0].clone())
        return made

    data = toy(classes=2, per_class=30)
    settings = {"network": NETWORK, "iterations": 1, "outer_steps": 1, "batch_real": 6, "components": 3}
    memory = Memory(MemoryConfig("olcgm", per_class=2, settings=settings))
    images, labels = data.normalised("train", torch.arange(len(data.train))), data.train.labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(OLCGM, "_mixtures", mixtures)
        memory.observe(images[::2], labels[::2])
        stored = memory.images.clone()
        memory.observe(images[1::2], labels[1::2])
    assert torch.equal(seen[1], stored)
    assert memory.images.shape == stored.shape
    assert not torch.equal(memory.images, stored)


def test_private_statistics_and_clamping_are_refused() -> None:
    data = toy()
    with pytest.raises(InputError, match="where combinations of real images are; leave it out"):
        made(data, clamp=True)
    first = CondensedSet(torch.zeros(3, *data.spec.shape), torch.arange(3), data.spec)
    method = OLCGM(OLCGMConfig(network=NETWORK, components=2), first)

    class Private(ExactStatistics):
        def initial_images(self, *given: object) -> tuple[Tensor, Tensor]:
            raise InputError("no privacy guarantee: initial images")

    with pytest.raises(InputError, match="no privacy guarantee"):
        method.step(Private(data), generator(0, "steps"))
