"""Data sets from arrays, npz files, torchvision's files and MHIST; what is damaged or hostile is refused in one line."""

import bz2
import csv
import io
import itertools
import os
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from distill import data_sources
from distill.data import ImageData, Split
from distill.data_sources import NAMES, describe, load
from distill.errors import InputError
from distill.spec import DataSpec

real_data = pytest.mark.skipif("DISTILL_DATA" not in os.environ, reason="DISTILL_DATA is not set")


def arrays(counts=(4, 3, 5), side=4, channels=3, seed=0, test=2):
    """Random uint8 arrays N x H x W x C with the given training images a class, shuffled."""
    rng = np.random.default_rng(seed)
    y_train = rng.permutation(np.repeat(np.arange(len(counts)), counts))
    y_test = np.repeat(np.arange(len(counts)), test)
    shape = (side, side, channels) if channels else (side, side)
    x_train, x_test = (rng.integers(0, 256, (len(y), *shape), dtype=np.uint8) for y in (y_train, y_test))
    return {"x_train": x_train, "y_train": y_train, "x_test": x_test, "y_test": y_test}


def same(a: ImageData, b: ImageData) -> bool:
    pairs = [(getattr(a, n), getattr(b, n)) for n in ("train", "validation", "test")]
    return a.spec == b.spec and all(torch.equal(p.images, q.images) and torch.equal(p.labels, q.labels) for p, q in pairs)


# Arrays


def test_all_layouts_of_the_same_pixels_give_the_same_data():
    given_ = arrays(channels=3)
    expected = torch.zeros(12, 3, 4, 4, dtype=torch.uint8)
    for n in range(12):
        for c in range(3):
            for h in range(4):
                for w in range(4):
                    expected[n, c, h, w] = int(given_["x_train"][n, h, w, c])
    last = ImageData.from_arrays("x", **given_)
    first = {k: torch.from_numpy(v).permute(0, 3, 1, 2) if k.startswith("x") else torch.from_numpy(v) for k, v in given_.items()}
    assert torch.equal(last.train.images, expected)
    assert last.train.labels.tolist() == given_["y_train"].tolist()
    assert same(last, ImageData.from_arrays("x", **first))
    assert last.spec.classes == ("0", "1", "2")
    assert last.spec.shape == (3, 4, 4)
    assert len(last.validation) == 0

    grey = arrays(channels=0)
    assert same(ImageData.from_arrays("x", **grey), ImageData.from_arrays("x", **{k: torch.from_numpy(v) for k, v in grey.items()}))
    with_axis = {k: v[..., None] if k.startswith("x") else v for k, v in grey.items()}
    assert same(ImageData.from_arrays("x", **grey), ImageData.from_arrays("x", **with_axis))


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", ">f4", ">f8"])
def test_floats_become_float32_and_normalise_like_uint8(dtype):
    given_ = arrays()
    floats = {k: (v / 255).astype(dtype) if k.startswith("x") else v for k, v in given_.items()}
    whole, real = ImageData.from_arrays("x", **given_), ImageData.from_arrays("x", **floats, classes=["a", "b", "c"])
    assert real.train.images.dtype == torch.float32
    some = torch.tensor([3, 0, 5])
    loose = 2e-3 if dtype == "float16" else 1e-5
    torch.testing.assert_close(whole.normalised("train", some), real.normalised("train", some), atol=5 * loose, rtol=loose)


@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", ">i4", "uint64", ">u2"])
def test_labels_of_any_whole_type(dtype):
    given_ = arrays()
    data = ImageData.from_arrays("x", given_["x_train"], given_["y_train"].astype(dtype), given_["x_test"], given_["y_test"].astype(dtype))
    assert data.train.labels.tolist() == given_["y_train"].tolist()


@pytest.mark.parametrize("form", [float, list, bool, "column", "one-hot", "one-hot floats", "tensor"])
def test_labels_of_any_usual_form(form):
    given_ = arrays((4, 3) if form is bool else (4, 3, 5))
    forms = {
        "column": lambda y: y[:, None],
        "one-hot": lambda y: np.eye(3, dtype=int)[y],
        "one-hot floats": lambda y: np.eye(3)[y],
        "tensor": torch.from_numpy,
        list: np.ndarray.tolist,
    }
    changed = {k: forms.get(form, lambda y: y.astype(form))(v) if k.startswith("y") else v for k, v in given_.items()}
    assert same(ImageData.from_arrays("x", **changed), ImageData.from_arrays("x", **given_))


def test_notes_name_classes_without_images_and_data_of_one_class():
    given_ = arrays((4, 3, 5))
    assert ImageData.from_arrays("x", **given_).notes == ()
    late = {k: v + 1 if k.startswith("y") else v for k, v in given_.items()}
    (note,) = ImageData.from_arrays("x", **late).notes
    assert note == ("1 of 4 classes have no training images (0); subtract 1 from labels that start at 1, or leave them out.")
    (note,) = ImageData.from_arrays("x", **given_, classes=["a", "b", "c", "d"]).notes
    assert note.startswith("1 of 4 classes have no training images (d); number the classes without gaps")
    untested = {**given_, "x_test": given_["x_test"][2:], "y_test": given_["y_test"][2:]}
    assert ImageData.from_arrays("x", **untested).notes == ("1 of 3 classes have no test images (0).",)
    data = ImageData.from_arrays("x", **untested, validation=0.3)
    assert data.to("cpu").notes == data.whitened().notes == data.notes
    assert len(data.subset([1, 2]).notes) == 1
    assert "one class, '2'" in data.subset([2]).notes[-1]


@pytest.mark.parametrize(
    ("counts", "ratio"), [((500,) * 10, 100.0), ((500,) * 10, 10), ((40, 60, 0, 60), 5.0), ((30,), 2.0), ((7, 7), 1.0)]
)
def test_long_tailed_counts_are_those_of_cui_2019(counts, ratio):
    data = ImageData.from_arrays("x", **arrays(counts, side=1, channels=0), classes=[str(i) for i in range(len(counts))])
    data = data.hold_out(0.1)
    tailed, again, other = data.long_tailed(ratio), data.long_tailed(ratio), data.long_tailed(ratio, seed=1)
    present = [label for label in range(len(counts)) if counts[label]]
    largest = max(data.counts)
    for place, label in enumerate(present):
        mu = ratio ** (-1 / (len(present) - 1)) if len(present) > 1 else 1.0
        assert abs(tailed.counts[label] - min(largest * mu**place, data.counts[label])) < 1
    if counts == (500,) * 10:
        assert tailed.counts[0] == largest == 450
        assert tailed.counts[9] == int(450 / ratio)
    assert same(tailed, again)
    assert tailed.counts == other.counts
    assert ratio == 1.0 or len(counts) == 1 or not torch.equal(tailed.train.images, other.train.images)
    assert tailed.test is data.test
    assert tailed.validation is data.validation
    if ratio == 1.0:
        assert same(tailed, data)
    # What is kept keeps its order.
    places, start = [], 0
    pairs = [(int(i), int(y)) for i, y in zip(data.train.images.flatten(), data.train.labels, strict=True)]
    for pair in zip(tailed.train.images.flatten().tolist(), tailed.train.labels.tolist(), strict=True):
        start = pairs.index(pair, start) + 1
        places.append(start)
    assert places == sorted(set(places))


@pytest.mark.parametrize("ratio", [0.5, 0, -3, float("nan"), float("inf"), True, "100", 6])
def test_an_imbalance_that_cannot_be_is_refused(ratio):
    data = ImageData.from_arrays("x", **arrays((5, 5)))
    with pytest.raises(InputError, match=r"imbalance is .*; allowed: 1 to 5, the images of the largest class"):
        data.long_tailed(ratio)


def test_arrays_are_copied_and_may_be_read_only():
    given_ = arrays(channels=0)
    for array in given_.values():
        array.flags.writeable = False
    data = ImageData.from_arrays("x", **given_)
    tensors = {k: torch.from_numpy(v.copy()) for k, v in given_.items()}
    other = ImageData.from_arrays("x", **tensors)
    for tensor in tensors.values():
        tensor.zero_()
    assert same(data, other)


def test_mean_and_std_against_a_slow_definition():
    for given_ in (arrays(seed=1), {k: v / 255 if k.startswith("x") else v for k, v in arrays(seed=2).items()}):
        data = ImageData.from_arrays("x", **given_)
        scale = 255 if given_["x_train"].dtype == np.uint8 else 1
        for channel in range(3):
            values = [float(v) / scale for v in given_["x_train"][..., channel].ravel()]
            mean = sum(values) / len(values)
            std = (sum((v - mean) ** 2 for v in values) / len(values)) ** 0.5
            assert data.spec.mean[channel] == pytest.approx(mean, rel=1e-6)
            assert data.spec.std[channel] == pytest.approx(std, rel=1e-6)


def test_given_mean_and_std_and_a_constant_channel():
    given_ = arrays()
    given_["x_train"][..., 1] = 7
    data = ImageData.from_arrays("x", **given_, mean=(0.1, 0.2, 0.3))
    assert data.spec.mean == (0.1, 0.2, 0.3)
    assert data.spec.std[1] == 1.0
    data = ImageData.from_arrays("x", **given_, mean=(0.1, 0.2, 0.3), std=(1, 2, 3))
    pixel = data.train.images[5, 2, 1, 0].item()
    assert data.normalised("train", torch.tensor([5]))[0, 2, 1, 0].item() == pytest.approx((pixel / 255 - 0.3) / 3, rel=1e-5)


def test_mean_and_std_come_from_large_images_in_parts():
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (5, 1200, 1000, 1), dtype=np.uint8)
    data = ImageData.from_arrays("x", x, np.zeros(5, int), x[:1], np.zeros(1, int))
    assert data.spec.mean[0] == pytest.approx(x.mean(dtype=np.float64) / 255, rel=1e-12)
    assert data.spec.std[0] == pytest.approx(x.std(dtype=np.float64) / 255, rel=1e-9)


BAD = {
    "a list": ({"x_train": [[1, 2], [3, 4]]}, r"x_train is a list; allowed: uint8"),
    "int64 pixels": ({"x_train": np.zeros((12, 4, 4), int)}, "x_train is int64"),
    "complex": ({"x_train": np.zeros((12, 4, 4), complex)}, "x_train is complex128"),
    "objects": ({"x_train": np.zeros((12, 4, 4), object)}, "x_train is object"),
    "flat": ({"x_test": np.zeros((6, 16), np.uint8)}, r"x_test is uint8 \(6, 16\)"),
    "too many axes": ({"x_test": np.zeros((6, 1, 4, 4, 3), np.uint8)}, "x_test is uint8"),
    "numpy channels first": ({"x_train": np.zeros((12, 3, 32, 32), np.uint8)}, "channels go last in a numpy array"),
    "torch channels last": ({"x_train": torch.zeros(12, 32, 32, 3)}, "first in a torch tensor"),
    "no pixels": ({"x_train": np.zeros((12, 0, 4, 3), np.uint8)}, "at least one pixel"),
    "NaN": ({"x_train": np.full((12, 4, 4, 3), np.nan)}, "x_train holds floats outside 0 to 1"),
    "infinite": ({"x_train": np.full((12, 4, 4, 3), np.inf)}, "x_train holds floats outside"),
    "not scaled": ({"x_train": np.full((12, 4, 4, 3), 255.0)}, "255 to 255; divide them by 255, or give uint8"),
    "scaled to -1 to 1": ({"x_train": np.full((12, 4, 4, 3), -1.0)}, "scale them, or give uint8"),
    "negative": ({"x_train": np.full((12, 4, 4, 3), -0.1)}, "outside 0 to 1"),
    "fewer labels": ({"y_train": np.zeros(11, int)}, "x_train has 12 images and y_train 11 labels"),
    "two labels an image": ({"y_train": np.ones((12, 2), int)}, r"y_train is int64 \(12, 2\); allowed: one whole number an image"),
    "no columns": ({"y_train": np.zeros((0, 0))}, "allowed: one whole number an image"),
    "probabilities": ({"y_train": np.full((12, 3), 1 / 3)}, r"one-hot rows; of probabilities give y\.argmax\(1\)"),
    "text labels": ({"y_train": np.array(["cat"] * 12)}, r"y_train is <U3 \(12,\); .* np\.unique\(y, return_inverse=True\)"),
    "ragged labels": ({"y_train": [[1], [2, 3]]}, "y_train is a list with rows of unequal length; allowed: an array, tensor or list"),
    "labels from 1 for named classes": (
        {"y_train": np.arange(12) % 3 + 1, "y_test": np.arange(6) % 3 + 1, "classes": ["a", "b", "c"]},
        r"labels lie in 1\.\.3, and classes are numbered from 0; subtract 1",
    ),
    "flat rows": ({"x_train": np.zeros((12, 48), np.uint8)}, r"x\.reshape\(len\(x\), height, width, channels\)"),
    "pixels of another whole type": ({"x_train": np.zeros((12, 4, 4), np.int64)}, r"these fit: x\.astype\(np\.uint8\)"),
    "half characters": ({"classes": ["a", "b", "caf\udce9"]}, "names of at most 200 characters that UTF-8 can store"),
    "float labels": ({"y_train": np.full(12, 0.5)}, "y_train is float64 .* holds 0.5"),
    "NaN labels": ({"y_train": np.full(12, np.nan)}, "y_train is float64 .* holds nan"),
    "negative labels": ({"y_train": np.full(12, -1)}, r"y_train lies in -1\.\.-1; allowed: class numbers 0\.\.99999"),
    "huge labels": ({"y_test": np.full(6, 2**64 - 1, np.uint64)}, "y_test lies in 18446744073709551615"),
    "more labels than classes": ({"classes": ["a", "b"]}, r"train labels lie in 0\.\.2; allowed: 0\.\.1"),
    "no training images": ({"x_train": np.zeros((0, 4, 4, 3), np.uint8), "y_train": np.zeros(0, int)}, "x_train holds no images"),
    "other test size": ({"x_test": np.zeros((6, 5, 4, 3), np.uint8)}, r"test images are \(3, 5, 4\); the data spec says \(3, 4, 4\)"),
    "other test type": ({"x_test": np.zeros((6, 4, 4, 3))}, "test images are torch.float32 .* train images torch.uint8"),
    "short mean": ({"mean": (0.5,)}, r"mean is \(0.5,\); allowed: a number for each of 3 channels"),
    "text as mean": ({"mean": ("a", "b", "c")}, "mean is .* allowed: 3 finite numbers"),
    "scalar std": ({"std": 0.5}, "std is 0.5; allowed"),
    "zero std": ({"std": (0, 1, 1)}, "std"),
    "fraction": ({"validation": 1.0}, "validation is 1.0; allowed: a fraction from 0"),
    "NaN fraction": ({"validation": float("nan")}, "validation is nan"),
    "device": ({"device": "toaster"}, "cannot go to device 'toaster'"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_arrays_are_refused_by_name(case):
    changes, message = BAD[case]
    with pytest.raises(InputError, match=message):
        ImageData.from_arrays("x", **{**arrays(), **changes})


def test_split_and_image_data_check_themselves():
    images, labels = torch.zeros(2, 1, 4, 4), torch.tensor([0, 1])
    with pytest.raises(InputError, match=r"images are torch\.float64"):
        Split(images.double(), labels)
    with pytest.raises(InputError, match=r"allowed: uint8 or float32 of shape \(N, C, H, W\)"):
        Split(images[0], labels)
    with pytest.raises(InputError, match=r"labels are torch\.int32"):
        Split(images, labels.int())
    with pytest.raises(InputError, match=r"labels are torch.int64 \(3,\); allowed: int64 \(2,\)"):
        Split(images, torch.zeros(3, dtype=torch.int64))
    with pytest.raises(InputError, match="move both to one device"):
        Split(images.to("meta"), labels)
    spec = DataSpec("x", 1, 4, 4, ("a",), (0.0,), (1.0,))
    one = Split(images[:1], labels[:1])
    with pytest.raises(InputError, match=r"test labels lie in 0\.\.1; allowed: 0\.\.0"):
        ImageData(spec, one, one, Split(images, labels))
    with pytest.raises(InputError, match="no training images"):
        ImageData(spec, one.at(torch.tensor([], dtype=torch.int64)), one, one)


# Classes, subsets, fingerprints


@pytest.mark.parametrize("seed", range(3))
def test_class_indices_counts_and_classes_with_uneven_and_missing_classes(seed):
    counts = (5, 0, 1, 17, 0)
    data = ImageData.from_arrays("x", **arrays(counts, seed=seed))
    labels = data.train.labels.tolist()
    assert data.counts == counts
    assert data.classes == (0, 2, 3)
    for label in range(5):
        assert data.class_indices(label).tolist() == [i for i, y in enumerate(labels) if y == label]
    for wrong in (-1, 5):
        with pytest.raises(InputError, match=r"allowed: 0\.\.4"):
            data.class_indices(wrong)


def test_subset_keeps_numbers_spec_and_order():
    data = ImageData.from_arrays("x", **arrays((6, 7, 8, 0))).hold_out(0.3)
    part = data.subset([np.int64(2), 0, 2])
    assert part.spec == data.spec
    assert part.counts == (data.counts[0], 0, data.counts[2], 0)
    for name in ("train", "validation", "test"):
        whole, kept = getattr(data, name), getattr(part, name)
        places = [i for i, y in enumerate(whole.labels.tolist()) if y in (0, 2)]
        assert torch.equal(kept.images, whole.images[places])
        assert kept.labels.tolist() == [int(whole.labels[i]) for i in places]
    assert same(data, data.subset(range(4)))
    for wrong in ([], [4], [-1, 0]):
        with pytest.raises(InputError, match=r"at least one of 0\.\.3"):
            data.subset(wrong)
    with pytest.raises(InputError, match=r"have no training images; allowed: some of \[0, 1, 2\]"):
        data.subset([3])


def test_fingerprint_sees_every_pixel_and_label_of_train_and_nothing_else():
    given_ = arrays()
    prints = [ImageData.from_arrays("x", **given_).fingerprint]
    assert ImageData.from_arrays("other name", **given_, mean=(0, 0, 0), std=(1, 1, 1)).fingerprint == prints[0]
    assert len(prints[0]) == 64
    pixel, label, order = ({k: v.copy() for k, v in given_.items()} for _ in range(3))
    pixel["x_train"][11, 3, 3, 2] ^= 1
    label["y_train"][0] = (label["y_train"][0] + 1) % 3
    order["x_train"], order["y_train"] = order["x_train"][::-1], order["y_train"][::-1]
    scaled = {k: v / 255 if k.startswith("x") else v for k, v in given_.items()}
    wide = {k: v.reshape(-1, 2, 8, 3) if k.startswith("x") else v for k, v in given_.items()}
    prints += [ImageData.from_arrays("x", **changed).fingerprint for changed in (pixel, label, order, scaled, wide)]
    prints.append(ImageData.from_arrays("x", **given_, validation=0.2).fingerprint)
    assert len(set(prints)) == len(prints)
    given_["x_test"][:] = 0
    assert ImageData.from_arrays("x", **given_).fingerprint == prints[0]


def test_normalised_refuses_an_unknown_split():
    data = ImageData.from_arrays("x", **arrays())
    with pytest.raises(InputError, match="did you mean 'train'"):
        data.normalised("trian", torch.tensor([0]))
    assert data.normalised("validation", torch.zeros(0, dtype=torch.int64)).shape == (0, 3, 4, 4)
    assert data.train.images.dtype == torch.uint8
    assert data.to("cpu") is data


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_same_on_cuda():
    data = ImageData.from_arrays("x", **arrays((5, 0, 9)), validation=0.2)
    there = ImageData.from_arrays("x", **arrays((5, 0, 9)), validation=0.2, device="cuda")
    assert there.device.type == there.class_indices(2).device.type == there.normalised("test", torch.tensor([1])).device.type == "cuda"
    assert there.fingerprint == data.fingerprint == data.to("cuda").fingerprint
    assert there.class_indices(2).tolist() == data.class_indices(2).tolist()
    assert same(there.to("cpu"), data)
    assert same(there.subset([0]).to("cpu"), data.subset([0]))
    again = ImageData.from_arrays("x", **arrays((5, 0, 9)), device="cuda").hold_out(0.2)
    assert same(again.to("cpu"), data)


# The validation split


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 30), min_size=1, max_size=8), st.floats(0, 0.999), st.integers(0, 2**32))
def test_validation_is_a_stratified_partition_of_train(counts, fraction, seed):
    counts[0] += not any(counts)
    number = sum(counts)
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)), counts))
    # Each image carries its own number, so that it can be followed.
    images = np.stack([np.arange(number) // 256, np.arange(number) % 256], -1).astype(np.uint8).reshape(-1, 1, 2)
    test = np.zeros((len(counts), 1, 2), np.uint8)
    data = ImageData.from_arrays("x", images, labels, test, np.arange(len(counts)), validation=fraction, seed=seed)
    numbers = {n: [int(i[0, 0, 0]) * 256 + int(i[0, 0, 1]) for i in getattr(data, n).images] for n in ("train", "validation")}
    assert sorted(numbers["train"] + numbers["validation"]) == list(range(number))
    for name, found in numbers.items():
        assert found == sorted(found)
        assert getattr(data, name).labels.tolist() == [int(labels[i]) for i in found]
    for label, count in enumerate(counts):
        held = int((data.validation.labels == label).sum())
        if fraction == 0 or count < 2:
            assert held == 0
        else:
            assert 1 <= held < count
            assert abs(held - fraction * count) <= (1 if held in (1, count - 1) else 0.5 + 1e-9)
    assert len(data.test) == len(counts)


def test_validation_follows_its_seed_alone():
    given_ = arrays((20, 20, 20))
    first, again, other = (ImageData.from_arrays("x", **given_, validation=0.25, seed=s) for s in (3, 3, 4))
    state = torch.get_rng_state()
    assert same(first, again)
    assert not torch.equal(first.train.images, other.train.images)
    assert first.spec == other.spec
    assert torch.equal(state, torch.get_rng_state())
    with pytest.raises(InputError, match="already has 15 validation images"):
        first.hold_out(0.1)
    assert first.hold_out(0.0) is first


# Digits


def test_digits_are_the_real_ones_enlarged_with_a_fixed_test_split():
    from sklearn.datasets import load_digits

    data = load("digits")
    assert data.spec.shape == (1, 16, 16)
    assert (len(data.train), len(data.validation), len(data.test)) == (1297, 0, 500)
    assert torch.bincount(data.test.labels).tolist() == [50] * 10
    other = load("digits", validation=0.1, seed=9)
    assert torch.equal(data.test.images, other.test.images)
    assert sorted([*other.train.labels.tolist(), *other.validation.labels.tolist()]) == sorted(data.train.labels.tolist())

    def enlarged(small):
        """Bilinear, pixel centres at halves, edges repeated; loops in float64."""
        big = np.zeros((16, 16))
        for y in range(16):
            for x in range(16):
                fy, fx = max((y + 0.5) / 2 - 0.5, 0), max((x + 0.5) / 2 - 0.5, 0)
                top, left = int(fy), int(fx)
                down, right = min(top + 1, 7), min(left + 1, 7)
                a, b = fy - top, fx - left
                upper = (1 - b) * small[top, left] + b * small[top, right]
                lower = (1 - b) * small[down, left] + b * small[down, right]
                big[y, x] = (1 - a) * upper + a * lower
        return big / 16 * 255

    bunch = load_digits()
    ours = {
        bytes(image.numpy().tobytes()): int(label) for s in (data.train, data.test) for image, label in zip(s.images, s.labels, strict=True)
    }
    every = np.array([np.frombuffer(image, np.uint8).reshape(16, 16) for image in ours], dtype=np.float64)
    for place in (0, 700, 1796):
        gaps = np.abs(every - enlarged(bunch.images[place])).max((1, 2))
        assert gaps.min() <= 0.51  # rounding alone
        assert list(ours.values())[int(gaps.argmin())] == bunch.target[place]


# npz files


def save(path: Path, compress: bool = False, **given_) -> None:
    (np.savez_compressed if compress else np.savez)(path, **given_)


def npy(array: np.ndarray, allow_pickle: bool = False) -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array(out, array, allow_pickle=allow_pickle)
    return out.getvalue()


def zipped(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> None:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("channels", [0, 3])
def test_npz_gives_what_the_arrays_give(tmp_path, compress, channels):
    given_ = arrays(channels=channels)
    save(tmp_path / "mine.npz", compress, **given_)
    assert same(load("mine", tmp_path, validation=0.3, seed=2), ImageData.from_arrays("mine", **given_, validation=0.3, seed=2))
    fortran = {k: np.asfortranarray(v) for k, v in given_.items()}
    save(tmp_path / "f.npz", compress, **fortran)
    assert torch.equal(load("f", str(tmp_path)).train.images, ImageData.from_arrays("mine", **given_).train.images)


def test_npz_class_names_and_known_names(tmp_path, monkeypatch):
    given_ = arrays()
    save(tmp_path / "a.npz", **given_, class_names=np.array(["ash", "bee", "crow", "dog"]))
    save(tmp_path / "b.npz", **given_, class_names=np.array([b"ash", b"bee", b"crow"]))
    save(tmp_path / "cifar10.npz", **given_)
    save(tmp_path / "cifar100.npz", **given_)
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path))
    assert load("a").spec.classes == ("ash", "bee", "crow", "dog")
    assert load("b").spec.classes == ("ash", "bee", "crow")
    known = load("cifar10").spec
    assert known.classes[:3] == ("airplane", "automobile", "bird")
    assert (known.mean, known.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
    hundred = load("cifar100").spec.classes
    assert (len(set(hundred)), list(hundred)) == (100, sorted(hundred))
    save(tmp_path / "mnist.npz", **given_)
    with pytest.raises(InputError, match=r"mnist\.npz: .*mean is .*0\.1307.*allowed: a number for each of 3 channels"):
        load("mnist")
    save(tmp_path / "short.npz", **given_, class_names=np.array(["ash", "bee"]))
    with pytest.raises(InputError, match=r"short\.npz: train labels lie in 0\.\.2; allowed: 0\.\.1"):
        load("short")


class Trap:
    """Unpickling this makes a file."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


def test_npz_pickle_is_never_opened(tmp_path):
    sprung = tmp_path / "sprung"
    for key in ("x_train", "y_test", "class_names"):
        members = {f"{k}.npy": npy(v) for k, v in arrays().items()}
        members[f"{key}.npy"] = npy(np.array([Trap(str(sprung))], dtype=object), allow_pickle=True)
        zipped(tmp_path / "bad.npz", members)
        with pytest.raises(InputError, match=rf"bad\.npz: {key} holds Python objects"):
            load("bad", tmp_path)
    assert not sprung.exists()


def header(shape: tuple[int, ...], dtype: str = "|u1") -> bytes:
    out = io.BytesIO()
    np.lib.format.write_array_header_1_0(out, {"descr": dtype, "fortran_order": False, "shape": shape})
    return out.getvalue()


def test_npz_whose_shape_is_not_its_size_is_refused_before_it_is_read(tmp_path, monkeypatch):
    read = []
    monkeypatch.setattr(np.lib.format, "read_array", lambda *a, **k: read.append(a))
    members = {f"{k}.npy": npy(v) for k, v in arrays().items()}
    cases = {
        "claims more": header((1 << 40, 64, 64, 3)) + bytes(100),
        "claims less": header((2, 4, 4, 3)) + bytes(1000),
        "negative": header((-12, -4, 4, 3)) + bytes(12 * 48),
        "no bytes a number": header((1 << 60,), "|S0"),
    }
    for case, content in cases.items():
        zipped(tmp_path / "bad.npz", {**members, "x_train.npy": content})
        if case == "no bytes a number":
            continue
        with pytest.raises(InputError, match=r"bad\.npz: x_train has -?\d+ bytes, its shape .* damaged"):
            load("bad", tmp_path)
    zipped(tmp_path / "bad.npz", {**members, "class_names.npy": cases["no bytes a number"]})
    with pytest.raises(InputError, match=r"class_names is .*allowed: text of shape \(K,\)"):
        load("bad", tmp_path)
    monkeypatch.setattr(data_sources, "MAX_ARRAY_BYTES", 1 << 20)
    zipped(tmp_path / "bad.npz", {**members, "x_train.npy": header((12, 400, 400, 3)) + bytes(12 * 400 * 400 * 3)}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match=r"its arrays would take 57.* bytes; allowed: up to 1048576"):
        load("bad", tmp_path)
    assert not read


def test_npz_that_says_more_than_its_packed_bytes_can_hold(tmp_path):
    members = {f"{k}.npy": npy(v) for k, v in arrays().items()}
    members["x_train.npy"] = header((1000, 64, 64, 3)) + bytes(100)
    zipped(tmp_path / "bomb.npz", members)
    raw = (tmp_path / "bomb.npz").read_bytes()
    packed, claimed = len(members["x_train.npy"]), 128 + 1000 * 64 * 64 * 3
    # Only the unpacked size is forged (in the local and the central header), so that it agrees with the npy header's shape.
    forged = raw.replace(struct.pack("<II", packed, packed), struct.pack("<II", packed, claimed))
    assert forged != raw
    (tmp_path / "bomb.npz").write_bytes(forged)
    with pytest.raises(InputError, match=rf"x_train says {claimed} bytes in {packed} packed ones"):
        load("bomb", tmp_path)
    zipped(tmp_path / "bomb.npz", members, zipfile.ZIP_BZIP2)
    with pytest.raises(InputError, match=r"allowed: what numpy\.savez writes"):
        load("bomb", tmp_path)


def test_npz_damage_that_has_a_name(tmp_path):
    good = {f"{k}.npy": npy(v) for k, v in arrays().items()}
    file = tmp_path / "bad.npz"

    def refused(message):
        with pytest.raises(InputError, match=message) as caught:
            load("bad", tmp_path)
        assert str(file) in str(caught.value)

    file.write_bytes(b"no zip at all")
    refused("cannot be read as an npz file.*BadZipFile")
    file.write_bytes(b"")
    refused("cannot be read as an npz file")
    zipped(file, {k: v for k, v in good.items() if k != "y_test.npy"})
    refused("has no array 'y_test'; needed: x_train, y_train, x_test, y_test")
    zipped(file, good)
    raw = bytearray(file.read_bytes())
    raw[raw.index(good["x_train.npy"]) + 200] ^= 1
    file.write_bytes(bytes(raw))
    refused("CRC")
    zipped(file, {**good, "x_train.npy": b"\x93NUMPY\x03\x00" + good["x_train.npy"][8:]})
    refused(r"npy format \(3, 0\)")
    zipped(file, {**good, "x_train.npy": b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((("})
    refused("cannot be read as an npz file")
    zipped(file, {**good, "class_names.npy": npy(np.array([b"\xff", b"b", b"c"]))})
    refused("UnicodeDecodeError")
    zipped(file, {**good, "class_names.npy": npy(np.array(["\ud800", "b", "c"]))})
    refused("UnicodeEncodeError")
    zipped(file, {**good, "y_train.npy": npy(np.full(12, -3))})
    refused("y_train lies in -3")
    zipped(file, {**good, "x_test.npy": npy(np.full((6, 4, 4, 3), np.nan))})
    refused("x_test holds floats outside 0 to 1")


def test_npz_fuzz_gives_data_or_one_clear_line(tmp_path):
    rng = np.random.default_rng(20)
    members = {f"{k}.npy": npy(v) for k, v in {**arrays(side=2), "class_names": np.array(["a", "b", "c"])}.items()}
    file = tmp_path / "fuzz.npz"
    messages = []

    def damaged(content: bytes) -> bytes:
        raw = bytearray(content)
        for _ in range(rng.integers(1, 6)):
            place = int(rng.integers(len(raw)))
            match rng.integers(5):
                case 0:
                    raw[place] = int(rng.integers(256))
                case 1:
                    raw[place] ^= 1 << int(rng.integers(8))
                case 2:
                    del raw[place : place + int(rng.integers(1, 40))]
                case 3:
                    raw[place:place] = rng.bytes(int(rng.integers(1, 40)))
                case 4:
                    raw[place : place + 4] = struct.pack("<I", int(rng.choice([0, 1, 2**31, 2**32 - 1])))
            raw = raw or bytearray(1)
        return bytes(raw)

    for turn in range(500):
        parts, method = dict(members), (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)[turn % 2]
        if turn % 3:  # damage inside, under a right checksum
            key = list(parts)[int(rng.integers(len(parts)))]
            head = parts[key][:128] if turn % 3 == 1 else parts[key]
            parts[key] = damaged(head) + parts[key][len(head) :]
        zipped(file, parts, method)
        if not turn % 3:
            file.write_bytes(damaged(file.read_bytes()))
        try:
            data = load("fuzz", tmp_path)
        except InputError as error:
            messages.append(str(error))
        else:
            assert len(data.train) == len(data.train.labels) > 0
            assert sum(data.counts) == len(data.train)
    assert 250 < len(messages) < 500
    assert all("\n" not in message and str(file) in message for message in messages)


# Names


def test_digits_of_another_size_are_the_same_digits():
    usual, larger = load("digits"), load("digits", size=32)
    assert larger.spec.shape == (1, 32, 32)
    assert torch.equal(usual.test.labels, larger.test.labels)
    assert torch.equal(load("digits", size=16).train.images, usual.train.images)
    back = torch.nn.functional.avg_pool2d(larger.train.images.float(), 2)
    assert (back - usual.train.images.float()).abs().mean() < 5


def test_unknown_and_malicious_names(tmp_path):
    (tmp_path / "inner").mkdir()
    save(tmp_path / "outside.npz", **arrays())
    save(tmp_path / "inner" / "mine.npz", **arrays())
    with pytest.raises(InputError, match=r"did you mean 'mnist'.*Allowed: .*folder:PATH.*mine.*mnist"):
        load("mnits", tmp_path / "inner")
    for name in ("../outside", str(tmp_path / "outside"), "", "folder", "mhist", "a\0b", "x" * 5000, 7, "."):
        with pytest.raises(InputError, match="is not known"):
            load(name, tmp_path / "inner")
    for name, size in itertools.product(("folder:", "mhist:", "folder: "), (None, 8)):
        with pytest.raises(InputError, match=rf"data '{name}' has no path; allowed: {name.partition(':')[0]}:PATH, for example"):
            load(name, size=size)
    with pytest.raises(InputError, match="is not known"):
        load("mine", tmp_path / "absent")
    for size in (0, 1.5, True, 10**9):
        with pytest.raises(InputError, match="allowed: 1 to 4096 pixels"):
            load(f"folder:{tmp_path}", size=size)
    with pytest.raises(InputError, match=r"with folder:PATH, mhist:PATH and digits"):
        load("mnist", size=8)
    with pytest.raises(InputError, match="validation is -1"):
        load("digits", validation=-1)


def test_describe_only_looks(tmp_path, monkeypatch):
    (tmp_path / "mnist.npz").write_bytes(b"damaged")
    (tmp_path / "own.npz").write_bytes(b"damaged")
    (tmp_path / "torchvision").mkdir()
    for name in ("usps.bz2", "usps.t.bz2", "train_32x32.mat"):
        (tmp_path / "torchvision" / name).write_bytes(b"")
    monkeypatch.setenv("DISTILL_DATA", str(tmp_path))
    there = {name: available for name, line, available in describe() if line and "\n" not in line}
    assert [n for n in there if n in NAMES] == list(NAMES)
    assert [n for n, available in there.items() if available] == ["digits", "mnist", "usps", "own", "folder:PATH", "mhist:PATH"]
    assert not {n: a for n, _, a in describe(tmp_path / "absent")}["mnist"]


@pytest.mark.parametrize(
    ("imports", "heavy"),
    [
        ("distill.data, distill.data_sources as s; s.describe('/nowhere')", "'torchvision', 'PIL', 'sklearn', 'scipy', 'matplotlib'"),
        ("distill.run", "'torchvision', 'PIL', 'sklearn', 'matplotlib'"),  # in each worker process, too
    ],
)
def test_importing_the_core_loads_no_heavy_library(imports, heavy):
    code = f"import sys, {imports}; print([m for m in ({heavy}) if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# torchvision's files


def idx(array: np.ndarray) -> bytes:
    return struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape) + array.tobytes()


def test_mnist_from_torchvisions_files(tmp_path):
    given_ = arrays(side=28, channels=0)
    raw = tmp_path / "torchvision" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part, prefix in (("train", "train"), ("test", "t10k")):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(idx(given_[f"x_{part}"]))
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(idx(given_[f"y_{part}"].astype(np.uint8)))
    data = load("mnist", tmp_path)
    assert data.train.images[:, 0].numpy().tolist() == given_["x_train"].tolist()
    assert data.test.labels.tolist() == given_["y_test"].tolist()
    assert (data.spec.num_classes, data.spec.mean) == (10, (0.1307,))
    assert {n: a for n, _, a in describe(tmp_path)}["mnist"]
    (raw / "train-images-idx3-ubyte").write_bytes(idx(given_["x_train"])[:-5])
    with pytest.raises(InputError, match=r"data 'mnist': torchvision could not read its files under .*torchvision"):
        load("mnist", tmp_path)
    (raw / "train-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match=r"could not read .*Dataset not found"):
        load("mnist", tmp_path)


def test_usps_from_torchvisions_files(tmp_path):
    (tmp_path / "torchvision").mkdir()
    rng = np.random.default_rng(0)
    for name, labels in (("usps.bz2", [1, 10, 3]), ("usps.t.bz2", [2])):
        rows = [" ".join([str(y), *(f"{i + 1}:{v:.3f}" for i, v in enumerate(rng.uniform(-1, 1, 256)))]) for y in labels]
        (tmp_path / "torchvision" / name).write_bytes(bz2.compress("\n".join(rows).encode()))
    data = load("usps", tmp_path)
    assert data.spec.shape == (1, 16, 16)
    assert data.spec.num_classes == 10
    assert data.train.labels.tolist()[0] == 0


def test_svhn_channels_and_the_download_switch(tmp_path, monkeypatch):
    from torchvision import datasets

    given_ = arrays()
    asked = []

    class SVHN:
        def __init__(self, root, split, download):
            asked.append((root, split, download))
            self.data = np.moveaxis(given_[f"x_{split}"], 3, 1)
            self.labels = given_[f"y_{split}"]

    class Broken:
        def __init__(self, root, train, download):
            raise ConnectionError("no network here")

    monkeypatch.setattr(datasets, "SVHN", SVHN)
    monkeypatch.setattr(datasets, "CIFAR10", Broken)
    monkeypatch.delenv("DISTILL_DOWNLOAD", raising=False)
    where = str(tmp_path / "torchvision")
    with pytest.raises(InputError) as caught:
        load("svhn", tmp_path)
    assert not asked
    for part in (str(tmp_path / "svhn.npz"), where, "DISTILL_DOWNLOAD=1"):
        assert part in str(caught.value)
    monkeypatch.setenv("DISTILL_DOWNLOAD", "1")
    data = load("svhn", tmp_path)
    assert asked == [(where, "train", True), (where, "test", True)]
    assert torch.equal(data.train.images, torch.from_numpy(given_["x_train"]).permute(0, 3, 1, 2))
    with pytest.raises(InputError, match=r"could not download .*no network here"):
        load("cifar10", tmp_path)


# MHIST


def picture(path: Path, width: int = 6, height: int = 6, mode: str = "RGB", seed: int = 0) -> np.ndarray:
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (height, width) if mode == "L" else (height, width, 3)
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return pixels


COLUMNS = ["Image Name", "Majority Vote Label", "Number of Annotators who Selected SSA (Out of 7)", "Partition"]
ROWS = [["a.png", "HP", "0", "train"], ["b.png", "SSA", "6", "train"], ["c.png", "SSA", "4", "test"], ["d.png", "HP", "3", "train"]]


def mhist(path: Path, rows=ROWS, columns=COLUMNS) -> None:
    with (path / "annotations.csv").open("w", newline="") as file:
        csv.writer(file).writerows([columns, *rows])


def test_mhist_layout(tmp_path):
    pixels = {n: picture(tmp_path / "images" / n, 8, 8, seed=s) for s, n in enumerate(("a.png", "b.png", "c.png", "d.png"))}
    mhist(tmp_path)
    data = load(f"mhist:{tmp_path}")
    assert (data.spec.name, data.spec.classes, data.spec.shape) == ("mhist", ("HP", "SSA"), (3, 8, 8))
    assert data.train.labels.tolist() == [0, 1, 0]
    assert data.test.labels.tolist() == [1]
    assert torch.equal(data.train.images, torch.from_numpy(np.stack([pixels[n] for n in ("a.png", "b.png", "d.png")])).permute(0, 3, 1, 2))
    assert torch.equal(data.test.images[0], torch.from_numpy(pixels["c.png"]).permute(2, 0, 1))
    assert load(f"mhist:{tmp_path}", size=4).spec.shape == (3, 4, 4)
    assert len(load(f"mhist:{tmp_path}", validation=0.5).validation) == 1


def test_mhist_refusals(tmp_path):
    for name in ("a.png", "b.png", "c.png", "d.png"):
        picture(tmp_path / "images" / name)
    picture(tmp_path / "secret.png")

    def refused(message, rows=ROWS, columns=COLUMNS):
        mhist(tmp_path, rows, columns)
        with pytest.raises(InputError, match=message):
            load(f"mhist:{tmp_path}")

    refused("line 4: label 'SSB' is not known; did you mean 'SSA'", [*ROWS[:2], ["c.png", "SSB", "4", "test"]])
    refused("line 2: partition 'tests' is not known; did you mean 'test'", [["a.png", "HP", "0", "tests"]])
    refused(r"line 3: image 'e\.png' is not in", [ROWS[0], ["e.png", "HP", "0", "train"]])
    for name in ("../secret.png", str(tmp_path / "secret.png"), "", ".", "x" * 5000):
        refused("line 2: image|cannot be read", [[name, "HP", "0", "train"]])
    refused(r"line 6: image 'a\.png' was listed before", [*ROWS, ["a.png", "HP", "0", "test"]])
    refused("line 2: label", [["a.png"]])
    for missing in (0, 1, 3):
        refused(f"line 1: has no column '{COLUMNS[missing]}'", columns=[c for i, c in enumerate(COLUMNS) if i != missing])
    refused("holds no images", [])
    refused("x_train holds no images", [ROWS[2]])
    (tmp_path / "annotations.csv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"annotations\.csv cannot be read"):
        load(f"mhist:{tmp_path}")
    (tmp_path / "annotations.csv").unlink()
    with pytest.raises(InputError, match=r"annotations\.csv cannot be read"):
        load(f"mhist:{tmp_path}")
    mhist(tmp_path)
    (tmp_path / "images" / "d.png").write_bytes(b"broken")
    with pytest.raises(InputError, match=r"d\.png cannot be read as an image"):
        load(f"mhist:{tmp_path}")


# Real files

FACTS = {
    "mnist": ((1, 28, 28), 60000, 10000),
    "fashion-mnist": ((1, 28, 28), 60000, 10000),
    "cifar10": ((3, 32, 32), 50000, 10000),
    "cifar100": ((3, 32, 32), 50000, 10000),
    "svhn": ((3, 32, 32), 73257, 26032),
    "usps": ((1, 16, 16), 7291, 2007),
}


@pytest.mark.real_data
@real_data
@pytest.mark.parametrize("name", FACTS)
def test_real_files(name):
    if not {n: a for n, _, a in describe()}[name]:
        pytest.skip(f"{name} is not under DISTILL_DATA")
    data = load(name)
    assert (data.spec.shape, len(data.train), len(data.test)) == FACTS[name]
    assert data.train.images.dtype == torch.uint8
    if name == "mnist":
        assert data.counts == (5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949)
    some = data.normalised("train", torch.arange(0, len(data.train), 7))
    assert float(some.mean().abs()) < 0.02
    # CIFAR-10's published std is that of single images, so its normalised pixels spread by more than 1.
    assert float(some.std()) == pytest.approx(1.24 if name == "cifar10" else 1.0, abs=0.03)
