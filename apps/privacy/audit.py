"""What epsilon is at least, from how well a mechanism's own output tells canaries in from canaries out.

    python -m apps.privacy.audit scores.npz [--one-run] [--delta 1e-5] [--claimed EPSILON]

takes scores from anywhere (`apps.privacy.score_files`), as `distill audit` does, and prints lower bounds; it exits with 1 when one is
above the claimed epsilon. Scores are read as independent runs, one each; with --one-run as points of one model, each in or out by a
fair coin. A bound far below the claim proves nothing.
"""

import math
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.optimize
import scipy.stats

from apps.privacy.auditing.bounds import gaussian_bound, rates_bound
from apps.privacy.metrics import checked, reversed_warning
from apps.privacy.score_files import read_scores
from distill.errors import InputError


@dataclass(frozen=True)
class Bounds:
    """Lower bounds of epsilon, each at ``confidence``. ``gaussian`` holds for Gaussian mechanisms only, ``rates`` for any."""

    gaussian: float
    rates: float
    delta: float
    confidence: float

    def __str__(self) -> str:
        return (
            f"epsilon is at least {self.rates:.2f} for any mechanism and at least {self.gaussian:.2f} for a Gaussian one "
            f"(delta {self.delta:g}, confidence {self.confidence:.6g} each)"
        )


def lower_bounds(in_scores: object, out_scores: object, delta: float = 1e-5, confidence: float = 0.95) -> Bounds:
    """From independent runs with (n,) and without (m,) a canary; a higher score means "in".

    ``rates``: max of log((TPR - delta) / FPR) and log((TNR - delta) / FNR). ``gaussian``: mu of Gaussian differential privacy,
    Phi^-1(TPR) - Phi^-1(FPR), turned into epsilon (Nasr et al., 2023): much tighter where it applies. Both are the largest over
    thresholds at ranks that are fixed in advance, with all ends of intervals valid together (`apps.privacy.auditing.bounds`).
    """
    inside, outside = checked(in_scores, "in_scores"), checked(out_scores, "out_scores")
    if not (0 < confidence < 1 and 0 < delta < 1):
        raise InputError(f"delta {delta} and confidence {confidence}; allowed: numbers between 0 and 1.")
    alpha = 1 - confidence
    return Bounds(gaussian_bound(inside, outside, delta, alpha), rates_bound(inside, outside, delta, alpha), delta, confidence)


def one_run_bound(right: int, guesses: int, canaries: int, delta: float = 1e-5, confidence: float = 0.95) -> float:
    """Lower bound of epsilon from one run with ``canaries`` in or out by fair coins, ``guesses`` of them guessed and ``right`` right.

    Steinke, Nasr and Jagielski (2023), theorem 5.2: the p-value is P[Bin(guesses, e^eps / (1 + e^eps)) >= right], and what delta adds.
    """
    if not 0 <= right <= guesses <= canaries or guesses < 1:
        raise InputError(f"{right} right of {guesses} guesses about {canaries} canaries; allowed: right <= guesses <= canaries.")

    def p_value(epsilon: float) -> float:
        q = 1 / (1 + np.exp(-epsilon))
        at_least = scipy.stats.binom.sf(np.arange(right, -1, -1) - 1, guesses, q)  # P[Bin >= right - i], i = 0..right
        steps = np.arange(1, right + 1)
        steepest = float(((at_least[1:] - at_least[0]) / steps).max()) if right else 0.0
        return float(min(1.0, at_least[0] + 2 * canaries * delta * steepest))

    if p_value(0.0) > 1 - confidence:
        return 0.0
    return float(scipy.optimize.brentq(lambda epsilon: p_value(epsilon) - (1 - confidence), 0.0, 50.0, xtol=1e-6))


def guess(scores: np.ndarray, was_in: np.ndarray, guesses: int) -> int:
    """Of ``guesses`` guesses (the highest half in, the lowest half out) how many are right."""
    order = np.argsort(-scores, kind="stable")
    half = guesses // 2
    return int(was_in[order[:half]].sum() + (~was_in[order[len(order) - (guesses - half) :]]).sum())


def one_run_epsilon(in_scores: object, out_scores: object, delta: float = 1e-5, confidence: float = 0.95) -> float:
    """`one_run_bound` from the scores of one model's points, each included by an independent fair coin; a fifth of them are guessed.

    Points of one model are not independent, so that `lower_bounds` would not hold for them. `InputError` where the coins were not fair.
    """
    inside, outside = checked(in_scores, "in_scores"), checked(out_scores, "out_scores")
    count = len(inside) + len(outside)
    if count < 10 or scipy.stats.binomtest(len(inside), count).pvalue < 1e-6:
        raise InputError(
            f"{len(inside)} points in and {len(outside)} out; allowed: at least 10 in all, about half of them in by fair coins."
        )
    mixed = np.random.default_rng(0).permutation(count)  # equal scores are guessed blindly
    scores, was_in = np.concatenate([inside, outside])[mixed], (np.arange(count) < len(inside))[mixed]
    guesses = max(10, count // 5)
    return one_run_bound(guess(scores, was_in, guesses), guesses, count, delta, confidence)


def main(arguments: list[str]) -> int:
    """The command line; 0, or 1 where a bound is above the claimed epsilon."""
    import argparse

    parser = argparse.ArgumentParser(
        prog="python -m apps.privacy.audit", description="Attack figures and lower bounds of epsilon from scores."
    )
    parser.add_argument(
        "scores",
        type=Path,
        help="npz or csv file with in_scores and out_scores (higher: more like a member), or score (or loss) and member",
    )
    parser.add_argument("--one-run", action="store_true", help="the scores are of points of one model, each in or out by a fair coin")
    parser.add_argument("--delta", type=float, default=1e-5)
    parser.add_argument("--confidence", type=float, default=0.95)
    parser.add_argument("--claimed", type=float, help="the epsilon that is claimed")
    options = parser.parse_args(arguments)
    try:
        lines, holds = report(options.scores, options.delta, options.confidence, options.claimed, one_run=options.one_run)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    return 0 if holds else 1


def report(scores: Path, delta: float, confidence: float, claimed: float | None, *, one_run: bool) -> tuple[list[str], bool]:
    """What scores of a file say, in lines, and whether the ``claimed`` epsilon holds (True without one).

    Raises:
        InputError: for a file that cannot be read, or numbers out of range.
    """
    from apps.privacy.metrics import membership

    if claimed is not None and not 0 <= claimed < math.inf:
        raise InputError(f"the claimed epsilon is {claimed:g}; allowed: a finite number of at least 0.")
    inside, outside = read_scores(scores)
    if one_run:
        bound = one_run_epsilon(inside, outside, delta, confidence)
        text = f"epsilon is at least {bound:.2f} for any mechanism, from one run (delta {delta:g}, confidence {confidence:.6g})"
    else:
        runs = lower_bounds(inside, outside, delta, confidence)
        bound, text = runs.rates, f"{runs}; every score read as a separate run (points of one model: --one-run)"
    warning, holds = reversed_warning(inside, outside), claimed is None or bound <= claimed
    lines = [str(membership(inside, outside)), *([f"warning: {warning}"] if warning else []), text]
    if not holds:
        lines.append(f"FAILED: the bound {bound:.2f} is above the claimed epsilon {claimed:g}: the guarantee does not hold.")
    return lines, holds


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
