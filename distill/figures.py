"""Figures of sets and runs, as `Drawing` values."""

from collections.abc import Mapping, Sequence
from typing import TypedDict

import numpy as np
from matplotlib.figure import Figure

from distill.condensed import CondensedSet
from distill.drawing import Drawing, class_labels, escaped, joined, left_out, title_text
from distill.evaluation import Accuracy
from distill.image_grids import MAX_CLASSES as MAX_CLASSES
from distill.image_grids import MAX_IMAGES, ROW, above, as_colours, image_rows, images_by_class
from distill.image_grids import rows_of_images as rows_of_images


def image_grid(condensed: CondensedSet, heading: str = "Images of a condensed set") -> Drawing:
    """All images of a set, at most 50 of each of 100 classes: one row per class, or ten in a line if every class has one image."""
    white = "whitened set, shown with the whitening undone" if condensed.whitening is not None else ""
    condensed = condensed.decoded()
    return images_by_class(condensed.pixels(), condensed.hard_labels, condensed.spec.classes, heading, white)


def method_rows(sets: Mapping[str, CondensedSet], heading: str = "The first image of each class") -> Drawing:
    """The first image of each class, one row per set and one column per class, to compare methods."""
    first = next(iter(sets.values()))
    present = [label for label, count in enumerate(first.counts) if count]
    labels = present[:MAX_IMAGES]
    rows = []
    for condensed in (made.decoded() for made in sets.values()):
        colours, owners = as_colours(condensed.pixels()), condensed.hard_labels.cpu().numpy()
        blank = np.ones_like(colours[0])
        rows.append(np.stack([next(iter(colours[owners == label]), blank) for label in labels]))
    names, legend = class_labels(dict(enumerate(sets)), *ROW)
    figure = image_rows(rows, list(names.values()))
    above(figure, joined(left_out(len(labels), len(present), "classes")))
    return Drawing(figure, heading, "One row a set, one column a class.", legend)


def accuracy_bars(rows: Mapping[str, Accuracy], title: str) -> Drawing:
    """Mean accuracy of each set (percent) with its 95 % interval."""
    figure = Figure(figsize=(5.5, 0.45 * len(rows) + 1.0))
    axis = figure.subplots()
    for place, accuracy in enumerate(rows.values()):
        error = accuracy.half_width if len(accuracy.values) > 1 and not accuracy.failed else 0
        mean = 0.0 if accuracy.failed else accuracy.mean
        axis.barh(place, mean, xerr=error, color="#4878a8" if place == 0 else "#b8c4d0", capsize=3)
        axis.text(min(100.0, mean + error) + 2, place, f"{accuracy}", va="center", fontsize=8)
    names, legend = class_labels(dict(enumerate(rows)), *ROW)
    axis.set_yticks(range(len(rows)), list(names.values()))
    axis.invert_yaxis()
    axis.set_xlim(0, 100)
    axis.set_xlabel("test accuracy, % (mean and 95 % interval)")
    axis.set_title(title_text(title, 60), fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    return Drawing(figure, f"Test accuracy: {title}", "Mean over networks, with the 95 % interval where there are several.", legend)


def loss_curve(curves: Mapping[str, tuple[Sequence[int], Sequence[float]]], title: str = "") -> Drawing:
    """Matching loss against steps, one line per set."""
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


class AccuracyPoints(TypedDict):
    """Accuracies (percent) along a run, as a record holds them; ``low`` and ``high`` are None where there is no interval."""

    steps: list[int]
    accuracy: list[float]
    low: list[float] | None
    high: list[float] | None
    split: str


def accuracy_curve(curves: Mapping[str, AccuracyPoints]) -> Drawing:
    """Accuracy of the set along its run, one line for each of ``curves`` (``steps``, ``accuracy``, ``low``, ``high``, ``split``)."""
    figure = Figure(figsize=(5.5, 3.2))
    axis = figure.subplots()
    for name, curve in curves.items():
        axis.plot(
            curve["steps"], curve["accuracy"], marker="o", markersize=4, linewidth=1, label=escaped(f"{name}, {curve['split']} images")
        )
        if curve["low"] is not None and curve["high"] is not None:
            axis.fill_between(curve["steps"], curve["low"], curve["high"], alpha=0.2)
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
