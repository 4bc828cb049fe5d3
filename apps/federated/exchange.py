"""Flower's grid with deadlines that hold: what is sent, which answers come back in time, and why the others do not.

Answers are matched by the message that they answer, whoever says to have sent them. How they are read: link_readers.py.
"""

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace

from flwr.serverapp import Grid

from apps.federated.link_readers import HEAD_BYTES, Answer, InParts, reader_of
from apps.federated.messages import Message
from apps.federated.packing import pack_all
from distill.errors import clipped

FIRST_PAUSE, LONGEST_PAUSE = 0.1, 1.0
NO_ANSWER = "no answer in time"


@dataclass(frozen=True)
class Late:
    """An answer that came ``seconds`` after the end of its exchange, and was not read."""

    node: int
    group: str
    seconds: float


@dataclass
class Request:
    node: int
    group: str
    over: float = 0.0  # when its exchange ended
    age: int = 0  # exchanges since


class Exchange:
    """Sends through ``grid`` and keeps the time; ``overrun`` is how many seconds the last exchange took beyond its timeout.

    ``heard`` is called with the node of every answer as it comes. Answers to the last ``keeps`` exchanges are still taken: those that came
    in this one are ``belated``; older ones are noted (``late``) and not read.
    """

    def __init__(self, grid: Grid) -> None:
        self.grid = grid
        # An engine that answers while it is asked has nothing more to wait for.
        self.waits = bool(getattr(grid, "waits", True))
        self.reader = reader_of(grid)
        self.most = HEAD_BYTES  # bytes of an answer; whoever asks sets it
        self.overrun = 0.0
        self.strays = 0
        self.late: list[Late] = []
        self.keeps = 0
        self.belated: list[Answer] = []
        self.heard: Callable[[int], None] | None = None
        self._unanswered: dict[str, Request] = {}

    def begin(self) -> None:
        """A new exchange begins: what the last one left is counted older, and what is too old is taken off the link."""
        self.overrun, self.strays, self.late, self.belated = 0.0, 0, [], []
        for request in self._unanswered.values():
            request.age += 1
        self._discard(time.monotonic())

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Answer]:
        """One `Answer` for each message, after at most ``timeout`` seconds; what comes later is found by the next exchange."""
        if not (messages := list(messages)):  # Flower's loop asks for an evaluation by clients, too
            return []
        start, pause = time.monotonic(), FIRST_PAUSE
        end = start + (float("inf") if timeout is None else timeout)
        open_, answers = self.send(messages)
        while True:
            answers += self.poll(open_, end)
            self.belated += self._belated(end)
            if not open_ or not self.waits or time.monotonic() >= end:
                break
            time.sleep(max(0.0, min(pause, end - time.monotonic())))
            pause = min(1.5 * pause, LONGEST_PAUSE)
        self._discard(time.monotonic())  # what came while this one took place
        answers += [self.close(name, request, NO_ANSWER) for name, request in open_.items()]
        self.overrun = max(0.0, time.monotonic() - end)
        return answers

    def send(self, messages: Iterable[Message]) -> tuple[dict[str, Request], list[Answer]]:
        """(requests by message id, answers for those that Flower did not take)."""
        messages = list(messages)
        if not messages:
            return {}, []
        names = list(self.grid.push_messages(pack_all(messages) if isinstance(self.reader, InParts) else messages))
        if len(names) != len(messages):  # Flower's grid in memory leaves out what it does not take
            names = [m.metadata.message_id if m.metadata.message_id in names else "" for m in messages]
        open_, refused = {}, []
        for message, name in zip(messages, names, strict=True):
            node, group = message.metadata.dst_node_id, message.metadata.group_id
            if name:
                open_[name] = Request(node, group)
            else:
                refused.append(Answer(node, status="missing", why="Flower does not take messages for its node any more"))
        return open_, refused

    def poll(self, open_: dict[str, Request], end: float = float("inf")) -> list[Answer]:
        """The answers that are there now; they leave ``open_``."""
        answers = []
        for request, answer in self._taken(open_, end):
            answers.append(answer)
            if self.heard is not None:
                self.heard(request.node)
        return answers

    def _belated(self, end: float) -> list[Answer]:
        """The answers to earlier exchanges that are there now and young enough."""
        young = {name: request for name, request in self._unanswered.items() if request.age <= self.keeps}
        names, now = set(young), time.monotonic()
        answers = [replace(answer, group=request.group, seconds=now - request.over) for request, answer in self._taken(young, end)]
        for name in names - set(young):
            del self._unanswered[name]
        return answers

    def _taken(self, open_: dict[str, Request], end: float) -> Iterator[tuple[Request, Answer]]:
        for name, content in self.reader.read(list(open_), self.most, end):
            if (request := open_.pop(name, None)) is None:
                self.strays += 1
            else:
                yield request, self._checked(request.node, content)

    def close(self, name: str, request: Request, why: str) -> Answer:
        """Give a request up: it has no answer, or a part of one, whose rest is taken as long as it is young enough."""
        request.over = time.monotonic()
        if self.keeps:
            self._unanswered[name] = request
            return Answer(request.node, status="missing", why=why)
        begun, up = self.reader.leave(name)
        if not begun:
            self._unanswered[name] = request
        return Answer(request.node, status="missing", why=f"{why}: {begun}" if begun else why, up=up)

    def _checked(self, node: int, content: "Message | Answer") -> Answer:
        if isinstance(content, Answer):
            return Answer(node, None, content.status, content.why, content.up)
        sender = content.metadata.src_node_id
        if content.has_error() and sender != node:  # Flower's own word: the node is gone, or what it sent
            return Answer(node, status="missing", why=f"Flower says: {_reason(content)}")
        if sender != node:
            return Answer(node, status="refused", why=f"the answer says that it is from node {sender}; allowed: the node that was asked.")
        return Answer(node, content)

    def _discard(self, now: float) -> None:
        """Answers to earlier exchanges: noted, and taken off the link, whose memory they fill."""
        for name, answered in self.reader.discard([name for name, request in self._unanswered.items() if request.age > self.keeps]):
            request = self._unanswered.pop(name)
            if answered:
                self.late.append(Late(request.node, request.group, now - request.over))


def _reason(message: Message) -> str:
    lines = str(message.error.reason or "").strip().splitlines() or ["no reason given"]
    return clipped(lines[-1], 200)
