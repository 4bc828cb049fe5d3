"""The accuracy of a condense study's set along its run, on validation images, else on training ones: would fewer iterations have done?

The run saves snapshots; they are evaluated after it, by few networks that are trained briefly, and then removed. The cost is bounded in
counts: at most three training steps for each step of the run, so short runs have no curve. ``metrics.jsonl`` is the ledger.
"""

import dataclasses
from pathlib import Path

import torch

from distill.condensed import CondensedSet
from distill.curves import FEWEST, curve, curve_steps, flat_early, networks_within
from distill.data import ImageData, Split
from distill.evaluation import Measured, accuracies
from distill.methods import METHODS
from distill.randomness import generator
from distill.records import append_line
from distill.train import PROTOCOLS
from scenarios.condense.schema import CondenseStudy
from scenarios.engine.ledger import matching
from scenarios.engine.record import Results

TRAINING_STEPS, MOST_IMAGES = 50, 1000


def snapshots(study: CondenseStudy, data: ImageData, folder: Path, ipc: int) -> dict[int, Path]:
    """Where the run saves its set, by step; the last step is missing, because that set is the study's. Empty for a short run."""
    total = _total(study, data, ipc)
    steps = curve_steps(total)
    saved = steps[:-1] if networks_within(total, len(steps), TRAINING_STEPS) else ()
    return {step: folder / f"snapshot-ipc{ipc}-step{step}.safetensors" for step in saved}


def measured(
    study: CondenseStudy, seed: int, data: ImageData, folder: Path, ipc: int, condensed: CondensedSet, *, accuracy: float | None = None
) -> tuple[Results | None, str | None]:
    """Evaluate the snapshots of a finished run, and remove them.

    Args:
        study: the study.
        seed: the run's.
        data: its data; at most `MOST_IMAGES` validation images are used, training images where there are none.
        folder: the run folder.
        ipc: images per class of the set.
        condensed: the finished set, which is the last point.
        accuracy: its mean accuracy in the study's own evaluation, in percent; None: it has none.

    Returns:
        The record's ``curve``, and a sentence where it flattens early. None for a short run, and where a network failed. A run that
        was continued from another's checkpoint has the later points only.
    """
    files, metrics = snapshots(study, data, folder, ipc), folder / "metrics.jsonl"
    if not files:
        return None, None
    total, split = _total(study, data, ipc), "validation" if len(data.validation) else "train"
    network = study.evaluation.networks[0] if study.evaluation else study.settings.network
    seeds = [seed * 1000 + k for k in range(networks_within(total, len(files) + 1, TRAINING_STEPS))]
    recipe = dataclasses.replace(PROTOCOLS["laptop"], max_steps=TRAINING_STEPS)
    part, values = _part(data, split, seed), {}
    for step in (*files, total):
        mark = {"stage": "curve", "ipc": ipc, "step": step, "network": network}
        done = {line["seed"]: line for line in matching(metrics, mark)}
        missing = [one for one in seeds if one not in done]
        if missing and step != total and not files[step].is_file():
            continue
        if missing:
            snapshot = condensed if step == total else CondensedSet.load(files[step]).to(condensed.images.device)
            for one in accuracies(snapshot, part, ["condensed"], network, recipe, missing, split="validation"):
                done[one.seed] = one.line()
                append_line(metrics, {**mark, **one.line()})
        values[step] = [Measured.read("condensed", {"seed": one, **done[one]}).value for one in seeds]
    for file in files.values():
        file.unlink(missing_ok=True)
    if len(values) < FEWEST or any(value != value for points in values.values() for value in points):
        return None, None
    points = curve(list(values), list(values.values()))
    half = points.half_width
    ends = {
        "low": None if half is None else [max(0.0, mean - half) for mean in points.means],
        "high": None if half is None else [min(100.0, mean + half) for mean in points.means],
    }
    plain = {"steps": list(points.steps), "accuracy": list(points.means), **ends, "split": split, "networks": len(seeds)}
    sentence = flat_early(points, max(1, total // study.merged["method"]["iterations"]), accuracy)
    return {**plain, "flat_at": points.flat_at}, f"{sentence} (on training images)" if sentence and split == "train" else sentence


def _total(study: CondenseStudy, data: ImageData, ipc: int) -> int:
    """Steps of the run; 0 for a user's own method, which is made once, for its run."""
    if ":" in study.method:
        return 0
    start = CondensedSet(torch.zeros(ipc, *data.spec.shape), torch.zeros(ipc, dtype=torch.int64), data.spec)
    distiller = METHODS[study.method][1](study.settings, start, None)
    return int(distiller.total_steps)


def _part(data: ImageData, split: str, seed: int) -> ImageData:
    """The data with at most 1,000 images of the split as validation images."""
    real: Split = getattr(data, split)
    chosen = torch.randperm(len(real), generator=generator(seed, "curve"))[:MOST_IMAGES].to(real.labels.device)
    return dataclasses.replace(data, validation=Split(real.images[chosen], real.labels[chosen]))
