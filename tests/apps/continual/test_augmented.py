"""Exemplars under DSA's augmentation: in training only, drawn anew each time, not alike in all workers, and the same after a restart."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader

from apps.continual.engine import quiet_and_seeded
from apps.continual.strategies import benchmark
from apps.continual.streams import class_incremental
from distill.augment import DSA, DSA_DIGITS, strategy
from distill.errors import InputError
from tests.conftest import toy

pytest.importorskip("avalanche")
from apps.continual.augmented import Augmented
from apps.continual.buffer import CondensedBuffer
from apps.continual.compressed_buffer import CompressedBuffer
from tests.apps.continual.test_buffer import naive

STREAM = class_incremental(toy(classes=4, channels=3), 2, 0)
IMAGE = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))


def read(buffer: Any) -> Tensor:
    return torch.stack([buffer.buffer[place][0] for place in range(len(buffer.buffer))])


def test_each_reading_is_another_image_and_the_evaluation_view_is_the_stored_one() -> None:
    spec, first = STREAM[0].spec, benchmark(STREAM).train_stream[0]
    plain = {"mean": spec.mean, "std": spec.std, "transform": "dsa"}
    for buffer in (CondensedBuffer(8, "random", **plain), CompressedBuffer(8, "zlib", class_bytes=2000, **plain)):  # type: ignore[arg-type]
        buffer.post_adapt(naive(STREAM[0]), first)
        once, again = read(buffer), read(buffer)
        assert once.shape == again.shape
        changed = [not torch.equal(one, other) for one, other in zip(once, again, strict=True)]
        assert sum(changed) > len(changed) / 2, "two draws may be alike (a flip or none), not most of them"
        stored = torch.stack([buffer.buffer.eval()[place][0] for place in range(len(once))])
        expected = buffer.memory.images if isinstance(buffer, CondensedBuffer) else buffer.memory.condensed(spec).images
        assert torch.allclose(stored, expected, atol=1e-5)


def test_digits_are_not_flipped() -> None:
    assert Augmented("mnist", 0, 0).strategy == strategy(DSA_DIGITS) != strategy(DSA)
    assert Augmented("stream", 0, 0).strategy == strategy(DSA)


def test_a_run_that_is_started_again_sees_the_same_images(tmp_path: Path) -> None:
    """The second experience reads the memory of the first: after a restart from the folder, and from the beginning."""
    experiences, agent = benchmark(STREAM).train_stream, naive(STREAM[0])
    whole = CondensedBuffer(8, "random", seed=3, folder=tmp_path, transform="dsa")
    whole.post_adapt(agent, experiences[0])
    first = read(whole)
    resumed = CondensedBuffer.resume(tmp_path, like=experiences[0], transform="dsa")
    assert torch.equal(read(resumed), first)
    resumed.post_adapt(agent, experiences[1])
    whole.post_adapt(agent, experiences[1])
    second = read(resumed)
    assert torch.equal(second, read(whole))
    other = CondensedBuffer(8, "random", seed=4, transform="dsa")
    other.memory.groups, other.memory.experiences, other._layout = whole.memory.groups, 2, whole._layout
    assert not torch.equal(read(other), second)


def test_copies_continue_where_they_were_and_do_not_share_a_state() -> None:
    made = Augmented("stream", 0, 0)
    made(IMAGE)
    copies = [pickle.loads(pickle.dumps(made)), copy.deepcopy(made), made]
    series = [torch.stack([one(IMAGE) for _ in range(6)]) for one in copies]
    assert all(torch.equal(one, series[0]) for one in series)


class Same(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self) -> None:
        self.transform = Augmented("stream", 0, 0)

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Tensor:
        return self.transform(IMAGE)


def test_workers_do_not_draw_alike() -> None:
    """Eight readings of one image by two workers, twice; the same again from the same loader's seed."""

    def readings(seed: int) -> Tensor:
        loader = DataLoader(Same(), batch_size=4, num_workers=2, generator=torch.Generator().manual_seed(seed))
        return torch.cat([batch for _ in range(2) for batch in loader])

    images = readings(0)
    epochs, workers = images.split(8), images[:8].split(4)
    assert not torch.equal(*epochs)
    assert not torch.equal(*workers)
    assert len({image.numpy().tobytes() for image in images}) > 8, "two draws may be alike (a flip or none)"
    assert torch.equal(images, readings(0))


def test_no_global_generator_is_drawn_from_and_a_wrong_text_is_refused() -> None:
    with quiet_and_seeded(0):
        state = torch.get_rng_state()
        Augmented("stream", 0, 0)(IMAGE)
        assert torch.equal(torch.get_rng_state(), state)
    for kind in (CondensedBuffer, lambda size, **named: CompressedBuffer(size, "zlib", class_bytes=99, mean=(0.5,), std=(0.2,), **named)):
        with pytest.raises(InputError, match=r"transform is 'flip'; allowed: a function .* \"dsa\", or None"):
            kind(8, transform="flip")  # type: ignore[operator]
