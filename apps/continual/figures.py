"""Pictures of continual learning, as PNG bytes: the accuracy matrix, accuracy by experience, and the memory growing."""

import io
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from distill.condensed import CondensedSet

MAX_COLUMNS = 40


def matrix_picture(matrix: Sequence[Sequence[float]], title: str) -> bytes:
    """Rows: after which experience; columns: on which experience's test images."""
    count = len(matrix)
    figure = Figure(figsize=(0.75 * count + 1.6, 0.6 * count + 1.2), dpi=110)
    axis = figure.subplots()
    axis.imshow(np.asarray(matrix), cmap="viridis", vmin=0, vmax=100, aspect="auto")
    for i, row in enumerate(matrix):
        for j, value in enumerate(row):
            axis.text(j, i, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value < 60 else "black")
    axis.set_xticks(range(count), [str(i + 1) for i in range(count)])
    axis.set_yticks(range(count), [str(i + 1) for i in range(count)])
    axis.set_xlabel("test images of experience")
    axis.set_ylabel("after experience")
    axis.set_title(title[:80], fontsize=10)
    return _png(figure)


def accuracy_lines(curves: Mapping[str, Sequence[Sequence[float]]], title: str) -> bytes:
    """Average accuracy on what was seen so far, by experience; each name has a row of numbers a class order."""
    figure = Figure(figsize=(6.2, 3.8), dpi=110)
    axis = figure.subplots()
    for place, (name, orders) in enumerate(curves.items()):
        values = np.asarray(orders)
        steps = np.arange(1, values.shape[1] + 1)
        line = axis.plot(steps, values.mean(0), marker="osDv^<>ph*"[place % 10], markersize=4, linewidth=1.2, label=name)[0]
        if len(values) > 1:
            axis.fill_between(steps, values.min(0), values.max(0), color=line.get_color(), alpha=0.12, linewidth=0)
    axis.set_xlabel("experience (line: mean over class orders; band: lowest to highest)")
    axis.set_ylabel("average accuracy so far, %")
    axis.set_ylim(0, 100)
    axis.set_title(title[:80], fontsize=10)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.get_major_locator().set_params(integer=True)
    return _png(figure)


def growing_picture(sets: Sequence[CondensedSet], title: str) -> bytes:
    """One row after each experience: the memory's images in the order they came, as pixels."""
    across = min(MAX_COLUMNS, max(len(held) for held in sets))
    figure = Figure(figsize=(0.55 * across + 0.8, 0.58 * len(sets) + 0.5), dpi=110)
    axes = np.asarray(figure.subplots(len(sets), across, squeeze=False, gridspec_kw={"wspace": 0.06, "hspace": 0.06}))
    for axis in axes.flat:
        axis.set_axis_off()
    for row, held in enumerate(sets):
        for column, image in enumerate(held.pixels()[:across].permute(0, 2, 3, 1).cpu().numpy()):
            shown = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
            axes[row, column].imshow(shown, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        axes[row, 0].text(-0.2, 0.5, str(row + 1), transform=axes[row, 0].transAxes, ha="right", va="center", fontsize=8)
    figure.suptitle(title[:80], fontsize=9, y=1.0)
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No date or version in the file: the same run gives the same bytes.
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
