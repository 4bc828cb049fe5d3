"""How long `distill --help` takes: python -m benchmarks.startup"""

import statistics
import subprocess
import sys
import time

ROUNDS = 10


def main() -> None:
    seconds = []
    for _ in range(ROUNDS + 1):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "scenarios.cli", "--help"], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    warm = seconds[1:]
    print(f"distill --help: median {statistics.median(warm):.2f} s, slowest {max(warm):.2f} s of {ROUNDS}; first {seconds[0]:.2f} s")


if __name__ == "__main__":
    main()
