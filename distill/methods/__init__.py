"""The methods, one file each, and `METHODS`, their table."""

import dataclasses
import inspect
from typing import Any

import pydantic

from distill.configure import config_class
from distill.errors import InputError, a_kind, clipped
from distill.methods.accdd import AccDD
from distill.methods.accdd import AccDDConfig as AccDDConfig
from distill.methods.cafe import CAFE
from distill.methods.cafe import CAFEConfig as CAFEConfig
from distill.methods.dance import DANCE
from distill.methods.dance import DANCEConfig as DANCEConfig
from distill.methods.datadam import DataDAM
from distill.methods.datadam import DataDAMConfig as DataDAMConfig
from distill.methods.dcc import DCC, DSAC
from distill.methods.dcc import DCCConfig as DCCConfig
from distill.methods.dcc import DSACConfig as DSACConfig
from distill.methods.dm import DM
from distill.methods.dm import DMConfig as DMConfig
from distill.methods.dream import DREAM
from distill.methods.dream import DREAMConfig as DREAMConfig
from distill.methods.dsa import DSA
from distill.methods.dsa import DSAConfig as DSAConfig
from distill.methods.gm import GM
from distill.methods.gm import GMConfig as GMConfig
from distill.methods.idc import IDC
from distill.methods.idc import IDCConfig as IDCConfig
from distill.methods.idm import IDM
from distill.methods.idm import IDMConfig as IDMConfig
from distill.methods.mtt import MTT
from distill.methods.mtt import MTTConfig as MTTConfig
from distill.methods.ncfm import NCFM
from distill.methods.ncfm import NCFMConfig as NCFMConfig
from distill.methods.olcgm import OLCGM
from distill.methods.olcgm import OLCGMConfig as OLCGMConfig
from distill.methods.presets import matched_by, presets_of
from distill.methods.ssd import SSD
from distill.methods.ssd import SSDConfig as SSDConfig

METHODS: dict[str, tuple[type[Any], type[Any]]] = {
    "gm": (GMConfig, GM),
    "dsa": (DSAConfig, DSA),
    "dm": (DMConfig, DM),
    "datadam": (DataDAMConfig, DataDAM),
    "mtt": (MTTConfig, MTT),
    "dcc": (DCCConfig, DCC),
    "dsac": (DSACConfig, DSAC),
    "cafe": (CAFEConfig, CAFE),
    "idc": (IDCConfig, IDC),
    "accdd": (AccDDConfig, AccDD),
    "dream": (DREAMConfig, DREAM),
    "idm": (IDMConfig, IDM),
    "dance": (DANCEConfig, DANCE),
    "ncfm": (NCFMConfig, NCFM),
    "olcgm": (OLCGMConfig, OLCGM),
    "ssd": (SSDConfig, SSD),
}

PARTS = ("step", "condensed", "state", "load_state")
SETTINGS = ("network", "augmentation", "initial")


def register(name: str, config: object, method: object) -> None:
    """Add a user's own method to `METHODS`; its config is checked as strictly as those of the built-in methods.

    Args:
        name: of the method.
        config: a frozen dataclass with defaults for all fields, among them ``network``, ``augmentation`` and ``initial`` (text).
        method: a class constructed as ``method(config, initial set, network or None)`` with the interface `distill.run.Distiller`; it
            may have the class attributes ``presets`` and ``matches`` (`distill.methods.presets`).

    Raises:
        InputError: if something is missing or wrong, or the name is that of a built-in method.
    """
    what = f"method {clipped(name)!r}"
    if name in METHODS and METHODS[name][1].__module__.startswith("distill.methods."):
        raise InputError(f"{what} is there already; give yours another name.")
    if not (isinstance(config, type) and dataclasses.is_dataclass(config) and vars(config)["__dataclass_params__"].frozen):
        raise InputError(f"{what}: its settings are {clipped(config, 60)}; allowed: a frozen dataclass.")
    fields = {field.name: field.default for field in dataclasses.fields(config)}
    if missing := [field for field in SETTINGS if not isinstance(fields.get(field), str)]:
        raise InputError(
            f"method {clipped(name)!r}: {config.__name__} has no text field {missing[0]!r} with a default; for example 'none'."
        )
    if not isinstance(method, type):
        raise InputError(f"{what} is {a_kind(method)}; allowed: a class with {', '.join(PARTS)}.")
    if lacking := [part for part in PARTS if not hasattr(method, part)]:
        raise InputError(
            f"method {clipped(name)!r}: class {method.__name__} has no {lacking[0]!r}; allowed: a class with {', '.join(PARTS)}."
        )
    presets_of(method), matched_by(method)
    if len(inspect.signature(method).parameters) != 3:
        raise InputError(
            f"method {clipped(name)!r}: allowed: {method.__name__}(config, initial, network), as the built-in methods are made."
        )
    if not pydantic.dataclasses.is_pydantic_dataclass(config):
        config = config_class(config)
    METHODS[name] = (config, method)
