"""One line for each setting of a run outside the range that the authors published."""

import torch
from torch import nn

from distill.distiller import Config
from distill.methods import METHODS
from distill.methods.presets import matched_by, presets_of
from distill.networks import OWN, Factory, create, has_batchnorm
from distill.spec import DataSpec

_DEEP = 8  # convolutions; the authors match ConvNets of 3 to 6


def advice(name: str, config: Config, spec: DataSpec, ipc: int, network: Factory | None = None) -> list[str]:
    """Advice for the user; it changes nothing.

    Args:
        name: of the method. Its published range is ``published_ipc`` of its presets, by data set.
        config: of the method.
        spec: of the data.
        ipc: number of images per class.
        network: matching network, if it is not the config's.

    Returns:
        Lines; none inside the published range, or if the presets have no range.
    """
    if name not in METHODS:
        return []
    presets, matches = presets_of(METHODS[name][1]), matched_by(METHODS[name][1])
    if not presets.published_ipc:
        return []
    most = presets.published_ipc.get(spec.name.lower(), presets.published_ipc.get("", ipc))
    lines = []
    if ipc > most:
        lines.append(f"{name} is published for up to {most:,} images a class on data such as {spec.name}, not {ipc:,}; {presets.above}.")
    factory = network or config.network
    built = create(factory, spec, torch.Generator(), "meta" if isinstance(factory, str) and factory not in OWN else "cpu")
    depth = sum(isinstance(layer, nn.Conv2d) for layer in built.modules())
    label = f"network {factory!r}" if isinstance(factory, str) else "your network"
    default = getattr(config, "lr_img", None) in (None, getattr(type(config)(), "lr_img", None))
    if depth >= _DEEP and default and matches != "trajectories":
        lines.append(
            f"{label} has {depth} convolutions and the step size is for a ConvNet: sets made through deep networks train worse, up to 16 % "
            "for 26 % (VICO-UoE/DatasetCondensation, issues 8 and 30); match with 'ConvNet', or try lr_img 0.1 and 0.01."
        )
    elif has_batchnorm(built) and default and presets.batchnorm_at_50 and ipc < 50:
        lines.append(
            f"{label} has batch norm, which the authors match at 50 images a class; with fewer, evaluate with instance norm ('ConvNet') as "
            "they do (utils.py, `get_eval_pool`), or match with it."
        )
    return lines
