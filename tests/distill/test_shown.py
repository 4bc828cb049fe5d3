"""How values show themselves: one line in a terminal, a line and the images in Jupyter, and where progress bars appear."""

import base64
import io
import re

import pytest
import torch
from PIL import Image
from rich.console import Console

from distill import progress
from distill.condensed import CondensedSet
from distill.data import ImageData
from distill.progress import shows_progress
from tests.distill.test_figures import coloured


def test_a_set_and_data_are_one_line(digits: ImageData) -> None:
    tiny = coloured([2, 1, 0])
    assert repr(tiny) == "CondensedSet(3 images 3x2x2 of 2 classes of 'colours' by given, class labels)"
    soft = CondensedSet(tiny.images[:1], torch.tensor([[0.0, 2.0, 1.0]]), tiny.spec, label_kind="logits")
    assert repr(soft) == "CondensedSet(1 image 3x2x2 of 3 classes of 'colours' by given, soft labels (logits))"
    counts = f"{len(digits.train)} training, {len(digits.validation)} validation and {len(digits.test)} test images"
    assert repr(digits) == f"ImageData('digits': {counts} 1x16x16, 10 classes)"
    assert repr(digits.whitened()).endswith("10 classes, whitened)")


def test_jupyter_shows_the_line_and_the_images() -> None:
    shown = coloured([1, 1], ["<b>", "数字"])._repr_html_()
    line, legend = "CondensedSet(2 images 3x2x2 of 2 classes of &#x27;colours&#x27; by given, class labels)", "<br>0: &lt;b&gt;<br>1: 数字"
    assert shown.startswith(f"<p>{line}{legend}</p><img ")
    (data,) = re.findall(r"src='data:image/png;base64,([A-Za-z0-9+/=]+)'", shown)
    with Image.open(io.BytesIO(base64.b64decode(data))) as image:
        image.load()
        assert image.format == "PNG"
    assert len(coloured([100] * 30)._repr_html_()) < 1_000_000


def test_progress_shows_on_a_terminal_and_in_jupyter(monkeypatch: pytest.MonkeyPatch) -> None:
    log, terminal, jupyter = (
        Console(file=io.StringIO(), force_terminal=t, force_jupyter=j) for t, j in ((False, False), (True, False), (False, True))
    )
    monkeypatch.setattr(progress, "find_spec", lambda name: object())
    assert [shows_progress(None, console) for console in (log, terminal, jupyter)] == [False, True, True]
    monkeypatch.setattr(progress, "find_spec", lambda name: None)
    assert not shows_progress(None, jupyter), "rich would warn in place of a bar"
    assert shows_progress(True, log)
    assert not shows_progress(False, terminal)
