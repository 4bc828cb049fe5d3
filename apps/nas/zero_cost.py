"""Scores of untrained networks, from one batch or none: the cheapest baselines of any proxy.

Abdelfattah et al., "Zero-Cost Proxies for Lightweight NAS", ICLR 2021 (synflow, grad_norm); Mellor et al., "Neural Architecture Search
without Training", ICML 2021 (naswot). More parameters and more FLOPs are scores too, and hard to beat.
"""

import math
import time
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.nas.space import Candidate
from apps.nas.training import WHOLE, Row, RowName, Shelf, failed, reason_of
from distill.errors import unknown_name
from distill.labels import DEFAULT_KIND
from distill.networks import Factory, create, flops, parameter_count
from distill.randomness import generator
from distill.spec import DataSpec

SIZES = ("parameters", "flops")
DATA_FREE = ("synflow",)
ON_A_BATCH = ("naswot", "grad_norm")
SCORES = (*SIZES, *DATA_FREE, *ON_A_BATCH)
_ACTIVATIONS = (nn.ReLU, nn.LeakyReLU, nn.Sigmoid, nn.SiLU, nn.Tanh, nn.GELU, nn.ELU)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm, nn.LayerNorm)


@dataclass(frozen=True)
class ScoreJob:
    """Give ``network`` the zero-cost score called ``score``, on the batch of ``source``: "whole" is the shelf's batch of real images,
    another name a set on the shelf, None no batch. ``stage``, ``id``, ``seed`` and ``key`` name the row in the ledger."""

    stage: str
    id: str
    network: Factory
    score: str
    source: str | None
    seed: int
    key: str

    @property
    def name(self) -> RowName:
        """The key of the row in the ledger."""
        return self.stage, self.id, self.seed, self.key

    def row(self, shelf: Shelf) -> Row:
        """The score with its wall and processor seconds; ``status`` is "failed", with a ``reason``, if there is no finite score.

        Computed on the CPU, so that the score does not depend on the device.
        """
        start = time.perf_counter()
        try:
            images, labels = self._batch(shelf)
            value, processor = zero_cost(self.score, Candidate(self.id, self.network), shelf.data.spec, self.seed, images, labels)
        except Exception as error:  # as in training: a network that cannot be built does not end the study
            return {**failed(self, reason_of(error)), "score": None, "seconds": time.perf_counter() - start}
        seconds: Row = {"cpu_seconds": processor, "seconds": time.perf_counter() - start}
        if math.isnan(value):
            reason = f"{self.score} is not defined for this network, or not finite"
            return {**failed(self, reason), "score": None, **seconds}
        return {"stage": self.stage, "id": self.id, "seed": self.seed, "key": self.key, "status": "ok", "score": value, **seconds}

    def images(self, shelf: Shelf) -> int:
        """The number of images in the batch; 1 for a score that needs none."""
        images, _ = self._batch(shelf)
        return 1 if images is None else len(images)

    def _batch(self, shelf: Shelf) -> tuple[Tensor | None, Tensor | None]:
        if self.source is None:
            return None, None
        if self.source == WHOLE:
            assert shelf.batch is not None
            return shelf.batch
        condensed = shelf.sets[self.source].to("cpu").decoded()
        return condensed.images, condensed.labels if condensed.label_kind == DEFAULT_KIND else condensed.hard_labels


def zero_cost(
    name: str, one: Candidate, spec: DataSpec, seed: int, images: Tensor | None = None, labels: Tensor | None = None
) -> tuple[float, float]:
    """(score, processor seconds) of a freshly drawn network. ``images`` (N, C, H, W) and ``labels`` (N,) for the scores that need a batch.
    A score that is not defined for this network is NaN."""
    if name not in SCORES:
        raise unknown_name("zero-cost score", name, SCORES)
    start = time.process_time()
    network = create(one.network, spec, generator(seed, "zero-cost"))
    if name == "parameters":
        value = float(parameter_count(network))
    elif name == "flops":
        value = float(flops(network, spec))
    elif name == "synflow":
        value = synflow(network, spec)
    else:
        assert images is not None
        assert labels is not None
        value = naswot(network, images) if name == "naswot" else grad_norm(network, images, labels)
    return (value if math.isfinite(value) else math.nan), time.process_time() - start


def synflow(network: nn.Module, spec: DataSpec) -> float:
    """Logarithm of the sum over weights of w dR/dw, R the summed output for an input of ones with all weights made positive.

    Norms are left out: at their first values they would make the constant maps of this input zero. In float64, for the deep ones.
    """
    network = network.double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.abs_()
    handles = [layer.register_forward_hook(lambda _, args, output: args[0]) for layer in network.modules() if isinstance(layer, _NORMS)]
    try:
        output = network(torch.ones((1, *spec.shape), dtype=torch.float64))
    finally:
        for handle in handles:
            handle.remove()
    weights = [p for p in network.parameters() if p.requires_grad]
    slopes = torch.autograd.grad(output.sum(), weights, allow_unused=True)
    total = sum(float((w.detach() * g).sum()) for w, g in zip(weights, slopes, strict=True) if g is not None)
    return math.log(total) if total > 0 else math.nan


def naswot(network: nn.Module, images: Tensor) -> float:
    """log |det K|, K[i, j] the number of activation units that are on for both or off for both of images i and j.

    On means that the unit's input is above zero, so that the code exists for a sigmoid too. NaN where the network has no activation layer.
    """
    kernel = torch.zeros(len(images), len(images), dtype=torch.float64)

    def watch(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        code = (args[0].flatten(1) > 0).float()
        kernel.add_((code @ code.T + (1 - code) @ (1 - code).T).double())

    layers = [layer for layer in network.modules() if isinstance(layer, _ACTIVATIONS)]
    handles = [layer.register_forward_pre_hook(watch) for layer in layers]
    try:
        with torch.no_grad():
            network.train()(images)
    finally:
        for handle in handles:
            handle.remove()
    return float(torch.linalg.slogdet(kernel).logabsdet) if layers else math.nan


def grad_norm(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Euclidean length of the gradient of the mean cross-entropy over all weights."""
    network.train()
    F.cross_entropy(network(images), labels).backward()
    return math.sqrt(sum(float(p.grad.double().square().sum()) for p in network.parameters() if p.grad is not None))
