"""avalanche-lib, imported once and quietly; the only door to it, so that a missing installation is one clear line."""

import contextlib
import importlib
import warnings
from collections.abc import Iterator
from types import ModuleType

import numpy as np
import torch

from distill.errors import InputError


def avalanche(module: str = "avalanche") -> ModuleType:
    """A module of avalanche-lib. `InputError` with the line to install it when it is not there."""
    with warnings.catch_warnings():
        # It warns about an optional solver and, through its dependencies, about many old habits: nothing that its user could change.
        warnings.simplefilter("ignore")
        try:
            return importlib.import_module(module)
        except ModuleNotFoundError as error:
            hint = ' (its dependency GPUtil needs it on Python 3.12: pip install "setuptools<82")' if error.name == "distutils" else ""
            raise InputError(
                f"continual learning with Avalanche needs the module {error.name!r}, which is not installed{hint}; "
                'pip install "distill-apps[continual]".'
            ) from None


@contextlib.contextmanager
def quiet_and_seeded(seed: int) -> Iterator[None]:
    """Run code of Avalanche, which draws from the global generators and changes the process's warning filters, and put both back.

    Inside, torch's and numpy's global generators start from ``seed``: same seed, same bits.
    """
    state, state_numpy = torch.get_rng_state(), np.random.get_state()
    with warnings.catch_warnings(record=True):  # recorded: it overrides filters, so they alone would not keep it quiet
        warnings.simplefilter("ignore")
        try:
            torch.default_generator.manual_seed(seed)
            np.random.seed(seed % 2**32)
            yield
        finally:
            torch.set_rng_state(state)
            np.random.set_state(state_numpy)
