"""Rows of a frozen network's features in a memory and in an Avalanche buffer: which are stored, that they are replayed, what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

import distill
from apps.continual import Memory, MemoryConfig
from apps.continual.engine import avalanche, quiet_and_seeded
from distill.errors import InputError
from distill.networks import create, embed
from distill.randomness import generator

pytest.importorskip("avalanche")
from apps.continual.buffer import CondensedBuffer, attach
from apps.continual.online_buffer import OnlineCondensedBuffer

WIDTH = 512


@pytest.fixture(scope="module")
def rows() -> dict[str, tuple[Tensor, Tensor]]:
    """Features of digits 0 to 3 in a frozen random network, by split."""
    data = distill.load("digits").subset([0, 1, 2, 3])
    frozen = create("ConvNetD2W32", data.spec, generator(0, "frozen")).eval()
    found = {}
    for split in ("train", "test"):
        part = getattr(data, split)
        with torch.no_grad():
            found[split] = embed(frozen, data.normalised(split, torch.arange(len(part)))), part.labels
    assert found["train"][0].shape[1] == WIDTH
    return found


def slow_choice(method: str, features: Tensor, count: int) -> Tensor:
    """Herding as iCaRL has it, or the class's mean."""
    mean = features.mean(0)
    if method == "class_mean":
        return mean.expand(count, -1)
    chosen: list[int] = []
    for _ in range(count):
        left = [place for place in range(len(features)) if place not in chosen]
        chosen.append(min(left, key=lambda place: float((features[[*chosen, place]].mean(0) - mean).norm())))
    return features[chosen]


@pytest.mark.parametrize(("method", "count"), [("herding", 2), ("class_mean", 1)])
def test_a_memory_of_rows_holds_those_of_its_definition(method: str, count: int, rows: dict[str, tuple[Tensor, Tensor]]) -> None:
    features, labels = rows["train"]
    memory = Memory(MemoryConfig(method, items=4 * count, per_class=count))
    for classes in ([0, 1], [2, 3]):
        own = torch.isin(labels, torch.tensor(classes))
        memory.observe(features[own], labels[own])
    assert memory.images.shape == (4 * count, 1, 1, WIDTH)
    for label in range(4):
        stored = memory.images.flatten(1)[memory.labels == label]
        assert torch.allclose(stored, slow_choice(method, features[labels == label], count), atol=1e-4)
    assert memory.nbytes == 4 * count * (WIDTH * 4 + 8)


def stream(rows: dict[str, tuple[Tensor, Tensor]]) -> Any:
    made = []
    for split in ("train", "test"):
        dataset = TensorDataset(*rows[split])
        dataset.targets = rows[split][1].tolist()  # type: ignore[attr-defined]
        made.append(dataset)
    with quiet_and_seeded(0):
        return avalanche("avalanche.benchmarks").nc_benchmark(*made, 2, task_labels=False, seed=0, fixed_class_order=[0, 1, 2, 3])


def accuracy(model: nn.Module, rows: dict[str, tuple[Tensor, Tensor]]) -> float:
    features, labels = rows["test"]
    with torch.no_grad():
        return float((model(features).argmax(1) == labels).double().mean())


@pytest.mark.parametrize("name", ["none", "random", "kmeans", "uint8", "online"])
def test_a_linear_head_on_frozen_features_forgets_without_it_and_not_with_it(name: str, rows: dict[str, tuple[Tensor, Tensor]]) -> None:
    settings = {"storage": "uint8"} if name == "uint8" else {}
    buffer = (
        None
        if name == "none"
        else CondensedBuffer(40, "random" if name == "uint8" else name, progress=False, **settings)
        if (name != "online")
        else OnlineCondensedBuffer(40, "random", queue=100, every=1)
    )
    experiences = stream(rows).train_stream
    with quiet_and_seeded(0):
        model = nn.Linear(WIDTH, 4)
        quiet = avalanche("avalanche.training.plugins").EvaluationPlugin(loggers=[])
        plugins = [] if buffer is None else [avalanche("avalanche.training.plugins").ReplayPlugin(mem_size=40, storage_policy=buffer)]
        optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
        agent = avalanche("avalanche.training.supervised").Naive(
            model=model, optimizer=optimiser, train_mb_size=16, train_epochs=4, evaluator=quiet, plugins=plugins
        )
        for experience in experiences:
            agent.train(experience)
    if buffer is None:
        assert accuracy(model, rows) < 0.75
        return
    assert accuracy(model, rows) > 0.85
    assert all(item[0].shape == (WIDTH,) for item in buffer.buffer)
    assert [int(item[1]) for item in buffer.buffer] == buffer.memory.labels.tolist()


def test_der_stores_the_outputs_of_rows(rows: dict[str, tuple[Tensor, Tensor]]) -> None:
    buffer = CondensedBuffer(16, "herding", progress=False)
    experiences = stream(rows).train_stream
    with quiet_and_seeded(0):
        model = nn.Linear(WIDTH, 4)
        quiet = avalanche("avalanche.training.plugins").EvaluationPlugin(loggers=[])
        optimiser = torch.optim.SGD(model.parameters(), lr=0.02)
        agent = avalanche("avalanche.training.supervised").DER(
            model=model, optimizer=optimiser, mem_size=16, batch_size_mem=4, train_mb_size=16, train_epochs=1, evaluator=quiet
        )
        attach(agent, buffer)
        agent.train(experiences[0])
    assert all(group.logits is not None and group.logits.shape == (len(group), 4) for group in buffer.memory.groups)


def test_rows_are_saved_and_come_back_as_rows(rows: dict[str, tuple[Tensor, Tensor]], tmp_path: Path) -> None:
    experiences = stream(rows).train_stream
    buffer = CondensedBuffer(12, "kcenter", folder=tmp_path, progress=False)
    buffer.update_from_dataset(experiences[0].dataset)
    again = CondensedBuffer.resume(tmp_path, experiences[0])
    assert torch.equal(again.memory.images, buffer.memory.images)
    assert again.buffer[0][0].shape == (WIDTH,)


def test_what_learns_images_is_refused(rows: dict[str, tuple[Tensor, Tensor]]) -> None:
    features, labels = rows["train"]
    for method in ("dm", "noise"):
        with pytest.raises(InputError, match=f"rows of 512 features, and method '{method}' makes images; allowed for rows: random"):
            Memory(MemoryConfig(method, items=8)).observe(features, labels)
    for decode in ("formation:2", "frequency:8", "lowrank:1"):
        with pytest.raises(InputError, match=f"rows of 512 features, and decode '{decode}' is of images; leave it out"):
            Memory(MemoryConfig("random", items=8, settings={"decode": decode})).observe(features, labels)
    with pytest.raises(InputError, match="rows of 4097 features; allowed: at most 4096"):
        Memory(MemoryConfig("random", items=8)).observe(torch.zeros(3, 4097), torch.arange(3))
    experience = stream(rows).train_stream[0]
    with pytest.raises(InputError, match="'dsa', which augments images"):
        CondensedBuffer(8, "random", transform="dsa").update_from_dataset(experience.dataset)
