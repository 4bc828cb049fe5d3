"""Published figures (published.csv), how their networks were evaluated, and whether a kept run reproduces them.

The column ``judging`` says with what augmentation (and ZCA whitening) the published networks were trained: "none", "DC" (crop, scale or
rotate, of MNIST only), "DSA", "DSA, ZCA", "IDC" and "NCFM" (their protocols), with labels of an expert, or "not stated"; "best on the
test set" is added where the authors chose by it; "presumably" stands before what no source says outright. One baseline may have
several figures: ten random images a class of CIFAR-10 are 26.0 in older tables and 31.0 in later ones, presumably without and with DSA.
Published herding and k-center, presumably by features of a trained network, stand under the names of those by pixels. "random-labelled"
are random images with the labels of an expert that was stopped early, and 3,000 epochs of training.
"""

import csv
from pathlib import Path

from distill.augment import DSA, DSA_DIGITS
from distill.spec import DataSpec
from distill.train import protocol
from scenarios.engine.record import Config

PUBLISHED = Path(__file__).parent / "published.csv"
ROUNDING = 0.5  # points: tables are rounded, and their own intervals are about as wide


def judging(config: Config, network: str, auto: str = "auto") -> str:
    """How a run trains its evaluation networks, in the words of the column; ``auto`` is what its record says that "auto" was."""
    data, evaluation = config["data"], config["evaluation"]
    if evaluation["recipe"]:
        text = evaluation["recipe"]["augmentation"]
    else:
        text = protocol(evaluation["protocol"], DataSpec(data["name"], 1, 1, 1, ("",), (0.0,), (1.0,)), network).augmentation
    text = auto if text == "auto" else text
    name = {"auto": "DSA", DSA: "DSA", DSA_DIGITS: "DSA", "": "none", "dc_crop_scale_rotate": "DC"}.get(text, text)
    return f"{name}, ZCA" if data.get("zca") else name


def published(path: Path, dataset: str, ipc: str, name: str, how: str) -> dict[str, str]:
    """The row of a published figure, the one with this `judging` if there are several; empty if there is none."""
    with path.open(newline="") as file:
        rows = [r for r in csv.DictReader(file) if (r["dataset"], r["ipc"], r["set"]) == (dataset, ipc, name)]
    return next((r for r in rows if _same(r["judging"], how)), rows[0] if rows else {})


def reproduced(low: float, high: float, figure: dict[str, str], how: str) -> str:
    """ "yes" when the published figure lies in our interval, give or take the rounding of such tables, and was evaluated alike.

    Above or below the interval it is "no". "no, other evaluation": another augmentation or whitening, so that the two cannot be compared.
    """
    if not figure:
        return ""
    if figure["judging"] != "not stated" and not _same(figure["judging"], how):
        return "no, other evaluation"
    return "yes" if low - ROUNDING <= float(figure["accuracy"]) <= high + ROUNDING else "no"


def _same(theirs: str, ours: str) -> bool:
    return theirs.removeprefix("presumably ") == ours
