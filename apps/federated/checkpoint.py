"""The checkpoint of a federation: round, weights, and what the rule keeps, in one safetensors file that is checked when it is read."""

import json
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor

from distill.errors import InputError
from distill.records import write_whole

Weights = dict[str, Tensor]
NAME = "checkpoint.safetensors"


def save(path: Path, key: str, number: int, weights: Weights, kept: Weights) -> None:
    """Write the state after round ``number``; ``key`` identifies the run's settings, ``kept`` is the rule's state."""
    tensors = {f"weights/{name}": value.contiguous() for name, value in weights.items()}
    tensors |= {f"rule/{name}": value.contiguous() for name, value in kept.items()}
    write_whole(path, safetensors.torch.save(tensors, {"checkpoint": json.dumps({"key": key, "round": number})}))


def load(path: Path, key: str | None) -> tuple[int, Weights, Weights]:
    """(round, weights, the rule's state) of a file of `save`; without a ``key`` of any run.

    Raises:
        InputError: the file is damaged, or of a run with other settings.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            facts = json.loads(file.metadata()["checkpoint"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no mapping)
    except (safetensors.SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: is damaged ({str(error)[:100]}); delete it to start again.") from None
    if key is not None and facts.get("key") != key:
        raise InputError(f"{path}: belongs to a run with other settings; delete it to start again.")
    weights, kept = (
        {name.removeprefix(part): value for name, value in tensors.items() if name.startswith(part)} for part in ("weights/", "rule/")
    )
    return int(facts["round"]), weights, kept
