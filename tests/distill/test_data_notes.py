"""Pixels and normalisation of another scale than the stated one: noted, and not noted on what is right."""

import numpy as np
import pytest

from distill.data import ImageData
from distill.data_given import with_given
from distill.data_notes import value_notes
from distill.data_sources import load
from tests.conftest import toy_arrays

IMAGES, LABELS = toy_arrays()
BYTES = "which pixels in 0 to 1 cannot have: of bytes, divide both by 255."


def made(images: np.ndarray, **more: list[float]) -> ImageData:
    return ImageData.from_arrays("toy", images, LABELS, images, LABELS, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("images", "more", "says"),
    [
        ((IMAGES > 128).astype(np.uint8), {}, "training images are bytes (0 to 255), and none is above 1"),
        (IMAGES.astype(np.float32) / 255**2, {}, f"none is above {IMAGES.max() / 255**2:.3g}: they look divided by 255 twice"),
        (IMAGES, {"mean": [125.3], "std": [63.0]}, f"mean [125.3] and std [63.0], {BYTES}"),
        (IMAGES, {"mean": [0.5], "std": [63.0]}, BYTES),
    ],
)
def test_another_scale_is_noted(images: np.ndarray, more: dict[str, list[float]], says: str) -> None:
    (line,) = made(images, **more).notes
    assert says in line
    assert "\n" not in line


@pytest.mark.parametrize("more", [{}, {"mean": [0.5], "std": [0.5]}, {"mean": [0.0], "std": [1.0]}])
@pytest.mark.parametrize("kind", ["bytes", "floats", "black"])
def test_the_right_scale_is_not(kind: str, more: dict[str, list[float]]) -> None:
    images = {"bytes": IMAGES, "floats": IMAGES.astype(np.float32) / 255, "black": np.zeros_like(IMAGES)}[kind]
    assert made(images, **more).notes == ()
    assert load("digits").notes == ()


def test_a_normalisation_that_is_given_later_is_noted_once() -> None:
    data = made((IMAGES > 128).astype(np.uint8))
    given = with_given(data, [125.3], [63.0], ["0", "1", "2", "d"])
    assert [note.partition(",")[0] for note in given.notes] == [
        "1 of 4 classes have no training images (d); number the classes without gaps",
        "training images are bytes (0 to 255)",
        "images are normalised with mean [125.3] and std [63.0]",
    ]
    assert with_given(data).notes == data.notes
    assert value_notes(data.train.images.float(), (0.1,), (0.2,)) == ()
