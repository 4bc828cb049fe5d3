"""DynaFed: its synthesis against an unrolled student and Adam written out, its segments, and what its server does round by round."""

from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F
from torch import Tensor

from apps.federated.client_app import client_app
from apps.federated.dynafed import DynaFedConfig, pseudo_set, segment, tuned
from apps.federated.inline import run_inline
from apps.federated.messages import Context, Message
from apps.federated.settings import Settings, from_mapping
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.experts import flat
from distill.networks import create
from distill.randomness import derived_seed, generator
from tests.conftest import toy

CLASSES, NETWORK = 3, "ConvNetD1W32"
SMALL = {"rounds": 3, "ipc": 2, "iterations": 4, "syn_steps": 3, "ahead": 1, "targets": 1, "tune_steps": 3, "tune_lr": 0.01}


def data() -> ImageData:
    return toy(classes=CLASSES, per_class=30)


def settings(**changes: Any) -> Settings:
    return from_mapping(
        {
            "strategy": "dynafed",
            "network": NETWORK,
            "rounds": 5,
            "partition": {"partitioner": "iid", "num_partitions": 2},
            "local": {"lr": 0.05, "batch_size": 8, "max_steps": 4},
            "dynafed": SMALL,
            **changes,
        }
    )


def models(count: int) -> list[Tensor]:
    """Flat weights that move a little from model to model."""
    first = flat(create(NETWORK, data().spec, generator(0, "net")))
    draws = generator(1, "moves")
    moves = torch.stack([0.01 * torch.randn(len(first), generator=draws) for _ in range(count - 1)])
    return [first, *(first + moves.cumsum(0))]


def test_the_synthesis_is_adam_on_the_gradient_through_the_whole_student() -> None:
    """Three iterations, each with its student unrolled by autograd in float64, and Adam written out (Kingma and Ba, algorithm 1)."""
    config = DynaFedConfig(rounds=1, ipc=1, iterations=3, syn_steps=3, ahead=1, targets=1, lr_img=0.05, lr_label=0.01, lr_lr=1e-3)
    (start, target), spec = models(2), data().spec
    found = pseudo_set([start, target], config, spec, NETWORK, generator(5, "draws"))

    network = create(NETWORK, spec, generator(0, "net")).double()
    names, sizes = [name for name, _ in network.named_parameters()], [p.numel() for p in network.parameters()]
    shapes = [p.shape for p in network.parameters()]
    w0, w1 = start.double(), target.double()
    values = [
        torch.randn((CLASSES, *spec.shape), generator=generator(5, "draws")).double(),
        torch.zeros(CLASSES, CLASSES).double(),
        torch.tensor(config.lr_init).double(),
    ]
    sizes_of = [config.lr_img, config.lr_label, config.lr_lr]
    first, second = [torch.zeros_like(v) for v in values], [torch.zeros_like(v) for v in values]
    for step in range(1, 4):
        images, logits, lr = (value.clone().requires_grad_() for value in values)
        w = w0.clone().requires_grad_()
        for _ in range(config.syn_steps):
            parts = {name: part.view(shape) for name, part, shape in zip(names, w.split(sizes), shapes, strict=True)}
            outputs = torch.func.functional_call(network, parts, (images,))
            loss = -(logits.softmax(1) * outputs.log_softmax(1)).sum(1).mean()
            (slope,) = torch.autograd.grad(loss, w, create_graph=True)
            w = w - lr * slope
        distance = (w - w1).square().sum() / (w0 - w1).square().sum()
        for place, gradient in enumerate(torch.autograd.grad(distance, [images, logits, lr])):
            first[place] = 0.9 * first[place] + 0.1 * gradient
            second[place] = 0.999 * second[place] + 0.001 * gradient.square()
            mean, square = first[place] / (1 - 0.9**step), second[place] / (1 - 0.999**step)
            values[place] = values[place] - sizes_of[place] * mean / (square.sqrt() + 1e-8)
    assert torch.allclose(found.images.double(), values[0], atol=2e-3)
    assert torch.allclose(found.labels.double(), values[1].softmax(1), atol=1e-3)
    assert found.lr == pytest.approx(float(values[2]), abs=1e-4)
    assert float((found.labels - 1 / CLASSES).abs().max()) > 0.002, "the labels were learned"


def test_a_pseudo_set_takes_students_nearer_to_where_the_models_went() -> None:
    config = DynaFedConfig(rounds=1, ipc=2, iterations=30, syn_steps=5, ahead=1, targets=1)
    network, made = create(NETWORK, data().spec, generator(0, "net")), data()
    start = flat(network)
    trained = torch.optim.SGD(network.parameters(), 0.05)
    for _ in range(20):
        trained.zero_grad()
        F.cross_entropy(network(made.normalised("train", torch.arange(60))), made.train.labels[:60]).backward()
        trained.step()
    target = flat(network)

    def left(pseudo: CondensedSet) -> float:
        student = create(NETWORK, data().spec, generator(0, "net"))
        descent = torch.optim.SGD(student.parameters(), pseudo.lr)
        for _ in range(config.syn_steps):
            descent.zero_grad()
            F.cross_entropy(student(pseudo.images), pseudo.labels).backward()
            descent.step()
        return float((flat(student) - target).square().sum() / (start - target).square().sum())

    before, after = (
        pseudo_set([start, target], DynaFedConfig(**{**vars(config), "iterations": n}), data().spec, NETWORK, generator(2, "draws"))
        for n in (1, 30)
    )
    assert left(after) < left(before) - 0.05


def test_segments_start_early_enough_and_end_at_means_of_later_models() -> None:
    trajectory = [torch.tensor([float(place)]) for place in range(13)]  # w_0 ... w_12
    config, draws = DynaFedConfig(rounds=12, ahead=3, targets=2, max_start=50), generator(0, "draws")
    pairs = [tuple(float(each) for each in segment(trajectory, config, draws)) for _ in range(400)]
    assert {start for start, _ in pairs} == {float(start) for start in range(8)}, "five models lie behind the latest"
    offsets = {target - start for start, target in pairs}
    assert offsets == {(a + b) / 2 for a in range(1, 6) for b in range(1, 6) if a != b}
    assert sum(target - start for start, target in pairs) / 400 == pytest.approx(3, abs=0.15)
    early = DynaFedConfig(rounds=12, ahead=3, max_start=2)
    assert {float(segment(trajectory, early, draws)[0]) for _ in range(50)} == {0.0, 1.0, 2.0}
    with pytest.raises(InputError, match="at most 13 ahead"):
        settings(dynafed={"rounds": 25, "ahead": 14})
    with pytest.raises(InputError, match=r"dynafed\.targets is 6; allowed: at most 5"):
        settings(dynafed={"targets": 6})


def test_tuning_is_adam_on_the_whole_set() -> None:
    config, network = DynaFedConfig(tune_steps=4, tune_lr=0.01), create(NETWORK, data().spec, generator(3, "net"))
    draws = generator(4, "pseudo")
    images, labels = torch.randn((6, *data().spec.shape), generator=draws), torch.rand((6, CLASSES), generator=draws)
    labels = labels / labels.sum(1, keepdim=True)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = tuned(before, CondensedSet(images, labels, data().spec, lr=99.0), config, NETWORK, 0)
    adam = torch.optim.Adam(network.parameters(), 0.01)
    for _ in range(4):
        adam.zero_grad()
        F.cross_entropy(network(images), labels).backward()
        adam.step()
    with torch.no_grad():  # a bias before the normalisation has no gradient but rounding, of which Adam makes whole steps
        slow, start = network(images), create(NETWORK, data().spec, generator(3, "net"))(images)
        network.load_state_dict(found)
        assert torch.allclose(network(images), slow, atol=1e-3)
        assert not torch.allclose(start, slow, atol=0.05)


def test_the_server_averages_then_distils_its_own_models_and_then_tunes(tmp_path: Path) -> None:
    plain = run_inline(settings(strategy="fedavg"), data(), tmp_path / "fedavg")
    lines = run_inline(settings(), data(), tmp_path / "dynafed")
    assert [line["accuracy"] for line in lines[:3]] == [line["accuracy"] for line in plain[:3]], "FedAvg, until the trajectory is there"
    assert [line["note"] for line in lines] == ["", "", "", "6 images of the server's, from 4 models", "", ""]
    assert [line["up"] for line in lines] == [line["up"] for line in plain], "clients send nothing more"
    kept = safetensors.torch.load_file(tmp_path / "dynafed" / "checkpoint.safetensors")
    pseudo = CondensedSet.load(tmp_path / "dynafed" / "pseudo.safetensors")
    assert torch.equal(kept["rule/images"], pseudo.images)
    assert not any("trajectory" in name for name in kept)

    early = settings(rounds=3)  # the trajectory's last mean, which the fourth model of FedAvg is
    run_inline(early, data(), tmp_path / "early")
    run_inline(settings(strategy="fedavg", rounds=3), data(), tmp_path / "mean")
    found, mean = (safetensors.torch.load_file(tmp_path / name / "checkpoint.safetensors") for name in ("early", "mean"))
    weights = {name.removeprefix("weights/"): value for name, value in mean.items() if name.startswith("weights/")}
    slow = tuned(weights, pseudo, early.dynafed, NETWORK, derived_seed(0, "dynafed", 3))
    assert all(torch.allclose(found[f"weights/{name}"], value, atol=1e-6) for name, value in slow.items())


def test_the_trajectory_is_there_after_a_stop(tmp_path: Path) -> None:
    whole = run_inline(settings(), data(), tmp_path / "whole")
    app = client_app(data())
    for stop in ("2", "5"):  # before and after the synthesis

        def client(message: Message, context: Context, stop: str = stop) -> Message:
            if message.metadata.group_id == stop:
                raise KeyboardInterrupt
            return app(message, context)

        with pytest.raises(KeyboardInterrupt):
            run_inline(settings(), data(), tmp_path / "stopped", client=client)
    again = run_inline(settings(), data(), tmp_path / "stopped")
    assert [line["accuracy"] for line in again] == [line["accuracy"] for line in whole]
    states = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert states[0] == states[1]


def test_a_round_without_answers_adds_no_model(tmp_path: Path) -> None:
    app = client_app(data())

    def client(message: Message, context: Context) -> Message:
        if message.metadata.group_id == "2":
            raise RuntimeError("out of order")
        return app(message, context)

    lines = run_inline(settings(), data(), client=client)
    assert [line["note"][:8] for line in lines] == ["", "", "no valid", "", "6 images", ""]
