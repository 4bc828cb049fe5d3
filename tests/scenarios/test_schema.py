"""Scenario files: every shipped one is a study, and whatever else comes in gives a study or one line."""

import dataclasses
import json
import math
import random
import re
import tracemalloc
import typing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.coresets import EVERY
from distill.errors import InputError
from distill.methods import METHODS
from distill.networks import NAMES
from distill.train import PROTOCOLS, Recipe
from scenarios.catalogue import KINDS, study
from scenarios.condense.schema import CondenseStudy
from scenarios.engine import scenario
from scenarios.engine.scenario import override, parse, plain_value, read_scenario, shipped
from scenarios.engine.schema import DataTable, EvaluationTable

LONGEST_MESSAGE = 900  # the longest list of names is the networks'

GOOD = """
kind = "condense"
title = "A study"

[data]
name = "digits"
validation = 0.1
size = 16
classes = [0, 1]

[method]
name = "gm"
ipc = [1, 10]
iterations = 5
lr_img = 0.5
distance = "mse"

[evaluation]
protocol = "dsa"
networks = ["ConvNet", "MLP"]
seeds = 2
baselines = ["random", "whole"]
split = "validation"

[evaluation.recipe]
epochs = 3
optimiser = "adamw"
"""


def one_line(message: str) -> str:
    assert message
    assert "\n" not in message
    assert len(message) < LONGEST_MESSAGE
    return message


def refused(action: Any) -> str:
    with pytest.raises(InputError) as caught:
        action()
    return one_line(str(caught.value))


def tables(text: str = GOOD) -> dict[str, Any]:
    return scenario.tomllib.loads(text)


def made(changes: dict[str, Any] | None = None, text: str = GOOD) -> CondenseStudy:
    """The good study with ``path.to.key`` values replaced (None removes a key)."""
    given_tables = json.loads(json.dumps(tables(text)))
    for path, value in (changes or {}).items():
        *parents, last = path.split(".")
        table = given_tables
        for part in parents:
            table = table.setdefault(part, {})
        table[last] = value
        if value is None:
            del table[last]
    return study("study", given_tables, "study.toml")


# What is right


@pytest.mark.parametrize("name", shipped())
def test_every_shipped_scenario_is_a_study(name: str) -> None:
    found, given_tables = read_scenario(name)
    assert found == name
    result = study(name, given_tables, f"{name}.toml")
    assert result.kind == given_tables["kind"]
    assert isinstance(result, CondenseStudy) == (result.kind == "condense")
    assert result.title != name  # it has a title for the list
    assert result == study(name, read_scenario(str(shipped()[name]))[1], "again")


def test_there_are_shipped_scenarios() -> None:
    assert "quickstart" in shipped()


def test_a_file_becomes_the_configs_it_describes() -> None:
    result = made()
    assert (result.name, result.title, result.method, result.ipc) == ("study", "A study", "gm", (1, 10))
    assert result.data == DataTable("digits", 0.1, 16, (0, 1))
    assert result.settings == METHODS["gm"][0](iterations=5, lr_img=0.5, distance="mse")
    recipe = Recipe(epochs=3, optimiser="adamw")
    assert result.evaluation == EvaluationTable("dsa", recipe, ("ConvNet", "MLP"), 2, ("random", "whole"), "validation")
    assert json.loads(json.dumps(result.merged)) == result.merged


def test_the_least_file_takes_all_defaults() -> None:
    result = study("least", {"kind": "condense", "data": {"name": "digits"}, "method": {}}, "least.toml")
    assert (result.title, result.method, result.ipc, result.evaluation) == ("least", "dm", (1,), None)
    assert result.settings == METHODS["dm"][0]()


# The hash


def shuffled(value: Any, rng: random.Random) -> Any:
    if not isinstance(value, dict):
        return value
    keys = list(value)
    rng.shuffle(keys)
    return {key: shuffled(value[key], rng) for key in keys}


def without_nothing(value: Any) -> Any:
    return {k: without_nothing(v) for k, v in value.items() if v is not None} if isinstance(value, dict) else value


@pytest.mark.parametrize("method", METHODS)
def test_equal_studies_have_equal_hashes_whatever_the_order_and_the_defaults(method: str) -> None:
    short = {"kind": "condense", "data": {"name": "digits"}, "method": {"name": method, "ipc": [2]}, "evaluation": {}}
    base = study("a", short, "a.toml")
    assert re.fullmatch("[0-9a-f]{8}", base.hash)
    spelled = without_nothing(base.merged)
    for seed in range(5):
        again = study("b", shuffled({**spelled, "title": "Another title"}, random.Random(seed)), "b.toml")
        assert again.merged == base.merged
        assert again.hash == base.hash
    assert study("c", {**short, "method": {"name": method, "ipc": 2}}, "c.toml").hash == base.hash
    assert study("d", json.loads(json.dumps(short)), "d.toml").hash == base.hash


OTHER_VALUES = {"mix": "mixup", "milestones": [0.5], "decay": 0.5, "layer_weights": [1.0], "decode": "formation:3"}
OTHER_VALUES |= {"loss": "mse", "temperature": 2.0, "hard_weight": 0.5, "teacher": {"epochs": 3}}
OTHER_VALUES |= {"lr_end": 0.5, "mix_probability": 0.25, "ema": 0.5, "scorer": {"epochs": 3}, "best": True}
# Settings of a recipe that are allowed with others only.
NEEDS = {"temperature": {"loss": "kl"}, "hard_weight": {"loss": "cosine"}}
NEEDS |= {
    "warmup": {"schedule": "cosine"},
    "lr_end": {"schedule": "cosine"},
    "mix_probability": {"mix": "mixup"},
    "mix_alpha": {"mix": "mixup"},
}
OTHER_TEXT = {"network": "MLP", "augmentation": "crop", "protocol": "dc", "name": "mnist"}


def another(kind: type[Any], name: str, value: Any) -> Any:
    """An allowed value of a field that is not this one."""
    hint = typing.get_type_hints(kind)[name]
    if name in OTHER_VALUES:
        return OTHER_VALUES[name]
    if typing.get_origin(hint) is typing.Literal:
        return next(option for option in typing.get_args(hint) if option != value)
    if isinstance(value, bool):
        return not value
    if name in OTHER_TEXT:
        return OTHER_TEXT[name]
    if isinstance(value, list | tuple):
        return [*value[:-1], "whole" if name == "baselines" else "MLP"]
    if isinstance(value, float):
        return value / 2 + 0.01
    if value is None and "tuple[str" in str(hint):
        return ["a", "b"]
    return ([7] if "tuple" in str(hint) else 7) if value is None else value + 1


@pytest.mark.parametrize("method", METHODS)
def test_any_other_setting_gives_another_hash(method: str) -> None:
    base_tables = {"kind": "condense", "data": {"name": "digits"}, "method": {"name": method}, "evaluation": {"recipe": {}}}
    base = study("a", base_tables, "a.toml")
    changes: list[tuple[str, str, Any]] = [("method", "ipc", 2), ("data", "classes", [1, 2]), ("method", "ipc", [1, 2])]
    config = METHODS[method][0]
    for table, kind, value in (
        ("data", DataTable, base.data),
        ("method", config, base.settings),
        ("evaluation", EvaluationTable, base.evaluation),
    ):
        names = [f.name for f in dataclasses.fields(kind) if f.name not in ("recipe", "classes")]
        changes += [(table, name, another(kind, name, getattr(value, name))) for name in names]
    recipe = Recipe()
    for field in dataclasses.fields(Recipe):
        own = {field.name: another(Recipe, field.name, getattr(recipe, field.name))}
        changes.append(("evaluation", "recipe", {**NEEDS.get(field.name, {}), **own}))
    seen = {base.hash: "nothing"}
    for table, name, value in changes:
        changed = study("a", {**base_tables, table: {**base_tables[table], name: value}}, "a.toml")  # type: ignore[dict-item]
        assert changed.hash not in seen, (table, name, value, seen.get(changed.hash))
        seen[changed.hash] = f"{table}.{name}"
    assert len(changes) > 25
    assert study("a", {k: v for k, v in base_tables.items() if k != "evaluation"}, "a.toml").hash not in seen


# What is wrong: file, table, key, given, allowed, nearest


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": None}, f"study.toml: key 'kind' is missing; allowed: {', '.join(KINDS)}."),
        ({"kind": "condens"}, f"study.toml: kind 'condens' is not known; did you mean 'condense'? Allowed: {', '.join(sorted(KINDS))}."),
        (
            {"kind": ["condense"]},
            f"study.toml: kind '[\"condense\"]' is not known; did you mean 'condense'? Allowed: {', '.join(sorted(KINDS))}.",
        ),
        ({"title": 3}, "study.toml: key 'title' is 3; allowed: text."),
        ({"metod": {}}, "study.toml: key 'metod' is not known; did you mean 'method'? Allowed: data, evaluation, kind, method, title."),
        ({"data": None}, "study.toml: table [data] is missing; a condense study needs it."),
        ({"method": 3}, "study.toml: [method] is '3'; allowed: a table of settings."),
        ({"evaluation": []}, "study.toml: [evaluation] is '[]'; allowed: a table of settings."),
        ({"method.name": "gmm"}, "study.toml: [method]: key 'name': method 'gmm' is not known; did you mean 'gm'? Allowed: "),
        ({"method.name": ["gm"]}, "study.toml: [method]: key 'name': method '[\"gm\"]' is not known"),
        ({"method.itterations": 5}, "study.toml: [method]: key 'itterations' is not known; did you mean 'iterations'? Allowed: "),
        ({"method.network": "ConvNet5"}, "study.toml: [method]: key 'network': network 'ConvNet5' is not known; did you mean 'ConvNet"),
        ({"method.network": "ConvNetD99"}, "study.toml: [method]: key 'network': network 'ConvNetD99' has depth 99; allowed: 1 to "),
        (
            {"method.augmentation": "colour"},
            "study.toml: [method]: key 'augmentation': augmentation 'colour' is not known; did you mean 'color'? Allowed: ",
        ),
        (
            {"data.nam": "x"},
            "study.toml: [data]: key 'nam' is not known; did you mean 'name'? Allowed: class_names, classes, imbalance, mean, name, size, "
            "std, validation, zca.",
        ),
        ({"data.validation": 1}, "study.toml: [data]: key 'validation' is 1; allowed: a number of at least 0 and below 1."),
        (
            {"evaluation.protocol": "dsaa"},
            "study.toml: [evaluation]: key 'protocol': value 'dsaa' is not known; did you mean 'dsa'? Allowed: ",
        ),
        (
            {"evaluation.networks": ["MLP", "MPL"]},
            "study.toml: [evaluation]: key 'networks': network 'MPL' is not known; did you mean 'MLP'? Allowed: ",
        ),
        ({"evaluation.networks": []}, "study.toml: [evaluation]: key 'networks' is []; allowed: a list of text with at least 1."),
        (
            {"evaluation.baselines": ["hole"]},
            "study.toml: [evaluation]: key 'baselines': value 'hole' is not known; did you mean 'whole'? Allowed: ",
        ),
        ({"evaluation.recipe.lr": 0}, "study.toml: [evaluation]: key 'recipe.lr' is 0; allowed: a number above 0."),
        (
            {"evaluation.recipe.augmentation": "flop"},
            "study.toml: [evaluation]: key 'recipe.augmentation': augmentation 'flop' is not known; did you mean 'flip'? Allowed: ",
        ),
        ({"evaluation.split": "train"}, "study.toml: [evaluation]: key 'split': value 'train' is not known. Allowed: test, validation."),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(changes: dict[str, Any], message: str) -> None:
    assert refused(lambda: made(changes)).startswith(message)


def test_a_kind_that_takes_a_set_is_refused_outside_of_a_pipeline() -> None:
    assert "kind 'released' is only for stages of a pipeline" in refused(lambda: made({"kind": "released"}))


@pytest.mark.parametrize(
    "ipc",
    [0, -1, True, 1.0, 1.5, "1", [], [1, 1], [1, 0], [1, "2"], [[1]], math.nan, 100_001, 16**5000, [16**5000, 1]],
    ids=lambda value: type(value).__name__,
)
def test_ipc_is_a_whole_number_or_several_different_ones(ipc: Any) -> None:
    given_tables = {"kind": "condense", "data": {"name": "digits"}, "method": {"ipc": ipc}}
    message = refused(lambda: study("a", given_tables, "a.toml"))
    assert message.startswith("a.toml: [method]: key 'ipc' is ")
    assert message.endswith("; allowed: a whole number from 1 to 100000, or a list of different ones.")


def test_lists_in_messages_are_those_of_the_code() -> None:
    assert refused(lambda: made({"evaluation.protocol": "zzz"})).endswith(f"Allowed: {', '.join(sorted(PROTOCOLS))}.")
    assert refused(lambda: made({"evaluation.baselines": ["zzz"]})).endswith(
        f"Allowed: {', '.join(sorted([*EVERY, 'label-only', 'whole']))}."
    )
    assert "did you mean 'random-labelled'?" in refused(lambda: made({"evaluation.baselines": ["random-labeled"]}))
    assert refused(lambda: made({"method.name": "zzz"})).endswith(f"Allowed: {', '.join(sorted(METHODS))}.")
    assert refused(lambda: made({"method.network": "zzz"})).endswith(f"Allowed: {', '.join(sorted(NAMES))}.")


def test_study_leaves_the_tables_as_they_were() -> None:
    given_tables = tables()
    study("a", given_tables, "a.toml")
    assert given_tables == tables()


def test_files_that_cannot_be_read_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing = tmp_path / "none.toml"
    assert refused(lambda: parse(missing)) == f"{missing}: cannot be read (No such file or directory)."
    assert refused(lambda: parse(tmp_path)) == f"{tmp_path}: cannot be read (Is a directory)."
    assert refused(lambda: read_scenario("quickstrat")).startswith(
        "scenario 'quickstrat' is not known; did you mean 'quickstart'? Allowed: "
    )
    assert "there is no such file. Allowed: a .toml file" in refused(lambda: read_scenario("no/such.toml"))
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"kind = \xff")
    assert refused(lambda: parse(bad)).startswith(f"{bad}: is not valid TOML ('utf-8' codec can't decode")
    bad.write_text("kind =")
    assert refused(lambda: parse(bad)).startswith(f"{bad}: is not valid TOML (Invalid value")
    big = tmp_path / "big.toml"
    big.write_bytes(b"#" * (1 << 20))
    assert parse(big) == {}
    big.write_bytes(b"#" * ((1 << 20) + 1))
    monkeypatch.setattr(scenario.tomllib, "loads", lambda text: pytest.fail("a file of this size must not be parsed"))
    assert refused(lambda: parse(big)) == f"{big}: 1048577 bytes; a scenario file has at most 1048576."


def test_the_largest_hostile_files_end_soon_and_in_bounded_memory(tmp_path: Path) -> None:
    size = (1 << 20) - 100
    hostile = {
        "arrays": "a = " + "[" * size,
        "inline": "a = " + "{a=" * (size // 3),
        "dotted": "a" + ".a" * (size // 2 - 3) + " = 1",
        "header": "[" + "a." * (size // 2 - 3) + "a]",
        "spaced": 'x = {b = 1, " a "' + ' . "b"' * 100_000 + " = 1}",
        "digits": "a = " + "9" * size,
        "hex": "kind = 0x" + "f" * size,
        "text": "kind = '" + "x" * size + "'",
        "tables": "[[a]]\n" * 20_000,
        "keys": "".join(f"k{i} = 1\n" for i in range(20_000)),
    }
    tracemalloc.start()
    try:
        for name, text in hostile.items():
            path = tmp_path / f"{name}.toml"
            path.write_text(text)
            assert len(text) <= scenario.MAX_BYTES
            refused(lambda path=path: study("a", override(parse(path), ["title=b"]), "a.toml"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 256 << 20


def test_long_comments_and_lists_are_no_long_keys(tmp_path: Path) -> None:
    path = tmp_path / "fine.toml"
    path.write_text("# " + "." * 200 + "\nlr = [" + ", ".join(["0.5"] * 500) + "]\ntitle = '" + ". " * 60 + "'\n")
    assert len(parse(path)["lr"]) == 500


# Anything at all


def outcome(path: Path | None, text: str | None, given_tables: Any, sets: list[str]) -> str:
    """ "study", or "refused"; anything else is the test's failure."""
    try:
        if path is not None and text is not None:
            path.unlink(missing_ok=True)  # some file systems wait for the disk when a file is cut to nothing
            path.write_bytes(text.encode("utf-8", "surrogateescape"))
            given_tables = parse(path)
        result = study("fuzz", override(given_tables, sets), "fuzz.toml")
    except InputError as error:
        one_line(str(error))
        return "refused"
    assert isinstance(result, CondenseStudy)
    assert all(type(n) is int and n >= 1 for n in result.ipc)
    json.dumps(result.merged, allow_nan=False)
    assert len(result.hash) == 8
    return "study"


TOKENS = [
    "[", "]", "{", "}", "=", ".", '"', "'", '"""', "#", "\n", "\\", ",", "-", "_", "true", "nan", "-inf", "1e999", "0x" + "f" * 5000,
    "9" * 5000, "1979-05-27",
    "1979-05-27T07:32:00Z", "[" * 2000, "a." * 20, "\udcff", "\x00", "\u2028", "[[method]]", "[method]", "kind = 1", "\r", "\x1b", "é",
    '"\\ud800"', "[evaluation.recipe.x]",
]  # fmt: skip


def damaged(rng: random.Random, text: str) -> str:
    for _ in range(rng.choice((1, 1, 2, 4))):
        at, what = rng.randrange(len(text) + 1), rng.randrange(6)
        if what == 0:
            text = text[:at] + rng.choice(TOKENS) + text[at:]
        elif what == 1:
            text = text[:at] + text[at + rng.choice((1, 2, 5, 40)) :]
        elif what == 2:
            text = text[:at] + chr(rng.choice((rng.randrange(128), rng.randrange(0xD800)))) + text[at + 1 :]
        elif what == 3:
            lines = text.split("\n")
            rng.shuffle(lines) if rng.random() < 0.1 else lines.insert(rng.randrange(len(lines) + 1), rng.choice(lines))
            text = "\n".join(lines)
        elif what == 4:
            text = text[:at]
        else:
            text = re.sub(r"= .*", lambda found: f"= {rng.choice(TOKENS)}" if rng.random() < 0.1 else found[0], text)
    return text


def test_damaged_files_give_a_study_or_one_line(tmp_path: Path) -> None:
    rng, path = random.Random(11), tmp_path / "fuzz.toml"
    texts = [GOOD, shipped()["quickstart"].read_text()]
    found = [outcome(path, damaged(rng, rng.choice(texts)), None, []) for _ in range(1500)]
    assert found.count("study") > 30
    assert found.count("refused") > 750


def toml(value: Any) -> str:
    """A value as TOML: a small writer of the test's own."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return "nan" if math.isnan(value) else ("inf" if value > 0 else "-inf") if math.isinf(value) else repr(value)
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(k)} = {toml(v)}" for k, v in value.items()) + "}"
    return hex(value) if isinstance(value, int) and value > 10**4000 else str(value) if isinstance(value, int) else json.dumps(value)


def random_value(rng: random.Random, depth: int = 0) -> Any:
    options: list[Any] = [
        True, False, 0, 1, -1, 2, 10, 2**63, 10**40, 16**4500, 0.0, 0.5, 1.0, -0.5, 1e-300, math.nan, math.inf, -math.inf,
        "", "dm", "ConvNet", "digits", "crop", "real", "x" * 300, "\x1b[31m", "\n", "nan", [], {}, [1, 2], ["MLP"], ["random"],
    ]  # fmt: skip
    pick = rng.randrange(len(options) + (6 if depth < 3 else 0))
    if pick < len(options):
        return options[pick]
    if pick % 2:
        return [random_value(rng, depth + 1) for _ in range(rng.randrange(3))]
    return {rng.choice(("a", "lr", "epochs", "name", "é")): random_value(rng, depth + 1) for _ in range(rng.randrange(3))}


KEYS = {
    "data": [f.name for f in dataclasses.fields(DataTable)],
    "method": ["name", "ipc", *{f.name for config, _ in METHODS.values() for f in dataclasses.fields(config)}],
    "evaluation": [f.name for f in dataclasses.fields(EvaluationTable)],
    "evaluation.recipe": [f.name for f in dataclasses.fields(Recipe)],
}


def random_file(rng: random.Random) -> str:
    """Valid TOML with the right tables, in which a few values and keys are anything."""
    lines = [f"kind = {toml('condense' if rng.random() < 0.95 else random_value(rng))}"]
    if rng.random() < 0.1:
        lines.append(f"title = {toml(random_value(rng))}")
    for table, names in KEYS.items():
        if table.startswith("evaluation") and rng.random() < 0.4:
            continue
        values: dict[str, Any] = {"name": "digits"} if table == "data" else {}
        for _ in range(rng.choice((0, 0, 0, 1, 1, 2))):
            name = rng.choice(names)
            values[name + rng.choice(("", "", "", "", "", "s", "\x1b"))] = random_value(rng)
        if table == "evaluation.recipe" and any(line.startswith('"recipe') for line in lines):
            continue
        lines += [f"[{table}]", *(f"{json.dumps(name)} = {toml(value)}" for name, value in values.items())]
    if rng.random() < 0.03:
        lines += ["[more.and.more]", f"a = {toml(random_value(rng))}"]
    return "\n".join(lines)


def test_valid_files_with_random_tables_give_a_study_or_one_line(tmp_path: Path) -> None:
    rng, path = random.Random(12), tmp_path / "fuzz.toml"
    found = []
    for _ in range(2000):
        text = random_file(rng)
        try:
            scenario.tomllib.loads(text)
        except scenario.tomllib.TOMLDecodeError as error:
            pytest.fail(f"the generator must write valid TOML: {error}: {text}")
        found.append(
            outcome(path, text, None, [f"method.{rng.choice(KEYS['method'])}={toml(random_value(rng))}"] if rng.random() < 0.2 else [])
        )
    assert found.count("study") > 160
    assert found.count("refused") > 500


# --set


@given(st.lists(st.text(max_size=30) | st.from_regex(r"[a-z_.]{1,20}=.{0,20}", fullmatch=True), max_size=4))
@settings(max_examples=150, deadline=None)
def test_any_setting_gives_merged_tables_or_one_line(given_settings: list[str]) -> None:
    before = tables()
    try:
        merged = override(before, given_settings)
    except InputError as error:
        one_line(str(error))
        assert refused(lambda: override(before, given_settings)).startswith("--set ")
    else:
        assert isinstance(merged, dict)
        for setting in given_settings[-1:]:
            value: Any = merged
            for part in setting.partition("=")[0].strip().split("."):
                value = value[part]
            read = plain_value(setting.partition("=")[2].strip())
            assert value == read or (value != value and read != read)
        outcome(None, None, before, given_settings)
    assert before == tables()


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3), ("-0.5", -0.5), ("true", True), ("[1, 10]", [1, 10]), ('"3"', "3"), ("gm", "gm"), ("", ""), ("a b", "a b"), ("[1",
        "[1"), ("1\n2", "1\n2"),
        ("True", "True"), ("None", "None"), ("ConvNetD1W32", "ConvNetD1W32"), ("9" * 5000, "9" * 5000), ("[" * 5000, "[" * 5000),
        ("folder:/a b/c", "folder:/a b/c"),
    ],
)  # fmt: skip
def test_a_value_is_read_as_toml_or_is_text(text: str, value: Any) -> None:
    assert plain_value(text) == value
    assert type(plain_value(text)) is type(value)


def test_settings_change_one_key_each_and_later_ones_win() -> None:
    before = tables()
    after = override(
        before, ["method.iterations=7", "evaluation.recipe.lr=0.5", "evaluation.recipe.lr = 0.25", "data.name=a=b", "new.table.key=[1]"]
    )
    assert before == tables()
    expected = tables()
    expected["method"]["iterations"] = 7
    expected["evaluation"]["recipe"]["lr"] = 0.25
    expected["data"]["name"] = "a=b"
    expected["new"] = {"table": {"key": [1]}}
    assert after == expected


@pytest.mark.parametrize("setting", ["", "method", "=3", ".a=3", "a.=3", "a..b=3", " =3"])
def test_a_setting_without_key_or_value_is_refused(setting: str) -> None:
    assert refused(lambda: override({}, [setting])) == f"--set {setting!r}: allowed: key.path=value, for example method.ipc=10."


def test_a_value_is_not_a_table() -> None:
    assert refused(lambda: override(tables(), ["kind.a=3"])) == "--set 'kind.a=3': 'kind' is a value, not a table."


def test_dates_are_no_text() -> None:
    assert "a value of type date" in refused(lambda: study("a", override(tables(), ["data.name=2020-01-01"]), "a.toml"))
    dated = tables(GOOD.replace('name = "digits"', "name = 2020-01-01"))
    assert "a value of type date" in refused(lambda: study("a", override(dated, []), "a.toml"))


def test_an_option_of_a_later_version_changes_the_hash_only_where_it_is_used() -> None:
    from scenarios.engine.schema import config_hash

    old = {"stages": [{"evaluation": {"recipe": {"epochs": 3}}}]}
    unused = {"stages": [{"evaluation": {"recipe": {"epochs": 3, "drop_epochs": None}, "whole_epochs": None}}]}
    used = {"stages": [{"evaluation": {"recipe": {"epochs": 3, "drop_epochs": 2}}}]}
    assert config_hash(old) == config_hash(unused) != config_hash(used)
    assert config_hash({"a": None}) != config_hash({})
    # A shipped study of each kind with a recipe, as its runs before the option were named.
    for name, expected in {"short-dm-cifar10-ipc10": "6eab735a", "nas-digits": "e0a122d9", "federated-smoke": "e020dbb0"}.items():
        assert study(name, read_scenario(name)[1], name).hash == expected
