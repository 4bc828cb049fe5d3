"""Accuracy of a set along its run: the steps at which it is measured, and the step from which the curve is flat."""

import statistics as numbers
from collections.abc import Sequence
from dataclasses import dataclass

import scipy.stats

from distill.errors import InputError

FEWEST = 3  # points that make a curve
REACHED = 0.9  # of the accuracy of networks that are trained in full
DIVISORS = (32, 16, 8, 4, 2, 1)


def curve_steps(total: int) -> tuple[int, ...]:
    """T/32, T/16, T/8, T/4, T/2 and T of a run of ``total`` steps, rounded and distinct; none if they are fewer than three."""
    steps = sorted({step for divisor in DIVISORS if (step := round(total / divisor))})
    return tuple(steps) if len(steps) >= FEWEST else ()


def networks_within(total: int, points: int, steps: int, most: int = 3) -> int:
    """Number of networks to train at each point: at most ``most``, with at most three training steps per step of the run.

    Args:
        total: steps of the run.
        points: points of the curve.
        steps: training steps of one network.
    """
    return min(most, 3 * total // (points * steps)) if points else 0


@dataclass(frozen=True)
class Curve:
    """Mean accuracies (percent) of the same number of networks at each step, with 95 % intervals of one pooled spread.

    Attributes:
        steps: rising.
        means: at these steps.
        half_width: half the length of the intervals; None for single networks.
    """

    steps: tuple[int, ...]
    means: tuple[float, ...]
    half_width: float | None

    @property
    def flat_at(self) -> int | None:
        """The first step from which every later mean lies within the half-width of the last one.

        None if only the last step does, so that the curve still rises or falls, or if there is no interval.
        """
        if self.half_width is None:
            return None
        first = len(self.means) - 1
        while first > 0 and abs(self.means[first - 1] - self.means[-1]) <= self.half_width:
            first -= 1
        return self.steps[first] if first < len(self.means) - 1 else None


def curve(steps: Sequence[int], values: Sequence[Sequence[float]]) -> Curve:
    """The curve of ``values[i]``, the networks' accuracies at ``steps[i]``.

    The spread over networks is pooled over the second half of the points (Student's t with the pooled degrees of freedom): single points
    have too few networks for an estimate, and early points spread more than late ones. `InputError` for fewer than three points, steps
    that do not rise, and unequal numbers of networks.
    """
    counts = {len(accuracies) for accuracies in values}
    if len(steps) != len(values) or len(steps) < FEWEST or list(steps) != sorted(set(steps)) or len(counts) != 1 or counts == {0}:
        description = f"{len(steps)} steps with {sorted(counts)} accuracies each"
        raise InputError(f"{description}; allowed: three or more rising steps, equally many accuracies each.")
    count = counts.pop()
    half = None
    if count > 1:
        late = values[len(values) // 2 :]
        spread = numbers.fmean(numbers.variance(accuracies) for accuracies in late) ** 0.5
        half = float(scipy.stats.t.ppf(0.975, len(late) * (count - 1))) * spread / count**0.5
    return Curve(tuple(steps), tuple(map(numbers.fmean, values)), half)


def flat_early(points: Curve, steps_each: int = 1, accuracy: float | None = None) -> str | None:
    """ "flat from step 1,200 of 20,000: iterations = 1500 would do", a quarter more than needed; None if it does not flatten early.

    ``accuracy`` is that of networks that are trained in full on the last set: where the curve's reach less than `REACHED` of it, they
    are trained too briefly to tell, and the sentence is about that. ``steps_each`` is the number of steps per iteration (several for GM and
    DSA), to advise in the unit of the setting.
    Early is a quarter of the run: then at least three points agree. With two, a curve that rises slowly passes for flat (tests).
    """
    total, at = points.steps[-1], points.flat_at
    if at is None or 4 * at > total:
        return None
    if accuracy is not None and points.means[-1] < REACHED * accuracy:
        brief = f"{points.means[-1]:.1f} %, and {accuracy:.1f} % when trained in full"
        return f"the networks of the curve are trained too briefly to tell whether fewer iterations would do ({brief})"
    enough = rounded_up(-(-(at + -(-at // 4)) // steps_each))
    return f"flat from step {at:,} of {total:,} (within {points.half_width:.1f} points): iterations = {enough} would do"


def rounded_up(number: int) -> int:
    """Rounded up to two significant digits: 1,563 to 1,600."""
    unit = int(10 ** max(0, len(str(number)) - 2))
    return -(-number // unit) * unit
