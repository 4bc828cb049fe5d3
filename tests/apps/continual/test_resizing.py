"""A budget that becomes smaller, and what Avalanche's own tests ask of a buffer."""

import pickle
from pathlib import Path

import pytest
import torch

from apps.continual.engine import quiet_and_seeded
from apps.continual.memory import Memory, MemoryConfig
from apps.continual.memory_file import load, save
from apps.continual.resizing import resize
from apps.continual.strategies import benchmark
from apps.continual.streams import class_incremental
from distill.errors import InputError
from tests.apps.continual.test_memory import QUICK, experience
from tests.conftest import toy

pytest.importorskip("avalanche")
from apps.continual.buffer import CondensedBuffer, attach, outputs
from apps.continual.online_buffer import OnlineCondensedBuffer
from tests.apps.continual.test_buffer import naive, strategy

FOUR = toy(classes=4)
METHODS = ["random", "herding", "kcenter", "kmeans", "class_mean", *QUICK]


def filled(method: str, **budget: int) -> Memory:
    memory = Memory(MemoryConfig(method, settings=QUICK.get(method, {}), **budget))  # type: ignore[arg-type]
    for classes in ((0, 1), (2, 3)):
        memory.observe(*experience(FOUR, *classes), progress=False)
    return memory


@pytest.mark.parametrize("method", METHODS)
def test_a_smaller_budget_is_used_and_condensed_not_cut(method: str) -> None:
    """13 items of four classes become 7: two for each of the three oldest classes, one for the last."""
    memory = filled(method, items=13)
    before = {group.label: group.images for group in memory.groups}
    assert [len(group) for group in memory.groups] == [4, 3, 3, 3]
    resize(memory, 7, progress=False)
    assert [(group.label, len(group), group.seen) for group in memory.groups] == [(0, 2, 12), (1, 2, 12), (2, 2, 12), (3, 1, 12)]
    assert memory.config.items == 7
    for group in memory.groups:
        old = before[group.label]
        if method in ("herding", "kcenter"):
            assert torch.equal(group.images, old[: len(group)]), "the beginning of a greedy selection is the smaller one"
        elif method in ("random", "kmeans"):
            assert all(any(torch.equal(image, one) for one in old) for image in group.images)
        elif method == "class_mean" and len(group) == 1:
            assert torch.allclose(group.images[0], old.mean(0), atol=1e-5)
        else:
            assert not torch.equal(group.images, old[: len(group)])
    memory.observe(*experience(FOUR, 0, 1), progress=False)
    assert len(memory) == 7


def test_a_fixed_share_stays_and_what_has_no_room_changes_nothing() -> None:
    memory = filled("random", items=20, per_class=2)
    images = memory.images.clone()
    resize(memory, 8)
    assert torch.equal(memory.images, images)
    with pytest.raises(InputError, match="no room for 2 items in each of 4 classes"):
        resize(memory, 7)
    assert memory.config.items == 8
    shared = filled("random", items=8)
    history = shared.history
    with pytest.raises(InputError, match="no room for 1 item in each of 4 classes"):
        resize(shared, 3)
    assert (shared.config.items, shared.history, len(shared)) == (8, history, 8)
    with pytest.raises(InputError, match="memory of None items"):
        resize(Memory(MemoryConfig("random", per_class=2)), 3)


def test_an_empty_memory_and_the_same_size() -> None:
    memory = Memory(MemoryConfig("random", items=8))
    history = memory.history
    resize(memory, 8)
    assert memory.history == history
    resize(memory, 4)
    memory.observe(*experience(FOUR, 0, 1))
    assert len(memory) == 4


def test_a_resized_memory_is_saved_and_continues(tmp_path: Path) -> None:
    memory = filled("dm", items=12)
    resize(memory, 8, progress=False)
    save(memory, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.history == memory.history != filled("dm", items=8).history
    for one in (memory, again):
        one.observe(*experience(FOUR, 0, 2), progress=False)
    assert torch.equal(memory.images, again.images)


def test_a_buffer_is_resized_in_training_and_der_gets_new_outputs() -> None:
    stream = class_incremental(toy(classes=4, channels=3), 2, 0)
    buffer = CondensedBuffer(12, "kmeans")
    der = attach(strategy("DER", stream[0], mem_size=12, batch_size_mem=4), buffer)
    first, second = benchmark(stream).train_stream
    with quiet_and_seeded(0):
        der.train(first)
    buffer.max_size = 6
    assert (buffer.max_size, len(buffer.buffer)) == (6, 6)
    expected = outputs(der.model, buffer.memory.images, "cpu")
    assert torch.allclose(torch.stack([item[3] for item in buffer.buffer]), expected, atol=1e-5)
    with quiet_and_seeded(0):
        der.train(second)
    assert len(buffer.buffer) == 6
    online = OnlineCondensedBuffer(8, "random", every=1)
    online.post_adapt(None, first)
    online.resize(None, 5)
    assert len(online.buffer) == 5


def test_what_avalanches_own_tests_ask_of_a_buffer() -> None:
    """Full at every moment, balanced, of constant depth, a data set that can be cut and joined, and one that can be copied."""
    data = toy(classes=6, channels=3, per_class=30)
    for size in (18, 23, 25):
        buffer, depths = CondensedBuffer(size, "random"), set[int]()
        for part in benchmark(class_incremental(data, 3, 0)).train_stream:
            buffer.post_adapt(naive(data), part)
            assert len(buffer.buffer) == size, "full, whatever does not divide"
            sizes = [len(group.buffer) for group in buffer.buffer_groups.values()]
            assert max(sizes) - min(sizes) <= 1
            assert sorted(label for label, group in buffer.buffer_groups.items() for _ in range(len(group.buffer))) == sorted(
                int(label) for label in buffer.buffer.targets
            )
            depths.add(buffer.buffer._flat_data._tree_depth())
        assert len(depths) == 1
        some = buffer.buffer.subset([0, size - 1])
        assert torch.equal(some[1][0], buffer.buffer[size - 1][0])
        assert len(part.dataset.concat(some)) == len(part.dataset) + 2
        again = pickle.loads(pickle.dumps(buffer))
        assert torch.equal(again.memory.images, buffer.memory.images)
