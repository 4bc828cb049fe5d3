"""One random stream per purpose, derived from a seed and the stream's name; no code uses a global generator."""

import hashlib
import operator

import torch

from distill.errors import InputError, clipped


def whole_seed(seed: object) -> int:
    """A seed as a Python integer, also one of NumPy's; `InputError` for anything but a whole number."""
    try:
        return operator.index(seed)  # type: ignore[arg-type]
    except TypeError:
        raise InputError(f"seed is {clipped(seed)}; allowed: a whole number.") from None


def derived_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every part of the stream's name."""
    text = "/".join([str(int(seed)), *(str(part) for part in stream)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *stream: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A random generator for one named purpose.

    Args:
        seed: the run's seed.
        stream: parts of the stream's name, for example ``generator(0, "dm", "ipc", 10)``. Streams of different names are independent; the
            same name gives the same numbers.
        device: where the numbers are drawn.
    """
    stream_generator = torch.Generator(device=device)
    stream_generator.manual_seed(derived_seed(seed, *stream))
    return stream_generator
