"""Faster forms of a network's forward pass: compiled if the work repays it, bfloat16 on request. Same parameters, same values.

On a CPU this saves memory traffic: norm, activation and pooling run as one loop instead of three passes over large tensors. A compiled
function cannot be differentiated twice, so the synthetic side of gradient matching is never compiled; MTT's students are, because their
derivatives are computed inside the compiled function (adjoint.py).

Rounding differs by some 1e-6 of a gradient. At the kink of a ReLU that can switch a unit, which changes the gradient of an image by up
to some percent; with a smooth activation (Softplus) every image's gradient is within 1e-5, which a test holds.
"""

import contextlib
import logging
import warnings
from collections.abc import Callable
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from distill.devices import has_bfloat16

Precision = Literal["float32", "tf32", "bf16"]
Compile = Literal["auto", "on", "off", "no-graphs"]
T = TypeVar("T")

# Compiling takes 10 to 35 s a shape. On a CPU it saves about a fifth of the time in float32 and two fifths in bfloat16: worth it from some
# minutes of work on two cores.
WORTH_FLOPS = {("cpu", "float32"): 3e13, ("cpu", "bf16"): 1e13, ("cuda", "float32"): 3e15}
WORTH_FLOPS |= {("cuda", "tf32"): 3e15, ("cuda", "bf16"): 3e15}

_warned: set[str] = set()


def accelerated(
    function: Callable[[Tensor], Tensor], device: torch.device, work: float, precision: Precision = "float32", compile: Compile = "auto"
) -> Callable[[Tensor], Tensor]:
    """A faster form of a function, with the same result up to rounding.

    Args:
        function: maps images (n, C, H, W) to a tensor with a row for each image.
        device: of the images.
        work: floating-point operations that are expected in all calls; "auto" compiles if it saves more time than compiling takes.
        precision: "bf16" runs under autocast and returns float32, on a processor that has it (`usable`); "tf32" is allowed by the caller
            (`distill.tf32`).
        compile: "auto", "on" or "off"; "no-graphs" is "auto" without CUDA graphs (`compile_mode`). Without a working compiler the
            function is not compiled, and a warning is given once.
    """
    precision = usable(precision, device)

    def reduced(images: Tensor) -> Tensor:
        if precision == "bf16":
            with torch.autocast(device.type, torch.bfloat16):
                return function(images).float()
        return function(images)

    def laid_out(images: Tensor) -> Tensor:
        # Only compiled code gains from it: not compiled, bfloat16 takes 1.7 times as long with it as without.
        return reduced(images.contiguous(memory_format=torch.channels_last) if device.type == "cpu" else images)

    if not worth(device, work, compile, precision):
        return reduced if precision == "bf16" else function
    quick, mode = compiled(laid_out), compile_mode(device, compile)
    if mode == "default":
        return quick
    replayed = compiled(laid_out, mode)
    return lambda images: (quick if torch.is_grad_enabled() else replayed)(images)


def usable(precision: Precision, device: torch.device) -> Precision:
    """``precision``, or "float32" with one warning in place of "bf16" on a processor that does not compute in bfloat16."""
    if precision == "bf16" and not has_bfloat16(device.type):
        _warn("bfloat16", "precision is 'bf16', which this processor does not have; float32 is used, which is faster here.")
        return "float32"
    return precision


def worth(device: torch.device, work: float, compile: Compile, precision: Precision = "float32") -> bool:
    """Whether to compile a function in which ``work`` floating-point operations are expected."""
    return compile == "on" or (compile in ("auto", "no-graphs") and work >= WORTH_FLOPS.get((device.type, precision), float("inf")))


def compile_mode(device: torch.device, compile: Compile = "auto") -> str:
    """`torch.compile`'s mode for a function that is not differentiated from outside: on a GPU CUDA graphs, unless turned off.

    A graph replays all launches of one shape at once, at fixed addresses: its inputs must be on the device, the weights must change in
    place (`distill.networks.put_weights`), and no size may depend on values. Results lie in the graph's memory until its next replay, so
    that `compiled` copies them. Gradients that autograd takes from outside lie there as well, and are kept longer: those functions have
    no graph.
    """
    return "reduce-overhead" if device.type == "cuda" and compile != "no-graphs" else "default"


def compiled(function: Callable[..., T], mode: str = "default") -> Callable[..., T]:
    """``function`` through `torch.compile`, once for each shape; unchanged, after one warning, if no compiler works.

    ``mode`` see `compile_mode`.
    """
    import torch._dynamo as dynamo  # slow to import

    # Without CUDA the compiler warns that it is missing.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    quick = torch.compile(function, dynamic=False, mode=mode)
    works, seen = True, set[object]()

    def either(*tensors: Tensor) -> T:
        nonlocal works
        if works:
            key = (torch.is_grad_enabled(), *((part.shape, part.requires_grad) for part in tensors))
            quiet = contextlib.nullcontext() if key in seen else warnings.catch_warnings()
            try:
                # Each network, precision and shape is compiled separately, more often than the default limit of 8.
                with dynamo.config.patch(recompile_limit=64), quiet:
                    if key not in seen:
                        # The compiler looks at the .grad of its inputs; augmented images are no leaves and warn. Only when it compiles:
                        # changed filters make Python show warnings again that it has shown.
                        warnings.filterwarnings("ignore", message="The .grad attribute of a Tensor that is not a leaf")
                        seen.add(key)
                    if mode == "default":
                        return quick(*tensors)
                    torch.compiler.cudagraph_mark_step_begin()
                    copied: T = torch.utils._pytree.tree_map_only(Tensor, torch.clone, quick(*tensors))
                    return copied
            except Exception as error:  # a missing compiler raises many types
                works = False
                reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
                _warn("compiler", f"torch.compile does not work here ({reason}); continuing without it, somewhat slower.")
        return function(*tensors)

    return either


def _warn(about: str, message: str) -> None:
    if about not in _warned:
        _warned.add(about)
        warnings.warn(message, stacklevel=4)


class Fast(nn.Module):
    """A network with an `accelerated` forward; its parameters are the network's own."""

    def __init__(
        self, network: nn.Module, device: torch.device, work: float, precision: Precision = "float32", compile: Compile = "auto"
    ) -> None:
        super().__init__()
        self.network = network
        run = accelerated(network, device, work, precision, compile)
        self._run = network.__call__ if run is network else run  # `torch.func.functional_call` needs each submodule once

    def forward(self, images: Tensor) -> Tensor:
        """The wrapped network's output for images (N, C, H, W)."""
        return self._run(images)
