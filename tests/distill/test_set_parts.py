"""FORMAT 2 of a set's file: origins, step sizes, start weights and encoded images are kept, read back, and checked as hostile."""

import dataclasses
import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from distill import set_parts
from distill.condensed import CondensedSet, Provenance
from distill.decode import Formation
from distill.errors import InputError
from distill.set_parts import StartWeights, StepSizes
from tests.distill.hostile_files import small_set, unpack, with_parts, with_views

VALUES: list[Any] = [
    None, True, 0, -1, 2, 1e999, float("nan"), 10**400, "", "cycle", "sequence", "x" * 5000, "\n", "\x00", [], {}, [1], ["cycle"], 
    {"kind": "x"}, {"order": "cycle"}, {"order": 3}, {"sha256": "0" * 64}, {"sha256": "0" * 63}, {"network": "../../x", "sha256": None},
    {"network": 7}, "given", "computed", "published", {"kind": ["x"]}, {"kind": {}}, {"kind": "formation", "factor": 2},
    {"kind": "formation", "factor": 0}, {"kind": "frequency", "coefficients": 16}, {"kind": "formation", "factor": 16},
    {"kind": "lowrank", "rank": 9999}, {"kind": "lowrank", "rank": 2},
]  # fmt: skip
TENSORS: list[Tensor] = [
    torch.zeros(0), torch.ones(()), torch.ones(3), -torch.ones(3), torch.tensor([float("nan")] * 3), torch.ones(3, dtype=torch.int64),
    torch.full((2, 2), 99), torch.zeros(2, 0, dtype=torch.int64), torch.zeros(3, dtype=torch.uint8), torch.full((3,), 1e-45),
    torch.full((2, 3), -1), torch.ones(1, 1, 1, 1), torch.ones(3, dtype=torch.float64), torch.ones(3, dtype=torch.bool),
]  # fmt: skip
NAMES = (
    "step_sizes", "step_batches", "start_weights.", "start_weights.a", "start_weights." + "n" * 300, "start_weights.\n", "decode.",
    "decode.codes", "images", "labels", "whitening_mean", "other",
)  # fmt: skip


def header_of(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(unpack(data)[0]["__metadata__"]["distill"])
    return found


def packed(tensors: Mapping[str, Tensor], header: Mapping[str, Any]) -> bytes:
    return safetensors.torch.save({name: value.clone() for name, value in tensors.items()}, {"distill": json.dumps(header)})


def changed(data: bytes, header: Mapping[str, Any] = {}, tensors: Mapping[str, Tensor | None] = {}) -> bytes:
    """The file with other keys in its header and other tensors; a tensor that is None is taken away."""
    merged = {**safetensors.torch.load(data), **tensors}
    return packed({name: value for name, value in merged.items() if value is not None}, {**header_of(data), **header})


def test_a_set_that_needs_nothing_new_is_format_1_to_the_bit() -> None:
    for quantised in (False, True):
        made = small_set(0, quantised=quantised)
        data = made.to_bytes()
        assert set(header_of(data)) == {"format", "spec", "lr", "augmentation", "provenance", "quantisation"}
        assert header_of(data)["format"] == 1
        assert set(header_of(data)["spec"]) == {"name", "channels", "height", "width", "classes", "mean", "std"}
        named = dataclasses.replace(made, spec=dataclasses.replace(made.spec, normalisation_origin="published", classes_origin="published"))
        assert named.to_bytes() == data, "of a set without a privacy statement"
        assert CondensedSet.from_bytes(data).to_bytes() == data


def test_origins_are_kept_where_something_was_given_or_a_statement_rests_on_them() -> None:
    made = small_set(0)
    spec = dataclasses.replace(made.spec, normalisation_origin="published", classes_origin="given", population_origin="published")
    statement = Provenance("dm", dp={"epsilon": 1.0})
    public = dataclasses.replace(spec, classes_origin="published")
    for one in (dataclasses.replace(made, spec=spec), dataclasses.replace(made, spec=public, provenance=statement)):
        again = CondensedSet.from_bytes(one.to_bytes())
        assert header_of(one.to_bytes())["format"] == 2
        assert again.spec.origins == one.spec.origins
        assert again.to_bytes() == one.to_bytes()


def test_step_sizes_and_start_weights_are_kept(tmp_path: Path) -> None:
    made = with_parts()
    made.save(tmp_path / "set.safetensors")
    again = CondensedSet.load(tmp_path / "set.safetensors").to("cpu")
    assert again.step_sizes is not None
    assert again.step_sizes.same_as(made.step_sizes)
    assert again.start_weights is not None
    assert again.start_weights.same_as(made.start_weights)
    assert not again.start_weights.same_as(StartWeights(sha256="0" * 64))
    assert again.to_bytes() == made.to_bytes()
    assert made.nbytes == small_set(3).nbytes + 2 * 4 + 6 * 8 + (6 + 2) * 4 + 8
    shared = torch.ones(2, 2)
    tied = dataclasses.replace(made, start_weights=StartWeights({"a": shared, "b": shared.T}))
    assert CondensedSet.from_bytes(tied.to_bytes()).start_weights.same_as(tied.start_weights)  # type: ignore[union-attr]
    digest = dataclasses.replace(made, start_weights=StartWeights(sha256="ab" * 32, network="ConvNet"), step_sizes=None)
    back = CondensedSet.from_bytes(digest.to_bytes())
    assert (back.start_weights.sha256, back.step_sizes) == ("ab" * 32, None)  # type: ignore[union-attr]


def test_an_unknown_decode_kind_names_the_version() -> None:
    data = changed(small_set(0).to_bytes(), {"format": 2, "decode": {"kind": "palette"}})
    known = r"\(known: formation, frequency, lowrank\); they were made by another version"
    with pytest.raises(InputError, match=rf"'palette', which this version cannot decode {known}"):
        CondensedSet.from_bytes(data)


@pytest.mark.parametrize(
    ("header", "tensors", "message"),
    [
        ({"format": 1}, {}, "format 1 and label_kind None; allowed: 2 with a label_kind or another part"),
        ({"step_sizes": None}, {}, "step_sizes is in the tensors and not in the header"),
        ({}, {"step_sizes": None, "step_batches": None}, "step_sizes is in the header and not in the tensors"),
        ({}, {"step_sizes": None}, "holds the tensors"),
        ({"start_weights": None}, {}, "start_weights is in the tensors and not in the header"),
        ({"start_weights": {"sha256": "0" * 64}}, {}, "give one of the two"),
        ({"step_sizes": {"order": "random"}}, {}, "order 'random'; allowed: sequence or cycle"),
        ({"step_sizes": {"order": "cycle", "file": "/etc/passwd"}}, {}, "header does not fit: step_sizes.file"),
        ({}, {"step_sizes": torch.tensor([1.0, -1.0])}, "not positive finite"),
        ({}, {"step_sizes": torch.tensor([1.0, float("inf")])}, "not positive finite"),
        ({}, {"step_sizes": torch.ones(3)}, r"step_batches are int64 of shape \(2, 3\); allowed: int64 of shape \(3, b\)"),
        ({}, {"step_sizes": torch.ones(2, 1)}, "allowed: float32 of shape"),
        ({}, {"step_batches": torch.full((2, 3), 6)}, "step_batches name the images 6..6; allowed: 0..5"),
        ({}, {"step_batches": torch.full((2, 3), -1)}, "step_batches name the images -1..-1"),
        ({}, {"start_weights.seen": torch.ones(3, dtype=torch.uint8)}, "start_weights: seen is uint8"),
        ({}, {"start_weights.0.bias": torch.tensor([float("nan")])}, "start_weights: 0.bias holds values that are not finite"),
        ({}, {"start_weights.": torch.ones(1)}, "have a tensor named ''"),
        ({}, {f"start_weights.{k}": torch.ones(()) for k in range(2001)}, "are 2004 tensors; allowed: at most 2000"),
        ({}, {"decode.codes": torch.ones(1)}, "holds the tensors"),
        ({"decode": {"kind": "formation"}}, {}, "decode 'formation': key 'factor' is missing"),
        ({"decode": {"kind": "formation", "factor": 3}}, {}, "formation with factor 3 of images of 4 x 4 pixels"),
        ({"decode": {"kind": "formation", "factor": 10**30}}, {}, "whole number too large"),
        ({"decode": {"kind": "formation", "factor": "2"}}, {}, "key 'factor' is \"2\"; allowed: a whole number"),
        ({"decode": {"kind": "formation", "factor": 2, "code": "x"}}, {}, "key 'code'"),
        ({"decode": {"kind": "frequency", "coefficients": 4}}, {}, r"images are float32 of shape \(6, 1, 4, 4\)"),
        ({"start_weights": {"network": "n" * 300}}, {}, "allowed: a name of 1 to 200 characters"),
    ],
)
def test_parts_that_do_not_fit_are_one_line(header: dict[str, Any], tensors: dict[str, Tensor | None], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CondensedSet.from_bytes(changed(with_parts().to_bytes(), header, tensors))
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_weights_have_a_limit_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_parts, "MAX_WEIGHT_BYTES", 39)
    with pytest.raises(InputError, match="start_weights take 40 bytes; allowed: at most 39; or give a file's sha256"):
        CondensedSet.from_bytes(with_parts().to_bytes())


def test_a_file_of_before_with_a_label_kind_alone_is_read() -> None:
    data = small_set(2, True, kind="logits").to_bytes()
    assert set(header_of(data)) - {"label_kind"} == set(header_of(small_set(0).to_bytes()))
    assert CondensedSet.from_bytes(data).label_kind == "logits"


def test_unions_and_subsets_keep_the_training_or_refuse() -> None:
    made = with_parts()
    plain = dataclasses.replace(made, step_sizes=StepSizes(torch.ones(2)))
    joined = CondensedSet.concat([plain, plain])
    assert joined.step_sizes is plain.step_sizes
    assert joined.start_weights is plain.start_weights
    assert plain.subset([int(plain.labels[0])]).step_sizes is plain.step_sizes
    for sets, message in (
        ([plain, dataclasses.replace(plain, step_sizes=None)], "concat: the sets' step_sizes differ"),
        ([plain, dataclasses.replace(plain, start_weights=None)], "concat: the sets' start_weights differ"),
        ([made, made], "concat: step_sizes name the images of each step"),
    ):
        with pytest.raises(InputError, match=message):
            CondensedSet.concat(sets)
    with pytest.raises(InputError, match="subset: step_sizes name the images of each step"):
        made.subset([0, 1, 2])


def test_hostile_headers_and_tensors_end_in_a_sound_set_or_one_line() -> None:
    rng = random.Random(5)
    formed = dataclasses.replace(small_set(1), decode=Formation(2))
    files = [with_parts().to_bytes(), formed.to_bytes(), small_set(0).to_bytes(), small_set(2, True, kind="logits").to_bytes()]
    files.append(with_views().to_bytes())
    whole = [({**header_of(data)}, safetensors.torch.load(data)) for data in files]
    read = longest = 0
    for _ in range(1500):
        header, tensors = (dict(part) for part in rng.choice(whole))
        for _ in range(rng.choice((1, 1, 2, 3))):
            key = rng.choice(("format", "decode", "step_sizes", "start_weights", "views", "label_kind", "origin"))
            if rng.random() < 0.4:
                tensors[rng.choice(NAMES)] = rng.choice(TENSORS)
            elif rng.random() < 0.3 and tensors:
                del tensors[rng.choice(sorted(tensors))]
            elif key == "origin":
                origin = rng.choice(("normalisation_origin", "classes_origin", "population_origin"))
                header["spec"] = {**header["spec"], origin: rng.choice(VALUES)}
            else:
                header[key] = rng.choice((1, 2)) if key == "format" and rng.random() < 0.7 else rng.choice(VALUES)
        if not tensors:
            continue
        try:
            made = CondensedSet.from_bytes(packed(tensors, header))
        except InputError as error:
            longest = max(longest, len(str(error)))
        else:
            read += 1
            assert CondensedSet.from_bytes(made.to_bytes()).to_bytes() == made.to_bytes()
    assert read > 20
    assert longest < 500
