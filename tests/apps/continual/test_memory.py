"""The memory's core: budgets, storage, shrinking, merging and its file; no Avalanche here."""

import dataclasses
import json
from pathlib import Path
from typing import Any, cast

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from apps.continual.condensing import condense_images
from apps.continual.exemplars import stored
from apps.continual.memory import Memory, MemoryConfig
from apps.continual.memory_file import load, observe, save
from distill.coresets import CORESETS
from distill.data import ImageData
from distill.errors import InputError
from distill.quantise import decode
from tests.conftest import toy

QUICK = {
    "gm": {"iterations": 2, "outer_steps": 2, "inner_epochs": 1, "network": "ConvNetD1W8", "batch_real": 8},
    "dsa": {"iterations": 2, "outer_steps": 2, "inner_epochs": 1, "network": "ConvNetD1W8", "batch_real": 8},
    "dm": {"iterations": 4, "network": "ConvNetD1W8", "batch_real": 8},
    "datadam": {"iterations": 3, "network": "ConvNetD2W8", "batch_real": 8},
    "mtt": {
        "iterations": 2,
        "network": "ConvNetD1W8",
        "experts": 1,
        "max_start_epoch": 1,
        "expert_epochs": 1,
        "syn_steps": 2,
        "batch_real": 8,
    },
}


def experience(data: ImageData, *classes: int) -> tuple[torch.Tensor, torch.Tensor]:
    part = data.subset(classes)
    return part.normalised("train", torch.arange(len(part.train))), part.train.labels


@pytest.fixture(scope="module")
def six() -> ImageData:
    return toy(classes=4)


@pytest.mark.parametrize("method", [*QUICK, *CORESETS])
def test_every_method_and_coreset_fills_a_fixed_share(method: str, six: ImageData) -> None:
    memory = Memory(MemoryConfig(method, per_class=2, settings=QUICK.get(method, {})))
    memory.observe(*experience(six, 2, 0), progress=False)
    memory.observe(*experience(six, 3, 1), progress=False)
    assert memory.labels.tolist() == [0, 0, 2, 2, 1, 1, 3, 3]
    assert memory.images.dtype == torch.float32
    assert memory.images.isfinite().all()
    assert memory.nbytes == 8 * (64 * 4 + 8)
    assert memory.seconds > 0


def test_a_class_stands_where_its_own_images_are(six: ImageData) -> None:
    """Relabelling inside an experience must not mix classes up: each exemplar is nearest to its own class's real images."""
    memory = Memory(MemoryConfig("dm", per_class=1, settings=QUICK["dm"]))
    images, labels = experience(six, 3, 1)
    memory.observe(images, labels, progress=False)
    for image, label in zip(memory.images, memory.labels.tolist(), strict=True):
        distance = {c: float((images[labels == c].mean(0) - image).square().sum()) for c in (1, 3)}
        assert min(distance, key=distance.__getitem__) == label


@pytest.mark.parametrize("method", ["random", "class_mean", "kmeans", "dm"])
def test_a_shrinking_share_condenses_again_instead_of_cutting(method: str, six: ImageData) -> None:
    memory = Memory(MemoryConfig(method, items=8, settings=QUICK.get(method, {})))
    memory.observe(*experience(six, 0, 1), progress=False)
    assert [len(group) for group in memory.groups] == [4, 4]
    before = [group.images for group in memory.groups]
    memory.observe(*experience(six, 2, 3), progress=False)
    assert [len(group) for group in memory.groups] == [2] * 4
    assert [group.label for group in memory.groups] == [0, 1, 2, 3]
    if method == "class_mean":
        # Means of two groups of two of the four: their mean is that of all four. A cut would leave the first two.
        for old, group in zip(before, memory.groups, strict=False):
            assert torch.allclose(group.images.mean(0), old.mean(0), atol=1e-5)
            assert not torch.equal(group.images, old[:2])
    if method == "random":
        assert all(any(torch.equal(image, o) for o in old) for old, g in zip(before, memory.groups, strict=False) for image in g.images)


def test_groups_of_a_fixed_share_are_never_touched_again(six: ImageData) -> None:
    memory = Memory(MemoryConfig("random", items=8, per_class=2, returning="separate"))
    memory.observe(*experience(six, 0, 1))
    first = memory.images.clone()
    memory.observe(*experience(six, 2, 3))
    assert torch.equal(memory.images[:4], first)
    with pytest.raises(InputError, match="no room for 2 items in each of 6 classes"):
        memory.observe(*experience(six, 0, 1))


@settings(max_examples=60, deadline=None)
@given(budget=st.integers(17, 40_000), storage=st.sampled_from(["float32", "uint8"]), logits=st.integers(0, 12), groups=st.integers(1, 30))
def test_a_byte_budget_is_used_and_kept(budget: int, storage: str, logits: int, groups: int) -> None:
    """The share fits, and one more item a group would not: counted from the parts that are stored."""
    memory = Memory(MemoryConfig("random", nbytes=budget, storage=storage))  # type: ignore[arg-type]
    memory.logit_values = logits

    def size(items: int) -> int:
        pixels = 3 * 8 * 8 * (1 if storage == "uint8" else 4)
        return groups * (items * (pixels + 8 + 4 * logits) + (3 * 2 * 4 if storage == "uint8" else 0))

    if size(1) > budget:
        with pytest.raises(InputError, match="no room"):
            memory.share(groups, (3, 8, 8))
    else:
        share = memory.share(groups, (3, 8, 8))
        assert size(share) <= budget < size(share + 1) + groups  # the division over groups loses less than a byte each


@pytest.mark.parametrize("storage", ["float32", "uint8"])
@pytest.mark.parametrize("nbytes", [1200, 2000, 5000])
def test_what_is_stored_never_exceeds_the_bytes(storage: str, nbytes: int, six: ImageData) -> None:
    memory = Memory(MemoryConfig("herding", nbytes=nbytes, storage=storage))  # type: ignore[arg-type]
    for classes in ((0, 1), (2, 3)):
        memory.observe(*experience(six, *classes))
        assert 0 < memory.nbytes <= nbytes
    content = safetensors.torch.save({str(i): g.values for i, g in enumerate(memory.groups)})
    header = int.from_bytes(content[:8], "little") + 8
    assert len(content) - header == memory.nbytes - 8 * len(memory) - (8 * 4 if storage == "uint8" else 0)


def test_uint8_keeps_real_images_exactly_and_others_to_half_a_step(six: ImageData) -> None:
    images, _ = experience(six, 0, 1)
    exact, grid = stored(images, "uint8", six.spec.mean, six.spec.std)
    assert grid is not None
    assert torch.equal(exact, six.subset([0, 1]).train.images)
    assert torch.allclose(decode(exact, grid), images, atol=1e-5)
    wild = torch.randn(5, 3, 6, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([0.1, 1.0, 30.0]).view(3, 1, 1)
    for mean, std in ((None, None), ((0.5,) * 3, (0.2,) * 3)):
        codes, grid = stored(wild, "uint8", mean, std)
        assert codes.dtype == torch.uint8
        assert grid is not None
        for channel in range(3):
            part = wild[:, channel]
            step = float(part.max() - part.min()) / 255
            assert float((decode(codes, grid)[:, channel] - part).abs().max()) <= 0.51 * step
    flat, grid = stored(torch.full((2, 1, 3, 3), 0.7), "uint8", None, None)
    assert grid is not None
    assert torch.allclose(decode(flat, grid), torch.full((2, 1, 3, 3), 0.7), atol=1e-6)


def test_exemplars_are_own_copies_without_gradients(six: ImageData) -> None:
    images, labels = experience(six, 0, 1)
    images.requires_grad_(True)
    memory = Memory(MemoryConfig("random", per_class=20))
    memory.observe(images, labels)
    before = memory.images.clone()
    with torch.no_grad():
        images.zero_()
    assert torch.equal(memory.images, before)
    assert not memory.images.requires_grad
    assert len(memory) == 24, "a class with fewer images than its share gives what it has"


def test_same_seed_same_bits_other_seed_other_bits(six: ImageData) -> None:
    def made(seed: int) -> torch.Tensor:
        memory = Memory(MemoryConfig("dm", items=4, seed=seed, settings=QUICK["dm"]))
        for classes in ((0, 1), (2, 3)):
            memory.observe(*experience(six, *classes), progress=False)
        return memory.images

    assert torch.equal(made(0), made(0))
    assert not torch.equal(made(0), made(1))


@pytest.mark.parametrize("storage", ["float32", "uint8"])
def test_file_round_trip(storage: str, six: ImageData, tmp_path: Path) -> None:
    memory = Memory(MemoryConfig("dm", items=6, storage=storage, settings=QUICK["dm"], mean=six.spec.mean, std=six.spec.std))  # type: ignore[arg-type]
    memory.observe(*experience(six, 0, 2), task=7, progress=False)
    memory.with_logits(0, torch.randn(3, 5, generator=torch.Generator().manual_seed(0)))
    save(memory, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert again.config == memory.config
    assert torch.equal(again.images, memory.images)
    assert torch.equal(again.labels, memory.labels)
    assert again.nbytes == memory.nbytes
    assert again.groups[0].task == 7
    assert torch.equal(again.groups[0].logits, memory.groups[0].logits)  # type: ignore[arg-type]
    for each in (memory, again):
        each.observe(*experience(six, 1, 3), progress=False)
    assert torch.equal(again.images, memory.images), "a loaded memory goes on as the saved one"


def test_hostile_files_are_one_clear_line(six: ImageData, tmp_path: Path) -> None:
    memory = Memory(MemoryConfig("random", items=4))
    memory.observe(*experience(six, 0, 1))
    path = tmp_path / "m.safetensors"
    save(memory, path)
    content = path.read_bytes()
    tensors = safetensors.torch.load(content)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(json.loads(content[8 : 8 + length])["__metadata__"]["memory"])

    def refused(data: bytes, match: str) -> None:
        path.write_bytes(data)
        with pytest.raises(InputError, match=match) as caught:
            load(path)
        assert "\n" not in str(caught.value)

    def packed(change: dict, held: dict[str, torch.Tensor] = tensors) -> bytes:
        return safetensors.torch.save(held, {"memory": json.dumps({**header, **change})})

    refused(content[: len(content) // 2], "not a memory's file")
    refused(b"", "not a memory's file")
    refused(safetensors.torch.save(tensors), "not a memory's file")
    refused(packed({"format": 99}), "format 99")
    refused(packed({"groups": header["groups"][:1]}), "its header says 1 groups")
    refused(packed({"experiences": -1}), "experiences")
    refused(packed({"more": 1}), "more")
    refused(packed({"config": {**header["config"], "method": "os.system"}}), "os.system")
    refused(packed({}, {**tensors, "values.0": tensors["values.0"].double()}), "float64")
    refused(packed({}, {**tensors, "values.0": torch.full_like(tensors["values.0"], float("nan"))}), "not finite")
    refused(packed({}, {**tensors, "values.0": torch.zeros(2, 1, 4, 4)}), "exemplars are of")
    refused(packed({}, {**tensors, "logits.0": torch.zeros(9, 4)}), "logits")
    with pytest.raises(InputError, match="not a memory's file"):
        load(tmp_path / "nothing.safetensors")


def test_a_stopped_stream_goes_on_from_its_folder_to_the_same_bits(six: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = MemoryConfig("dm", items=4, settings=QUICK["dm"])
    parts = [experience(six, 0, 1), experience(six, 2, 3)]
    whole = Memory(config)
    for part in parts:
        whole.observe(*part, progress=False)
    # Stopped inside the second experience's condensing, after a checkpoint of its second step.
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

    monkeypatch.setattr(distill.run, "save_checkpoint", failing)
    with pytest.raises(RuntimeError, match="power cut"):
        observe(stopped, *parts[1], folder=tmp_path, progress=False)
    assert (tmp_path / "checkpoint-1.safetensors").exists()
    monkeypatch.setattr(distill.run, "save_checkpoint", real)
    again = Memory(config)
    for part in parts:
        observe(again, *part, folder=tmp_path, progress=False)
    assert torch.equal(again.images, whole.images)
    assert not list(tmp_path.glob("checkpoint*"))
    # Everything is there now: nothing is condensed any more.
    monkeypatch.setattr("apps.continual.pools.condense_images", None)
    third = Memory(config)
    for part in parts:
        observe(third, *part, folder=tmp_path, progress=False)
    assert torch.equal(third.images, whole.images)
    with pytest.raises(InputError, match=r"another stream; where finished .* load.*memory-1\.safetensors"):
        observe(Memory(config), *experience(six, 0, 3), folder=tmp_path)
    with pytest.raises(InputError, match=r"belongs to a memory with other settings .*\(its seed differ\)"):
        observe(Memory(dataclasses.replace(config, seed=5)), *parts[0], folder=tmp_path)


@pytest.mark.parametrize("method", ["random", "class_mean", "herding", "dm"])
def test_merging_keeps_one_group_a_class_and_counts_what_it_saw(method: str, six: ImageData) -> None:
    memory = Memory(MemoryConfig(method, items=8, per_class=2, settings=QUICK.get(method, {})))
    images, labels = experience(six, 0, 1, 2, 3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for part in order.split(6):
        memory.merge(images[part], labels[part])
    assert memory.labels.unique().tolist() == [0, 1, 2, 3]
    assert [group.seen for group in memory.groups] == [12] * 4
    assert all(len(group) <= 2 for group in memory.groups)


def test_merged_random_is_a_reservoir() -> None:
    """Early, middle and late images are kept equally often: 300 memories of 3 of 30 images that arrive in six parts."""
    kept = torch.zeros(30)
    images = torch.arange(30.0).view(30, 1, 1, 1).expand(30, 1, 2, 2)
    for seed in range(300):
        memory = Memory(MemoryConfig("random", per_class=3, seed=seed))
        for part in torch.arange(30).split(5):
            memory.merge(images[part], torch.zeros(len(part), dtype=torch.int64))
        kept[memory.images[:, 0, 0, 0].long()] += 1
    thirds = kept.view(3, 10).sum(1) / kept.sum()
    # 900 draws: a third has a standard deviation of 0.016.
    assert torch.allclose(thirds, torch.full((3,), 1 / 3), atol=0.065), thirds


def test_merged_class_mean_is_the_mean_of_all_seen() -> None:
    """Past counts by its number: the exemplar is the mean of everything, not the mean of the last part and the old exemplar."""
    values = torch.tensor([1.0] * 8 + [4.0] * 2)
    memory = Memory(MemoryConfig("class_mean", per_class=1))
    for part in (values[:8], values[8:]):
        memory.merge(part.view(-1, 1, 1, 1).expand(-1, 1, 2, 2), torch.zeros(len(part), dtype=torch.int64))
    assert torch.allclose(memory.images, torch.full((1, 1, 2, 2), float(values.mean())), atol=1e-6)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({}, "no budget"),
        ({"method": "dmm", "items": 4}, "did you mean 'dm'"),
        ({"method": "random", "items": 4, "settings": {"iterations": 3}}, "coresets take no settings"),
        ({"items": 4, "mean": (0.5,)}, "given together"),
        ({"items": 0}, "items is 0"),
        ({"items": 4, "storage": "int4"}, "allowed: float32, uint8"),
    ],
)
def test_bad_settings(options: dict, match: str) -> None:
    with pytest.raises(InputError, match=match):
        MemoryConfig(**options)


def test_bad_experiences(six: ImageData) -> None:
    images, labels = experience(six, 0, 1)
    memory = Memory(MemoryConfig("random", items=2))
    with pytest.raises(InputError, match="empty"):
        _ = memory.images
    with pytest.raises(InputError, match=r"allowed: \(N, C, H, W\) and \(N,\)"):
        memory.observe(images, labels[:-1])
    with pytest.raises(InputError, match="not finite"):
        memory.observe(images / 0, labels)
    memory.observe(images, labels)
    with pytest.raises(InputError, match="one memory, one"):
        memory.observe(images[:, :, :4], labels)
    with pytest.raises(InputError, match="no room for 1 item in each of 4 classes"):
        memory.observe(*experience(six, 2, 3))
    with pytest.raises(InputError, match="did you mean"):
        condense_images(images, labels, "herdin", 1, 0)


def test_arrays_and_lists_are_refused_in_one_line() -> None:
    images, labels = torch.zeros(4, 1, 8, 8), torch.zeros(4, dtype=torch.int64)
    made = Memory(MemoryConfig("random", items=2))
    with pytest.raises(InputError, match="images or rows are ndarray; allowed: a torch tensor"):
        made.observe(cast(Any, images.numpy()), labels)
    with pytest.raises(InputError, match="labels are list; allowed: an int64 torch tensor"):
        made.observe(images, cast(Any, labels.tolist()))
