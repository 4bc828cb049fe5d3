"""The README's examples, run as they stand there; the script that can be stopped: test_resume.py."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset

from apps.continual.engine import quiet_and_seeded
from distill.data import ImageData
from distill.networks import create
from distill.randomness import generator

pytest.importorskip("avalanche")
PAGE = Path(__file__).parents[3] / "apps" / "continual" / "README.md"


def test_the_example_in_a_users_own_script(digits: ImageData) -> None:
    sets = []
    for part in ("train", "test"):
        split = getattr(digits, part)
        made = TensorDataset(digits.normalised(part, torch.arange(len(split)))[:300], split.labels[:300])
        made.targets = split.labels[:300].tolist()  # type: ignore[attr-defined]
        sets.append(made)
    first, second, _ = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    model = create("ConvNetD1W8", digits.spec, generator(0, "weights"))
    names = {"train_set": sets[0], "test_set": sets[1], "model": model}
    # A short condensation, so that the test is quick; all else as printed.
    code = first.replace('method="dm"', 'method="dm", iterations=3, network="ConvNetD1W8"').replace("train_epochs=4", "train_epochs=1")
    assert code.count("iterations=3") == 1
    printed = io.StringIO()
    with quiet_and_seeded(0), contextlib.redirect_stdout(printed):
        exec(code, names)
    assert "30 items, 30960 bytes" in printed.getvalue()
    assert len([line for line in first.splitlines() if line.strip()]) <= 12

    names = {"images": digits.normalised("train", torch.arange(300)), "labels": digits.train.labels[:300]}
    exec(second.replace("items=100", "items=100, settings={'iterations': 2, 'network': 'ConvNetD1W8'}"), names)
    memory = names["memory"]
    assert memory.nbytes == 100 * (256 + 8) + 10 * 8  # type: ignore[attr-defined]
