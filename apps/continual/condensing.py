"""One experience's images become a few: any method or coreset, on plain tensors that are used as they are."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from distill.condensed import CondensedSet
from distill.coresets import CORESETS, select
from distill.data import ImageData, Split
from distill.errors import InputError, unknown_name
from distill.methods import METHODS
from distill.randomness import generator
from distill.run import distil
from distill.spec import DataSpec

# What a replay memory starts from: a few seconds to a minute for two classes on two CPU cores. The methods' own defaults are their papers'
# (hours); settings that are given go before these.
SHORT: dict[str, dict[str, Any]] = {
    "gm": {
        "iterations": 60,
        "outer_steps": 1,
        "inner_epochs": 1,
        "lr_img": 0.5,
        "batch_real": 64,
        "network": "ConvNetW32",
        "initial": "real",
    },
    "dsa": {"iterations": 60, "outer_steps": 1, "inner_epochs": 1, "lr_img": 0.5, "batch_real": 64, "network": "ConvNetW32"},
    "dm": {"iterations": 100, "lr_img": 5.0, "batch_real": 64, "network": "ConvNetW64"},
    "datadam": {"iterations": 100, "lr_img": 5.0, "batch_real": 64, "network": "ConvNetW32"},
    "mtt": {"network": "ConvNetW32", "experts": 4, "max_start_epoch": 3, "syn_steps": 10, "iterations": 100, "lr_img": 100.0},
}


def check_method(method: str) -> None:
    """`InputError` unless ``method`` is a condensation method or a coreset."""
    if method not in (*METHODS, *CORESETS):
        raise unknown_name("memory's method", method, (*METHODS, *CORESETS))


def settings_of(method: str, given: dict[str, Any]) -> dict[str, Any]:
    """The settings that `condense` uses: `SHORT` under the given ones. A coreset takes none."""
    check_method(method)
    if method in CORESETS and given:
        raise InputError(f"setting {next(iter(given))!r} was given for the coreset {method!r}; coresets take no settings.")
    return {**SHORT.get(method, {}), **given}


def condense(
    images: Tensor,
    labels: Tensor,
    method: str,
    ipc: int,
    seed: int,
    *,
    settings: dict[str, Any] | None = None,
    name: str = "stream",
    device: torch.device | str = "cpu",
    initial: Tensor | None = None,
    checkpoint: Path | None = None,
    progress: bool | None = None,
) -> CondensedSet:
    """At most ``ipc`` images a class that stand for ``images`` (N, C, H, W) float32 with ``labels`` (N,) int64, on the CPU.

    The images are in whatever space the learner sees them; so is the result, whose spec has mean 0 and std 1 and names the classes by their
    labels (position in the spec = rank of the label). Matching networks have one output for each class given here. ``name``
    decides the augmentation where it is "auto" (digits are not flipped). ``initial`` (classes x ipc images, classes rising) is where
    a method starts instead of its own choice. With ``checkpoint`` a stopped condensation continues to the same bits.
    """
    if (
        images.ndim != 4
        or images.dtype != torch.float32
        or labels.dtype != torch.int64
        or labels.shape != images.shape[:1]
        or not len(images)
    ):
        raise InputError(
            f"images are {images.dtype} {tuple(images.shape)} with labels {labels.dtype} {tuple(labels.shape)}; "
            "allowed: float32 (N, C, H, W) and int64 (N,), N at least 1."
        )
    if not bool(torch.isfinite(images).all()):
        raise InputError("images hold values that are not finite; allowed: finite numbers only.")
    found, positions = labels.unique(sorted=True, return_inverse=True)
    channels, height, width = images.shape[1:]
    spec = DataSpec(name, channels, height, width, tuple(str(int(c)) for c in found), (0.0,) * channels, (1.0,) * channels)
    whole = Split(images, positions)
    nothing = whole.at(torch.zeros(0, dtype=torch.int64))
    data = ImageData(spec, whole, nothing, nothing).to(device)
    if method in CORESETS:
        return select(data, method, ipc, generator(seed, "coreset", method, ipc)).to("cpu")
    check_method(method)
    chosen = settings_of(method, settings or {})
    start = chosen.pop("initial", None)
    if initial is not None:
        start = CondensedSet(initial.clone(), torch.arange(len(found)).repeat_interleave(len(initial) // len(found)), spec)
    made = distil(
        data,
        method,
        ipc=ipc,
        seed=seed,
        initial=start,
        checkpoint=checkpoint,
        resume=checkpoint is not None,
        progress=progress,
        more_images_than_data=True,  # an experience may hold fewer images than its share of the memory
        **chosen,
    )
    if checkpoint is not None:
        checkpoint.unlink(missing_ok=True)
    return made.to("cpu")
