"""Late uploads, rounds in which too few come, and images that count by the real images they stand for."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from apps.federated import overdue
from apps.federated.answers import Accepted
from apps.federated.client_app import client_app
from apps.federated.condense import partition_of
from apps.federated.inline import LocalGrid, quiet_flower, run_inline, task_identity
from apps.federated.messages import Context, Message, MetricRecord, RecordDict, parts_of, record_of
from apps.federated.server_app import report, serve
from apps.federated.settings import Settings, check_clients, from_mapping, to_json
from apps.federated.union import learn
from apps.federated.wire import Limits, decode
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.randomness import derived_seed, generator
from scenarios.federated.left_out import left_out
from scenarios.federated.unions import statements
from tests.conftest import toy

CLASSES = 4
LIMITS = Limits(toy(classes=CLASSES).spec, tuple(range(CLASSES)), 2)


def data() -> ImageData:
    return toy(classes=CLASSES, per_class=30)


def settings(**changes: Any) -> Settings:
    recipe = {"max_steps": 5, "batch_size": 8, "lr": 0.05, "schedule": "constant", "augmentation": "none"}
    return from_mapping(
        {
            "strategy": "random",
            "network": "ConvNetD1W32",
            "rounds": 2,
            "partition": {"partitioner": "iid", "num_partitions": 3},
            "upload": {"ipc": 2},
            **changes,
            "server": {"recipe": recipe, **changes.get("server", {})},
        }
    )


class Clients:
    """The real ClientApp with every upload that it made; those of ``broken`` (client, round) raise."""

    def __init__(self, *broken: tuple[int, int]) -> None:
        self.app, self.broken = client_app(data()), broken
        self.uploads: dict[tuple[int, int], CondensedSet] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.who":
            return self.app(message, context)
        key = int(context.node_config["partition-id"]), int(message.metadata.group_id)
        if key in self.broken:
            raise RuntimeError("out of order")
        reply = self.app(message, context)
        if "upload" in reply.content:
            self.uploads[key] = decode(parts_of(reply.content, "upload"), LIMITS)
        return reply


class Late(LocalGrid):
    """Answers of some (client, round) come so many rounds late."""

    def __init__(self, client: Any, made: Settings, late: dict[tuple[int, int], int]) -> None:
        super().__init__(client, {"settings": to_json(made)}, made.partition.num_partitions)
        self.late, self.round = late, 0

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        sent = list(messages)
        self.round = max([self.round, *(int(message.metadata.group_id or 0) for message in sent)])
        return super().push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterator[Message]:
        yield from super().pull_messages([name for name in message_ids if self._is_there(name)])

    def _is_there(self, name: str) -> bool:
        if (message := self.waiting.get(name)) is None or not message.metadata.group_id:
            return True
        client, asked = message.metadata.dst_node_id - 1000, int(message.metadata.group_id)
        return self.round >= asked + self.late.get((client, asked), 0)


def rounds(made: Settings, clients: Clients, late: dict[tuple[int, int], int], folder: Path | None = None) -> list[dict[str, Any]]:
    with quiet_flower(), task_identity():
        return serve(Late(clients, made, late), made, data(), folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    kept = safetensors.torch.load_file(folder / "checkpoint.safetensors")
    return {name.removeprefix("weights/"): value for name, value in kept.items() if name.startswith("weights/")}


# Late uploads


def test_a_late_upload_joins_the_next_union_and_counts_by_its_age(tmp_path: Path) -> None:
    clients, made = Clients((1, 2)), settings(staleness=1, staleness_weight=0.25)
    rounds(settings(rounds=1), Clients(), {(1, 1): 1}, tmp_path / "first")
    lines = rounds(made, clients, {(1, 1): 1}, tmp_path / "run")
    assert [[each["status"] for each in line["clients"]] for line in lines[1:]] == [
        ["accepted", "missing", "accepted"],
        ["accepted", "failed", "accepted"],
    ]
    (entry,) = lines[2]["late"]
    assert {name: entry[name] for name in ("client", "round", "status", "images")} == {
        "client": 1,
        "round": "1",
        "status": "accepted",
        "images": 8,
    }
    assert entry["up"] > 0
    assert lines[2]["up"] == entry["up"] + sum(each["up"] for each in lines[2]["clients"])
    assert "  client 1: its answer to round 1 came after the end of that round and joined the union" in report(lines[2])
    assert "round 2: client 1: its answer to round 1 came after the end of that round and joined the union" in left_out(lines)

    # The server's second training, written out: eight images of each client, those of the late one with a quarter of the weight.
    sets = [clients.uploads[0, 2], clients.uploads[1, 1], clients.uploads[2, 2]]
    each = torch.tensor([1.0] * 8 + [0.25] * 8 + [1.0] * 8)
    each = each / each.mean()
    labels = torch.zeros(24, CLASSES)
    labels[torch.arange(24), torch.cat([part.labels for part in sets])] = each
    joined = CondensedSet(torch.cat([part.images for part in sets]), labels, data().spec, label_kind="weighted")
    slow = learn(weights(tmp_path / "first"), joined, made.network, made.server, derived_seed(made.seed, "server", 2))
    found = weights(tmp_path / "run")
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in slow.items())


@pytest.mark.parametrize(("staleness", "status"), [(0, "missing"), (1, "missing"), (2, "accepted")])
def test_an_upload_that_is_too_old_is_named_and_not_used(staleness: int, status: str) -> None:
    made = settings(rounds=3, staleness=staleness)
    lines = rounds(made, Clients((1, 2), (1, 3)), {(1, 1): 2})
    (entry,) = lines[3]["late"]
    assert (entry["client"], entry["round"], entry.get("status", "missing")) == (1, "1", status)
    assert lines[2]["late"] == []
    assert ("joined the union" if status == "accepted" else "was not used") in "\n".join(report(lines[3]))


def test_a_newer_upload_takes_the_place_of_a_late_one(tmp_path: Path) -> None:
    clients = Clients()
    lines = rounds(settings(staleness=1), clients, {(1, 1): 1}, tmp_path)
    assert lines[2]["late"][0]["status"] == "unused"
    union = CondensedSet.load(tmp_path / "union.safetensors")
    assert len(union) == 24
    assert torch.allclose(union.images[8:16], clients.uploads[1, 2].images, atol=0.02)


def test_what_comes_late_is_checked_as_what_comes_in_time() -> None:
    clients = Clients((1, 2))

    def hostile(message: Message, context: Context) -> Message:
        reply = clients(message, context)
        if context.node_config["partition-id"] == 1 and "facts" in reply.content and message.metadata.group_id == "1":
            reply.content["facts"] = MetricRecord({"partition-id": 1, "round": 2})  # which it did not see
        return reply

    lines = rounds(settings(staleness=1), hostile, {(1, 1): 1})  # type: ignore[arg-type]
    assert [(each["status"], each["why"][:10]) for each in lines[2]["late"]] == [("refused", "round is 2")]
    assert "came after the end of that round and was refused: round is 2" in "\n".join(report(lines[2]))


def test_weights_that_come_late_are_not_used() -> None:
    made = settings(strategy="fedavg", staleness=1, local={"max_steps": 1})
    lines = rounds(made, Clients((1, 2)), {(1, 1): 1})
    assert [(each["client"], each.get("status")) for each in lines[2]["late"]] == [(1, None)]


def test_one_that_is_late_and_not_asked_again_counts_in_a_round_of_others() -> None:
    """Two of four clients take part in a round; whoever is late in the first is not asked in the second."""
    made = settings(rounds=2, fraction=0.5, quorum=3, staleness=1, partition={"partitioner": "iid", "num_partitions": 4})
    with pytest.raises(InputError, match="quorum is 3; allowed: at most 2, the number of clients that are asked in a round"):
        check_clients(made)
    for seed in range(20):
        made = dataclasses.replace(made, quorum=2, seed=seed)
        asked = [{each["client"] for each in line["clients"]} for line in run_inline(made, data())[1:]]
        if not asked[0] & asked[1]:
            break
    slow = min(asked[0])
    lines = rounds(made, Clients(), {(slow, 1): 1})
    assert lines[1]["note"] == "1 of at least 2 uploads: the model stays as it was, and they wait for the next one"
    assert {each["client"]: each["status"] for each in lines[2]["late"]} == {slow: "accepted", max(asked[0]): "kept"}
    assert lines[2]["note"] == ""
    assert lines[2]["accuracy"] != lines[1]["accuracy"]


# Too few uploads


def test_below_the_quorum_the_model_stays_and_the_uploads_wait(tmp_path: Path) -> None:
    made = settings(quorum=3, staleness=1)
    clients = Clients((2, 1), (0, 2))
    lines = rounds(made, clients, {}, tmp_path)
    assert lines[1]["note"] == "2 of at least 3 uploads: the model stays as it was, and they wait for the next one"
    assert lines[0]["accuracy"] == lines[1]["accuracy"]
    assert [(each["client"], each["status"], each["images"]) for each in lines[2]["late"]] == [(0, "kept", 8)]
    assert "client 0: its upload of round 1, in which too few came, joined the union" in "\n".join(report(lines[2]))
    union = CondensedSet.load(tmp_path / "union.safetensors")
    for place, key in enumerate([(0, 1), (1, 2), (2, 2)]):
        assert torch.allclose(union.images[8 * place : 8 * place + 8], clients.uploads[key].images, atol=0.02)
    lost = rounds(settings(quorum=3), Clients((2, 1), (0, 2)), {})
    assert [line["note"] for line in lost[1:]] == ["2 of at least 3 uploads: the model stays as it was"] * 2
    assert len({line["accuracy"] for line in lost}) == 1


def test_uploads_that_wait_are_there_after_a_stop(tmp_path: Path) -> None:
    made = settings(rounds=3, quorum=3, staleness=2, server={"client_weights": "represented"})
    whole = run_inline(made, data(), tmp_path / "whole", client=Clients((2, 1), (0, 2)))

    class Stopping(Clients):
        def __call__(self, message: Message, context: Context) -> Message:
            if message.metadata.group_id == "2":
                raise KeyboardInterrupt
            return super().__call__(message, context)

    with pytest.raises(KeyboardInterrupt):
        run_inline(made, data(), tmp_path / "stopped", client=Stopping((2, 1)))
    again = run_inline(made, data(), tmp_path / "stopped", client=Clients((0, 2)))
    assert [line["late"] for line in again] == [line["late"] for line in whole]
    assert whole[2]["late"][0]["status"] == "kept"
    states = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert states[0] == states[1]


def test_waiting_uploads_are_tensors_and_back() -> None:
    spec, made = data().spec, settings()
    images = torch.randn((3, *spec.shape), generator=generator(0, "images"))
    first = Accepted(4, CondensedSet(images, torch.tensor([0, 1, 1]), spec), 40, (30, 10, 0, 0), (1, 2, 0, 0), known=True, round=7)
    second = Accepted(6, CondensedSet(images + 1, torch.tensor([2, 2, 3]), spec), 9, round=8)
    for before, after in zip((first, second), overdue.from_state(overdue.to_state([first, second]), made, spec), strict=True):
        assert torch.equal(before.value.images, after.value.images)  # type: ignore[union-attr]
        assert torch.equal(before.value.labels, after.value.labels)  # type: ignore[union-attr]
        assert dataclasses.replace(before, value=None) == dataclasses.replace(after, value=None)  # type: ignore[arg-type]
    assert overdue.usable([first, second], {}, 9, 2) == [first, second]
    assert overdue.usable([first, second], {4}, 9, 2) == [second]
    assert overdue.usable([first, second], {}, 9, 1) == [second]
    assert overdue.factor(first, 9, settings(staleness_weight=0.3)) == pytest.approx(0.09)


def test_a_late_private_upload_is_stated_once_and_one_that_waited_in_its_own_round() -> None:
    late = [{"client": 1, "status": "accepted", "privacy": {"b": 1}}, {"client": 2, "status": "kept", "privacy": None}, {"client": 3}]
    lines = [{"clients": [{"client": 2, "status": "accepted", "privacy": {"a": 1}}]}, {"clients": [], "late": late}]
    assert statements(lines) == {"2": [{"a": 1}], "1": [{"b": 1}]}


# What an image stands for


def shards(made: Settings) -> list[list[int]]:
    return partition_of(data(), made).counts(data().train.labels.numpy(), CLASSES).tolist()


def test_an_image_counts_by_the_real_images_that_it_stands_for(tmp_path: Path) -> None:
    """Written out for clients of very different size: n of the class at the client, by the number it sent."""
    uneven = {"partitioner": "dirichlet", "alpha": 0.3, "num_partitions": 3, "min_partition_size": 2}
    made = settings(rounds=1, partition=uneven, server={"client_weights": "represented"})
    clients = Clients()
    run_inline(made, data(), tmp_path / "run", client=clients)
    held = shards(made)
    sets, each = [clients.uploads[client, 1] for client in range(3)], []
    for client, part in enumerate(sets):
        labels = part.labels.tolist()
        each += [held[client][label] / labels.count(label) for label in labels]
    assert len(set(each)) > 3, "the clients differ"
    labels = torch.zeros(len(each), CLASSES)
    labels[torch.arange(len(each)), torch.cat([part.labels for part in sets])] = torch.tensor(each) * len(each) / sum(each)
    joined = CondensedSet(torch.cat([part.images for part in sets]), labels, data().spec, label_kind="weighted")
    made_network = run_inline(dataclasses.replace(made, rounds=1), data(), tmp_path / "start", client=Clients((0, 1), (1, 1), (2, 1)))
    assert made_network[1]["note"].startswith("no valid answer")
    slow = learn(weights(tmp_path / "start"), joined, made.network, made.server, derived_seed(made.seed, "server", 1))
    found = weights(tmp_path / "run")
    assert all(torch.allclose(found[name], value, atol=1e-5) for name, value in slow.items())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (lambda counts: counts + 1, "allowed: [10, 10, 10, 10]"),
        (lambda counts: counts.astype(np.float32), "counts are float32"),
        (lambda counts: -counts, "counts are int64 (4,); allowed: one whole number from 0"),
        (lambda counts: counts[:2], "counts of 2 classes; allowed: 4"),
        (None, "no arrays 'counts'"),
    ],
)
def test_numbers_of_real_images_are_those_of_the_partition(change: Any, why: str) -> None:
    clients = Clients()

    def client(message: Message, context: Context) -> Message:
        reply = clients(message, context)
        if context.node_config["partition-id"] == 1 and "counts" in reply.content:
            counts = reply.content["counts"]["counts"].numpy()
            kept = {name: record for name, record in reply.content.items() if name != "counts"}
            added = {} if change is None else {"counts": record_of({"counts": change(counts)})}
            return Message(RecordDict({**kept, **added}), reply_to=message)
        return reply

    even = {"partitioner": "pathological", "num_partitions": 3, "num_classes_per_partition": 4}
    line = run_inline(settings(rounds=1, partition=even, server={"client_weights": "represented"}), data(), client=client)[1]
    assert [each["status"] for each in line["clients"]] == ["accepted", "refused", "accepted"]
    assert why in line["clients"][1]["why"]


def test_a_client_of_its_own_images_cannot_say_that_one_stands_for_a_million(tmp_path: Path) -> None:
    """Its count of each class is at most three times the median, and it may not send images of a class that it does not count."""
    clients = Clients()

    def client(message: Message, context: Context, counts: list[int]) -> Message:
        reply = clients(message, context)
        if context.node_config["partition-id"] == 1 and "counts" in reply.content:
            reply.content["counts"] = record_of({"counts": np.array(counts, np.int64)})
            reply.content["facts"] = MetricRecord({**dict(reply.content["facts"]), "own-data": 1})  # type: ignore[dict-item]
        return reply

    even = {"partitioner": "pathological", "num_partitions": 3, "num_classes_per_partition": 4}
    made, found = settings(rounds=1, partition=even, server={"client_weights": "represented"}), []
    for place, counts in enumerate(([10**9] * 4, [30] * 4)):
        run_inline(made, data(), tmp_path / str(place), client=lambda m, c, counts=counts: client(m, c, counts))
        found.append(weights(tmp_path / str(place)))
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())
    line = run_inline(made, data(), client=lambda m, c: client(m, c, [10, 0, 10, 10]))[1]
    assert "images of class 1, and it counts no real image of it" in line["clients"][1]["why"]


def test_only_the_classes_that_were_asked_for_are_counted() -> None:
    clients, seen = Clients(), []

    def client(message: Message, context: Context) -> Message:
        reply = clients.app(message, context)
        if "counts" in reply.content:
            seen.append(reply.content["counts"]["counts"].numpy().tolist())
        return reply

    made = settings(rounds=1, upload={"ipc": 2, "classes": [1, 2]}, server={"client_weights": "represented"})
    line = run_inline(made, data(), client=client)[1]
    assert [each["status"] for each in line["clients"]] == ["accepted"] * 3
    assert seen == [[0, counts[1], counts[2], 0] for counts in shards(made)]


@pytest.mark.parametrize("kind", ["examples", "represented"])
def test_private_clients_do_not_count_their_images(kind: str) -> None:
    with pytest.raises(InputError, match="number of images is private"):
        settings(strategy="feddm", privacy={}, upload={"networks": "fresh"}, server={"client_weights": kind})


def test_a_loss_of_its_own_and_weighted_labels_do_not_go_together() -> None:
    with pytest.raises(InputError, match="images count differently"):
        settings(staleness=1, server={"recipe": {"loss": "kl"}})
