"""Expert trajectories: the weights of networks trained on real data, epoch by epoch. They are what MTT matches.

Cazenavette et al., "Dataset Distillation by Matching Training Trajectories", CVPR 2022. Experts are trained once, with plain SGD, and kept
on disk under the hash of their configuration and data, in ``$DISTILL_CACHE`` (default ``~/.cache/distill-apps``).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pickle
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import safetensors
import safetensors.torch
import torch
from pydantic import Field
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from distill.augment import augment, for_data, strategy
from distill.batches import mean_gradient
from distill.configure import config_class
from distill.data import ImageData
from distill.devices import sent
from distill.errors import Diverged, InputError, diverged
from distill.fast import Fast, Precision
from distill.locks import locked
from distill.networks import OWN, Factory, create, flops
from distill.processes import WorkerFailed, at_once, side_by_side
from distill.progress import shows_progress
from distill.randomness import generator
from distill.records import write_json, write_whole
from distill.schedules import SCHEDULES
from distill.tf32 import products

SAVE_SECONDS = 20.0
# Floating-point operations from which processes of their own repay the seconds that each takes to start.
WORTH_WORKERS = 5e12


@config_class
class ExpertConfig:
    """Defaults are those of the paper's code: SGD without momentum or decay at a constant step size, DSA's augmentation.

    ``epochs`` is what matching can use, not what training could: `distill.methods.mtt` asks for max_start_epoch + expert_epochs.
    ``momentum`` is SGD's; ``per_epoch`` snapshots are taken in each epoch, at equal numbers of batches.
    ``precision`` "bf16" trains under autocast, compiled where that saves time; private experts are always trained in float32.
    ``schedule`` "cosine" lets the step size fall to zero, where trained networks count rather than the path to them.
    ``snapshots`` "bf16" keeps each epoch's change since the first weights in bfloat16: half the disk, relative error 2^-9 of the change.
    """

    experts: Annotated[int, Field(ge=1)] = 100
    epochs: Annotated[int, Field(ge=1)] = 50
    lr: Annotated[float, Field(gt=0)] = 0.01
    batch_size: Annotated[int, Field(ge=1)] = 256
    network: str = "ConvNet"
    augmentation: str = "auto"
    snapshots: Literal["float32", "bf16"] = "float32"
    seed: Annotated[int, Field(ge=0)] = 0
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.0
    per_epoch: Annotated[int, Field(ge=1)] = 1
    precision: Precision = "float32"
    schedule: Literal["constant", "cosine"] = "constant"

    @property
    def length(self) -> int:
        """Snapshots of a trajectory after its first weights."""
        return self.epochs * self.per_epoch

    @property
    def facts(self) -> dict[str, object]:
        """What each expert depends on by name: not their number, and later fields only where they are used, so that old ones are found."""
        later = {"momentum": 0.0, "per_epoch": 1, "precision": "float32", "schedule": "constant"}
        fields = dataclasses.asdict(self).items()
        return {name: value for name, value in fields if name != "experts" and value != later.get(name, ...)}


@dataclass(frozen=True, eq=False)
class Trajectories:
    """Weights of experts by snapshot, read from files one at a time.

    Attributes:
        experts: number of experts.
        epochs: number of epochs of each.
        read: (expert, epoch) to flat weights (P,).
        privacy: statement of the mechanism that trained the experts on private data, or None.
        classes: class names of the data that they were trained on, where these are other data than the statistics'; else None.
    """

    experts: int
    epochs: int
    read: Callable[[int, int], Tensor]
    privacy: dict[str, object] | None = None
    classes: tuple[str, ...] | None = None

    def weights(self, expert: int, epoch: int, device: torch.device | str = "cpu") -> Tensor:
        """(P,) float32: all parameters of one expert after ``epoch`` epochs, flat, in the order of ``network.parameters()``."""
        if not (0 <= expert < self.experts and 0 <= epoch <= self.epochs):
            raise InputError(
                f"snapshot of expert {expert}, epoch {epoch}; allowed: experts 0..{self.experts - 1}, epochs 0..{self.epochs}."
            )
        return sent(self.read(expert, epoch).float(), device)


def flat(network: nn.Module) -> Tensor:
    """(P,) a copy of all trainable parameters; never a view of the live weights."""
    return torch.cat([p.detach().flatten() for p in network.parameters() if p.requires_grad]).clone()


def train_experts(data: ImageData, config: ExpertConfig, network: Factory | None = None, *, progress: bool | None = None) -> Trajectories:
    """Train the experts that are not in the cache; an interrupted training is continued by the next call.

    Experts of a network given as a function, which has no name for the cache, are kept in memory only.
    """
    batches = -(-len(data.train) // config.batch_size)
    config = dataclasses.replace(config, per_epoch=min(config.per_epoch, batches))  # a batch has one snapshot at most
    if network is not None and not isinstance(network, str):
        with products(config.precision, data.device):
            weights = [torch.stack(list(_epochs(data, config, network, k))) for k in range(config.experts)]
        return Trajectories(config.experts, config.length, lambda expert, epoch: weights[expert][epoch])
    folder = cache_folder(data, config)
    write_json(folder / "config.json", {"data": data.spec.name, **dataclasses.asdict(config)})
    # Another process may be training the same experts.
    with locked(folder / ".lock", -1), _bar(progress, config) as advance, products(config.precision, data.device):
        missing = [expert for expert in range(config.experts) if not _place(folder, expert).exists()]
        done = config.experts - len(missing)
        advance(done * config.length)
        if missing and _side_by_side(data, config):
            try:
                # As bytes: tensors would be sent through shared memory, which is small in containers.
                for number, _ in enumerate(side_by_side(_trainer, (pickle.dumps(data), config, folder), missing, at_once(len(missing)))):
                    advance((done + number + 1) * config.length)
            except WorkerFailed as failed:
                if isinstance(failed.error, Diverged):
                    raise failed.error from None
                raise InputError(f"training expert {failed.job}: {failed.reason}") from None
        else:
            for number, expert in enumerate(missing):
                _train_one(data, config, expert, folder, lambda epoch, at=done + number: advance(at * config.length + epoch))  # type: ignore[misc]
    return Trajectories(config.experts, config.length, lambda expert, epoch: _read(_place(folder, expert), epoch))


def _side_by_side(data: ImageData, config: ExpertConfig) -> bool:
    """Whether to train experts in parallel, one CPU core each, which is more efficient than all cores on one expert; not if it is short.

    It depends on the configuration and not on which experts are missing, so that an interrupted training continues to the same bits.
    """
    if data.device.type != "cpu" or config.experts < 2 or config.network in OWN:  # a worker process does not know the user's networks
        return False
    network = create(config.network, data.spec, generator(config.seed, "expert", 0, "weights"))
    return 3.0 * flops(network, data.spec) * len(data.train) * config.epochs * config.experts >= WORTH_WORKERS


def _trainer(content: bytes, config: ExpertConfig, folder: Path) -> Callable[[int], None]:
    """The function that a worker process calls with an expert's number."""
    torch.set_num_threads(1)
    data: ImageData = pickle.loads(content)  # from the parent process
    return lambda expert: _train_one(data, config, expert, folder, lambda epoch: None)


def _place(folder: Path, expert: int) -> Path:
    return folder / f"expert-{expert:04d}.safetensors"


def cache_root() -> Path:
    """The user's folder of experts, in ``DISTILL_CACHE`` or ``~/.cache/distill-apps``. They are as private as their data."""
    return Path(os.environ.get("DISTILL_CACHE") or Path.home() / ".cache" / "distill-apps") / "experts"


def cache_folder(data: ImageData, config: ExpertConfig) -> Path:
    """Where experts with this configuration on these data are kept."""
    # Experts are independent: a larger number of them reuses those that are here.
    facts = [config.facts, data.fingerprint, data.spec.facts]
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]
    name = "".join(c if c.isalnum() or c in "-_" else "-" for c in data.spec.name)[:40]
    return cache_root() / f"{name}-{config.network}-{key}"


def _epochs(
    data: ImageData, config: ExpertConfig, network: Factory, expert: int, done: dict[str, Tensor] | None = None
) -> Iterator[Tensor]:
    """Flat weights at the start and at each snapshot. ``done`` is the saved state to continue from: at the end of an epoch it is updated
    with the generator's state and the momentum, within an epoch it is empty."""
    done = {} if done is None else done
    model = create(network, data.spec, generator(config.seed, "expert", expert, "weights"), data.device).train()
    draws = generator(config.seed, "expert", expert, "training")
    transform = strategy(for_data(data.spec) if config.augmentation == "auto" else config.augmentation)
    parameters: list[Tensor] = [p for p in model.parameters() if p.requires_grad]
    work = 3.0 * flops(model, data.spec) * len(data.train) * config.epochs
    # In float32 not compiled: experts of before stay the same to the bit.
    run = model if config.precision == "float32" else Fast(model, data.device, work, config.precision)
    velocity = [torch.zeros_like(p) for p in parameters] if config.momentum else None
    falling, _ = SCHEDULES[config.schedule]
    start = 0
    if "generator" in done:
        draws.set_state(done["generator"])
        start = (len(done["weights"]) - 1) // config.per_epoch
        if velocity is not None:
            velocity = [
                v.view_as(p)
                for v, p in zip(done["velocity"].to(data.device).split([p.numel() for p in parameters]), parameters, strict=True)
            ]
        # A copy: the parameters become views of this vector, and training would change what was saved.
        torch.nn.utils.vector_to_parameters(done["weights"][-1].clone().to(data.device), parameters)
        yield from done["weights"]
    else:
        yield flat(model).cpu()
    # Reading a number from a GPU waits for all work before it: only a CPU looks before the end of an epoch.
    looks = data.device.type == "cpu"
    for epoch in range(start + 1, config.epochs + 1):
        order = sent(torch.randperm(len(data.train), generator=draws), data.device)
        batches = order.split(config.batch_size)
        taken = {round(len(batches) * part / config.per_epoch) for part in range(1, config.per_epoch)}
        for number, indices in enumerate(batches, 1):
            images = data.normalised("train", indices)
            if transform.transforms:
                images = augment(images, transform, draws)
            gradients = mean_gradient(run, images, data.train.labels[indices])
            with torch.no_grad():
                if velocity is not None:
                    torch._foreach_mul_(velocity, config.momentum)
                    torch._foreach_add_(velocity, gradients)
                part = ((epoch - 1) * len(batches) + number - 1) / (config.epochs * len(batches))
                torch._foreach_sub_(parameters, gradients if velocity is None else velocity, alpha=config.lr * falling(part))
            # A loss that is not finite reaches the last layer's gradient first.
            if looks and not torch.isfinite(gradients[-1]).all():
                raise _diverged(expert, epoch, config)
            if number in taken:
                done.clear()
                yield flat(model).cpu()
        if not torch.isfinite(flat(model)).all():
            raise _diverged(expert, epoch, config)
        done["generator"] = draws.get_state()
        if velocity is not None:
            done["velocity"] = torch.cat([part.flatten() for part in velocity]).cpu()
        yield flat(model).cpu()


def _diverged(expert: int, epoch: int, config: ExpertConfig) -> Diverged:
    return diverged(f"expert {expert}", f"epoch {epoch} of {config.epochs}", {"expert_lr": config.lr}, {"expert_lr": ExpertConfig.lr})


def _train_one(data: ImageData, config: ExpertConfig, expert: int, folder: Path, advance: Callable[[int], None]) -> None:
    path = _place(folder, expert)
    part = path.with_suffix(".part")
    done: dict[str, Tensor] = _load(part) if part.exists() else {}
    first = len(done["weights"]) - 1 if done else 1
    weights: list[Tensor] = []
    state: dict[str, Tensor] = {}  # at the end of the last complete epoch, with the number of weights until then
    last, whole = time.monotonic(), 0

    def keep() -> None:
        write_whole(part, safetensors.torch.save({**state, "weights": torch.stack(weights[:whole])}))

    try:
        for place, snapshot in enumerate(_epochs(data, config, config.network, expert, done)):
            weights.append(snapshot)
            if "generator" in done and place >= first:
                state, whole = {name: done[name].cpu() for name in ("generator", "velocity") if name in done}, place + 1
            advance(place)
            if state and whole == place + 1 and place < config.length and time.monotonic() - last > SAVE_SECONDS:
                keep()
                last = time.monotonic()
    except KeyboardInterrupt:
        if state:  # complete epochs only
            keep()
        raise
    tensors = {"weights": torch.stack(weights)}
    if config.snapshots == "bf16":
        tensors = {"first": weights[0], "changes": (tensors["weights"][1:] - weights[0]).bfloat16()}
    write_whole(path, safetensors.torch.save(tensors))
    part.unlink(missing_ok=True)


def _load(path: Path) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        raise InputError(f"{path}: is damaged ({str(error)[:100]}); delete it to train this expert again.") from None


def _read(path: Path, epoch: int) -> Tensor:
    """One snapshot, read from its place in the file."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            if "weights" in file.keys():  # noqa: SIM118  (it is no mapping)
                weights: Tensor = file.get_slice("weights")[epoch]
                return weights
            first: Tensor = file.get_tensor("first")
            return first + file.get_slice("changes")[epoch - 1].float() if epoch else first
    except (safetensors.SafetensorError, OSError, IndexError) as error:
        raise InputError(f"{path}: is damaged ({str(error)[:100]}); delete it to train this expert again.") from None


@contextlib.contextmanager
def _bar(progress: bool | None, config: ExpertConfig) -> Iterator[Callable[[int], None]]:
    console = Console(stderr=True)
    if not shows_progress(progress, console):
        yield lambda done: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("epochs"), TimeRemainingColumn())
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(f"{config.experts} experts", total=config.experts * config.length)
        yield lambda done: bar.update(task, completed=done)
