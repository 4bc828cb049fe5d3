"""How many operations a step launches on a GPU, how often it waits for the host, and its peak memory: counted without one.

python -m benchmarks.launches [--json FILE] [--only dm,datadam,...]     a finished row of FILE is not counted again
python -m benchmarks.launches --page                                    the table of docs/speed.md from benchmarks/expected/launches.json

Counted on device "meta" (benchmarks/counting.py), ConvNet-3 of width 128, 32 x 32 pixels, 10 images a class, each method's own batch.
"""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.core import PAGE
from benchmarks.counting import Counting, Counts, counted, made_data, moved, step_of
from benchmarks.page import with_launches
from distill.batches import GROUP_PIXELS
from distill.coresets import select
from distill.evaluation import accuracy
from distill.experts import ExpertConfig, _epochs
from distill.methods import METHODS, DMConfig, GMConfig, MTTConfig
from distill.networks import create
from distill.randomness import generator
from distill.records import read_json, write_json, write_whole
from distill.train import PROTOCOLS, train_network
from distill.train_as_one import train_as_one

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


def as_row(counts: Counts, groups: int) -> dict[str, object]:
    """What the record holds of counts, and of how many groups of about 2,048 images of 32 x 32 they are."""
    return {
        "operations": counts.operations,
        "groups": groups,
        "waits": dict(counts.waits),
        "transfers": counts.transfers,
        "mixed": dict(counts.mixed),
        "peak_bytes": counts.peak,
    }


def between(steps: Callable[[int], object]) -> dict[str, object]:
    """Counts of one step in the middle of a training: those of three steps less those of two; the peak is that of three."""
    found = []
    for number in (2, 3):
        with Counting() as counts:
            steps(number)
        found.append(counts)
    two, three = found
    one = Counts(three.operations - two.operations, three.waits - two.waits, three.transfers - two.transfers, three.mixed, three.peak)
    return as_row(one, 1)


def learner_step(classes: int) -> dict[str, object]:
    """An optimiser step of an evaluation network on a set of `IPC` images a class, at most 256 of them, which are rotated."""
    tiny = moved(select(made_data(classes, IPC), "random", IPC, generator(0, "set")))
    recipe = dataclasses.replace(PROTOCOLS["dm"], augmentation="rotate")  # of DSA's transforms the one of most operations
    return between(lambda steps: train_network(tiny, "ConvNet", dataclasses.replace(recipe, max_steps=steps), 0))


def learners_as_one(classes: int) -> dict[str, object]:
    """The same for five networks that are trained as one, on one image a class."""
    tiny = moved(select(made_data(classes, 1), "random", 1, generator(0, "set")))
    recipe = dataclasses.replace(PROTOCOLS["dm"], augmentation="rotate")
    return between(lambda steps: train_as_one([tiny] * 5, "ConvNet", dataclasses.replace(recipe, max_steps=steps), range(5)))


def expert_step(classes: int) -> dict[str, object]:
    """An optimiser step of an expert on 256 images, which are rotated."""
    data, config = made_data(classes, -(-3 * 256 // classes)), ExpertConfig(experts=1, epochs=1, augmentation="rotate")

    def steps(number: int) -> None:
        part = dataclasses.replace(data, train=data.train.at(torch.arange(number * 256)))
        list(_epochs(moved(part), config, config.network, 0))

    return between(steps)


def test_pass(classes: int) -> dict[str, object]:
    """The accuracy of a network on 10,000 images."""
    data = moved(made_data(classes, 10_000 // classes))
    network = create("ConvNet", data.spec, generator(0, "weights"), "meta")
    return as_row(counted(lambda: accuracy(network, data, "train")), -(-10_000 // 2048))


OTHERS = {
    "learner's step": learner_step,
    "five learners as one (IPC 1)": learners_as_one,
    "expert's step": expert_step,
    "test pass": test_pass,
}


def images_of(method: str, config: GMConfig | DMConfig | MTTConfig, classes: int, ipc: int) -> int:
    """Images that pass through a network in a step: of MTT those of the student's steps."""
    copies = 4 if config.decode != "none" else 1
    if isinstance(config, MTTConfig):
        return config.syn_steps * min(config.batch_syn or classes * ipc * copies, classes * ipc * copies)
    passes = 2 if method == "idm" or config.calibration else 1  # the second in a trained network
    return classes * (config.batch_real + passes * ipc * copies)


def row(method: str, classes: int, ipc: int = IPC, side: int = 32, network: str = "ConvNet") -> dict[str, object]:
    """Counts of one step, and how many groups the images make that pass through a network."""
    config = METHODS[method][0]()
    batch, images = config.batch_real, images_of(method, config, classes, ipc)
    settings = {"network": network, **SETTINGS.get(method, {})}
    counts = counted(step_of(method, made_data(classes, batch, (3, side, side)), ipc, "meta", **settings))
    return as_row(counts, 1 if method == "mtt" else -(-images * side**2 // GROUP_PIXELS))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="a file; rows that it holds already stay in it")
    parser.add_argument("--page", action="store_true")
    parser.add_argument("--only", default=",".join([*LIMIT, *OTHERS]))
    options = parser.parse_args()
    if options.page:
        write_whole(PAGE, with_launches(PAGE.read_text(), read_json(KEPT)))
        return
    results = read_json(options.json)["results"] if options.json and options.json.exists() else {}
    for method in options.only.split(","):
        for classes in (*CLASSES, LARGE_ROW) if method in LARGE else CLASSES:
            if str(classes) not in results.setdefault(method, {}):
                if method in OTHERS:
                    found = OTHERS[method](int(classes))
                else:
                    found = row(method, classes) if isinstance(classes, int) else row(method, 200, 50, 64, "ConvNetD4")
                results[method][str(classes)] = found
                print(method, classes, found, flush=True)
                if options.json:
                    write_json(options.json, {"ipc": IPC, "network": "ConvNet", "device": "meta", "results": results})


if __name__ == "__main__":
    main()
