"""Labels with several columns, given as labels of data."""

import pytest
import torch

from distill.data import Split
from distill.errors import InputError

SAID = r"\(3, 3\); multi-label targets are not supported.*one class number.*CondensedSet"


def test_multi_label_targets_are_refused_with_what_is_supported() -> None:
    for labels in (torch.eye(3, dtype=torch.int64), torch.eye(3)):
        with pytest.raises(InputError, match=SAID):
            Split(torch.zeros(3, 1, 4, 4), labels)
