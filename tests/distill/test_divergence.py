"""A run whose numbers are no longer finite ends at that step, keeps the state before it, and goes on from there with another step size."""

import json
import math
from pathlib import Path

import pytest
import torch

from distill import run
from distill.checkpoint import load_changed, load_checkpoint
from distill.data import ImageData
from distill.divergence import Watch
from distill.errors import Diverged, InputError
from distill.methods import METHODS
from distill.randomness import generator
from distill.run import condense
from tests.conftest import toy
from tests.distill.test_every_method import PRESETS, make, small

METHOD = pytest.mark.parametrize("method", [name for name in METHODS if name not in PRESETS])
# A step size at which the images are no longer finite after so many steps, by trying in double precision: it only has to be early.
HUGE = {"iterations": 30, "lr_img": 1e38, "clamp": False}  # pixels that are clamped never leave their range


def diverging(method: str, data: ImageData, tmp_path: Path, **more: object) -> Diverged:
    with pytest.raises(Diverged) as caught:
        condense(data, method, checkpoint=tmp_path / "c", metrics=tmp_path / "m.jsonl", **{**small(method), **HUGE, **more})
    return caught.value


@pytest.mark.parametrize(
    "method", [name for name in METHODS if name not in ("idm", "olcgm", *PRESETS)]
)  # whose step depends on the first images, which differ here
def test_the_first_number_that_is_not_finite_ends_the_run(method: str, toy_data: ImageData, tmp_path: Path) -> None:
    """The step is found here by hand: the first after which the loss or a tensor of the state is not finite."""
    distiller, statistics = make(method, toy_data, ipc=1, **HUGE)
    draws, wanted = generator(0, "distil", method, 1), None
    for step in range(1, 31):
        values = distiller.step(statistics, draws)
        if not all(bool(torch.isfinite(t).all()) for t in (*values.values(), *distiller.state().values()) if t.is_floating_point()):
            wanted = step
            break
    assert wanted is not None
    error = diverging(method, toy_data, tmp_path)
    assert str(error).startswith(f"{method} diverged at step {wanted} of 30")
    assert "lr_img 1e+38" in str(error)
    assert "; try a smaller step size: lr_img=" in str(error)
    assert isinstance(error, InputError)
    lines = [json.loads(line) for line in (tmp_path / "m.jsonl").read_text().splitlines()]
    assert len(lines) == wanted - 1
    assert all(math.isfinite(line["loss"]) for line in lines)


@METHOD
def test_the_last_finite_state_is_kept_and_the_same_settings_are_not_tried_again(
    method: str, toy_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = int(str(diverging(method, toy_data, tmp_path)).partition("at step ")[2].split()[0])
    distiller, _ = make(method, toy_data, ipc=1)
    description = {"method": method, "ipc": 1, "seed": 0, "fingerprint": toy_data.fingerprint, "config": {}}
    with pytest.raises(InputError, match="belongs to a run with other settings"):
        load_checkpoint(tmp_path / "c", description, distiller, generator(0, "a"))
    monkeypatch.setattr(METHODS[method][1], "step", None)
    with pytest.raises(Diverged, match=rf"{method} diverged at step {step} of 30.*it would diverge again"):
        condense(toy_data, method, checkpoint=tmp_path / "c", resume=True, **{**small(method), **HUGE})


@METHOD
def test_a_smaller_step_goes_on_from_the_last_finite_state(method: str, toy_data: ImageData, tmp_path: Path) -> None:
    """The same as loading that state by hand and stepping on; the provenance says what was changed, and when."""
    error = diverging(method, toy_data, tmp_path, iterations=6)
    # The last state from which a finite step was made: the images of the one after it may be finite and far from any image.
    at = max(0, int(str(error).partition("at step ")[2].split()[0]) - 2)
    settings = {**small(method), "iterations": 6, "lr_img": 0.5, "clamp": False}
    tiny = condense(toy_data, method, checkpoint=tmp_path / "d", resume_from=tmp_path / "c", **settings)
    distiller, statistics = make(method, toy_data, ipc=1, **settings)
    draws = generator(99, "other")
    facts = {"method": method, "ipc": 1, "seed": 0, "fingerprint": toy_data.fingerprint}
    config = {name: value for name, value in tiny.provenance.config.items() if name not in ("ipc", "continued")}
    assert load_changed(tmp_path / "c", {**facts, "config": config}, distiller, draws).step == at
    for _ in range(at, 6):
        distiller.step(statistics, draws)
    assert torch.equal(tiny.images, distiller.condensed.images)
    assert bool(torch.isfinite(tiny.images).all())
    assert tiny.provenance.config["continued"] == [{"step": at, "changed": {"lr_img": [1e38, 0.5]}}]


def test_only_step_sizes_may_change_in_the_middle_of_a_run(toy_data: ImageData, tmp_path: Path) -> None:
    diverging("dm", toy_data, tmp_path)
    settings = {**small("dm"), **HUGE}
    with pytest.raises(InputError, match="had the same settings; change one"):
        condense(toy_data, "dm", resume_from=tmp_path / "c", **settings)
    with pytest.raises(InputError, match="had batch_real 8, this one has 4; only step sizes, momentum and max_norm may change"):
        condense(toy_data, "dm", resume_from=tmp_path / "c", **{**settings, "batch_real": 4})
    with pytest.raises(InputError, match="had ipc 1, this one has 2"):
        condense(toy_data, "dm", ipc=2, resume_from=tmp_path / "c", **{**settings, "lr_img": 1.0})
    with pytest.raises(InputError, match="is damaged"):
        condense(toy_data, "dm", resume_from=tmp_path / "m.jsonl", **{**settings, "lr_img": 1.0})


def test_a_gpu_is_looked_at_every_tenth_step_and_still_names_the_right_one(
    toy_data: ImageData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    early = str(diverging("dm", toy_data, tmp_path, lr_img=1e20))
    seldom: list[int] = []

    class OnGpu(Watch):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments)  # type: ignore[arg-type]
            self.every = 10

        def first_bad(self) -> int | None:
            seldom.append(len(self._finite))
            return super().first_bad()

    monkeypatch.setattr(run, "Watch", OnGpu)
    monkeypatch.setattr(run, "MAX_LOGGED", 1)
    (tmp_path / "late").mkdir()
    assert str(diverging("dm", toy_data, tmp_path / "late", lr_img=1e20)) == early
    assert seldom == [10], "one look, after ten steps"
    condense(toy_data, "dm", resume_from=tmp_path / "late" / "c", **{**small("dm"), **HUGE, "lr_img": 0.5})


def test_what_a_method_keeps_that_is_infinite_from_the_start_is_its_own_business() -> None:
    state = {"best": torch.tensor(float("inf")), "images": torch.zeros(2), "steps": torch.tensor(3)}
    watch = Watch(state, torch.device("cpu"))
    watch.add({"loss": 1.0}, state)
    assert watch.first_bad() is None
    for bad in ({**state, "images": torch.tensor([0.0, float("nan")])}, {**state, "late": torch.tensor(-float("inf"))}):
        watch.add({"loss": torch.tensor(1.0)}, state)
        watch.add({"loss": torch.tensor(1.0)}, bad)
        assert watch.first_bad() == 2
    watch.add({"loss": float("nan")}, state)
    assert watch.first_bad() == 1


def test_mtt_refuses_one_class_before_its_experts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.experts.train_experts", None)
    with pytest.raises(InputError, match=r"^mtt cannot condense data of one class: .* Give data of two classes or more, or use dm\.$"):
        condense(toy(classes=1), "mtt", **small("mtt"))


def test_it_stays_finite_where_it_did_before() -> None:
    assert bool(torch.isfinite(condense(toy(), "dm", iterations=12, **small("dm")).images).all())
