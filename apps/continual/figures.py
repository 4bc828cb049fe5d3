"""Figures of continual learning: the accuracy matrix, accuracy by experience, and the memory growing."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from distill.condensed import CondensedSet
from distill.drawing import Drawing, escaped, title_text
from distill.figures import rows_of_images

MAX_COLUMNS = 40


def matrix_picture(matrix: Sequence[Sequence[float]], title: str) -> Drawing:
    """Rows: after which experience; columns: on which experience's test images."""
    count = len(matrix)
    figure = Figure(figsize=(0.75 * count + 1.6, 0.6 * count + 1.2))
    axis = figure.subplots()
    axis.imshow(np.asarray(matrix), cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value < 60 else "black")
    axis.set_xticks(range(count), [str(i + 1) for i in range(count)])
    axis.set_yticks(range(count), [str(i + 1) for i in range(count)])
    axis.set_xlabel("test images of experience")
    axis.set_ylabel("after experience")
    axis.set_title(title_text(title, max(20, 11 * count)), fontsize=10)
    words = "Test accuracy in percent: rows are the moments after each experience, columns the experience whose test images are classified."
    return Drawing(figure, f"Accuracy matrix: {title}", words)


def accuracy_lines(curves: Mapping[str, Sequence[Sequence[float]]], title: str) -> Drawing:
    """Average accuracy on what was seen so far, by experience; each name has a row of numbers a class order."""
    figure = Figure(figsize=(6.2, 3.8))
    axis = figure.subplots()
    for place, (name, orders) in enumerate(curves.items()):
        values = np.asarray(orders)
        steps = np.arange(1, values.shape[1] + 1)
        line = axis.plot(steps, values.mean(0), marker="osDv^<>ph*"[place % 10], markersize=4, linewidth=1.2, label=escaped(name))[0]
        if len(values) > 1:
            axis.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, linewidth=0)
    axis.set_xlabel("experience (line: mean over class orders; band: lowest to highest)")
    axis.set_ylabel("average accuracy so far, %")
    axis.set_ylim(0, 100)
    axis.set_title(title_text(title), fontsize=10, loc="left")
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    axis.locator_params(axis="x", integer=True)
    words = "Mean test accuracy over the experiences seen so far; line: mean over class orders, band: lowest to highest."
    return Drawing(figure, f"Average accuracy by experience: {title}", words)


def growing_picture(sets: Sequence[CondensedSet], title: str) -> Drawing:
    """One row after each experience: the memory's images in the order they came, at most 40, evenly chosen."""
    most = max(len(memory) for memory in sets)
    rows = {}
    for number, memory in enumerate(sets, 1):
        chosen = np.unique(np.linspace(0, len(memory) - 1, min(len(memory), MAX_COLUMNS)).round().astype(int))
        rows[str(number)] = memory.pixels()[chosen]
    note = f"{MAX_COLUMNS} of {most} images, evenly chosen" if most > MAX_COLUMNS else ""
    words = "One row after each experience: the images that the memory held, in the order they came."
    return rows_of_images(rows, title, words, note)
