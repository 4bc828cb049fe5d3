"""Every field of every config dataclass: a wrong type, a value out of range and a misspelt key are one line that says what to do."""

import copy
import dataclasses
import datetime
import json
import math
import pickle
import types
import typing
from collections.abc import Iterator
from typing import Any, Literal

import annotated_types
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.configure import config_class, configure
from distill.errors import InputError
from distill.methods import METHODS
from distill.train import PROTOCOLS, Recipe
from scenarios.engine.schema import DataTable, EvaluationTable

WHERE = "study.toml: [table]"


@config_class
class Either:
    """A list of either kind, and a choice beside a number."""

    both: tuple[int | Literal["all"], ...] = ()
    one: Literal["a", "b"] | int = "a"


# The others are these with other defaults.
METHOD_CONFIGS = [METHODS[name][0] for name in ("gm", "dm", "datadam", "mtt", "dcc", "cafe", "idm", "ncfm")]
KINDS: tuple[type[Any], ...] = (*METHOD_CONFIGS, Recipe, DataTable, EvaluationTable)
REQUIRED: dict[type[Any], dict[str, Any]] = {DataTable: {"name": "digits"}}
WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}


def refused(kind: type[Any], values: dict[str, Any]) -> str:
    with pytest.raises(InputError) as caught:
        configure(kind, {**REQUIRED.get(kind, {}), **values}, WHERE)
    message = str(caught.value)
    assert type(caught.value) is InputError
    assert "\n" not in message
    assert len(message) < 500
    assert message.startswith(f"{WHERE}: ")
    return message


@dataclasses.dataclass(frozen=True)
class Field:
    """What a type annotation says, read here without the code under test."""

    kind: type[Any]
    name: str
    leaf: Any  # int, float, str, bool, a dataclass, or the element's type of a list
    optional: bool
    literals: tuple[Any, ...]
    limits: tuple[Any, ...]
    is_list: bool
    element_limits: tuple[Any, ...]

    def __str__(self) -> str:
        return f"{self.kind.__name__}.{self.name}"


def _strip(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    if typing.get_origin(hint) is typing.Annotated:
        base, *extras = typing.get_args(hint)
        found = [m for extra in extras for m in (extra.metadata if isinstance(extra, pydantic.fields.FieldInfo) else [extra])]
        return base, tuple(found)
    return hint, ()


def fields(kind: type[Any]) -> Iterator[Field]:
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        optional = typing.get_origin(hint) in (types.UnionType, typing.Union)
        if optional:
            parts = [part for part in typing.get_args(hint) if part is not type(None)]
            assert len(parts) == 1, f"{kind.__name__}.{name}: teach this test about unions"
            hint = parts[0]
        base, limits = _strip(hint)
        literals = typing.get_args(base) if typing.get_origin(base) is typing.Literal else ()
        is_list = typing.get_origin(base) is tuple
        leaf, element_limits = _strip(typing.get_args(base)[0]) if is_list else (base, ())
        yield Field(kind, name, str if literals else leaf, optional, literals, limits, is_list, element_limits)


FIELDS = [field for kind in KINDS for field in fields(kind)]
EVERY_FIELD = pytest.mark.parametrize("field", FIELDS, ids=str)
NUMBERS = [field for field in FIELDS if field.leaf in (int, float)]


def wrong_values(field: Field) -> list[Any]:
    """Values of another type than the field's; bool is no number, text is no number, a table is no value."""
    table = {"a": 1}
    if dataclasses.is_dataclass(field.leaf):
        wrong = [3, True, 1.5, "text", [1], math.nan]
    elif field.is_list:
        element = {int: ["1", True, 1.5, None, [1], table], str: [1, True, 1.5, None, ["x"], table]}
        element |= {float: ["0.5", True, None, math.nan, math.inf, [0.5], table]}
        wrong = [3, True, 1.5, "text", *([value] for value in element[field.leaf])]
    else:
        by_type = {
            int: ["3", True, False, 1.5, 2.0, math.nan, math.inf, [1], table, ""],
            float: ["0.5", True, False, math.nan, math.inf, -math.inf, [0.5], table, "", "nan"],
            str: [3, True, 1.5, math.nan, ["x"], table],
            bool: [0, 1, "true", 1.5, [True], table],
        }
        wrong = by_type[field.leaf]
    return wrong + ([] if field.optional else [None])


def out_of_range(field: Field) -> list[tuple[Any, str]]:
    """(value just outside, the bound as the message must name it)."""
    found: list[tuple[Any, str]] = []
    for limits, wrap in ((field.limits, lambda v: v), (field.element_limits, lambda v: [v])):
        for limit in limits:
            step = 1 if field.leaf is int else 1e-9
            if isinstance(limit, annotated_types.Ge):
                found += [(wrap(limit.ge - step), f"of at least {limit.ge}"), (wrap(limit.ge - 10**6), f"of at least {limit.ge}")]
            elif isinstance(limit, annotated_types.Gt):
                found += [(wrap(limit.gt), f"above {limit.gt}"), (wrap(limit.gt - 1), f"above {limit.gt}")]
            elif isinstance(limit, annotated_types.Le):
                found += [(wrap(limit.le + step), f"of at most {limit.le}")]
            elif isinstance(limit, annotated_types.Lt):
                found += [(wrap(limit.lt), f"below {limit.lt}"), (wrap(limit.lt + 5), f"below {limit.lt}")]
            elif isinstance(limit, annotated_types.MinLen):
                found += [([], f"with at least {limit.min_length}")]
            else:
                raise AssertionError(f"{field}: teach this test about {limit}")
    return found


def test_the_list_of_fields_is_not_empty_by_accident() -> None:
    assert len(FIELDS) > 40
    assert sum(1 for field in FIELDS if out_of_range(field)) > 25
    assert sum(1 for field in FIELDS if field.literals) >= 6
    for kind in KINDS:
        assert {f.name for f in FIELDS if f.kind is kind} == {f.name for f in dataclasses.fields(kind)}


@EVERY_FIELD
def test_a_wrong_type_names_the_key_the_value_and_what_is_allowed(field: Field) -> None:
    allowed = (
        "a table"
        if dataclasses.is_dataclass(field.leaf)
        else "a list of "
        if field.is_list
        else None
        if field.literals
        else WORDS[field.leaf]
    )
    for value in wrong_values(field):
        message = refused(field.kind, {field.name: value})
        assert f"key '{field.name}' is " in message, message
        given_text = message.partition(" is ")[2].partition("; allowed: ")[0]
        # Of a list, the element at fault may be shown instead of the whole.
        inner = [value, *(value if isinstance(value, list) else [])]
        assert given_text in [json.dumps(v)[:80] for v in inner] + ["null"] * (value in (None, [None])) + [
            "NaN",
            "Infinity",
            "-Infinity",
        ] * (isinstance(value, float) and not math.isfinite(value)), (value, message)
        allowed_text = message.partition("; allowed: ")[2]
        if field.literals:
            assert all(repr(option) in allowed_text for option in field.literals), message
        else:
            assert allowed is not None
            assert allowed_text.startswith(allowed), message
        assert ("or nothing" in allowed_text) == field.optional, message


@pytest.mark.parametrize("field", [f for f in FIELDS if out_of_range(f)], ids=str)
def test_a_value_out_of_range_names_its_bound(field: Field) -> None:
    for value, bound in out_of_range(field):
        message = refused(field.kind, {field.name: value})
        shown = value[0] if isinstance(value, list) and value else value
        assert f"key '{field.name}' is {json.dumps(shown)}; allowed: " in message, message
        assert bound in message.partition("; allowed: ")[2], message


@pytest.mark.parametrize("field", NUMBERS, ids=str)
def test_huge_whole_numbers_end_in_a_value_or_a_line(field: Field) -> None:
    for value in (10**30, -(10**30), 2**63, -(2**63) - 1, 10**400, 16**5000):
        shown = [value] if field.is_list else value
        if value < 0 or value > 10**4299:
            assert f"key '{field.name}'" in refused(field.kind, {field.name: shown})
            continue
        try:
            made = configure(field.kind, {**REQUIRED.get(field.kind, {}), field.name: shown}, WHERE)
        except InputError:
            refused(field.kind, {field.name: shown})
        else:
            kept = getattr(made, field.name)
            assert (kept[0] if field.is_list else kept) == field.leaf(value)
            assert field.leaf is int or math.isfinite(kept)


@EVERY_FIELD
def test_a_misspelt_key_is_answered_with_the_nearest(field: Field) -> None:
    names = {f.name for f in dataclasses.fields(field.kind)}
    for typo in (field.name + "x", field.name[1:], field.name.upper() if len(field.name) > 30 else field.name[:-1] + "_"):
        if typo in names:
            continue
        message = refused(field.kind, {typo: 1})
        assert message.startswith(f"{WHERE}: key {typo!r} is not known; did you mean ")
        assert message.endswith(f"Allowed: {', '.join(sorted(names))}.")
    assert f"did you mean {field.name!r}?" in refused(field.kind, {field.name + "_": 1})


@pytest.mark.parametrize("field", [f for f in FIELDS if f.literals], ids=str)
def test_a_misspelt_choice_is_answered_with_the_nearest(field: Field) -> None:
    for option in field.literals:
        typo = option[:-1] + "_"
        message = refused(field.kind, {field.name: typo})
        allowed = ", ".join(sorted(field.literals))
        assert message == f"{WHERE}: key {field.name!r}: value {typo!r} is not known; did you mean {option!r}? Allowed: {allowed}."
        assert getattr(configure(field.kind, {**REQUIRED.get(field.kind, {}), field.name: option}, WHERE), field.name) == option


def test_a_missing_key_is_named() -> None:
    with pytest.raises(InputError) as caught:
        configure(DataTable, {}, WHERE)
    assert str(caught.value) == f"{WHERE}: key 'name' is missing; allowed: text."


def test_a_table_in_a_table_is_named_by_its_path() -> None:
    assert refused(EvaluationTable, {"recipe": {"lr": -1}}) == f"{WHERE}: key 'recipe.lr' is -1; allowed: a number above 0."
    assert refused(EvaluationTable, {"recipe": {"epoch": 3}}).startswith(
        f"{WHERE}: recipe: key 'epoch' is not known; did you mean 'epochs'?"
    )
    assert refused(EvaluationTable, {"recipe": {"optimiser": "adam"}}).startswith(
        f"{WHERE}: key 'recipe.optimiser': value 'adam' is not known; did you mean 'adamw'?"
    )


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_the_defaults_spelled_out_give_the_defaults(kind: type[Any]) -> None:
    plain = configure(kind, REQUIRED.get(kind, {}), WHERE)
    written = json.loads(json.dumps(dataclasses.asdict(plain)))
    assert configure(kind, written, WHERE) == plain
    assert dataclasses.fields(kind)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(plain, dataclasses.fields(kind)[0].name, None)


@pytest.mark.parametrize("name", PROTOCOLS)
def test_every_protocol_is_a_recipe_that_a_file_could_hold(name: str) -> None:
    assert configure(Recipe, dataclasses.asdict(PROTOCOLS[name]), WHERE) == PROTOCOLS[name]


def test_a_whole_number_is_a_number() -> None:
    made = configure(Recipe, {"lr": 1, "weight_decay": 0}, WHERE)
    assert (made.lr, type(made.lr)) == (1.0, float)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (
            datetime.date(2020, 1, 2),
            "key 'network': a value of type date ('2020-01-02') is not allowed; use numbers, text, true/false or lists.",
        ),
        (b"ConvNet", "key 'network': a value of type bytes"),
        ({1, 2}, "key 'network': a value of type set"),
    ],
)
def test_a_value_that_is_no_plain_value_is_refused(value: object, words: str) -> None:
    assert f"{WHERE}: {words}" in refused(METHODS["dm"][0], {"network": value})


def test_depth_and_broken_text_are_refused() -> None:
    deep: Any = 1
    for _ in range(100_000):
        deep = [deep]
    nest: Any = [[1]]
    for _ in range(150):
        nest = [nest]
    for kind, name in ((METHODS["dm"][0], "network"), (EvaluationTable, "recipe"), (DataTable, "classes")):
        assert f"{WHERE}: key '{name}': maximum recursion depth" in refused(kind, {name: deep})
        refused(kind, {name: nest})
        assert "surrogate" in refused(kind, {name: "\udcff"})
    while isinstance(deep, list):
        deep = deep[0]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20) | st.dates() | st.binary(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=10,
)


@given(
    st.sampled_from(KINDS).flatmap(
        lambda kind: st.tuples(
            st.just(kind), st.dictionaries(st.sampled_from([f.name for f in fields(kind)]) | st.text(max_size=10), anything, max_size=3)
        )
    )
)
@settings(max_examples=300, deadline=None)
def test_any_table_gives_a_config_or_one_line(case: tuple[type[Any], dict[str, Any]]) -> None:
    kind, table = case
    try:
        made = configure(kind, {**REQUIRED.get(kind, {}), **table}, WHERE)
    except InputError:
        refused(kind, table)
    else:
        assert isinstance(made, kind)
        for name, value in table.items():
            kept = getattr(made, name)
            assert (
                (value is None)  # a config may fill in what is left open (DataDAM's forms do)
                or kept == (tuple(value) if isinstance(value, list) else value)
                or dataclasses.is_dataclass(kept)
                or kept == pytest.approx(value)
            )


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Recipe(lr=math.nan), "Recipe: key 'lr' is NaN; allowed: a number above 0."),
        (lambda: Recipe(0), "Recipe: key 'epochs' is 0; allowed: a whole number of at least 1."),
        (lambda: Either((), "a", 3), "Either: has 2 fields and was given more values."),  # type: ignore[call-arg]
        (lambda: Recipe(epoch=3), "Recipe: key 'epoch' is not known; did you mean 'epochs'?"),  # type: ignore[call-arg]
        (lambda: Recipe(temperature=2.0), "Recipe: temperature is 2 and loss is None; allowed: a temperature with loss 'kl'."),
        (lambda: Recipe(teacher={"network": "MLP"}), "Recipe: key 'teacher' is a dict; allowed: Teacher(...)."),  # type: ignore[arg-type]
        (lambda: dataclasses.replace(Recipe(), epochs=0), "Recipe: key 'epochs' is 0; allowed: a whole number of at least 1."),
        (lambda: METHODS["dm"][0](lr_img=-1), "DMConfig: key 'lr_img' is -1; allowed: a number above 0 or nothing (leave it out)."),
        (lambda: DataTable(), "DataTable: key 'name' is missing; allowed: text."),  # type: ignore[call-arg]
        (lambda: configure(Recipe, {"temperature": 2.0}, WHERE), f"{WHERE}: temperature is 2 and loss is None; allowed:"),
    ],
)
def test_an_object_made_in_python_is_checked_like_a_file(make: Any, message: str) -> None:
    with pytest.raises(InputError) as caught:
        make()
    assert type(caught.value) is InputError
    assert str(caught.value).startswith(message)


def test_a_config_takes_a_list_where_a_file_would_and_is_an_ordinary_value() -> None:
    made = Recipe(milestones=[0.5], decay=0.1)  # type: ignore[arg-type]
    assert made == configure(Recipe, {"milestones": [0.5], "decay": 0.1}, WHERE)
    assert made == pickle.loads(pickle.dumps(made)) == copy.deepcopy(made)
    assert hash(made) == hash(dataclasses.replace(made))


def test_a_choice_beside_another_kind_is_listed_without_quotes() -> None:
    assert refused(Either, {"one": "c"}).endswith("key 'one': value 'c' is not known. Allowed: a, b.")
    assert refused(Either, {"both": [None]}).endswith("allowed: a list of a whole number or 'all'.")
