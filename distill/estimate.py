"""What a run will take, said after its first steps: time by the clock, memory by what it has taken so far."""

import torch

from distill.records import peak_memory_bytes

# The first step compiles and warms up; one that takes this long is the estimate, because the next would keep the user waiting.
SLOW_STEP = 10.0
STEPS, SECONDS = 3, 2.0
WORTH_SAYING = 60.0


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
