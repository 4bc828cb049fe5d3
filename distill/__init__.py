"""Dataset distillation: a data set's knowledge in a handful of synthetic images.

Names are imported when first used, so that ``import distill`` and the command line's help do not wait for torch.
"""

import importlib
import importlib.metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from distill.condensed import CondensedSet as CondensedSet
    from distill.coresets import CORESETS as CORESETS
    from distill.coresets import select as select
    from distill.data import ImageData as ImageData
    from distill.data_sources import load as load
    from distill.errors import InputError as InputError
    from distill.evaluation import Accuracy as Accuracy
    from distill.evaluation import Evaluation as Evaluation
    from distill.evaluation import accuracy as accuracy
    from distill.evaluation import evaluate as evaluate
    from distill.methods import METHODS as METHODS
    from distill.networks import create as create
    from distill.networks import embed as embed
    from distill.randomness import generator as generator
    from distill.run import condense as condense
    from distill.run import distil as distil
    from distill.scored_coresets import Scorer as Scorer
    from distill.spec import DataSpec as DataSpec
    from distill.statistics import ExactStatistics as ExactStatistics
    from distill.statistics import RealStatistics as RealStatistics
    from distill.teachers import Teacher as Teacher
    from distill.train import PROTOCOLS as PROTOCOLS
    from distill.train import Recipe as Recipe
    from distill.train import train_network as train_network
    from distill.train import train_on as train_on

    __version__: str

_HOMES = {
    "CondensedSet": "condensed",
    "CORESETS": "coresets",
    "select": "coresets",
    "ImageData": "data",
    "load": "data_sources",
    "InputError": "errors",
    "Accuracy": "evaluation",
    "accuracy": "evaluation",
    "evaluate": "evaluation",
    "Evaluation": "evaluation",
    "METHODS": "methods",
    "create": "networks",
    "embed": "networks",
    "generator": "randomness",
    "condense": "run",
    "distil": "run",
    "Scorer": "scored_coresets",
    "DataSpec": "spec",
    "ExactStatistics": "statistics",
    "RealStatistics": "statistics",
    "Teacher": "teachers",
    "PROTOCOLS": "train",
    "Recipe": "train",
    "train_network": "train",
    "train_on": "train",
}
__all__ = sorted([*_HOMES, "__version__"])  # pyright: ignore[reportUnsupportedDunderAll]


def __getattr__(name: str) -> object:
    if name == "__version__":
        try:
            return importlib.metadata.version("distill-apps")
        except importlib.metadata.PackageNotFoundError:  # a source tree that is not installed
            return "0+unknown"
    if name not in _HOMES:
        raise AttributeError(f"module 'distill' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"distill.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__
