"""How many operations a step launches on a GPU, how often it waits for the host, and its peak memory: counted without one.

python -m benchmarks.launches [--json FILE] [--only dm,datadam,...]     a finished row of FILE is not counted again
python -m benchmarks.launches --page                                    the table of docs/speed.md from benchmarks/expected/launches.json

Counted on device "meta" (benchmarks/counting.py), ConvNet-3 of width 128, 32 x 32 pixels, 10 images a class, each method's own batch.
"""

import argparse
from pathlib import Path

from benchmarks.core import PAGE
from benchmarks.counting import counted, made_data, step_of
from benchmarks.page import with_launches
from distill.batches import GROUP_PIXELS
from distill.methods import METHODS
from distill.records import read_json, write_json, write_whole

KEPT = Path(__file__).parent / "expected" / "launches.json"
IPC, CLASSES = 10, (10, 100)
LARGE, LARGE_ROW, LARGE_LIMIT = ("dm", "datadam"), "200, IPC 50, 64 x 64, ConvNetD4", 12 * 2**30  # peak bytes
# What a step may ask for each group of about 2,048 images: operations. MTT's is for a whole step. CAFE has no limit of its own yet.
LIMIT = {"dm": 250, "datadam": 250, "dance": 250, "ncfm": 250, "idm": 250}
LIMIT |= {"gm": 1200, "dsa": 1200, "dsac": 1200, "idc": 1200, "accdd": 1200, "dream": 1200, "mtt": 12_000}
# One update of the images in a new network, which is not trained afterwards.
_UPDATE: dict[str, object] = {"outer_steps": 1, "inner_epochs": 0}
SETTINGS: dict[str, dict[str, object]] = {
    **dict.fromkeys(("gm", "dsa", "idc", "accdd"), _UPDATE),
    "dsac": {**_UPDATE, "warm_networks": 0},  # all classes together; before, as dsa
    "dream": {**_UPDATE, "real_batches": "random"},  # in every tenth update its batches are chosen on the host, which waits once a class
    "mtt": {"syn_steps": 20, "compile": "off"},
}


def row(method: str, classes: int, ipc: int = IPC, side: int = 32, network: str = "ConvNet") -> dict[str, object]:
    """Counts of one step, and how many groups the images make that pass through a network."""
    config = METHODS[method][0]()
    batch = config.batch_real
    passes = 2 if method == "idm" or config.calibration else 1  # of the synthetic images: another one in a trained network
    images = classes * (batch + passes * ipc * (4 if config.decode != "none" else 1))
    settings = {"network": network, **SETTINGS.get(method, {})}
    counts = counted(step_of(method, made_data(classes, batch, (3, side, side)), ipc, "meta", **settings))
    return {
        "operations": counts.operations,
        "groups": 1 if method == "mtt" else -(-images * side**2 // GROUP_PIXELS),
        "waits": dict(counts.waits),
        "transfers": counts.transfers,
        "mixed": dict(counts.mixed),
        "peak_bytes": counts.peak,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file; rows that it holds already stay in it")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--only", default=",".join(LIMIT))
    options = parser.parse_args()
    if options.page:
        write_whole(PAGE, with_launches(PAGE.read_text(), read_json(KEPT)))
        return
    results = read_json(options.json)["results"] if options.json and options.json.exists() else {}
    for method in options.only.split(","):
        for classes in (*CLASSES, LARGE_ROW) if method in LARGE else CLASSES:
            if str(classes) not in results.setdefault(method, {}):
                found = row(method, classes) if isinstance(classes, int) else row(method, 200, 50, 64, "ConvNetD4")
                results[method][str(classes)] = found
                print(method, classes, found, flush=True)
                if options.json:
                    write_json(options.json, {"ipc": IPC, "network": "ConvNet", "device": "meta", "results": results})


if __name__ == "__main__":
    main()
