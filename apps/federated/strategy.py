"""The Flower Strategy: asks clients, checks every answer, lets a rule make the new weights, and writes down what happened.

One strategy for all runs; only the rule differs (rules.py). A client that is absent, crashes, is silent or sends something invalid loses
its upload and is named in the round's line, and the round continues. Without a valid answer the model stays unchanged.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import cast

import torch
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from torch import Tensor

from apps.federated import checkpoint, live, overdue
from apps.federated.accepting import Asked, Counts, Expected, accept
from apps.federated.answers import Accepted, Rule, counted
from apps.federated.exchange import Exchange
from apps.federated.link_readers import Answer
from apps.federated.messages import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict, record_of, size
from apps.federated.overdue import Overdue
from apps.federated.roster import Present, Roster
from apps.federated.settings import Settings, taking_part
from apps.federated.wire import MAX_WEIGHT, encode_weights
from distill.condensed import CondensedSet
from distill.errors import Diverged, clipped
from distill.randomness import generator
from distill.records import CannotWrite, Json, append_line, read_lines, write_json_lines
from distill.spec import DataSpec

Weights = dict[str, Tensor]


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
        held: images of each class that each client has by the run's partition; None: unknown.
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
        held: Sequence[Counts] | None = None,
    ) -> None:
        self.settings, self.rule, self.spec, self.roster, self.judge, self.folder = settings, rule, spec, roster, judge, folder
        self.weights, self.held = weights, held
        self.done = 0
        self.began: dict[int, float] = {}  # rounds, in seconds of the monotonic clock
        self.before = weights, rule.state()  # to go back to where a round's weights are refused
        self.asked: dict[int, Asked] = {}  # by node
        self.late: list[Overdue] = []  # uploads of earlier rounds that this one took or saw
        self.waiting: list[Accepted] = []  # of rounds in which too few came
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
        link.keeps = self.settings.staleness if self.rule.late else 0
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
        number = server_round + self.done
        self.present = self.roster.gather(self.link, number)
        self.numbers, self.rule.clients = self.numbers | self.present.clients, self.roster.size
        self.note, self.asked, self.late, self.began[number] = "", {}, [], time.monotonic()
        self.link.begin()
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
        entries: dict[int, Asked] = {}  # of the uploads below, by client
        accepted: list[Accepted] = []
        for answer in cast(Iterable[Answer], replies):  # `Exchange` gives these
            asked = self.asked[answer.node]
            if (result := accept(asked, answer, self.rule, self._expected(number))) is not None:
                self._came_back(asked)
                entries[asked.client] = asked
                accepted.append(result)
        accepted += self._earlier(number, entries)
        accepted.sort(key=lambda each: each.client)  # replies come in any order
        accepted = self._admitted(accepted, entries)
        if len(accepted) < (least := self.settings.quorum or 1) or not self.asked:
            self.waiting = accepted if self.rule.late and self.settings.staleness else []
            wait = ", and they wait for the next one" if self.waiting else ""
            too_few = f"{len(accepted)} of at least {least} uploads: the model stays as it was{wait}"
            self.note = self.note or (too_few if accepted else "no valid answer: the model stays as it was")
            return None, None
        self.waiting = []
        try:
            new = self.rule.combine(number, self.weights, counted(accepted))
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
        late = self.late if server_round else []
        for each in clients:
            if each.status in ("missing", "absent", "contested"):
                self.away.setdefault(each.client, number)
        line: dict[str, Json] = {
            "round": number,
            "accuracy": accuracy,
            "up": sum(each.up for each in clients) + sum(each.asked.up for each in late),
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
                *overdue.unread(link.late if link is not None and server_round else (), self.numbers),
                *(each.entry() for each in late),
            ],
        }
        self.lines.append(line)
        if self.folder is not None:
            append_line(self.folder / "rounds.jsonl", line)
            live.end(self.folder)
            kept = {**self.rule.state(), **overdue.to_state(self.waiting)}
            checkpoint.save(self.folder / checkpoint.NAME, self.key, number, self.weights, kept)
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
        count = taking_part(self.settings.fraction, len(nodes))
        if count == len(nodes):
            return nodes
        order = torch.randperm(len(nodes), generator=generator(self.settings.seed, "participants", number)).tolist()
        return [nodes[place] for place in sorted(order[:count])]

    def _expected(self, number: int) -> Expected:
        return Expected(number, self.began.get(number, 0.0), self.settings.timeout, self.weights, self.held, self.settings.upload.classes)

    def _came_back(self, asked: Asked) -> None:
        if (since := self.away.pop(asked.client, None)) is not None and not asked.note:
            asked.note = f"came back: it was not there from round {since} on"

    def _earlier(self, number: int, entries: dict[int, Asked]) -> list[Accepted]:
        """The uploads of earlier rounds that count in this one: late answers, and those that wait. They join the ``entries``."""
        came = [(each, Overdue(Asked(each.client, 0, status="kept", why=""), each.round)) for each in self.waiting]
        for answer in self.link.belated if self.link is not None else ():
            if answer.message is None and answer.status == "missing":  # Flower has given it up
                continue
            then = Overdue(Asked(self.numbers[answer.node], 0), int(answer.group), answer.seconds)
            self.late.append(then)
            if (result := accept(then.asked, answer, self.rule, self._expected(then.round))) is not None:
                came.append((result, then))
        used = overdue.usable([each for each, _ in came], entries, number, self.settings.staleness)
        for each, then in came:
            if any(each is other for other in used):
                entries[each.client] = then.asked
                self.late += [then] if then.asked.status == "kept" else []
            elif then.asked.status == "accepted":
                then.asked.status, then.asked.why, then.asked.images = "unused", "a newer one of the client is there", 0
        return used

    def _admitted(self, accepted: list[Accepted], entries: Mapping[int, Asked]) -> list[Accepted]:
        """Those whose uploads the rule admits, with what it leaves of them; the others are excluded with its reason."""
        decisions = self.rule.admit(accepted)
        for client, each in entries.items():
            if (made := decisions.get(client)) is not None:
                each.note = "; ".join(filter(None, (each.note, made.note)))
                each.status, each.why = (each.status, each.why) if made.images is not None else ("excluded", made.why)
        left = [(each, decisions[each.client].images if each.client in decisions else each.value) for each in accepted]
        for one, value in left:
            entries[one.client].images = len(value) if isinstance(value, CondensedSet) else 0
        return [replace(each, value=value) for each, value in left if value is not None]

    def _resume(self) -> None:
        if self.folder is None:
            return
        path, rounds = self.folder / checkpoint.NAME, self.folder / "rounds.jsonl"
        if path.exists():
            self.done, self.weights, kept = checkpoint.load(path, self.key)
            self.waiting = overdue.from_state(kept, self.settings, self.spec)
            self.rule.load_state({name: value for name, value in kept.items() if not name.startswith(overdue.STATE)})
            self.lines = [line for line in read_lines(rounds) if line["round"] <= self.done]
        write_json_lines(rounds, self.lines)
