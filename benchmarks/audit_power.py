"""How often the audit finds too little noise, and how often it contradicts correct code.

python -m benchmarks.audit_power [--epsilon 1] [--audits 300] [--correct 3000] [--factors 0.5 0.9] [--jobs 2] [--json FILE]
python -m benchmarks.audit_power --page        the table of docs/privacy.md from benchmarks/expected/audit_power.json

Each simulated audit is `apps.privacy.canaries.audit_of_chance`, all of the audit in which chance has a part, with the system's own noise
times a factor; the checks without chance pass or fail the same way every time and are made once for each factor. Prints for each factor
the number of audits that contradict the mechanism, with Clopper and Pearson's interval.
"""

import argparse
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch

from apps.privacy.canaries import audit, audit_of_chance
from apps.privacy.entropy import SystemEntropy
from apps.privacy.metrics import clopper_pearson
from apps.privacy.private_statistics import PrivateStatistics
from benchmarks.page import Record
from distill.data import ImageData
from distill.records import environment, read_json, write_json, write_whole
from scenarios.reporting.text import as_markdown, replaced

BEGIN, END = "<!-- table: begin (python -m benchmarks.audit_power --page) -->", "<!-- table: end (audit power) -->"
KEPT = Path(__file__).parent / "expected" / "audit_power.json"
PAGE = Path(__file__).parents[1] / "docs" / "privacy.md"
CONFIDENCE, CANARIES, DELTA = 0.999, 2000, 1e-5  # those of a study's [audit]
CHUNK = 20


class ScaledEntropy(SystemEntropy):
    """The system's entropy with normal numbers of another size."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self.factor * super().normal(shape)


class Maker:
    """Statistics whose noise is ``factor`` times what the account states."""

    def __init__(self, factor: float) -> None:
        self.factor = factor

    def __call__(self, data: ImageData, epsilon: float, delta: float, **options: object) -> PrivateStatistics:
        made = PrivateStatistics(data, epsilon, delta, **options)  # type: ignore[arg-type]
        made._entropy = ScaledEntropy(self.factor)
        return made


def contradicted(factor: float, epsilon: float, seeds: Sequence[int]) -> int:
    """The number of audits, one a seed of the canaries' coins, that contradict the mechanism."""
    torch.set_num_threads(1)
    return sum(not audit_of_chance(Maker(factor), epsilon, DELTA, CANARIES, CONFIDENCE, seed).holds for seed in seeds)


def with_power(page: str, record: Record) -> str:
    """The page with the table of this record."""
    rows = [["noise, times what the account states", f"audits at epsilon {record['epsilon']:g}", "contradict it"]]
    for row in record["rows"]:
        share = f"{row['contradicted'] / row['audits']:.2%} ({row['low']:.2%} to {row['high']:.2%})"
        rows.append([f"{row['factor']:g}", f"{row['audits']:,}", f"{row['contradicted']:,}: {share}"])
    return replaced(page, BEGIN, as_markdown(rows), END)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.audit_power", description="Power and errors of the audit, simulated.")
    parser.add_argument("--epsilon", type=float, default=1.0)
    parser.add_argument("--audits", type=int, default=300, help="simulated audits for each factor")
    parser.add_argument("--correct", type=int, default=3000, help="simulated audits of correct code")
    parser.add_argument("--factors", type=float, nargs="*", default=[0.5, 0.9])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--page", action="store_true")
    options = parser.parse_args(arguments)
    if options.page:
        write_whole(PAGE, with_power(PAGE.read_text(), read_json(KEPT)))
        return 0
    rows = []
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        for factor, count in [*((factor, options.audits) for factor in options.factors), (1.0, options.correct)]:
            start = time.monotonic()
            parts = [range(first, min(first + CHUNK, count)) for first in range(0, count, CHUNK)]
            waiting = [pool.submit(contradicted, factor, options.epsilon, part) for part in parts]
            found = sum(future.result() for future in waiting)
            low, high = clopper_pearson(found, count) if count else (0.0, 1.0)
            once = audit(Maker(factor), options.epsilon, DELTA, CANARIES, CONFIDENCE).holds
            rows.append({"factor": factor, "audits": count, "contradicted": found, "low": low, "high": high, "complete_audit_holds": once})
            taken = time.monotonic() - start
            print(
                f"noise times {factor:g}: {found} of {count} audits contradict it ({low:.2%} to {high:.2%}); "
                f"one complete audit {'holds' if once else 'contradicts it'}; {taken:.0f} s",
                flush=True,
            )
    if options.json:
        write_json(options.json, {"epsilon": options.epsilon, "confidence": CONFIDENCE, "rows": rows, "environment": environment("cpu")})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
