"""Three pictures of a ranking study, as PNG bytes: accuracies against the truth, rank correlation by cost, regret by cost."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.float64]
COLOURS = {
    "condensed": "#c0504d",
    "coreset": "#8a8f98",
    "early": "#4878a8",
    "zero-cost": "#b89b3f",
    "regression": "#5a8f5a",
    "whole": "#222222",
}
_ACCURACIES = ("condensed", "coreset", "early", "whole")
MAX_PANELS = 9


def scatter(truth: Array, scores: Mapping[str, tuple[str, Array]], top: int) -> bytes:
    """A panel a proxy (name -> (kind, scores (n,))) that is an accuracy: its accuracy against the truth (n,), the true top ``top`` marked,
    the proxy's own first choice ringed."""
    shown = [(name, kind, values) for name, (kind, values) in scores.items() if kind in _ACCURACIES][:MAX_PANELS]
    across = min(3, max(1, len(shown)))
    down = max(1, math.ceil(len(shown) / across))
    figure = Figure(figsize=(3.2 * across, 3.0 * down), dpi=110)
    panels = np.asarray(figure.subplots(down, across, squeeze=False, sharey=True)).flat
    known = np.isfinite(truth)
    edge = np.sort(truth[known])[-min(top, int(known.sum()))] if known.any() else math.inf
    for axis, (name, kind, values) in zip(panels, shown, strict=False):
        both = known & np.isfinite(values)
        best = both & (truth >= edge)
        axis.scatter(values[both & ~best], truth[both & ~best], s=12, color=COLOURS[kind], alpha=0.6, linewidths=0)
        axis.scatter(values[best], truth[best], s=26, marker="^", color="black", linewidths=0, label=f"true top {int(best.sum())}")
        if both.any():
            first = np.flatnonzero(both)[np.argmax(values[both])]
            axis.scatter(values[first], truth[first], s=90, facecolors="none", edgecolors="black", label="its choice")
        axis.set_title(name, fontsize=9)
        axis.set_xlabel("proxy accuracy, %", fontsize=8)
        axis.spines[["top", "right"]].set_visible(False)
        axis.tick_params(labelsize=7)
    for axis in list(panels)[len(shown) :]:
        axis.set_axis_off()
    figure.axes[0].set_ylabel("true test accuracy, %", fontsize=8)
    figure.axes[0].legend(frameon=False, fontsize=7)
    figure.tight_layout()
    return _png(figure)


def correlation_by_cost(summary: Mapping[str, Any]) -> bytes:
    """Spearman's rho with its interval against total seconds; the dashed line is what an equally noisy second truth would reach."""
    figure, axis = _by_cost(summary["proxies"], "spearman")
    ceiling = summary["ceiling"]["reliability"]
    if _finite(ceiling):
        axis.axhline(ceiling, linestyle="--", color="black", linewidth=0.8)
        axis.text(0.01, ceiling, " noise ceiling", fontsize=7, va="bottom", transform=axis.get_yaxis_transform())
    axis.set_ylabel("Spearman's rho, 95 % interval")
    return _png(figure)


def regret_by_cost(summary: Mapping[str, Any], k: int = 1) -> bytes:
    """Accuracy points lost by training only the proxy's top ``k``, against total seconds."""
    figure, axis = _by_cost(summary["proxies"], f"regret@{k}")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_ylabel(f"regret of the top {k}, points" if k > 1 else "regret of the first choice, points")
    return _png(figure)


def _by_cost(proxies: Mapping[str, Any], statistic: str) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.2), dpi=110)
    axis = figure.subplots()
    rows = [(name, row) for name, row in proxies.items() if _finite(row[statistic]["value"])]
    rows.sort(key=lambda pair: pair[1]["seconds"]["total"])
    for number, (name, row) in enumerate(rows, 1):
        found, seconds = row[statistic], max(row["seconds"]["total"], 1e-3)
        colour = COLOURS.get(row["kind"], "#222222")
        if _finite(found["low"]):
            axis.plot([seconds, seconds], [found["low"], found["high"]], color=colour, linewidth=1, alpha=0.6)
        axis.scatter([seconds], [found["value"]], s=60, color=colour, zorder=3, label=f"{number} {name}")
        axis.text(seconds, found["value"], str(number), fontsize=6, color="white", ha="center", va="center", zorder=4)
    axis.set_xscale("log")
    axis.set_xlabel("seconds in all, condensation included (log)")
    if rows:
        axis.legend(frameon=False, fontsize=7, loc="center left", bbox_to_anchor=(1.0, 0.5))
    axis.spines[["top", "right"]].set_visible(False)
    return figure, axis


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
