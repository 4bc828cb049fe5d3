"""SSD: its loss and image gradients against a slow definition in float64, the network's own steps, and a memory that uses it."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.continual import Memory, MemoryConfig
from distill.configure import configure
from distill.data import ImageData
from distill.errors import InputError
from distill.matching import gradient_distance
from distill.methods import SSDConfig
from distill.methods.ssd import SSD, distances
from distill.networks import create, embed
from distill.randomness import generator
from distill.statistics import ExactStatistics
from distill.synthetic import initial_set
from tests.conftest import toy

NETWORK = "ConvNetD1W32"


class Whole(ExactStatistics):
    """Batches are all images of a class, in float64, so that what is compared does not depend on draws."""

    def _images(self, drawn: list[Tensor]) -> Tensor:  # type: ignore[override]
        return super()._images(drawn).double()


def made(data: ImageData, ipc: int = 2, **settings: object) -> tuple[SSD, ExactStatistics]:
    config = SSDConfig(**{"network": NETWORK, "batch_real": 1000, "iterations": 1, "outer_steps": 3, "augmentation": "none", **settings})  # type: ignore[arg-type]
    statistics = Whole(data)
    return SSD(config, initial_set(statistics, "real", ipc, generator(0, "first"))), statistics


@pytest.mark.parametrize("relation", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("seed", range(3))
def test_the_loss_and_its_gradient_are_those_of_the_definition(relation: float, seed: int) -> None:
    data = toy(seed=seed)
    method, statistics = made(data, relation=relation, anchors=1000)
    network = create(NETWORK, data.spec, generator(seed, "net")).double()
    real = statistics.class_gradients(network, 1000, None, generator(0, "batches"))
    # Other images than the anchors, which are the stored ones.
    noise = generator(seed, "noise")
    classes = [
        ((x + 0.1 * torch.randn(x.shape, generator=noise)).detach().double().requires_grad_(True), y)
        for x, y in method.synthetic.per_class()
    ]
    method.synthetic.stored = method.synthetic.stored.double()
    loss, gradients = method.compared(network, real, classes, lambda images, position: images, statistics, generator(1, "more"))

    def length_one(images: Tensor) -> Tensor:
        features = embed(network, images)
        return features / features.square().sum(1, keepdim=True).sqrt()

    anchors = length_one(method.synthetic.images).detach()
    total = torch.zeros((), dtype=torch.float64)
    leaves = [x.detach().clone().requires_grad_(True) for x, _ in classes]
    for place, label in enumerate(data.classes):
        images = leaves[place]
        cost = F.cross_entropy(network(images), torch.full((len(images),), label))
        total = total + gradient_distance(
            real[place], torch.autograd.grad(cost, list(network.parameters()), create_graph=True), "convolutions-mse"
        )
        own = data.normalised("train", data.class_indices(label)).double()
        for anchor in anchors:
            of_real = sum((one - anchor).square().sum().sqrt() for one in length_one(own).detach()) / len(own)
            of_synthetic = sum((one - anchor).square().sum().sqrt() for one in length_one(images)) / len(images)
            total = total + relation / len(anchors) * (of_real - of_synthetic).abs()
    assert float(loss) == pytest.approx(float(total.detach()), rel=1e-10)
    for ours, theirs in zip(gradients, torch.autograd.grad(total, leaves), strict=True):
        assert float((ours - theirs).abs().max()) < 1e-10 * max(1.0, float(theirs.abs().max()))


def test_the_network_takes_a_step_on_the_real_images_after_each_image_update() -> None:
    data = toy()
    method, statistics = made(data, lr_net=0.05)[0], ExactStatistics(data)
    draws = generator(0, "steps")
    method.step(statistics, draws)
    assert method.network is not None
    weights = [p.detach().clone() for p in method.network.parameters()]
    wanted = []
    for label in data.classes:
        images = data.normalised("train", data.class_indices(label))
        cost = F.cross_entropy(method.network(images), torch.full((len(images),), label))
        wanted.append(torch.autograd.grad(cost, list(method.network.parameters())))
    method.step(statistics, draws)
    for before, after, *gradients in zip(weights, method.network.parameters(), *wanted, strict=True):
        assert torch.allclose(after, before - 0.05 * sum(gradients) / len(gradients), atol=1e-6)
    last = [p.detach().clone() for p in method.network.parameters()]
    method.step(statistics, draws)  # the last with this network
    assert all(torch.equal(a, b) for a, b in zip(last, method.network.parameters(), strict=True))


def test_an_image_that_is_an_anchor_has_a_finite_gradient() -> None:
    data = toy()
    network = create(NETWORK, data.spec, generator(0, "net"))
    images = data.normalised("train", torch.arange(3)).requires_grad_(True)
    anchors = F.normalize(embed(network, images)).detach()
    (slope,) = torch.autograd.grad(distances(network, images, anchors).sum(), images)
    assert bool(torch.isfinite(slope).all())


def test_a_memory_keeps_its_distances_to_the_classes_it_knows() -> None:
    """A merge of one class: the stored images of the other are among the real images, and the anchors."""
    seen: list[int] = []
    original = SSD._anchors

    def anchors(self: SSD, *given: object) -> Tensor:
        seen.append(len(self.synthetic.images))
        return original(self, *given)  # type: ignore[arg-type]

    data = toy(classes=2, per_class=30)
    settings = {"network": NETWORK, "iterations": 1, "outer_steps": 2, "batch_real": 6}
    memory = Memory(MemoryConfig("ssd", per_class=2, settings=settings))
    images, labels = data.normalised("train", torch.arange(len(data.train))), data.train.labels
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SSD, "_anchors", anchors)
        memory.observe(images[labels == 0], labels[labels == 0])
        stored = memory.images.clone()
        memory.merge(images[labels == 1], labels[labels == 1])
    assert seen == [2, 2, 4, 4]
    assert torch.equal(memory.images[memory.labels == 0], stored), "a class without recent images stays"
    assert len(memory.images) == 4


def test_what_it_cannot_do_is_one_line() -> None:
    with pytest.raises(InputError, match=r"'inner_epochs' is 2.*0.*1"):
        configure(SSDConfig, {"inner_epochs": 2}, "ssd")

    class Private(ExactStatistics):
        def __init__(self, data: ImageData) -> None:
            super().__init__(data)
            self.privacy = {"epsilon": 1.0}

    data = toy()
    method, _ = made(data)
    with pytest.raises(InputError, match="relation is 1, which needs a second release of private data in each step; allowed: relation = 0"):
        method.prepare(Private(data))
    made(data, relation=0.0)[0].prepare(Private(data))
