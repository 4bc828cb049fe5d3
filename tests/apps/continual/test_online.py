"""The online form and what is kept between runs: all known classes together, tasks apart, nothing lost; and planted bugs of each kind."""

import copy
import dataclasses
import json
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import safetensors.torch
import torch

from apps.continual import memory_file, pools
from apps.continual.engine import avalanche, quiet_and_seeded
from apps.continual.exemplars import by_class
from apps.continual.memory import Memory, MemoryConfig
from apps.continual.memory_file import load
from apps.continual.online import Queue, online_memories
from apps.continual.strategies import Training, benchmark, learn
from apps.continual.streams import class_incremental
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from tests.apps.continual.test_memory import QUICK, experience
from tests.conftest import toy

pytest.importorskip("avalanche")
from apps.continual.buffer import CondensedBuffer, attach, outputs
from apps.continual.online_buffer import OnlineCondensedBuffer
from tests.apps.continual.test_buffer import DM, naive, strategy

FOUR = toy(classes=4)
REAL = experience(FOUR, 0, 1, 2, 3)[0]
GRADIENTS = ("gm", "dsa", "mtt")


def stolen(memory: Memory) -> int:
    """How many stored images are real ones, bit by bit."""
    return sum(any(torch.equal(image, real) for real in REAL) for image in memory.images)


def shuffled(size: int, seed: int = 0) -> list[tuple[torch.Tensor, torch.Tensor]]:
    images, labels = experience(FOUR, 0, 1, 2, 3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    return [(images[part], labels[part]) for part in order.split(size)]


# Each check is a test of its own, and must fail with the bug that is planted in it below.


def check_no_real_image_under_a_methods_name(method: str = "gm") -> None:
    for online in (False, True):
        memory = Memory(MemoryConfig(method, per_class=2, settings=QUICK[method]))
        for label in range(3):  # one class an experience: alone, it has no loss
            part = experience(FOUR, label)
            memory.merge(*part) if online else memory.observe(*part, progress=False)
        assert memory.labels.tolist() == [0, 0, 1, 1, 2, 2]
        assert stolen(memory) == memory.kept == 0


def check_tasks_are_kept_apart() -> None:
    """Class 0 of two tasks (class ids from zero), and a queue that spans their boundary."""
    buffer = OnlineCondensedBuffer(8, "random", per_class=2, queue=100, every=7)
    images, labels = experience(FOUR, 0, 1, 2, 3)
    for mini in range(12):  # classes 0 and 1 as task 0, then 2 and 3 as classes 0 and 1 of task 1
        place, task = [mini, mini + 12] if mini < 6 else [mini + 24, mini + 36], int(mini >= 6)
        buffer.post_adapt(None, SimpleNamespace(dataset=_experience(images[place], labels[place] - 2 * task, task)))
    buffer.flush()
    assert sorted((g.task, g.label, len(g)) for g in buffer.memory.groups) == [(0, 0, 2), (0, 1, 2), (1, 0, 2), (1, 1, 2)]
    for group in buffer.memory.groups:
        own = experience(FOUR, group.label + 2 * group.task)[0]
        assert all(any(torch.equal(image, real) for real in own) for image in group.images)
    assert sorted((int(x[1]), int(x[2])) for x in buffer.buffer) == sorted(
        (g.label, g.task) for g in buffer.memory.groups for _ in range(2)
    )


def check_nothing_is_dropped(size: int = 20) -> None:
    """48 images in parts of 20 through a queue of 24, and a rest that waits at the end."""
    buffer = OnlineCondensedBuffer(8, "random", per_class=2, queue=24, every=6)
    for images, labels in shuffled(size):
        buffer.post_adapt(None, SimpleNamespace(dataset=_experience(images, labels, 0)))
        assert len(buffer.queue) < 24
    buffer.flush()
    assert sum(group.seen for group in buffer.memory.groups) == 48
    assert sorted(buffer.memory.labels.tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert buffer.queue_nbytes == 0


def check_outputs_are_there_after_a_stop(folder: Path) -> None:
    """DER from ``folder`` and from `load`, a new process each time: items have four fields, and the outputs are the model's."""
    stream = class_incremental(toy(classes=4, channels=3), 2, 0)
    experiences = benchmark(stream).train_stream
    first = _der(stream, CondensedBuffer(8, "random", per_class=2, folder=folder))
    with quiet_and_seeded(0):
        first.train(experiences[0])
    state = {name: value.clone() for name, value in first.model.state_dict().items()}
    expected = outputs(first.model, first.storage_policy.memory.images, "cpu")
    saved = memory_file.load(folder / "memory-0.safetensors")
    assert all(group.logits is not None for group in saved.groups), "written before the outputs were there"
    for path in (folder, _without_outputs(saved, folder / "old.safetensors")):
        buffer = CondensedBuffer(8, "random", per_class=2)
        buffer.load(path, like=experiences[0])
        again = _der(stream, buffer)
        again.model.load_state_dict(state)  # after attach: outputs are those of the model that goes on
        items = again.storage_policy.buffer
        assert torch.allclose(torch.stack([item[3] for item in items]), expected, atol=1e-6)
        with quiet_and_seeded(1):
            again.train(experiences[1])
        assert all(len(item) == 4 for item in buffer.buffer)


def check_what_does_not_divide_is_dealt_out() -> None:
    """7, 23 and 50 items over 2, 4 and 6 groups: all are used, and nobody's share ever grows."""
    for items in (7, 23, 50):
        memory, before = Memory(MemoryConfig("random", items=items)), [items] * 6
        for groups in range(1, 7):
            shares = memory.shares(groups, (1, 8, 8))
            assert sum(shares) == items
            assert max(shares) - min(shares) <= 1
            assert all(now <= then for now, then in zip(shares, before, strict=False))
            before = shares
        if items < 50:  # four classes of twelve images
            for pair in ((0, 1), (2, 3)):
                memory.observe(*experience(FOUR, *pair))
            assert len(memory) == items


def check_queue_and_clock_are_saved(folder: Path) -> None:
    """Stopped after 3 of 12 mini-experiences (condensed every second), and continued: the same bits as without the stop."""
    parts = [SimpleNamespace(dataset=_experience(images, labels, 0)) for images, labels in shuffled(4)]

    def new() -> OnlineCondensedBuffer:
        return OnlineCondensedBuffer(8, "gm", per_class=2, queue=30, every=2, **QUICK["gm"])

    whole, stopped = new(), new()
    for part in parts[:5]:
        whole.post_adapt(None, part)
    for part in parts[:3]:
        stopped.post_adapt(None, part)
    assert len(stopped.queue) == 4
    stopped.save(folder / "b.safetensors")
    again = new()
    again.load(folder / "b.safetensors", like=parts[0])
    for part in parts[3:5]:
        again.post_adapt(None, part)
    for buffer in (whole, again):
        assert len(buffer.queue) == 4, "the clock"
        buffer.flush()
    assert torch.equal(whole.memory.images, again.memory.images)
    assert [g.seen for g in whole.memory.groups] == [g.seen for g in again.memory.groups]


def _experience(images: torch.Tensor, labels: torch.Tensor, task: int | list[int]) -> Any:
    """A data set of Avalanche with items (x, y, task)."""
    utils = avalanche("avalanche.benchmarks.utils")
    items = torch.utils.data.TensorDataset(images)
    items = [(image, int(label)) for (image,), label in zip(items, labels, strict=True)]
    tasks = task if isinstance(task, list) else [task] * len(items)
    described = [utils.DataAttribute([label for _, label in items], "targets"), utils.TaskLabels(tasks)]
    return utils.TaskAwareSupervisedClassificationDataset([_List(items)], data_attributes=described)


class _List(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, items: list[Any]) -> None:
        self.items, self.targets = items, [label for _, label in items]

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


def _der(stream: list[ImageData], buffer: CondensedBuffer) -> Any:
    return attach(strategy("DER", stream[0], mem_size=8, batch_size_mem=2), buffer)


def _without_outputs(memory: Memory, path: Path) -> Path:
    """As a run without DER, or an older version, wrote it."""
    bare = Memory(memory.config)
    bare.groups = [dataclasses.replace(g, logits=None) for g in memory.groups]
    bare.experiences, bare.history = memory.experiences, memory.history
    memory_file.save(bare, path)
    return path


CHECKS: dict[str, Callable[[Path], None]] = {
    "real images": lambda _: check_no_real_image_under_a_methods_name(),
    "tasks": lambda _: check_tasks_are_kept_apart(),
    "queue": lambda _: check_nothing_is_dropped(),
    "outputs": check_outputs_are_there_after_a_stop,
    "dealt out": lambda _: check_what_does_not_divide_is_dealt_out(),
    "clock": check_queue_and_clock_are_saved,
}


@pytest.mark.parametrize("name", CHECKS)
def test_the_online_form_holds(name: str, tmp_path: Path) -> None:
    CHECKS[name](tmp_path)


def by_label(images: torch.Tensor, labels: torch.Tensor, tasks: torch.Tensor) -> Any:
    return by_class(images, labels, torch.full_like(tasks, int(tasks.max())))


class Dropping(Queue):
    def add(self, images: torch.Tensor, labels: torch.Tensor, tasks: torch.Tensor | None = None) -> Any:
        self.calls += 1
        kept = self.waiting if self.waiting is not None else (images[:0], labels[:0], labels[:0])
        more = images, labels, torch.zeros_like(labels)
        self.waiting = tuple(torch.cat(pair)[-self.size + 1 :] for pair in zip(kept, more, strict=True))  # type: ignore[assignment]
        return self.flush() if self.calls % self.every == 0 else None


def floored(self: Memory, groups: int, shape: Any) -> list[int]:
    assert self.config.items is not None
    return [self.config.items // groups] * groups


BUGS: list[tuple[str, str, Any]] = [
    ("real images", "apps.continual.condensing.class_by_class", lambda method, settings=None: method in ("gm", "dm")),
    ("tasks", "apps.continual.memory.by_class", by_label),
    ("queue", "apps.continual.online_buffer.Queue", Dropping),
    ("queue", "apps.continual.online_buffer.OnlineCondensedBuffer.flush", lambda self, agent=None: None),
    ("outputs", "apps.continual.buffer.CondensedBuffer._attach_logits", lambda self, agent: None),
    ("outputs", "apps.continual.memory.Memory.with_logits", lambda self, number, outputs: None),
    ("dealt out", "apps.continual.memory.Memory.shares", floored),
    ("clock", "apps.continual.memory_file._queue", lambda said, memory, tensors: None),
    ("clock", "apps.continual.online_buffer.OnlineCondensedBuffer.save", CondensedBuffer.save),
]


@pytest.mark.parametrize(("name", "where", "bug"), BUGS, ids=[f"{name}-{where.rpartition('.')[2]}" for name, where, _ in BUGS])
def test_a_planted_bug_is_caught(name: str, where: str, bug: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(where, bug)
    if name == "real images":
        for module in ("memory", "pools"):
            monkeypatch.setattr(f"apps.continual.{module}.class_by_class", bug)
    with pytest.raises((AssertionError, InputError, ValueError, IndexError)):
        CHECKS[name](tmp_path)


@pytest.mark.parametrize("method", ["dsa", "mtt"])
def test_other_methods_that_compare_classes(method: str) -> None:
    check_no_real_image_under_a_methods_name(method)


def test_classes_without_recent_images_are_seen_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    """The matching network has an output for every class known; stored images of the others take part, and are not touched."""
    seen: list[int] = []
    real = pools.condense_images

    def watched(images: torch.Tensor, labels: torch.Tensor, *given: Any, **options: Any) -> Any:
        seen.append(len(labels.unique()))
        return real(images, labels, *given, **options)

    monkeypatch.setattr(pools, "condense_images", watched)
    for method, expected in (("gm", [2, 3, 3]), ("dm", [2, 1, 1])):
        memory, seen[:] = Memory(MemoryConfig(method, per_class=2, settings=QUICK[method])), []
        memory.merge(*experience(FOUR, 0, 2))
        before = memory.images.clone()
        memory.merge(*experience(FOUR, 1))
        images, labels = experience(FOUR, 1)
        memory.merge(images[:3], labels[:3])
        assert seen == expected
        assert torch.equal(memory.images[:4], before)
        assert memory.labels.tolist() == [0, 0, 2, 2, 1, 1]


def test_classes_that_came_alone_are_condensed_again_together(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    real = pools.condense_images

    def counted(*given: Any, **named: Any) -> Any:
        calls.append(len(given[1].unique()))
        return real(*given, **named)

    monkeypatch.setattr(pools, "condense_images", counted)
    memory = Memory(MemoryConfig("gm", items=12, settings=QUICK["gm"]))
    for label in range(4):
        memory.observe(*experience(FOUR, label), progress=False)
    # New with the others known, old ones; the first keeps its twelve images, and is condensed when the second comes.
    assert calls == [2, 2, 3, 2, 4, 3]
    assert [len(group) for group in memory.groups] == [3, 3, 3, 3]
    assert stolen(memory) == memory.kept == 0


def test_a_class_with_no_more_images_than_its_share_keeps_them_and_the_memory_says_so() -> None:
    """12 images of class 0, two of class 1, four places each: nothing to condense in class 1, until more come."""
    images, labels = experience(FOUR, 0, 1)
    few = torch.cat([torch.arange(12), torch.tensor([12, 13])])
    for method in ("gm", "dm"):
        for online in (False, True):
            memory = Memory(MemoryConfig(method, per_class=4, settings=QUICK[method]))
            fill = memory.merge if online else memory.observe
            fill(images[few], labels[few], progress=False)
            assert [len(group) for group in memory.groups] == [4, 2]
            assert stolen(memory) == memory.kept == 2
            assert memory.condensed(FOUR.spec).provenance.config["kept"] == 2
        memory.merge(images[14:], labels[14:])
        assert [len(group) for group in memory.groups] == [4, 4]
        assert stolen(memory) == memory.kept == 0


def test_a_mixed_experience_keeps_its_tasks_in_the_offline_form_too() -> None:
    images, labels = experience(FOUR, 0, 1)
    tasks = torch.arange(len(labels)) % 2
    memory = Memory(MemoryConfig("random", per_class=3))
    memory.observe(images, labels, task=tasks)
    assert [(g.task, g.label, len(g)) for g in memory.groups] == [(0, 0, 3), (0, 1, 3), (1, 0, 3), (1, 1, 3)]
    again = CondensedBuffer(12, "random", per_class=3)
    again.post_adapt(None, SimpleNamespace(dataset=_experience(images, labels, tasks.tolist())))
    assert sorted((int(x[2]), int(x[1])) for x in again.buffer) == sorted((g.task, g.label) for g in memory.groups for _ in range(3))


def test_classes_that_come_back() -> None:
    """Kept separate, each experience adds a group, and the error for a full budget names what joins them; nothing is lost in merging."""
    memory = Memory(MemoryConfig("random", items=5, returning="separate"))
    for _ in range(2):
        memory.observe(*experience(FOUR, 0, 1))
    with pytest.raises(InputError, match=r'6 groups of 2 classes .* returning="merge" joins them'):
        memory.observe(*experience(FOUR, 0, 1))
    memory.merge(*experience(FOUR, 2))
    assert [(g.label, len(g), g.seen) for g in memory.groups] == [(0, 2, 24), (1, 2, 24), (2, 1, 12)]


@pytest.mark.parametrize("method", ["herding", "kcenter"])
def test_a_greedy_selection_is_cut_and_not_selected_again(method: str) -> None:
    """The smaller selection from all images is a prefix of the larger one."""
    shrunk, whole = Memory(MemoryConfig(method, items=8)), Memory(MemoryConfig(method, per_class=2))
    for memory in (shrunk, whole):
        memory.observe(*experience(FOUR, 0, 1))
        memory.observe(*experience(FOUR, 2, 3))
    assert torch.equal(shrunk.images, whole.images)


def test_the_end_of_a_stream_is_not_lost() -> None:
    """Twice 6 mini-batches of 4, every 7: what waits is merged after the first, where the memory would be empty, and at the end."""
    images, labels = experience(FOUR, 0, 1, 2, 3)
    parts = [(images[labels < 2], labels[labels < 2]), (images[labels > 1], labels[labels > 1])]
    seen = [
        sum(group.seen for group in memory.groups)
        for memory in online_memories(parts, MemoryConfig("random", per_class=2), mini=4, queue=64, every=7, seed=0)
    ]
    assert seen == [24, 48]
    data = toy(classes=4, channels=3)
    stream = class_incremental(data, 2, 0)
    buffer = OnlineCondensedBuffer(8, "random", per_class=2, queue=64, every=7)
    rows = list(learn("replay", stream, "ConvNetD1W8", Training(epochs=1, batch_size=8, batch_size_mem=4), 0, buffer=buffer, mini=4))
    assert len(rows) == 2
    assert sum(group.seen for group in buffer.memory.groups) == 48


def test_gdumb_has_something_to_learn_from_in_the_first_mini_experience() -> None:
    plugins = avalanche("avalanche.training.plugins")
    buffer = OnlineCondensedBuffer(8, per_class=2, **DM)
    made = attach(naive(FOUR, [plugins.GDumbPlugin(mem_size=8)]), buffer)
    with quiet_and_seeded(0):
        for images, labels in shuffled(8)[:2]:
            stream = avalanche("avalanche.benchmarks").benchmark_from_datasets(train=[_experience(images, labels, 0)]).train_stream
            made.train(stream[0])
    assert len(buffer.buffer) > 0
    assert len(buffer.queue) == 8


def test_der_online_stores_outputs_when_it_merges_and_when_it_is_flushed() -> None:
    stream = class_incremental(toy(classes=4, channels=3), 2, 0)
    buffer = OnlineCondensedBuffer(8, "random", per_class=2, queue=64, every=4)
    made = _der(stream, buffer)
    online = avalanche("avalanche.benchmarks.scenarios.online").split_online_stream(benchmark(stream).train_stream, 4, seed=0)
    for part, _ in zip(online, range(6), strict=False):
        with quiet_and_seeded(0):
            made.train(part)
    assert len(buffer.queue) == 8
    buffer.flush()
    assert all(len(item) == 4 for item in buffer.buffer)
    buffer.learner = None
    buffer.post_adapt(made, SimpleNamespace(dataset=benchmark(stream).train_stream[0].dataset, current_experience=0))
    if len(buffer.queue):
        with pytest.raises(InputError, match=r"call flush\(strategy\)"):
            buffer.flush()
    buffer.flush(made)
    assert all(group.logits is not None for group in buffer.memory.groups)


def test_a_run_that_skips_what_is_finished_goes_on_from_the_folder(tmp_path: Path) -> None:
    """The experience that is next is in the folder: found. It is not: one line names `load`, which takes the folder's last memory."""
    stream = class_incremental(toy(classes=4, channels=3), 2, 0)
    experiences = benchmark(stream).train_stream
    first = CondensedBuffer(8, "random", per_class=2, folder=tmp_path)
    for experience_ in experiences:
        first.post_adapt(None, experience_)
    again = CondensedBuffer(8, "random", per_class=2, folder=tmp_path)
    again.post_adapt(None, experiences[1])
    assert torch.equal(again.memory.images, first.memory.images)
    (tmp_path / "memory-1.safetensors").unlink()
    third = CondensedBuffer(8, "random", per_class=2, folder=tmp_path)
    with pytest.raises(InputError, match=r"finished experiences are skipped.*load\('.*memory-0\.safetensors', like=experience\)"):
        third.post_adapt(None, experiences[1])
    third.load(tmp_path, like=experiences[1])
    third.post_adapt(None, experiences[1])
    assert torch.equal(third.memory.images, first.memory.images)
    assert torch.equal(load(tmp_path / "memory-1.safetensors").images, first.memory.images)
    with pytest.raises(InputError, match=r"other settings \(items 8, here 9\)"):
        CondensedBuffer(9, "random", per_class=2).load(tmp_path, like=experiences[0])
    with pytest.raises(InputError, match=r"its items differ"):
        CondensedBuffer(9, "random", per_class=2, folder=tmp_path).post_adapt(None, experiences[0])


def test_files_of_the_first_format_and_files_with_a_queue(tmp_path: Path) -> None:
    buffer = OnlineCondensedBuffer(8, "random", per_class=2, queue=64, every=2)
    parts = [SimpleNamespace(dataset=_experience(images, labels, 0)) for images, labels in shuffled(8)]
    for part in parts[:3]:
        buffer.post_adapt(None, part)
    path = tmp_path / "b.safetensors"
    buffer.save(path)
    with pytest.raises(InputError, match=r"8 images wait in its queue .* OnlineCondensedBuffer"):
        CondensedBuffer(8, "random", per_class=2).load(path, like=parts[0])
    with pytest.raises(InputError, match="was saved with queue=64, every=2; here: queue=64"):
        OnlineCondensedBuffer(8, "random", per_class=2).load(path, like=parts[0])
    tensors, header = _opened(path)
    for change in ({"waiting": False}, {"calls": 5}, {"size": 8}, {"size": 0}):
        path.write_bytes(safetensors.torch.save(tensors, {"memory": json.dumps({**header, "queue": {**header["queue"], **change}})}))
        with pytest.raises(InputError, match=r"b\.safetensors: "):
            memory_file.load_online(path)
    old = Memory(MemoryConfig("random", items=8, per_class=2))
    old.observe(*experience(FOUR, 0, 1))
    memory_file.save(old, path)
    tensors, header = _opened(path)
    for group in header["groups"]:
        del group["kept"]
    path.write_bytes(safetensors.torch.save(tensors, {"memory": json.dumps({**header, "format": 1})}))
    again = OnlineCondensedBuffer(8, "random", per_class=2, queue=64, every=2)
    again.load(path, like=parts[0])
    assert torch.equal(again.memory.images, old.images)
    assert len(again.queue) == 0


def _opened(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    return safetensors.torch.load(content), json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["memory"])


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"iteratons": 3}, "did you mean 'iterations'"),
    ({"iterations": 0}, "key 'iterations' is 0"),
    ({"network": "ConvNetW3x"}, "ConvNetW3x"),
    ({"lr_img": "high"}, "key 'lr_img' is \"high\"; allowed: a number"),
    ({"initial": "noice"}, "did you mean 'noise'"),
    ({"ipc": 3}, "ipc"),
    ({"per_class": 50}, "30 items for all classes and 50 for one"),
    ({"max_bytes": 10}, "has 10 bytes in all"),
    ({"max_bytes": 0}, "nbytes is 0"),
    ({"device": "gpu"}, "device is 'gpu'"),
    ({"device": 3.5}, "device is '3.5'"),
    ({"transform": "flip"}, "transform is 'flip'; allowed: a function"),
    ({"mean": (0.5,), "std": (0.0,)}, "std above 0"),
    ({"mean": (0.5,), "std": ("1",)}, "finite numbers"),
    ({"seed": "0"}, "seed is '0'"),
    ({"progress": "yes"}, "progress is 'yes'"),
    ({"folder": 3}, "folder is '3'"),
    ({"folder": f"{__file__}/memories"}, "cannot be written"),
    ({"device": "meta"}, "device is 'meta'"),
    ({"data_name": ""}, "name is ''"),
    ({"data_name": "x" * 300}, "1 to 200 characters"),
    ({"mean": (), "std": ()}, "a number for each channel"),
    ({"mean": (True,), "std": (True,)}, "allowed: finite numbers"),
    ({"folder": "x", "network": lambda spec: None}, "network is a function"),
    ({"mean": torch.zeros(1), "std": torch.ones(1)}, "allowed: tuples of numbers"),
    ({"method": 5}, "memory's method"),
    ({"method": "mtt", "soft_labels": True}, "leave soft_labels out"),
]


@pytest.mark.parametrize(("options", "match"), WRONG)
def test_wrong_settings_are_found_by_the_constructor(options: dict[str, Any], match: str) -> None:
    for kind in (CondensedBuffer, OnlineCondensedBuffer):
        with pytest.raises(InputError, match=match if kind is CondensedBuffer or "folder" not in options else "leave folder out") as caught:
            kind(30, **options)
        assert "\n" not in str(caught.value)


def test_a_size_cannot_be_raised_and_what_cannot_be_saved_says_so(tmp_path: Path) -> None:
    buffer = CondensedBuffer(8, per_class=2, **{**DM, "network": lambda spec: create("ConvNetD1W8", spec, generator(0, "own"))})
    with pytest.raises(InputError, match="8 items cannot become one of 10"):
        buffer.max_size = 10
    with pytest.raises(InputError, match="network is a function, which a file cannot hold"):
        buffer.save(tmp_path / "b.safetensors")
    for wrong in (0, -1, 2.0, True, "8"):
        with pytest.raises(InputError, match="max_size is"):
            CondensedBuffer(wrong)
    for queue, every in ((0, 6), (64, 0), (2.5, 6), (64, "6")):
        with pytest.raises(InputError, match="whole numbers of 1 or more"):
            OnlineCondensedBuffer(8, queue=queue, every=every)


def test_wrong_labels_and_a_stream_that_changes_its_shape() -> None:
    images, labels = experience(FOUR, 0, 1)
    memory = Memory(MemoryConfig("random", items=8))
    for wrong in (labels - 1, labels + 10**10, labels.int()):
        for fill in (memory.observe, memory.merge):
            with pytest.raises(InputError, match=r"an experience's labels are .* allowed: int64"):
                fill(images, wrong)
    for fill in (memory.observe, memory.merge):
        with pytest.raises(InputError, match="not finite"):
            fill(images / 0, labels)
    queue = Queue(10, 6)
    queue.add(images[:2], labels[:2])
    with pytest.raises(InputError, match="one stream, one image shape"):
        queue.add(images[:2, :, :4], labels[:2])


@pytest.mark.parametrize("kind", [CondensedBuffer, OnlineCondensedBuffer])
def test_an_experience_without_items_changes_nothing(kind: type[CondensedBuffer]) -> None:
    images, labels = experience(FOUR, 0, 1)
    none, some = (SimpleNamespace(dataset=_experience(images[:count], labels[:count], 0)) for count in (0, len(labels)))
    buffer = kind(8, "random", seed=1)
    buffer.post_adapt(None, none)
    buffer.update_from_dataset(none.dataset)
    assert len(buffer.buffer) == 0
    for experience_now in (some, none, some, none):
        buffer.post_adapt(None, experience_now)
    assert sum(group.seen for group in buffer.memory.groups) + len(getattr(buffer, "queue", ())) == 2 * len(labels)


def test_what_waits_stays_where_merging_fails() -> None:
    """No room for a third class: one line, and the queue and the memory are as they were."""
    buffer = OnlineCondensedBuffer(4, "random", per_class=2, queue=64, every=2)
    first, second, third = (SimpleNamespace(dataset=_experience(*experience(FOUR, *classes), 0)) for classes in ((0, 1), (0,), (2,)))
    buffer.post_adapt(None, first)
    buffer.post_adapt(None, first)
    buffer.post_adapt(None, second)
    before = buffer.memory.images.clone()
    for _ in range(2):
        with pytest.raises(InputError, match="no room for 2 items in each of 3 classes"):
            buffer.post_adapt(None, third)
        assert len(buffer.queue) == 12
        assert torch.equal(buffer.memory.images, before)
    buffer.flush()
    assert [group.seen for group in buffer.memory.groups] == [36, 24]


def test_a_copy_of_a_buffer_is_whole_and_takes_no_network_along() -> None:
    stream = class_incremental(toy(classes=4, channels=3), 2, 0)
    buffer = CondensedBuffer(8, "random", per_class=2)
    _der(stream, buffer)
    buffer.update_from_dataset(_experience(*experience(FOUR, 0, 1), 0))
    buffer.learner = naive(FOUR)
    for again in (copy.deepcopy(buffer), pickle.loads(pickle.dumps(buffer))):
        assert again.learner is None
        assert torch.equal(again.memory.images, buffer.memory.images)
        assert [item[1] for item in again.buffer] == [0, 0, 1, 1]


def test_a_random_evaluation_view_is_warned_about() -> None:
    class Noisy(_List):
        def __getitem__(self, index: int) -> Any:
            self.count = getattr(self, "count", 0) + 1
            return self.items[index][0] + self.count, self.items[index][1]

    images, labels = experience(FOUR, 0, 1)
    utils = avalanche("avalanche.benchmarks.utils")
    items = Noisy(list(zip(images, labels.tolist(), strict=True)))
    dataset = utils.TaskAwareSupervisedClassificationDataset(
        [items], data_attributes=[utils.DataAttribute(items.targets, "targets"), utils.TaskLabels([0] * len(items))]
    )
    with pytest.warns(UserWarning, match="another image each time"):
        CondensedBuffer(8, "random").post_adapt(None, SimpleNamespace(dataset=dataset))


def test_groups_as_avalanches_balanced_buffers_offer_them() -> None:
    buffer = CondensedBuffer(8, "random", per_class=2)
    assert buffer.buffer_groups == {}
    assert buffer.buffer_datasets == []
    buffer.update_from_dataset(_experience(*experience(FOUR, 0, 1), 0))
    buffer.update_from_dataset(_experience(*experience(FOUR, 0, 3), 1))
    assert {label: len(group.buffer) for label, group in buffer.buffer_groups.items()} == {0: 4, 1: 2, 3: 2}
    assert all({int(y) for y in part.targets} == {label} for label, part in zip((0, 1, 3), buffer.buffer_datasets, strict=True))
