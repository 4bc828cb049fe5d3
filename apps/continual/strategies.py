"""Learners on a stream: Avalanche's strategies with any buffer, and training from scratch on the memory alone (GDumb's and DM's protocol).

`learn` gives one row of the accuracy matrix after each experience.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn

from apps.continual.contrastive import TEMPERATURE, contrastive, views
from apps.continual.engine import avalanche, quiet_and_seeded
from apps.continual.protocols import AvalancheData, Benchmark, ReplayBuffer, Strategy
from apps.continual.streams import experience_tensors, joined
from distill.condensed import CondensedSet
from distill.configure import config_class
from distill.data import ImageData
from distill.errors import unknown_name
from distill.evaluation import accuracy
from distill.networks import Factory, create
from distill.randomness import derived_seed, generator
from distill.train import Recipe, train_network

WITH_MEMORY = ("scratch", "gdumb", "replay", "er_ace", "der", "scr")
WITHOUT = ("none", "lwf", "joint")
STRATEGIES = (*WITH_MEMORY, *WITHOUT)


@config_class
class Training:
    """How Avalanche's strategies train, by SGD.

    Attributes:
        epochs: passes over each experience.
        gdumb_epochs: passes of GDumb over the memory.
        batch_size: images of the stream in a step.
        batch_size_mem: images of the memory in a step (ER_ACE and DER: at most the size of the smallest memory).
        lr: step size.
        momentum: of SGD.
        alpha: DER's weight of the stored outputs.
        beta: DER++'s weight of the stored labels.
        lwf_alpha: LwF's weight of the distillation loss.
        lwf_temperature: LwF's temperature.
        scr_temperature: SCR's temperature; None: 0.07, as Gu et al. (SSD, AAAI 2024) train it.
        exemplar_transform: augmentation of the memory's images when they are read, "dsa", or None.
    """

    epochs: Annotated[int, Field(ge=1)] = 4
    gdumb_epochs: Annotated[int, Field(ge=1)] = 60
    batch_size: Annotated[int, Field(ge=1)] = 32
    batch_size_mem: Annotated[int, Field(ge=1)] = 32
    lr: Annotated[float, Field(gt=0)] = 0.02
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    alpha: Annotated[float, Field(ge=0)] = 0.5  # DER: weight of the stored outputs
    beta: Annotated[float, Field(ge=0)] = 0.5  # DER++: weight of the stored labels
    lwf_alpha: Annotated[float, Field(ge=0)] = 1.0
    lwf_temperature: Annotated[float, Field(gt=0)] = 2.0
    scr_temperature: Annotated[float, Field(gt=0)] | None = None
    exemplar_transform: Literal["dsa"] | None = None


def scratch(
    sets: Sequence[CondensedSet | ImageData], stream: Sequence[ImageData], network: Factory, recipe: Recipe, seed: int, split: str = "test"
) -> Iterator[list[float]]:
    """Train a new network only on the memory after each experience (GDumb; DM, WACV 2023, section 4.3); yields rows of accuracies."""
    for number, memory in enumerate(sets):
        model = train_network(memory, network, recipe, derived_seed(seed, "scratch", number), stream[0].device)
        yield accuracies(model, stream, split)


def joint(stream: Sequence[ImageData], network: Factory, recipe: Recipe, seed: int, split: str = "test") -> list[float]:
    """The upper bound: one network trained on all experiences at once. Returns the last row of its matrix."""
    return accuracies(train_network(joined(stream), network, recipe, derived_seed(seed, "joint"), stream[0].device), stream, split)


def accuracies(model: nn.Module, stream: Sequence[ImageData], split: str) -> list[float]:
    """Accuracy in percent on each experience's split."""
    return [accuracy(model, data, split) for data in stream]


def learn(
    name: str,
    stream: Sequence[ImageData],
    network: Factory,
    training: Training,
    seed: int,
    *,
    buffer: ReplayBuffer | None = None,
    smallest: int = 0,
    split: str = "test",
    mini: int | None = None,
) -> Iterator[list[float]]:
    """Train a strategy of Avalanche. The state of the global generators is restored.

    Args:
        name: "gdumb", "replay", "er_ace", "der", "scr", "none" or "lwf".
        stream: the experiences.
        network: name or function.
        training: settings of the strategies.
        seed: of weights, shuffling and what Avalanche draws.
        buffer: an `ExemplarsBuffer`; None for "none" and "lwf".
        smallest: the least number of items that the buffer will hold. It limits the memory's part of a mini-batch, because ER_ACE and DER
            silently replay nothing from a smaller buffer.
        split: the split that accuracy is measured on.
        mini: items per experience of an online stream; None: whole experiences.

    Yields:
        After each experience, the accuracies in percent on every experience.

    Raises:
        InputError: the strategy is unknown.
    """
    if name not in STRATEGIES or name in ("scratch", "joint"):
        raise unknown_name("strategy", name, [n for n in STRATEGIES if n not in ("scratch", "joint")])
    device = stream[0].device
    model = create(network, stream[0].spec, generator(seed, "weights"), device)
    experiences = benchmark(stream)
    state = derived_seed(seed, "avalanche", name)
    with quiet_and_seeded(state):
        model = contrastive(model, stream[0].spec) if name == "scr" else model
        strategy = _strategy(name, model.to(device), training, device, buffer, smallest, views(stream[0].spec, generator(state, "views")))
    for number, experience in enumerate(experiences.train_stream):
        with quiet_and_seeded(derived_seed(state, number)):
            if mini is None:
                strategy.train(experience, num_workers=0)
            else:
                online = avalanche("avalanche.benchmarks.scenarios.online")
                for part in online.split_online_stream([experience], mini, seed=derived_seed(state, "online", number) % 2**32):
                    strategy.train(part, num_workers=0)
                if number == len(stream) - 1 and buffer is not None and hasattr(buffer, "flush"):
                    buffer.flush(strategy)  # the images that still wait are merged
                    if name == "scr":  # whose class means come from the memory
                        strategy.model.eval()
                        strategy.compute_class_means()  # type: ignore[attr-defined]
        yield accuracies(strategy.model, stream, split)


def benchmark(stream: Sequence[ImageData]) -> Benchmark:
    """The stream as an Avalanche benchmark with items (x, y, task label 0), where x is normalised."""
    scenarios = avalanche("avalanche.benchmarks.scenarios.dataset_scenario")
    streams: Benchmark = scenarios.benchmark_from_datasets(
        train=[_dataset(*experience_tensors(data)) for data in stream],
        test=[_dataset(data.normalised("test", torch.arange(len(data.test), device=data.device)), data.test.labels) for data in stream],
    )
    return streams


def _dataset(images: torch.Tensor, labels: torch.Tensor) -> AvalancheData:
    utils = avalanche("avalanche.benchmarks.utils")
    from apps.continual.reading import LabelledTensors  # here: it imports Avalanche

    items = LabelledTensors(images, labels)
    described = [utils.DataAttribute(items.targets, "targets"), utils.TaskLabels([0] * len(items))]
    dataset: AvalancheData = utils.TaskAwareSupervisedClassificationDataset([items], data_attributes=described)
    return dataset


def _strategy(
    name: str,
    model: nn.Module,
    training: Training,
    device: torch.device,
    buffer: ReplayBuffer | None,
    smallest: int,
    view: Callable[[torch.Tensor], torch.Tensor],
) -> Strategy:
    from apps.continual.buffer import attach  # here: it imports Avalanche

    supervised, plugins = avalanche("avalanche.training.supervised"), avalanche("avalanche.training.plugins")
    optimiser = torch.optim.SGD(model.parameters(), lr=training.lr, momentum=training.momentum)
    batch_mem = min(training.batch_size_mem, smallest) if smallest and name in ("er_ace", "der") else training.batch_size_mem
    options: dict[str, object] = {
        "model": model,
        "optimizer": optimiser,
        "train_mb_size": training.batch_size,
        "train_epochs": training.gdumb_epochs if name == "gdumb" else training.epochs,
        "device": device,
        "evaluator": plugins.EvaluationPlugin(loggers=[]),
    }
    strategy: Strategy
    used = []
    if name == "lwf":
        used = [plugins.LwFPlugin(alpha=training.lwf_alpha, temperature=training.lwf_temperature)]
    elif name != "none":
        assert buffer is not None, f"{name} needs a buffer"
        if name == "er_ace":
            strategy = supervised.ER_ACE(mem_size=buffer.max_size, batch_size_mem=batch_mem, **options)
            return attach(strategy, buffer)
        if name == "der":
            strategy = supervised.DER(
                mem_size=buffer.max_size, batch_size_mem=batch_mem, alpha=training.alpha, beta=training.beta, **options
            )
            own = avalanche("avalanche.training.storage_policy").ReservoirSamplingBuffer
            return strategy if isinstance(buffer, own) else attach(strategy, buffer)  # DER has a reservoir of its own, with outputs
        if name == "scr":
            options |= {"temperature": training.scr_temperature or TEMPERATURE, "augmentations": view, "eval_mb_size": 256}
            strategy = supervised.SCR(mem_size=buffer.max_size, batch_size_mem=batch_mem, **options)
            return attach(strategy, buffer)
        if name == "replay":
            used = [plugins.ReplayPlugin(mem_size=buffer.max_size, batch_size_mem=batch_mem, storage_policy=buffer)]
        else:
            used = [attach(plugins.GDumbPlugin(mem_size=buffer.max_size), buffer)]
    strategy = supervised.Naive(plugins=used, **options)
    return strategy
