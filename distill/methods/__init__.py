"""The methods: one file tells one method. `METHODS` is the list that everybody reads."""

from typing import Any

from distill.methods.datadam import DataDAM, DataDAMConfig
from distill.methods.dm import DM, DMConfig
from distill.methods.dsa import DSA, DSAConfig
from distill.methods.gm import GM, GMConfig
from distill.methods.mtt import MTT, MTTConfig

METHODS: dict[str, tuple[type[Any], type[Any]]] = {
    "gm": (GMConfig, GM),
    "dsa": (DSAConfig, DSA),
    "dm": (DMConfig, DM),
    "datadam": (DataDAMConfig, DataDAM),
    "mtt": (MTTConfig, MTT),
}
