"""How guarantees add up when several private sets are used together. Statements come from other parties: nothing in them is trusted."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from apps.privacy.accounting import ADJACENCY, Steps, spent
from apps.privacy.accounting import check as check_history
from distill.errors import InputError, clipped

Statement = dict[str, Any]  # of a guarantee, as a set carries it
BASIC = "basic composition: epsilons and deltas add up"
MAX_HISTORY = 10_000
# What the argument below takes for granted, and no file can prove.
ASSUMED = (
    "an example that lies at several clients (their guarantees add up)",
    "a division of examples into shards that depends on the other examples",
)


def side_by_side(owners: Mapping[str, Sequence[Mapping[str, object] | None]]) -> Statement | None:
    """The statement of all that ``owners`` of disjoint shards released, each in one or several rounds; None where one stated nothing.

    An owner's own releases compose one after the other, whatever it learned between them (adaptive composition), so its epsilon is that
    of its whole history. Adding or removing one example changes one owner's shard. All other owners' releases then have the same
    distribution as before, given everything that was said until then; what depends on the example is that one owner's history, and the
    rest is post-processing of it. So the union of all releases is (max epsilon, max delta)-differentially private: parallel composition
    (McSherry, SIGMOD 2009, theorem 4). It needs shards whose membership does not depend on other examples, and independent noise.
    """
    clients = {owner: _own(owner, stated) for owner, stated in owners.items()}
    if not clients or any(statement is None for statement in clients.values()):
        return None
    known = [statement for statement in clients.values() if statement is not None]
    worst = max(known, key=lambda statement: statement["epsilon"])
    missing = dict.fromkeys([*ASSUMED, *(clipped(text, 120) for statement in known for text in statement["not_covered"])])
    return {
        "epsilon": worst["epsilon"],
        "delta": max(statement["delta"] for statement in known),
        "adjacency": ADJACENCY,
        "mechanism": f"parallel composition over {len(known)} disjoint shards of: {worst['mechanism']}",
        "releases": worst["releases"],
        "history": worst["history"],  # the worst client's, so that its epsilon can be computed again
        "accountant": worst["accountant"],
        "insecure": any(statement["insecure"] for statement in known),
        **({"experts": worst["experts"]} if "experts" in worst else {}),  # of the releases above
        **_public_data(known),
        "not_covered": list(missing),
        "clients": {
            owner: {key: statement[key] for key in ("epsilon", "delta", "releases", "insecure")}
            for owner, statement in clients.items()
            if statement
        },
    }


def one_after_another(statements: Sequence[Mapping[str, object] | None]) -> Statement | None:
    """The statement of several sets that may come from the same examples: epsilons and deltas add up. None where one has none."""
    if not statements or any(not stated for stated in statements):
        return None
    known = [_read("a set", stated) for stated in statements if stated]
    missing = dict.fromkeys(clipped(text, 120) for statement in known for text in statement["not_covered"])
    return {
        "epsilon": sum(statement["epsilon"] for statement in known),
        "delta": sum(statement["delta"] for statement in known),
        "adjacency": ADJACENCY,
        "mechanism": " and ".join(dict.fromkeys(statement["mechanism"] for statement in known)),
        "releases": sum(statement["releases"] for statement in known),
        "accountant": BASIC,
        **_experts(known),
        **_public_data(known),
        "insecure": any(statement["insecure"] for statement in known),
        "not_covered": list(missing),
    }


def in_sequence(statements: Sequence[Mapping[str, object] | None]) -> Statement | None:
    """The statement of several releases of one maker about the same examples, accounted together from the histories that they list.

    It is at most what `one_after_another` says, which needs no history and may be of different makers. None where one has none.
    """
    together = _own("of the study", statements)
    if together is None:
        return None
    sizes = {stated.get("population") for stated in statements if stated}
    missing = list(dict.fromkeys(clipped(text, 120) for text in together["not_covered"]))
    return {**together, "adjacency": ADJACENCY, "not_covered": missing, "population": sizes.pop() if len(sizes) == 1 else None}


def _own(owner: str, stated: Sequence[Mapping[str, object] | None]) -> Statement | None:
    """One owner's guarantee over its rounds, accounted again from the releases that it lists."""
    if not stated or any(not statement for statement in stated):
        return None
    read = [_read(f"client {owner}", statement) for statement in stated if statement]
    delta = max(statement["delta"] for statement in read)
    history: list[Steps] = []
    for statement in stated:
        listed = (statement or {}).get("history")
        try:
            if not isinstance(listed, list) or len(listed) > MAX_HISTORY:
                raise ValueError
            history += [Steps(float(noise), float(rate), int(times)) for noise, rate, times in listed]
        except (TypeError, ValueError, OverflowError):
            raise InputError(f"client {owner}'s privacy statement lists no history of (noise multiplier, rate, times).") from None
    releases = sum(statement["releases"] for statement in read)
    if sum(step.times for step in history) != releases:
        raise InputError(f"client {owner}'s privacy statements list a history of other than the {releases:.0f} releases that they state.")
    check_history(history, delta)
    try:
        spending = spent(history, delta)
    except (ArithmeticError, RuntimeError, ValueError) as error:
        raise InputError(f"client {owner}'s privacy statements: no epsilon can be computed ({clipped(error, 80)}).") from None
    # A statement that claims less than its own list of releases costs is not believed; one that claims more stands.
    epsilon = max(spending.epsilon, *(statement["epsilon"] for statement in read))
    if not math.isfinite(epsilon):
        raise InputError(f"client {owner}'s privacy statements: their releases have no finite epsilon.")
    insecure, missing = any(statement["insecure"] for statement in read), [text for statement in read for text in statement["not_covered"]]
    facts = {"epsilon": epsilon, "delta": delta, "releases": sum(step.times for step in history), "accountant": spending.accountant}
    facts["history"] = [list(step) for step in history]
    facts |= {**_experts(read), **_public_data(read)}
    return {**facts, "mechanism": read[0]["mechanism"], "insecure": insecure, "not_covered": missing}


def _experts(statements: Sequence[Statement]) -> Statement:
    """How many of all releases are steps of DP-SGD that trained networks; nothing where no statement names some."""
    counts = [statement["experts"] for statement in statements if "experts" in statement]
    return {"experts": sum(counts)} if counts else {}


def _public_data(statements: Sequence[Statement]) -> Statement:
    """The data that were stated to be public, each once; nothing where no statement names some."""
    names = dict.fromkeys(statement["public_experts"] for statement in statements if "public_experts" in statement)
    return {"public_experts": ", ".join(names)} if names else {}


def _read(whose: str, stated: Mapping[str, object]) -> Statement:
    """The parts of a statement that are used, checked."""
    numbers = {}
    for key, low, high in (("epsilon", 0.0, 1e300), ("delta", 0.0, 1.0), ("releases", 0.0, 1e12)):
        value = stated.get(key)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or not low <= value <= high:
            raise InputError(f"{whose}'s privacy statement: {key} is {clipped(value, 40)}; allowed: a number from {low:g} to {high:g}.")
        numbers[key] = value
    if stated.get("adjacency") != ADJACENCY:
        raise InputError(f"{whose}'s privacy statement: adjacency is {clipped(stated.get('adjacency'), 60)!r}; allowed: {ADJACENCY!r}.")
    missing = stated.get("not_covered")
    listed = [str(text)[:200] for text in missing[:20]] if isinstance(missing, list) else []
    mechanism = clipped(stated.get("mechanism", "not stated"), 120)
    found: Statement = {}
    if (trained := stated.get("experts")) is not None:
        if isinstance(trained, bool) or not isinstance(trained, int) or not 0 <= trained <= numbers["releases"]:
            wrong = f"experts is {clipped(trained, 40)}; allowed: a whole number from 0 to its {numbers['releases']:g} releases"
            raise InputError(f"{whose}'s privacy statement: {wrong}.")
        found["experts"] = trained
    if (public := stated.get("public_experts")) is not None:
        found["public_experts"] = clipped(public, 80)
    return {**numbers, **found, "mechanism": mechanism, "insecure": stated.get("insecure") is not False, "not_covered": listed}
