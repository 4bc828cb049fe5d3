"""Private clients: what they send, what they say about it, and what a second question costs."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from apps.federated.client_app import client_app
from apps.federated.condense import partition_of, shard, upload
from apps.federated.inline import run_inline
from apps.federated.messages import MAX_STATEMENT, ConfigRecord, Context, Message, RecordDict
from apps.federated.settings import Settings, from_mapping, statistics_known
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import accuracy
from distill.networks import create
from distill.randomness import generator
from distill.records import read_json
from tests.conftest import toy_arrays

CLASSES = 4
PRIVATE = {
    "statistics": "apps.privacy.private_statistics:PrivateStatistics",
    "start": "apps.privacy.private_start:private_kmeans",
    "networks": "apps.privacy.networks:drawn_once",
    "epsilon": 20.0,
    "delta": 1e-3,
    "population": 60,
    "releases": 2,
    "start_releases": 2,
    "clip": 1.0,
}


def data() -> ImageData:
    train, test = (toy_arrays(seed, classes=CLASSES, per_class=60) for seed in (0, 1000))
    return ImageData.from_arrays("toy", *train, *test, classes=tuple(map(str, range(CLASSES))), mean=(0.5,), std=(0.5,))


def settings(more: dict[str, Any] | None = None, **changes: Any) -> Settings:
    base: dict[str, Any] = {
        "network": "ConvNetD1W32",
        "rounds": 1,
        "partition": {"partitioner": "pathological", "num_partitions": 4, "num_classes_per_partition": 1},
        "upload": {"ipc": 1, "classes": [0, 2], "networks": "fresh", "settings": {"iterations": 12}},
        "server": {"recipe": {"max_steps": 40, "batch_size": 8, "lr": 0.01, "schedule": "constant", "augmentation": "none"}},
        "privacy": PRIVATE | (more or {}),
    }
    for name, value in changes.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) and name in base else value
    return from_mapping(base)


def test_a_private_client_sends_every_class_that_was_asked_for_and_states_its_guarantee(tmp_path: Path) -> None:
    """Each client holds one class; which one must not show in what it sends."""
    line = run_inline(settings(), data(), tmp_path)[1]
    assert [client["status"] for client in line["clients"]] == ["accepted"] * 4
    assert [client["images"] for client in line["clients"]] == [2] * 4
    union = CondensedSet.load(tmp_path / "union.safetensors")
    assert union.counts == (4, 0, 4, 0)
    for client, part in zip(line["clients"], union.provenance.config["parts"], strict=True):
        stated = client["privacy"]
        assert 0 < stated["epsilon"] <= PRIVATE["epsilon"]
        assert stated["releases"] == 4
        assert stated["insecure"] is False
        assert part["dp"] == stated


def test_accuracy_is_judged_on_the_classes_that_were_asked_for(tmp_path: Path) -> None:
    held = {"partitioner": "iid", "num_partitions": 2}
    line = run_inline(settings(privacy=None, partition=held, upload={"ipc": 4, "settings": {"iterations": 2}}), data(), tmp_path)[-1]
    weights = safetensors.torch.load_file(tmp_path / "checkpoint.safetensors")
    network = create("ConvNetD1W32", data().spec, generator(0, "any"))
    network.load_state_dict({name.removeprefix("weights/"): value for name, value in weights.items() if name.startswith("weights/")})
    asked, every = data().subset([0, 2]), data()
    assert line["accuracy"] == accuracy(network, asked)
    assert line["accuracy"] > accuracy(network, every), "images of classes that nobody sent are not counted as wrong"


def test_a_client_that_is_asked_again_says_the_same_and_pays_once(tmp_path: Path) -> None:
    made, mine = settings(), shard(data(), partition_of(data(), settings()), 1)
    first = upload(mine, made, 1, 1, ledger=tmp_path / "kept")
    again = upload(mine, made, 1, 1, ledger=tmp_path / "kept")
    assert torch.equal(first.images, again.images)
    assert first.provenance.dp == again.provenance.dp
    assert sum(times for _, _, times in read_json(tmp_path / "kept" / "account.json")["history"]) == 4
    assert not torch.equal(first.images, upload(mine, made, 1, 1, ledger=tmp_path / "other").images), "noise is never the same twice"


def test_the_inline_engine_keeps_each_clients_releases(tmp_path: Path) -> None:
    """A server that lost its round asks again: the same uploads, and no client's account grew."""
    run_inline(settings(), data(), tmp_path)
    union = CondensedSet.load(tmp_path / "union.safetensors")
    assert sorted(path.name for path in (tmp_path / "releases").iterdir()) == [f"client-{k}-round-1" for k in range(4)]
    for path in (tmp_path / "checkpoint.safetensors", tmp_path / "rounds.jsonl", tmp_path / "union.safetensors"):
        path.unlink()
    line = run_inline(settings(), data(), tmp_path)[1]
    assert torch.equal(union.images, CondensedSet.load(tmp_path / "union.safetensors").images)
    assert {client["privacy"]["releases"] for client in line["clients"]} == {4}


def test_clients_of_other_processes_keep_their_releases_where_their_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISTILL_RELEASES", str(tmp_path / "kept"))
    unions = []
    for name in ("first", "again"):
        run_inline(settings(), data(), tmp_path / name, client_app(data()))
        unions.append(CondensedSet.load(tmp_path / name / "union.safetensors"))
    assert torch.equal(unions[0].images, unions[1].images)
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [f"client-{k}-round-1" for k in range(4)]


class Saying:
    """The real client, with another statement on its upload."""

    def __init__(self, statement: str | None) -> None:
        self.app, self.statement = client_app(data()), statement

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.app(message, context)
        if "upload" not in reply.content:
            return reply
        content = RecordDict({key: value for key, value in reply.content.items() if key != "privacy"})
        if self.statement is not None:
            content["privacy"] = ConfigRecord({"statement": self.statement})
        return Message(content, reply_to=message)


@pytest.mark.parametrize("text", [None, " ", "[1]", "{", '{"epsilon": NaN}', "[" * 100_000, json.dumps({"a": "x" * MAX_STATEMENT})])
def test_an_upload_without_a_readable_statement_is_refused(text: str | None) -> None:
    line = run_inline(settings(), data(), client=Saying(text))[1]
    assert {client["status"] for client in line["clients"]} == {"refused"}
    reason = (
        "bytes; allowed: at most" if text and len(text) > 2 * MAX_STATEMENT else "privacy statement"
    )  # the size of a reply is checked first
    assert all(reason in client["why"] for client in line["clients"])


@pytest.mark.parametrize(
    ("privacy", "changes", "text"),
    [
        ({}, {"server": {"client_weights": "examples"}}, "number of images is private"),
        ({}, {"upload": {"networks": "received"}}, 'upload.networks = "fresh"'),
        ({"releases": None}, {}, "privacy.releases"),
        ({"start": "os:system"}, {}, "import path"),
        ({"networks": "random:choice"}, {}, "import path"),
        ({}, {"upload": {"warm_start": True}}, "warm_start"),
    ],
)
def test_what_would_give_the_shard_away_is_refused(privacy: dict[str, Any], changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        settings(privacy, **changes)


@pytest.mark.parametrize("key", ["epsilom", "ledger", "classes"])
def test_keywords_of_the_statistics_are_known_before_any_client_runs(key: str) -> None:
    with pytest.raises(InputError, match="is not known"):
        statistics_known(settings({key: 1.0}))
    assert statistics_known(settings()).__name__ == "PrivateStatistics"
    with pytest.raises(InputError, match="leave start out"):
        statistics_known(dataclasses.replace(settings(), privacy={**PRIVATE, "start": "apps.privacy.private_start:nothing"}))
