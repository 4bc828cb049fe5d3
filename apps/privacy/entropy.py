"""Randomness that nobody can repeat: the operating system's, for sampling masks and noise. It is never recorded."""

import os
from typing import Protocol

import numpy as np


class Entropy(Protocol):
    """Where masks and noise come from. ``secure`` says whether a guarantee may rest on it."""

    secure: bool

    def uniform(self, count: int) -> np.ndarray: ...
    def normal(self, shape: tuple[int, ...]) -> np.ndarray: ...


class SystemEntropy:
    """Straight from the operating system's cryptographic generator: there is no seed that could leak.

    Normal numbers are Box and Muller's in float64, rounded: attacks on the lowest bits of floats (Mironov, CCS 2012) are not excluded.
    """

    secure = True

    def uniform(self, count: int) -> np.ndarray:
        """(count,) float64 in (0, 1), steps of 2^-53."""
        whole = np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)
        return (whole + 0.5) * 2.0**-53

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        """Standard normal float64 of this shape."""
        count = int(np.prod(shape))
        pairs = (count + 1) // 2
        radius = np.sqrt(-2.0 * np.log(self.uniform(pairs)))
        angle = 2.0 * np.pi * self.uniform(pairs)
        return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count].reshape(shape)


class SeededEntropy:
    """Repeatable, for tests of the arithmetic only: whoever knows the seed can take the noise away again."""

    secure = False

    def __init__(self, seed: int) -> None:
        self._generator = np.random.Generator(np.random.PCG64(seed))

    def uniform(self, count: int) -> np.ndarray:
        return self._generator.random(count)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._generator.standard_normal(shape)
