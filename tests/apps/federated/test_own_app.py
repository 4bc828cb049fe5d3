"""Own images and an own network in a Flower app: what is accepted, what is refused, and that it learns on every engine."""

import ast
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from flwr.clientapp import ClientApp
from torch import Tensor, nn

from apps.federated import engines
from apps.federated.client_app import client_app
from apps.federated.given import server_data, shard_of
from apps.federated.inline import LocalGrid, run_inline, task_identity
from apps.federated.messages import Context, Message, RecordDict
from apps.federated.roster import Roster
from apps.federated.server_app import serve
from apps.federated.settings import Settings, from_mapping, to_json
from distill.data import ImageData
from distill.errors import InputError
from distill.networks import OWN
from distill.spec import DataSpec
from tests.conftest import toy, toy_arrays

EXAMPLE = engines.ROOT / "examples/own_app"  # as its user writes it

CLASSES = 4
SPEC = toy(classes=CLASSES, per_class=30).spec


class Items(torch.utils.data.Dataset):  # type: ignore[type-arg]
    """Every ``step``-th toy image from ``first`` on, as floats."""

    def __init__(self, first: int = 0, step: int = 1, seed: int = 0) -> None:
        images, labels = toy_arrays(seed, classes=CLASSES, per_class=30)
        self.images, self.labels = images[first::step], labels[first::step]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, place: int) -> tuple[Tensor, int]:
        return torch.from_numpy(self.images[place] / 255.0).float().permute(2, 0, 1), int(self.labels[place])


class Table:
    """What flwr-datasets' ``load_partition`` gives: a Hugging Face Dataset has a length, rows that are dicts, and features."""

    def __init__(self, first: int, step: int, names: list[str] | None = None) -> None:
        self.images, self.labels = toy_arrays(classes=CLASSES, per_class=30)
        self.places = range(len(self.labels))[first::step]
        self.features = {"label": SimpleNamespace(names=names)}

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, place: int) -> dict[str, Any]:
        from PIL import Image

        return {"image": Image.fromarray(self.images[self.places[place]][..., 0]), "label": int(self.labels[self.places[place]])}


class Partitioner:
    """A flwr-datasets partitioner in what is used of it."""

    def load_partition(self, partition_id: int) -> Table:
        return Table(partition_id, 3)


class Net(nn.Module):
    """With BatchNorm, whose counter is a whole number without dimensions, and a last layer that the toolkit finds by itself."""

    def __init__(self, classes: int = CLASSES, width: int = 8) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten())
        self.head = nn.Linear(width * 16, classes)

    def forward(self, images: Tensor) -> Tensor:
        scores: Tensor = self.head(self.body(images))
        return scores


def network(spec: DataSpec) -> nn.Module:
    return Net(spec.num_classes)


def context(number: int = 0) -> Context:
    return Context(1, 1, {"partition-id": number, "num-partitions": 3}, RecordDict(), {})


def settings(**changes: Any) -> Settings:
    return from_mapping(
        {
            "rounds": 2,
            "partition": {"num_partitions": 3},
            "upload": {"ipc": 3, "settings": {"iterations": 4, "batch_real": 8}},
            "server": {"recipe": {"max_steps": 30, "batch_size": 8, "lr": 0.05, "schedule": "constant", "augmentation": "none"}},
            "local": {"lr": 0.05, "batch_size": 8, "epochs": 2},
            **changes,
        }
    )


def mine(context: Context) -> Items:
    return Items(int(context.node_config["partition-id"]), 3)


# Whole runs


@pytest.mark.parametrize("name", ["feddm", "random", "fedavg", "scaffold"])
def test_own_images_and_an_own_network_learn(name: str) -> None:
    before = dict(OWN)
    lines = run_inline(settings(strategy=name), toy(classes=CLASSES, per_class=30), shard=mine, network=network)
    assert [[client["status"] for client in line["clients"]] for line in lines[1:]] == [["accepted"] * 3] * 2
    assert lines[-1]["accuracy"] > lines[0]["accuracy"] + 20
    assert before == OWN, "nothing is registered"


def test_the_number_of_clients_is_that_of_the_nodes() -> None:
    made = settings(strategy="random", rounds=1, partition={})  # ten by default
    with task_identity():
        grid = LocalGrid(client_app(shard=mine, network=network), {"settings": to_json(made)}, 3)
        (_, line) = serve(grid, made, toy(classes=CLASSES, per_class=30), own_shards=True, network=network)
    assert [client["client"] for client in line["clients"]] == [0, 1, 2]
    assert line["dropped"] == 0


@pytest.mark.parametrize(("count", "keys", "size"), [(None, None, 0), (None, {"SHA256:a": 4, "SHA256:b": 7}, 2), (5, None, 5)])
def test_a_roster_knows_as_many_clients_as_it_can(count: int | None, keys: dict[str, int] | None, size: int) -> None:
    assert Roster(count, keys).size == size


def test_clients_who_have_their_own_images_are_counted_by_at_most_three_medians() -> None:
    made, seen = settings(strategy="fedavg", rounds=1), []
    real = client_app(shard=mine, network=network)

    def client(message: Message, context: Context) -> Message:
        reply = real(message, context)
        if "arrays" in reply.content:
            seen.append(dict(reply.content["facts"]))
        return reply

    with task_identity():
        grid = LocalGrid(client, {"settings": to_json(made)}, 3)
        serve(grid, made, toy(classes=CLASSES, per_class=30), own_shards=True, network=network)
    assert [(facts["own-data"], facts["num-examples"]) for facts in seen] == [(1, 40)] * 3


# What a server sends is checked


@pytest.mark.parametrize(
    ("servers", "reason"),
    [
        (lambda spec: Net(spec.num_classes, width=4), "allowed: torch.float32 (8, 1, 3, 3)"),
        (lambda spec: nn.Sequential(nn.Flatten(), nn.Linear(64, spec.num_classes)), "the arrays differ from the network's"),
    ],
)
def test_weights_of_another_network_are_refused(servers: Callable[[DataSpec], nn.Module], reason: str) -> None:
    app = client_app(shard=mine, network=network)
    lines = run_inline(settings(rounds=1), toy(classes=CLASSES, per_class=30), client=app, shard=mine, network=servers)
    assert {client["status"] for client in lines[1]["clients"]} == {"failed"}
    assert all(reason in client["why"] for client in lines[1]["clients"])


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ({"height": 16}, "this client has height 8 and the federation 16"),
        ({"channels": 3, "mean": (0.5,) * 3, "std": (0.5,) * 3}, "this client has channels 1 and the federation 3"),
        ({"classes": ("a", "b")}, "the label 3; allowed: 0 to 1"),
    ],
)
def test_images_that_do_not_fit_the_federation(spec: dict[str, Any], reason: str) -> None:
    theirs = DataSpec(**{**vars(SPEC), **spec})
    with pytest.raises(InputError, match=reason.replace("(", r"\(")):
        shard_of(mine, context(), theirs)


def test_a_server_learns_nothing_of_this_machine_by_naming_data() -> None:
    """The run's data and its folder are of no use to a client that has its own."""
    made = settings(rounds=1, strategy="random", data="folder:/etc")
    lines = run_inline(made, toy(classes=CLASSES, per_class=30), shard=mine, network=network, data_root="/etc")
    assert lines[1]["dropped"] == 0


# What a client may give


def test_every_kind_of_images_is_the_same_client() -> None:
    whole = toy(classes=CLASSES, per_class=30)
    held = shard_of(mine, context(1), SPEC)
    as_data = ImageData(SPEC, whole.train.at(torch.arange(1, 120, 3)), whole.validation, whole.test)
    table = shard_of(lambda context: Table(1, 3), context(1), SPEC)
    partition = shard_of(Partitioner(), context(1), SPEC)
    named = shard_of(lambda context: Table(1, 3, list(SPEC.classes)), context(1), SPEC)
    every = torch.arange(40)
    expected = shard_of(lambda context: as_data, context(1), SPEC).normalised("train", every)
    for other in (held, table, partition, named):
        torch.testing.assert_close(other.normalised("train", every), expected, atol=1e-6, rtol=0)
        assert other.train.labels.equal(as_data.train.labels)
        assert other.spec == SPEC
        assert other.spec.normalisation_origin == "given", "the server's numbers are public to the client"


def test_class_names_must_be_the_federations() -> None:
    with pytest.raises(InputError, match="this client has classes"):
        shard_of(lambda context: Table(0, 3, ["cat", "dog", "bird", "fish"]), context(), SPEC)


def test_flwr_datasets_partitions_as_they_are() -> None:
    datasets, partitioners = pytest.importorskip("datasets"), pytest.importorskip("flwr_datasets.partitioner")
    images, labels = toy_arrays(classes=CLASSES, per_class=30)
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=list(SPEC.classes))})
    partitioner = partitioners.IidPartitioner(num_partitions=3)
    partitioner.dataset = datasets.Dataset.from_dict({"image": list(images[..., 0]), "label": labels.tolist()}, features=features)
    held = [shard_of(partitioner, context(number), SPEC) for number in range(3)]
    assert [len(data.train) for data in held] == [40] * 3
    assert np.bincount(torch.cat([data.train.labels for data in held]).numpy()).tolist() == [30] * CLASSES


def test_an_empty_shard() -> None:
    with pytest.raises(InputError, match="has no items"):
        shard_of(lambda context: Items(1000), context(), SPEC)
    assert len(shard_of(lambda context: Items(1000), context(), SPEC, may_be_empty=True).train) == 0


# What the server gives


def test_mean_and_std_are_the_servers_or_given() -> None:
    computed = server_data(Items(seed=1), context(), settings())
    pixels = torch.stack([image for image, _ in (Items(seed=1)[k] for k in range(120))])
    assert computed.spec.mean[0] == pytest.approx(float(pixels.mean()), abs=1e-5)
    assert computed.spec.std[0] == pytest.approx(float(pixels.std()), rel=1e-2)
    assert computed.spec.normalisation_origin == "computed"
    given = server_data(lambda context: Items(seed=1), context(), settings(), mean=[0.25], std=[0.5])
    named = server_data(toy(classes=CLASSES, per_class=30), context(), settings(mean=(0.25,), std=(0.5,)))
    for data in (given, named):
        assert (data.spec.mean, data.spec.std, data.spec.normalisation_origin) == ((0.25,), (0.5,), "given")
    assert given.test.labels.tolist() == Items(seed=1).labels.tolist()
    with pytest.raises(InputError, match="mean is given without std"):
        server_data(Items(), context(), settings(), mean=[0.25])


def test_a_network_of_the_wrong_outputs_ends_the_run_at_once() -> None:
    with pytest.raises(InputError, match=r"the app's network gives shape \(2, 9\) for 2 images; allowed: shape \(2, 4\)"):
        run_inline(settings(), toy(classes=CLASSES, per_class=30), shard=mine, network=lambda spec: Net(9))


# The app as its user writes it


def test_an_own_app_is_twelve_lines_beyond_imports() -> None:
    lines = 0
    for name in ("client_app", "server_app"):
        body = ast.parse((EXAMPLE / f"scans/{name}.py").read_text()).body[1:]  # without the docstring
        lines += sum(1 + one.end_lineno - one.lineno for one in body if not isinstance(one, ast.ImportFrom))  # type: ignore[operator]
    assert lines <= 12


def test_the_written_app_is_a_client_and_a_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXAMPLE))
    try:
        client, server = (importlib.import_module(f"scans.{name}") for name in ("client_app", "server_app"))
        assert isinstance(client.app, ClientApp)
        data = server_data(server.Scans(slice(300)), context(), settings())
        lines = run_inline(settings(strategy="fedavg", rounds=1), data, client=client.app, shard=client.shard, network=server.network)
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "scans"]:
            del sys.modules[name]
    assert lines[1]["dropped"] == 0
    assert lines[1]["accuracy"] > 60


@pytest.mark.slow
@pytest.mark.network_engine
@pytest.mark.parametrize("engine", ["simulation", "deployment"])
def test_the_written_app_on_flowers_engines(engine: str, tmp_path: Path) -> None:
    recipe = {"max_steps": 100, "batch_size": 32, "lr": 0.05, "schedule": "constant", "augmentation": "none"}
    patient = {"timeout": 600.0, "wait": 400.0, "min_clients": 3}  # a client is a new process with torch for every message
    made = settings(**patient, upload={"ipc": 5, "settings": {"iterations": 30, "batch_real": 32}}, server={"recipe": recipe})
    run = engines.run_simulation if engine == "simulation" else engines.run_deployment
    assert run(made, tmp_path / "run", EXAMPLE)["status"] == "finished:completed"
    lines = engines.lines_of(tmp_path / "run")
    assert lines[1]["dropped"] == lines[2]["dropped"] == 0
    assert {client["client"] for client in lines[2]["clients"]} == {0, 1, 2}
    assert lines[-1]["accuracy"] > 60
