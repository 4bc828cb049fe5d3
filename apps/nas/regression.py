"""Main effects, a cheap baseline: train a few networks fully, fit the effect of each choice, predict the other networks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError

Array = NDArray[np.float64]


def one_hot(axes: Sequence[tuple[str, ...]]) -> Array:
    """(n, P): one column for each value of each axis."""
    if not axes or any(len(row) != len(axes[0]) or not row for row in axes):
        raise InputError("main effects need networks of one grid; leave the regression out for networks of your own.")
    columns = [[float(v == value) for v in values] for values in zip(*axes, strict=True) for value in dict.fromkeys(values)]
    return np.array(columns).T


def main_effects(axes: Sequence[tuple[str, ...]], known: Sequence[int], values: Sequence[float]) -> Array:
    """Predict all networks by an additive model fitted with least squares.

    An effect that the known networks do not determine (a value that none of them has) is 0, by the smallest solution.

    Args:
        axes: the choices of each network (n rows).
        known: positions of the trained networks.
        values: their accuracies; NaN for a failed one.

    Returns:
        Predicted values (n,); all NaN if no known value is finite.
    """
    design = one_hot(axes)
    at, measured = np.asarray(known, dtype=np.int64), np.asarray(values, dtype=np.float64)
    kept = np.isfinite(measured)
    if not kept.any():
        return np.full(len(axes), np.nan)
    centre = measured[kept].mean()
    weights, *_ = np.linalg.lstsq(design[at[kept]], measured[kept] - centre, rcond=None)
    return np.asarray(design @ weights + centre)
