"""TF32: tensor cores of NVIDIA's GPUs multiply float32 numbers faster with 10 bits of their mantissa. Only where a setting asks for it.

By default torch lets convolutions do this and matrix products not, so that "float32" would mean two precisions on a GPU.
"""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def products(precision: str, device: torch.device) -> Iterator[None]:
    """While the block runs, a GPU's float32 convolutions and matrix products use TF32 if ``precision`` is "tf32", and else do not.

    The setting is of the process and holds for an operation when it runs: a block must contain the backward pass as well. It is restored at
    the end. A CPU has no TF32, and a program that has used torch's newer names of these settings (``fp32_precision``) keeps its own.
    """
    try:
        before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    except RuntimeError:  # torch refuses to mix the old names and the new ones
        before = None
    if device.type == "cpu" or before is None:
        yield
        return
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]
