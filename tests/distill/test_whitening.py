"""ZCA against its definition, and its journey with a set."""

from pathlib import Path

import numpy as np
import pytest
import torch

from distill import condense, evaluate
from distill.condensed import CondensedSet
from distill.errors import InputError
from distill.evaluation import fitted
from distill.whitening import Whitening
from tests.conftest import toy


def test_the_definition() -> None:
    """U (S + eps)^(-1/2) U' from numpy's SVD of the centred pixels."""
    images = toy(per_class=60).train.images
    white = Whitening.fit(images, eps=0.1)
    flat = images.flatten(1).double().numpy() / 255
    centred = flat - flat.mean(0)
    singular = np.linalg.svd(centred, full_matrices=False, compute_uv=False)
    values = np.zeros(flat.shape[1])
    values[: len(singular)] = singular**2 / len(flat)
    basis = np.linalg.svd(centred, full_matrices=True)[2]
    matrix = basis.T @ np.diag(1 / np.sqrt(values + 0.1)) @ basis
    assert np.allclose(white.matrix.numpy(), matrix, atol=1e-4)
    assert np.allclose(white.apply(images).flatten(1).numpy(), centred @ matrix, atol=1e-3)


def test_small_eps_makes_the_covariance_the_identity() -> None:
    images = torch.rand(4000, 1, 3, 3, generator=torch.Generator().manual_seed(0))
    white = Whitening.fit(images, eps=1e-6).apply(images).flatten(1).double()
    covariance = white.T @ white / len(white)
    assert torch.allclose(covariance, torch.eye(9, dtype=torch.float64), atol=1e-2)


def test_undo() -> None:
    images = toy(channels=3).train.images
    white = Whitening.fit(images)
    assert torch.allclose(white.undo(white.apply(images)), images.float() / 255, atol=1e-4)


@pytest.mark.parametrize("quantised", [False, True])
def test_a_set_carries_its_whitening_through_the_file(tmp_path: Path, quantised: bool) -> None:
    data = toy()
    tiny = condense(data.whitened(), "dm", ipc=2, iterations=2, network="ConvNetD1W32", batch_real=8)
    assert tiny.whitening is not None
    assert tiny.provenance.fingerprint != data.fingerprint
    tiny = tiny.quantised() if quantised else tiny
    tiny.save(tmp_path / "t.safetensors")
    back = CondensedSet.load(tmp_path / "t.safetensors")
    assert torch.equal(back.images, tiny.images)
    assert back.whitening is not None
    assert torch.equal(back.whitening.matrix, tiny.whitening.matrix)
    assert back.nbytes == tiny.nbytes
    # A receiver who has the plain data judges the set in its own white space.
    seen = fitted(back, data)
    indices = torch.arange(4)
    assert torch.allclose(seen.normalised("test", indices), data.whitened().normalised("test", indices), atol=1e-4)
    assert "condensed" in str(evaluate(back, data, network="ConvNetD1W32", seeds=1, baselines=["random"], progress=False))
    assert float(back.pixels().min()) >= 0
    assert torch.allclose(back.subset([1]).pixels(), back.pixels()[back.labels == 1], atol=1e-5)


def test_what_does_not_fit_is_one_line() -> None:
    data, white = toy(), toy().whitened()
    start = condense(data, "dm", iterations=1, network="ConvNetD1W32", batch_real=8)
    with pytest.raises(InputError, match="whitened differently"):
        condense(white, "dm", iterations=1, network="ConvNetD1W32", batch_real=8, initial=start)
    with pytest.raises(InputError, match="not white"):
        evaluate(start, white, seeds=1)
    with pytest.raises(InputError, match="whitened differently"):
        CondensedSet.concat([start, condense(white, "dm", iterations=1, network="ConvNetD1W32", batch_real=8)])
    with pytest.raises(InputError, match="images of 64 values; those of data 'toy' have 192"):
        toy(channels=3).whitened(Whitening.fit(data.train.images))
    with pytest.raises(InputError, match="allowed: 192"):
        CondensedSet(torch.zeros(1, 3, 8, 8), torch.zeros(1, dtype=torch.int64), toy(channels=3).spec, whitening=white.whitening)
    with pytest.raises(InputError, match="not finite"):
        Whitening(torch.zeros(4), torch.full((4, 4), float("nan")))
    with pytest.raises(InputError, match="no inverse"):
        Whitening(torch.zeros(4), torch.zeros(4, 4)).undo(torch.zeros(1, 1, 2, 2))
    with pytest.raises(InputError, match="float32 \\(4, 4\\)"):
        Whitening(torch.zeros(4), torch.zeros(4, 3))
