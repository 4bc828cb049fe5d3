"""The Flower Strategy: asks clients, checks every answer, lets a rule make the new weights, and writes down what happened.

One strategy for all runs; only the rule differs (rules.py). A client that is absent, crashes, is silent or sends something invalid loses
its upload and is named in the round's line, and the round continues. Without a valid answer the model stays unchanged.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import cast

import torch
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from apps.federated import checkpoint, live
from apps.federated.answers import FACTS, Accepted, Rule, believed
from apps.federated.exchange import NO_ANSWER, Answer, Exchange
from apps.federated.messages import (
    ArrayRecord,
    ConfigRecord,
    Message,
    MetricRecord,
    RecordDict,
    check_records,
    facts_of,
    record_of,
    size,
    whole,
)
from apps.federated.roster import Present, Roster
from apps.federated.settings import Settings
from apps.federated.wire import MAX_WEIGHT, encode_weights
from distill.condensed import CondensedSet
from distill.errors import Diverged, InputError, clipped
from distill.randomness import generator
from distill.records import CannotWrite, Json, append_line, read_lines, write_json_lines
from distill.spec import DataSpec

Weights = dict[str, Tensor]


@dataclass
class Asked:
    """One client in one round: bytes sent and received, and the result."""

    client: int
    down: int
    up: int = 0
    status: str = "missing"
    why: str = NO_ANSWER
    note: str = ""  # that it joined late, or came back
    images: int = 0
    seconds: float | None = None
    privacy: dict[str, Json] | None = None  # the statement that came with its upload


class Federation(Strategy):
    """The Flower strategy of all runs.

    A resumed run continues the numbers of rounds from its checkpoint (``done``).

    Args:
        settings: of the run.
        rule: turns answers into new weights.
        spec: of the data.
        weights: the first weights.
        roster: knows which node is which client.
        judge: gives the accuracy of weights in percent.
        folder: for rounds and checkpoint; None: nothing is written.
        sizes: examples of each client by the run's partition; None: unknown.
    """

    def __init__(
        self,
        settings: Settings,
        rule: Rule,
        spec: DataSpec,
        weights: Weights,
        roster: Roster,
        *,
        judge: Callable[[Weights], float],
        folder: Path | None = None,
        sizes: Sequence[int] | None = None,
    ) -> None:
        self.settings, self.rule, self.spec, self.roster, self.judge, self.folder = settings, rule, spec, roster, judge, folder
        self.weights, self.sizes = weights, sizes
        self.done, self.number = 0, 0
        self.began = 0.0  # the round, in seconds of the monotonic clock
        self.before = weights, rule.state()  # to go back to where a round's weights are refused
        self.claims: dict[int, tuple[int, int | None]] = {}  # examples as each client says, and as the server knows
        self.asked: dict[int, Asked] = {}  # by node
        self.present = Present({})
        self.numbers: dict[int, int] = {}  # client numbers of all nodes so far
        self.away: dict[int, int] = {}  # by client: the first round in which it was not there, until it is accepted again
        self.link: Exchange | None = None
        self.live = live.Live(0, 0)
        self.note = ""
        self.lines: list[dict[str, Json]] = []
        what = {name: value for name, value in asdict(settings).items() if name not in ("min_clients", "wait")}  # may change on the way
        self.key = json.dumps([what, spec.facts], sort_keys=True, default=str)
        self._resume()

    def run(self, link: Exchange) -> None:
        """The rounds that are left, by Flower's loop, which hands on what ``link`` gives."""
        self.link = link
        self.roster.gather(link, self.done + 1)  # so that a run without clients ends before it begins
        self.start(
            cast(Grid, link),
            record_of(encode_weights(self.weights)),
            num_rounds=self.settings.rounds - self.done,
            timeout=self.settings.timeout,
            evaluate_fn=self.evaluate,
        )

    # What Flower calls, round by round

    def configure_train(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        assert self.link is not None
        number = self.number = server_round + self.done
        self.present = self.roster.gather(self.link, number)
        self.numbers, self.rule.clients = self.numbers | self.present.clients, self.roster.size
        self.note, self.asked, self.began = "", {}, time.monotonic()
        if (there := len(self.present.clients)) < self.roster.least:
            self.note = f"{there} of at least {self.roster.least} clients are there: the model stays as it was"
            return []
        weights, extra = self.rule.request(self.weights)
        content: dict[str, ArrayRecord | MetricRecord | ConfigRecord] = {
            "ask": ConfigRecord({"round": number, "spec": json.dumps(asdict(self.spec))}),
            **({} if weights is None else {"arrays": record_of(encode_weights(weights))}),
            **({} if extra is None else {"control": record_of(encode_weights(extra))}),
        }
        most = self.rule.most_bytes(self.weights)
        self.link.most = most + most // 4 + (1 << 20)  # Flower's wrapping of parts
        messages = []
        for node in self._taking_part(number):
            record = RecordDict(content)
            client = self.present.clients[node]
            self.asked[node] = Asked(client, size(record), note=self.present.notes.get(client, ""))
            messages.append(Message(record, dst_node_id=node, message_type=self.rule.action, group_id=str(number)))
        self.live = live.begin(self.folder, number, len(messages))
        self.link.heard = self._heard
        return messages

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> tuple[ArrayRecord | None, MetricRecord | None]:
        number = server_round + self.done
        if self.link is not None:
            self.link.heard = None
        self.before = self.weights, self.rule.state()
        accepted: list[Accepted] = []
        for answer in cast(Iterable[Answer], replies):  # `Exchange` gives these
            if (result := self._accept(self.asked[answer.node], answer)) is not None:
                accepted.append(result)
        accepted.sort(key=lambda each: each.client)  # replies come in any order
        if not (accepted := self._admitted(accepted)):
            self.note = self.note or "no valid answer: the model stays as it was"
            return None, None
        try:
            new = self.rule.combine(number, self.weights, self._sized(accepted))
        except CannotWrite:  # the server's disk: the run can be resumed from its checkpoint
            raise
        except Exception as error:  # whatever answers set off that each passed alone
            self._put_back(f"the answers could not be put together ({clipped(f'{type(error).__name__}: {error}', 200)})")
            return None, None
        # Not-a-number fails it too; clients refuse more than this, so that larger values would end every later round.
        if not all(bool((value.abs() <= MAX_WEIGHT).all()) for value in (*new.values(), *self.rule.state().values())):
            self._put_back(f"the new weights are not finite or above {MAX_WEIGHT:g}")
            return None, None
        self.weights, self.note = new, self.rule.note
        return record_of(encode_weights(new)), MetricRecord({"accepted": len(accepted)})

    def configure_evaluate(self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid) -> Iterable[Message]:
        return []  # the server judges

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        return None

    def summary(self) -> None:
        return None

    def evaluate(self, server_round: int, arrays: ArrayRecord) -> MetricRecord | None:
        """Flower's ``evaluate_fn``: accuracy, then the round's line, then the checkpoint."""
        number = server_round + self.done
        if server_round == 0 and self.lines:  # a resumed run has judged its first weights
            return None
        try:
            accuracy = self.judge(self.weights)
        except Diverged as error:  # weights that are finite one by one, and a network whose outputs are not
            if not server_round:
                raise
            self._put_back(str(error))
            accuracy = self.judge(self.weights)
        clients, link = self._clients() if server_round else [], self.link
        for each in clients:
            if each.status in ("missing", "absent", "contested"):
                self.away.setdefault(each.client, number)
        line: dict[str, Json] = {
            "round": number,
            "accuracy": accuracy,
            "up": sum(each.up for each in clients),
            "down": sum(each.down for each in clients),
            "images": sum(each.images for each in clients),
            "dropped": sum(each.status not in ("accepted", "empty") for each in clients),
            "strays": link.strays if link is not None else 0,
            "overrun": link.overrun if link is not None and server_round else 0.0,
            "note": self.note,
            "clients": [asdict(each) for each in clients],
            "unknown": [
                {"node": str(each.node), "why": each.why} for each in self.present.left_out if each.client is None and server_round
            ],
            "late": [
                {"client": self.numbers.get(late.node), "round": late.group, "within": late.seconds}
                for late in (link.late if link is not None and server_round else ())
            ],
        }
        self.lines.append(line)
        if self.folder is not None:
            append_line(self.folder / "rounds.jsonl", line)
            live.end(self.folder)
            checkpoint.save(self.folder / checkpoint.NAME, self.key, number, self.weights, self.rule.state())
        return MetricRecord({"accuracy": accuracy / 100})  # a fraction, as Flower's own strategies give it

    # Its parts

    def _heard(self, node: int) -> None:
        self.live = live.heard(self.folder, self.live, self.asked[node].client)

    def _put_back(self, why: str) -> None:
        """Restore the weights and the rule's state from before this round."""
        self.weights = self.before[0]
        self.rule.load_state(self.before[1])
        self.note = f"{why.rstrip('.')}: the model stays as it was"

    def _clients(self) -> list[Asked]:
        """All clients of the round: those that were asked, and those that could not be."""
        others = [Asked(each.client, 0, 0, each.status, each.why) for each in self.present.left_out if each.client is not None]
        return sorted([*self.asked.values(), *others], key=lambda each: each.client)

    def _taking_part(self, number: int) -> list[int]:
        """Nodes in the order of their client numbers; a fraction of them is drawn by number, so that the draw repeats."""
        clients = self.present.clients
        nodes = sorted(clients, key=lambda node: clients[node])
        count = max(1, round(self.settings.fraction * len(nodes)))
        if count == len(nodes):
            return nodes
        order = torch.randperm(len(nodes), generator=generator(self.settings.seed, "participants", number)).tolist()
        return [nodes[place] for place in sorted(order[:count])]

    def _accept(self, asked: Asked, answer: Answer) -> Accepted | None:
        if (reply := answer.message) is None:
            asked.status, asked.why, asked.up = answer.status, answer.why, answer.up
            return None
        if reply.has_error():
            reason = (str(reply.error.reason or "").strip().splitlines() or ["no reason given"])[-1]
            asked.status, asked.why = "failed", clipped(reason, 200)
            return None
        try:
            asked.up = size(reply.content)
            check_records(reply.content, self.rule.records, FACTS, self.rule.most_bytes(self.weights))
            facts, value = facts_of(reply.content), self.rule.read(reply.content, self.weights)
            whole(facts, "round", self.number, self.number)
            whole(facts, "partition-id", asked.client, asked.client)
            most = max(self.settings.timeout, time.monotonic() - self.began)
            seconds = facts.get("seconds")
            if seconds is not None and not (isinstance(seconds, int | float) and 0 <= seconds <= most):
                raise InputError(f"seconds is {clipped(seconds, 40)}; allowed: 0 to {most:.0f}, as the round is no older.")
            if value is not None:
                self._known(asked.client, facts)
        except InputError as error:
            asked.status, asked.why = "refused", str(error)
            return None
        except Exception as error:  # another party's bytes: whatever error they cause, the round continues
            asked.status, asked.why = "refused", clipped(f"{type(error).__name__}: {error}", 200)
            return None
        asked.seconds = None if seconds is None else float(seconds)
        if value is None:
            asked.status, asked.why = "empty", "holds nothing that was asked for"
            return None
        asked.status, asked.why = "accepted", ""
        if (since := self.away.pop(asked.client, None)) is not None and not asked.note:
            asked.note = f"came back: it was not there from round {since} on"
        asked.images = len(value) if hasattr(value, "__len__") else 0
        asked.privacy = value.provenance.dp if isinstance(value, CondensedSet) else None
        known, examples = self._known(asked.client, facts), facts.get("num-examples", 1)
        self.claims[asked.client] = (int(examples) if isinstance(examples, int | float) else 1, known)
        return Accepted(asked.client, value)

    def _admitted(self, accepted: list[Accepted]) -> list[Accepted]:
        """Those whose uploads the rule admits, with what it leaves of them; the others are excluded with its reason."""
        decisions = self.rule.admit(accepted)
        for each in self.asked.values():
            if (made := decisions.get(each.client)) is not None:
                each.images, each.note = len(made.images or ()), "; ".join(filter(None, (each.note, made.note)))
                each.status, each.why = (each.status, each.why) if made.images is not None else ("excluded", made.why)
        left = [(each, decisions[each.client].images if each.client in decisions else each.value) for each in accepted]
        return [replace(each, value=value) for each, value in left if value is not None]

    def _known(self, client: int, facts: Mapping[str, object]) -> int | None:
        """The client's number of examples by the run's partition, None if it is unknown; `InputError` if the client claims another."""
        if self.sizes is None or facts.get("own-data") or "num-examples" not in facts:
            return None
        return whole(facts, "num-examples", self.sizes[client], self.sizes[client])

    def _sized(self, accepted: list[Accepted]) -> list[Accepted]:
        numbers = believed([self.claims[each.client] for each in accepted])
        return [replace(each, examples=number) for each, number in zip(accepted, numbers, strict=True)]

    def _resume(self) -> None:
        if self.folder is None:
            return
        path, rounds = self.folder / checkpoint.NAME, self.folder / "rounds.jsonl"
        if path.exists():
            self.done, self.weights, kept = checkpoint.load(path, self.key)
            self.rule.load_state(kept)
            self.lines = [line for line in read_lines(rounds) if line["round"] <= self.done]
        write_json_lines(rounds, self.lines)
