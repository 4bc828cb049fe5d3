"""One condensation in several processes: `torchrun --standalone --nproc-per-node N -m scenarios.cli run ...` divides the classes.

The losses of all methods but MTT, or their statistics, are sums over classes. Every process holds all images and draws the same random
numbers; each computes the statistics and gradients of some classes, which are summed over processes. Without torchrun these functions do
nothing.
"""

import os
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from distill.errors import InputError


def start(device: torch.device | str) -> None:
    """Join the processes that torchrun launched; returns at once without torchrun."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and dist.is_available() and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.device(device).type == "cuda" else "gloo")


def end() -> None:
    """Leave the group of processes."""
    if dist.is_available() and dist.is_initialized():
        dist.destroy_process_group()


def count() -> int:
    """Number of processes that share the work; 1 without torchrun."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """This process's number, from 0."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def mine(position: int) -> bool:
    """Whether this process computes the class at this position."""
    return position % count() == rank()


def own(positions: Sequence[int]) -> list[int]:
    """Those of the positions of classes that this process computes."""
    return [position for position in positions if mine(position)]


def gathered(rows: Tensor, classes: int) -> Tensor:
    """(classes, D) of all processes from the rows of this one's classes, in their order."""
    if count() == 1:
        return rows
    everything = rows.new_zeros((classes, rows.shape[1]))
    everything[rank() :: count()] = rows
    return summed([everything])[0]


def check_classes(classes: int) -> None:
    """Raises `InputError` if there are more processes than classes."""
    if count() > classes:
        raise InputError(f"{count()} processes were launched for {classes} classes; at most one process a class is of use.")


def summed(tensors: list[Tensor]) -> list[Tensor]:
    """The same tensors, each the sum over all processes (in place)."""
    if count() > 1:
        for tensor in tensors:
            dist.all_reduce(tensor)
    return tensors


def summed_by_class(total: Tensor, found: Mapping[int, Tensor], leaves: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
    """A loss and the gradients of all classes, summed over processes.

    Args:
        total: the loss of this process's classes, 0-dimensional; it is changed.
        found: gradients by position of the class; a class of another process has none here.
        leaves: what they are gradients for, of all classes.
    """
    gradients = [found[c] if c in found else torch.zeros_like(leaf) for c, leaf in enumerate(leaves)]
    summed([total, *gradients])
    return total, gradients


def any_of(flag: bool, device: torch.device) -> bool:
    """Whether ``flag`` is true in any process."""
    if count() == 1:
        return flag
    (total,) = summed([torch.tensor(float(flag), device=device)])
    return bool(total > 0)
