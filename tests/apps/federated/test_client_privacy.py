"""A server that tries to lower a client's privacy, and what a private client gives away where it refuses or fails: nothing."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from apps.federated.client_app import client_app
from apps.federated.client_privacy import ClientPrivacy, private_upload
from apps.federated.condense import shard
from apps.federated.inline import FIRST_NODE, task_identity
from apps.federated.messages import ConfigRecord, Context, Message, RecordDict, parts_of, record_of, size
from apps.federated.partition import Partition
from apps.federated.settings import from_json, to_json
from apps.federated.silence import LOG, SILENT
from apps.federated.wire import Limits, decode, encode_weights
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from distill.records import read_json
from distill.spec import DataSpec
from scenarios.federated.node import of_node, read
from tests.apps.federated.test_private import data, privacy, settings

SPEC = data().spec
REASON = f"InputError: {SILENT}"


def asked(
    app: Callable[[Message, Context], Message],
    text: str | dict[str, Any],
    number: int = 1,
    spec: dict[str, Any] | None = None,
    records: dict[str, Any] | None = None,
    action: str = "train.condense",
    node: dict[str, Any] | None = None,
) -> Message:
    """The answer of client 1 to a server's run config: one text, or a table that becomes one."""
    config = {"settings": text if isinstance(text, str) else json.dumps(text), "data-root": "/nowhere"}
    ask = ConfigRecord({"round": number, "spec": json.dumps(spec or dict(vars(SPEC)), default=str)})
    content = RecordDict({"ask": ask, **(records or {})})
    context = Context(1, FIRST_NODE, {"partition-id": 1, "num-partitions": 4, **(node or {})}, RecordDict(), config)
    with task_identity():
        return app(Message(content, dst_node_id=FIRST_NODE, message_type=action), context)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != LOG}


BASE: dict[str, Any] = json.loads(to_json(settings()))


def changed(**changes: Any) -> dict[str, Any]:
    """The agreed text with other values: dotted names as ``table__key``."""
    found = json.loads(json.dumps(BASE))
    for name, value in changes.items():
        table, _, key = name.rpartition("__")
        (found[table] if table else found)[key] = value
    return found


PLANTED = encode_weights(create("ConvNetD1W32", SPEC, generator(0, "planted")).state_dict())
STATISTICS = "apps.privacy.private_statistics:PrivateStatistics"
HOSTILE: dict[str, dict[str, Any]] = {
    "no privacy": {"text": changed(privacy=None)},
    "a seed for the noise": {"text": changed(privacy={"insecure_seed": 0})},
    "the old form with a seed": {"text": changed(privacy={"statistics": STATISTICS, "epsilon": 1.0, "insecure_seed": 0})},
    "a large epsilon": {"text": changed(privacy={"epsilon": 1e9})},
    "an epsilon a little above": {"text": changed(privacy={"epsilon": 20.001})},
    "an epsilon that is no number": {"text": json.dumps(changed(privacy={"epsilon": 0.0})).replace('"epsilon": 0.0', '"epsilon": NaN')},
    "an infinite epsilon": {"text": json.dumps(changed(privacy={"epsilon": 7.0})).replace('"epsilon": 7.0', '"epsilon": 1e999')},
    "a negative epsilon": {"text": changed(privacy={"epsilon": -1.0})},
    "privacy that is a text": {"text": changed(privacy="yes")},
    "a delta": {"text": changed(privacy={"epsilon": 1.0, "delta": 0.5})},
    "a population": {"text": changed(privacy={"epsilon": 1.0, "population": 10**9})},
    "a clip": {"text": changed(privacy={"epsilon": 1.0, "clip": 1e9})},
    "many releases": {"text": changed(privacy={"epsilon": 1.0, "releases": 10**6})},
    "many uploads": {"text": changed(privacy={"epsilon": 1.0, "uploads": 10**6})},
    "another ledger": {"text": changed(privacy={"epsilon": 1.0, "ledger": "/tmp/elsewhere"})},
    "other statistics": {"text": changed(privacy={"epsilon": 1.0, "statistics": "distill.statistics:ExactStatistics"})},
    "a start to import": {"text": changed(privacy={"epsilon": 1.0, "start": "os:system"})},
    "networks to import": {"text": changed(privacy={"epsilon": 1.0, "networks": "builtins:eval"})},
    "a public start": {"text": changed(privacy={"epsilon": 1.0, "public_start": "mine"})},
    "one class of those that are given": {"text": changed(upload__classes=[0])},
    "another class": {"text": changed(upload__classes=[0, 1])},
    "all classes": {"text": changed(upload__classes=None)},
    "a class twice": {"text": changed(upload__classes=[0, 0, 2])},
    "networks from the server": {"text": changed(upload__networks="received")},
    "weights that were not agreed on": {"text": BASE, "records": {"arrays": record_of(PLANTED)}},
    "a warm start": {"text": changed(upload__warm_start=True)},
    "steps without end": {"text": changed(upload__settings={"iterations": 2**53 - 1, "initial": "noise"}), "limited": True},
    "images without end": {"text": changed(upload__ipc=10_000)},
    "threads without end": {"text": changed(threads=10**6)},
    "another method": {"text": changed(upload__method="mtt", upload__settings={})},
    "a method to import": {"text": changed(upload__method="os:system")},
    "a network to import": {"text": changed(network="os:system")},
    "real images": {"text": changed(strategy="random", privacy=None)},
    "real images, privately": {"text": changed(strategy="herding")},
    "weights": {"text": changed(strategy="fedavg", privacy=None), "action": "train.fit", "records": {"arrays": record_of(PLANTED)}},
    "weights, privately": {"text": BASE, "action": "train.fit", "records": {"arrays": record_of(PLANTED)}},
    "the number of images": {"text": changed(server__client_weights="examples")},
    "other data": {"text": changed(data="mnist")},
    "a folder of the client's machine": {"text": changed(data="folder:/etc")},
    "another part of the data": {"text": changed(seed=1)},
    "parts of another kind": {"text": changed(partition__num_partitions=2)},
    "images held out": {"text": changed(validation=0.5)},
    "one more round": {"text": BASE, "number": 2},
    "another question in the same round": {"text": changed(upload__settings={"iterations": 11})},
    "the same with another step": {"text": changed(privacy={"epsilon": 0.5})},
    "other numbers for the pixels": {"text": BASE, "spec": {**vars(SPEC), "mean": (0.4,)}},
    "other class names": {"text": BASE, "spec": {**vars(SPEC), "classes": ("a", "b", "c", "d")}},
    "a shape without end": {"text": BASE, "spec": {**vars(SPEC), "height": 10**9}},
    "no text at all": {"text": "{"},
}


@pytest.fixture(scope="module")
def spent(tmp_path_factory: pytest.TempPathFactory) -> tuple[ClientPrivacy, Message]:
    """A client whose budget one honest upload has used up, and that upload."""
    made = privacy(tmp_path_factory.mktemp("kept"), settings(), delta=1e-3)
    answer = asked(client_app(data(), lambda context: made), BASE)
    assert not answer.has_error(), "the agreed text is answered"
    return made, answer


@pytest.mark.parametrize("name", HOSTILE)
def test_a_servers_text_lowers_nothing(
    name: str, tmp_path: Path, spent: tuple[ClientPrivacy, Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is refused in the same words, by a client with its whole budget and by one with none left; nothing is computed or spent."""
    case = dict(HOSTILE[name])
    computed: list[str] = []
    monkeypatch.setattr("apps.privacy.private_statistics.noised_sums", lambda *rest, **sizes: computed.append("sums"))
    limited = {"iterations": 10_000} if case.pop("limited", False) else {}
    used, _ = spent
    fresh = privacy(tmp_path / "kept", settings())
    refused_by_budget = name in (
        "one more round",
        "another question in the same round",
        "the same with another step",
        "other numbers for the pixels",
    )
    for mine in (used,) if refused_by_budget else (used, fresh):
        mine = ClientPrivacy(**{**vars(mine), **limited})
        before = tree(mine.ledger)
        answer = asked(client_app(data(), lambda context, mine=mine: mine), **case)
        assert answer.has_error()
        assert answer.error.reason == REASON
        assert tree(mine.ledger) == before
    assert computed == []


def test_the_sum_over_rounds_holds_after_restarts_and_for_smaller_requests(tmp_path: Path) -> None:
    """Two uploads share the budget. The third is refused, whatever it asks for, by a new process too; the first is repeated for nothing."""
    agreed = changed(rounds=2)
    made = privacy(tmp_path, from_json(json.dumps(agreed)))
    first = asked(client_app(data(), lambda context: made), agreed)
    smaller = asked(client_app(data(), lambda context: made), agreed | {"privacy": {"epsilon": 4.0}}, 2)
    stated = [json.loads(str(answer.content["privacy"]["statement"])) for answer in (first, smaller)]
    assert stated[0]["epsilon"] == pytest.approx(10.0)
    assert stated[1]["epsilon"] == pytest.approx(4.0)
    assert [one["delta"] for one in stated] == [5e-4, 5e-4]
    before = tree(tmp_path)
    for text, number in ((agreed, 2), (agreed, 3), (agreed | {"privacy": {"epsilon": 0.01}}, 3)):
        answer = asked(client_app(data(), lambda context: made), text, number)
        assert answer.has_error()
        assert answer.error.reason == REASON
    again = asked(client_app(data(), lambda context: made), agreed)
    assert parts_of(again.content, "upload") == parts_of(first.content, "upload")
    assert tree(tmp_path) == before
    granted = read_json(tmp_path / "client-1/account.json")["granted"]
    assert sorted(map(tuple, granted.values())) == [(4.0, 5e-4), (10.0, 5e-4)]
    # What was released for an upload is gone: it cannot be made anew.
    (place,) = tmp_path.glob("client-1/round-1-*")
    (place / "account.json").unlink()
    assert asked(client_app(data(), lambda context: made), agreed).has_error()
    # As if all of it were gone.
    (tmp_path / "client-1/account.json").unlink()
    assert asked(client_app(data(), lambda context: made), agreed | {"privacy": {"epsilon": 0.01}}, 4).has_error()


def test_a_node_without_a_file_gives_nothing_private_and_with_a_broken_one_nothing_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = changed(privacy=None, upload__settings={"iterations": 1})
    assert asked(client_app(data()), BASE).error.reason == REASON
    assert not asked(client_app(data()), plain).has_error()
    app = client_app(data(), of_node)
    assert not asked(app, plain).has_error()
    files = {
        "missing.toml": None,
        "text.toml": "epsilon =",
        "wrong.toml": 'epsilon = 1.0\nstart = "os:system"\n',
        "short.toml": "epsilon = 1.0\n",
    }
    for name, text in files.items():
        if text is not None:
            (tmp_path / name).write_text(text)
        for asks in (plain, BASE):
            assert asked(app, asks, node={"privacy": str(tmp_path / name)}).error.reason == REASON
        monkeypatch.setenv("DISTILL_PRIVACY", str(tmp_path / name))
        assert asked(app, plain).error.reason == REASON
        assert asked(app, plain, action="train.fit").error.reason == REASON
        monkeypatch.delenv("DISTILL_PRIVACY")


def test_an_empty_name_is_no_node_without_privacy_and_a_ledger_is_where_its_file_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shell's variable that is not set, and a node that is started again in another folder."""
    plain = changed(privacy=None, upload__settings={"iterations": 1})
    app = client_app(data(), of_node)
    for name in ("", " "):
        assert asked(app, plain, node={"privacy": name}).error.reason == REASON
        monkeypatch.setenv("DISTILL_PRIVACY", name)
        assert asked(app, plain).error.reason == REASON
        monkeypatch.delenv("DISTILL_PRIVACY")
    (tmp_path / "node.toml").write_text('epsilon = 1.0\nledger = "kept"\n')
    (tmp_path / "elsewhere").mkdir()
    for place in (tmp_path, tmp_path / "elsewhere"):
        monkeypatch.chdir(place)
        assert read(tmp_path / "node.toml").ledger == tmp_path / "kept"


def test_a_server_names_no_folder_of_a_clients_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a client without privacy, too: what it may upload is of the data set that was agreed on, not of whatever lies on its disk."""
    place = ward(tmp_path / "ward", {"benign": 6, "malignant": 6})
    small = {"upload__settings": {"iterations": 1, "batch_real": 2}, "privacy": None, "size": 8, "partition__num_partitions": 2}
    app, text = client_app(), changed(data=place, network="ConvNetD1W32", **small)
    with pytest.raises(InputError, match="a server names no folder of this machine"):
        asked(app, text, spec=OWN)
    monkeypatch.setenv("DISTILL_FOLDERS", "1")
    assert asked(app, text, spec=OWN).content["facts"]["partition-id"] == 1, "the folder was read"


# Images of the node's own

CLASSES = ("benign", "malignant")
OWN = {**vars(SPEC), "name": "ward", "channels": 1, "height": 8, "width": 8, "classes": CLASSES, "mean": (0.5,), "std": (0.5,)}
NODE = """epsilon = 5.0
delta = 1e-4
population = 40
start = "kmeans"
start_releases = 2
networks = "drawn_once"
releases = 2
clip = 1.0
"""


def ward(folder: Path, counts: dict[str, int], damaged: str = "") -> str:
    """A folder of grey images, as `load` takes it; ``damaged`` names a file that is none."""
    for name in CLASSES:
        for part in ("train", "test"):
            (folder / part / name).mkdir(parents=True)
    for name, count in counts.items():
        for part, number in (("train", count), ("test", 1)):
            for at in range(number):
                pixels = np.random.default_rng(at).integers(0, 256, (8, 8), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / part / name / f"{at}.png")
    if damaged:
        (folder / "train" / "malignant" / damaged).write_bytes(b"no image")
    return f"folder:{folder}"


def test_what_a_private_client_says_does_not_depend_on_its_images(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """All images, one class, one image, none: the same facts, classes, counts and bytes. Failures: the same words for all."""
    text = changed(upload__classes=None, data="nowhere")
    places = {
        "full": ward(tmp_path / "a", {"benign": 30, "malignant": 30}),
        "one class": ward(tmp_path / "b", {"benign": 9}),
        "one image": ward(tmp_path / "c", {"malignant": 1}),
        "damaged": ward(tmp_path / "d", {"benign": 5, "malignant": 5}, "Maria_Huber_1961.png"),
        "another class": ward(tmp_path / "e", {"benign": 5}),
        "nowhere": f"folder:{tmp_path / 'not' / 'there'}",
        "empty": f"folder:{tmp_path / 'f'}",
    }
    (tmp_path / "e/train/unclear").mkdir()
    shutil.copy(tmp_path / "e/train/benign/0.png", tmp_path / "e/train/unclear/Maria_Huber.png")
    (tmp_path / "f").mkdir()
    answers: dict[str, Message] = {}
    for name, place in places.items():
        (tmp_path / f"{name}.toml").write_text(NODE + f'ledger = "{tmp_path / "kept" / name}"\n')
        node = {"privacy": str(tmp_path / f"{name}.toml"), "data": place}
        answers[name] = asked(client_app(privacy=of_node), text, spec=OWN, node=node)
    told = {name: answer for name, answer in answers.items() if not answer.has_error()}
    assert list(told) == ["full", "one class", "one image", "empty"]
    for answer in told.values():
        assert set(answer.content) == {"upload", "facts", "privacy"}
        assert dict(answer.content["facts"]) == {"partition-id": 1, "round": 1}
        made = decode(parts_of(answer.content, "upload"), Limits(DataSpec(**OWN), (0, 1), 1, "uint8"))
        assert made.counts == (1, 1)
        stated = json.loads(str(answer.content["privacy"]["statement"]))
        assert stated.pop("account")
        assert stated == {k: v for k, v in json.loads(str(told["full"].content["privacy"]["statement"])).items() if k != "account"}
    assert len({size(answer.content) for answer in told.values()}) == 1
    assert {answer.error.reason for answer in answers.values() if answer.has_error()} == {REASON}
    assert "Maria_Huber_1961.png" in (tmp_path / "kept/damaged/client-1" / LOG).read_text(), "the node's owner finds the reason"
    assert (tmp_path / "kept/damaged/client-1" / LOG).stat().st_mode & 0o077 == 0
    assert capfd.readouterr() == ("", "")


def test_a_client_with_no_image_at_all_answers_as_any_other(tmp_path: Path) -> None:
    everything = data()
    parts = Partition((np.zeros(0, np.int64), np.arange(9)))
    none, some = (shard(everything, parts, client, may_be_empty=True) for client in (0, 1))
    assert (len(none.train), len(some.train)) == (0, 9)
    with pytest.raises(InputError, match="no training images"):
        shard(everything, parts, 0)
    answers = []
    for name, mine in (("none", none), ("some", some)):
        made = privacy(tmp_path / name, settings())
        upload = private_upload(made, 20.0, mine, settings(), 1, 1, SPEC)
        answers.append((upload.counts, upload.images.shape, bool(upload.images.isfinite().all()), sorted(upload.provenance.dp or {})))
    assert answers[0] == answers[1]
