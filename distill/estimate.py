"""Memory and time of a run: too little memory is an error before the first step, an estimate is printed after a few steps."""

import math

import torch

from distill.errors import InputError
from distill.processes import free_bytes
from distill.records import peak_memory_bytes
from distill.spec import DataSpec

# The first step includes compilation; a step longer than this is used for the estimate all the same, without waiting for more.
SLOW_STEP = 10.0
STEPS, SECONDS = 3, 2.0
WORTH_SAYING = 60.0


# Tensors of the set's size in every run: images, momentum, gradients, and two earlier states (for interruption and divergence).
COPIES = 7


def check_memory(count: int, spec: DataSpec, gradients: int, device: torch.device) -> None:
    """Raises `InputError` if a run certainly does not fit into the free memory.

    A lower bound: activations, which are computed in chunks, are not included.

    Args:
        count: number of synthetic images.
        spec: their shape.
        gradients: number of values of the real gradients that are in memory at once (classes x parameters for gradient matching).
        device: whose free memory is compared.
    """
    images = COPIES * 4 * count * math.prod(spec.shape)
    needed = images + 4 * gradients
    if device.type == "cuda":  # memory that torch has reserved is usable
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    else:
        free = free_bytes()
    if needed > free:
        parts = [f"{count} images take {images / 1e9:.3g} GB"] + ([f"real gradients {4 * gradients / 1e9:.3g} GB"] if gradients else [])
        do = "fewer images a class (ipc), fewer classes" + (", a smaller network" if gradients else "")
        raise InputError(
            f"the run does not fit: {' and '.join(parts)}, and {free / 1e9:.3g} GB are free on {device}; use {do}, or a larger machine."
        )


def duration(seconds: float) -> str:
    """Seconds in words: 40 s, 12 min, 3.5 h."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def estimate(steps: int, first: float, seconds: float, total: int, device: torch.device) -> str | None:
    """One sentence on the duration and memory of a run.

    Args:
        steps: number of steps done.
        first: seconds of the first of them, in which functions may be compiled: it counts once.
        seconds: of the others.
        total: number of steps of the run.
        device: if a GPU, the memory is torch's peak there; else the process's peak so far.

    Returns:
        The sentence; empty if the run is short; None if it is too early for an estimate.
    """
    if steps < 2 or ((steps < STEPS or seconds < SECONDS) and seconds < SLOW_STEP):
        return None
    whole = first + seconds / (steps - 1) * (total - 1)
    if whole < WORTH_SAYING:
        return ""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
    return f"about {duration(whole)} for {total:,} steps, peak memory about {peak / 1e9:.1f} GB"
