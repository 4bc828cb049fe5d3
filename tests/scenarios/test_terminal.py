"""What is printed on a terminal of 80 columns: tables fold, sentences wrap at words, a pipe gets whole lines."""

import io
import re
import time
import tomllib
from pathlib import Path

import pytest
from rich.console import Console

from scenarios.engine import progress
from scenarios.engine.complaints import columns, terminal_width, wrapped
from scenarios.engine.study import say
from scenarios.pipeline.show import answer
from scenarios.reporting.text import as_text
from tests.scenarios.test_cli import call

HEADER = ["proxy", "Spearman", "Kendall", "top 10", "regret@1", "regret@5", "seconds", "bytes", "break-even", "interval", "over", "seeds"]
ROWS = [HEADER, *([f"method {i}", *(f"{i}.{j} (0.{i} to {j})" for j in range(len(HEADER) - 1))] for i in range(4))]


@pytest.mark.parametrize("width", [40, 80, 100, 149])
def test_a_wide_table_folds_into_blocks_that_name_their_rows(width: int) -> None:
    text = as_text(ROWS, width=width)
    assert max(map(len, text.splitlines())) <= width
    blocks = [block.splitlines() for block in text.split("\n\n")]
    assert all([line.partition("  ")[0] for line in block] == [row[0] for row in ROWS] for block in blocks)
    cells = [[cell for block in blocks for cell in re.split(r"\s{2,}", block[number])[1:]] for number in range(len(ROWS))]
    assert cells == [row[1:] for row in ROWS], "every cell once, in order"


def test_without_a_width_a_row_is_one_line() -> None:
    assert len(as_text(ROWS).splitlines()) == len(ROWS)
    assert as_text(ROWS, width=1000) == as_text(ROWS)
    assert as_text([], width=80) == ""


def test_long_cells_wrap_and_lose_nothing() -> None:
    label = "continual-cifar100 memory.per_class=[5, 10] learner.strategies=scratch,online stream.orders=3 " + "x" * 90
    rows = [["run", "figure", "mean"], [label, "cells.scratch bytes10 dm uint8.accuracy", "52.2"]]
    text = as_text(rows, left=2, width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert sorted(re.sub(r"\s", "", text)) == sorted("".join("".join(row) for row in rows).replace(" ", ""))


def test_sentences_wrap_at_words_on_a_terminal_only() -> None:
    sentence = "Accuracy of ten images a class: 96.4 % (random 94.0 ± 0.4, herding 95.7 ± 0.2, class_mean 90.6 ± 2.1, kmeans 94.6 ± 0.6)."
    lines = wrapped(sentence, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert " ".join(lines) == sentence
    assert wrapped(sentence, None) == sentence
    assert terminal_width(io.StringIO()) is None
    for terminal, count in ((True, 2), (False, 1)):
        out = io.StringIO()
        say(Console(file=out, force_terminal=terminal, width=80, color_system=None), sentence)
        assert len(out.getvalue().splitlines()) == count
        assert " ".join(out.getvalue().split()) == sentence


def test_a_list_of_names_keeps_its_columns() -> None:
    found = columns([("dm", "short"), ("continual-cifar100-cut-domains", "a title of several words that does not fit beside it")], 60)
    lines = found.splitlines()
    assert max(map(len, lines)) <= 60
    starts = {len(line) - len(line[32:].lstrip()) for line in lines}
    assert starts == {32}


def test_the_answer_of_a_pipeline_is_a_line_a_stage() -> None:
    row = {"value": 71.25, "low": None, "high": None}
    many = {f"scratch dm float32 items{i}": row for i in range(9)}
    results = {name: {} for name in ("epsilon", "accuracy", "forgetting", "rank_correlation", "attack_rate")}
    results |= {"stages": {name: {"status": "done"} for name in ("clients", "learner", "attack")}}
    results["epsilon"] = {"clients": {"feddm-0": {**row, "value": 1.853, "delta": 1e-5, "insecure": False, "clients": {"0": 1, "1": 1.8}}}}
    results["accuracy"] = {"clients": {"feddm": row}, "learner": many}
    results["forgetting"] = {"learner": {"scratch": row}}
    results["attack_rate"] = {"attack": {"dm": row}}
    results["audit"] = {"attack": {"found_epsilon": 1.0, "claimed_epsilon": 4.0, "holds": True}}
    lines = answer({"results": results, "status": "done"}).splitlines()
    assert [line.partition(":")[0] for line in lines] == ["clients", "learner", "attack"]
    assert max(map(len, lines)) < 260
    assert "and 6 more in the table" in lines[1]
    assert "at epsilon 1.85 (delta 1e-05, the worst of 2 clients)" in lines[0]


@pytest.mark.parametrize("terminal", [True, False])
def test_watched_work_shows_how_much_is_done(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    out, asked = io.StringIO(), iter(range(100))
    console = Console(file=out, force_terminal=terminal, width=80, color_system=None)
    last = [0]

    def count() -> int:
        last[0] = min(5, next(asked))
        return last[0]

    news = iter([["round 1 of 5"], ["round 2 of 5"]])
    given = {"now": lambda: "client 3 of 4", "news": lambda: next(news, [])}
    with progress.watched(console, "rounds", 10, count, look=0.01, **given):
        while last[0] < 3:
            time.sleep(0.01)
    assert ("/10" if terminal else "of 10 done, about ") in out.getvalue()
    assert "client 3 of 4" in out.getvalue()
    assert out.getvalue().count("round 1 of 5\n") == (0 if terminal else 1), "where there is a bar, no lines"


def test_the_news_stand_before_a_line_that_follows_them_whatever_the_clock() -> None:
    for look in (0.0005, 60.0):
        out, finished = io.StringIO(), list(range(1, 41))
        console, ready = Console(file=out, width=80, color_system=None), [0]
        said = [0]

        def news(ready: list[int] = ready, said: list[int] = said) -> list[str]:
            fresh = [f"round {number}" for number in range(said[0] + 1, ready[0] + 1)]
            said[0] = ready[0]
            return fresh

        with progress.watched(console, "rounds", 40, lambda: 0, look=look, news=news) as say_news:
            for number in finished:
                ready[0] = number
                say_news()
                console.print(f"end of {number}")
        assert out.getvalue().splitlines() == [line for number in finished for line in (f"round {number}", f"end of {number}")]


def test_the_time_left_is_in_a_readable_unit() -> None:
    assert [progress.time_left(*given) for given in ((0, 4, 9.0), (1, 3, 10.0), (1, 4, 200.0), (1, 3, 7200.0), (4, 4, 1.0))] == [
        "",
        "about 20 s left",
        "about 10 min left",
        "about 4.0 h left",
        "",
    ]


def test_every_extra_that_a_page_or_message_names_exists() -> None:
    root = Path(__file__).parents[2]
    known = tomllib.loads((root / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    files = [path for part in ("distill", "apps", "scenarios", "docs", "examples") for path in (root / part).rglob("*")]
    texts = [path.read_text() for path in [*files, root / "README.md"] if path.suffix in (".py", ".md", ".toml")]
    named = {extra for text in texts for found in re.findall(r"(?:distill-apps|\")\.?\[([a-z,]+)\]\"", text) for extra in found.split(",")}
    assert named <= set(known), named - set(known)
    assert {"nas", "privacy", "continual", "federated"} <= named


def test_an_evaluation_of_many_networks_folds_at_the_terminals_width(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import distill
    from distill.coresets import select
    from distill.evaluation import Accuracy, Evaluation
    from distill.randomness import generator
    from distill.train import Recipe
    from scenarios.commands.evaluation import evaluate as command

    names = [f"ConvNetD{depth}W128" for depth in range(1, 8)]
    rows = {name: dict.fromkeys(names, Accuracy((91.0, 92.5))) for name in ("condensed", "random", "whole")}
    made = Evaluation(rows, "test", Recipe(), notes=("a note that is longer than a line " * 4,))
    monkeypatch.setattr("distill.evaluation.evaluate", lambda *given, **named: made)
    monkeypatch.setattr(command, "terminal_width", lambda: 80)
    path = tmp_path / "set.safetensors"
    select(distill.load("digits"), "random", 1, generator(0, "set")).save(path)
    code, printed, errors = call("evaluate", path, "--data", "digits")
    assert code == 0, errors
    assert max(map(len, printed.splitlines())) <= 80
    assert printed.count("91.8 ± 9.5") == 3 * len(names)
    assert all(f"{name}" in printed for name in names)
    assert "one recipe for all (laptop): SGD" in " ".join(printed.split())
