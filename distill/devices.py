"""Work on a device that the host must not wait for: random streams on the device, and copies that do not block.

A run has one random generator, on the CPU, whatever its device: what the host must know (which images, which transform) is drawn there and
sent once. Large draws that only the device needs (weights, noise) come from a generator of the device, seeded by the run's.
"""

import functools

import torch
from torch import Tensor


def sent(tensor: Tensor, device: torch.device | str) -> Tensor:
    """A host's tensor on ``device``, copied from pinned memory so that the host does not wait; itself where it is there already."""
    device = torch.device(device)
    if tensor.device.type == device.type:
        return tensor.to(device)
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=tensor.device.type == "cpu")


def own_stream(generator: torch.Generator, device: torch.device | str) -> torch.Generator | None:
    """A generator on ``device`` for large draws, seeded by a draw of ``generator``; that one itself on its own device.

    Device "meta", which has no values, has no generators: None.
    """
    device = torch.device(device)
    if generator.device.type == device.type:
        return generator
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    return None if device.type == "meta" else torch.Generator(device).manual_seed(seed)


def normal(shape: tuple[int, ...], generator: torch.Generator, device: torch.device | str) -> Tensor:
    """Standard normal numbers on ``device``, drawn there from `own_stream`."""
    stream = own_stream(generator, device)
    return sent(torch.randn(shape, generator=stream, device=device if stream is None else stream.device), device)


@functools.cache
def has_bfloat16(device: str) -> bool:
    """Whether a device type computes convolutions in bfloat16. A CPU without it takes many times as long as in float32."""
    return device != "cpu" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
