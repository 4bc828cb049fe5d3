"""Pictures of a federation: who holds what, accuracy against rounds and bytes, and what each client sent."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import NDArray

from distill.condensed import CondensedSet
from distill.evaluation import Accuracy

MAX_SHOWN = 20


def holdings(counts: NDArray[np.int64], classes: Sequence[str], title: str) -> bytes:
    """Images of each class (columns) at each client (rows); darker is more."""
    rows, columns = counts.shape
    figure = Figure(figsize=(0.5 * columns + 1.6, 0.32 * min(rows, 60) + 1.2), dpi=110)
    axis = figure.subplots()
    axis.imshow(np.log1p(counts), cmap="Blues", aspect="auto")
    if rows <= MAX_SHOWN and columns <= MAX_SHOWN:
        top = np.log1p(counts).max()
        for row in range(rows):
            for column in range(columns):
                if counts[row, column]:
                    color = "white" if np.log1p(counts[row, column]) > 0.6 * top else "black"
                    axis.text(column, row, f"{counts[row, column]}", ha="center", va="center", fontsize=6, color=color)
        axis.set_xticks(range(columns), [_plain(name[:10]) for name in classes], rotation=45 if max(map(len, classes)) > 3 else 0)
        axis.set_yticks(range(rows))
    axis.set_xlabel("class")
    axis.set_ylabel("client")
    axis.set_title(_plain(title[:70]), fontsize=10)
    return _png(figure)


def curves(runs: Mapping[str, Sequence[Sequence[Mapping[str, Any]]]], against: str, title: str) -> bytes:
    """Mean accuracy with its 95 % interval over seeds, one line a strategy; ``against`` is "round" or "bytes" (up + down, cumulative).

    ``runs`` has for each strategy one list of round lines a seed. After a single round there is a point for each strategy instead.
    """
    figure = Figure(figsize=(6.0, 3.6), dpi=110)
    axis = figure.subplots()
    one_shot = max(len(lines) for seeds in runs.values() for lines in seeds) <= 2
    for number, (name, seeds) in enumerate(runs.items()):
        rounds = min(len(lines) for lines in seeds)
        found = [Accuracy(tuple(lines[r]["accuracy"] for lines in seeds)) for r in range(rounds)]
        if against == "bytes":
            places = [
                float(np.mean([sum(line["up"] + line["down"] for line in lines[: r + 1]) for lines in seeds])) / 1e6 for r in range(rounds)
            ]
        else:
            places = [float(seeds[0][r]["round"]) for r in range(rounds)]
        if one_shot:  # lines from the untrained network up would all look the same
            place = places[-1] if against == "bytes" else number
            wide = found[-1].half_width if len(seeds) > 1 else 0.0
            axis.errorbar([place], [found[-1].mean], [wide], fmt="o", markersize=4, capsize=4, label=_plain(name))
            continue
        (line,) = axis.plot(places, [each.mean for each in found], marker="o", markersize=3, linewidth=1.2, label=_plain(name))
        if len(seeds) > 1:
            axis.fill_between(
                places, [each.low for each in found], [each.high for each in found], alpha=0.15, color=line.get_color(), linewidth=0
            )
    axis.set_ylabel("test accuracy, %")
    if one_shot and against == "round":
        axis.set_xticks(range(len(runs)), [_plain(name) for name in runs])
        axis.set_xlim(-0.5, len(runs) - 0.5)
    else:
        axis.set_xlabel("round" if against == "round" else "cumulative megabytes, up and down, all clients")
        axis.legend(frameon=False, fontsize=8, loc="lower right")
        if against == "round":
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    if not one_shot:
        axis.set_ylim(0, 100)
    axis.set_title(_plain(title[:80]), fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    return _png(figure)


def union_by_client(union: CondensedSet, images: Sequence[tuple[int, int]], title: str) -> bytes:
    """The last round's uploads, one row a client: its first images. ``images`` is (client, number of images) in the union's order."""
    pixels = union.pixels().cpu().permute(0, 2, 3, 1).numpy()
    rows, start = [], 0
    for client, count in images:
        # Evenly over what it sent, so that every class shows.
        chosen = np.unique(np.linspace(start, start + count - 1, min(count, MAX_SHOWN)).round().astype(int))
        rows.append((client, pixels[chosen]))
        start += count
    rows = rows[:MAX_SHOWN]
    across = max(len(row) for _, row in rows)
    figure = Figure(figsize=(0.45 * across + 1.0, 0.45 * len(rows) + 0.5), dpi=110)
    axes = figure.subplots(len(rows), across, squeeze=False, gridspec_kw={"wspace": 0.05, "hspace": 0.05})
    for axis in axes.flat:
        axis.set_axis_off()
    for place, (client, row) in enumerate(rows):
        for column, image in enumerate(row):
            axes[place, column].imshow(
                image[..., :3] if image.shape[-1] >= 3 else image[..., 0], cmap="gray", vmin=0, vmax=1, interpolation="nearest"
            )
        axes[place, 0].text(-0.2, 0.5, f"client {client}", transform=axes[place, 0].transAxes, ha="right", va="center", fontsize=7)
    figure.suptitle(_plain(title[:80]), fontsize=10)
    return _png(figure)


def _plain(text: str) -> str:
    return "".join(char if char.isprintable() and char <= "\u04ff" else "?" for char in text).replace("$", r"\$")


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
