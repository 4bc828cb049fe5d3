"""Soft labels of uploads: from the server's model or a client's own teacher, for condensed and for real images alike."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("flwr")

from apps.federated.condense import upload
from apps.federated.inline import run_inline
from apps.federated.settings import from_json, from_mapping, to_json
from apps.federated.wire import Limits, decode
from distill.errors import InputError
from distill.networks import create
from distill.randomness import generator
from distill.teachers import Teacher, teacher_network

from .test_rounds import CLASSES, Recorder, data, settings

LOCAL = {"labels": "local", "teacher": {"network": "MLP", "epochs": 2, "lr": 0.05, "batch_size": 16}}
KINDS: dict[str, dict[str, Any]] = {"received": {"labels": "received"}, "local": LOCAL}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DISTILL_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("share", [None, 0.25])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["feddm", "random", "herding", "noise"])
def test_an_upload_has_the_images_as_before_and_labels_by_definition(strategy: str, kind: str, share: float | None) -> None:
    made = settings(strategy=strategy, upload={**KINDS[kind], "soft_share": share})
    network = create(made.network, data().spec, generator(3, "w"))
    weights = network.state_dict()
    plain = upload(data(), settings(strategy=strategy), 1, 0, weights)
    found = upload(data(), made, 1, 0, weights)
    assert torch.equal(plain.images, found.images)
    assert torch.equal(plain.labels, found.hard_labels), "each image keeps its class"
    table = made.upload.teacher
    teacher = network.eval() if table is None else teacher_network(data(), table, progress=False)
    part = share or 0.4
    for image, label, row in zip(found.images, plain.labels.tolist(), found.labels, strict=True):
        with torch.no_grad():
            powers = teacher(image[None])[0].exp()
        expected = part * powers / powers.sum()
        expected[label] += 1 - part
        assert torch.allclose(row, expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("strategy", ["feddm", "random"])
def test_a_run_takes_them_and_counts_their_bytes(strategy: str, kind: str) -> None:
    recorders = [Recorder(), Recorder()]
    plain, soft = (
        run_inline(settings(strategy=strategy, rounds=1, upload=more), data(), client=recorder)
        for more, recorder in zip(({}, KINDS[kind]), recorders, strict=True)
    )
    assert soft[-1]["dropped"] == 0
    assert soft[-1]["images"] == plain[-1]["images"]
    images = soft[-1]["images"] / len(soft[-1]["clients"])
    for one, other in zip(plain[-1]["clients"], soft[-1]["clients"], strict=True):
        assert other["up"] - one["up"] == images * (2 * CLASSES - 1), "float16 for each class in place of one byte"
        assert (other["down"] > 32 * 9 * 4) == (kind == "received" or strategy == "feddm"), "the model goes down where it labels"
    limits = Limits(data().spec, tuple(range(CLASSES)), 2)
    sent = decode(recorders[1].uploads["1", 0], limits)
    assert sent.labels.is_floating_point()
    assert sent.counts == decode(recorders[0].uploads["1", 0], limits).counts


def test_fresh_networks_stay_fresh_where_the_models_weights_label() -> None:
    fresh = {"networks": "fresh", "settings": {"iterations": 2, "batch_real": 8}}
    made, plain = settings(upload={**fresh, "labels": "received"}), settings(upload=fresh)
    assert made.down
    assert not plain.down
    weights = create(made.network, data().spec, generator(3, "w")).state_dict()
    assert torch.equal(upload(data(), made, 1, 0, weights).images, upload(data(), plain, 1, 0).images)
    with pytest.raises(InputError, match="and the server sent no weights"):
        upload(data(), made, 1, 0)


def test_a_warm_start_begins_with_the_images_and_their_classes() -> None:
    made = settings(upload={"warm_start": True, **LOCAL})
    weights = create(made.network, data().spec, generator(3, "w")).state_dict()
    first = upload(data(), made, 1, 0, weights)
    second = upload(data(), made, 2, 0, weights, previous=first)
    assert torch.equal(first.hard_labels, second.hard_labels)
    lines = run_inline(made, data())
    assert [line["dropped"] for line in lines] == [0, 0, 0]


def test_settings_go_to_clients_and_older_ones_are_read() -> None:
    made = settings(upload=LOCAL)
    again = from_json(to_json(made))
    assert again == made
    assert again.upload.teacher == Teacher(network="MLP", epochs=2, lr=0.05, batch_size=16)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"upload": {"labels": "local"}}, "go together; give both"),
        ({"upload": {"teacher": {"epochs": 1}}}, "go together; give both"),
        ({"upload": {"labels": "mine"}}, "labels"),
        ({"upload": {"soft_share": 0.3}}, "upload.labels is not given"),
        ({"upload": {"labels": "received", "soft_share": 0.5}}, "soft_share"),
        ({"upload": {"labels": "local", "teacher": {"network": "MPL"}}}, "MLP"),
        ({"server": {"recipe": {"teacher": {"epochs": 1}}}}, "a server has no images for it"),
        ({"server": {"client_weights": "examples", "recipe": {"loss": "kl"}}}, "images count differently"),
        ({"upload": {"labels": "received", "networks": "fresh"}, "privacy": {}}, "privacy is on: no label is made of private images"),
    ],
)
def test_what_makes_no_sense_is_one_line(change: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        from_mapping(change)
    assert "\n" not in str(caught.value)
