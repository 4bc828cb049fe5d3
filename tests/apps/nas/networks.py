"""Networks that the tests give to worker processes: they must stand at the top of an importable file."""

import os

import torch
from torch import nn

from distill.spec import DataSpec


def small(spec: DataSpec) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.height * spec.width, spec.num_classes))


def broken(spec: DataSpec) -> nn.Module:
    raise RuntimeError("this one\ncannot be built")


def deadly(spec: DataSpec) -> nn.Module:
    os._exit(13)


class _Exploding(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.layer = small(spec)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images) * float("inf")


def exploding(spec: DataSpec) -> nn.Module:
    return _Exploding(spec)


class _Endless(nn.Module):
    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.layer = small(spec)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        import time

        time.sleep(3600)
        return self.layer(images)


def endless(spec: DataSpec) -> nn.Module:
    return _Endless(spec)
