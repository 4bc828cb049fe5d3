"""Experts for MTT trained by DP-SGD with Opacus' optimiser; the account counts every step of every expert.

The batches are Poisson masks of the operating system's entropy, as in every release; Opacus clips each example's gradient, sums, and adds
noise. Step sizes are public. A finished expert is kept in the ledger's folder; of one that was stopped nobody has seen anything.
"""

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.privacy.contributions import check_separable
from distill.data import ImageData
from distill.errors import InputError
from distill.experts import ExpertConfig, Trajectories, flat
from distill.networks import Factory, create
from distill.randomness import generator
from distill.records import write_whole
from distill.statistics import chunk_size
from distill.stopping import held_back

if TYPE_CHECKING:
    from apps.privacy.private_statistics import PrivateStatistics
    from apps.privacy.release import Plan


def train_private_experts(
    statistics: "PrivateStatistics", data: ImageData, config: ExpertConfig, network: Factory | None, plan: "Plan", steps: int
) -> Trajectories:
    """``config.experts`` experts of ``steps`` DP-SGD steps each, snapshots after each of ``config.epochs`` equal parts.

    No augmentation: several views of an example would be several contributions. Raises `InputError` when the budget does not cover it.
    """
    folder = statistics.ledger_folder
    made: list[Tensor] = []
    for expert in range(config.experts):
        path = folder / f"expert-{expert:04d}.safetensors" if folder else None
        if path is not None and path.exists():
            made.append(_read(path))
            continue
        statistics.check_budget(plan, steps)
        weights = torch.stack(_train(statistics, data, config, network or config.network, expert, plan, steps))
        with held_back():  # an expert that is kept is counted
            if path is not None:
                write_whole(path, safetensors.torch.save({"weights": weights}))
            statistics.count(plan, steps)
        made.append(weights)
    return Trajectories(config.experts, config.epochs, lambda expert, epoch: made[expert][epoch], statistics.privacy)


def _train(
    statistics: "PrivateStatistics", data: ImageData, config: ExpertConfig, network: Factory, expert: int, plan: "Plan", steps: int
) -> list[Tensor]:
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    model = create(network, data.spec, generator(config.seed, "expert", expert, "weights"), data.device).train()
    check_separable(model)
    watched = GradSampleModule(model, loss_reduction="mean")
    optimiser: Any = DPOptimizer(
        torch.optim.SGD(watched.parameters(), lr=config.lr),
        noise_multiplier=plan.noise_multiplier,
        max_grad_norm=statistics.clip or 1.0,
        expected_batch_size=round(plan.sample_rate * statistics.population),
        loss_reduction="mean",
        generator=statistics.noise_generator(data.device),
    )
    labels, snapshots = data.train.labels, [flat(model).cpu()]
    for step in range(1, steps + 1):
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
        if step * config.epochs % steps < config.epochs:
            snapshots.append(flat(model).cpu())
    return snapshots


def _read(path: Path) -> Tensor:
    try:
        return safetensors.torch.load_file(path)["weights"]
    except (safetensors.SafetensorError, OSError, KeyError) as error:
        raise InputError(f"{path}: is damaged ({str(error)[:100]}); start in another folder.") from None
