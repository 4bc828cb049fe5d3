"""The value that travels, its algebra and its file: bit-equal round trips, whole refusals, and nothing but refusals for hostile bytes."""

import dataclasses
import json
import math
import os
import subprocess
import sys
from datetime import date
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.condensed import CondensedSet, Provenance
from distill.errors import InputError
from distill.spec import DataSpec
from tests.distill.hostile_files import pack, small_set, unpack

SPEC = small_set(0).spec
IMAGES = small_set(0).images
LABELS = torch.tensor([0, 0, 1, 1, 2, 2])

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
tables = st.dictionaries(st.text(max_size=5), json_values, max_size=3)
provenances = st.builds(
    Provenance,
    method=st.text(max_size=10),
    config=tables,
    seed=st.none() | st.integers(),
    fingerprint=st.none() | st.text(max_size=10),
    versions=st.dictionaries(st.text(max_size=5), st.text(max_size=5), max_size=3),
    seconds=st.floats(0, 1e9),
    dp=st.none() | tables,
)


@st.composite
def sets(draw: Any, soft: bool | None = None, spec: DataSpec | None = None) -> CondensedSet:
    channels, height, width = spec.shape if spec else (draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 4)))
    classes = spec.num_classes if spec else draw(st.integers(1, 4))
    finite = st.floats(-1e3, 1e3, width=32)
    made = spec or DataSpec(
        draw(st.text(min_size=1, max_size=20)),
        channels,
        height,
        width,
        tuple(draw(st.lists(st.text(max_size=10), min_size=classes, max_size=classes))),
        tuple(draw(st.lists(st.floats(-2, 2), min_size=channels, max_size=channels))),
        tuple(draw(st.lists(st.floats(1e-3, 10), min_size=channels, max_size=channels))),
    )
    count = draw(st.integers(1, 5))
    values = draw(st.lists(finite, min_size=4, max_size=16))
    cells = count * channels * height * width
    images = torch.tensor((values * (cells // len(values) + 1))[:cells], dtype=torch.float32).view(count, channels, height, width)
    if draw(st.booleans()) if soft is None else soft:
        numbers = st.lists(st.floats(0, 1, width=32), min_size=count * classes, max_size=count * classes)
        labels = torch.tensor(draw(numbers), dtype=torch.float32).view(count, classes).double().add(1e-3)
        labels = (labels / labels.sum(1, keepdim=True)).float()
    else:
        labels = torch.tensor(draw(st.lists(st.integers(0, classes - 1), min_size=count, max_size=count)))
    lr = draw(st.none() | st.floats(1e-12, 1e6))
    augmentation = draw(st.sampled_from((None, "none", "color_crop", "dc_crop_noise", "color_crop_cutout_flip_scale_rotate")))
    result = CondensedSet(images, labels, made, lr, augmentation, draw(provenances))
    return result.quantised() if draw(st.booleans()) else result


def assert_same(first: CondensedSet, second: CondensedSet) -> None:
    """Every field, tensors by their bits."""
    for name in ("images", "labels"):
        ours, theirs = getattr(first, name), getattr(second, name)
        assert ours.dtype == theirs.dtype
        assert ours.shape == theirs.shape
        assert ours.numpy().tobytes() == theirs.numpy().tobytes(), name
    for name in ("spec", "lr", "augmentation", "provenance", "quantisation", "label_kind"):
        assert getattr(first, name) == getattr(second, name), name


def refusal(action: Any) -> str:
    with pytest.raises(InputError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Round trips


@given(sets())
@settings(max_examples=120, deadline=None)
def test_bytes_and_back_are_bit_equal(made: CondensedSet) -> None:
    assert_same(CondensedSet.from_bytes(made.to_bytes()), made)


@pytest.mark.parametrize("soft", [False, True])
@pytest.mark.parametrize("quantised", [False, True])
def test_save_and_load_leave_one_file_with_the_same_set(tmp_path: Path, soft: bool, quantised: bool) -> None:
    made, path = small_set(3, soft, quantised), tmp_path / "a/b/set.safetensors"
    made.save(path)
    assert_same(CondensedSet.load(str(path)), made)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == made.to_bytes()


def test_the_same_set_gives_the_same_bytes_and_negative_zero_survives() -> None:
    images = torch.full_like(IMAGES, -0.0)
    again = CondensedSet.from_bytes(CondensedSet(images, LABELS, SPEC).to_bytes())
    assert bool(torch.signbit(again.images).all())
    assert small_set(1).to_bytes() == small_set(1).to_bytes()
    assert small_set(1).to_bytes() != small_set(2).to_bytes()


def test_a_view_that_is_not_contiguous_is_saved_as_it_is_seen() -> None:
    seen = IMAGES.transpose(2, 3)
    made = CondensedSet(seen, LABELS, SPEC)
    assert torch.equal(CondensedSet.from_bytes(made.to_bytes()).images, seen)


# Construction

SHAPE = "allowed: float32 of shape (N, 1, 4, 4) with N at least 1."


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"images": IMAGES.double()}, f"images are float64 of shape (6, 1, 4, 4); {SHAPE}"),
        ({"images": IMAGES.to(torch.uint8)}, f"images are uint8 of shape (6, 1, 4, 4); {SHAPE}"),
        ({"images": IMAGES[:, 0]}, f"images are float32 of shape (6, 4, 4); {SHAPE}"),
        ({"images": IMAGES[:, :, :3]}, f"images are float32 of shape (6, 1, 3, 4); {SHAPE}"),
        ({"images": IMAGES[:0]}, f"images are float32 of shape (0, 1, 4, 4); {SHAPE}"),
        ({"labels": LABELS[:5]}, "labels are int64 of shape (5,); allowed: int64 of shape (6,) for 6 images."),
        ({"labels": LABELS[:, None]}, "labels are int64 of shape (6, 1); allowed: int64 of shape (6,) for 6 images."),
        ({"labels": LABELS - 1}, "labels lie in -1..1; allowed: 0..2."),
        ({"labels": LABELS + 1}, "labels lie in 1..3; allowed: 0..2."),
        ({"labels": LABELS.int()}, "labels are int32 of shape (6,); allowed: int64 (N,) or float32 (N, 3)."),
        ({"labels": torch.zeros(6, 3).double()}, "labels are float64 of shape (6, 3); allowed: int64 (N,) or float32 (N, 3)."),
        ({"labels": torch.zeros(6, 4)}, "labels are float32 of shape (6, 4); allowed: int64 (N,) or float32 (N, 3)."),
        ({"labels": torch.zeros(5, 3)}, "labels are float32 of shape (5, 3); allowed: int64 (N,) or float32 (N, 3)."),
        (
            {"images": IMAGES.clone().index_fill_(0, torch.tensor([2]), math.nan)},
            "images hold values that are not finite; allowed: finite numbers only.",
        ),
        (
            {"images": IMAGES.clone().index_fill_(0, torch.tensor([2]), -math.inf)},
            "images hold values that are not finite; allowed: finite numbers only.",
        ),
        ({"labels": torch.full((6, 3), math.inf)}, "labels hold values that are not finite; allowed: finite numbers only."),
        ({"lr": 0.0}, "lr is 0.0; allowed: a positive finite float, or None."),
        ({"lr": -1.0}, "lr is -1.0; allowed: a positive finite float, or None."),
        ({"lr": math.nan}, "lr is nan; allowed: a positive finite float, or None."),
        ({"lr": math.inf}, "lr is inf; allowed: a positive finite float, or None."),
        ({"lr": 1}, "lr is 1; allowed: a positive finite float, or None."),
        ({"lr": "1"}, "lr is '1'; allowed: a positive finite float, or None."),
        (
            {"augmentation": "color_crap"},
            "augmentation 'crap' is not known; did you mean 'crop'? Allowed: color, crop, cutout, flip, rotate, scale.",
        ),
        ({"augmentation": "crop_crop"}, "augmentation 'crop_crop' names a transform twice; name each at most once."),
        ({"quantisation": ()}, "quantisation is (); allowed: a finite low and a positive step per channel."),
        (
            {"quantisation": ((0.0, 1.0),) * 2},
            "quantisation is ((0.0, 1.0), (0.0, 1.0)); allowed: a finite low and a positive step per channel.",
        ),
        ({"quantisation": ((0.0, 0.0),)}, "quantisation is ((0.0, 0.0),); allowed: a finite low and a positive step per channel."),
        ({"quantisation": ((0.0, -1.0),)}, "quantisation is ((0.0, -1.0),); allowed: a finite low and a positive step per channel."),
        ({"quantisation": ((math.nan, 1.0),)}, "quantisation is ((nan, 1.0),); allowed: a finite low and a positive step per channel."),
        ({"quantisation": ((0.0, math.inf),)}, "quantisation is ((0.0, inf),); allowed: a finite low and a positive step per channel."),
    ],
)
def test_construction_refuses_with_what_was_given_and_what_is_allowed(change: dict[str, Any], message: str) -> None:
    good = {"images": IMAGES, "labels": LABELS, "spec": SPEC}
    CondensedSet(**good)
    assert refusal(lambda: CondensedSet(**{**good, **change})) == message


# Facts of a set


def test_counts_ipc_and_hard_labels_by_hand() -> None:
    made = CondensedSet(IMAGES, torch.tensor([2, 0, 2, 2, 0, 2]), SPEC)
    assert (len(made), made.counts, made.ipc) == (6, (2, 0, 4), 4)
    soft = CondensedSet(IMAGES, torch.tensor([[0.1, 0.7, 0.2]] * 5 + [[-1.0, -3.0, -2.0]]), SPEC, label_kind="logits")
    assert soft.hard_labels.tolist() == [1, 1, 1, 1, 1, 0]
    assert soft.counts == (2, 2, 2)  # as many as a set of this storage has: an argmax is no count


@given(sets())
@settings(max_examples=60, deadline=None)
def test_pixels_lie_in_the_unit_interval_and_are_the_definition(made: CondensedSet) -> None:
    pixels = made.pixels()
    assert pixels.shape == made.images.shape
    assert float(pixels.min()) >= 0
    assert float(pixels.max()) <= 1
    for c in range(made.spec.channels):
        value = float(made.images[0, c, 0, 0]) * made.spec.std[c] + made.spec.mean[c]
        assert float(pixels[0, c, 0, 0]) == pytest.approx(min(1, max(0, value)), abs=1e-3)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("soft", [False, True])
def test_nbytes_is_what_the_file_holds_beside_its_header(soft: bool, channels: int) -> None:
    made = small_set(0, soft, channels=channels)
    numbers, label_bytes = 6 * channels * 4 * 4, 6 * (3 * 4 if soft else 8)
    assert made.nbytes == 4 * numbers + label_bytes == len(unpack(made.to_bytes())[1])
    small = made.quantised()
    # Two float32 a channel for the grid, which the file keeps in its header.
    assert small.nbytes == numbers + label_bytes + 8 * channels == len(unpack(small.to_bytes())[1]) + 8 * channels


# Algebra

pairs = st.booleans().flatmap(lambda soft: st.tuples(sets(soft, SPEC), sets(soft, SPEC)))


@given(pairs)
@settings(max_examples=60, deadline=None)
def test_concat_keeps_order_adds_counts_and_commutes_with_subset(pair: tuple[CondensedSet, CondensedSet]) -> None:
    first, second = pair
    both = CondensedSet.concat([first, second])
    assert both.images.tolist() == first.images.tolist() + second.images.tolist()
    assert both.labels.tolist() == first.labels.tolist() + second.labels.tolist()
    assert sum(both.counts) == len(first) + len(second)
    if not both.labels.is_floating_point():
        assert both.counts == tuple(a + b for a, b in zip(first.counts, second.counts, strict=True))
    assert both.lr == (first.lr if first.lr == second.lr else None)
    assert both.augmentation == (first.augmentation if first.augmentation == second.augmentation else None)
    assert both.provenance.dp is None
    assert [part["dp"] for part in both.provenance.config["parts"]] == [first.provenance.dp, second.provenance.dp]
    for classes in ([0], [1, 2], [2, 0, 0]):
        kept = [s.subset(classes) for s in pair if bool(torch.isin(s.hard_labels, torch.tensor(classes)).any())]
        if kept:
            cut, joined = both.subset(classes), CondensedSet.concat(kept)
            assert torch.equal(cut.images, joined.images)
            assert torch.equal(cut.labels, joined.labels)
            assert sum(cut.counts) == len(cut) == int(torch.isin(both.hard_labels, torch.tensor(classes)).sum())
    assert_same(CondensedSet.from_bytes(both.to_bytes()), both)


def test_concat_of_hard_and_soft_labels_is_one_hot_where_they_were_hard() -> None:
    hard, soft = small_set(0), small_set(1, soft=True)
    both = CondensedSet.concat([hard, soft])
    assert both.labels.dtype == torch.float32
    for row, label in zip(both.labels[:6], hard.labels, strict=True):
        assert row.tolist() == [float(c == int(label)) for c in range(3)]
    assert torch.equal(both.labels[6:], soft.labels)


def test_concat_of_one_keeps_its_images_and_its_settings() -> None:
    only = small_set(1, soft=True)
    assert CondensedSet.concat([only]).lr == only.lr
    assert torch.equal(CondensedSet.concat([only]).images, only.images)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"classes": ("a", "b", "d")}, "concat: classes differ (('a', 'b', 'c') and ('a', 'b', 'd')); sets must agree on their spec."),
        ({"mean": (0.1,)}, "concat: mean differ ((0.5,) and (0.1,)); sets must agree on their spec."),
        ({"std": (0.1,)}, "concat: std differ ((0.25,) and (0.1,)); sets must agree on their spec."),
    ],
)
def test_concat_refuses_sets_that_disagree(change: dict[str, Any], words: str) -> None:
    other = dataclasses.replace(small_set(1), spec=dataclasses.replace(SPEC, **change))
    assert refusal(lambda: CondensedSet.concat([small_set(0), other])) == words


def test_concat_refuses_other_shapes_and_nothing() -> None:
    assert refusal(lambda: CondensedSet.concat([small_set(0), small_set(0, side=5)])).startswith("concat: height differ (4 and 5)")
    assert refusal(lambda: CondensedSet.concat([small_set(0), small_set(0, channels=3)])).startswith("concat: channels differ (1 and 3)")
    assert refusal(lambda: CondensedSet.concat([])) == "concat was given no sets; allowed: one or more."


def test_concat_does_not_merge_privacy_statements() -> None:
    private = dataclasses.replace(small_set(0), provenance=Provenance("dm", dp={"epsilon": 1.0}, seconds=2.0))
    both = CondensedSet.concat([private, private])
    assert both.provenance.dp is None
    assert both.provenance.config["parts"][1]["dp"] == {"epsilon": 1.0}
    assert both.provenance.seconds == 4.0


def test_subset_refuses_to_be_empty() -> None:
    made = CondensedSet(IMAGES, torch.tensor([0, 0, 2, 2, 2, 2]), SPEC)
    assert refusal(lambda: made.subset([1])) == "subset of classes [1] is empty; allowed: some of [0, 2]."
    assert refusal(lambda: made.subset([])) == "subset of classes [] is empty; allowed: some of [0, 2]."
    assert made.subset([0, 1, 7]).counts == (2, 0, 0)


@given(sets())
@settings(max_examples=80, deadline=None)
def test_quantised_is_off_by_half_a_step_at_most_and_idempotent(made: CondensedSet) -> None:
    small = made.quantised()
    assert small.quantisation is not None
    for c, (low, step) in enumerate(small.quantisation):
        exact, near = made.images[:, c].double(), small.images[:, c].double()
        rounding = 2.0**-23 * float(exact.abs().max())
        assert float((exact - near).abs().max()) <= step / 2 * (1 + 1e-9) + rounding
        assert low == float(exact.min())
        assert step == max((float(exact.max()) - low) / 255, 1e-12)
        codes = (near - low) / step
        assert float((codes - codes.round()).abs().max()) * step <= rounding + 1e-12
    assert_same(small.quantised(), small)
    assert torch.equal(small.labels, made.labels)
    assert small.provenance == made.provenance


# Files from anybody


def test_hostile_files_are_refused_in_a_line_or_read_soundly(tmp_path: Path) -> None:
    """Half of the damage is drawn anew every day; the seed stands in what a failure prints."""
    marker, count, seeds = tmp_path / "executed", 4000, [7, date.today().toordinal()]
    print("seeds of the damage:", seeds)
    # In a process of its own, whose address space is limited: a claimed size that is allocated is an error there.
    done = subprocess.run(
        [sys.executable, "-W", "error", "-m", "tests.distill.hostile_files", str(count), str(marker), *map(str, seeds)],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout)
    assert result["faults"] == []
    assert not marker.exists()
    total = {outcome: sum(row.get(outcome, 0) for row in result["tally"].values()) for outcome in ("accepted", "refused")}
    assert sum(total.values()) == count
    assert total["refused"] > 0.8 * count  # the mutations do damage
    assert total["accepted"] > 0.02 * count  # and reach what lies behind the first check
    assert all(row["refused"] for row in result["tally"].values())
    assert result["tally"]["huge_everything"].get("accepted", 0) == 0
    assert result["grown_bytes"] < 256 << 20
    if sys.platform == "linux":
        assert result["bounded"]


def test_values_that_could_not_be_saved_again_are_refused() -> None:
    data = small_set(0).to_bytes().replace(b"2.5", b"NaN")
    assert b"NaN" in data
    assert "not a condensed set" in refusal(lambda: CondensedSet.from_bytes(data))


def test_another_format_is_named_and_a_huge_one_does_not_fill_the_screen() -> None:
    for number, shown in (("3", "3"), ("-1", "-1"), ("9" * 4000, "9" * 20)):
        header, body = unpack(small_set(0).to_bytes())
        header["__metadata__"]["distill"] = header["__metadata__"]["distill"].replace('"format": 1', f'"format": {number}')
        words = f"format {shown}; allowed: 1 or 2 (made by another version of this toolkit)."
        data = pack(json.dumps(header), body)
        assert refusal(lambda data=data: CondensedSet.from_bytes(data)) == words


def test_uint8_images_need_a_grid_and_floats_must_not_have_one() -> None:
    words = "images are uint8 without a quantisation grid, or float32 with one."
    with_grid, without = unpack(small_set(0, quantised=True).to_bytes()), unpack(small_set(0).to_bytes())
    for header, other in ((with_grid, without), (without, with_grid)):
        mixed = json.dumps({**header[0], "__metadata__": other[0]["__metadata__"]})
        assert refusal(lambda mixed=mixed, body=header[1]: CondensedSet.from_bytes(pack(mixed, body))) == words


def test_load_refuses_with_the_files_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    missing, good, bad = tmp_path / "none.safetensors", tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
    small_set(0).save(good)
    bad.write_bytes(b"")
    size = good.stat().st_size
    assert refusal(lambda: CondensedSet.load(missing)) == f"{missing}: cannot be read (No such file or directory)."
    assert refusal(lambda: CondensedSet.load(tmp_path)) == f"{tmp_path}: is not a file; give a condensed set's .safetensors file."
    assert refusal(lambda: CondensedSet.load(good, max_bytes=size - 1)) == f"{good}: {size} bytes; allowed: at most {size - 1}."
    assert len(CondensedSet.load(good, max_bytes=size)) == 6
    assert refusal(lambda: CondensedSet.from_bytes(good.read_bytes(), 100)) == f"{size} bytes; allowed: at most 100."
    assert refusal(lambda: CondensedSet.load(bad)) == f"{bad}: not a condensed set: no safetensors header, or the file is cut off."

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", denied)
    assert refusal(lambda: CondensedSet.load(good)) == f"{good}: cannot be read (Permission denied)."


def test_load_does_not_wait_for_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    assert "is not a file" in refusal(lambda: CondensedSet.load(pipe))
    if Path("/dev/zero").exists():
        assert "is not a file" in refusal(lambda: CondensedSet.load("/dev/zero"))
