"""Pictures of sets and runs, as PNG bytes."""

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from distill.condensed import CondensedSet
from distill.evaluation import Accuracy

MAX_COLUMNS = 20
MAX_CLASSES = 20


def image_grid(condensed: CondensedSet) -> bytes:
    """One row a class (one row in all at one image a class), pixels as they are; long sets show their first images."""
    pixels = condensed.pixels().cpu().permute(0, 2, 3, 1).numpy()
    labels = condensed.hard_labels.cpu().numpy()
    shown = [c for c, count in enumerate(condensed.counts) if count][:MAX_CLASSES]
    rows = [pixels[labels == c][:MAX_COLUMNS] for c in shown]
    single = all(len(row) == 1 for row in rows)
    names = [condensed.spec.classes[c] for c in shown]
    down, across = (1, len(rows)) if single else (len(rows), max(map(len, rows)))
    figure = Figure(figsize=(0.9 * across + (0 if single else 0.9), 0.9 * down + 0.3), dpi=110)
    axes = np.asarray(figure.subplots(down, across, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05}))
    for axis in axes.flat:
        axis.set_axis_off()
    for i, row in enumerate(rows):
        for j, image in enumerate(row):
            axis = axes[0, i] if single else axes[i, j]
            axis.imshow(image[..., :3] if image.shape[-1] >= 3 else image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if single:
                axis.set_title(_drawable(names[i][:12]), fontsize=8)
            elif j == 0:
                axis.text(-0.15, 0.5, _drawable(names[i][:12]), transform=axis.transAxes, ha="right", va="center", fontsize=8)
    return _png(figure)


def method_rows(sets: dict[str, CondensedSet]) -> bytes:
    """One row a set, one column a class: the first image of each class, to compare what methods make of the same data."""
    classes = [c for c, count in enumerate(next(iter(sets.values())).counts) if count][:MAX_COLUMNS]
    figure = Figure(figsize=(0.9 * len(classes) + 0.9, 0.9 * len(sets) + 0.3), dpi=110)
    axes = np.asarray(figure.subplots(len(sets), len(classes), squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05}))
    for i, (name, condensed) in enumerate(sets.items()):
        pixels, labels = condensed.pixels().cpu().permute(0, 2, 3, 1).numpy(), condensed.hard_labels.cpu().numpy()
        for j, label in enumerate(classes):
            axis = axes[i, j]
            axis.set_axis_off()
            for image in pixels[labels == label][:1]:
                colour = image[..., :3] if image.shape[-1] >= 3 else image[..., 0]
                axis.imshow(colour, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            if j == 0:
                axis.text(-0.15, 0.5, _drawable(name[:14]), transform=axis.transAxes, ha="right", va="center", fontsize=9)
    return _png(figure)


def accuracy_bars(rows: dict[str, Accuracy], title: str) -> bytes:
    """Mean accuracy of each set with its 95 % interval."""
    figure = Figure(figsize=(5.5, 0.45 * len(rows) + 1.0), dpi=110)
    axis = figure.subplots()
    for place, found in enumerate(rows.values()):
        error = found.half_width if len(found.values) > 1 and not found.failed else 0
        axis.barh(place, 0 if found.failed else found.mean, xerr=error, color="#4878a8" if place == 0 else "#b8c4d0", capsize=3)
        axis.text(1, place, f"{found}", va="center", fontsize=8, color="white" if place == 0 and not found.failed else "black")
    axis.set_yticks(range(len(rows)), [_drawable(name) for name in rows])
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("test accuracy, % (mean and 95 % interval)")
    axis.set_title(_drawable(title[:80]), fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def loss_curve(curves: dict[str, tuple[Sequence[int], Sequence[float]]]) -> bytes:
    """Matching loss against steps, one line a set."""
    figure = Figure(figsize=(5.5, 3.2), dpi=110)
    axis = figure.subplots()
    for name, (steps, losses) in curves.items():
        axis.plot(steps, losses, label=name, linewidth=1)
    if all(loss > 0 for _, losses in curves.values() for loss in losses):
        axis.set_yscale("log")
    axis.set_xlabel("step")
    axis.set_ylabel("matching loss")
    if curves:
        axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def step_size_curve(rows: dict[float, Accuracy], failed: Sequence[float], chosen: float, name: str) -> bytes:
    """Accuracy against the step size (logarithmic) with 95 % intervals; step sizes that failed are crosses at the bottom."""
    figure = Figure(figsize=(5.5, 3.2), dpi=110)
    axis = figure.subplots()
    sizes = sorted(rows)
    means = [rows[size].mean for size in sizes]
    errors = [rows[size].half_width if len(rows[size].values) > 1 else 0.0 for size in sizes]
    axis.errorbar(sizes, means, yerr=errors, marker="o", markersize=4, capsize=3, linewidth=1)
    axis.plot([chosen], [rows[chosen].mean], "o", markersize=9, fillstyle="none", color="black", label=f"chosen: {chosen:.4g}")
    if failed:
        axis.plot(failed, [axis.get_ylim()[0]] * len(failed), "x", color="tab:red", label="failed")
    axis.set_xscale("log")
    axis.set_xlabel(_drawable(name))
    axis.set_ylabel("accuracy on held-out images, %")
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def _drawable(text: str) -> str:
    """Names come from elsewhere: only characters that the font has, and a dollar sign that starts no formula."""
    return "".join(char if char.isprintable() and char <= "\u04ff" else "?" for char in text).replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No date or version in the file: the same run gives the same bytes.
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
