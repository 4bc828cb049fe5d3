"""Figures of sets and runs, as `Drawing` values."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor

from distill.condensed import CondensedSet
from distill.drawing import Drawing, class_labels, escaped, joined, left_out, title_text
from distill.evaluation import Accuracy

MAX_CLASSES = 100
MAX_IMAGES = 50  # of a class
ACROSS = 10  # images in a line where every class has one
_ROW = (24, 4)  # characters and lines of a label beside a row
_CELL = (0.3, 0.9)  # smallest and largest side of an image, inches
_LINE = 0.145  # inches of a line of text of 8 points

Array = NDArray[np.float32]


def image_grid(condensed: CondensedSet, heading: str = "Images of a condensed set") -> Drawing:
    """All images of a set, up to 50 of each of 100 classes: one row a class, or ten in a line where every class has one image."""
    white = "whitened set, shown with the whitening undone" if condensed.whitening is not None else ""
    return images_by_class(condensed.pixels(), condensed.hard_labels, condensed.spec.classes, heading, white)


def images_by_class(pixels: Tensor, labels: Tensor, classes: Sequence[str], heading: str, remark: str = "") -> Drawing:
    """Images (N, C, H, W) in [0, 1] with labels (N,), by class; what is left out and ``remark`` are above the images."""
    colours, owners = _colours(pixels), labels.cpu().numpy()
    there = np.unique(owners).tolist()
    rows = {label: colours[owners == label] for label in there[:MAX_CLASSES]}
    most = max(map(len, rows.values()))
    note = joined([*left_out(len(rows), len(there), "classes"), *left_out(MAX_IMAGES, most, "images of a class"), remark])
    rows = {label: row[:MAX_IMAGES] for label, row in rows.items()}
    single = most == 1
    called = {label: classes[label] for label in rows}
    longest = max((len(word) for name in called.values() for word in name.split()), default=0)
    names, legend = class_labels(called, min(_ROW[0], max(13, longest)) if single else _ROW[0], 4 if single else 2)
    figure = _one_each(rows, names) if single else _rows(list(rows.values()), list(names.values()))
    _above(figure, note)
    way = "One image a class." if single else "One row a class."
    named = "Class numbers stand for names that do not fit or that the figure's font does not have." if legend else ""
    return Drawing(figure, heading, " ".join(part for part in (way, f"{note.capitalize()}." if note else "", named) if part), legend)


def method_rows(sets: Mapping[str, CondensedSet], heading: str = "The first image of each class") -> Drawing:
    """One row a set, one column a class: the first image of each class, to compare what methods make of the same data."""
    first = next(iter(sets.values()))
    there = [label for label, count in enumerate(first.counts) if count]
    shown = there[:MAX_IMAGES]
    rows = []
    for condensed in sets.values():
        colours, owners = _colours(condensed.pixels()), condensed.hard_labels.cpu().numpy()
        blank = np.ones_like(colours[0])
        rows.append(np.stack([next(iter(colours[owners == label]), blank) for label in shown]))
    names, legend = class_labels(dict(enumerate(sets)), *_ROW)
    figure = _rows(rows, list(names.values()))
    _above(figure, joined(left_out(len(shown), len(there), "classes")))
    return Drawing(figure, heading, "One row a set, one column a class.", legend)


def rows_of_images(rows: Mapping[str, Tensor], heading: str, caption: str, note: str = "") -> Drawing:
    """One row a name with its images (N, C, H, W) in [0, 1]; heading and ``note`` stand above them."""
    figure = _rows([_colours(row) for row in rows.values()], [escaped(name) for name in rows])
    _above(figure, "\n".join(part for part in (title_text(heading), note) if part))
    return Drawing(figure, heading, " ".join(part for part in (caption, f"{note}." if note else "") if part))


def accuracy_bars(rows: Mapping[str, Accuracy], title: str) -> Drawing:
    """Mean accuracy of each set with its 95 % interval."""
    figure = Figure(figsize=(5.5, 0.45 * len(rows) + 1.0))
    axis = figure.subplots()
    for place, found in enumerate(rows.values()):
        error = found.half_width if len(found.values) > 1 and not found.failed else 0
        mean = 0.0 if found.failed else found.mean
        axis.barh(place, mean, xerr=error, color="#4878a8" if place == 0 else "#b8c4d0", capsize=3)
        axis.text(min(100.0, mean + error) + 2, place, f"{found}", va="center", fontsize=8)
    names, legend = class_labels(dict(enumerate(rows)), *_ROW)
    axis.set_yticks(range(len(rows)), list(names.values()))
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("test accuracy, % (mean and 95 % interval)")
    axis.set_title(title_text(title, 60), fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    return Drawing(figure, f"Test accuracy: {title}", "Mean over networks, with the 95 % interval where there are several.", legend)


def loss_curve(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str = "") -> Drawing:
    """Matching loss against steps, one line a set."""
    figure = Figure(figsize=(5.5, 3.2))
    axis = figure.subplots()
    for name, (steps, losses) in curves.items():
        axis.plot(steps, losses, label=escaped(name), linewidth=1, marker="." if len(steps) < 20 else None)
    if all(loss > 0 for _, losses in curves.values() for loss in losses):
        axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("matching loss")
    if curves:
        axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return Drawing(figure, f"Matching loss{f': {title}' if title else ''}", "The method's loss at the steps that were logged.")


def accuracy_curve(curves: Mapping[str, Mapping[str, Any]]) -> Drawing:
    """Accuracy of the set along its run, one line for each of ``curves`` (``steps``, ``accuracy``, ``low``, ``high``, ``split``)."""
    figure = Figure(figsize=(5.5, 3.2))
    axis = figure.subplots()
    for name, one in curves.items():
        axis.plot(one["steps"], one["accuracy"], marker="o", markersize=4, linewidth=1, label=escaped(f"{name}, {one['split']} images"))
        if one["low"] is not None:
            axis.fill_between(one["steps"], one["low"], one["high"], alpha=0.2)
    axis.set_xscale("log", base=2)
    axis.set_xlabel("step")
    axis.set_ylabel("accuracy, %")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    words = "Mean accuracy of networks trained briefly on snapshots of the set; the band is a 95 % interval of one pooled spread."
    return Drawing(figure, "Accuracy along the run", words)


def step_size_curve(rows: dict[float, Accuracy], failed: Sequence[float], chosen: float, name: str) -> Drawing:
    """Accuracy against the step size (logarithmic) with 95 % intervals; step sizes that failed are crosses at the bottom."""
    figure = Figure(figsize=(5.5, 3.2))
    axis = figure.subplots()
    sizes = sorted(rows)
    means = [rows[size].mean for size in sizes]
    errors = [rows[size].half_width if len(rows[size].values) > 1 else 0.0 for size in sizes]
    axis.errorbar(sizes, means, yerr=errors, marker="o", markersize=4, capsize=3, linewidth=1)
    axis.plot([chosen], [rows[chosen].mean], "o", markersize=9, fillstyle="none", color="black", label=f"chosen: {chosen:.4g}")
    if failed:
        axis.plot(failed, [axis.get_ylim()[0]] * len(failed), "x", color="tab:red", label="failed")
    axis.set_xscale("log")
    axis.set_xlabel(escaped(name))
    axis.set_ylabel("accuracy on held-out images, %")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    words = "Mean accuracy on held-out training images with 95 % intervals; the circle is the chosen step size."
    return Drawing(figure, f"Accuracy by {name}", words)


# Images on one canvas: thousands of small axes would take minutes, and one picture stays one picture in a PDF


def _one_each(rows: Mapping[int, Array], names: Mapping[int, str]) -> Figure:
    """One image a class in lines of ten, its name above it."""
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


def _rows(rows: Sequence[Array], names: Sequence[str]) -> Figure:
    """One row a name; many short rows stand in several blocks beside each other."""
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


def _canvas(canvas: Array, unit: float) -> tuple[Figure, Axes]:
    height, width = canvas.shape[:2]
    figure = Figure(figsize=(width * unit, height * unit))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set_axis_off()
    return figure, axis


def _above(figure: Figure, words: str) -> None:
    if words:
        figure.text(0, 1 + 0.08 / figure.get_size_inches()[1], words, fontsize=9, va="bottom", ha="left")


def _show(axis: Axes, canvas: Array, unit: float) -> None:
    """Pixels stay squares when they are enlarged, and are averaged when they are made smaller than the screen's."""
    height, width = canvas.shape[:2]
    method = "nearest" if unit * 110 >= 1 else "antialiased"
    axis.imshow(canvas, vmin=0, vmax=1, interpolation=method, extent=(0, width, height, 0), aspect="auto")


def _colours(pixels: Tensor) -> Array:
    """(N, C, H, W) in [0, 1] as (N, H, W, 3): the first three channels as red, green and blue, fewer as grey."""
    images: Array = pixels.detach().cpu().float().permute(0, 2, 3, 1).numpy()
    return images[..., :3] if images.shape[-1] >= 3 else np.repeat(images[..., :1], 3, -1)
