"""Where mean, std, class list and size come from goes with the data, and what is given replaces what the files give."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import distill
from distill.data import ImageData
from distill.data_given import with_given
from distill.errors import InputError
from distill.experts import ExpertConfig, cache_folder
from distill.spec import DataSpec
from tests.conftest import toy, toy_arrays

COMPUTED = {"normalisation": "computed", "classes": "computed", "population": "computed"}
# How a part of the data, or other numbers, come about; none of them may change what was computed into something else.
PARTS: dict[str, Callable[[ImageData], ImageData]] = {
    "validation": lambda data: data.hold_out(0.2),
    "classes": lambda data: data.subset([0, 2]),
    "half of the images": lambda data: dataclasses.replace(data, train=data.train.at(torch.arange(0, len(data.train), 2))),
    "long-tailed": lambda data: data.long_tailed(3.0),
    "rounded": lambda data: dataclasses.replace(
        data, spec=dataclasses.replace(data.spec, mean=(round(data.spec.mean[0], 2),), std=(round(data.spec.std[0], 2),))
    ),
    "renamed": lambda data: dataclasses.replace(data, spec=dataclasses.replace(data.spec, name="digits")),
    "moved": lambda data: data.to("cpu"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten grey 6 x 6 images each of b and a, named by folders."""
    numbers = np.random.default_rng(0)
    for number, name in enumerate(("b", "a")):
        (tmp_path / "mine" / name).mkdir(parents=True)
        for k in range(10):
            Image.fromarray(numbers.integers(0, 60 + 100 * number, (6, 6), dtype=np.uint8)).save(tmp_path / "mine" / name / f"{k}.png")
    return tmp_path / "mine"


@pytest.mark.parametrize("part", PARTS)
def test_what_was_computed_stays_computed(part: str) -> None:
    assert PARTS[part](toy()).spec.origins == COMPUTED


def test_origins_change_no_equality_no_hash_and_no_file_of_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy()
    other = data.with_origins(normalisation="given", classes="published", population="published")
    assert other.spec == data.spec
    assert hash(other.spec) == hash(data.spec)
    assert repr(other.spec) == repr(data.spec)
    assert other.fingerprint == data.fingerprint
    assert "normalisation_origin" not in data.spec.facts
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path))
    assert cache_folder(data, ExpertConfig(network="MLP")) == cache_folder(other, ExpertConfig(network="MLP"))
    with pytest.raises(InputError, match="normalisation_origin is 'guessed'; allowed: published, given, computed"):
        dataclasses.replace(data.spec, normalisation_origin="guessed")  # type: ignore[arg-type]


def test_arrays_say_what_was_given() -> None:
    def origins(**given: Any) -> dict[str, str]:
        return dict(ImageData.from_arrays("mine", *toy_arrays(), *toy_arrays(1), **given).spec.origins)

    assert origins() == COMPUTED
    assert origins(mean=(0.5,)) == COMPUTED, "one of the two was still computed"
    assert origins(mean=(0.5,), std=(0.5,)) == {**COMPUTED, "normalisation": "given"}
    assert origins(classes=("a", "b", "c")) == {**COMPUTED, "classes": "given"}


def test_named_data_are_published_and_files_of_ones_own_are_not(tmp_path: Path, folder: Path) -> None:
    assert set(distill.load("digits", size=8, validation=0.1).spec.origins.values()) == {"published"}
    x, y = toy_arrays(classes=2)
    np.savez(tmp_path / "mine.npz", x_train=x, y_train=y, x_test=x, y_test=y, class_names=np.array(["p", "q"]))
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    np.savez(tmp_path / "usps.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    assert distill.load("mine", tmp_path).spec.origins == COMPUTED
    assert set(distill.load("mnist", tmp_path).spec.origins.values()) == {"published"}, "numbers of the name, not of the file"
    assert distill.load("usps", tmp_path).spec.origins == {"normalisation": "computed", "classes": "published", "population": "published"}
    assert distill.load(f"folder:{folder}", validation=0.2).spec.origins == COMPUTED


def test_given_names_are_the_order_of_the_labels(folder: Path) -> None:
    plain = distill.load(f"folder:{folder}")
    data = distill.load(f"folder:{folder}", mean=[0.4], std=[0.2], classes=["b", "never seen", "a"], validation=0.2)
    assert plain.spec.classes == ("a", "b")
    assert data.spec == DataSpec("mine", 1, 6, 6, ("b", "never seen", "a"), (0.4,), (0.2,))
    assert data.spec.origins == {"normalisation": "given", "classes": "given", "population": "computed"}
    assert data.spec.given == {"mean": (0.4,), "std": (0.2,), "classes": ("b", "never seen", "a")}
    assert any("1 of 3 classes have no training images (never seen)" in note for note in data.notes)
    bright = {plain.spec.classes[k]: plain.test.images[plain.test.labels == k].float().mean() for k in (0, 1)}
    assert bright["a"] > bright["b"], "a is the bright one"
    assert data.test.images[data.test.labels == 2].float().mean() == bright["a"]
    assert torch.allclose(data.normalised("test", torch.arange(2)), (data.test.images[:2].float() / 255 - 0.4) / 0.2)


def test_given_names_are_found_in_labels_and_in_named_data() -> None:
    data = distill.load("digits", size=8, classes=list("9876543210"))
    plain = distill.load("digits", size=8)
    assert torch.equal(data.train.labels, 9 - plain.train.labels)
    assert data.spec.origins == {"normalisation": "published", "classes": "given", "population": "published"}
    assert with_given(plain) is plain


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"mean": [0.5]}, "mean is given without std; give both, or neither."),
        ({"std": [0.5]}, "std is given without mean; give both, or neither."),
        ({"mean": [0.5, 0.5], "std": [0.5]}, r"mean is \[0.5, 0.5\]; allowed: a list of a finite number for each of 1 channel"),
        ({"mean": [math.nan], "std": [0.5]}, "mean is .nan.; allowed: a list of a finite number"),
        ({"mean": [10**400], "std": [0.5]}, "allowed: a list of a finite number"),
        ({"mean": [True], "std": [0.5]}, "mean is .True.; allowed"),
        ({"mean": 0.5, "std": 0.5}, "mean is 0.5; allowed: a list"),
        ({"mean": ["0.5"], "std": [0.5]}, "allowed: a list of a finite number"),
        ({"mean": [0.5], "std": [0.0]}, r"std is \[0.0\]; allowed: a list of a positive number"),
        ({"mean": [0.5], "std": [-1.0]}, r"std is \[-1.0\]; allowed: a list of a positive number"),
        ({"classes": ["a"]}, r"data 'mine' have images of the class 'b', which is not in classes = \['a'\]"),
        ({"classes": "ab"}, "classes is ab; allowed: a list of class names"),
        ({"classes": [0, 1]}, r"classes is \[0, 1\]; allowed: a list of class names"),
        ({"classes": []}, "allowed: a list of class names"),
        ({"classes": ["a", "b", "a"]}, "allowed: different names, each once"),
        ({"classes": ["a", "b", "x" * 300]}, "allowed: names of at most 200 characters"),
    ],
)
def test_what_does_not_fit_is_one_line(folder: Path, given: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        distill.load(f"folder:{folder}", **given)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
