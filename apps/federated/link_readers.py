"""How answers are read off Flower's link: whole, or over HTTP part by part.

Over HTTP an answer comes in parts, which a client may send as slowly as it likes; Flower waits up to two hours for them, and reads all of
it before anyone can look at its size. Here parts are taken as they come, counted, and left where they are when time or room is over.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp import Grid

from apps.federated.messages import Message
from apps.federated.packing import unpack
from distill.errors import clipped

MAX_PARTS = 10_000  # of an answer; a network of a thousand tensors with a control variate has four thousand
PARTS_A_PASS = 64  # so that nobody's many parts keep the others waiting
HEAD_BYTES = 1 << 22  # of an answer's head, which lists its parts


@dataclass(frozen=True)
class Answer:
    """What became of one request: a ``message``, or the reason (``status``, ``why``) why there is none. ``up``: bytes read in vain.

    ``group`` is that of an answer to an earlier exchange, which came ``seconds`` after its end.
    """

    node: int
    message: Message | None = None
    status: str = ""
    why: str = ""
    up: int = 0
    group: str = ""
    seconds: float = 0.0


Found = tuple[str, "Message | Answer"]


class Whole:
    """A grid that gives whole messages at once: in this process, or Flower's simulation."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def read(self, names: Sequence[str], most: int, end: float) -> Iterator[Found]:
        for message in self.grid.pull_messages(names) if names else ():
            yield message.metadata.reply_to_message_id, message

    def leave(self, name: str) -> tuple[str, int]:
        return "", 0

    def discard(self, names: Sequence[str]) -> list[tuple[str, bool]]:
        return [
            (name, not content.has_error()) for name, content in self.read(names, 0, 0.0) if isinstance(content, Message) and name in names
        ]


@dataclass
class Begun:
    """An answer of which some parts are there."""

    message: str
    missing: list[str]
    count: int
    error: bool = False
    parts: dict[str, bytes] = field(default_factory=dict)
    bytes: int = 0


class TooLarge(Exception):
    """A response with more bytes than there is room for; nothing of it was read."""


class TakenBack(Exception):
    """The link has no part of this name any more: the client's connection broke off while it sent."""


class InParts:
    """Flower's HTTP grid, whose requests are made one by one here: each is short, and none reads more than there is room for.

    Uses what Flower has for itself (`flwr.supercore`, 1.41 and 1.42).
    """

    def __init__(self, grid: Any) -> None:
        self.grid = grid
        self.begun: dict[str, Begun] = {}
        self.room = HEAD_BYTES
        client = grid._runtime_client._client
        hooks = client.event_hooks
        client.event_hooks = {**hooks, "response": [*hooks["response"], self._fits]}  # called before a body is read

    def _fits(self, response: Any) -> None:
        if int(response.headers.get("content-length", 0)) > self.room:
            raise TooLarge(response.headers["content-length"])

    def read(self, names: Sequence[str], most: int, end: float) -> Iterator[Found]:
        for name in names:
            if time.monotonic() >= end:
                break
            try:
                answer = self._read(name, most, end)
            except TakenBack:
                answer = self._given_up(name, "its answer broke off before all of it was sent", "missing")
            except Exception as error:  # another party's bytes, in Flower's parsers
                answer = self._given_up(name, f"the answer cannot be read ({clipped(f'{type(error).__name__}: {error}', 200)})")
            if answer is not None:
                yield name, answer

    def _read(self, name: str, most: int, end: float) -> "Message | Answer | None":
        from flwr.supercore.inflatable.inflatable_utils import inflate_object_from_contents

        if name not in self.begun and not self._head(name):
            return None
        begun = self.begun[name]
        if begun.count > MAX_PARTS:
            return self._given_up(name, f"the answer has {begun.count} parts; allowed: at most {MAX_PARTS}.")
        self._parts(begun, most, end)
        if begun.bytes > most:
            return self._given_up(name, f"the answer has more than {most} bytes; allowed: at most {most}.")
        if begun.missing:
            return None
        message = inflate_object_from_contents(begun.message, begun.parts)
        if not isinstance(message, Message):
            return self._given_up(name, "the answer is no message; allowed: a Flower Message.")
        if message.has_content():
            message.content = unpack(message.content, most)
        self._done(name)
        return message

    def _head(self, name: str) -> bool:
        """Whether an answer has begun: its head lists the parts."""
        from flwr.proto.runtime_pb2 import PullAppMessagesRequest
        from flwr.supercore.inflatable.inflatable_object import iterate_object_tree

        self.room = HEAD_BYTES
        response = self.grid._runtime_client.PullMessages(PullAppMessagesRequest(message_ids=[name]))
        for message, tree in zip(response.messages_list, response.message_object_trees, strict=True):
            if message.metadata.reply_to_message_id == name:
                parts = list(dict.fromkeys(part.object_id for part in iterate_object_tree(tree)))
                self.begun[name] = Begun(message.metadata.message_id, parts, len(parts), message.HasField("error"))
                return True
        return False

    def _parts(self, begun: Begun, most: int, end: float) -> None:
        """Ask once for some of the missing parts."""
        from flwr.proto.message_pb2 import PullObjectRequest

        for part in begun.missing[:PARTS_A_PASS]:
            if time.monotonic() >= end or begun.bytes > most:
                return
            self.room = most - begun.bytes + (1 << 12)  # the response's own fields
            try:
                response = self.grid._runtime_client.PullObject(
                    PullObjectRequest(node=self.grid.node, run_id=self.grid.run.run_id, object_id=part)
                )
            except TooLarge as error:
                begun.bytes += int(str(error))
                return
            if not response.object_found:
                raise TakenBack
            begun.missing.remove(part)
            if response.object_available:
                begun.parts[part] = response.object_content
                begun.bytes += len(response.object_content)
            else:
                begun.missing.append(part)  # the others first

    def leave(self, name: str) -> tuple[str, int]:
        begun = self.begun.get(name)
        if begun is None:
            return "", 0
        text = f"{begun.count - len(begun.missing)} of its {begun.count} parts came"
        self._done(name)
        return text, begun.bytes

    def discard(self, names: Sequence[str]) -> list[tuple[str, bool]]:
        discarded = []
        for name in names:
            try:
                there = name in self.begun or self._head(name)
            except Exception:  # whatever it is, it is not waited for
                there = True
            if there:
                discarded.append((name, name in self.begun and not self.begun[name].error))
                self.leave(name)
        return discarded

    def _given_up(self, name: str, why: str, status: str = "refused") -> Answer:
        _, up = self.leave(name)
        return Answer(0, status=status, why=why, up=up)

    def _done(self, name: str) -> None:
        """Let the link forget an answer; this side has it, or does not want it."""
        from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest

        begun = self.begun.pop(name)
        self.grid._runtime_client.ConfirmMessageReceived(
            ConfirmMessageReceivedRequest(node=self.grid.node, run_id=self.grid.run.run_id, message_object_id=begun.message)
        )


def reader_of(grid: Grid) -> Whole | InParts:
    try:
        from flwr.superlink.grid.http_grid import HttpGrid
    except ImportError:
        return Whole(grid)
    return InParts(grid) if isinstance(grid, HttpGrid) else Whole(grid)
