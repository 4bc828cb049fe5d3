"""What the authors have not tried: one line each where a run leaves the range that they published."""

from typing import Any

import torch
from torch import nn

from distill.methods import datadam, dm, gm, mtt
from distill.networks import Factory, create, has_batchnorm
from distill.spec import DataSpec

_LIMITS: dict[str, dict[str, int]] = {
    "gm": gm.PUBLISHED_IPC,
    "dsa": gm.PUBLISHED_IPC,
    "dm": dm.PUBLISHED_IPC,
    "datadam": datadam.PUBLISHED_IPC,
    "mtt": mtt.PUBLISHED_IPC,
}
# What to do above, at one step.
_ABOVE = {
    "gm": "start from real images (initial = 'real') with outer_steps 50, inner_epochs 10 or 20, 25, or take dm",
    "dsa": "take outer_steps 50, inner_epochs 10 or 20, 25, or dm",
    "dm": "compare lr_img 1 and 10 on validation images",
    "datadam": "compare lr_img 1 and 10 on validation images",
    "mtt": "start later in the experts' training (a larger max_start_epoch), or take dm",
}
_DEEP = 8  # convolutions; the authors match ConvNets of 3 to 6


def advice(name: str, config: Any, spec: DataSpec, ipc: int, network: Factory | None = None) -> list[str]:
    """Lines for a built-in method at this IPC; none where the authors have published the like.

    The published ranges are `PUBLISHED_IPC` of each method's file, by data set. ``config`` is the method's config; ``network`` the matching
    network where it is not the config's. Nothing is changed by this: it is for a person to read.
    """
    if name not in _LIMITS:
        return []
    most = _LIMITS[name].get(spec.name.lower(), _LIMITS[name][""])
    lines = []
    if ipc > most:
        lines.append(f"{name} is published for up to {most:,} images a class on data such as {spec.name}, not {ipc:,}; {_ABOVE[name]}.")
    factory = network or config.network
    made = create(factory, spec, torch.Generator())
    depth = sum(isinstance(layer, nn.Conv2d) for layer in made.modules())
    label = f"network {factory!r}" if isinstance(factory, str) else "your network"
    default = config.lr_img is None or (name in ("gm", "dsa") and config.lr_img == gm.LR_IMG)
    if depth >= _DEEP and default and name != "mtt":
        lines.append(
            f"{label} has {depth} convolutions and the step size is for a ConvNet: sets made through deep networks train worse, up to 16 % "
            "for 26 % (VICO-UoE/DatasetCondensation, issues 8 and 30); match with 'ConvNet', or try lr_img 0.1 and 0.01."
        )
    elif has_batchnorm(made) and default and name in ("gm", "dsa", "dm"):
        lines.append(
            f"{label} has batch norm, which the authors match at 50 images a class; with fewer, evaluate with instance norm ('ConvNet') as "
            "they do (utils.py, `get_eval_pool`), or match with it."
        )
    return lines
