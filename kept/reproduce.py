"""Run what has no kept record yet: `make reproduce`, or

python -m kept.reproduce [--form paper|released|short|small|seams] [--minutes 8] [--out DIR] [NAME ...]

goes through the template's names (all, or those given), runs what kept/expected has no file for, and keeps each finished record's
figures there. It works for ``--minutes``, stops cleanly (every run is saved) and continues from there when called again: a slice at a time.
"""

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch

from distill.data_sources import describe
from distill.records import read_json, write_whole
from kept import pages
from scenarios.catalogue import study
from scenarios.engine.record import run_name
from scenarios.engine.scenario import read_scenario
from scenarios.engine.template import FORMS, names


def missing(asked: list[str], ready: set[str]) -> tuple[list[str], list[str]]:
    """(names to run, names whose data are not here) of those without a kept file."""
    left = [name for name in asked if not (pages.EXPECTED / "condense" / f"{name}.csv").exists()]
    there = [name for name in left if read_scenario(name)[1]["data"]["name"] in ready]
    return there, [name for name in left if name not in there]


def run_slice(name: str, out: Path, seconds: float) -> bool:
    """Run or continue one scenario for at most this long; whether it is done."""
    command = [sys.executable, "-m", "scenarios.cli", "run", name, "--out", str(out), "--resume"]
    process = subprocess.Popen(command)
    try:
        process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGINT)
        process.wait()
    except KeyboardInterrupt:  # the terminal has sent it to the child as well
        process.wait()
        raise
    if process.returncode not in (0, 130):
        raise SystemExit(f"{name}: stopped with exit code {process.returncode}; see above.")
    return process.returncode == 0


def main(arguments: list[str] | None = None) -> None:
    """Run scenarios of the template one after the other, for at most ``--minutes``."""
    parser = argparse.ArgumentParser(prog="python -m kept.reproduce", description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("names", nargs="*")
    parser.add_argument(
        "--form", choices=[form for form in FORMS if form != "cross"], default="paper" if torch.cuda.is_available() else "short"
    )
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--out", type=Path, default=Path("runs"))
    options = parser.parse_args(arguments)
    end = time.monotonic() + 60 * options.minutes
    ready = {name for name, _, there in describe(None) if there}
    todo, without_data = missing(options.names or names(options.form), ready)
    if without_data:
        print(f"data not here, left out: {', '.join(without_data)}")
    for name in todo:
        left = end - time.monotonic()
        if left < 5 or not run_slice(name, options.out, left):
            print(f"{options.minutes:g} minutes are over; the same command continues from here ({name}).")
            return
        checked = study(name, read_scenario(name)[1], name)
        folder = options.out / run_name(name, checked.hash, 0)
        if read_json(folder / "record.json")["status"] == "done":
            write_whole(pages.EXPECTED / "condense" / f"{name}.csv", pages.to_csv(pages.rows_of(folder)))
    print("nothing is left to run.")


if __name__ == "__main__":
    main()
