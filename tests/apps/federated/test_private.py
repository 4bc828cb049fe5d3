"""Private clients: what they send, what they say about it, and what a second question costs."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from PIL import Image

from apps.federated.client_app import client_app
from apps.federated.client_privacy import ClientPrivacy, private_upload
from apps.federated.condense import partition_of, shard
from apps.federated.inline import run_inline
from apps.federated.messages import MAX_STATEMENT, ConfigRecord, Context, Message, RecordDict
from apps.federated.settings import Settings, from_mapping
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.evaluation import accuracy
from distill.networks import create
from distill.randomness import generator
from distill.records import read_json
from scenarios.federated.node import check_statistics, checked, of_study, read, written
from tests.conftest import toy_arrays

CLASSES = 4
PRIVATE: dict[str, Any] = {
    "start": "kmeans",
    "networks": "drawn_once",
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


def settings(**changes: Any) -> Settings:
    base: dict[str, Any] = {
        "network": "ConvNetD1W32",
        "rounds": 1,
        "partition": {"partitioner": "pathological", "num_partitions": 4, "num_classes_per_partition": 1},
        "upload": {"ipc": 1, "classes": [0, 2], "networks": "fresh", "settings": {"iterations": 12}},
        "server": {"recipe": {"max_steps": 40, "batch_size": 8, "lr": 0.01, "schedule": "constant", "augmentation": "none"}},
        "privacy": {},
    }
    for name, value in changes.items():
        base[name] = {**base[name], **value} if isinstance(value, dict) and name in base else value
    return from_mapping(base)


def privacy(ledger: Path, made: Settings, **changes: Any) -> ClientPrivacy:
    """What clients of a study with these settings give."""
    return of_study({**PRIVATE, **changes}, made, ledger, "", "test")[1]


def test_a_private_client_sends_every_class_that_was_asked_for_and_states_its_guarantee(tmp_path: Path) -> None:
    """Each client holds one class; which one must not show in what it sends."""
    line = run_inline(settings(), data(), tmp_path, privacy=privacy(tmp_path / "kept", settings()))[1]
    assert [client["status"] for client in line["clients"]] == ["accepted"] * 4
    assert [client["images"] for client in line["clients"]] == [2] * 4
    assert len({client["up"] for client in line["clients"]}) == 1
    assert {client["seconds"] for client in line["clients"]} == {None}
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
    kept, other = (privacy(tmp_path / name, made) for name in ("kept", "other"))
    first, again = (private_upload(kept, 20.0, mine, made, 1, 1, mine.spec) for _ in range(2))
    assert torch.equal(first.images, again.images)
    assert first.provenance.dp == again.provenance.dp
    (place,) = (path for path in (tmp_path / "kept/client-1").iterdir() if path.is_dir())
    assert sum(times for _, _, times in read_json(place / "account.json")["history"]) == 4
    assert read_json(tmp_path / "kept/client-1/account.json")["granted"] == {place.name: [20.0, 1e-3]}
    assert not torch.equal(first.images, private_upload(other, 20.0, mine, made, 1, 1, mine.spec).images), "noise is never the same twice"


def test_a_server_that_lost_its_round_asks_again_and_no_account_grows(tmp_path: Path) -> None:
    mine = privacy(tmp_path / "kept", settings())
    run_inline(settings(), data(), tmp_path / "run", privacy=mine)
    union = CondensedSet.load(tmp_path / "run/union.safetensors")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == [f"client-{k}" for k in range(4)]
    line = run_inline(settings(), data(), tmp_path / "again", privacy=mine)[1]
    assert torch.equal(union.images, CondensedSet.load(tmp_path / "again/union.safetensors").images)
    assert {client["privacy"]["releases"] for client in line["clients"]} == {4}


STATEMENTS = (None, " ", "[1]", "{", '{"epsilon": NaN}', "[" * 15_000, "[" * 100_000, json.dumps({"a": "x" * MAX_STATEMENT}))


class Saying:
    """The real client, with another statement on its upload: of `STATEMENTS` the one at its number, after ``first``."""

    def __init__(self, first: int, mine: ClientPrivacy) -> None:
        self.app, self.first = client_app(data(), lambda context: mine), first

    def __call__(self, message: Message, context: Context) -> Message:
        reply = self.app(message, context)
        if reply.has_error() or "upload" not in reply.content:
            return reply
        content = RecordDict({key: value for key, value in reply.content.items() if key != "privacy"})
        statement = STATEMENTS[self.first + int(context.node_config["partition-id"])]
        if statement is not None:
            content["privacy"] = ConfigRecord({"statement": statement})
        return Message(content, reply_to=message)


def test_an_upload_without_a_readable_statement_is_refused(tmp_path: Path) -> None:
    mine = privacy(tmp_path, settings())
    lines = [run_inline(settings(), data(), client=Saying(first, mine))[1] for first in (0, 4)]
    clients = [client for line in lines for client in line["clients"]]
    assert [client["status"] for client in clients] == ["refused"] * len(STATEMENTS)
    assert all("privacy statement" in client["why"] or "bytes" in client["why"] for client in clients)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"server": {"client_weights": "examples"}}, "number of images is private"),
        ({"upload": {"networks": "received"}}, 'upload.networks = "fresh"'),
        ({"upload": {"warm_start": True}}, "warm_start"),
        ({"strategy": "random"}, "no private form"),
        ({"privacy": {"statistics": "os:system"}}, "'statistics' is not known"),
    ],
)
def test_what_would_give_the_shard_away_is_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        settings(**changes)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"epsilom": 1.0}, "is not known"),
        ({"ledger": "here"}, "is not known"),
        ({"classes": [1]}, "is not known"),
        ({"start": "os:system"}, "'os:system' is not known"),
        ({"networks": "random:choice"}, "'random:choice' is not known"),
        ({"statistics": "os:system"}, "'os:system' is not known"),
        ({"releases": None}, "releases"),
        ({"start_releases": 1}, "start_releases of 2"),
        ({"epsilon": 0.0}, "above 0"),
    ],
)
def test_the_clients_own_table_is_checked_before_any_client_runs(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text):
        checked({**PRIVATE, **changes}, "test.toml: [privacy]")


def test_long_and_short_names_are_one_study_and_a_written_file_is_read_back(tmp_path: Path) -> None:
    long = {**PRIVATE, "start": "apps.privacy.private_start:private_kmeans", "networks": "apps.privacy.networks:drawn_once"}
    assert checked(PRIVATE, "test") == checked(long, "test")
    file, made = of_study(PRIVATE, settings(), tmp_path / 'a "place" é\\b', "root", "test")
    (tmp_path / "file.toml").write_text(written(file), encoding="utf-8")
    again = read(tmp_path / "file.toml")
    names = ("epsilon", "delta", "uploads", "ledger", "start", "classes", "methods", "ipc", "iterations", "data", "data_root")
    assert [getattr(again, name) for name in names] == [getattr(made, name) for name in names]
    (tmp_path / "wrong.toml").write_text('epsilon = 1.0\nepsilom = 1.0\nledger = "x"\n')
    with pytest.raises(InputError, match="epsilom"):
        read(tmp_path / "wrong.toml")


def test_the_nodes_file_of_the_page_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs/federated.md").read_text(encoding="utf-8")
    (text,) = (part for part in page.split("```") if part.startswith("text\nepsilon"))
    (tmp_path / "privacy.toml").write_text(text.removeprefix("text\n"))
    made = read(tmp_path / "privacy.toml")
    assert (made.epsilon, made.uploads, made.data, made.classes) == (4.0, 2, None, None)


def test_a_study_whose_clients_would_fail_says_why_before_they_do() -> None:
    computed = ImageData.from_arrays("mine", *toy_arrays(0, classes=CLASSES), *toy_arrays(1, classes=CLASSES))
    with pytest.raises(InputError, match="was computed from its images"):
        check_statistics(PRIVATE, settings(), computed)
    with pytest.raises(InputError, match="no publicly known size"):
        check_statistics({"epsilon": 1.0}, settings(), data())
    check_statistics(PRIVATE, settings(), data())


POOL: dict[str, Any] = {"pool_networks": 1, "pool_epochs": 1, "pool_batch": 12, "pool_draws": 2, "calibration": 0.1, "compile": "off"}


def test_a_private_clients_experts_get_the_share_that_its_file_names(tmp_path: Path) -> None:
    """Start, experts and means are within the upload's epsilon; a larger share leaves the experts less noise. Asked again, nothing is
    trained again."""
    made = settings(upload={"method": "ncfm", "settings": {"iterations": 4, "frequencies": 8, "decode": "none", **POOL}})
    mine, noise = shard(data(), partition_of(data(), made), 1), {}
    for share in (0.1, 0.6):
        kept = privacy(tmp_path / f"{share}", made, experts_share=share, experts_clip=2.0)
        first, again = (private_upload(kept, 20.0, mine, made, 1, 1, mine.spec) for _ in range(2))
        stated = first.provenance.dp or {}
        assert torch.equal(first.images, again.images)
        assert stated == again.provenance.dp
        assert stated["experts"] == 60 // 12
        assert stated["releases"] == 5 + len(list((tmp_path / f"{share}").rglob("release-*.safetensors")))
        assert 0 < stated["epsilon"] <= 20.0
        (account,) = (tmp_path / f"{share}").rglob("round-1-*/account.json")
        saved = read_json(account)
        noise[share] = saved["experts"][2]
        assert saved["facts"]["experts"] == [share, 2.0]
        assert len(list(account.parent.glob("expert-*.safetensors"))) == 1
    assert noise[0.6] < noise[0.1]


def test_a_nodes_public_experts_cost_nothing_and_are_stated(tmp_path: Path) -> None:
    made = settings(upload={"method": "ncfm", "settings": {"iterations": 2, "frequencies": 8, "decode": "none", **POOL}})
    images, labels = toy_arrays(7, classes=CLASSES, per_class=8)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = tmp_path / f"public/{'test' if number % 4 == 0 else 'train'}/{label}/{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[..., 0]).save(path)
    mine = shard(data(), partition_of(data(), made), 1)
    public = {key: value for key, value in PRIVATE.items() if key not in ("networks", "releases")}
    public |= {"public_experts": f"folder:{tmp_path}/public"}
    file, given = of_study(public, made, tmp_path / "kept", "", "test")
    (tmp_path / "node.toml").write_text(written(file))
    assert read(tmp_path / "node.toml").statistics.args[0].public_experts == public["public_experts"]  # type: ignore[attr-defined]
    check_statistics(public, made, data(), "")
    stated = private_upload(given, 20.0, mine, made, 1, 1, mine.spec).provenance.dp or {}
    assert "public" in stated["public_experts"]
    assert "experts" not in stated  # no release of the account is theirs
    other = {**public, "public_experts": "digits"}
    with pytest.raises(InputError, match="public_experts: 'digits' has 10 classes"):
        check_statistics(other, made, data(), "")


def test_experts_of_a_nodes_file_are_checked_and_handed_on(tmp_path: Path) -> None:
    made = settings()
    for wrong in ({"experts_share": 1.0}, {"experts_share": 0.0}, {"experts_clip": 0.0}):
        with pytest.raises(InputError, match=next(iter(wrong))):
            checked({**PRIVATE, **wrong}, "test")
    file, _ = of_study({**PRIVATE, "experts_share": 0.4}, made, tmp_path / "kept", "", "test")
    (tmp_path / "node.toml").write_text(written(file))
    assert read(tmp_path / "node.toml").statistics.args[0].experts_share == 0.4  # type: ignore[attr-defined]
