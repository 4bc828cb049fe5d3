"""All statistics of a study in one table: every proxy against the truth, with intervals, costs, and paired comparisons."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from apps.nas import intervals, ranking
from distill.records import Json

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Scores:
    """The scores of one proxy and its cost.

    Args:
        kind: "condensed", "coreset", "early", "zero-cost", "regression" or "whole".
        values: scores (n networks,), higher is better; NaN where the proxy failed.
        one_off: seconds that are paid once, for example for distillation.
        seconds: for all networks together.
        bytes: of the images and labels that the proxy needs.
        failed: number of failed runs.
    """

    kind: str
    values: Array
    one_off: float = 0.0
    seconds: float = 0.0
    bytes: int = 0
    failed: int = 0

    @property
    def total(self) -> float:
        """Total seconds: ``one_off`` plus all networks."""
        return self.one_off + self.seconds


def compared(
    truth: Array,
    proxies: Mapping[str, Scores],
    truth_seconds: float,
    generator: np.random.Generator,
    resamples: int = intervals.RESAMPLES,
    ks: Sequence[int] = (1, 5),
) -> dict[str, Json]:
    """All statistics of a study.

    Args:
        truth: test accuracies (n networks, S seeds) in percent; NaN where a network failed.
        proxies: scores by name.
        truth_seconds: total cost of the truth.
        generator: of the bootstrap.
        resamples: of the bootstrap.
        ks: values of k for regret@k and overlap@k.

    Returns:
        Plain numbers: ``ceiling``, ``margin`` (`intervals.seed_margin`),
        ``proxies.<name>`` and ``differences.<name>.<baseline>`` (Spearman's rho, first minus second).
    """
    mean = means(truth)
    known = int(np.isfinite(mean).sum())
    top = {"top5pct": ranking.top_count(known), "top10": min(10, known)}
    ceiling, margin = ranking.noise_ceiling(truth, generator), intervals.seed_margin(truth)
    rows: dict[str, Json] = {}
    for name, scores in proxies.items():

        def interval(statistic: ranking.Rows, values: Array = scores.values) -> dict[str, Json]:
            return intervals.bootstrap(values, mean, statistic, generator, resamples).as_dict()

        row: dict[str, Json] = {"kind": scores.kind, "scored": int(np.isfinite(scores.values).sum()), "failed_runs": scores.failed}
        row |= {"spearman": interval(ranking.spearman_rows), "kendall": interval(ranking.kendall_rows)}
        # The best few are chosen by the truth: no interval over networks is known to hold for them.
        for label, k in top.items():
            best = _best(mean, k)
            row[f"spearman_{label}"] = {"value": ranking.spearman(scores.values[best], mean[best]), "networks": len(best)}
        for k in ks:
            row[f"regret@{k}"] = intervals.regret_interval(scores.values, mean, k, margin).as_dict()
            overlap = intervals.overlap_interval(scores.values, mean, k, margin).as_dict()
            row[f"overlap@{k}"] = {**overlap, "chance": min(k, known) / known if known else math.nan}
        row["seconds"] = {"one_off": scores.one_off, "networks": scores.seconds, "total": scores.total}
        row["bytes"] = scores.bytes
        row["break_even"] = ranking.break_even(scores.one_off, scores.seconds / len(mean), truth_seconds / len(mean))
        rows[name] = row
    return {
        "networks": len(mean),
        "known": known,
        "truth_seconds": truth_seconds,
        "ceiling": {"halves": ceiling.halves, "reliability": ceiling.reliability, "perfect": ceiling.perfect},
        "margin": margin,
        "proxies": rows,
        "differences": _differences(proxies, mean, generator, resamples),
    }


def means(values: Array) -> Array:
    """Mean of the finite values of each row (n,); NaN for a row without one."""
    count = np.isfinite(values).sum(1)
    total = np.where(np.isfinite(values), values, 0.0).sum(1)
    averages: Array = np.divide(total, count, out=np.full(len(values), np.nan), where=count > 0)
    return averages


def _best(mean: Array, k: int) -> NDArray[np.int64]:
    """Positions of the k networks with the highest true accuracy, and of those that tie with the k-th."""
    if not np.isfinite(mean).any():
        return np.zeros(0, dtype=np.int64)
    edge = np.sort(mean[np.isfinite(mean)])[-k]
    return np.flatnonzero(np.where(np.isfinite(mean), mean, -np.inf) >= edge)


def _differences(proxies: Mapping[str, Scores], mean: Array, generator: np.random.Generator, resamples: int) -> dict[str, Json]:
    """Spearman's rho of each condensed proxy minus that of each baseline."""
    differences: dict[str, Json] = {}
    for name, scores in proxies.items():
        if scores.kind != "condensed":
            continue
        baselines = [
            baseline
            for baseline in ("random", "random-decoded", "early-steps", f"early-cost-{name}", "parameters", "regression")
            if baseline in proxies
        ]
        differences[name] = {
            baseline: intervals.paired_bootstrap(
                scores.values, proxies[baseline].values, mean, ranking.spearman_rows, generator, resamples
            ).as_dict()
            for baseline in baselines
        }
    return differences
