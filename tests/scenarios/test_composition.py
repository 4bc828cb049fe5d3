"""Guarantees that add up: the worst shard, the sum of rounds, and statements that nobody should believe."""

import math
from typing import Any

import pytest

from apps.privacy.accounting import ADJACENCY, Steps, gaussian_epsilon, spent
from apps.privacy.statement import guarantee
from distill.errors import InputError
from scenarios.engine.composition import in_sequence, one_after_another, side_by_side

DELTA = 1e-5


def stated(sigma: float = 2.0, times: int = 1, **changes: Any) -> dict[str, Any]:
    history = [Steps(sigma, 1.0, times)]
    made = {"epsilon": spent(history, DELTA).epsilon, "delta": DELTA, "adjacency": ADJACENCY, "mechanism": "Gaussian noise"}
    made |= {"releases": times, "accountant": "exact", "history": [list(step) for step in history], "insecure": False}
    return {**made, "not_covered": ["floats"], **changes}


def gaussian_by_quadrature(mu: float, epsilon: float) -> float:
    """delta(epsilon) of N(mu, 1) against N(0, 1), by summing max(0, p - e^eps q) over a fine grid."""
    step = 1e-3
    points = (-12 + step * k for k in range(round((24 + mu) / step)))
    return sum(max(0.0, math.exp(-((x - mu) ** 2) / 2) - math.exp(epsilon - x * x / 2)) for x in points) * step / math.sqrt(2 * math.pi)


def test_the_union_of_disjoint_shards_costs_what_the_worst_client_costs() -> None:
    found = side_by_side({"0": [stated(3.0)], "1": [stated(1.5)], "2": [stated(5.0)]})
    assert found is not None
    assert found["epsilon"] == pytest.approx(stated(1.5)["epsilon"])
    assert found["delta"] == DELTA
    assert found["history"] == [[1.5, 1.0, 1]]
    assert set(found["clients"]) == {"0", "1", "2"}
    assert found["clients"]["2"]["epsilon"] < found["clients"]["0"]["epsilon"] < found["epsilon"]
    text = guarantee(found)
    assert text.startswith(f"The maker states ({found['epsilon']:.2f}, 1.0e-05)-differential privacy (add or remove one labelled example)")
    assert "parallel composition over 3 disjoint shards" in text
    assert "recomputed" in text
    assert "several clients" in text


def test_a_clients_rounds_add_up_and_other_clients_rounds_do_not() -> None:
    found = side_by_side({"0": [stated(2.0), stated(4.0, times=3)], "1": [stated(3.0), stated(3.0)]})
    assert found is not None
    mu = math.sqrt(1 / 2.0**2 + 3 / 4.0**2)
    assert found["epsilon"] == pytest.approx(gaussian_epsilon(mu, DELTA))
    assert gaussian_by_quadrature(mu, found["epsilon"]) == pytest.approx(DELTA, rel=1e-3)
    assert found["releases"] == 4


def test_one_client_without_a_statement_and_there_is_none() -> None:
    assert side_by_side({"0": [stated()], "1": [None]}) is None
    assert side_by_side({"0": [stated(), None]}) is None
    assert side_by_side({}) is None
    assert one_after_another([stated(), None]) is None
    assert one_after_another([]) is None


def test_repeatable_noise_anywhere_is_no_guarantee() -> None:
    found = side_by_side({"0": [stated()], "1": [stated(insecure=True)]})
    assert found is not None
    assert found["insecure"] is True
    assert guarantee(found).startswith("No privacy guarantee")
    assert guarantee(side_by_side({"0": [stated(insecure="no")]})).startswith("No privacy guarantee")


def test_a_client_is_not_believed_when_it_claims_less_than_its_releases_cost() -> None:
    found = side_by_side({"0": [stated(1.0, epsilon=0.1)]})
    assert found is not None
    assert found["epsilon"] == pytest.approx(stated(1.0)["epsilon"])
    more = side_by_side({"0": [stated(1.0, epsilon=50.0)]})
    assert more is not None
    assert more["epsilon"] == 50.0


def test_one_round_of_a_client_does_not_lower_what_another_one_states() -> None:
    found = side_by_side({"0": [stated(5.0, epsilon=3.0), stated(5.0)]})
    assert found is not None
    assert found["epsilon"] == 3.0
    with pytest.raises(InputError, match="history"):
        side_by_side({"0": [stated(1.0, history=[]), stated(5.0)]})


def test_sets_that_may_share_examples_add_up() -> None:
    found = one_after_another([stated(2.0), stated(3.0)])
    assert found is not None
    assert found["epsilon"] == pytest.approx(stated(2.0)["epsilon"] + stated(3.0)["epsilon"])
    assert found["delta"] == 2 * DELTA
    # Never below what exact composition of the two says.
    assert found["epsilon"] >= spent([Steps(2.0, 1.0, 1), Steps(3.0, 1.0, 1)], 2 * DELTA).epsilon


def test_totals_name_the_training_of_experts_and_public_data() -> None:
    """Every total says how many of its releases trained networks, and which data were stated to be public, once each."""
    parts = [stated(2.0, 5, experts=3, public_experts="mnist"), stated(3.0), stated(2.0, 4, experts=4, public_experts="usps")]
    for found in (in_sequence(parts), one_after_another(parts), side_by_side({"0": parts})):
        assert found is not None
        assert (found["releases"], found["experts"], found["public_experts"]) == (10, 7, "mnist, usps")
        words = guarantee(found)
        assert "10 releases, 7 of them steps of DP-SGD" in words
        assert "stated to be public (mnist, usps)" in words
    worst = side_by_side({"0": [stated(2.0, 5, experts=3)], "1": [stated(3.0, 9, experts=9, public_experts="mnist")]})
    assert worst is not None
    assert worst["epsilon"] == pytest.approx(max(stated(2.0, 5)["epsilon"], stated(3.0, 9)["epsilon"]))
    assert worst["experts"] == (3 if worst["releases"] == 5 else 9)
    assert worst["public_experts"] == "mnist"
    plain = in_sequence([stated(), stated(3.0)])
    assert plain is not None
    assert not {"experts", "public_experts"} & plain.keys()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"experts": 2}, "experts is 2; allowed: a whole number from 0 to its 1 releases"),
        ({"experts": -1}, "experts"),
        ({"experts": True}, "experts"),
        ({"experts": [1]}, "experts"),
        ({"epsilon": "small"}, "epsilon"),
        ({"epsilon": -1.0}, "epsilon"),
        ({"epsilon": True}, "epsilon"),
        ({"epsilon": float("nan")}, "epsilon"),
        ({"delta": 2.0}, "delta"),
        ({"releases": None}, "releases"),
        ({"adjacency": "replace one"}, "adjacency"),
        ({"history": None}, "history"),
        ({"history": [[1.0, 1.0]]}, "history"),
        ({"history": [["a", 1.0, 1]]}, "history"),
        ({"history": [[0.0, 1.0, 1]]}, "noise multiplier"),
        ({"history": [[1.0, 1.0, float("inf")]]}, "history"),
        ({"history": [[1.0, 1.0, 1]] * 20_000}, "history"),
        ({"history": []}, "history"),
        ({"history": [[2.0, 1.0, 1]], "releases": 5}, "history"),
        ({"history": [[1.0, 1.0, 10**299]], "releases": 1e12}, "history"),
        ({"history": [[1e-300, 1e-300, 1]]}, "no epsilon"),
    ],
)
def test_hostile_statements_are_one_line(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(InputError, match=text) as caught:
        side_by_side({"7": [stated(**changes)]})
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
