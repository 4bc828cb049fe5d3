"""The methods: one file tells one method. `METHODS` is the list that everybody reads."""

from typing import Any

from distill.methods.dm import DM, DMConfig
from distill.methods.dsa import DSA, DSAConfig
from distill.methods.gm import GM, GMConfig

METHODS: dict[str, tuple[type[Any], type[Any]]] = {
    "gm": (GMConfig, GM),
    "dsa": (DSAConfig, DSA),
    "dm": (DMConfig, DM),
}
