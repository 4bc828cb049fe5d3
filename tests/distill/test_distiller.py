"""A user's own method that returns what no method may return is refused in one line that names its class and the part."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distill.checkpoint import load_checkpoint, save_checkpoint, state_of
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.errors import InputError
from distill.randomness import generator
from distill.run import condense


class Plain:
    """The smallest method: it changes nothing."""

    total_steps: Any = 2

    def __init__(self, initial: CondensedSet) -> None:
        self.initial, self.made, self.steps = initial, 0, torch.zeros(1)

    @property
    def condensed(self) -> Any:
        return self.initial

    def step(self, statistics: Any, generator: torch.Generator) -> Any:
        self.made += 1
        return {"loss": torch.zeros(())}

    def state(self) -> Any:
        return {"steps": self.steps}

    def load_state(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]


def spoilt(initial: CondensedSet, part: str, found: Any, good: int = 0) -> Plain:
    """`Plain` with a part that gives ``found``, for ``step`` after so many good answers."""

    class Mine(Plain):
        pass

    if part in ("step", "state"):
        right = getattr(Plain, part)
        setattr(Mine, part, lambda self, *given: right(self, *given) if self.made < good else found)
    else:
        setattr(Mine, part, property(lambda self: found) if part == "condensed" else found)
    return Mine(initial)


CASES: list[tuple[str, Any, str]] = [
    ("step", None, "step() returns None; allowed: a dict from name to a 0-dimensional real tensor."),
    ("step", "0.1", "step() returns a str '0.1'; allowed"),
    ("step", torch.zeros(()), "step() returns a Tensor; allowed"),
    ("step", {"loss": "low"}, "step() has under 'loss' a str 'low'; allowed"),
    ("step", {"loss": None}, "step() has under 'loss' None; allowed"),
    ("step", {"loss": torch.zeros(3)}, "step() has under 'loss' a tensor of shape (3,) and type torch.float32; allowed"),
    ("step", {"loss": torch.zeros((), dtype=torch.complex64)}, "type torch.complex64; allowed"),
    ("step", {1: torch.zeros(())}, "step() has the key 1, an int 1; allowed"),
    ("condensed", None, "condensed is None; allowed: a CondensedSet."),
    ("condensed", torch.zeros(3), "condensed is a Tensor; allowed: a CondensedSet."),
    ("condensed", lambda: None, "condensed is a function; allowed: a CondensedSet (decorate it with @property)."),
    ("total_steps", "3", "total_steps is a str '3'; allowed: a whole number, 0 or more."),
    ("total_steps", None, "total_steps is None; allowed"),
    ("total_steps", -1, "total_steps is an int -1; allowed"),
    ("total_steps", 2.0, "total_steps is a float 2.0; allowed"),
    ("state", None, "state() returns None; allowed: a dict from name to a tensor."),
    ("state", [torch.zeros(1)], "state() returns a list; allowed"),
    ("state", {"steps": 3}, "state() has under 'steps' an int 3; allowed"),
]


@pytest.mark.parametrize(("part", "found", "says"), CASES, ids=[f"{part}-{place}" for place, (part, _, _) in enumerate(CASES)])
def test_a_wrong_part_is_one_line(part: str, found: Any, says: str, toy_data: ImageData) -> None:
    initial = condense(toy_data, "dm", iterations=1, network="ConvNetD1W8")
    with pytest.raises(InputError) as caught:
        condense(toy_data, spoilt(initial, part, found))
    assert str(caught.value).startswith("method Mine: ")
    assert says in str(caught.value)


def test_a_step_that_is_wrong_later_is_refused_there(toy_data: ImageData) -> None:
    initial = condense(toy_data, "dm", iterations=1, network="ConvNetD1W8")
    mine = spoilt(initial, "step", None, good=1)
    with pytest.raises(InputError, match=r"method Mine: step\(\) returns None"):
        condense(toy_data, mine)
    assert mine.made == 1


def test_numbers_and_steps_without_a_loss_are_fine(toy_data: ImageData) -> None:
    initial = condense(toy_data, "dm", iterations=1, network="ConvNetD1W8")
    for found in ({"loss": 0.5}, {"loss": torch.tensor(1)}):
        assert condense(toy_data, spoilt(initial, "step", found)).images.equal(initial.images)


@pytest.mark.parametrize("error", [KeyError("images"), AttributeError("no such"), ZeroDivisionError("0")])
def test_load_state_that_raises_is_one_line(error: Exception, tmp_path: Path, toy_data: ImageData) -> None:
    initial = condense(toy_data, "dm", iterations=1, network="ConvNetD1W8")
    file = tmp_path / "checkpoint.safetensors"

    class Mine(Plain):
        def load_state(self, state: dict[str, Any]) -> None:
            raise error

    mine, draws = Mine(initial), generator(0, "test")
    save_checkpoint(file, {"a": 1}, state_of(mine.state(), draws, 1), 0.0)
    with pytest.raises(InputError) as caught:
        load_checkpoint(file, {"a": 1}, mine, draws)
    assert str(caught.value).startswith(f"{file}: method Mine: load_state raised {type(error).__name__}: ")
    assert "allowed: to take what state() returned" in str(caught.value)
