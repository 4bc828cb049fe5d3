"""The kinds "condense" and "sweep_lr"."""

import dataclasses
from pathlib import Path
from typing import Any

from distill.data import ImageData
from scenarios.condense import run, schema, show, sweep_lr
from scenarios.condense.continued import continued
from scenarios.condense.step_sizes import OWN
from scenarios.engine.study import Kind, View


def sets(study: schema.CondenseStudy, seed: int) -> dict[str, Path]:
    """The set of each IPC."""
    if not isinstance(study.ipc[0], int):
        largest = study.ipc[0].values() if isinstance(study.ipc[0], dict) else ()
        return {f"ipc{max(largest)}" if largest else "proportional": Path("condensed.safetensors")}
    single = len(study.ipc) == 1
    return {f"ipc{ipc}": Path("condensed.safetensors" if single else f"condensed-ipc{ipc}.safetensors") for ipc in study.ipc}


def advised(study: sweep_lr.SweepStudy, data: ImageData) -> list[str]:
    """The advice for a run at a step size of the sweep: that it is not the network's own is what the sweep finds out."""
    settings: Any = study.base.settings
    tried = dataclasses.replace(settings, **{study.sweep.key: study.sweep.values[0]})
    return run.advised(dataclasses.replace(study.base, settings=tried), data)


KIND = Kind(
    "condense",
    schema.condense_study,
    run.check,
    run.fill,
    show.draw,
    View(show.answer, show.accuracy_table, show.question, show.missing, main=r"ipc\d+\.(accuracy|cross_architecture)\..*"),
    sets=sets,
    own=OWN,
    sharded=True,
    advice=run.advised,
    continued=continued,
)

SWEEP_LR = Kind(
    "sweep_lr",
    sweep_lr.study,
    sweep_lr.check,
    sweep_lr.fill,
    sweep_lr.draw,
    View(
        sweep_lr.answer, sweep_lr.accuracy_table, sweep_lr.question, sweep_lr.missing, note=sweep_lr.NOTE, main=r"step_sizes\..*\.accuracy"
    ),
    staged=False,
    own=OWN,
    advice=advised,
)
