"""Three figures of a ranking study: accuracies against the truth, rank correlation by cost, regret by cost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from distill.drawing import Drawing
from distill.records import Json

Array = NDArray[np.float64]
COLOURS = {
    "condensed": "#c0504d",
    "coreset": "#8a8f98",
    "early": "#4878a8",
    "zero-cost": "#a07a14",
    "regression": "#2f8f6b",
    "whole": "#222222",
}
MARKERS = {"condensed": "o", "coreset": "s", "early": "D", "zero-cost": "^", "regression": "v", "whole": "*"}
_ACCURACIES = ("condensed", "coreset", "early", "whole")
MAX_PANELS = 9


def scatter(truth: Array, scores: Mapping[str, tuple[str, Array]], top: int) -> Drawing:
    """Proxy accuracy against true accuracy, one panel per proxy whose score is an accuracy.

    Args:
        truth: test accuracies (n,) in percent.
        scores: name -> (kind, scores (n,)).
        top: number of networks with the highest true accuracy that are marked.
    """
    accuracies = [(name, kind, values) for name, (kind, values) in scores.items() if kind in _ACCURACIES][:MAX_PANELS]
    across = min(3, max(1, len(accuracies)))
    down = max(1, math.ceil(len(accuracies) / across))
    figure = Figure(figsize=(3.2 * across, 3.0 * down))
    panels = np.asarray(figure.subplots(down, across, squeeze=False, sharey=True)).flat
    known = np.isfinite(truth)
    up = _axis_range(truth[known])
    edge = np.sort(truth[known])[-min(top, int(known.sum()))] if known.any() else math.inf
    for axis, (name, kind, values) in zip(panels, accuracies, strict=False):
        both = known & np.isfinite(values)
        best = both & (truth >= edge)
        across_range = _axis_range(values[both])
        x, y = np.clip(values, *across_range), np.clip(truth, *up)
        outside = both & ((x != values) | (y != truth))
        for chosen, look in (
            (both & ~best & ~outside, {"s": 14, "color": COLOURS[kind], "alpha": 0.5, "linewidths": 0}),
            (both & ~best & outside, {"s": 22, "facecolors": "none", "edgecolors": COLOURS[kind], "clip_on": False}),
            (best, {"s": 26, "marker": "^", "color": "black", "linewidths": 0, "clip_on": False, "label": f"true top {int(best.sum())}"}),
        ):
            axis.scatter(x[chosen], y[chosen], **look)
        if both.any():
            first = np.flatnonzero(both)[np.argmax(values[both])]
            look = {"s": 90, "facecolors": "none", "edgecolors": "black", "clip_on": False, "label": "the proxy's first"}
            axis.scatter(x[first], y[first], **look)
        if outside.any():
            axis.text(0.98, 0.02, f"hollow: {int(outside.sum())} beyond an axis", fontsize=6, ha="right", transform=axis.transAxes)
        axis.set_xlim(*_with_margin(across_range))
        axis.set_ylim(*_with_margin(up))
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("proxy accuracy, %", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    for axis in list(panels)[len(accuracies) :]:
        axis.set_axis_off()
    figure.axes[0].set_ylabel("true test accuracy, %", fontsize=8)
    figure.axes[0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    words = "One panel a proxy whose score is an accuracy, one point a network. Triangles: the truly best; ring: the proxy's first choice."
    return Drawing(figure, "Proxy accuracy against true test accuracy", words)


def correlation_by_cost(summary: Mapping[str, Json]) -> Drawing:
    """Spearman's rho with its interval next to total seconds; a dashed line marks the noise ceiling."""
    figure, axis = _by_cost(summary["proxies"], "spearman")
    ceiling = _at(summary, "ceiling", "reliability")
    if _finite(ceiling):
        axis.axvline(ceiling, linestyle="--", color="black", linewidth=0.8)
        axis.text(ceiling, 1.0, "noise ceiling", fontsize=7, ha="center", va="bottom", transform=axis.get_xaxis_transform())
    axis.set_xlabel("Spearman's rho, 95 % interval")
    words = "Spearman's rank correlation with the true accuracies; the dashed line is the noise ceiling."
    return Drawing(figure, "Rank correlation by cost", words)


def regret_by_cost(summary: Mapping[str, Json], k: int = 1) -> Drawing:
    """Accuracy points lost by training only the proxy's top ``k``, next to total seconds."""
    figure, axis = _by_cost(summary["proxies"], f"regret@{k}")
    axis.set_xlabel(f"regret@{k}, accuracy points, 95 % interval")
    words = "Accuracy points lost when only the networks that a proxy ranks first are trained; lower is better."
    return Drawing(figure, "Regret by cost", words)


@dataclass(frozen=True)
class _Row:
    """One proxy: a statistic, its interval if there is one, and the total seconds."""

    name: str
    kind: str
    value: float
    interval: tuple[float, float] | None
    seconds: float


def _row(name: str, proxy: Json, statistic: str) -> _Row | None:
    """The proxy's row of a summary; None if the statistic is not defined."""
    value, low, high = (_at(proxy, statistic, part) for part in ("value", "low", "high"))
    seconds = _at(proxy, "seconds", "total")
    if not _finite(value) or not _finite(seconds):
        return None
    return _Row(name, str(_at(proxy, "kind")), value, (low, high) if _finite(low) and _finite(high) else None, seconds)


def _at(value: Json | Mapping[str, Json], *names: str) -> Json:
    """What a nested object of a record holds under these names; None if it has no such entry."""
    place: Json | Mapping[str, Json] = value
    for name in names:
        place = place.get(name) if isinstance(place, Mapping) else None
    return dict(place) if isinstance(place, Mapping) else place


def _by_cost(proxies: Json, statistic: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.2))
    assert isinstance(proxies, dict)
    rows = [row for name, proxy in proxies.items() if (row := _row(name, proxy, statistic))]
    rows.sort(key=lambda row: row.value, reverse=statistic.startswith("regret"))  # the best on top
    figure.set_figheight(1.2 + 0.22 * len(rows))
    axis, cost = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": (3, 2), "wspace": 0.06})
    for place, row in enumerate(rows):
        colour, marker = COLOURS.get(row.kind, "#222222"), MARKERS.get(row.kind, "o")
        if row.interval is not None:
            axis.plot(row.interval, [place, place], color=colour, linewidth=1.2)
        axis.plot(row.value, place, marker, color=colour, markersize=5.5)
        cost.plot(max(row.seconds, 1e-3), place, marker, color=colour, markersize=5.5)
    axis.set_yticks(range(len(rows)), [row.name for row in rows], fontsize=8)
    axis.axvline(0, color="black", linewidth=0.8)
    cost.set_xscale("log")
    cost.set_xlabel("total seconds (log)")
    for part in (axis, cost):
        part.grid(axis="y", color="#00000018", linewidth=0.6)
        part.set_axisbelow(True)
        part.spines[["top", "right"]].set_visible(False)
    cost.tick_params(left=False)
    kinds = dict.fromkeys(row.kind for row in reversed(rows))
    marks = [Line2D([], [], color=COLOURS.get(kind, "#222222"), marker=MARKERS.get(kind, "o"), linewidth=1.2, label=kind) for kind in kinds]
    if marks:
        cost.legend(handles=marks, frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure, axis


def _axis_range(values: Array) -> tuple[float, float]:
    """All values, but none further from the middle half of them than twice its width: a network at chance level would leave no room
    for the others."""
    if not len(values):
        return 0.0, 100.0
    low, high = np.percentile(values, (25, 75))
    far = 2 * max(float(high - low), 0.5)
    return max(float(values.min()), float(low) - far), min(float(values.max()), float(high) + far)


def _with_margin(edges: tuple[float, float]) -> tuple[float, float]:
    margin = 0.06 * max(edges[1] - edges[0], 0.5)
    return edges[0] - margin, edges[1] + margin


def _finite(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and math.isfinite(value)
