"""What `distill sweep-lr` asks of the study of kind "sweep_lr": step sizes around the method's own one, in a short run."""

import math
from collections.abc import Mapping, Sequence

import torch

from distill.condensed import CondensedSet
from distill.configure import configure
from distill.divergence import step_sizes
from distill.errors import InputError, clipped, unknown_name
from distill.methods import METHODS
from distill.methods.presets import presets_of
from distill.spec import DataSpec
from scenarios.engine import own
from scenarios.engine.record import Tables

OWN = own.Places(methods=(("method", "name"),), networks=(("method", "network"), ("evaluation", "networks")))  # of a user
STEPS, NETWORKS, TRAINING_STEPS, VALIDATION, POINTS = 15, 3, 30, 0.2, 7


def default_step_size(method: str, settings: Mapping[str, object], ipc: int, key: str, data: str = "digits") -> float | None:
    """The step size that ``method`` takes when none is given, at this many images a class; None where it does not say."""
    config = configure(METHODS[method][0], settings, f"method {method!r}")
    value = getattr(config, key, None)
    if value is not None:
        return float(value)
    # The name only matters for data sets that have their own step size, and a folder's path may be too long for one.
    spec = DataSpec("own" if ":" in data else data, 1, 8, 8, ("0",), (0.0,), (1.0,))
    start = CondensedSet(torch.zeros(ipc, 1, 8, 8), torch.zeros(ipc, dtype=torch.int64), spec)
    return step_sizes(METHODS[method][1](config, start, None))[0].get(key)


def spaced(low: float, high: float, points: int) -> list[float]:
    """Step sizes from ``low`` to ``high``, equally spaced in their logarithm, two digits each."""
    if not (0 < low < high and math.isfinite(high)) or not 2 <= points <= 100:
        raise InputError(f"step sizes from {low:g} to {high:g} in {points} points; allowed: 0 < from < to, 2 to 100 points.")
    values = [low * (high / low) ** (place / (points - 1)) for place in range(points)]
    return list(dict.fromkeys(float(f"{value:.2g}") for value in values))


def tables_for(
    data: str,
    method: str,
    ipc: int,
    settings: Mapping[str, object],
    *,
    key: str = "lr_img",
    values: Sequence[float] = (),
    low: float | None = None,
    high: float | None = None,
    points: int = POINTS,
    steps: int = STEPS,
    network: str = "ConvNet",
    networks: int = NETWORKS,
    validation: float = VALIDATION,
) -> Tables:
    """The tables of the study that the command makes: step sizes around the method's own one, in a short run.

    Without ``values`` they go from ``low`` to ``high``; each of these is by default a factor of about 30 away from the method's own step
    size. Settings that the user gave are never shortened. Raises `InputError`.
    """
    named = {"method": {"name": method, **({"network": settings["network"]} if "network" in settings else {})}}
    own.register(OWN, {**named, "evaluation": {"networks": [network]}}, "distill sweep-lr")
    if method not in METHODS:
        raise unknown_name("method", method, METHODS)
    if key in settings:
        raise InputError(f"--set {key}=... and a sweep over {key}: allowed: one of them; give --values instead.")
    fields = METHODS[method][0].__dataclass_fields__
    each = ipc if "outer_steps" in fields and "outer_steps" not in settings else 1  # image updates of one iteration, by default
    shorter: Tables = {"iterations": max(1, -(-steps // each)), **presets_of(METHODS[method][1]).sweep}
    shorter = {name: value for name, value in shorter.items() if name in fields and name not in settings}
    if not values:
        middle = default_step_size(method, settings, ipc, key, data)
        if middle is None and (low is None or high is None):
            raise InputError(f"method {method!r} has no default {clipped(key)}; give --values, or --from and --to.")
        values = spaced(low or (middle or 1.0) / 10**1.5, high or (middle or 1.0) * 10**1.5, points)
    recipe = {"epochs": 1001, "max_steps": TRAINING_STEPS, "batch_size": 32, "optimiser": "adamw", "lr": 0.001, "schedule": "cosine"}
    return {
        "kind": "sweep_lr",
        "title": f"{data}, {method}, {ipc} image{'s' if ipc > 1 else ''} a class: step sizes",
        "data": {"name": data, "validation": validation},
        "method": {"name": method, "ipc": ipc, **shorter, **settings},
        "evaluation": {"networks": [network], "seeds": networks, "recipe": recipe},
        "sweep": {"values": list(values), "key": key, "shortened": list(shorter)},
    }
