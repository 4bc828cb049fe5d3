"""Figures of a continual learner from its accuracy matrix R: `R[i][j]` is the accuracy on experience j's test images after experience i.

Average accuracy, forgetting and backward transfer as Lopez-Paz and Ranzato (NeurIPS 2017) and Chaudhry et al. (ECCV 2018) define them;
they equal Avalanche's metrics where test sets are equally large (Avalanche's stream accuracy weighs by images, these by experiences).
"""

from collections.abc import Sequence

from distill.errors import InputError

Matrix = Sequence[Sequence[float]]


def average_accuracy(matrix: Matrix, after: int | None = None) -> float:
    """Mean of `R[i][0..i]` after experience i (the last one when not given)."""
    row = _square(matrix)[len(matrix) - 1 if after is None else after]
    seen = len(matrix) if after is None else after + 1
    return sum(row[:seen]) / seen


def forgetting(matrix: Matrix) -> float:
    """Mean over all but the last experience of what was lost since it was learnt: `R[j][j] - R[last][j]`. (Avalanche's definition; the
    largest earlier accuracy in place of `R[j][j]` is another.) 0 for a single experience."""
    last = _square(matrix)[-1]
    return sum(matrix[j][j] - last[j] for j in range(len(matrix) - 1)) / max(1, len(matrix) - 1)


def backward_transfer(matrix: Matrix) -> float:
    """Forgetting with the other sign."""
    return -forgetting(matrix)


def _square(matrix: Matrix) -> Matrix:
    if not matrix or any(len(row) != len(matrix) for row in matrix):
        raise InputError(f"an accuracy matrix has {len(matrix)} rows of {sorted({len(row) for row in matrix})} numbers; it must be square.")
    return matrix
