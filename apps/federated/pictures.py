"""Figures of a federation: who holds what, accuracy against rounds and bytes, and what each client sent."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray
from torch import Tensor

from distill.condensed import CondensedSet
from distill.drawing import Drawing, class_labels, escaped, joined, left_out, title_text
from distill.evaluation import Accuracy
from distill.figures import rows_of_images
from distill.records import Json

MAX_SHOWN = 20


def holdings(counts: NDArray[np.int64], classes: Sequence[str], title: str) -> Drawing:
    """Images of each class (columns) at each client (rows); darker is more."""
    rows, columns = counts.shape
    figure = Figure(figsize=(0.5 * columns + 1.6, 0.32 * min(rows, 60) + 1.2))
    axis = figure.subplots()
    image = axis.imshow(np.log1p(counts), cmap="Blues", aspect="auto")
    labels, legend = class_labels(dict(enumerate(classes)), 24, 1)
    if rows <= MAX_SHOWN and columns <= MAX_SHOWN:
        top = np.log1p(counts).max()
        for row in range(rows):
            for column in range(columns):
                if counts[row, column]:
                    color = "white" if np.log1p(counts[row, column]) > 0.6 * top else "black"
                    axis.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=6, color=color)
        turned = max(map(len, labels.values())) > 3
        axis.set_xticks(range(columns), list(labels.values()), rotation=45 if turned else 0, ha="right" if turned else "center")
        axis.set_yticks(range(rows))
    else:  # no room for numbers: a scale
        steps = [step for step in (0, *(10**power for power in range(9))) if step <= counts.max()]
        bar = figure.colorbar(image, ax=axis, ticks=np.log1p(steps))
        bar.set_ticklabels([str(step) for step in steps])
        bar.set_label("images")
        legend = ()
    axis.set_xlabel("class")
    axis.set_ylabel("client")
    axis.set_title(title_text(title, max(20, 7 * columns)), fontsize=10)
    return Drawing(figure, title, "Training images of each class (columns) at each client (rows); darker is more.", legend)


def curves(runs: Mapping[str, Sequence[Sequence[Mapping[str, Json]]]], against: str, title: str) -> Drawing:
    """Mean accuracy with its 95 % interval over seeds, one line a strategy; ``against`` is "round" or "bytes" (up + down, cumulative).

    ``runs`` has for each strategy one list of round lines a seed. After a single round there is a point for each strategy instead.
    """
    figure = Figure(figsize=(6.0, 3.6))
    axis = figure.subplots()
    one_shot = max(len(lines) for seeds in runs.values() for lines in seeds) <= 2
    for number, (name, seeds) in enumerate(runs.items()):
        rounds = min(len(lines) for lines in seeds)
        accuracies = [Accuracy(tuple(_number(lines[r], "accuracy") for lines in seeds)) for r in range(rounds)]
        if against == "bytes":
            places = [
                float(np.mean([sum(_number(line, "up") + _number(line, "down") for line in lines[: r + 1]) for lines in seeds])) / 1e6
                for r in range(rounds)
            ]
        else:
            places = [_number(seeds[0][r], "round") for r in range(rounds)]
        if one_shot:  # lines from the untrained network up would all look the same
            place = places[-1] if against == "bytes" else number
            wide = accuracies[-1].half_width if len(seeds) > 1 else 0.0
            axis.errorbar([place], [accuracies[-1].mean], [wide], fmt="o", markersize=4, capsize=4, label=escaped(name))
            continue
        (line,) = axis.plot(places, [each.mean for each in accuracies], marker="o", markersize=3, linewidth=1.2, label=escaped(name))
        if len(seeds) > 1:
            axis.fill_between(
                places,
                [each.low for each in accuracies],
                [each.high for each in accuracies],
                alpha=0.15,
                color=line.get_color(),
                linewidth=0,
            )
    axis.set_ylabel("test accuracy, %")
    if one_shot and against == "round":
        axis.set_xticks(range(len(runs)), [escaped(name) for name in runs])
        axis.set_xlim(-0.5, len(runs) - 0.5)
    else:
        axis.set_xlabel("round" if against == "round" else "cumulative megabytes, up and down, all clients")
        axis.legend(frameon=False, fontsize=8, loc="lower right")
        if against == "round":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not one_shot:
        axis.set_ylim(0, 100)
    axis.set_title(title_text(title), fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    what = "Accuracy by round" if against == "round" else "Accuracy by bytes sent"
    return Drawing(figure, f"{what}: {title}", "Mean over seeds, with the 95 % interval where there are several.")


def _number(line: Mapping[str, Json], name: str) -> float:
    """One number of a round's line."""
    value = line[name]
    assert isinstance(value, int | float)
    return float(value)


def union_by_client(union: CondensedSet, images: Sequence[tuple[int, int]], title: str) -> Drawing:
    """The last round's uploads, one row a client. ``images`` is (client, number of images) in the union's order.

    At most 20 images of each of the first 20 clients, evenly over what a client sent, so that every class shows.
    """
    pixels = union.pixels()
    copies = len(pixels) // len(union)  # decoded images of each stored one
    rows: dict[str, Tensor] = {}
    start = 0
    for client, count in ((client, count * copies) for client, count in images):
        if len(rows) < MAX_SHOWN:
            chosen = np.unique(np.linspace(start, start + count - 1, min(count, MAX_SHOWN)).round().astype(int))
            rows[f"client {client}"] = pixels[chosen]
        start += count
    most = copies * max(count for _, count in images)
    parts = [*left_out(len(rows), len(images), "clients"), f"{MAX_SHOWN} of {most} images, evenly chosen" if most > MAX_SHOWN else ""]
    return rows_of_images(rows, title, "One row a client: the images of its last upload.", joined(parts))
