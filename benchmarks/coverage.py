"""How often printed 95 % intervals hold the true value, simulated from distributions whose true value is known.

python -m benchmarks.coverage [--studies 2000] [--only NAME ...] [--json FILE]
python -m benchmarks.coverage --page         the table of docs/privacy.md from benchmarks/expected/coverage.json

One line for each kind of interval that this project prints, at the numbers of networks, runs or points that studies have. Accuracies are
those of networks with normal errors that are tested on 10,000 images; scores of membership are normal.
"""

import argparse
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import TypedDict

import numpy as np
import scipy.stats

from apps.continual.benchmark import interval
from apps.nas import intervals, ranking
from apps.privacy import metrics
from distill.curves import curve
from distill.measured import Accuracy
from distill.paired import paired_difference
from distill.records import environment, read_json, write_json, write_whole
from distill.scores import Score
from scenarios.condense.several import spread
from scenarios.privacy.released import auc_by_point
from scenarios.reporting.text import as_markdown, replaced

Numbers = np.random.Generator
Found = tuple[float, float, float]  # lower end, upper end, true value
KEPT = Path(__file__).parent / "expected" / "coverage.json"
PAGE = Path(__file__).parents[1] / "docs" / "privacy.md"
BEGIN, END = "<!-- table: begin (python -m benchmarks.coverage --page) -->", "<!-- table: end (coverage) -->"
EFFECT = 0.5  # of members' scores, in standard deviations
RELATED = 0.7  # correlation of a proxy with the truth


class Line(TypedDict):
    """A kind of interval: the share of ``studies`` in which it held the true value, with Clopper and Pearson's interval."""

    interval: str
    studies: int
    held: float
    low: float
    high: float


def tested(draws: Numbers, means: np.ndarray, noise: float) -> np.ndarray:
    """Accuracies in percent of networks whose true ones differ from ``means`` by normal errors, on 10,000 test images."""
    true = np.clip(means + noise * draws.standard_normal(means.shape), 0, 100)
    return np.asarray(draws.binomial(10_000, true / 100) / 100)


def of_networks(draws: Numbers, count: int) -> Found:
    found = Accuracy(tuple(tested(draws, np.full(count, 60.0), 0.5)))
    return found.low, found.high, 60.0


def of_sets(draws: Numbers, sets: int, networks: int) -> Found:
    each = 60 + draws.standard_normal((sets, 1)) * np.ones((sets, networks))
    found = spread([tuple(row) for row in tested(draws, each, 0.5)])
    return found["low"], found["high"], 60.0


def of_a_score(draws: Numbers, sets: int, networks: int, spread_of_sets: float = 1.0) -> Found:
    """A set's improvement over random images, whose networks are the same for all sets. Of one set it is that set's, not the method's."""
    each = 60 + (spread_of_sets * draws.standard_normal((sets, 1)) if sets > 1 else 0) * np.ones((sets, networks))
    gains = (tested(draws, each, 0.5) - tested(draws, np.full((1, networks), 40.0), 0.5)) / 100
    found = Score.of("improvement", [list(row) for row in gains])
    return found.mean - found.half_width, found.mean + found.half_width, 0.2


def of_pairs(draws: Numbers, count: int) -> Found:
    common = 60 + 2 * draws.standard_normal(count)
    found = paired_difference(list(tested(draws, common, 0.5)), list(tested(draws, common + 1, 0.5)))
    assert found.low is not None
    assert found.high is not None
    return found.low, found.high, 1.0


def of_orders(draws: Numbers, count: int) -> Found:
    found = interval([float(value) for value in tested(draws, np.full(count, 40.0), 1.5)])
    return float(str(found["low"])), float(str(found["high"])), 40.0


def scored(draws: Numbers, members: int, others: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores of members, higher by `EFFECT`, and of others."""
    return draws.standard_normal(members) + EFFECT, draws.standard_normal(others)


def of_a_rate(draws: Numbers, points: int, floor: float) -> Found:
    found = metrics.rate_at(*scored(draws, points, points), floor)
    assert found is not None
    return found.low, found.high, float(scipy.stats.norm.sf(scipy.stats.norm.isf(floor) - EFFECT))


def of_an_advantage(draws: Numbers, points: int) -> Found:
    """The threshold is chosen on one half: the true advantage is that of this threshold."""
    inside, outside = scored(draws, points, points)
    threshold = metrics.best_advantage(inside[: points // 2], outside[: points // 2])
    found = metrics.advantage(inside[points // 2 :], outside[points // 2 :], threshold)
    return found.low, found.high, float(scipy.stats.norm.sf(threshold - EFFECT) - scipy.stats.norm.sf(threshold))


def of_an_auc(draws: Numbers, points: int) -> Found:
    inside, outside = scored(draws, points, points)
    ends = auc_by_point(inside, outside)
    return ends["low"], ends["high"], float(scipy.stats.norm.cdf(EFFECT / 2**0.5))


def of_runs(draws: Numbers, runs: int, points: int) -> Found:
    """The AUC over runs, whose effects differ."""
    values, effects = [], EFFECT + 0.2 * draws.standard_normal(runs)
    for effect in effects:
        values.append(metrics.auc(draws.standard_normal(points) + effect, draws.standard_normal(points)))
    found = metrics.by_run(values)
    return found.low, found.high, float(scipy.stats.norm.cdf(EFFECT / (2 + 0.2**2) ** 0.5))


def of_a_share(draws: Numbers, images: int) -> Found:
    """The share of a set's images that are nearer to training than to other images."""
    low, high = metrics.clopper_pearson(int(draws.binomial(images, 0.3)), images)
    return low, high, 0.3


def of_victims(draws: Numbers, victims: int) -> Found:
    """The mean PSNR of reconstructions, a mixture: most fail, some are nearly exact."""
    exact = draws.random(victims) < 0.2
    values = np.where(exact, 40 + 4 * draws.standard_normal(victims), 12 + 2 * draws.standard_normal(victims))
    found = metrics.by_run([float(value) for value in values])
    return found.low, found.high, 0.2 * 40 + 0.8 * 12


def related(draws: Numbers, networks: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores and true accuracies of networks: a normal pair with correlation `RELATED`."""
    proxy = draws.standard_normal(networks)
    return proxy, RELATED * proxy + math.sqrt(1 - RELATED**2) * draws.standard_normal(networks)


def of_a_ranking(draws: Numbers, networks: int) -> Found:
    """Spearman's rho of a normal pair with correlation r is 6 / pi asin(r / 2)."""
    found = intervals.bootstrap(*related(draws, networks), ranking.spearman_rows, draws, 500)
    return found.low, found.high, 6 / math.pi * math.asin(RELATED / 2)


def of_a_tau(draws: Numbers, networks: int) -> Found:
    """Kendall's tau of a normal pair with correlation r is 2 / pi asin(r)."""
    found = intervals.bootstrap(*related(draws, networks), ranking.kendall_rows, draws, 500)
    return found.low, found.high, 2 / math.pi * math.asin(RELATED)


def of_two_rankings(draws: Numbers, networks: int) -> Found:
    """The difference in Spearman's rho between a proxy and the same one with as much noise again."""
    proxy, truth = related(draws, networks)
    found = intervals.paired_bootstrap(proxy, proxy + draws.standard_normal(networks), truth, ranking.spearman_rows, draws, 500)
    return found.low, found.high, 6 / math.pi * (math.asin(RELATED / 2) - math.asin(RELATED / 8**0.5))


def of_the_best(draws: Numbers, networks: int, k: int, statistic: str) -> Found:
    """Regret or overlap of given networks that are trained with three seeds: the true one is that of their expected accuracies."""
    proxy, true = related(draws, networks)
    trained = 80 + 4 * true[:, None] + 0.5 * draws.standard_normal((networks, 3))
    interval, of_means = {
        "regret": (intervals.regret_interval, ranking.regret),
        "overlap": (intervals.overlap_interval, ranking.overlap),
    }[statistic]
    found = interval(proxy, trained.mean(1), k, intervals.seed_margin(trained))
    return found.low, found.high, of_means(proxy, 80 + 4 * true, k)


def of_a_curve(draws: Numbers, points: int, networks: int) -> Found:
    """One point of an accuracy curve, whose spread is pooled over the later half of its points."""
    found = curve(range(1, points + 1), [list(one) for one in tested(draws, np.full((points, networks), 50.0), 1.5)])
    assert found.half_width is not None
    return found.means[-1] - found.half_width, found.means[-1] + found.half_width, 50.0


KINDS: dict[str, Callable[[Numbers], Found]] = {
    **{f"accuracy, {n} networks": functools.partial(of_networks, count=n) for n in (3, 5, 20)},
    **{f"accuracy, {s} sets of {n} networks": functools.partial(of_sets, sets=s, networks=n) for s, n in ((3, 3), (5, 5))},
    "score, 1 set of 3 networks": functools.partial(of_a_score, sets=1, networks=3),
    **{f"score, {s} sets of {n} networks": functools.partial(of_a_score, sets=s, networks=n) for s, n in ((3, 3), (3, 5), (10, 3))},
    **{
        f"score, {s} sets of {n} networks, sets alike": functools.partial(of_a_score, sets=s, networks=n, spread_of_sets=0.3)
        for s, n in ((3, 3), (5, 5), (10, 3))
    },
    **{f"paired difference, {n} pairs": functools.partial(of_pairs, count=n) for n in (3, 5)},
    **{f"class orders or seeds, {n}": functools.partial(of_orders, count=n) for n in (3, 5)},
    **{f"TPR at 1 % FPR, {n:,} points": functools.partial(of_a_rate, points=n, floor=0.01) for n in (1000, 10_000)},
    "TPR at 0.1 % FPR, 10,000 points": functools.partial(of_a_rate, points=10_000, floor=0.001),
    **{f"advantage, {n:,} points": functools.partial(of_an_advantage, points=n) for n in (200, 2000)},
    **{f"AUC over {n} points": functools.partial(of_an_auc, points=n) for n in (100, 500)},
    **{f"AUC over {n} runs": functools.partial(of_runs, runs=n, points=500) for n in (2, 4, 12)},
    **{f"share of {n} images": functools.partial(of_a_share, images=n) for n in (10, 100)},
    "mean PSNR of 100 victims": functools.partial(of_victims, victims=100),
    **{f"Spearman's rho, {n} networks": functools.partial(of_a_ranking, networks=n) for n in (10, 20, 60)},
    **{f"Kendall's tau, {n} networks": functools.partial(of_a_tau, networks=n) for n in (10, 20, 60)},
    **{f"difference in Spearman's rho, {n} networks": functools.partial(of_two_rankings, networks=n) for n in (20, 60)},
    **{
        f"{name}@{k}, {n} networks of 3 seeds": functools.partial(of_the_best, networks=n, k=k, statistic=name)
        for name in ("regret", "overlap")
        for n, k in ((20, 1), (60, 1), (60, 5))
    },
    "a point of an accuracy curve, 6 points of 3 networks": functools.partial(of_a_curve, points=6, networks=3),
}


def line(name: str, studies: int) -> Line:
    """The share of simulated studies whose interval holds the true value."""
    draws = np.random.default_rng([studies, *name.encode()])
    held = 0
    for _ in range(studies):
        low, high, true = KINDS[name](draws)
        held += low <= true <= high
    low, high = metrics.clopper_pearson(held, studies)
    return {"interval": name, "studies": studies, "held": held / studies, "low": low, "high": high}


def table(lines: list[Line]) -> str:
    """Markdown: a row for each kind."""
    rows = [["95 % interval of", "holds the true value in", "simulated studies"]]
    for one in lines:
        rows.append([one["interval"], f"{one['held']:.1%} ({one['low']:.1%} to {one['high']:.1%})", f"{one['studies']:,}"])
    return as_markdown(rows)


def main(arguments: list[str] | None = None) -> None:
    """Simulate, and keep or print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.coverage", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--studies", type=int, default=2000)
    parser.add_argument("--only", nargs="+", choices=KINDS, default=list(KINDS), metavar="NAME")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(arguments)
    if options.page:
        write_whole(PAGE, replaced(PAGE.read_text(), BEGIN, table(read_json(KEPT)["lines"]), END))
        return
    lines = []
    for name in options.only:
        lines.append(line(name, options.studies))
        print(table(lines[-1:]).splitlines()[-1], flush=True)
    if options.json:
        write_json(options.json, {"lines": lines, "environment": environment("cpu")})


if __name__ == "__main__":
    main()
