"""What is saved can be loaded: one limit for both, and said before the work that would be lost."""

import dataclasses
from pathlib import Path

import pytest
import torch

import distill
from distill import set_file
from distill.condensed import CondensedSet, Provenance
from distill.errors import InputError
from distill.spec import DataSpec
from tests.conftest import toy
from tests.distill.hostile_files import small_set


@pytest.mark.parametrize("quantised", [False, True])
@pytest.mark.parametrize("soft", [False, True])
def test_at_every_limit_a_set_is_saved_and_loaded_or_not_saved(
    quantised: bool, soft: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = small_set(0, quantised=quantised)
    if soft:
        made = dataclasses.replace(made, labels=torch.nn.functional.one_hot(made.labels, made.spec.num_classes).float())
    size, path = len(made.to_bytes()), tmp_path / "set.safetensors"
    for limit in (size // 2, size - 1):
        monkeypatch.setattr(set_file, "MAX_OWN_BYTES", limit)
        with pytest.raises(InputError, match="allowed: at most"):
            made.save(path)
        assert not path.exists()
    for limit in (size, size + 1):
        monkeypatch.setattr(set_file, "MAX_OWN_BYTES", limit)
        made.save(path)
        assert torch.equal(CondensedSet.load(path).images, made.images)


def test_a_file_of_ones_own_may_be_larger_than_what_arrives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny-ImageNet at 120 images a class is 1.2 GB: it was saved after hours and then refused by everything that reads sets."""
    spec = DataSpec("tiny-imagenet", 3, 64, 64, tuple(map(str, range(200))), (0.5,) * 3, (0.25,) * 3)
    set_file.check_size(200 * 120, spec)
    with pytest.raises(InputError, match=r"1000000 images of 3 x 64 x 64 are a file of 49.2 GB; allowed: at most 17.2 GB.*ipc"):
        set_file.check_size(1_000_000, spec)
    made = small_set(0)
    made.save(tmp_path / "a.safetensors")
    size = (tmp_path / "a.safetensors").stat().st_size
    monkeypatch.setattr(set_file, "MAX_FILE_BYTES", size - 1)
    assert len(CondensedSet.load(tmp_path / "a.safetensors")) == len(made)


def test_a_header_that_could_not_be_read_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_file, "MAX_HEADER_BYTES", 2000)
    made = dataclasses.replace(small_set(0), provenance=Provenance("dm", {"note": "x" * 3000}))
    with pytest.raises(InputError, match="header, with the provenance and the class names"):
        made.save(tmp_path / "a.safetensors")
    assert not list(tmp_path.iterdir())


def test_a_set_that_could_not_be_saved_is_refused_before_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(set_file, "MAX_OWN_BYTES", 1000)
    with pytest.raises(InputError, match="Ask for fewer images a class"):
        distill.condense(toy(), "dm", ipc=4, network="ConvNetD1W32", iterations=10**6)
