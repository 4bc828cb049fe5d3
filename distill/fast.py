"""Faster forms of a network's forward: compiled where the work repays it, bfloat16 where it is asked for. Same parameters, same values.

What is gained on a CPU is memory traffic: norm, activation and pooling run as one loop instead of three passes over large tensors. A
compiled function cannot be differentiated twice, so gradient matching's synthetic side and MTT's students never come here.
"""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bf16"]
Compile = Literal["auto", "on", "off"]

# Compiling takes 10 to 35 s a shape and saves about a fifth of the time: worth it from some minutes of work on two cores.
WORTH_FLOPS = {"cpu": 3e13, "cuda": 3e15}

_warned = False


def accelerated(
    function: Callable[[Tensor], Tensor], device: torch.device, work: float, precision: Precision = "float32", compile: Compile = "auto"
) -> Callable[[Tensor], Tensor]:
    """``function`` (images (n, C, H, W) -> a tensor whose rows are the images'), with the same result to rounding.

    ``work`` is the number of floating-point operations that the caller expects to spend in it; "auto" compiles when it repays the wait.
    Where no compiler works, a warning says so once and the function runs as it is.
    """

    def reduced(images: Tensor) -> Tensor:
        if device.type == "cpu":
            images = images.contiguous(memory_format=torch.channels_last)
        if precision == "bf16":
            with torch.autocast(device.type, torch.bfloat16):
                return function(images).float()
        return function(images)

    if compile == "off" or (compile == "auto" and work < WORTH_FLOPS.get(device.type, float("inf"))):
        return reduced if precision == "bf16" else function
    import torch._dynamo as dynamo  # here, because it takes a second to load

    compiled = torch.compile(reduced, dynamic=False)
    works = True

    def either(images: Tensor) -> Tensor:
        nonlocal works
        if works:
            try:
                # Each network, precision and shape is a form of its own; the compiler's limit of 8 is for accidents.
                with dynamo.config.patch(recompile_limit=64):
                    return compiled(images)
            except Exception as error:  # whatever a compiler's absence looks like on this system
                works = False
                _warn(error)
        return reduced(images)

    return either


def _warn(error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        warnings.warn(f"torch.compile does not work here ({reason}); going on without it, somewhat slower.", stacklevel=3)


class Fast(nn.Module):
    """A network with an `accelerated` forward; its parameters are the network's own."""

    def __init__(
        self, network: nn.Module, device: torch.device, work: float, precision: Precision = "float32", compile: Compile = "auto"
    ) -> None:
        super().__init__()
        self.network = network
        self._run = accelerated(network, device, work, precision, compile)

    def forward(self, images: Tensor) -> Tensor:
        return self._run(images)
