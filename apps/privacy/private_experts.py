"""Experts, of MTT or of a pool, trained by DP-SGD with Opacus' optimiser; the account counts every step of every expert.

The batches are Poisson masks of the operating system's entropy, as in every release; Opacus clips each example's gradient, sums, and adds
noise. Step sizes are public. A finished expert is kept in the ledger's folder; of one that was stopped nobody has seen anything.
"""

import functools
import json
import warnings
from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from apps.privacy.contributions import check_separable
from apps.privacy.release import Plan, question
from distill.batches import chunk_size
from distill.data import ImageData
from distill.errors import InputError, diverged
from distill.experts import ExpertConfig, Trajectories, flat
from distill.networks import Factory, create
from distill.randomness import generator
from distill.schedules import SCHEDULES

try:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer
except ImportError:
    raise InputError('private experts need opacus: pip install "distill-apps[privacy]"') from None


class Account(Protocol):
    """What experts need of `PrivateStatistics`: its budget, its entropy and its ledger."""

    population: int

    @property
    def privacy(self) -> dict[str, object]: ...
    def trained(self, name: str, key: str, plan: Plan, steps: int, train: Callable[[], Tensor]) -> Tensor: ...
    def sample(self, rate: float) -> Tensor: ...
    def noise(self, shape: tuple[int, ...]) -> Tensor: ...


def train_private_experts(
    statistics: Account,
    data: ImageData,
    config: ExpertConfig,
    network: Factory | None,
    plan: Plan,
    steps: int,
    clip: float | None,
    *,
    prefix: str = "expert",
) -> Trajectories:
    """``config.experts`` experts of ``steps`` DP-SGD steps each, snapshots after each of ``config.length`` equal parts.

    ``clip`` is the norm of an example's gradient (None: 1), ``prefix`` begins the names under which experts are kept.
    No augmentation: several views of an example would be several contributions. Raises `InputError` when the budget does not cover it.
    """
    factory = network or config.network
    trained: list[Tensor] = []
    for expert in range(config.experts):
        model = create(factory, data.spec, generator(config.seed, "expert", expert, "weights"), data.device).train()
        key = _question(config, model, plan, steps, clip)
        train = functools.partial(_train, statistics, data, config, model, plan, steps, clip=clip or 1.0)
        trained.append(statistics.trained(f"{prefix}-{expert:04d}", key, plan, steps, train))
        if not bool(torch.isfinite(trained[-1]).all()):
            raise diverged(f"private expert {expert}", f"{steps} steps", {"expert_lr": config.lr}, {"expert_lr": ExpertConfig.lr})
    return Trajectories(config.experts, config.length, lambda expert, epoch: trained[expert][epoch], statistics.privacy)


def _question(config: ExpertConfig, model: nn.Module, plan: Plan, steps: int, clip: float | None) -> str:
    """What an expert depends on beside the data: an expert that began or was trained otherwise is no answer."""
    return question(json.dumps(["expert", config.facts, str(model), list(plan), steps, clip], sort_keys=True), [flat(model)])


class _NoisedSums(DPOptimizer):  # type: ignore[misc]  # Opacus has no types
    """Opacus' optimiser with the noise of the statistics' own entropy: a generator of torch keeps 32 bits of its seed on a CPU."""

    def __init__(self, *arguments: object, normal: Callable[[tuple[int, ...]], Tensor], **named: object) -> None:
        super().__init__(*arguments, **named)
        self.normal = normal

    def clip_and_accumulate(self) -> None:
        """As Opacus does, after zeroing the gradient of an example that is not finite: it would pass through any clipping."""
        finite = torch.stack([torch.isfinite(rows.flatten(1)).all(1) for rows in self.grad_samples]).all(0)
        for parameter, rows in zip(self.params, self.grad_samples, strict=True):
            rows[~finite] = 0.0
            parameter.grad_sample = rows
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        deviation = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            drawn = self.normal(tuple(parameter.summed_grad.shape)).to(parameter.device)
            parameter.grad = (parameter.summed_grad.double() + deviation * drawn).to(parameter.dtype).view_as(parameter)


def _train(statistics: Account, data: ImageData, config: ExpertConfig, model: nn.Module, plan: Plan, steps: int, *, clip: float) -> Tensor:
    check_separable(model, set())
    watched = GradSampleModule(model, loss_reduction="mean")
    descent = torch.optim.SGD(watched.parameters(), lr=config.lr, momentum=config.momentum)
    falling, _ = SCHEDULES[config.schedule]
    optimiser = _NoisedSums(
        descent,
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=clip,
        expected_batch_size=round(plan.sample_rate * statistics.population),
        loss_reduction="mean",
        normal=statistics.noise,
    )
    labels, snapshots = data.train.labels, [flat(model).cpu()]
    for step in range(1, steps + 1):
        descent.param_groups[0]["lr"] = config.lr * falling((step - 1) / steps)
        chosen = statistics.sample(plan.sample_rate).nonzero().squeeze(1)
        # At least one part, empty or not: a step without examples is a step of noise.
        parts = chosen.split(chunk_size(data.train.images)) or (chosen,)
        for place, part in enumerate(parts):
            optimiser.signal_skip_step(do_skip=place < len(parts) - 1)
            images = data.normalised("train", part).requires_grad_()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                F.cross_entropy(watched(images), labels[part]).backward()
            optimiser.step()
            optimiser.zero_grad()
        if step * config.length % steps < config.length:
            snapshots.append(flat(model).cpu())
    return torch.stack(snapshots)
