"""Processes that are forked from one that has imported everything (`multiprocessing`'s forkserver), not started anew: 0.2 s and not 4.

There is one such process for all tests of a session, so they share one list of what it imports.
"""

import multiprocessing
from multiprocessing.context import ForkServerContext

PRELOAD = [
    *(f"scenarios.{kind}" for kind in ("cli", "condense", "federated", "continual", "privacy", "nas", "pipeline", "released")),
    *("apps.federated.inline", "apps.federated.alone", "apps.continual.benchmark", "apps.continual.engine", "avalanche.training"),
    *("flwr.superlink.grid.http_grid", "apps.nas.workers", "apps.nas.zero_cost", "matplotlib.backends.backend_agg"),
    *("tests.scenarios.conftest", "sklearn.datasets", "sklearn.cluster", "opacus.accountants"),
]


def forking() -> ForkServerContext:
    """A context whose processes have all of `PRELOAD` from their start."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOAD)
    return context
