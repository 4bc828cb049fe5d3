"""Faster forms of a network's forward: compiled where the work repays it, bfloat16 where it is asked for. Same parameters, same values.

What is gained on a CPU is memory traffic: norm, activation and pooling run as one loop instead of three passes over large tensors. A
compiled function cannot be differentiated twice, so gradient matching's synthetic side never comes here; MTT's students do, because their
derivatives are taken inside of what is compiled (adjoint.py).
"""

import logging
import warnings
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

Precision = Literal["float32", "bf16"]
Compile = Literal["auto", "on", "off"]
T = TypeVar("T")

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

    if not worth(device, work, compile):
        return reduced if precision == "bf16" else function
    return compiled(reduced)


def worth(device: torch.device, work: float, compile: Compile) -> bool:
    """Whether to compile what will take ``work`` floating-point operations in all."""
    return compile == "on" or (compile == "auto" and work >= WORTH_FLOPS.get(device.type, float("inf")))


def compiled(function: Callable[..., T]) -> Callable[..., T]:
    """``function`` through `torch.compile`, one form for each shape; as it is, after one warning, where no compiler works."""
    import torch._dynamo as dynamo  # here, because it takes a second to load

    # The compiler says on every CPU-only machine that it found no CUDA; nobody asked.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    quick = torch.compile(function, dynamic=False)
    works = True

    def either(*tensors: Tensor) -> T:
        nonlocal works
        if works:
            try:
                # Each network, precision and shape is a form of its own; the compiler's limit of 8 is for accidents.
                with dynamo.config.patch(recompile_limit=64):
                    return quick(*tensors)
            except Exception as error:  # whatever a compiler's absence looks like on this system
                works = False
                _warn(error)
        return function(*tensors)

    return either


def _warn(error: Exception) -> None:
    global _warned
    if not _warned:
        _warned = True
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        warnings.warn(f"torch.compile does not work here ({reason}); continuing without it, somewhat slower.", stacklevel=3)


class Fast(nn.Module):
    """A network with an `accelerated` forward; its parameters are the network's own."""

    def __init__(
        self, network: nn.Module, device: torch.device, work: float, precision: Precision = "float32", compile: Compile = "auto"
    ) -> None:
        super().__init__()
        self.network = network
        self._run = accelerated(network, device, work, precision, compile)

    def forward(self, images: Tensor) -> Tensor:
        """The wrapped network's output for images (N, C, H, W)."""
        return self._run(images)
