"""Compressed real images: what they cost, what comes back, and the study rows and Avalanche learners that use them."""

import io
import math
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from apps.continual.benchmark import Budget, Unit, held, rows, sizes
from apps.continual.compressed import CODECS, COMPRESSED, CompressedMemory
from apps.continual.form import Form
from apps.continual.strategies import Training
from apps.continual.streams import class_incremental, experience_tensors
from distill.data import ImageData
from distill.errors import InputError
from distill.train import Recipe
from scenarios.catalogue import run_study, study
from scenarios.engine.study import Options
from tests.conftest import toy


def data(channels: int = 1) -> ImageData:
    return toy(classes=4, per_class=30, channels=channels)


def memory(codec: str, class_bytes: int, source: ImageData, seed: int = 0) -> CompressedMemory:
    return CompressedMemory(codec, class_bytes, source.spec.mean, source.spec.std, seed)


@pytest.mark.parametrize("channels", [1, 3])
def test_lossless_images_come_back_to_the_bit(channels: int) -> None:
    source = data(channels)
    images, labels = experience_tensors(source)
    kept = memory("zlib", 2000, source)
    kept.observe(images, labels)
    made = kept.condensed(source.spec)
    real = {(int(label), image.numpy().tobytes()) for image, label in zip(source.train.images, labels, strict=True)}
    pixels = (source.spec.denormalise(made.images) * 255).round().byte()
    found = [(int(label), image.numpy().tobytes()) for image, label in zip(pixels, made.labels, strict=True)]
    assert len(set(found)) == len(found) == len(kept)
    assert set(found) <= real
    codes = [image.permute(1, 2, 0).contiguous().numpy().tobytes() for image in pixels]
    assert kept.nbytes == sum(len(zlib.compress(code, 9)) + 4 + 8 for code in codes)


@pytest.mark.parametrize("codec", ["jpeg50", "webp50"])
@pytest.mark.parametrize("channels", [1, 3])
def test_lossy_images_are_those_of_pillow(codec: str, channels: int) -> None:
    image = np.random.default_rng(0).integers(0, 256, (16, 16, channels), np.uint8)
    stored = CODECS[codec].encode(image)
    with Image.open(io.BytesIO(stored)) as picture:
        assert picture.format == codec.removesuffix("50").upper()
        expected = np.asarray(picture.convert("L" if channels == 1 else "RGB")).reshape(image.shape)
    assert np.array_equal(CODECS[codec].decode(stored, image.shape), expected)
    assert not np.array_equal(expected, image)


@pytest.mark.parametrize("codec", CODECS)
def test_the_bytes_of_a_class_hold_what_is_counted(codec: str) -> None:
    """As many images as fit, in random order: one more would be too many."""
    source, limit = data(), 3000
    images, labels = experience_tensors(source)
    kept = memory(codec, limit, source)
    kept.observe(images, labels)
    kept.observe(images, labels)  # classes that come back are further groups
    assert len(kept.items) == 8
    for group in kept.items.values():
        size = sum(len(one) + 12 for one in group)
        longest = max(len(CODECS[codec].encode(image.permute(1, 2, 0).numpy())) for image in source.train.images) + 12
        assert limit - longest < size <= limit or len(group) == 30
    assert [group.label for group in kept.groups()] == [0, 1, 2, 3] * 2
    again, other = memory(codec, limit, source), memory(codec, limit, source, seed=1)
    again.observe(images, labels)
    other.observe(images, labels)
    assert list(again.items.values()) == list(kept.items.values())[:4]
    assert list(other.items.values()) != list(again.items.values())


def test_wrong_arguments_are_one_line() -> None:
    source = data()
    with pytest.raises(InputError, match=r"codec 'gif' is not known; allowed: zlib, jpeg50, webp50\."):
        memory("gif", 100, source)
    with pytest.raises(InputError, match="10 bytes have no room for one zlib image of class 0; raise the budget"):
        memory("zlib", 10, source).observe(*experience_tensors(source))
    for mean, std in (((0.1,), (0.0,)), ((0.1, 0.2), (1.0,)), ((math.nan,), (1.0,)), ((), ())):
        with pytest.raises(InputError, match="allowed: a finite mean and a std above 0 for each channel"):
            CompressedMemory("zlib", 100, mean, std)
    with pytest.raises(InputError, match="class_bytes is 0; allowed: 1 or more"):
        CompressedMemory("zlib", 0, (0.1,), (1.0,))
    with pytest.raises(InputError, match="the memory is empty"):
        memory("zlib", 100, source).condensed(source.spec)


def unit(method: str, images: float = 3) -> Unit:
    return Unit(Budget("bytes", images), method, "compressed", 0, False, {}, 5)


def test_ten_uint8_images_with_their_scale_take_the_bytes_of_less_than_three_float32_ones() -> None:
    """3 x 32 x 32 values and a label of 8 bytes each; a part of an image is a budget, too."""
    form = Form((3, 32, 32))
    assert (Budget("bytes", 2.6).per_class(form, "uint8"), Budget("bytes", 2.6).per_class(form, "float32")) == (10, 2)
    assert 10 * (3 * 32 * 32 + 8) + form.group_bytes("uint8") <= 2.6 * (4 * 3 * 32 * 32 + 8)
    assert Budget("bytes", 2.6).name == "bytes2.6"
    with pytest.raises(InputError, match=r"the bytes of 0\.5 float32 images have no room for one float32 item"):
        Budget("bytes", 0.5).per_class(form, "float32")


@pytest.mark.parametrize(("method", "images"), [*((method, 3) for method in COMPRESSED), ("random-zlib", 2.6)])
def test_a_studys_memory_grows_by_experience(method: str, images: float, tmp_path: Path) -> None:
    stream = class_incremental(data(), 2, 0)
    lines, sets = sizes(unit(method, images), stream, tmp_path), held(unit(method, images), stream, tmp_path, "cpu")
    limit = int(images * Form(stream[0].spec.shape).item_bytes("float32"))
    assert [len(one) for one in sets] == [line["items"] for line in lines]
    assert 0 < lines[0]["bytes"] <= 2 * limit < lines[1]["bytes"] <= 4 * limit  # type: ignore[operator]
    assert len(sets[1].labels.unique()) == 4
    assert torch.equal(sets[1].images[: len(sets[0])], sets[0].images)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("strategy", ["scratch", "replay", "gdumb", "er_ace"])
def test_learners_train_on_compressed_images(strategy: str, tmp_path: Path) -> None:
    stream = class_incremental(data(), 2, 0)
    sets = held(unit("random-zlib"), stream, tmp_path, "cpu")
    recipe = Recipe(max_steps=40, batch_size=8, lr=0.02, schedule="constant", augmentation="none")
    training = Training(epochs=3, batch_size=8, batch_size_mem=8, lr=0.02)
    found = dict(
        rows(strategy, unit("random-zlib"), stream, sets, folder=tmp_path, network="ConvNetD1W16", recipe=recipe, training=training, seed=0)
    )
    assert sum(found[1]) / 2 > 60  # chance is 25; without a memory at most the second experience is known


def test_der_is_refused(tmp_path: Path) -> None:
    stream = class_incremental(data(), 2, 0)
    sets = held(unit("random-zlib"), stream, tmp_path, "cpu")
    with pytest.raises(InputError, match="DER stores outputs with each item"):
        list(
            rows(
                *("der", unit("random-zlib"), stream, sets),
                folder=tmp_path,
                network="MLP",
                recipe=Recipe(),
                training=Training(epochs=1),
                seed=0,
            )
        )


def test_a_study_has_a_row_for_each_codec(tmp_path: Path) -> None:
    tables = {
        "kind": "continual",
        "title": "Bytes",
        "data": {"name": "digits", "classes": [0, 1, 2, 3]},
        "stream": {"experiences": 2, "orders": 1},
        "memory": {"methods": ["random", *COMPRESSED], "per_class": [1], "bytes_of": [2], "storages": ["uint8", "float32"]},
        "learner": {"network": "MLP", "recipe": {"max_steps": 5, "batch_size": 8}},
    }
    _, record = run_study(study("bytes", tables, "s.toml"), Options(out=tmp_path, quiet=True))
    cells = [(cell["budget"], cell["storage"], cell["method"]) for cell in record["results"]["cells"]]
    expected = [("items1", "float32", "random"), ("bytes2", "uint8", "random"), *(("bytes2", "compressed", name) for name in COMPRESSED)]
    assert sorted(cells) == sorted([*expected, ("bytes2", "float32", "random")])
    sizes_of = {cell["method"]: cell["bytes"] for cell in record["results"]["cells"] if cell["storage"] in ("uint8", "compressed")}
    assert set(sizes_of) == {"random", *COMPRESSED}
    assert {name: size for name, size in sizes_of.items() if not 0 < size <= 4 * 2 * (4 * 16 * 16 + 8)} == {}


@pytest.mark.parametrize("wrong", [{"bytes_of": []}, {"bytes_of": [2], "share": "shrinking"}])
def test_a_study_without_bytes_has_no_compressed_images(wrong: dict[str, object]) -> None:
    memory = {"methods": ["random-zlib"], "per_class": [1], **wrong}
    with pytest.raises(InputError, match=r"\[memory\]: random-zlib has a number of bytes for each class of an experience"):
        study("bytes", {"kind": "continual", "title": "B", "data": {"name": "digits"}, "memory": memory}, "s.toml")
