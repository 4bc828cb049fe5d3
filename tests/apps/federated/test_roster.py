"""Who is which client: by key, by word, by nobody; who is missing and who came back."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from apps.federated.exchange import Answer, Request
from apps.federated.inline import task_identity
from apps.federated.messages import Message, MetricRecord, RecordDict
from apps.federated.roster import Roster, fingerprint, keys_of
from distill.errors import InputError

PEM = b"""-----BEGIN PUBLIC KEY-----
MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEunTE0qDbyI+muni8myi/+2da26yr
xG3HA0ilk81S3tq2YkrmAPkkrRhPpFNJtMHGgnvp4Zr90/aiZPSjEaFxqQ==
-----END PUBLIC KEY-----
"""
LINE = (
    "ecdsa-sha2-nistp256 AAAAE2VjZHNhLXNoYTItbmlzdHAyNTYAAAAIbmlzdHAyNTYAAABBBLp0xNKg28iPprp4vJsov"
    "/tnWtusq8RtxwNIpZPNUt7atmJK5gD5JK0YT6RTSbTBxoJ76eGa/dP2omT0oxGhcak= hospital-a"
)
PRINT = "SHA256:aglreIO+Kv9srKhB5peIorfEyrCVc1z0fOp0sW1BOM8"  # of both, by ssh-keygen -lf


class Link:
    """Nodes by id and what they answer to "who": a number, None for nothing at all, or a record."""

    def __init__(self, nodes: dict[int, Any], keys: dict[int, str] | None = None) -> None:
        self.nodes, self.keys = nodes, keys or {}
        self.waits, self.most, self.asked = True, 0, []
        self.grid, self.since = self, "10:00"

    def get_nodes(self) -> list[Any]:
        return [SimpleNamespace(node_id=node, public_key=b"", last_activated_at=self.since) for node in self.nodes]

    def send(self, messages: list[Message]) -> tuple[dict[str, Request], list[Answer]]:
        self.asked += [message.metadata.dst_node_id for message in messages]
        return {str(m.metadata.dst_node_id): Request(m.metadata.dst_node_id, "") for m in messages}, []

    def poll(self, opened: dict[str, Request], end: float = 0.0) -> list[Answer]:
        answers = []
        for name, request in list(opened.items()):
            said = self.nodes.get(request.node)
            if said is None:
                continue
            content = said if isinstance(said, RecordDict) else RecordDict({"facts": MetricRecord({"partition-id": said})})
            del opened[name]
            with task_identity():
                answers.append(Answer(request.node, Message(content, dst_node_id=1, message_type="query.who")))
        return answers


@pytest.fixture(autouse=True)
def identity(monkeypatch: pytest.MonkeyPatch) -> Any:
    with task_identity():
        yield


def keyed(monkeypatch: pytest.MonkeyPatch, keys: dict[int, str]) -> None:
    from apps.federated import roster

    monkeypatch.setattr(roster, "nodes_of", lambda link: [roster.Node(node, keys.get(node, "")) for node in sorted(link.nodes)])


def reasons(present: Any) -> dict[Any, str]:
    return {each.node if each.client is None else f"client {each.client}": each.status for each in present.left_out}


def test_clients_are_where_they_say_and_the_others_are_absent() -> None:
    present = Roster(3, wait=0.0).gather(Link({50: 1, 40: 0}), 1)
    assert present.clients == {40: 0, 50: 1}
    assert reasons(present) == {"client 2": "absent"}
    assert present.left_out[0].why == "no node of this client has come"


def test_without_keys_a_contested_number_is_refused_for_both_and_the_smaller_node_id_does_not_win() -> None:
    link, roster = Link({50: 1, 40: 0, 7: 1}), Roster(2, wait=0.0)
    present = roster.gather(link, 1)
    assert present.clients == {40: 0}
    (contested,) = present.left_out
    assert (contested.client, contested.status) == (1, "contested")
    assert "7, 50" in contested.why
    del link.nodes[7]
    assert roster.gather(link, 2).clients == {40: 0, 50: 1}, "for that round only"


def test_one_that_comes_in_later_with_a_taken_number_does_not_take_the_place() -> None:
    link, roster = Link({50: 1, 40: 0}), Roster(2, wait=0.0)
    assert len(roster.gather(link, 1).clients) == 2
    link.nodes[60] = 1
    present = roster.gather(link, 2)
    assert (present.clients, reasons(present)) == ({40: 0}, {"client 1": "contested"})


def test_with_keys_the_impostor_is_named_and_the_true_client_keeps_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three registered keys, two of them bound; the third says that it is client 1, and its node id is the smallest."""
    keyed(monkeypatch, {50: "SHA256:b", 40: "SHA256:a", 7: "SHA256:c"})
    link = Link({50: 1, 40: 0, 7: 1})
    present = Roster(2, {"SHA256:a": 0, "SHA256:b": 1}, wait=0.0).gather(link, 1)
    assert present.clients == {40: 0, 50: 1}
    (impostor,) = present.left_out
    assert (impostor.client, impostor.node) == (None, 7)
    assert "SHA256:c is not in the server's file" in impostor.why
    assert link.asked == [], "nobody is asked for a number that the key says"


def test_with_keys_a_client_without_one_stays_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    keyed(monkeypatch, {40: "SHA256:a", 9: ""})
    present = Roster(2, {"SHA256:a": 0}, wait=0.0).gather(Link({40: 0, 9: 1}), 1)
    assert present.clients == {40: 0}
    assert {each.why for each in present.left_out} == {
        "it has no key; not in the server's file of node keys",
        "no key is bound to this number",
    }


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (99, "partition-id is 99"),
        (-1, "partition-id is -1"),
        (1.0, "partition-id is 1.0"),
        (RecordDict(), "partition-id is None"),
        (RecordDict({"facts": MetricRecord({"partition-id": [0, 1]})}), "partition-id is [0, 1]"),
    ],
)
def test_numbers_that_are_none_are_named(said: Any, why: str) -> None:
    present = Roster(2, wait=0.0).gather(Link({40: 0, 50: said}), 1)
    assert present.clients == {40: 0}
    assert {each.node: each.why for each in present.left_out}[50].startswith(why)


def test_who_joins_late_and_who_comes_back_is_noted() -> None:
    link, roster = Link({40: 0}), Roster(2, wait=0.0)
    assert roster.gather(link, 1).notes == {}
    link.nodes[50] = 1
    assert roster.gather(link, 2).notes == {1: "joined in round 2"}
    assert roster.gather(link, 3).notes == {}
    del link.nodes[50]
    gone = roster.gather(link, 4)
    assert "last there in round 3" in gone.left_out[0].why
    link.nodes[51] = 1  # killed and started again: another node id
    assert roster.gather(link, 5).notes == {1: "came back after round 3; its node is a new one (51 in place of 50)"}
    link.since = "10:05"
    assert roster.gather(link, 6).notes == dict.fromkeys(range(2), "its node was away or started again since round 5")


def test_the_wait_is_a_setting_and_a_silent_node_is_waited_for_once() -> None:
    link, roster = Link({40: 0, 50: None}), Roster(2, wait=0.5)

    def seconds(number: int) -> float:
        start = time.monotonic()
        present = roster.gather(link, number)
        assert present.clients == {40: 0}
        assert reasons(present) == {"client 1": "absent", 50: "unknown"}
        return time.monotonic() - start

    assert 0.4 < seconds(1) < 2
    assert seconds(2) < 0.3
    link.nodes[50] = 1
    assert roster.gather(link, 3).clients == {40: 0, 50: 1}, "it was slow, not lost"


def test_an_absent_client_is_not_waited_for_in_every_round() -> None:
    link, roster = Link({40: 0, 50: 1}), Roster(2, wait=5.0)
    roster.gather(link, 1)
    del link.nodes[50]
    start = time.monotonic()
    assert len(roster.gather(link, 2).clients) == 1
    assert time.monotonic() - start < 1


def test_too_few_clients_are_one_line_with_who_is_missing() -> None:
    with pytest.raises(InputError, match=r"1 of at least 2 clients came within 0\.2 s \(client 1: no node of this client has come\)"):
        Roster(2, wait=0.2, least=2).gather(Link({40: 0}), 1)


# Keys


def test_a_fingerprint_is_that_of_ssh_keygen(tmp_path: Path) -> None:
    assert fingerprint(PEM) == PRINT
    assert fingerprint(b"") == ""
    assert fingerprint(b"simulated") == ""
    file = tmp_path / "keys"
    file.write_text(f"# the two hospitals\n1 {LINE}\n\n0 SHA256:other\n")
    assert keys_of(file) == {PRINT: 1, "SHA256:other": 0}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("zero SHA256:a", "line 1.*a client number"),
        ("0", "a client number"),
        ("0 ecdsa-sha2-nistp256 not*base64", "a client number"),
        ("0 SHA256:a\n0 SHA256:b", "line 2.*twice"),
        ("0 SHA256:a\n1 SHA256:a", "line 2.*twice"),
    ],
)
def test_a_wrong_file_of_keys_is_one_line(text: str, why: str, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(text)
    with pytest.raises(InputError, match=why):
        keys_of(tmp_path / "keys")


def test_a_file_of_keys_for_other_clients_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="binds client 7; allowed: 0 to 1"):
        Roster(2, {"SHA256:a": 7})
    with pytest.raises(InputError, match="absolute"):
        keys_of(Path("keys"))
    with pytest.raises(InputError, match="cannot be read"):
        keys_of(tmp_path / "none")
