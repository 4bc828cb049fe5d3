"""Networks that the tests give to worker processes: they must stand at the top of an importable file."""

import os
import signal
import time
from pathlib import Path

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
        time.sleep(3600)
        return self.layer(images)


def endless(spec: DataSpec) -> nn.Module:
    return _Endless(spec)


def crashing(spec: DataSpec) -> nn.Module:
    os.kill(os.getpid(), signal.SIGSEGV)
    return small(spec)


def hungry(spec: DataSpec) -> nn.Module:
    torch.ones(1 << 44)  # 64 TiB
    return small(spec)


def unhurried(spec: DataSpec) -> nn.Module:
    time.sleep(0.4)
    return small(spec)


def apart(spec: DataSpec) -> nn.Module:
    """A network that can be built in any process but the one that asked for it, and there only if the system would end it first."""
    if str(os.getpid()) == os.environ["STUDY_PROCESS"]:
        raise RuntimeError("built in the study's own process")
    if Path("/proc/self/oom_score_adj").exists() and Path("/proc/self/oom_score_adj").read_text().strip() != "1000":
        raise RuntimeError("when memory runs out, the study may be ended instead")
    return nn.Sequential(nn.Flatten(), nn.Linear(spec.channels * spec.height * spec.width, 8), nn.ReLU(), nn.Linear(8, spec.num_classes))
