"""Whole runs in process on a toy: what clients send, what bad clients cannot do, and what a stopped run goes on with."""

import gc
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from apps.federated.client_app import client_app
from apps.federated.condense import partition_of
from apps.federated.inline import LocalGrid, run_inline, task_identity
from apps.federated.messages import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict, parts_of, record_of
from apps.federated.server_app import only_writer, report, serve
from apps.federated.settings import WEIGHTS, Settings, from_mapping, to_json
from apps.federated.wire import Limits, decode
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from tests.conftest import toy

from .hostile import KINDS, variant

CLASSES = 4
CARRYING = ("scaffold", "fedavgm", "fedadam", "feddyn")  # strategies whose server keeps something from round to round


def data() -> ImageData:
    return toy(classes=CLASSES, per_class=30)


def settings(**changes: Any) -> Settings:
    base = {
        "network": "ConvNetD1W32",
        "rounds": 2,
        "partition": {"partitioner": "iid", "num_partitions": 3},
        "upload": {"ipc": 2, "settings": {"iterations": 4, "batch_real": 8}},
        "server": {"recipe": {"max_steps": 15, "batch_size": 8, "lr": 0.05, "schedule": "constant", "augmentation": "none"}},
    }
    for name, value in changes.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) and name in base else value
    return from_mapping(base)


def facts(lines: list[dict[str, Any]]) -> list[Any]:
    """Lines without what a clock wrote."""
    return [{**line, "clients": [{k: v for k, v in c.items() if k != "seconds"} for c in line["clients"]]} for line in lines]


class Recorder:
    """The real ClientApp, and every upload it made."""

    def __init__(self) -> None:
        self.app, self.uploads = client_app(data()), {}

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.app(message, context)
        if "upload" in reply.content:
            key = (message.metadata.group_id, context.node_config["partition-id"])
            self.uploads[key] = parts_of(reply.content, "upload")
        return reply


@pytest.mark.parametrize("name", ["feddm", "random", "herding", *WEIGHTS])
def test_every_strategy_learns_and_repeats(name: str) -> None:
    made = settings(strategy=name, rounds=3, local={"lr": 0.05, "batch_size": 8, "epochs": 2})
    first, second = run_inline(made, data()), run_inline(made, data())
    assert facts(first) == facts(second)
    assert [line["round"] for line in first] == [0, 1, 2, 3]
    assert first[-1]["accuracy"] > first[0]["accuracy"] + 20
    assert all(line["dropped"] == 0 for line in first)
    assert facts(run_inline(settings(strategy=name, rounds=1, seed=1), data())) != facts(first)[:2]


def test_bytes_are_those_of_the_messages() -> None:
    recorder = Recorder()
    line = run_inline(settings(rounds=1), data(), client=recorder)[1]
    for client in line["clients"]:
        arrays = sum(len(name) + len(part) for name, part in recorder.uploads["1", client["client"]].items())
        images = client["images"]
        assert images == 2 * CLASSES
        # Three arrays with headers of 128 bytes, pixels and labels of one byte, a grid of two floats; then names and numbers.
        assert arrays == 3 * 128 + images * 64 + images + 8 + len("imageslabelsgrid")
        assert arrays < client["up"] < arrays + 80
        assert client["down"] > 32 * 9 * 4
    assert line["up"] == sum(client["up"] for client in line["clients"])


def test_pixels_labels_and_classes_are_as_asked() -> None:
    recorder = Recorder()
    made = settings(rounds=1, upload={"pixels": "float16", "classes": [1, 2]})
    run_inline(made, data(), client=recorder)
    for parts in recorder.uploads.values():
        uploaded = decode(parts, Limits(data().spec, (1, 2), 2, "float16"))
        assert uploaded.counts == (0, 2, 2, 0)


def test_a_client_sends_only_classes_that_it_holds() -> None:
    recorder = Recorder()
    made = settings(rounds=1, partition={"partitioner": "pathological", "num_partitions": 4, "num_classes_per_partition": 1})
    run_inline(made, data(), client=recorder)
    assert sorted(np.flatnonzero(decode(p, Limits(data().spec, (0, 1, 2, 3), 2)).counts).tolist() for p in recorder.uploads.values()) == [
        [0],
        [1],
        [2],
        [3],
    ]


@pytest.mark.parametrize(("method", "initial"), [("dm", "real"), ("dm", "kmeans"), ("gm", "real"), ("dm", "noise")])
def test_a_class_of_few_images_is_sent_as_so_many(method: str, initial: str) -> None:
    recorder, steps = Recorder(), {"outer_steps": 1, "inner_epochs": 1} if method == "gm" else {}
    upload = {"ipc": 10, "method": method, "settings": {"initial": initial, "iterations": 2, "batch_real": 8, **steps}}
    made = settings(rounds=1, upload=upload, partition={"partitioner": "dirichlet", "alpha": 0.5, "num_partitions": 3})
    run_inline(made, data(), client=recorder)
    held = partition_of(data(), made).counts(data().train.labels.numpy(), CLASSES)
    assert ((held > 0) & (held < 10)).any()
    for (_, client), parts in recorder.uploads.items():
        sent = decode(parts, Limits(data().spec, tuple(range(CLASSES)), 10)).counts
        assert list(sent) == [10 if initial == "noise" and n else min(n, 10) for n in held[client].tolist()]


def test_a_client_without_the_wanted_classes_is_empty_and_not_dropped() -> None:
    made = settings(
        rounds=1, upload={"classes": [1]}, partition={"partitioner": "pathological", "num_partitions": 4, "num_classes_per_partition": 1}
    )
    line = run_inline(made, data())[1]
    assert sorted(client["status"] for client in line["clients"]) == ["accepted", "empty", "empty", "empty"]
    assert line["dropped"] == 0


def test_one_shot_sends_no_weights_down() -> None:
    fresh, received = (run_inline(settings(rounds=1, upload={"networks": n}), data())[1] for n in ("fresh", "received"))
    assert received["down"] - fresh["down"] > 3 * 32 * 9 * 4
    assert fresh["down"] < 3 * 400


def test_any_method_condenses() -> None:
    for method, options in (("gm", {"iterations": 2, "outer_steps": 1, "inner_epochs": 1}), ("datadam", {"iterations": 2})):
        made = settings(rounds=1, upload={"method": method, "settings": {"batch_real": 8, **options}})
        assert run_inline(made, data())[1]["dropped"] == 0


def test_warm_start_begins_where_the_client_ended() -> None:
    recorder = Recorder()
    tiny = {"iterations": 1, "lr_img": 1e-6, "batch_real": 8}
    run_inline(settings(upload={"warm_start": True, "pixels": "float32", "settings": tiny}), data(), client=recorder)
    limits = Limits(data().spec, tuple(range(CLASSES)), 2, "float32")
    for client in range(3):
        first, second = (decode(recorder.uploads[r, client], limits).images for r in ("1", "2"))
        assert float((first - second).abs().max()) < 1e-3


def test_part_of_the_clients_take_part_and_the_draw_repeats() -> None:
    made = settings(rounds=4, fraction=0.34)
    lines = run_inline(made, data())
    chosen = [[client["client"] for client in line["clients"]] for line in lines[1:]]
    assert all(len(each) == 1 for each in chosen)
    assert len({each[0] for each in chosen}) > 1
    assert chosen == [[c["client"] for c in line["clients"]] for line in run_inline(made, data())[1:]]


# Bad clients


def broken(kind: str) -> Any:
    """A ClientApp whose client 1 misbehaves; the others are honest."""
    app = client_app(data())

    def client(message: Message, context: Context) -> Message | None:
        if message.metadata.message_type == "query.who" or context.node_config["partition-id"] != 1:
            return app(message, context)
        if kind == "crash":
            raise RuntimeError("no memory\nleft")
        if kind == "silent":
            return None
        reply = app(message, context)
        if kind == "nan":
            reply.content["upload"] = record_of({**_arrays(reply), "grid": np.full((1, 2), np.nan, np.float32)})
        elif kind == "no arrays":
            return Message(RecordDict({"upload": MetricRecord({"a": 1})}), reply_to=message)
        elif kind == "nothing":
            return Message(RecordDict(), reply_to=message)
        elif kind in ("seconds", "years"):
            claimed = -1e9 if kind == "seconds" else 1e9
            reply.content["facts"] = MetricRecord({**dict(reply.content["facts"]), "seconds": claimed})  # type: ignore[dict-item]
        return reply

    return client


def _arrays(reply: Message) -> dict[str, np.ndarray]:
    return {name: array.numpy() for name, array in reply.content["upload"].items()}


@pytest.mark.parametrize(
    ("kind", "status", "why"),
    [
        ("crash", "failed", "left"),
        ("silent", "missing", "no answer in time"),
        ("nan", "refused", "grid is"),
        ("no arrays", "refused", "no arrays 'upload'"),
        ("nothing", "refused", "the reply holds no upload"),
        ("seconds", "refused", "seconds is -1"),
        ("years", "refused", "as the round is no older"),
    ],
)
def test_a_bad_client_loses_its_upload_and_is_named(kind: str, status: str, why: str) -> None:
    lines = run_inline(settings(), data(), client=broken(kind))
    for line in lines[1:]:
        found = {client["client"]: client for client in line["clients"]}
        assert found[1]["status"] == status
        assert why in found[1]["why"]
        assert {found[0]["status"], found[2]["status"]} == {"accepted"}
        assert line["dropped"] == (status != "empty")
    good = run_inline(settings(), data(), client=broken("silent"))
    assert [line["accuracy"] for line in lines] == [line["accuracy"] for line in good], "only the others' data count"


@pytest.mark.parametrize("name", ["feddm", "fedavg", "scaffold", "fednova"])
def test_with_no_valid_answer_the_model_stays_and_the_round_says_so(name: str) -> None:
    app = client_app(data())

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.who":
            return app(message, context)
        raise RuntimeError("out of order")

    lines = run_inline(settings(strategy=name), data(), client=client)
    assert len({line["accuracy"] for line in lines}) == 1
    assert [line["note"] for line in lines[1:]] == ["no valid answer: the model stays as it was"] * 2
    assert [line["dropped"] for line in lines[1:]] == [3, 3]


def test_ten_kinds_of_hostile_uploads_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every kind in 100 variants, three clients a round: no variant gets in, no round stops, the weights stay as they were."""
    app, turn = client_app(data()), iter([(kind, seed) for kind in KINDS for seed in range(100)])
    made = settings(rounds=len(KINDS) * 100 // 3, upload={"classes": [0, 1, 2]})
    limits = Limits(data().spec, (0, 1, 2), 2)

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.who":
            return app(message, context)
        parts = variant(*next(turn), limits)
        record = ArrayRecord()
        for name, part in parts.items():
            record[name] = Array("uint8", (1,), "numpy.ndarray", part)
        return Message(RecordDict({"upload": record}), reply_to=message)

    monkeypatch.setattr(
        "apps.federated.server_app.accuracy", lambda network, data, split: float(sum(p.detach().sum() for p in network.parameters()))
    )
    lines = run_inline(made, data(), client=client)
    assert len(lines) == made.rounds + 1
    assert len({line["accuracy"] for line in lines}) == 1, "the weights' sum is the same after every round"
    assert all(line["dropped"] == 3 for line in lines[1:])
    assert all("\n" not in client["why"] for line in lines for client in line["clients"])


@pytest.mark.parametrize(
    "claim", [{"num-examples": -5, "steps": 3}, {"num-examples": 10**12, "steps": 3}, {"num-examples": 5, "steps": 0}, {"steps": 3}]
)
@pytest.mark.parametrize("name", ["fedavg", "fednova"])
def test_claimed_numbers_are_checked(name: str, claim: dict[str, int]) -> None:
    app = client_app(data())

    def client(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != "query.who" and context.node_config["partition-id"] == 0:
            reply.content["facts"] = MetricRecord(claim)
        return reply

    line = run_inline(settings(strategy=name, rounds=1), data(), client=client)[1]
    assert [c["status"] for c in line["clients"]] == ["refused", "accepted", "accepted"]


def test_two_nodes_with_one_number_and_foreign_numbers_are_not_let_in() -> None:
    app = client_app(data())

    def client(message: Message, context: Context) -> Message:
        if message.metadata.message_type == "query.who":
            number = {0: 0, 1: 1, 2: 1, 3: 99}[context.node_config["partition-id"]]
            return Message(RecordDict({"facts": MetricRecord({"partition-id": number})}), reply_to=message)
        return app(message, context)

    line = run_inline(settings(rounds=1, partition={"num_partitions": 4}), data(), client=client)[1]
    assert [(c["client"], c["status"]) for c in line["clients"]] == [(0, "accepted"), (1, "contested"), (2, "absent"), (3, "absent")]
    assert [(each["node"], each["why"][:18]) for each in line["unknown"]] == [("1003", "partition-id is 99")]
    assert line["dropped"] == 3
    said = "\n".join(report(line))
    for part in ("client 1: contested; 2 nodes say this number", "client 2: absent; no node", "node 1003: left out; partition-id is 99"):
        assert part in said


def test_a_round_without_enough_clients_leaves_the_model_and_too_few_at_the_start_are_an_error() -> None:
    app, calls = client_app(data()), [0]

    def client(message: Message, context: Context) -> Message:
        calls[0] += 1
        return app(message, context)

    class Shrinking(LocalGrid):
        def get_node_ids(self) -> list[int]:
            return list(self.contexts)[: 3 if calls[0] < 6 else 1]

    made = settings(rounds=3, min_clients=2)
    with task_identity():
        lines = serve(Shrinking(client, {"settings": to_json(made)}, 3), made, data())
    assert [line["note"][:8] for line in lines] == ["", "", "1 of at ", "1 of at "]
    assert [c["status"] for c in lines[2]["clients"]] == ["absent", "absent"]
    assert lines[1]["accuracy"] == lines[3]["accuracy"]
    with pytest.raises(InputError, match="1 of at least 2 clients came"), task_identity():
        serve(Shrinking(client, {"settings": to_json(made)}, 3), made, data())
    with pytest.raises(InputError, match="min_clients is 4; allowed: at most 3"):
        run_inline(settings(min_clients=4), data())


def test_one_that_did_not_answer_and_then_does_came_back() -> None:
    app = client_app(data())

    def client(message: Message, context: Context) -> Message | None:
        silent = context.node_config["partition-id"] == 1 and message.metadata.group_id in ("2", "3")
        return None if silent else app(message, context)

    lines = run_inline(settings(rounds=5), data(), client=client)
    notes = [line["clients"][1]["note"] for line in lines[1:]]
    assert notes == ["", "", "", "came back: it was not there from round 2 on", ""]


def test_two_servers_do_not_write_one_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("apps.federated.server_app.LOCK_SECONDS", 0.3)
    with only_writer(tmp_path), pytest.raises(InputError, match="another ServerApp writes its rounds there"):
        run_inline(settings(rounds=1), data(), tmp_path)
    assert len(run_inline(settings(rounds=1), data(), tmp_path)) == 2


# Going on after a stop


@pytest.mark.parametrize(
    "changes", [{}, *({"strategy": name} for name in CARRYING), {"upload": {"warm_start": True}}, {"server": {"memory": 2}}]
)
def test_a_run_that_stops_anywhere_goes_on_to_the_same_rounds(changes: dict[str, Any], tmp_path: Path) -> None:
    made = settings(rounds=4, **changes)
    whole = run_inline(made, data(), tmp_path / "whole")
    calls = 0
    app = client_app(data())

    def stops(limit: int) -> Any:
        def client(message: Message, context: Context) -> Message:
            nonlocal calls
            calls += 1
            if calls == limit:
                raise KeyboardInterrupt
            return app(message, context)

        return client

    for limit in (6, 8, 11):  # in round 1, 2 and 3, counted with the three first questions
        calls = 0
        with pytest.raises(KeyboardInterrupt):
            run_inline(made, data(), tmp_path / "stopped", client=stops(limit))
    again = run_inline(made, data(), tmp_path / "stopped")
    assert facts(again) == facts(whole)
    states = [(tmp_path / name / "checkpoint.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert states[0] == states[1]
    with pytest.raises(InputError, match="other settings"):
        run_inline(settings(rounds=4, seed=9), data(), tmp_path / "stopped")


def test_memory_learns_from_earlier_rounds_and_nothing_else_grows(tmp_path: Path) -> None:
    for memory in (0, 2):
        run_inline(settings(rounds=3, server={"memory": memory}), data(), tmp_path / f"memory{memory}")
    plain, kept = (safetensors.torch.load_file(tmp_path / f"memory{m}" / "checkpoint.safetensors") for m in (0, 2))
    assert not torch.equal(plain["weights/head.weight"], kept["weights/head.weight"])
    assert sum(name.startswith("rule/memory") for name in kept) == 4

    source, held = toy(classes=CLASSES, per_class=20, side=16), {}
    app = client_app(source)

    def client(message: Message, context: Context) -> Message:
        """The real one, which also counts what torch's tensors hold, and what Python and numpy do, when rounds 4 and 7 come."""
        if message.metadata.group_id in ("4", "7") and message.metadata.group_id not in held:
            gc.collect()
            tensors = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in gc.get_objects() if type(t) is torch.Tensor}
            held[message.metadata.group_id] = sum(tensors.values()) + tracemalloc.get_traced_memory()[0]
        return app(message, context)

    tracemalloc.start()
    run_inline(settings(rounds=7, strategy="random", upload={"ipc": 20}), source, tmp_path / "grows", client=client)
    tracemalloc.stop()
    images = 3 * 20 * CLASSES * 16 * 16  # bytes of the pixels that a round brings
    assert held["7"] - held["4"] < images, "three rounds later: their lines, and not one round's images"


def test_the_union_of_the_last_round_is_kept(tmp_path: Path) -> None:
    lines = run_inline(settings(), data(), tmp_path)
    assert len(CondensedSet.load(tmp_path / "union.safetensors")) == lines[-1]["images"]


def test_client_code_leaves_threads_as_they_were() -> None:
    before = torch.get_num_threads()
    run_inline(settings(rounds=1), data())
    assert torch.get_num_threads() == before


def test_a_client_whose_condensing_diverges_is_dropped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    wild = settings(rounds=1, upload={"settings": {"iterations": 4, "batch_real": 8, "lr_img": 1e30}})
    home = sys.modules["apps.federated.client_answers"]
    real = home.upload

    def upload(data: ImageData, made: Settings, server_round: int, client: int, *rest: Any) -> Any:
        return real(data, wild if client == 1 else made, server_round, client, *rest)

    monkeypatch.setattr(home, "upload", upload)
    line = run_inline(settings(rounds=1), data())[1]
    assert line["dropped"] == 1
    (failed,) = [client for client in line["clients"] if client["status"] != "accepted"]
    assert failed["client"] == 1
    assert "dm diverged at step " in failed["why"]
    assert "lr_img 1e+30" in failed["why"]


def test_the_memory_of_decoded_uploads_is_decoded_after_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of earlier rounds are stored images; their form goes with the settings."""
    upload = {"ipc": 2, "settings": {"iterations": 2, "batch_real": 8, "decode": "formation:2"}}
    made = settings(rounds=3, server={"memory": 2}, upload=upload)
    whole = run_inline(made, data(), tmp_path / "whole")
    home = sys.modules["apps.federated.image_rule"]
    real, calls = home.learn, []

    def learn(*arguments: Any) -> Any:
        calls.append(arguments[1])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(home, "learn", learn)
    with pytest.raises(KeyboardInterrupt):
        run_inline(made, data(), tmp_path / "stopped")
    assert facts(run_inline(made, data(), tmp_path / "stopped")) == facts(whole)
    assert all(part.decode is not None for part in calls)
