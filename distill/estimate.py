"""What a run will take: memory that cannot be there is refused before its first step, time and memory are said after a few steps."""

import math

import torch

from distill.errors import InputError
from distill.processes import free_bytes
from distill.records import peak_memory_bytes
from distill.spec import DataSpec

# The first step compiles and warms up; one that takes this long is the estimate, because the next would keep the user waiting.
SLOW_STEP = 10.0
STEPS, SECONDS = 3, 2.0
WORTH_SAYING = 60.0


# Tensors of the set's size that every run holds: images, momentum, gradients, and the two states that a stop or a bad step goes back to.
COPIES = 7


def check_memory(count: int, spec: DataSpec, gradients: int, device: torch.device) -> None:
    """`InputError` where a run surely does not fit: its set and what it must hold beside it take more than the free memory.

    A lower bound: activations come on top of it, in chunks, and are not counted.

    Args:
        count: synthetic images in all.
        spec: their shape.
        gradients: numbers of the real gradients that are held at once (classes x parameters for methods that hold all classes').
        device: where the run works; its free memory is what counts.
    """
    images = COPIES * 4 * count * math.prod(spec.shape)
    needed = images + 4 * gradients
    if device.type == "cuda":  # what torch keeps for later can be used, too
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


def estimate(steps: int, seconds: float, total: int, device: torch.device) -> str | None:
    """One sentence for a run of ``total`` steps of which ``steps`` took ``seconds``: empty where it is soon done, None where it is too
    early to say. Peak memory is that of the process so far, which later steps of the same kind do not exceed; on a GPU that of torch there.
    """
    if (steps < STEPS or seconds < SECONDS) and seconds < SLOW_STEP:
        return None
    whole = seconds / steps * total
    if whole < WORTH_SAYING:
        return ""
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_memory_bytes()
    return f"about {duration(whole)} for {total:,} steps, peak memory about {peak / 1e9:.1f} GB"
