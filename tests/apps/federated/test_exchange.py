"""Deadlines, sizes and reasons of what comes over the link: a link of parts as Flower's is, without its processes."""

import time
from collections.abc import Callable, Iterable, Iterator
from types import SimpleNamespace
from typing import Any

import httpx
import numpy as np
import pytest
from flwr.app import Metadata
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import PullObjectResponse
from flwr.proto.node_pb2 import Node as NodeProto
from flwr.proto.runtime_pb2 import PullAppMessagesResponse
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree, no_object_id_recompute

from apps.federated import link_readers
from apps.federated.exchange import Exchange
from apps.federated.inline import task_identity
from apps.federated.link_readers import Answer, InParts
from apps.federated.messages import Error, Message, MetricRecord, RecordDict, record_of

ALL = 1 << 20
LINK = 1  # the node id of Flower's own messages


@pytest.fixture(autouse=True)
def identity() -> Iterator[None]:
    with task_identity():
        yield


class Upload:
    """An answer that lies in parts on the link; ``there(part's place, seconds since it was sent)`` says which have come."""

    def __init__(self, message: Message, there: Callable[[int, float], bool] = lambda place, seconds: True, begins: float = 0.0) -> None:
        with no_object_id_recompute():
            message.metadata.__dict__["_message_id"] = message.object_id
            self.tree = get_object_tree(message)
            self.parts = {name: part.deflate() for name, part in get_all_nested_objects(message).items()}
        content = message.__dict__["_content"]
        message.__dict__["_content"] = None
        self.proto = message_to_proto(message)
        message.__dict__["_content"] = content
        self.there, self.begins = there, begins
        self.gone = False


class Link:
    """Stands for Flower's HTTP grid: what `InParts` asks of it."""

    def __init__(self, *uploads: Upload | None) -> None:
        self.uploads = dict(enumerate(uploads))
        self.start = time.monotonic()
        self.confirmed: list[str] = []
        self.bytes = 0
        self.node, self.run = NodeProto(node_id=LINK), SimpleNamespace(run_id=1)
        self._client = SimpleNamespace(event_hooks={"request": [], "response": []})
        self._runtime_client = self

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        return [str(message.metadata.dst_node_id - 10) for message in messages]

    def _response(self, size: int) -> None:
        for hook in self._client.event_hooks["response"]:
            hook(httpx.Response(200, headers={"content-length": str(size)}))
        self.bytes += size

    def PullMessages(self, request: Any) -> PullAppMessagesResponse:
        (name,) = request.message_ids
        upload = self.uploads.get(int(name))
        if upload is None or time.monotonic() - self.start < upload.begins:
            return PullAppMessagesResponse()
        self.uploads[int(name)] = None  # given once
        self.giving = {**getattr(self, "giving", {}), **dict.fromkeys(upload.parts, upload)}
        response = PullAppMessagesResponse(messages_list=[upload.proto], message_object_trees=[upload.tree])
        self._response(response.ByteSize())
        return response

    def PullObject(self, request: Any) -> PullObjectResponse:
        upload = self.giving[request.object_id]
        if upload.gone:
            return PullObjectResponse(object_found=False)
        place = list(upload.parts).index(request.object_id)
        if not upload.there(place, time.monotonic() - self.start):
            return PullObjectResponse(object_found=True, object_available=False)
        response = PullObjectResponse(object_found=True, object_available=True, object_content=upload.parts[request.object_id])
        self._response(response.ByteSize())
        return response

    def ConfirmMessageReceived(self, request: Any) -> None:
        self.confirmed.append(request.message_object_id)


def reply(place: int, arrays: int = 2, size: int = 100, sender: int | None = None, error: str | None = None) -> Message:
    """The answer of node 10 + ``place`` to request ``place``."""
    source = 10 + place if sender is None else sender
    metadata = Metadata(1, "", source, LINK, str(place), "1", time.time(), 600.0, "train.condense")
    if error is not None:
        return Message(metadata=metadata, error=Error(5, error))
    content = RecordDict(
        {
            "upload": record_of({f"a{k}": np.full(size, k, np.float32) for k in range(arrays)}),
            "facts": MetricRecord({"round": 1, "place": place}),
        }
    )
    return Message(metadata=metadata, content=content)


def asked(link: Link, timeout: float = 5.0, most: int = ALL) -> tuple[Exchange, list[Answer], float]:
    made = Exchange(link)
    made.reader = InParts(link)
    made.most = most
    start = time.monotonic()
    messages = [Message(RecordDict(), dst_node_id=10 + place, message_type="train.condense", group_id="1") for place in link.uploads]
    answers = made.send_and_receive(messages, timeout=timeout)
    return made, sorted(answers, key=lambda answer: answer.node), time.monotonic() - start


def test_answers_in_parts_are_put_together_and_taken_off_the_link() -> None:
    link = Link(Upload(reply(0)), Upload(reply(1, arrays=5)), Upload(reply(2), begins=0.3))
    made, answers, seconds = asked(link)
    assert [answer.status for answer in answers] == [""] * 3
    assert [len(answer.message.content["upload"]) for answer in answers] == [2, 5, 2]
    assert answers[1].message.content["upload"]["a3"].numpy().tolist() == [3.0] * 100
    assert len(link.confirmed) == 3
    assert made.overrun == 0.0
    assert seconds < 3


def test_one_that_sends_slowly_is_left_at_the_deadline_and_the_others_are_kept() -> None:
    """Flower's own loop waits two hours for the parts of an answer that has begun."""
    link = Link(Upload(reply(0)), Upload(reply(1), lambda place, seconds: place < 2))
    made, answers, seconds = asked(link, timeout=0.5)
    assert answers[0].message is not None
    count = len(Upload(reply(1)).parts)
    assert (answers[1].status, answers[1].why) == ("missing", f"no answer in time: 2 of its {count} parts came")
    assert answers[1].up > 0
    assert seconds < 1.5
    assert made.overrun < 0.5
    assert len(link.confirmed) == 2, "what was left is taken off the link too"


def test_an_overrun_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    link = Link(Upload(reply(0)))
    real = link.PullMessages
    link.PullMessages = lambda request: (time.sleep(0.6), real(request))[1]  # the link itself is slow
    made, _, _ = asked(link, timeout=0.2)
    assert 0.3 < made.overrun < 2


@pytest.mark.parametrize("parts", [1, 200])
def test_what_is_too_large_is_not_read(parts: int) -> None:
    """One part of 20 MB, whose size the link says first, and many parts that are counted as they come."""
    large = Upload(reply(0, arrays=parts, size=5_000_000 // parts))
    link = Link(large, Upload(reply(1)))
    _, answers, _ = asked(link, most=200_000)
    assert (answers[0].message, answers[0].status) == (None, "refused")
    assert "more than 200000 bytes" in answers[0].why
    assert answers[1].message is not None
    assert link.bytes < 500_000
    assert len(link.confirmed) == 2


def test_too_many_parts_are_not_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_readers, "MAX_PARTS", 20)
    link = Link(Upload(reply(0, arrays=30, size=1)), Upload(reply(1)))
    _, answers, _ = asked(link)
    assert "parts; allowed: at most 20" in answers[0].why
    assert answers[1].message is not None


def test_nobody_has_to_wait_for_the_many_parts_of_another() -> None:
    link = Link(Upload(reply(0, arrays=300, size=1)), Upload(reply(1)))
    made = Exchange(link)
    made.reader, made.most = InParts(link), ALL
    opened, _ = made.send([Message(RecordDict(), dst_node_id=10 + k, message_type="train.condense", group_id="1") for k in range(2)])
    assert [answer.node for answer in made.poll(opened)] == [11]


def test_a_connection_that_broke_off_is_the_reason() -> None:
    broken = Upload(reply(0))
    broken.gone = True
    _, answers, _ = asked(Link(broken, Upload(reply(1))))
    assert (answers[0].status, answers[0].why) == ("missing", "its answer broke off before all of it was sent")
    assert answers[1].message is not None


def test_flowers_own_word_on_a_node_is_matched_by_the_request() -> None:
    """It comes from the SuperLink's node id, not the client's."""
    made, answers, _ = asked(Link(Upload(reply(0, sender=LINK, error="The node is unavailable.")), Upload(reply(1, error="no\nmemory"))))
    assert (answers[0].node, answers[0].status) == (10, "missing")
    assert answers[0].why == "Flower says: The node is unavailable."
    assert answers[1].message is not None, "a client's own error is for the strategy"
    assert answers[1].message.has_error()
    assert made.strays == 0


def test_an_answer_in_another_nodes_name_is_refused() -> None:
    _, answers, _ = asked(Link(Upload(reply(0, sender=11)), Upload(reply(1))))
    assert (answers[0].node, answers[0].status) == (10, "refused")
    assert "node 11" in answers[0].why
    assert answers[1].message is not None


@pytest.mark.parametrize("damage", ["kind", "cycle", "body", "empty"])
def test_parts_that_nobody_can_read_are_refused(damage: str) -> None:
    bad = Upload(reply(0))
    name = bad.proto.metadata.message_id if damage == "kind" else next(iter(bad.parts))  # the message itself is the last
    body = {
        "kind": b"Nothing 0 \x00",
        "cycle": bad.parts[bad.proto.metadata.message_id],  # a part that has itself among its parts
        "body": bad.parts[name][:-3] + b"\xff" * 3,
        "empty": b"\x00",
    }
    bad.parts[name] = body[damage]
    _, answers, _ = asked(Link(bad, Upload(reply(1, size=50))), timeout=1.0)  # other parts than those of the first
    assert answers[1].message is not None
    assert answers[0].message is None or damage == "body"
    if answers[0].message is None:
        assert answers[0].status in ("refused", "missing")
        assert "\n" not in answers[0].why


def test_what_comes_late_is_named_in_the_next_exchange_and_is_not_read() -> None:
    link = Link(Upload(reply(0)), Upload(reply(1), begins=0.4))
    made, answers, _ = asked(link, timeout=0.2)
    assert [answer.message is None for answer in answers] == [False, True]
    time.sleep(0.3)
    read = link.bytes
    made.begin()
    assert [(late.node, late.group) for late in made.late] == [(11, "1")]
    assert 0 < made.late[0].seconds < 5
    assert len(link.confirmed) == 2
    assert link.bytes - read < 3000, "its head only"
    made.begin()
    assert made.late == []


def test_an_answer_that_comes_late_and_is_still_of_use_is_read_to_its_end() -> None:
    """Its first parts come before the exchange's end, the others in the next one; a third one comes when it is too old."""
    link = Link(
        Upload(reply(0)), Upload(reply(1, arrays=5), lambda place, seconds: place < 2 or seconds > 0.5), Upload(reply(2), begins=1.2)
    )
    made = Exchange(link)
    made.reader, made.most, made.keeps = InParts(link), ALL, 1

    def exchanged(*places: int) -> list[Answer]:
        made.begin()
        messages = [Message(RecordDict(), dst_node_id=10 + place, message_type="train.condense", group_id="1") for place in places]
        return made.send_and_receive(messages, timeout=0.3)

    assert sorted((answer.node, answer.status) for answer in exchanged(0, 1, 2)) == [(10, ""), (11, "missing"), (12, "missing")]
    time.sleep(0.3)
    link.uploads[3] = None  # of a node that says nothing
    assert [answer.node for answer in exchanged(3)] == [13]
    (belated,) = made.belated
    assert (belated.node, belated.group) == (11, "1")
    assert belated.message.content["upload"]["a4"].numpy().tolist() == [4.0] * 100
    assert 0.2 < belated.seconds < 3
    time.sleep(0.7)
    exchanged(3)
    assert made.belated == []
    assert [(late.node, late.group) for late in made.late] == [(12, "1")]
    assert len(link.confirmed) == 3


def test_messages_that_flower_does_not_take_are_named() -> None:
    link = Link(Upload(reply(0)))
    link.push_messages = lambda messages: [""]
    _, answers, _ = asked(link)
    assert (answers[0].status, answers[0].message) == ("missing", None)
    assert "does not take" in answers[0].why
