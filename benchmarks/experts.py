"""MTT's experts one after the other on all cores, and in parallel on one core each: python -m benchmarks.experts [--json FILE]

Needs mnist (DISTILL_DATA). Both forms are `distill.experts.train_experts` with an empty cache; the seconds include the start of
the worker processes.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import distill
from distill import experts
from distill.memory import keep_freed_memory
from distill.records import environment, write_json


def seconds(data: distill.ImageData, config: experts.ExpertConfig, *, side_by_side: bool) -> float:
    """Seconds for all experts of the configuration, with an empty cache."""
    experts.WORTH_WORKERS = 0.0 if side_by_side else float("inf")
    with tempfile.TemporaryDirectory() as cache:
        os.environ["DISTILL_CACHE"] = cache
        start = time.perf_counter()
        experts.train_experts(data, config)
        return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--experts", type=int, default=4)
    parser.add_argument("--network", nargs="+", default=["ConvNetW32"])
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    keep_freed_memory()
    data = distill.load("mnist")
    by_network: dict[str, dict[str, list[float]]] = {}
    for network in options.network:
        config = experts.ExpertConfig(options.experts, 1, network=network)
        taken: dict[str, list[float]] = {"one after the other": [], "side by side": []}
        for _ in range(options.rounds):
            for form, values in taken.items():
                values.append(seconds(data, config, side_by_side=form == "side by side"))
                print(f"{network}, {options.experts} experts of one epoch, {form}: {values[-1]:.1f} s", flush=True)
        alone, together = (statistics.median(values) for values in taken.values())
        print(f"{network}: side by side {alone / together:.2f} times as fast")
        by_network[network] = taken
    if options.json:
        facts = {"environment": environment("cpu"), "experts": options.experts, "epochs": 1, "data": "mnist"}
        write_json(options.json, {**facts, "seconds": by_network})


if __name__ == "__main__":
    main()
