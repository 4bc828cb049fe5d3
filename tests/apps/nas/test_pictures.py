"""Figures of a ranking study: every proxy can be told from the others, and an outlier leaves room for the rest."""

import math
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from apps.nas import pictures


def proxies(count: int) -> dict:
    """Proxies of equal value and cost, which lie on one another where position is value against cost."""
    kinds = list(pictures.COLOURS)
    figures = {"value": 0.5, "low": 0.4, "high": 0.6}
    return {
        f"proxy {i}": {"kind": kinds[i % len(kinds)], "spearman": figures, "regret@1": figures, "seconds": {"total": 3.0}}
        for i in range(count)
    }


@pytest.mark.parametrize("statistic", ["spearman", "regret@1"])
def test_every_proxy_has_a_row_of_its_own_with_its_name(statistic: str) -> None:
    given = proxies(22)
    figure, axis = pictures._by_cost(given, statistic)
    assert sorted(label.get_text() for label in axis.get_yticklabels()) == sorted(given)
    for part in figure.axes:
        points = [line.get_xydata()[0] for line in part.lines if line.get_marker() in pictures.MARKERS.values()]
        assert sorted(y for _, y in points) == list(range(22))
    assert not [text for part in figure.axes for text in part.texts]  # no figures written on points
    looks = {(pictures.COLOURS[kind], pictures.MARKERS[kind]) for kind in pictures.COLOURS}
    assert len(looks) == len({marker for _, marker in looks}) == len(pictures.COLOURS)  # apart without colour, too
    height = figure.get_size_inches()[1]
    assert height / 22 > 0.2  # inches a row: names of 8 points do not touch


def test_the_best_proxy_is_on_top() -> None:
    given = proxies(3)
    given["proxy 1"] = given["proxy 1"] | {
        "spearman": {"value": 0.9, "low": 0.8, "high": 1.0},
        "regret@1": {"value": 0.1, "low": 0.0, "high": 0.2},
    }
    given["proxy 2"] = given["proxy 2"] | {"spearman": {"value": math.nan, "low": math.nan, "high": math.nan}}
    for statistic, rows in (("spearman", 2), ("regret@1", 3)):
        _, axis = pictures._by_cost(given, statistic)
        names = [label.get_text() for label in axis.get_yticklabels()]
        assert (names[-1], len(names)) == ("proxy 1", rows)


def test_a_network_at_chance_level_leaves_the_others_their_room() -> None:
    values = np.concatenate([np.linspace(70, 80, 40), [10.0]])
    low, high = pictures._axis_range(values)
    assert high == 80
    assert 45 < low < 70
    everything = np.linspace(70, 80, 40)
    assert pictures._axis_range(everything) == (70, 80)  # nothing is cut off where nothing is far
    assert pictures._axis_range(np.full(5, 50.0)) == (50, 50)
    assert pictures._axis_range(np.array([])) == (0, 100)


def test_what_is_beyond_an_axis_is_counted_and_what_is_not_known_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Figure] = []

    class Kept(Figure):
        def __init__(self, *given: Any, **options: Any) -> None:
            super().__init__(*given, **options)
            made.append(self)

    monkeypatch.setattr(pictures, "Figure", Kept)
    truth = np.array([*np.linspace(80, 84, 9), math.nan, 10.0])
    values = np.array([*np.linspace(60, 64, 8), math.nan, 70.0, 11.0])
    assert pictures.scatter(truth, {"dm": ("condensed", values), "nothing": ("early", np.full(11, math.nan))}, 2)
    panel, empty = made[0].axes[:2]
    assert [text.get_text() for text in panel.texts] == ["hollow: 1 beyond an axis"]
    assert panel.get_xlim()[0] > 40
    assert panel.get_ylim()[0] > 60
    drawn = np.concatenate([points.get_offsets() for points in panel.collections[:3]])
    assert len(drawn) == 9  # nine networks have both figures
    assert not empty.texts
    assert pictures.scatter(np.full(11, math.nan), {"dm": ("condensed", values)}, 2)
