"""A condense study that continues another run's checkpoints with other step sizes: another study, in another folder."""

import dataclasses
import hashlib
from pathlib import Path

from distill.errors import InputError
from distill.records import read_lines, write_json_lines
from scenarios.condense.schema import CondenseStudy


def continued(study: CondenseStudy, run: Path) -> CondenseStudy:
    """The study that starts from another run's checkpoints; its hash differs from that of the study made from the start.

    Args:
        study: the study as its file says.
        run: the folder of a run that stopped or diverged.

    Raises:
        InputError: where ``run`` has no checkpoint for any of the study's ipc.
    """
    checkpoints = {str(ipc): run / checkpoint(ipc) for ipc in study.ipc if isinstance(ipc, int) and (run / checkpoint(ipc)).is_file()}
    if not checkpoints:
        name = checkpoint(study.ipc[0]) if isinstance(study.ipc[0], int) else "checkpoint of one ipc for all classes"
        raise InputError(f"--resume-from {run}: there is no {name}; give the folder of a run that stopped or diverged.")
    hashes = {ipc: hashlib.sha256(path.read_bytes()).hexdigest()[:16] for ipc, path in checkpoints.items()}
    return dataclasses.replace(study, merged={**study.merged, "continued": {"run": run.name, "checkpoints": hashes}})


def checkpoint(ipc: int) -> str:
    """The file in a run folder from which its set of this ipc is continued."""
    return f"checkpoint-ipc{ipc}.safetensors"


def take_lines(run: Path, metrics: Path, ipc: int) -> None:
    """The losses that ``run`` logged at this ipc, before those that will follow; `condense` drops what comes after the checkpoint."""
    ours = [line for line in read_lines(metrics) if not (line.get("stage") == "distil" and line.get("ipc") == ipc)]
    theirs = [line for line in read_lines(run / "metrics.jsonl") if line.get("stage") == "distil" and line.get("ipc") == ipc]
    write_json_lines(metrics, [*ours, *theirs])
