"""Several processes, one condensation: `torchrun --standalone --nproc-per-node N -m scenarios.cli run ...` shares the classes out.

Classes do not meet in DM's, DataDAM's and gradient matching's losses. Every process holds all images and draws the same random numbers;
each computes its own classes' statistics and gradients, and sums over processes put them together. Without torchrun nothing here does
anything.
"""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from distill.errors import InputError


def start(device: torch.device | str) -> None:
    """Join the processes that torchrun launched with this one; at once when there are none."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")


def end() -> None:
    """Leave the group; the others need not wait for what this process does next."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """Number of processes that share the work; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def mine(position: int) -> bool:
    """Whether the class at this position is this process's to compute."""
    return position % count() == rank()


def check_classes(classes: int) -> None:
    """Raises `InputError` when there are more processes than classes to share out."""
    if count() > classes:
        raise InputError(f"{count()} processes were launched for {classes} classes; at most one process a class is of use.")


def summed(tensors: list[Tensor]) -> list[Tensor]:
    """The same tensors, each the sum over all processes (in place)."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
    return tensors


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether any process says so: all of them stop after the same step."""
    if count() == 1:
        return flag
    (found,) = summed([torch.tensor(float(flag), device=device)])
    return bool(found > 0)
