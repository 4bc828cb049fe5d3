"""The guarantee in one sentence, from a set's own statement, which may come from anybody: nothing in it is trusted."""

import math
from typing import Any

from distill.errors import clipped

NOT_COVERED = (
    "examples that were used elsewhere (one person's several images, or the same data in another release, add up)",
    "the choice of settings by looking at private data",
    "the existence, shape and class names of the data",
    "attacks on floating-point rounding",
)


def guarantee(statement: dict[str, Any] | None) -> str:
    """One sentence a lawyer can read: epsilon, delta, adjacency, mechanism, number of releases, and what is not covered."""
    if not statement:
        return "No privacy guarantee: this set was made from the images themselves and may reveal any of them."
    epsilon, delta, releases = (_number(statement.get(key)) for key in ("epsilon", "delta", "releases"))
    if statement.get("insecure") is not False:
        return "No privacy guarantee: the noise of this set can be repeated by whoever knows its seed (a test setting)."
    if epsilon is None or delta is None or releases is None or not (epsilon >= 0 and 0 < delta < 1 and releases >= 0):
        return "No privacy guarantee: the set carries a statement that names no epsilon, delta and number of releases."
    adjacency, mechanism, accountant = (clipped(statement.get(key, "not stated"), 120) for key in ("adjacency", "mechanism", "accountant"))
    missing = statement.get("not_covered")
    left_out = "; ".join(clipped(part, 120) for part in missing[:8]) if isinstance(missing, list) and missing else "nothing was stated"
    chance = math.exp(min(epsilon, 700.0))
    times = f"{chance:.3g}" if chance < 1e6 else "more than a million"
    return (
        f"The maker states ({epsilon:.2f}, {delta:.1e})-differential privacy ({adjacency}): any result is at most {times} times "
        f"as likely with one example's data as without it, except with a probability of {delta:.1e}; "
        f"reached by {mechanism}, {releases:.0f} release{'s' if releases != 1 else ''}, accounted by {accountant}; not covered: {left_out}."
    )


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]
