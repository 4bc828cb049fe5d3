"""The strategies that send weights, server and client, against definitions in numpy: what every client gets in a round follows from what
all clients sent in the round before. The clients have unequal numbers of images."""

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from apps.federated.averaging import local_sgd, normaliser
from apps.federated.client_app import client_app
from apps.federated.inline import run_inline
from apps.federated.messages import Context, Message
from apps.federated.rules import rule_for
from apps.federated.settings import WEIGHTS, Settings, from_mapping
from apps.federated.strategy import Federation
from apps.federated.tables import LocalConfig
from apps.federated.weight_rules import WEIGHT_RULES
from distill.augment import augment, strategy
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from tests.conftest import toy

Arrays = dict[str, np.ndarray[Any, Any]]
CLIENTS, CLASSES = 3, 4
BUFFERS = ("running_mean", "running_var", "num_batches_tracked")


def data() -> ImageData:
    return toy(classes=CLASSES, per_class=30)


def settings(**changes: Any) -> Settings:
    base = {
        "network": "ConvNetD1W32BN",
        "rounds": 4,
        "partition": {"partitioner": "dirichlet", "alpha": 1.0, "num_partitions": CLIENTS, "min_partition_size": 5},
        "local": {"lr": 0.05, "batch_size": 8, "momentum": 0.5},
    }
    return from_mapping({**base, **changes})


class Wire:
    """The real ClientApp; ``sent`` and ``received`` hold all arrays by (round, client), ``examples`` each client's number of images."""

    def __init__(self) -> None:
        self.app = client_app(data())
        self.sent: dict[tuple[int, int], Arrays] = {}
        self.changes: dict[tuple[int, int], Arrays] = {}
        self.received: dict[int, Arrays] = {}
        self.controls: dict[int, Arrays] = {}
        self.examples: dict[int, int] = {}
        self.steps: dict[int, int] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.app(message, context)
        if "arrays" in reply.content:
            number, client = int(message.metadata.group_id), int(context.node_config["partition-id"])
            self.received[number] = as_numpy(message.content["arrays"])
            self.sent[number, client] = as_numpy(reply.content["arrays"])
            facts = dict(reply.content["facts"])
            self.examples[client], self.steps[client] = facts["num-examples"], facts["steps"]
            if "change" in reply.content:
                self.changes[number, client] = as_numpy(reply.content["change"])
                self.controls[number] = as_numpy(message.content["control"])
        return reply

    def mean(self, number: int, name: str, *, equal: bool = False) -> np.ndarray[Any, Any]:
        """The mean of what the clients sent in a round, weighted by their images or equally."""
        weights = {client: 1.0 if equal else float(count) for client, count in self.examples.items()}
        total = np.zeros(self.received[number][name].shape)
        for client, weight in weights.items():
            total = total + weight / sum(weights.values()) * self.sent[number, client][name].astype(float)
        return total


def as_numpy(record: Any) -> Arrays:
    return {str(name): array.numpy() for name, array in record.items()}


def run(**changes: Any) -> Wire:
    wire = Wire()
    lines = run_inline(settings(**changes), data(), client=wire)
    assert all(line["dropped"] == 0 for line in lines)
    assert len(set(wire.examples.values())) == CLIENTS, "the clients are unequal"
    return wire


def trained(wire: Wire) -> list[str]:
    return [name for name in wire.received[1] if not name.endswith(BUFFERS)]


def check_buffers(wire: Wire) -> None:
    """Running statistics are the mean by examples, counters the largest, whatever the server's optimiser does."""
    for number in range(1, 4):
        for name in wire.received[1]:
            if name.endswith("num_batches_tracked"):
                assert wire.received[number + 1][name] == max(int(wire.sent[number, client][name]) for client in range(CLIENTS))
            elif name.endswith(BUFFERS):
                np.testing.assert_allclose(wire.received[number + 1][name], wire.mean(number, name), rtol=1e-4, atol=1e-6)


def test_every_strategy_for_weights_has_a_rule() -> None:
    assert set(WEIGHT_RULES) == set(WEIGHTS)


@pytest.mark.parametrize(("lr", "momentum"), [(1.0, 0.9), (0.5, 0.3), (1.0, 0.0)])
def test_fedavgm_is_sgd_with_momentum_on_the_server(lr: float, momentum: float) -> None:
    wire = run(strategy="fedavgm", averaging={"fedavgm_lr": lr, "fedavgm_momentum": momentum})
    for name in trained(wire):
        velocity = 0.0
        for number in range(1, 4):
            velocity = momentum * velocity + (wire.received[number][name].astype(float) - wire.mean(number, name))
            np.testing.assert_allclose(wire.received[number + 1][name], wire.received[number][name] - lr * velocity, rtol=1e-4, atol=1e-6)
    check_buffers(wire)


def test_fedadam_is_adam_on_the_server() -> None:
    wire = run(strategy="fedadam", averaging={"fedadam_lr": 0.03, "fedadam_beta1": 0.8, "fedadam_beta2": 0.95, "fedadam_tau": 0.02})
    for name in trained(wire):
        first = second = np.zeros(wire.received[1][name].shape)
        for number in range(1, 4):
            change = wire.mean(number, name) - wire.received[number][name]
            first, second = 0.8 * first + 0.2 * change, 0.95 * second + 0.05 * change**2
            step = 0.03 * np.sqrt(1 - 0.95 ** (number + 1)) / (1 - 0.8 ** (number + 1))
            expected = wire.received[number][name] + step * first / (np.sqrt(second) + 0.02)
            np.testing.assert_allclose(wire.received[number + 1][name], expected, rtol=1e-4, atol=1e-6)
    check_buffers(wire)


@pytest.mark.parametrize("alpha", [0.1, 1.0])
def test_feddyn_s_server_keeps_the_mean_drift(alpha: float) -> None:
    wire = run(strategy="feddyn", averaging={"feddyn_alpha": alpha}, local={"lr": 0.02, "batch_size": 8, "momentum": 0.0})
    for name in trained(wire):
        drift = np.zeros(wire.received[1][name].shape)
        for number in range(1, 4):
            for client in range(CLIENTS):
                drift = drift - alpha / CLIENTS * (wire.sent[number, client][name].astype(float) - wire.received[number][name])
            expected = wire.mean(number, name, equal=True) - drift / alpha
            np.testing.assert_allclose(wire.received[number + 1][name], expected, rtol=1e-4, atol=2e-6)
    check_buffers(wire)


def test_feddyn_s_client_minimises_the_regularised_loss() -> None:
    """Two rounds of one client: its loss is L(w) - <g, w> + alpha / 2 |w - received|^2, and g becomes g - alpha (w - received)."""
    alpha, wire = 0.4, Wire()
    made = settings(
        strategy="feddyn",
        network="ConvNetD1W32",
        rounds=2,
        averaging={"feddyn_alpha": alpha},
        partition={"partitioner": "iid", "num_partitions": 1},
        local={"lr": 0.05, "batch_size": 120, "momentum": 0.0, "epochs": 3},  # every step takes all images
    )
    run_inline(made, data(), client=wire)
    kept = {name: torch.zeros(value.shape) for name, value in wire.received[1].items()}
    for number in (1, 2):
        network = create("ConvNetD1W32", data().spec, generator(0, "any"))
        start = {name: torch.from_numpy(value.copy()) for name, value in wire.received[number].items()}
        network.load_state_dict(start)
        images, labels = data().normalised("train", torch.arange(120)), data().train.labels
        for _ in range(3):
            loss = F.cross_entropy(network(images), labels)
            for name, parameter in network.named_parameters():
                loss = loss - (kept[name] * parameter).sum() + alpha / 2 * (parameter - start[name]).square().sum()
            gradients = torch.autograd.grad(loss, list(network.parameters()))
            with torch.no_grad():
                for parameter, gradient in zip(network.parameters(), gradients, strict=True):
                    parameter -= 0.05 * gradient
        for name, parameter in network.named_parameters():
            np.testing.assert_allclose(wire.sent[number, 0][name], parameter.detach().numpy(), rtol=1e-3, atol=2e-5)
            kept[name] = kept[name] - alpha * (torch.from_numpy(wire.sent[number, 0][name]) - start[name])


@pytest.mark.parametrize("equal", [True, False])
def test_scaffold_counts_clients_equally_or_by_examples(equal: bool) -> None:
    wire = run(strategy="scaffold", averaging={"scaffold_weights": "equal" if equal else "examples"})
    total = sum(wire.examples.values())
    for number in range(1, 4):
        for name in trained(wire):
            np.testing.assert_allclose(wire.received[number + 1][name], wire.mean(number, name, equal=equal), rtol=1e-4, atol=1e-6)
            control = wire.controls[number][name].astype(float)
            for client, count in wire.examples.items():
                control = control + (1 / CLIENTS if equal else count / total) * wire.changes[number, client][name]
            np.testing.assert_allclose(wire.controls[number + 1][name], control, rtol=1e-4, atol=1e-6)


def test_fednova_moves_parameters_and_averages_running_statistics() -> None:
    wire = run(strategy="fednova")
    shares = {client: count / sum(wire.examples.values()) for client, count in wire.examples.items()}
    lengths = {client: normaliser(wire.steps[client], 0.5) for client in shares}
    assert len(set(lengths.values())) > 1
    effective = sum(shares[client] * lengths[client] for client in shares)
    for number in range(1, 4):
        for name in trained(wire):
            old = wire.received[number][name].astype(float)
            step = sum(shares[client] * (old - wire.sent[number, client][name]) / lengths[client] for client in shares)
            np.testing.assert_allclose(wire.received[number + 1][name], old - effective * step, rtol=1e-4, atol=1e-6)
    check_buffers(wire)


@pytest.mark.parametrize("name", ["scaffold", "feddyn"])
def test_with_part_of_the_clients_the_server_s_state_moves_by_their_share(name: str) -> None:
    """N is the number of all clients: one of four moves the state by a quarter."""
    made = settings(strategy=name, network="ConvNetD1W32", averaging={"feddyn_alpha": 0.5})
    rule = rule_for(made, data().spec, 4)
    weights = {n: v.clone() for n, v in create("ConvNetD1W32", data().spec, generator(0, "start")).state_dict().items()}
    rule.request(weights)
    from apps.federated.answers import Accepted
    from apps.federated.averaging import LocalResult

    change = {n: torch.ones_like(v) for n, v in weights.items()}
    result = LocalResult({n: v + 2.0 for n, v in weights.items()}, 10, 1, 1.0, change if name == "scaffold" else None)
    rule.combine(1, weights, [Accepted(2, result, 10)])
    expected = 0.25 if name == "scaffold" else -0.5 / 4 * 2.0
    assert all(torch.allclose(value, torch.full_like(value, expected), atol=1e-5) for value in rule.state().values())
    assert set(rule.state()) == set(weights)


def test_local_sgd_trains_on_augmented_images() -> None:
    config = LocalConfig(batch_size=8, lr=0.05, momentum=0.0, max_steps=2, augmentation="crop_cutout")
    network = create("ConvNetD1W32", data().spec, generator(0, "net"))
    expected = create("ConvNetD1W32", data().spec, generator(0, "net"))
    result = local_sgd(network, data(), config, generator(0, "order"))
    draws = generator(0, "order")
    for batch in torch.randperm(120, generator=draws).split(8)[:2]:
        images = augment(data().normalised("train", batch), strategy("crop_cutout"), draws)
        gradients = torch.autograd.grad(F.cross_entropy(expected(images), data().train.labels[batch]), list(expected.parameters()))
        with torch.no_grad():
            for parameter, gradient in zip(expected.parameters(), gradients, strict=True):
                parameter -= 0.05 * gradient
    for name, parameter in expected.named_parameters():
        assert torch.allclose(result.weights[name], parameter, atol=2e-5)
    with pytest.raises(InputError, match="augmentation"):
        settings(local={"augmentation": "crop_mirror"})


def test_flower_gets_accuracy_as_a_fraction(monkeypatch: pytest.MonkeyPatch) -> None:
    given = []
    real = Federation.evaluate

    def evaluate(self: Federation, server_round: int, arrays: Any) -> Any:
        given.append(real(self, server_round, arrays))
        return given[-1]

    monkeypatch.setattr(Federation, "evaluate", evaluate)
    lines = run_inline(settings(strategy="fedavg", rounds=1), data())
    assert [record["accuracy"] for record in given] == [line["accuracy"] / 100 for line in lines]
