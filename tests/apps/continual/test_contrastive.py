"""SCR in studies: it replays, sees two views, and classifies by the means of the memory's own images."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.continual.buffer import CondensedBuffer
from apps.continual.contrastive import views
from apps.continual.engine import avalanche
from apps.continual.online_buffer import OnlineCondensedBuffer
from apps.continual.strategies import Training, learn
from apps.continual.streams import class_incremental
from distill.errors import InputError
from distill.networks import embed
from distill.randomness import generator
from distill.spec import DataSpec
from scenarios.catalogue import study
from tests.conftest import toy

TRAINING = Training(epochs=3, batch_size=8, batch_size_mem=8)


@pytest.mark.parametrize("queue", [None, 8, 64])  # of an online stream; 64 images are more than an experience
def test_an_image_is_of_the_class_whose_mean_stored_feature_is_nearest(queue: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy(classes=4)
    stream = class_incremental(data, 2, 0)
    made: list[Any] = []
    scr = avalanche("avalanche.training.supervised").SCR
    original = scr.compute_class_means

    def watched(self: Any) -> None:
        original(self)
        made[:] = [self]

    monkeypatch.setattr(scr, "compute_class_means", watched)
    online = queue is not None
    waits = {"queue": queue, "every": 6 if queue == 8 else 100}
    buffer = OnlineCondensedBuffer(8, "random", per_class=2, **waits) if online else CondensedBuffer(8, "random", per_class=2)
    rows = list(learn("scr", stream, "ConvNetD1W8", TRAINING, 0, buffer=buffer, mini=4 if online else None))
    assert len(rows) == 2
    assert len(buffer.buffer) == 8
    (strategy,) = made
    network = strategy.model.feature_extractor.network
    network.eval()

    def features(images: Tensor) -> Tensor:
        with torch.no_grad():
            return F.normalize(embed(network, images))

    found = strategy.model.eval_classifier.class_means_dict
    for group in buffer.memory.groups:
        # Avalanche averages a new mean with the one before, so that only a class that came last has the mean of its images.
        if not online and group.experience == 1:
            mean = features(group.images).mean(0)
            assert torch.allclose(found[group.label], mean / mean.norm(), atol=1e-5)
    assert set(found) == set(range(4))
    if not online:
        assert sum(rows[-1]) / 2 > 60, "four classes: 25 by chance"
    test = data.normalised("test", torch.arange(len(data.test)))
    nearest = torch.cdist(features(test), torch.stack([found[c] for c in range(4)])).argmin(1)
    strategy.model.eval()
    assert torch.equal(strategy.model(test).argmax(1), nearest)


def test_the_second_view_is_another_image_and_digits_are_not_flipped() -> None:
    """DSA's transforms by the name of the data: one of them flips, for others than digits."""
    images = torch.rand(8, 1, 8, 8, generator=generator(0, "images"))

    def mirrored(name: str) -> bool:
        view = views(DataSpec(name, 1, 8, 8, ("a", "b"), (0.5,), (0.5,)), generator(0, "views"))
        found = [view(images) for _ in range(60)]
        assert all(one.shape == images.shape for one in found)
        assert any(not torch.equal(one, images) for one in found)
        return any(torch.equal(image, plain.flip(2)) for one in found for image, plain in zip(one, images, strict=True))

    assert mirrored("cifar10")
    assert not mirrored("digits")


def test_memories_without_classes_are_refused() -> None:
    table = {"data": {"name": "digits"}, "memory": {"methods": ["random", "reservoir"]}, "learner": {"strategies": ["scr"]}}
    with pytest.raises(
        InputError, match="reservoir with strategy 'scr', which needs the mean of each class; take methods or coresets only"
    ):
        study("s", {"kind": "continual", "title": "t", **table}, "s.toml")
