"""Figures of many images, in rows of one class or one name."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from distill.drawing import Drawing, class_labels, escaped, joined, left_out, title_text

MAX_CLASSES = 100
MAX_IMAGES = 50  # of a class
ACROSS = 10  # images in a line where every class has one
ROW = (24, 4)  # characters and lines of a label beside a row
_CELL = (0.3, 0.9)  # smallest and largest side of an image, inches
_LINE = 0.145  # inches of a line of text of 8 points

Array = NDArray[np.float32]


def images_by_class(pixels: Tensor, labels: Tensor, classes: Sequence[str], heading: str, remark: str = "") -> Drawing:
    """Images (N, C, H, W) in [0, 1] with labels (N,), by class. A line above them states what is left out, and ``remark``."""
    colours, owners = as_colours(pixels), labels.cpu().numpy()
    there = np.unique(owners).tolist()
    rows = {label: colours[owners == label] for label in there[:MAX_CLASSES]}
    most = max(map(len, rows.values()))
    note = joined([*left_out(len(rows), len(there), "classes"), *left_out(MAX_IMAGES, most, "images of a class"), remark])
    rows = {label: row[:MAX_IMAGES] for label, row in rows.items()}
    single = most == 1
    called = {label: classes[label] for label in rows}
    longest = max((len(word) for name in called.values() for word in name.split()), default=0)
    names, legend = class_labels(called, min(ROW[0], max(13, longest)) if single else ROW[0], 4 if single else 2)
    figure = _one_each(rows, names) if single else image_rows(list(rows.values()), list(names.values()))
    above(figure, note)
    way = "One image a class." if single else "One row a class."
    named = "Class numbers stand for names that do not fit or that the figure's font does not have." if legend else ""
    return Drawing(figure, heading, " ".join(part for part in (way, f"{note.capitalize()}." if note else "", named) if part), legend)


def rows_of_images(rows: Mapping[str, Tensor], heading: str, caption: str, note: str = "") -> Drawing:
    """One row per name with its images (N, C, H, W) in [0, 1], below the heading and ``note``."""
    figure = image_rows([as_colours(row) for row in rows.values()], [escaped(name) for name in rows])
    above(figure, "\n".join(part for part in (title_text(heading), note) if part))
    return Drawing(figure, heading, " ".join(part for part in (caption, f"{note}." if note else "") if part))


# All images on one canvas: thousands of small axes would take minutes, and a PDF keeps one image.


def _one_each(rows: Mapping[int, Array], names: Mapping[int, str]) -> Figure:
    """One image per class in lines of ten, with its name above."""
    across, (height, width) = min(ACROSS, len(rows)), next(iter(rows.values())).shape[1:3]
    cell = _CELL[1]
    unit = cell / max(height, width)  # inches of a pixel
    gap = max(1, round(0.04 / unit))
    pitch = max(width + gap, math.ceil(0.075 * max(len(line) for name in names.values() for line in name.split("\n")) / unit))
    above = math.ceil((max(name.count("\n") for name in names.values()) + 1) * _LINE / unit) + 1
    down = math.ceil(len(rows) / across)
    canvas = np.ones((down * (height + above), across * pitch - gap, 3), np.float32)
    figure, axis = _canvas(canvas, unit)
    for place, (label, row) in enumerate(rows.items()):
        line, column = divmod(place, across)
        top, left = line * (height + above) + above, column * pitch + (pitch - gap - width) // 2
        canvas[top : top + height, left : left + width] = row[0]
        axis.text(left + width / 2, top - 0.02 / unit, names[label], fontsize=8, ha="center", va="bottom", linespacing=1.0)
    _show(axis, canvas, unit)
    return figure


def image_rows(rows: Sequence[Array], names: Sequence[str]) -> Figure:
    """One row per name; many short rows are arranged in several columns of blocks."""
    (height, width), most = rows[0].shape[1:3], max(map(len, rows))
    blocks = min(len(rows), math.ceil(len(rows) / (34 if most <= 12 else 50 if most <= 20 else MAX_CLASSES)))
    down = math.ceil(len(rows) / blocks)
    cell = min(_CELL[1], max(_CELL[0], min(11 / (most * blocks), 30 / down)))
    unit = cell / max(height, width)
    gap = max(1, round(0.03 / unit))
    longest = max(len(line) for name in names for line in name.split("\n"))
    beside = math.ceil((0.068 * longest + 0.12) / unit)  # the labels' column
    pitch = beside + most * (width + gap)
    canvas = np.ones((down * (height + gap) - gap, blocks * pitch - gap, 3), np.float32)
    figure, axis = _canvas(canvas, unit)
    for place, (row, name) in enumerate(zip(rows, names, strict=True)):
        block, line = divmod(place, down)
        top = line * (height + gap)
        for column, image in enumerate(row):
            left = block * pitch + beside + column * (width + gap)
            canvas[top : top + height, left : left + width] = image
        axis.text(block * pitch + beside - 0.06 / unit, top + height / 2, name, fontsize=8, ha="right", va="center", linespacing=1.0)
    _show(axis, canvas, unit)
    return figure


def above(figure: Figure, words: str) -> None:
    if words:
        figure.text(0, 1 + 0.08 / figure.get_size_inches()[1], words, fontsize=9, va="bottom", ha="left")


def as_colours(pixels: Tensor) -> Array:
    """(N, C, H, W) in [0, 1] as (N, H, W, 3): the first three channels as red, green and blue, fewer as grey."""
    images: Array = pixels.detach().cpu().float().permute(0, 2, 3, 1).numpy()
    return images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, -1)


def _canvas(canvas: Array, unit: float) -> tuple[Figure, Axes]:
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width * unit, height * unit))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    return figure, axis


def _show(axis: Axes, canvas: Array, unit: float) -> None:
    """Enlarged pixels are drawn as squares; pixels smaller than the screen's are averaged."""
    height, width = canvas.shape[:2]
    method = "nearest" if unit * 110 >= 1 else "antialiased"
    axis.imshow(canvas, vmin=0, vmax=1, interpolation=method, extent=(0, width, height, 0), aspect="auto")
