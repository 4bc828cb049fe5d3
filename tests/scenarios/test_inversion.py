"""A study of what a client's message gives away: rows, floor, the private upload, resuming, and what is refused."""

from pathlib import Path
from typing import Any

import pytest
import torch

from distill.data_sources import load
from distill.errors import InputError
from scenarios.catalogue import run_study
from scenarios.catalogue import study as make_any
from scenarios.engine.study import Options
from scenarios.privacy.inversion import _nearest, client_of
from scenarios.privacy.schema import InversionTable
from scenarios.privacy.show import accuracy_table, answer

PRIVATE = {"epsilon": [1.0], "networks": 2, "sample_rate": 0.2, "clip": 1.0}


def tables(**changes: Any) -> dict[str, Any]:
    inversion = {"victims": 3, "client_images": 300, "search": {"iterations": 3, "starts": 1}, "privacy": PRIVATE, **changes}
    return {"method": {"name": "dm", "ipc": 2, "iterations": 2, "network": "ConvNetD1W32"}, "inversion": inversion}


def test_a_study_says_what_each_message_shows_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    given = make_any("shows", {"kind": "privacy", "title": "Shows", **tables()}, "s.toml")
    folder, record = run_study(given, Options(out=tmp_path, quiet=True))
    rows = record["results"]["inversion"]
    names = ["gradient of dlg", "upload", "private upload, epsilon 1", "2 other real images a class", "all other real images"]
    assert list(rows) == names
    assert [row[0] for row in accuracy_table(record)[1:]] == names
    assert rows["gradient of dlg"]["label_percent"] == 100
    assert all(row["victims"] == 3 for row in rows.values())
    for measure in ("psnr", "ssim"):
        few, every = (rows[name][measure]["value"] for name in names[-2:])
        assert few <= every, "more real images are never further away"
    assert "What shows of 3 images of a client: gradient of dlg" in answer(record)
    assert (folder / "figures/inversion.png").exists()
    assert "PRIVATE" in (folder / "PRIVATE.txt").read_text()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"inversion"' in line][:1]
    (folder / "metrics.jsonl").write_text("".join(kept))
    (folder / "record.json").unlink()
    _, again = run_study(given, Options(out=tmp_path, quiet=True, resume=True))
    assert again["results"]["inversion"] == rows


def test_the_client_and_the_others_share_no_image() -> None:
    data = load("digits")
    client, victims, others = client_of(InversionTable(victims=50, client_images=200), data, 0)
    assert (len(client.train), len(victims.unique()), len(others)) == (200, 50, len(data.train) - 200)
    ours = {image.numpy().tobytes() for image in client.train.images}
    whole = [image.numpy().tobytes() for image in data.train.images]
    assert sorted([*(whole[place] for place in others), *(image.numpy().tobytes() for image in client.train.images)]) == sorted(whole)
    assert len(ours) > 190


def test_a_copy_in_an_upload_is_seen_as_one() -> None:
    images = torch.rand((5, 1, 9, 9), generator=torch.Generator().manual_seed(0))
    psnr, ssim, image = _nearest(images[3], images)
    assert (psnr, round(ssim, 6)) == (100.0, 1.0)
    assert image.equal(images[3])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"victims": 301}, "victims is 301; allowed: at most client_images, 300"),
        ({"client_images": 99999}, "client_images is 99999; allowed: fewer than"),
        ({"networks": ["dgl"]}, "dgl"),
        ({"search": {"rule": "sign"}}, "rule"),
        ({"networks": []}, "networks"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        run_study(make_any("s", {"kind": "privacy", "title": "S", **tables(**changes)}, "s.toml"), Options(out=tmp_path, quiet=True))
    assert not list(tmp_path.glob("*/metrics.jsonl"))
