"""Which node is which client: known by its key, or asked; and who is not there, in every round.

Flower's link proves that a node holds its key. Where the server has a file of keys (`keys_of`), the key alone says the client's number.
Without one a number is what the node says, and where two nodes say the same, nobody can tell who is right: both are left out.
"""

import base64
import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from apps.federated.exchange import Exchange, Request
from apps.federated.link_readers import Answer
from apps.federated.messages import ConfigRecord, Message, MetricRecord, RecordDict, whole
from distill.errors import InputError, clipped

WAIT_SECONDS = 120.0
ANSWER_BYTES = 1 << 16  # of the answer to "who"
MAX_CLIENTS = 10_000


@dataclass(frozen=True)
class Node:
    """A node that is on the link now, the fingerprint of its key ("" where the link has none), and when it was last activated."""

    id: int
    key: str = ""
    since: str = ""


@dataclass(frozen=True)
class LeftOut:
    """A client or a node that takes no part in a round. ``client`` is None for a node without a number, ``node`` for a client."""

    client: int | None
    node: int | None
    status: str
    why: str


@dataclass(frozen=True)
class Present:
    """Of one round: client numbers by node id, who is left out, and ``notes`` on clients that joined or came back."""

    clients: dict[int, int]
    left_out: tuple[LeftOut, ...] = ()
    notes: dict[int, str] = field(default_factory=dict)


class Roster:
    """Keeps what nodes have said and who was there before.

    Args:
        count: client numbers are 0 to ``count`` - 1; None: not known, so that no more than ``least`` clients are waited for (with ``keys``,
            those that are in it).
        keys: client numbers by fingerprint; None: numbers are what nodes say.
        wait: seconds to wait for clients.
        least: clients below which nothing begins, and no round takes place.
    """

    def __init__(self, count: int | None, keys: Mapping[str, int] | None = None, wait: float = WAIT_SECONDS, least: int = 1) -> None:
        self.count, self.keys, self.wait, self.least = count, keys, wait, least
        self.numbers = range(MAX_CLIENTS if count is None else count)  # that a client may have
        self.said: dict[int, int | str] = {}  # by node: its number, or why it has none
        self._open: dict[str, Request] = {}
        self._slow: set[int] = set()  # nodes that were waited for in vain, once
        self._seen: dict[int, tuple[int, int, str]] = {}  # by client: its node, the round when it last took part, the node's ``since``
        self._first: int | None = None
        if (odd := [number for number in (keys or {}).values() if number not in self.numbers]) != []:
            raise InputError(
                f"the file of node keys binds client {odd[0]}; allowed: 0 to {self.numbers[-1]}, as the run has {count or 'own'} clients."
            )

    @property
    def size(self) -> int:
        """How many clients there are, as far as that is known."""
        return len(self._expected()) if self.count is None else self.count

    def _expected(self) -> set[int]:
        return {*self._seen, *(self.keys or {}).values()} if self.count is None else set(self.numbers)

    def gather(self, link: Exchange, number: int) -> Present:
        """Who takes part in round ``number``. The first time all clients are waited for, later only as many as are needed."""
        start = time.monotonic()
        while True:
            nodes = nodes_of(link)
            self._ask(link, [node for node in nodes if node.id not in self.said])
            present = self._sorted(nodes, number)
            there, waited = len(present.clients), time.monotonic() - start
            asking = {request.node for request in self._open.values()} & {node.id for node in nodes} - self._slow
            whole = len(self._expected()) if self.count is None else self.count
            incomplete = there < max(whole, self.least) if self._first is None or asking else there < self.least
            incomplete = incomplete or (self.count is None and bool(asking))
            if not incomplete or not link.waits or waited >= self.wait:
                break
            time.sleep(0.2)
        self._slow |= asking
        if self._first is None and there < self.least:
            raise InputError(
                f"{there} of at least {self.least} client{'s' if self.least > 1 else ''} came within {self.wait:g} s"
                f" ({'; '.join(f'{_name(each)}: {each.why}' for each in present.left_out[:5])}). Start SuperNodes with --node-config"
                f' "partition-id=K num-partitions={self.count or "N"}", look at their logs, or change min_clients and wait.'
            )
        if self._first is None:
            self._first = number
        since = {node.id: node.since for node in nodes}
        for node_id, client in present.clients.items():
            self._seen[client] = (node_id, number, since[node_id])
        return present

    def _ask(self, link: Exchange, nodes: Sequence[Node]) -> None:
        """Send "who" to nodes that have not been asked, and hear those that answer now."""
        if self.keys is not None:
            for node in nodes:
                where = "not in the server's file of node keys"
                self.said[node.id] = self.keys.get(node.key, f"its key {node.key} is {where}" if node.key else f"it has no key; {where}")
            return
        asked = {request.node for request in self._open.values()}
        ask = RecordDict({"ask": ConfigRecord({"round": 0})})
        new = [Message(ask, dst_node_id=node.id, message_type="query.who") for node in nodes if node.id not in asked]
        opened, answers = link.send(new)
        self._open |= opened
        link.most = ANSWER_BYTES
        for answer in [*answers, *link.poll(self._open)]:
            self.said[answer.node] = self._number(answer)

    def _number(self, answer: Answer) -> int | str:
        if answer.message is None:
            return f"it did not say who it is ({answer.why})"
        if answer.message.has_error():
            return f"it did not say who it is ({clipped(answer.message.error.reason or 'no reason given', 100)})"
        try:
            record = answer.message.content.get("facts")
            return whole(dict(record) if isinstance(record, MetricRecord) else {}, "partition-id", 0, self.numbers[-1])
        except InputError as error:
            return str(error)
        except Exception as error:  # another party's bytes
            return clipped(f"it did not say who it is ({type(error).__name__}: {error})", 200)

    def _sorted(self, nodes: Sequence[Node], number: int) -> Present:
        claims: dict[int, list[int]] = {}
        left_out = []
        for node in nodes:
            claim = self.said.get(node.id, "it has not said who it is")
            if isinstance(claim, int):
                claims.setdefault(claim, []).append(node.id)
            else:
                left_out.append(LeftOut(None, node.id, "unknown", claim))
        clients: dict[int, int] = {}
        notes: dict[int, str] = {}
        for client in sorted({*claims, *self._expected()}):
            claimed = claims.get(client, [])
            if len(claimed) == 1:
                clients[claimed[0]] = client
                if (note := self._note(client, next(node for node in nodes if node.id == claimed[0]), number)) != "":
                    notes[client] = note
            elif claimed:
                why = f"{len(claimed)} nodes say this number ({', '.join(map(str, claimed[:5]))}); no file of node keys says whose it is"
                left_out.append(LeftOut(client, None, "contested", why))
            else:
                left_out.append(LeftOut(client, None, "absent", self._absent(client)))
        return Present(clients, tuple(left_out), notes)

    def _absent(self, client: int) -> str:
        if self.keys is not None and client not in self.keys.values():
            return "no key is bound to this number"
        return (
            f"no node of this client is on the link; it was last there in round {self._seen[client][1]}"
            if client in self._seen
            else ("no node of this client has come")
        )

    def _note(self, client: int, node: Node, number: int) -> str:
        if self._first is None or number <= self._first:
            return ""
        if client not in self._seen:
            return f"joined in round {number}"
        before, last, since = self._seen[client]
        parts = [f"came back after round {last}"] if last < number - 1 else []
        if node.id != before:
            parts.append(f"its node is a new one ({node.id} in place of {before})")
        elif node.since != since:
            parts.append(f"its node was away or started again since round {last}")
        return "; ".join(parts)


def _name(left: LeftOut) -> str:
    return f"node {left.node}" if left.client is None else f"client {left.client}"


def nodes_of(link: Exchange) -> list[Node]:
    """The nodes that Flower holds for connected, by id; one that was killed stays among them for up to a minute."""
    nodes = [
        Node(info.node_id, fingerprint(info.public_key), str(getattr(info, "last_activated_at", ""))) for info in link.grid.get_nodes()
    ]
    return sorted(nodes, key=lambda node: node.id)


# Keys


def fingerprint(key: bytes) -> str:
    """What ``ssh-keygen -lf KEY.pub`` prints for a node's public key as the link holds it (PEM), "" for anything else."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

    if not key.startswith(b"-----BEGIN PUBLIC KEY-----"):  # simulated nodes have none
        return ""
    line = load_pem_public_key(key).public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)
    return _digest(line.split()[1])


def _digest(encoded: bytes) -> str:
    digest = hashlib.sha256(base64.b64decode(encoded, validate=True)).digest()
    return f"SHA256:{base64.b64encode(digest).decode().rstrip('=')}"


def keys_of(path: Path) -> dict[str, int]:
    """Client numbers by fingerprint, from a file with a line for each client: its number, then its public key or that key's fingerprint.

        0 ecdsa-sha2-nistp384 AAAAE2VjZHNh... hospital-a
        1 SHA256:pX0zXvR2...

    Empty lines and lines that begin with # are left out. `InputError` names a wrong line.
    """
    if not path.is_absolute():
        raise InputError(f"node-keys is {clipped(path)}; allowed: the absolute path of a file on the server.")
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the file of node keys cannot be read ({error}).") from None
    numbers: dict[str, int] = {}
    for place, line in enumerate(lines, 1):
        if not (words := line.split()) or words[0].startswith("#"):
            continue
        try:
            number = int(words[0])
            key = words[1] if words[1].startswith("SHA256:") else _digest(words[2].encode())
        except (ValueError, IndexError):
            raise InputError(
                f"{path}, line {place}: {clipped(line, 60)!r}; allowed: a client number, then a public key or its SHA256 fingerprint."
            ) from None
        if key in numbers or number in numbers.values():
            raise InputError(f"{path}, line {place}: client {number} or its key stands there twice; allowed: one key a client.")
        numbers[key] = number
    return numbers
