"""Bugs of the kinds that audits have found, planted one at a time: each makes a test of this folder fail."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from apps.federated import accepting, answers, exchange, link_readers, messages, roster, server_app, strategy, weight_rules
from apps.federated.inline import task_identity
from apps.federated.roster import Present
from distill.errors import InputError

from . import test_exchange, test_hardening, test_roster, test_rounds

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def identity() -> Any:
    with task_identity():
        yield


def a_believed_number(patch: Patch) -> None:
    real = accepting._accepted
    patch.setattr(accepting, "_accepted", lambda *args: real(*args[:3], dataclasses.replace(args[3], held=None)))
    steps_as_stated(patch)


def a_share_without_bound(patch: Patch) -> None:
    patch.setattr(answers, "believed", lambda claims: [claimed for claimed, _ in claims])


def steps_as_stated(patch: Patch) -> None:
    real = messages.whole
    patch.setattr(weight_rules, "whole", lambda facts, name, low, high: facts[name] if name == "steps" else real(facts, name, low, high))


def records_that_nobody_asked_for(patch: Patch) -> None:
    patch.setattr(accepting, "check_records", lambda *arguments: None)


def an_answer_of_another_round(patch: Patch) -> None:
    real = messages.whole
    patch.setattr(accepting, "whole", lambda facts, name, low, high: 0 if name == "round" else real(facts, name, low, high))


def batchnorm_counters_as_vectors(patch: Patch) -> None:
    def encode(weights: Any) -> Any:
        return {name: np.ascontiguousarray(value.detach().numpy()) for name, value in weights.items()}

    for module in (strategy, weight_rules):
        patch.setattr(module, "encode_weights", encode)


def numbers_that_are_infinite(patch: Patch) -> None:
    patch.setattr(messages, "_plain", lambda value, depth=1: True)


def an_error_around_combining_ends_the_run(patch: Patch) -> None:
    def aggregate(self: Any, server_round: int, replies: Any) -> Any:
        expected = self._expected(server_round)
        found = [accepting.accept(self.asked[answer.node], answer, self.rule, expected) for answer in replies]
        self.weights = self.rule.combine(server_round, self.weights, [each for each in found if each is not None])
        return None, None

    patch.setattr(strategy.Federation, "aggregate_train", aggregate)


def matched_by_the_sender(patch: Patch) -> None:
    real = exchange.Exchange._checked
    patch.setattr(
        exchange.Exchange,
        "_checked",
        lambda self, node, found: real(self, found.metadata.src_node_id if isinstance(found, messages.Message) else node, found),
    )


def a_deadline_that_parts_do_not_hear_of(patch: Patch) -> None:
    real = link_readers.InParts._parts

    def parts(self: Any, begun: Any, most: int, end: float) -> None:
        patience = time.monotonic() + 3
        while begun.missing and time.monotonic() < patience:
            real(self, begun, most, float("inf"))
            time.sleep(0.05)

    patch.setattr(link_readers.InParts, "_parts", parts)


def sizes_counted_afterwards(patch: Patch) -> None:
    patch.setattr(link_readers.InParts, "_fits", lambda self, response: None)


def late_answers_thrown_away(patch: Patch) -> None:
    patch.setattr(exchange.Exchange, "_discard", lambda self, now: None)


def the_smaller_node_id_wins(patch: Patch) -> None:
    def first(self: Any, nodes: Any, number: int) -> Present:
        found: dict[int, int] = {}
        for node in nodes:
            if isinstance(client := self.said.get(node.id), int) and client not in found.values():
                found[node.id] = client
        return Present(found)

    patch.setattr(roster.Roster, "_sorted", first)


def keys_that_nobody_looks_at(patch: Patch) -> None:
    real = roster.Roster.__init__
    patch.setattr(roster.Roster, "__init__", lambda self, count, keys=None, **rest: real(self, count, None, **rest))


def clients_fixed_at_the_start(patch: Patch) -> None:
    real = roster.Roster.gather

    def once(self: Any, link: Any, number: int) -> Present:
        self.kept = getattr(self, "kept", None) or real(self, link, number)
        return self.kept

    patch.setattr(roster.Roster, "gather", once)


def a_wait_that_is_no_setting(patch: Patch) -> None:
    real = roster.Roster.__init__
    patch.setattr(roster.Roster, "__init__", lambda self, count, keys=None, wait=0.0, least=1: real(self, count, keys, 3.0, least))


def absent_clients_without_a_line(patch: Patch) -> None:
    patch.setattr(strategy.Federation, "_clients", lambda self: list(self.asked.values()))


def two_writers(patch: Patch) -> None:
    import contextlib

    patch.setattr(server_app, "only_writer", lambda folder: contextlib.nullcontext())


def a_statement_check(tmp_path: Path, patch: Patch) -> None:
    # The last two: one half of a surrogate pair, with which the union's file could be written and never read again.
    for text in ('{"a": 1e999}', '{"a": [-1e400]}', '{"a": ' + "[" * 9 + "]" * 9 + "}", '{"a": ["\\ud800"]}', '{"\\udfff": 1}'):
        content = messages.RecordDict({"privacy": messages.ConfigRecord({"statement": text})})
        with pytest.raises(InputError, match="finite numbers"):
            messages.statement_of(content)


def test_statements_are_finite_and_shallow(tmp_path: Path, monkeypatch: Patch) -> None:
    a_statement_check(tmp_path, monkeypatch)


Check = Callable[[Path, Patch], None]
PLANTED: list[tuple[Callable[[Patch], None], Check]] = [
    (
        a_believed_number,
        lambda t, m: test_hardening.test_what_a_client_says_of_itself_is_what_the_server_knows("fedavg", {"num-examples": 10**9}),
    ),
    (a_share_without_bound, lambda t, m: test_hardening.test_a_client_with_images_of_its_own_counts_for_three_at_most("fednova", t)),
    (steps_as_stated, lambda t, m: test_hardening.test_what_a_client_says_of_itself_is_what_the_server_knows("fednova", {"steps": 10**7})),
    (records_that_nobody_asked_for, lambda t, m: test_hardening.test_every_kind_of_change_is_refused_under_the_other_rules("random")),
    (an_answer_of_another_round, lambda t, m: test_hardening.test_an_upload_of_an_earlier_round_is_no_answer()),
    (batchnorm_counters_as_vectors, lambda t, m: test_hardening.test_networks_with_batchnorm_take_part("fedavg")),
    (numbers_that_are_infinite, a_statement_check),
    (an_error_around_combining_ends_the_run, lambda t, m: test_hardening.test_an_error_around_combining_is_a_note_and_no_end(m)),
    (matched_by_the_sender, lambda t, m: test_exchange.test_flowers_own_word_on_a_node_is_matched_by_the_request()),
    (
        a_deadline_that_parts_do_not_hear_of,
        lambda t, m: test_exchange.test_one_that_sends_slowly_is_left_at_the_deadline_and_the_others_are_kept(),
    ),
    (sizes_counted_afterwards, lambda t, m: test_exchange.test_what_is_too_large_is_not_read(1)),
    (late_answers_thrown_away, lambda t, m: test_exchange.test_what_comes_late_is_named_in_the_next_exchange_and_is_not_read()),
    (
        the_smaller_node_id_wins,
        lambda t, m: test_roster.test_without_keys_a_contested_number_is_refused_for_both_and_the_smaller_node_id_does_not_win(),
    ),
    (keys_that_nobody_looks_at, lambda t, m: test_roster.test_with_keys_the_impostor_is_named_and_the_true_client_keeps_its_place(m)),
    (clients_fixed_at_the_start, lambda t, m: test_roster.test_who_joins_late_and_who_comes_back_is_noted()),
    (a_wait_that_is_no_setting, lambda t, m: test_roster.test_the_wait_is_a_setting_and_a_silent_node_is_waited_for_once()),
    (absent_clients_without_a_line, lambda t, m: test_rounds.test_two_nodes_with_one_number_and_foreign_numbers_are_not_let_in()),
    (two_writers, lambda t, m: test_rounds.test_two_servers_do_not_write_one_folder(t, m)),
]


@pytest.mark.parametrize(("plant", "check"), PLANTED, ids=lambda part: getattr(part, "__name__", "check"))
def test_a_planted_bug_is_caught(plant: Callable[[Patch], None], check: Check, tmp_path: Path, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with pytest.raises((AssertionError, pytest.fail.Exception, RecursionError, KeyError, TypeError, ValueError)):
        check(tmp_path, monkeypatch)
