"""A cheap baseline that is rarely run: train a few networks fully, fit what each choice adds, predict the rest."""

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
    """Predicted values (n,) of all networks from those at positions ``known``, by an additive model fitted with least squares.

    Where the known networks do not decide an effect (a value that none of them has), the smallest solution is taken: like the average.
    """
    design = one_hot(axes)
    at, found = np.asarray(known, dtype=np.int64), np.asarray(values, dtype=np.float64)
    kept = np.isfinite(found)
    if not kept.any():
        return np.full(len(axes), np.nan)
    centre = found[kept].mean()
    weights, *_ = np.linalg.lstsq(design[at[kept]], found[kept] - centre, rcond=None)
    return np.asarray(design @ weights + centre)
