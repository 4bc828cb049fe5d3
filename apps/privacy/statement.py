"""The guarantee in one sentence, from a set's own statement, which may come from anybody: nothing in it is trusted.

The stated epsilon is computed again from the stated history of releases. That finds a figure that was changed afterwards, or an account
that was kept wrongly; a maker who invents the history as well is not found out by any file.
"""

import math
from collections.abc import Mapping, Sequence

from apps.privacy import accounting
from apps.privacy.accounting import ADJACENCY, Steps
from apps.privacy.release import Plan
from distill.errors import InputError, clipped

NOT_COVERED = (
    "a person with more examples than stated (k examples have at least k times this epsilon)",
    "the same data in another release (epsilons and deltas add up)",
    "the choice of settings by looking at private data",
    "the existence, shape, class names, normalisation and stated size of the data, which are taken as public",
    "how long the run took",
    "attacks on floating-point rounding",
)
# Beyond these a history is not recomputed while somebody waits; and what Opacus' series are sure to end for.
MAX_ENTRIES, MAX_STEPS = 64, 100_000
NOISE, RATE = (0.05, 1e5), (1e-8, 1.0)
# Another version of the accountant may end elsewhere in its last digits.
SLACK = 0.01
RECOMPUTED = "recomputed from the stated history of releases"
GROUPS, LARGEST = (2, 5), 1000.0  # examples of one person for which a figure is given, and up to which epsilon


def mechanism(*, secure: bool) -> str:
    """The mechanism of `PrivateStatistics` in words."""
    source = "the operating system's generator" if secure else "a generator with a known seed"
    return f"Gaussian noise of {source} on Poisson-sampled sums of clipped per-example rows"


def statement(
    history: Sequence[Steps], delta: float, *, secure: bool, experts: Plan | None = None, teacher: Plan | None = None
) -> dict[str, object]:
    """What was released, as a set's provenance holds it: plain numbers and text.

    ``experts`` and ``teacher`` are the plans of the DP-SGD among it that trains matching networks and a teacher.
    """
    cost = accounting.spent(history, delta)

    def trained(plan: Plan) -> int:
        return sum(step.times for step in history if step[:2] == (plan.noise_multiplier, plan.sample_rate))

    return {
        "epsilon": cost.epsilon,
        "delta": delta,
        "adjacency": ADJACENCY,
        "mechanism": mechanism(secure=secure),
        "releases": sum(step.times for step in history),
        **({"experts": trained(experts)} if experts else {}),
        **({"teacher": trained(teacher)} if teacher else {}),
        "accountant": cost.accountant,
        "history": [list(step) for step in history],
        "insecure": not secure,
        "not_covered": list(NOT_COVERED),
    }


def guarantee(statement: Mapping[str, object] | None) -> str:
    """The guarantee of a statement in one sentence: epsilon, delta, adjacency, mechanism, number of releases, what is not covered."""
    if not statement:
        return "No privacy guarantee: this set was made from the images themselves and may reveal any of them."
    epsilon, delta, releases = (_number(statement.get(key)) for key in ("epsilon", "delta", "releases"))
    if statement.get("insecure") is not False:
        return "No privacy guarantee: the noise of this set can be repeated by everyone who knows its seed (a test setting)."
    if epsilon is None or delta is None or releases is None or not (epsilon >= 0 and 0 < delta < 1 and releases >= 0):
        return "No privacy guarantee: the set carries a statement that names no epsilon, delta and number of releases."
    population = _number(statement.get("population"))
    if population is not None and population >= 1 and delta >= 1 / population:
        return (
            f"No privacy guarantee: delta {delta:.1e} is not below 1 / {population:.0f}, the stated number of examples; "
            "with such a delta one of them could be published unchanged."
        )
    wrong, checked = against_history(statement.get("history"), epsilon, delta, releases)
    if wrong:
        return f"No privacy guarantee: {wrong}."
    adjacency, mechanism, accountant = (clipped(statement.get(key, "not stated"), 120) for key in ("adjacency", "mechanism", "accountant"))
    missing = statement.get("not_covered")
    left_out = "; ".join(clipped(part, 120) for part in missing[:8]) if isinstance(missing, list) and missing else "nothing was stated"
    trained, public, taught = _number(statement.get("experts")), statement.get("public_experts"), _number(statement.get("teacher"))
    for steps in (trained, taught):
        if steps is not None and not 0 <= steps <= releases:
            return f"No privacy guarantee: the set states {releases:.0f} releases, {steps:.0f} of them steps of DP-SGD."
    networks = f", {trained:.0f} of them steps of DP-SGD that trained the matching networks" if trained else ""
    networks += f", {taught:.0f} of them steps of DP-SGD that trained the teacher of its labels" if taught else ""
    networks += f", in networks trained on data that are stated to be public ({clipped(public, 80)})" if public is not None else ""
    chance = math.exp(min(epsilon, 700.0))
    times = f"{chance:.3g}" if chance < 1e6 else "more than a million"
    several = _of_groups(statement.get("history"), delta) if checked == RECOMPUTED else ""
    return (
        f"The maker states ({epsilon:.2f}, {delta:.1e})-differential privacy ({adjacency}): whatever is done with the set, the chance of "
        f"any outcome with one example's data is at most {times} times that without it plus {delta:.1e}, and the other way round; "
        f"reached by {mechanism}, {releases:.0f} release{'s' if releases != 1 else ''}{networks}, accounted by {accountant} ({checked}); "
        f"{several}not covered: {left_out}."
    )


def against_history(history: object, epsilon: float, delta: float, releases: float) -> tuple[str, str]:
    """(what contradicts the stated figures, or nothing; how far they were checked), both in words."""
    if history is None:
        return "", "no history of releases is given, so the figure was not recomputed"
    if not isinstance(history, list) or not all(isinstance(entry, list) and len(entry) == 3 for entry in history):
        return "the stated history of releases cannot be read", ""
    entries = [tuple(map(_number, entry)) for entry in history]
    if any(None in entry for entry in entries):
        return "the stated history of releases holds what is no number", ""
    steps = [Steps(noise, rate, int(times)) for noise, rate, times in entries]  # type: ignore[arg-type]
    if any(step.times < 1 or step.times != entry[2] for step, entry in zip(steps, entries, strict=True)):
        return "the stated history of releases holds numbers of releases that are none", ""
    counted = sum(step.times for step in steps)
    if counted != releases:
        return f"the set states {releases:.0f} releases and its history holds {counted}", ""
    if not all(NOISE[0] <= s.noise_multiplier <= NOISE[1] and RATE[0] <= s.sample_rate <= RATE[1] for s in steps):
        return "the stated history holds noise or sampling rates for which no epsilon can be computed", ""
    if len(steps) > MAX_ENTRIES or counted > MAX_STEPS:
        return "", "the stated history is too long to be recomputed here"
    try:
        recomputed = accounting.spent(steps, delta).epsilon
    except InputError as error:  # opacus is missing
        return "", f"not recomputed: {clipped(error, 120)}"
    except (ArithmeticError, ValueError, RuntimeError):
        return "no epsilon can be computed from the stated history of releases", ""
    if not recomputed <= epsilon * (1 + SLACK) + SLACK:
        return f"the set states epsilon {epsilon:.2f} and its own history of releases gives {recomputed:.2f}", ""
    return "", RECOMPUTED


def _of_groups(history: object, delta: float) -> str:
    """The guarantee of persons with several examples in words, from a history that was checked."""
    steps = [Steps(float(noise), float(rate), int(times)) for noise, rate, times in history] if isinstance(history, list) else []
    if not steps:
        return ""
    try:
        found = {count: accounting.group_epsilon(steps, delta, count) for count in GROUPS}
    except (InputError, ArithmeticError, ValueError, RuntimeError):
        return ""
    text = ", ".join(f"{count} examples {f'{epsilon:.2f}' if epsilon < LARGEST else 'no useful bound'}" for count, epsilon in found.items())
    return f"epsilon of one person with several examples, at the same delta: {text}; "


def _number(value: object) -> float | None:
    good = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e300 and math.isfinite(value)
    return float(value) if good else None  # type: ignore[arg-type]
