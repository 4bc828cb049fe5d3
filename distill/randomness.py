"""One random stream per purpose, made from a seed and the stream's name; nothing here or elsewhere uses a global generator."""

import hashlib

import torch


def derived_seed(seed: int, *stream: str | int) -> int:
    """A 63-bit seed that depends on ``seed`` and on every part of the stream's name."""
    text = "/".join([str(int(seed)), *(str(part) for part in stream)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *stream: str | int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator for the named stream, for example ``generator(0, "dm", "ipc", 10)``.

    Two streams with different names are independent; the same name gives the same numbers. The numbers are drawn on ``device``.
    """
    made = torch.Generator(device=device)
    made.manual_seed(derived_seed(seed, *stream))
    return made
