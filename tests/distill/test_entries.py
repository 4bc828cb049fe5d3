"""A data set and a network are one entry each: everything that is known of them beforehand is read there."""

from pathlib import Path

import numpy as np
import pytest
import torch

from apps.privacy.public import public_size
from distill import architectures, augment, augment_dc
from distill.data_sets import DATA_SETS, DataSet
from distill.data_sources import describe, load
from distill.errors import InputError
from distill.networks import check_name, create
from distill.randomness import generator
from distill.spec import DataSpec

SPEC = DataSpec("toy-letters", 1, 16, 16, ("a", "b"), (0.5,), (0.25,), population_origin="published")


def test_a_data_set_is_one_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="no publicly known size"):
        public_size(SPEC, None)
    assert augment.for_data(SPEC) == augment.DSA
    given = DataSet(title="Toy letters", classes=("a", "b"), size=123, mean=(0.5,), std=(0.25,), flips=False, dc_augmentation="dc_crop")
    monkeypatch.setitem(DATA_SETS, "toy-letters", given)
    assert public_size(SPEC, None) == 123
    assert augment.for_data(SPEC) == augment.DSA_DIGITS
    assert augment_dc.for_data(SPEC) == "dc_crop"
    assert ("toy-letters", "Toy letters") in [row[:2] for row in describe(tmp_path)]
    images, labels = np.zeros((4, 16, 16), np.uint8), np.array([0, 1, 0, 1])
    np.savez(tmp_path / "toy-letters.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    spec = load("toy-letters", tmp_path).spec
    assert (spec.classes, spec.mean, spec.std) == (("a", "b"), (0.5,), (0.25,))
    assert (spec.normalisation_origin, spec.population_origin) == ("published", "published")


def test_every_entry_is_complete() -> None:
    for name, known in DATA_SETS.items():
        assert known.size > 1000, name
        assert len(known.mean or ()) == len(known.std or ())
        assert known.mean or known.computed
        assert bool(known.torchvision) == bool(known.files)


def test_a_network_is_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="network 'OneLayer'"):
        check_name("OneLayer")

    def linear(name: str, spec: DataSpec) -> architectures.Network:
        neck, head = torch.nn.Flatten(), torch.nn.Linear(spec.height * spec.width, spec.num_classes)
        return architectures.Network(torch.nn.Sequential(), neck, head)

    monkeypatch.setitem(architectures.NETWORKS, "OneLayer", linear)
    check_name("OneLayer")
    assert create("OneLayer", SPEC, generator(0, "weights"))(torch.zeros(3, 1, 16, 16)).shape == (3, 2)
