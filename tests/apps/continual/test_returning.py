"""Classes that come back in the offline form: one group a class, past and present weighed by what they stand for."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import Tensor

from apps.continual import pools
from apps.continual.memory import Memory, MemoryConfig
from apps.continual.memory_file import load, observe
from apps.continual.pools import interleaved, places_of_recent, weighed
from apps.continual.returning_streams import blurry, permuted, repetition, rotated
from apps.continual.streams import class_incremental
from distill.coresets import CORESETS
from distill.data import ImageData, Split
from distill.errors import InputError
from distill.spec import DataSpec
from tests.apps.continual.test_memory import QUICK, experience
from tests.conftest import toy

FOUR = toy(classes=4)
OTHER = toy(seed=7, classes=4)


def flat(values: list[float]) -> tuple[Tensor, Tensor]:
    """One image a value, of class 0."""
    return torch.tensor(values).view(-1, 1, 1, 1).expand(-1, 1, 2, 2).contiguous(), torch.zeros(len(values), dtype=torch.int64)


@pytest.mark.parametrize("method", [*QUICK, *CORESETS])
def test_every_method_keeps_one_group_a_class(method: str) -> None:
    memory = Memory(MemoryConfig(method, items=8, settings=QUICK.get(method, {})))
    for data in (FOUR, OTHER, FOUR):
        memory.observe(*experience(data, 0, 1), progress=False)
    memory.observe(*experience(FOUR, 1, 3), progress=False)
    assert [(group.label, group.seen) for group in memory.groups] == [(0, 36), (1, 48), (3, 12)]
    assert [len(group) for group in memory.groups] == [3, 3, 2]
    assert memory.images.isfinite().all()
    assert memory.experiences == 4


@pytest.mark.parametrize("method", ["random", "dm", "herding"])
def test_a_stream_without_returning_classes_is_as_before(method: str) -> None:
    made = []
    for returning in ("merge", "separate"):
        memory = Memory(MemoryConfig(method, items=8, returning=returning, settings=QUICK.get(method, {})))  # type: ignore[arg-type]
        for classes in ((0, 1), (2, 3)):
            memory.observe(*experience(FOUR, *classes), progress=False)
        made.append(memory.images)
    assert torch.equal(*made)


def test_a_budget_is_not_used_up_by_domains() -> None:
    """Twelve domains of four classes in eight places; kept separate, the third has no room."""
    merged, separate = (Memory(MemoryConfig("random", items=8, returning=kind)) for kind in ("merge", "separate"))  # type: ignore[arg-type]
    for seed in range(12):
        merged.observe(*experience(toy(seed=seed, classes=4), 0, 1, 2, 3))
        assert len(merged) == 8
    for _ in range(2):
        separate.observe(*experience(FOUR, 0, 1, 2, 3))
    with pytest.raises(InputError, match=r'has no room .* 12 groups of 4 classes .* returning="merge" joins them'):
        separate.observe(*experience(FOUR, 0, 1, 2, 3))
    with pytest.raises(InputError, match="returning is drop; allowed: merge, separate"):
        MemoryConfig("random", items=8, returning="drop")  # type: ignore[arg-type]


def test_one_task_is_not_merged_into_another() -> None:
    memory = Memory(MemoryConfig("random", per_class=2))
    for task in (0, 1, 0):
        memory.observe(*experience(FOUR, 0), task=task)
    assert [(group.task, group.label, group.seen) for group in memory.groups] == [(0, 0, 24), (1, 0, 12)]


def test_a_mean_is_that_of_all_experiences() -> None:
    """30 images, then 10, then 60 in one place: each counts once."""
    values = [1.0] * 30 + [9.0] * 10 + [4.0] * 60
    memory = Memory(MemoryConfig("class_mean", per_class=1))
    for part in (values[:30], values[30:40], values[40:]):
        memory.observe(*flat(part))
    assert float(memory.images.mean()) == pytest.approx(sum(values) / 100, abs=0.05)


def test_random_is_a_uniform_draw_from_all_experiences() -> None:
    """Of 5, 20 and 35 images: 400 memories of three."""
    values, kept = torch.arange(60.0).tolist(), torch.zeros(60)
    for seed in range(400):
        memory = Memory(MemoryConfig("random", per_class=3, seed=seed))
        for part in (values[:5], values[5:25], values[25:]):
            memory.observe(*flat(part))
        kept[memory.images[:, 0, 0, 0].long()] += 1
    shares = torch.stack([kept[:5].sum(), kept[5:25].sum(), kept[25:].sum()]) / 1200
    # 1200 draws: a share of 1/3 has a standard deviation of 0.014.
    assert torch.allclose(shares, torch.tensor([5.0, 20.0, 35.0]) / 60, atol=0.06), shares


@pytest.mark.parametrize("method", ["herding", "kcenter", "kmeans"])
def test_a_coreset_divides_its_places_by_what_they_stand_for(method: str) -> None:
    """30 images of 0..., then 10 of 100...: of 8 places about 6 and 2, and each part is the method's own choice."""
    old, new = [0.1 * i for i in range(30)], [100 + 0.1 * i for i in range(10)]
    counts, mixed = [], 0
    for seed in range(60):
        memory = Memory(MemoryConfig(method, per_class=8, seed=seed))
        memory.observe(*flat(old))
        before = memory.images.clone()
        memory.observe(*flat(new))
        after = memory.images[:, 0, 0, 0]
        recent = after[after > 50]
        counts.append(len(recent))
        assert len(after) == 8
        if method != "kmeans":  # greedy: what stays of the past is its beginning, and what is new a selection from the new alone
            assert torch.equal(after[after < 50], before[: 8 - len(recent), 0, 0, 0])
            if len(recent):
                alone = Memory(MemoryConfig(method, per_class=len(recent), seed=seed))
                alone.observe(*flat(new))
                assert torch.equal(recent, alone.images[:, 0, 0, 0])
            mixed += int(len(recent) > 1 and not (after.diff() > 0).all())
    assert sum(counts) / 60 == pytest.approx(2.0, abs=0.6)  # a standard deviation of 0.15
    assert method == "kmeans" or mixed, "interleaved, so that a shorter beginning has both"


@settings(max_examples=200, deadline=None)
@given(past=st.integers(1, 40), extra=st.integers(0, 40_000), recent=st.integers(1, 600))
@example(past=10, extra=2039, recent=114)  # short of the limit by nine tenths of a repetition
def test_a_pool_has_past_and_present_in_their_proportion(past: int, extra: int, recent: int) -> None:
    """Within what whole images and whole repetitions allow, also beyond the limit on repetitions."""
    seen = past + extra
    pool = weighed(torch.zeros(past, 1, 1, 1), seen, torch.ones(recent, 1, 1, 1), torch.Generator().manual_seed(0))
    old, new = int((pool == 0).sum()), int((pool == 1).sum())
    assert old <= pools.MAX_REPEATED + past
    assert 1 <= new <= recent
    if new == recent:
        assert abs(old - seen) <= past or seen > pools.MAX_REPEATED
    wanted = recent * old / seen
    assert abs(new - wanted) <= max(0.5, recent * past / seen / 2 + 1e-6) or new == 1


@settings(max_examples=100, deadline=None)
@given(past=st.integers(0, 30), recent=st.integers(0, 30))
def test_every_beginning_has_both_in_proportion(past: int, recent: int) -> None:
    made = interleaved(torch.arange(past).view(-1, 1, 1, 1), 100 + torch.arange(recent).view(-1, 1, 1, 1)).flatten().tolist()
    assert [value for value in made if value < 100] == list(range(past))
    assert [value for value in made if value >= 100] == [100 + i for i in range(recent)]
    for end in range(len(made) + 1):
        assert abs(sum(value >= 100 for value in made[:end]) - end * recent / max(1, past + recent)) <= 1


def test_places_of_recent_images_are_a_uniform_draw() -> None:
    draws = torch.Generator().manual_seed(0)
    mean = sum(places_of_recent(10, 300, 100, draws) for _ in range(300)) / 300
    assert mean == pytest.approx(2.5, abs=0.4)  # a standard deviation of 0.08
    assert places_of_recent(10, 0, 4, draws) == 4


def test_a_stop_inside_a_merge_ends_with_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MemoryConfig("dm", items=4, settings=QUICK["dm"])
    parts = [experience(FOUR, 0, 1), experience(OTHER, 0, 1)]
    whole = Memory(config)
    for part in parts:
        whole.observe(*part, progress=False)
    import distill.run

    monkeypatch.setattr(distill.run, "CHECKPOINT_SECONDS", -1.0)
    stopped = Memory(config)
    observe(stopped, *parts[0], folder=tmp_path, progress=False)
    real, steps = distill.run.save_checkpoint, []

    def failing(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        steps.append(1)
        if len(steps) == 2:
            raise RuntimeError("power cut")

    with monkeypatch.context() as patch:
        patch.setattr(distill.run, "save_checkpoint", failing)
        with pytest.raises(RuntimeError, match="power cut"):
            observe(stopped, *parts[1], folder=tmp_path, progress=False)
    assert (tmp_path / "checkpoint-1.safetensors").exists()
    again = Memory(config)
    for part in parts:
        observe(again, *part, folder=tmp_path, progress=False)
    assert torch.equal(again.images, whole.images)
    assert not list(tmp_path.glob("checkpoint*"))
    assert load(tmp_path / "memory-1.safetensors").config.returning == "merge"


# Streams


def test_permuted_images_have_one_order_an_experience() -> None:
    data = toy(channels=3)
    stream = permuted(data, 3, 0)
    assert stream[0] is data
    orders = []
    for part in stream[1:]:
        assert torch.equal(part.train.labels, data.train.labels)
        own = {tuple(pixel): place for place, pixel in enumerate(data.train.images[0].flatten(1).T.tolist())}
        order = [own[tuple(pixel)] for pixel in part.train.images[0].flatten(1).T.tolist()]
        assert sorted(order) == list(range(64))
        orders.append(order)
        for name in ("train", "test"):
            images, before = getattr(part, name).images, getattr(data, name).images
            for channel in range(3):  # every image and channel, the test images too, in the same order
                assert torch.equal(images[:, channel].flatten(1), before[:, channel].flatten(1)[:, order])
    assert orders[0] != orders[1]
    assert torch.equal(permuted(data, 2, 0)[1].train.images, stream[1].train.images)
    assert not torch.equal(permuted(data, 2, 1)[1].train.images, stream[1].train.images)


def test_rotated_images_are_turned_by_their_angle() -> None:
    """By 90 and 180 degrees exactly, in every split; by 45 as a slow loop over pixels says."""
    data = toy(channels=1, side=9)
    whole = rotated(data, 4, 360.0, 0)
    expected = {quarter: torch.rot90(data.train.images, quarter, (2, 3)) for quarter in range(4)}
    found = [next(q for q in range(4) if torch.equal(part.train.images, expected[q])) for part in whole]
    assert sorted(found) == [0, 1, 2, 3]
    assert all(torch.equal(part.test.images, torch.rot90(data.test.images, q, (2, 3))) for part, q in zip(whole, found, strict=True))
    orders = {tuple(bytes(part.train.images.flatten().tolist()) for part in rotated(data, 4, 360.0, seed)) for seed in range(5)}
    assert len(orders) > 1, "the order of the angles is drawn"
    pixels = torch.rand(2, 1, 6, 10, generator=torch.Generator().manual_seed(0))
    split = Split(pixels, torch.zeros(2, dtype=torch.int64))
    wide = ImageData(DataSpec("wide", 1, 6, 10, ("0",), (0.5,), (0.5,)), split, split, split)
    for part in rotated(wide, 2, 90.0, 0):
        turned = part.train.images[0, 0]
        if torch.equal(turned, wide.train.images[0, 0]):
            continue
        for row in range(6):
            for column in range(10):
                # Where the pixel comes from: the angle back about the middle, then the four pixels around that place.
                y, x = 2.5 - row, column - 4.5
                x0, y0 = x * math.cos(-math.pi / 4) - y * math.sin(-math.pi / 4), x * math.sin(-math.pi / 4) + y * math.cos(-math.pi / 4)
                r, c = 2.5 - y0, x0 + 4.5
                value = 0.0
                for i in (math.floor(r), math.floor(r) + 1):
                    for j in (math.floor(c), math.floor(c) + 1):
                        if 0 <= i < 6 and 0 <= j < 10:
                            value += float(wide.train.images[0, 0, i, j]) * (1 - abs(r - i)) * (1 - abs(c - j))
                assert float(turned[row, column]) == pytest.approx(value, abs=1e-4)


@settings(max_examples=60, deadline=None)
@given(experiences=st.integers(1, 12), each=st.integers(1, 4), seed=st.integers(0, 50))
def test_classes_are_repeated_equally_often_and_no_image_comes_twice(experiences: int, each: int, seed: int) -> None:
    if experiences * each < 4:
        with pytest.raises(InputError, match="so that each comes"):
            repetition(FOUR, experiences, each, seed)
        return
    stream = repetition(FOUR, experiences, each, seed)
    assert [len(part.classes) for part in stream] == [each] * experiences
    times = [sum(label in part.classes for part in stream) for label in range(4)]
    assert max(times) - min(times) <= 1
    assert sum(len(part.train) for part in stream) == len(FOUR.train)
    images = torch.cat([part.train.images.flatten(1) for part in stream])
    assert len(images.unique(dim=0)) == len(FOUR.train.images.flatten(1).unique(dim=0)) == len(FOUR.train)
    for label in range(4):
        sizes = [part.counts[label] for part in stream if label in part.classes]
        assert max(sizes) - min(sizes) <= 1
    assert all(sorted(set(part.test.labels.tolist())) == list(part.classes) for part in stream)


def test_repetition_says_what_cannot_be() -> None:
    with pytest.raises(InputError, match="at most 4 classes in one"):
        repetition(FOUR, 3, 5, 0)
    with pytest.raises(InputError, match="class 0 has 12 training images and comes 13 times"):
        repetition(FOUR, 13, 4, 0)
    assert [part.classes for part in repetition(FOUR, 6, 2, 0)] != [part.classes for part in repetition(FOUR, 6, 2, 1)]


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 1.0])
def test_a_blurry_stream_gives_a_share_of_each_class_away(share: float) -> None:
    data = toy(classes=6, per_class=20)
    stream, disjoint = blurry(data, 3, share, 0), class_incremental(data, 3, 0)
    assert sum(len(part.train) for part in stream) == 120
    assert len(torch.cat([part.train.images.flatten(1) for part in stream]).unique(dim=0)) == 120
    for number, (part, own) in enumerate(zip(stream, disjoint, strict=True)):
        for label in own.classes:
            assert part.counts[label] == 20 - round(20 * share)
            others = [other.counts[label] for place, other in enumerate(stream) if place != number]
            assert sum(others) == round(20 * share)
            assert max(others) - min(others) <= 1
        assert sorted(set(part.test.labels.tolist())) == sorted(own.classes)
    if share == 0:
        for part, own in zip(stream, disjoint, strict=True):
            assert torch.equal(part.train.images.unique(dim=0), own.train.images.unique(dim=0))


def test_a_blurry_stream_says_what_cannot_be() -> None:
    for share, count in ((1.5, 2), (-0.1, 2), (0.1, 1)):
        with pytest.raises(InputError, match="allowed: 0 to 1, and 2 or more experiences"):
            blurry(FOUR, count, share, 0)
