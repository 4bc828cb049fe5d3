"""Whole messages from hostile clients: nothing that one client says ends a run, drops an honest client or counts for more than it is."""

import json
import resource
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from apps.federated.answers import LARGEST_SHARE, believed
from apps.federated.client_app import client_app
from apps.federated.inline import run_inline
from apps.federated.messages import Array, ArrayRecord, Context, Message, RecordDict
from apps.federated.settings import CONDENSING, WEIGHTS
from apps.federated.silence import LOG
from apps.federated.tables import LocalConfig
from distill.condensed import CondensedSet

from . import test_private
from .changes import KINDS, Change, changed, fact
from .test_rounds import data, facts, settings


def hostile(change: Change, seed: int, app: Any = None) -> Callable[[Message, Context], Message]:
    """Client 1's real reply, changed."""
    app = app or client_app(data())
    rng = np.random.default_rng(seed)

    def client(message: Message, context: Context) -> Message:
        reply = app(message, context)
        if message.metadata.message_type != "query.who" and context.node_config["partition-id"] == 1:
            change(reply.content, rng)
        return reply

    return client


HONEST, HOSTILE = 2, 8  # clients of a round
VARIANTS = 20


class Crowd:
    """Two honest clients, whose answers were made once, and eight hostile ones that send those of the honest ones with a change each."""

    def __init__(self, turn: Iterator[tuple[str, int]]) -> None:
        self.app, self.made, self.turn = client_app(data()), {}, turn
        self.sent: dict[tuple[str, int], str] = {}

    def __call__(self, message: Message, context: Context) -> Message:
        number = int(context.node_config["partition-id"])
        if message.metadata.message_type == "query.who":
            return self.app(message, context)
        if number not in self.made:
            self.made[number] = self.app(message, context).content
        content, group = RecordDict(dict(self.made[number].items())), message.metadata.group_id
        fact(round=int(group))(content, np.random.default_rng(0))
        if number >= HONEST and (found := next(self.turn, None)) is not None:
            self.sent[group, number] = found[0]
            content = changed(content, *found)
        return Message(content, reply_to=message)


def resident() -> int:
    """Bytes of memory that this process holds now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.parametrize("strategy", ["feddm", "scaffold"])
def test_hundreds_of_hostile_messages_lose_no_honest_client_and_no_memory(strategy: str, tmp_path: Path) -> None:
    """Twenty kinds in twenty variants, eight a round, with a folder, so that unions and lines are written too."""
    crowd = Crowd((kind, seed) for seed in range(VARIANTS) for kind in KINDS)
    cheap = {"upload": {"ipc": 1, "settings": {"iterations": 1}}, "server": {"recipe": {"max_steps": 1}}, "local": {"max_steps": 1}}
    rounds = len(KINDS) * VARIANTS // HOSTILE
    made = settings(strategy=strategy, rounds=rounds, partition={"num_partitions": HONEST + HOSTILE}, **cheap)
    held: list[int] = []
    monitored = lambda message, context: (held.append(resident()), crowd(message, context))[1]  # noqa: E731
    lines = run_inline(made, data(), tmp_path, client=monitored)
    assert [line["round"] for line in lines] == list(range(rounds + 1)), "the run ends as it should"
    seen: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for line in lines[1:]:
        assert [each["status"] for each in line["clients"][:HONEST]] == ["accepted"] * HONEST
        for each in line["clients"][HONEST:]:
            seen[crowd.sent[str(line["round"]), each["client"]]].append(each["status"])
            assert each["status"] == "accepted" or each["why"].isprintable()
            assert len(each["why"]) < 400
    for kind, statuses in seen.items():
        assert len(statuses) == VARIANTS
        passed = statuses.count("accepted")
        assert set(statuses) <= {"refused", "empty", "accepted"}
        assert passed <= (VARIANTS // 10 if kind == "flipped header" else 0), kind  # a bit of the padding may change nothing
    assert max(held) - held[len(held) // 5] < 100e6, "twenty texts of 10 MB are not kept"


@pytest.mark.parametrize("strategy", ["fedavg", "fedprox", "fednova", "random"])
def test_every_kind_of_change_is_refused_under_the_other_rules(strategy: str) -> None:
    crowd = Crowd((kind, 0) for kind in KINDS)
    cheap = {"upload": {"ipc": 1, "settings": {"iterations": 1}}, "server": {"recipe": {"max_steps": 1}}, "local": {"max_steps": 1}}
    made = settings(strategy=strategy, rounds=3, partition={"num_partitions": HONEST + HOSTILE}, **cheap)
    lines = run_inline(made, data(), client=crowd)
    for line in lines[1:]:
        for each in line["clients"]:
            bad = (str(line["round"]), each["client"]) in crowd.sent
            assert (each["status"] == "accepted") != bad, crowd.sent.get((str(line["round"]), each["client"]))


def test_an_upload_of_an_earlier_round_is_no_answer() -> None:
    app, first = client_app(data()), {}

    def client(message: Message, context: Context) -> Message:
        number = context.node_config["partition-id"]
        if message.metadata.message_type != "query.who" and number in first and number == 1:
            return Message(first[number].content, reply_to=message)
        reply = app(message, context)
        if message.metadata.message_type != "query.who":
            first.setdefault(number, reply)
        return reply

    lines = run_inline(settings(rounds=2), data(), client=client)
    assert [each["status"] for each in lines[1]["clients"]] == ["accepted"] * 3
    assert [each["status"] for each in lines[2]["clients"]] == ["accepted", "refused", "accepted"]
    assert "round is 1" in lines[2]["clients"][1]["why"]


@pytest.mark.parametrize(
    ("strategy", "claim"), [("fednova", {"steps": 10**7}), ("fedavg", {"num-examples": 10**9}), ("fednova", {"steps": 1})]
)
def test_what_a_client_says_of_itself_is_what_the_server_knows(strategy: str, claim: dict[str, int]) -> None:
    lines = run_inline(settings(strategy=strategy, rounds=1, local={"epochs": 2}), data(), client=hostile(fact(**claim), 0))
    assert [each["status"] for each in lines[1]["clients"]] == ["accepted", "refused", "accepted"]


def test_where_the_server_does_not_know_a_share_is_bounded() -> None:
    assert believed([(100, None), (120, None), (10**9, None)]) == [100, 120, int(LARGEST_SHARE * 120)]
    assert believed([(10_000, 10_000), (10, 10), (10, 10)]) == [10_000, 10, 10]
    assert believed([(10**9, None), (10**9, None), (100, 100)]) == [300, 300, 100], "claims do not move the median of what is known"


@pytest.mark.parametrize("strategy", ["fedavg", "fednova"])
def test_a_client_with_images_of_its_own_counts_for_three_at_most(strategy: str, tmp_path: Path) -> None:
    """The new weights are those of the capped share, also in the steps that FedNova takes for everybody."""
    made = settings(strategy=strategy, rounds=1, local={"lr": 0.05, "batch_size": 8})
    plain = run_inline(made, data(), tmp_path / "plain")
    claims = [10**9, 120]  # of 40 images a client: three times 40 are believed, whatever is said
    for place, claim in enumerate(claims):
        change = fact(**{"own-data": 1, "num-examples": claim, "steps": made.local.steps(claim)})
        run_inline(made, data(), tmp_path / str(place), client=hostile(change, 0))
    weights = [load_file(tmp_path / name / "checkpoint.safetensors") for name in ("plain", "0", "1")]
    names = [name for name in weights[0] if name.startswith("weights/")]
    first = torch.cat([weights[0][name].flatten() for name in names])
    moved = [float((torch.cat([w[name].flatten() for name in names]) - first).norm()) for w in weights[1:]]
    assert plain[1]["dropped"] == 0
    assert 0 < moved[0] < 3 * moved[1], "a thousand million examples move the weights as 120 do"


@pytest.mark.parametrize("strategy", ["fedavg", "scaffold"])
def test_finite_weights_whose_outputs_are_not_are_put_back(strategy: str) -> None:
    """A negative running variance passes every check of single values and makes each output NaN."""

    def change(content: RecordDict, rng: np.random.Generator) -> None:
        arrays = ArrayRecord()
        for name, array in content["arrays"].items():
            value = array.numpy()
            arrays[name] = Array(np.full_like(value, -1e6)) if name.endswith("running_var") else array
        content["arrays"] = arrays

    made = settings(strategy=strategy, rounds=2, network="ConvNetD1W32BN")
    app = client_app(data())
    lines = run_inline(made, data(), client=hostile(change, 0, app))
    assert [line["round"] for line in lines] == [0, 1, 2]
    assert all("NaN or infinite" in line["note"] for line in lines[1:])
    assert len({line["accuracy"] for line in lines}) == 1


def test_one_change_of_control_does_not_shut_the_honest_clients_out() -> None:
    """SCAFFOLD: a control above what clients take would end every later round; the round that makes it one is refused."""

    def change(content: RecordDict, rng: np.random.Generator) -> None:
        if "change" in content:
            content["change"] = ArrayRecord({name: Array(np.full_like(array.numpy(), 1e6)) for name, array in content["change"].items()})

    lines = run_inline(settings(strategy="scaffold", rounds=6), data(), client=hostile(change, 0))
    assert any("above 1e+06" in line["note"] for line in lines)
    assert all(each["status"] == "accepted" for line in lines[1:] for each in line["clients"] if each["client"] != 1)


def test_a_refused_round_leaves_no_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from apps.federated import image_rule as rules

    def learn(*arguments: Any) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr(rules, "learn", learn)
    run_inline(settings(rounds=1, server={"memory": 2}), data(), tmp_path)
    assert not [name for name in load_file(tmp_path / "checkpoint.safetensors") if name.startswith("rule/")]


@pytest.mark.parametrize("examples", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("most", [None, 3])
def test_steps_of_a_round_are_those_of_the_loop(examples: int, most: int | None) -> None:
    config = LocalConfig(epochs=2, batch_size=8, max_steps=most)
    counted = 0
    for _ in range(2):
        for _ in range(0, examples, 8):
            counted += most is None or counted < most
    assert config.steps(examples) == counted


@pytest.mark.parametrize("strategy", [*CONDENSING, *WEIGHTS])
def test_networks_with_batchnorm_take_part(strategy: str) -> None:
    """Its counter is a scalar, which every client and the server must get as one; its running means have no control variate."""
    made = settings(strategy=strategy, rounds=2, network="ConvNetD1W32BN", local={"lr": 0.05, "batch_size": 8})
    lines = run_inline(made, data())
    assert all(line["dropped"] == 0 for line in lines)
    assert [each["status"] for each in lines[-1]["clients"]] == ["accepted"] * 3


def test_an_error_around_combining_is_a_note_and_no_end(monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.federated import image_rule as rules

    real, calls = rules.union, [0]

    def union(*arguments: Any) -> CondensedSet:
        calls[0] += 1
        if calls[0] == 1:
            raise RecursionError("maximum recursion depth exceeded")
        return real(*arguments)

    monkeypatch.setattr(rules, "union", union)
    lines = run_inline(settings(rounds=2), data())
    assert "RecursionError" in lines[1]["note"]
    assert lines[1]["accuracy"] == lines[0]["accuracy"]
    assert lines[2]["note"] == ""


def test_honest_runs_are_what_they_were() -> None:
    first, second = run_inline(settings(), data()), run_inline(settings(), data(), client=client_app(data()))
    assert facts(first) == facts(second)


def test_a_private_client_that_fails_says_nothing_of_its_data(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The text of an exception may hold file names, classes and counts; the reason stays in the client's own log."""
    from apps.federated import client_answers
    from apps.federated import client_app as apps

    def fails(*arguments: Any, **named: Any) -> None:
        raise FileNotFoundError("ward/malignant/Jane-Doe.png: 17 images of class 'malignant'")

    monkeypatch.setattr(client_answers, "upload", fails)
    monkeypatch.setattr(apps, "private_upload", fails)
    made = test_private.settings()
    line = run_inline(made, test_private.data(), privacy=test_private.privacy(tmp_path, made))[1]
    assert {each["status"] for each in line["clients"]} == {"failed"}
    assert "Jane" not in json.dumps(line) + caplog.text
    assert "own log" in line["clients"][0]["why"]
    assert "Jane-Doe" in (tmp_path / "client-0" / LOG).read_text()
    plain = run_inline(settings(rounds=1), data())[1]
    assert "Jane-Doe" in plain["clients"][0]["why"], "without privacy the reason is told"
