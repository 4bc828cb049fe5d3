"""Memories that store several images in an item: bytes and items, what a learner gets, shrinking and merging, files, refusals."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

import apps.continual.pools as pools_module
from apps.continual.condensing import class_by_class, condense_images
from apps.continual.form import Form
from apps.continual.memory import Memory, MemoryConfig
from apps.continual.memory_file import load, save
from distill.data import ImageData
from distill.decode import Formation, Frequency
from distill.errors import InputError
from tests.apps.continual.test_memory import QUICK, experience
from tests.conftest import toy

SIDE, CHANNELS = 8, 3
STILL = {**QUICK["dm"], "iterations": 1, "lr_img": 1e-12}  # learns nothing: what it returns is what it starts from
CALIBRATED = {**QUICK["dm"], "calibration": 1.0, "pool_networks": 1, "pool_epochs": 1}


@pytest.fixture(scope="module")
def four() -> ImageData:
    return toy(classes=4, channels=CHANNELS)  # 12 training images a class


def small(images: Tensor) -> Tensor:
    """What formation:2 keeps of images: means of 2 x 2 pixels."""
    return F.avg_pool2d(images, 2)


def among(parts: Tensor, others: Tensor) -> Tensor:
    """For each of ``parts`` the place of its equal in ``others``."""
    distance = torch.cdist(parts.flatten(1).double(), others.flatten(1).double())
    assert float(distance.min(1).values.max()) < 1e-4
    return distance.argmin(1)


@pytest.mark.parametrize("method", ["random", "herding", "kcenter", "kmeans"])
def test_a_decoded_coreset_is_real_images_four_in_the_bytes_of_one(method: str, four: ImageData) -> None:
    plain, decoded = (Memory(MemoryConfig(method, per_class=2, settings=s)) for s in ({}, {"decode": "formation:2"}))
    images, labels = experience(four, 2, 0)
    for memory in (plain, decoded):
        memory.observe(images, labels)
    assert len(decoded) == len(plain) == 4
    assert decoded.nbytes == plain.nbytes == 4 * (CHANNELS * SIDE * SIDE * 4 + 8)
    assert (plain.count, decoded.count) == (4, 16)
    assert decoded.labels.tolist() == [0] * 8 + [2] * 8
    assert decoded.images.shape == (16, CHANNELS, SIDE, SIDE)
    for label in (0, 2):
        real = small(images[labels == label])
        shown = decoded.images[decoded.labels == label]
        enlarged = F.interpolate(real, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
        assert len(set(among(shown, enlarged).tolist())) == 8, "eight different real images of the class"
    made = decoded.condensed(four.spec)
    assert made.decode is None
    assert torch.equal(made.images, decoded.images)


@pytest.mark.parametrize("storage", ["float32", "uint8"])
@pytest.mark.parametrize(("decode", "values"), [("formation:2", CHANNELS * SIDE * SIDE), ("frequency:10", CHANNELS * 10)])
def test_bytes_are_of_what_is_stored(decode: str, values: int, storage: Any, four: ImageData) -> None:
    settings = {"decode": decode}
    if storage == "uint8" and decode.startswith("frequency"):
        with pytest.raises(InputError, match="storage uint8 is of pixels, and frequency rows are none"):
            MemoryConfig("random", items=4, storage=storage, settings=settings)
        return
    item = values * (1 if storage == "uint8" else 4) + 8
    group = 8 * CHANNELS if storage == "uint8" else 0
    copies = 4 if decode == "formation:2" else 1
    limit = 2 * (2 * item + group) + item - 1
    memory = Memory(MemoryConfig("random", nbytes=limit, per_class=2, storage=storage, settings=settings))
    memory.observe(*experience(four, 0, 1))
    assert (len(memory), memory.count, memory.nbytes) == (4, 4 * copies, 2 * (2 * item + group))
    memory.logit_values = 5
    assert memory.config.shares(1, memory.form((CHANNELS, SIDE, SIDE)), 5)[0] == 2
    assert memory.form((CHANNELS, SIDE, SIDE)).item_bytes(storage, 5) == item + copies * 5 * 4, "DER's outputs are of each image"
    for number, part in enumerate(memory.groups):
        memory.with_logits(number, torch.zeros(part.count, 5))
    assert memory.nbytes == 2 * (2 * (item + copies * 20) + group)
    content = safetensors.torch.save({str(i): g.values for i, g in enumerate(memory.groups)})
    header = int.from_bytes(content[:8], "little") + 8
    assert len(content) - header == 4 * values * (1 if storage == "uint8" else 4)


@pytest.mark.parametrize("method", ["gm", "dm", "mtt"])
@pytest.mark.parametrize("decode", ["formation:2", "frequency:10"])
def test_methods_learn_through_the_decode(
    method: str, decode: str, four: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone, together, to a smaller share and from a few recent images; every group is within its share and in the form."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    memory = Memory(MemoryConfig(method, items=6, settings={**QUICK[method], "decode": decode}))
    form = Form((CHANNELS, SIDE, SIDE), memory.config.decode)
    for classes in ((0,), (1, 2)):
        memory.observe(*experience(four, *classes), progress=False)
    assert [len(group) for group in memory.groups] == [2] * 3
    memory.merge(*experience(four, 3, 1), progress=False)
    assert sum(len(group) for group in memory.groups) == 6
    assert all(group.values.shape[1:] == form.part_shape and group.count == len(group) * form.copies for group in memory.groups)
    assert memory.images.shape == (6 * form.copies, CHANNELS, SIDE, SIDE)
    assert bool(memory.images.isfinite().all())


def test_a_class_with_room_for_all_its_images_keeps_them(four: ImageData) -> None:
    """Two items have room for eight images: seven stay, in the bytes that they take, until more come."""
    images, labels = experience(four, 0, 1)
    seven = torch.cat([(labels == 0).nonzero().squeeze(1)[:7], (labels == 1).nonzero().squeeze(1)])
    memory = Memory(MemoryConfig("dm", per_class=2, settings={**STILL, "decode": "formation:2"}))
    memory.observe(images[seven], labels[seven], progress=False)
    few, many = memory.groups
    assert (few.count, len(few), few.kept, few.seen) == (7, 2, True, 7)
    assert few.nbytes == 7 * CHANNELS * SIDE * SIDE + 2 * 8
    assert torch.allclose(few.values, small(images[labels == 0][:7]))
    assert (many.count, len(many), many.kept, memory.kept) == (8, 2, False, 2)


@pytest.mark.parametrize("method", ["random", "herding", "kmeans", "dm"])
def test_a_smaller_share_is_made_of_the_stored_rows(method: str, four: ImageData) -> None:
    """Parts are never enlarged and shrunk again; a method that learns nothing returns the first of them."""
    settings = {"decode": "formation:2", **(STILL if method == "dm" else {})}
    memory = Memory(MemoryConfig(method, items=4, settings=settings))
    memory.observe(*experience(four, 0, 1), progress=False)
    before = [group.values for group in memory.groups]
    memory.observe(*experience(four, 2, 3), progress=False)
    assert [(len(group), group.count) for group in memory.groups] == [(1, 4)] * 4
    for old, group in zip(before, memory.groups, strict=False):
        places = among(group.values, old).tolist()
        assert len(set(places)) == 4
        if method in ("herding", "dm"):
            assert places == list(range(4))


@pytest.mark.parametrize("method", ["random", "herding", "dm"])
def test_merging_keeps_parts_as_they_were_shrunk_once(method: str, four: ImageData) -> None:
    settings = {"decode": "formation:2", **(STILL if method == "dm" else {})}
    memory = Memory(MemoryConfig(method, items=4, per_class=1, settings=settings))
    images, labels = experience(four, 0, 1, 2, 3)
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    for part in order.split(6):
        memory.merge(images[part], labels[part])
    assert [(len(group), group.seen) for group in memory.groups] == [(1, 12)] * 4
    for group in memory.groups:
        real = small(images[labels == group.label])
        assert len(set(among(group.values, real).tolist())) == 4


def test_a_merged_random_memory_is_a_reservoir_of_images() -> None:
    """Early, middle and late images are kept equally often, although four share an item: 100 memories, 30 images in six parts."""
    kept = torch.zeros(30)
    images = torch.arange(30.0).view(30, 1, 1, 1).expand(30, 1, 4, 4)
    for seed in range(100):
        memory = Memory(MemoryConfig("random", per_class=1, seed=seed, settings={"decode": "formation:2"}))
        for part in torch.arange(30).split(5):
            memory.merge(images[part], torch.zeros(len(part), dtype=torch.int64))
        kept[memory.images[:, 0, 0, 0].round().long()] += 1
    assert float(kept.sum()) == 400
    assert torch.allclose(kept.view(3, 10).sum(1) / 400, torch.full((3,), 1 / 3), atol=0.09), kept


@pytest.mark.parametrize(("storage", "decode"), [("float32", "formation:2"), ("uint8", "formation:2"), ("float32", "frequency:10")])
def test_a_loaded_memory_continues_to_the_same_bits(storage: Any, decode: str, four: ImageData, tmp_path: Path) -> None:
    memory = Memory(MemoryConfig("dm", items=4, storage=storage, settings={**QUICK["dm"], "decode": decode}))
    memory.observe(*experience(four, 0, 2), progress=False)
    save(memory, tmp_path / "m.safetensors")
    again = load(tmp_path / "m.safetensors")
    assert (again.config, len(again), again.count, again.nbytes) == (memory.config, len(memory), memory.count, memory.nbytes)
    for each in (memory, again):
        each.observe(*experience(four, 1, 3), progress=False)
    assert torch.equal(again.images, memory.images)
    with pytest.raises(InputError, match="one memory, one image shape"):
        again.observe(torch.zeros(2, CHANNELS, 4, 4), torch.zeros(2, dtype=torch.int64))


def header_of(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    found = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(json.loads(found["__metadata__"]["memory"]))


def test_hostile_files_are_one_clear_line(four: ImageData, tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    plain = Memory(MemoryConfig("random", items=4))
    plain.observe(*experience(four, 0, 1))
    save(plain, path)
    assert header_of(path)["format"] == 2, "plain memories are written as before"
    assert "shape" not in header_of(path)
    memory = Memory(MemoryConfig("random", items=4, settings={"decode": "frequency:10"}))
    memory.observe(*experience(four, 0, 1))
    save(memory, path)
    tensors, header = safetensors.torch.load(path.read_bytes()), header_of(path)
    assert (header["format"], header["shape"], header["config"]["settings"]) == (3, [CHANNELS, SIDE, SIDE], {"decode": "frequency:10"})

    def refused(change: dict[str, Any], match: str, held: dict[str, Tensor] = tensors) -> None:
        path.write_bytes(safetensors.torch.save(held, {"memory": json.dumps({**header, **change})}))
        with pytest.raises(InputError, match=match) as caught:
            load(path)
        assert "\n" not in str(caught.value)

    def settings(decode: object) -> dict[str, Any]:
        return {"config": {**header["config"], "settings": {"decode": decode}}}

    refused({"format": 2}, "format 2 with decode frequency:10")
    refused(settings("none"), "format 3 with decode none")
    refused({"shape": None}, "which do not go together")
    refused({"shape": [3, 3, 3]}, "allowed: at most 9")
    refused({"shape": [3, 0, 8]}, "height is '0'")
    refused({"shape": [1, SIDE, SIDE]}, "exemplars are of")
    refused({"shape": [64, 4096, 4096]}, "decodes to")
    refused({"shape": [3, 10**9, 10**9]}, "height")
    refused(settings("formation:2"), "exemplars are of")
    refused(settings("frequency:11"), "exemplars are of")
    refused(settings("frequency:99999999999"), "decode is")
    refused(settings("pickle:2"), "decode is")
    refused(settings({"kind": "formation"}), "decode is")
    refused({}, "not finite", {**tensors, "values.0": torch.full_like(tensors["values.0"], 3e38)})
    refused({}, "allowed: float32", {**tensors, "values.0": torch.zeros(2, CHANNELS, 10)})


@pytest.mark.parametrize(
    ("method", "settings", "match"),
    [
        ("random", {"decode": "formation:2", "iterations": 3}, "setting 'iterations' was given .* no settings but decode"),
        ("random", {"decode": "formation"}, "decode is 'formation'; allowed"),
        ("random", {"decode": 2}, "decode is '2'; allowed: text"),
        ("class_mean", {"decode": "formation:2"}, "class_mean stores no real images"),
        ("dm", {"decode": "formation:x"}, "decode is 'formation:x'"),
        ("dm", {"decode": "formation:2", "clamp": True}, "leave clamp at false"),
    ],
)
def test_bad_settings(method: str, settings: dict[str, object], match: str) -> None:
    with pytest.raises(InputError, match=match):
        MemoryConfig(method, items=4, settings=settings)


def test_images_that_do_not_fit_the_decode_are_refused() -> None:
    images, labels = torch.zeros(3, 1, 9, 8), torch.zeros(3, dtype=torch.int64)
    for decode, match in (
        ("formation:2", "pads images of 9 x 8 .* a factor that divides"),
        ("formation:8", "at most 4"),
        ("frequency:73", "72"),
    ):
        with pytest.raises(InputError, match=match):
            Memory(MemoryConfig("random", items=4, settings={"decode": decode})).observe(images, labels)
    with pytest.raises(InputError, match="settings were given for the coreset 'random'"):
        condense_images(images, labels, "random", 1, 0, settings={"decode": "formation:2"})


def test_rows_are_joined_and_parted_without_loss() -> None:
    images = torch.randn((5, CHANNELS, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    for decode in (None, Formation(2), Frequency(7)):
        form = Form((CHANNELS, SIDE, SIDE), decode)
        parts = form.shrunk(images)
        rows = form.rows(parts)
        assert len(rows) == form.items(5) == -(-5 // form.copies)
        assert torch.equal(form.parted(rows)[:5], parts)
        assert parts.shape[1:] == form.part_shape
        if decode is not None:
            assert torch.allclose(form.enlarged(parts), decode.decoded(rows, form.spec)[:5])


# A pool of trained networks


def test_trained_networks_compare_classes() -> None:
    assert class_by_class("dm", QUICK["dm"])
    assert not class_by_class("dm", CALIBRATED)
    assert not class_by_class("dm", {**QUICK["dm"], "pool": "stages"})
    assert class_by_class("dm", {**QUICK["dm"], "pool": "sphere"})


def test_a_class_that_comes_alone_is_calibrated_with_those_known(four: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first class gets an output without images, later ones the stored images of the others; these are not changed."""
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    seen: list[int] = []
    real = pools_module.condense_images

    def watched(images: Tensor, labels: Tensor, *given: Any, **options: Any) -> Any:
        made = real(images, labels, *given, **options)
        seen.append(made.spec.num_classes)
        return made

    monkeypatch.setattr(pools_module, "condense_images", watched)
    without = {**CALIBRATED, "calibration": 0.0}
    calibrated, plain = (Memory(MemoryConfig("dm", per_class=2, settings=settings)) for settings in (CALIBRATED, without))
    for label in (0, 1, 2):
        for memory in (calibrated, plain):
            first = [group.values for group in memory.groups]
            memory.observe(*experience(four, label), progress=False)
            assert all(torch.equal(group.values, old) for group, old in zip(memory.groups, first, strict=False))
    assert seen == [2, 1, 2, 1, 3, 1]
    for ours, theirs in zip(calibrated.groups, plain.groups, strict=True):
        assert not torch.allclose(ours.values, theirs.values, atol=1e-4), "the calibration counts, also for the first class"
    assert calibrated.images.isfinite().all()
