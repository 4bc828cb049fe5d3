"""Figures: every image is there or its absence is said, names are whole or numbers with a legend, and files are what their suffix says."""

import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.drawing import Drawing, can_show, class_labels
from distill.errors import InputError
from distill.evaluation import Accuracy
from distill.figures import accuracy_bars, image_grid, method_rows
from distill.spec import DataSpec


def coloured(counts: list[int], names: list[str] | None = None, side: int = 2) -> CondensedSet:
    """A set whose image number n has the one colour (n // 100, n // 10 % 10, n % 10) * 25."""
    number = torch.arange(sum(counts))
    digits = torch.stack([number // 100, number // 10 % 10, number % 10], 1).float() * 25 / 255
    spec = DataSpec("colours", 3, side, side, tuple(names or (f"class {c}" for c in range(len(counts)))), (0.0,) * 3, (1.0,) * 3)
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return CondensedSet(digits[:, :, None, None].expand(-1, 3, side, side).contiguous(), labels, spec)


def colours(drawing: Drawing) -> set[tuple[int, ...]]:
    with Image.open(io.BytesIO(drawing.encoded(dpi=40))) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(image.width * image.height)}


def texts(figure: Figure) -> list[str]:
    return [found.get_text() for found in [*figure.texts, *(text for axis in figure.axes for text in axis.texts)] if found.get_text()]


@pytest.mark.parametrize(
    "counts", [[1] * 100, [10] * 100, [1] * 10, [50, 1, 0, 7], [3]], ids=lambda counts: f"{len(counts)} x {max(counts)}"
)
def test_every_image_of_every_class_is_on_the_grid(counts: list[int]) -> None:
    drawing = image_grid(coloured(counts))
    wanted = {(n // 100 * 25, n // 10 % 10 * 25, n % 10 * 25) for n in range(sum(counts))}
    assert wanted <= colours(drawing)
    assert [text for text in texts(drawing.figure) if "first" in text] == []
    assert {f"class {c}" for c, count in enumerate(counts) if count} == set(texts(drawing.figure))


def test_a_hundred_classes_with_one_image_are_ten_by_ten() -> None:
    width, height = image_grid(coloured([1] * 100)).figure.get_size_inches()
    assert 0.6 < width / height < 1.1


def test_images_stand_beside_their_own_name() -> None:
    drawing = image_grid(coloured([2] * 70, side=4))  # in several blocks
    axis = drawing.figure.axes[0]
    canvas = np.asarray(axis.images[0].get_array())
    for text in axis.texts:
        x, y = text.get_position()
        found = np.flatnonzero((canvas[int(y), int(x) :] < 1).any(-1))[0] + int(x)
        number = int(text.get_text().split()[1]) * 2
        assert np.allclose(canvas[int(y), found] * 255, [number // 100 * 25, number // 10 % 10 * 25, number % 10 * 25])


def test_what_is_left_out_is_said_on_the_figure() -> None:
    drawing = image_grid(coloured([1] * 101))
    assert "first 100 of 101 classes" in texts(drawing.figure)
    assert "First 100 of 101 classes." in drawing.caption
    assert "first 50 of 51 images of a class" in texts(image_grid(coloured([51, 2])).figure)
    rows = method_rows({"dm": coloured([1] * 60), "gm": coloured([1] * 60)})
    assert "first 50 of 60 classes" in texts(rows.figure)


def test_a_whitened_set_says_so(digits: ImageData) -> None:
    white = digits.whitened()
    images = white.normalised("train", torch.arange(3))
    tiny = CondensedSet(images, white.train.labels[:3], digits.spec, whitening=white.whitening)
    assert any("whitened" in text for text in texts(image_grid(tiny).figure))
    assert "whitening undone" in image_grid(tiny).caption


@pytest.mark.parametrize("per_class", [1, 2])
def test_names_are_never_cut(per_class: int) -> None:
    names = ["adenocarcinoma in situ", "adenocarcinoma invasive", "a$b$"]
    drawing = image_grid(coloured([per_class] * 3, names))
    assert [text.replace("\n", " ") for text in texts(drawing.figure)] == ["adenocarcinoma in situ", "adenocarcinoma invasive", r"a\$b\$"]
    assert drawing.legend == ()
    drawing.encoded()


@pytest.mark.parametrize(
    "names",
    [
        ["数字", "猫", "cat"],
        ["شجرة", "cat", "dog"],
        ["cat", "dog", "x" * 200],
        ["cat", "cat", "dog"],
        ["a b", "a  b", "dog"],
        ["caf\u00e9", "cafe\u0301", "dog"],
        ["a\x1b[2J", "cat", "dog"],
        ["", "cat", "dog"],
    ],
    ids=["Chinese", "Arabic", "long", "twice", "spaces", "composed", "control", "empty"],
)
@pytest.mark.parametrize("per_class", [1, 2])
def test_names_that_cannot_be_shown_are_numbers_with_a_legend(names: list[str], per_class: int) -> None:
    drawing = image_grid(coloured([per_class, per_class, 0, per_class], [*names[:2], "left out", names[2]]))
    assert texts(drawing.figure) == ["0", "1", "3"]
    assert drawing.legend == tuple(f"{c}: {name or '(no name)'}" for c, name in zip((0, 1, 3), names, strict=True))
    with Image.open(io.BytesIO(drawing.encoded(dpi=30))) as image:
        kept = image.text["Description"].split("\n", 1)[1]  # type: ignore[attr-defined]
    assert kept == "\n".join("".join(char if char.isprintable() else "?" for char in line) for line in drawing.legend)


def test_what_the_font_has_is_asked_of_the_font() -> None:
    assert can_show("Größe, naïve, кот, γάτα, 5 µm")
    assert not can_show("数字")
    assert not can_show("שלום"), "right to left"
    assert class_labels({3: "кот"}, 20, 1) == ({3: "кот"}, ())


def test_a_title_that_cannot_be_shown_is_the_heading_only() -> None:
    drawing = accuracy_bars({"dm": Accuracy((50.0, 52.0))}, "数字")
    assert drawing.figure.axes[0].get_title(loc="left") == ""
    assert "数字" in drawing.heading


def test_a_small_accuracy_can_be_read_beside_its_bar() -> None:
    axis = accuracy_bars({"dm": Accuracy((10.0, 10.4)), "whole": Accuracy((99.0,))}, "t").figure.axes[0]
    for text, bar in zip(axis.texts, axis.patches, strict=True):
        assert text.get_position()[0] > bar.get_width(), "on the bar"  # type: ignore[attr-defined]
        assert text.get_color() == "black"


# Files


def test_a_file_is_what_its_suffix_says(tmp_path: Path) -> None:
    drawing = image_grid(coloured([1, 1]), "Two classes")
    starts = {"png": b"\x89PNG", "pdf": b"%PDF-", "svg": b"<?xml"}
    for form, start in starts.items():
        for name in (f"new/x.{form}", f"new/y.{form.upper()}"):
            drawing.save(tmp_path / name)
            content = (tmp_path / name).read_bytes()
            assert content.startswith(start)
            assert content == drawing.encoded(form), "the same figure, the same bytes"
    svg = drawing.encoded("svg").decode()
    assert "<svg" in svg
    assert "Two classes" in svg
    assert not re.search(r"20[0-9]{2}-[0-9]{2}-[0-9]{2}", svg.partition("<defs>")[0]), "a date"
    assert b"/Type3" not in drawing.encoded("pdf"), "letters that journals refuse"
    bars = accuracy_bars({"dm": Accuracy((50.0, 52.0))}, "t")
    assert "<image" not in bars.encoded("svg").decode(), "a picture of a chart is no vector figure"
    for name in ("x.jpg", "x", "x.png.gz", "."):
        with pytest.raises(InputError, match=r"a figure's file ends in \.png, \.pdf, \.svg\."):
            drawing.save(tmp_path / name)


def test_dots_per_inch() -> None:
    drawing = image_grid(coloured([1, 1]))
    sizes = [Image.open(io.BytesIO(drawing.encoded("png", dpi))).size for dpi in (100, 300)]
    assert sizes[1][0] == pytest.approx(3 * sizes[0][0], abs=6)
    for dpi in (29, 1201, 0, -1):
        with pytest.raises(InputError, match=r"allowed: 30 to 1200\."):
            drawing.encoded("png", dpi)
    with pytest.raises(InputError, match="allowed for it: at most "):
        image_grid(coloured([10] * 100)).encoded("png", 1200)
    with pytest.raises(InputError, match="figure format 'jpg' is not known"):
        drawing.encoded("jpg")
