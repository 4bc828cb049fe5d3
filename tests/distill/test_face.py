"""The names that ``import distill`` offers."""

import pytest
import torch

import distill
from tests.conftest import toy

SMALL = {"network": "ConvNetD1W8", "batch_real": 4, "iterations": 2}


def test_the_former_verb_warns_and_does_the_same() -> None:
    wanted = distill.condense(toy(), "dm", ipc=2, progress=False, **SMALL)
    with pytest.warns(DeprecationWarning, match=r"distill\.distil is deprecated .* use distill\.condense\.") as warned:
        made = distill.distil(toy(), "dm", ipc=2, progress=False, **SMALL)
    assert torch.equal(made.images, wanted.images)
    assert warned[0].filename == __file__
