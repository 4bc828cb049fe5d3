"""Pictures of attacks."""

import io

import numpy as np
from matplotlib.figure import Figure

from apps.privacy.metrics import roc


def roc_curves(scores: dict[str, tuple[np.ndarray, np.ndarray]]) -> bytes:
    """PNG: true against false positive rate, both logarithmic (what counts is the left end), one line for each (members, others)."""
    figure = Figure(figsize=(4.6, 4.2), dpi=110)
    axis = figure.subplots()
    smallest = 1 / max(max(len(m), len(o)) for m, o in scores.values())
    for name, (members, others) in scores.items():
        false, true = roc(members, others)
        axis.plot(np.maximum(false, smallest), np.maximum(true, smallest), label=name, linewidth=1.2, drawstyle="steps-post")
    axis.plot([smallest, 1], [smallest, 1], color="#999999", linestyle=":", linewidth=1, label="guessing")
    axis.set_xscale("log")
    axis.set_yscale("log")
    axis.set_xlabel("false-positive rate")
    axis.set_ylabel("true-positive rate")
    axis.set_title("Membership inference by loss, first run", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", bbox_inches="tight", metadata={"Software": None})
    return buffer.getvalue()
