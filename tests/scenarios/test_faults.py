"""What a system can do to a run: a full disk, places that cannot be written, a second run in the same folder, data that are cut off."""

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch

from distill.condensed import CondensedSet
from distill.records import CannotWrite, append_line, read_json, read_lines, write_whole
from tests.scenarios.conftest import Run
from tests.scenarios.test_cli import call
from tests.scenarios.test_kill import STUDIES
from tests.scenarios.test_pipeline import toml

Mount = Callable[..., Path]


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Mount]:
    """``mount(name, *options of mount)`` gives a mounted folder; the test is skipped where the system does not let us."""
    made: list[Path] = []

    def mounting(name: str, *options: str) -> Path:
        place = tmp_path / name
        place.mkdir(exist_ok=True)
        if sys.platform != "linux" or subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode:
            pytest.skip("this system does not let us mount a file system")
        made.append(place)
        return place

    yield mounting
    for place in reversed(made):
        subprocess.run(["umount", "--lazy", str(place)], check=True)


def run(study: dict[str, Any], out: Path, place: Path) -> tuple[int, str]:
    """Exit code and last line of standard error."""
    scenario = place / "study.toml"
    scenario.write_text(toml(study))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        code, _, errors = call("run", scenario, "--out", out, "--device", "cpu", "--resume", "--quiet")
    finally:
        torch.set_num_threads(threads)
    assert "Traceback" not in errors
    return code, ["", *errors.strip().splitlines()][-1]


def every_file_is_whole(folder: Path) -> None:
    for path in folder.rglob("*"):
        assert not path.name.endswith(".part"), "half a file was left behind"
        if path.suffix == ".json":
            json.loads(path.read_text())
        elif path.suffix == ".safetensors":
            safetensors.torch.load_file(path)


# No room


def test_a_full_disk_leaves_the_last_good_state_and_the_run_goes_on_when_there_is_room(
    tmp_path: Path, mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that grows by a little: it is full at one moment after the other, each time it is one line, and the run gets further."""
    monkeypatch.setattr("distill.run.CHECKPOINT_SECONDS", 0.0)
    study = STUDIES["condense"]
    assert run(study, tmp_path / "whole", tmp_path)[0] == 0
    (whole,) = (tmp_path / "whole").iterdir()
    disk, refused = mount("disk", "-t", "tmpfs", "-o", "size=4k", "tmpfs"), set[str]()
    for size in (4, 16, 28, *range(40, 2000, 40)):
        subprocess.run(["mount", "-o", f"remount,size={size}k", str(disk)], check=True)
        code, said = run(study, disk / "runs", tmp_path)
        if code == 0:
            break
        assert code == 2, said
        assert said.startswith(f"error: {disk / 'runs'}")
        assert "cannot be written (No space left on device); make room there. A run that stopped continues with --resume." in said
        every_file_is_whole(disk)
        refused.add(said.partition(": cannot be written")[0].rpartition("/")[2])
    assert any(name.startswith("checkpoint") for name in refused), refused
    assert any(name.endswith(".png") for name in refused), refused
    (folder,) = (disk / "runs").iterdir()
    for name in ("condensed-ipc1.safetensors", "condensed-ipc2.safetensors"):
        assert torch.equal(CondensedSet.load(folder / name).images, CondensedSet.load(whole / name).images)
    found, wanted = (read_json(place / "record.json")["results"]["ipc2"]["accuracy"] for place in (folder, whole))
    assert found == wanted
    assert {path.name for path in folder.rglob("*")} == {path.name for path in whole.rglob("*")}


@pytest.mark.parametrize("kind", ["federated", "continual", "privacy", "nas", "pipeline"])
def test_no_kind_of_study_hides_a_full_disk(kind: str, tmp_path: Path, mount: Mount) -> None:
    study = STUDIES[kind]
    if kind == "federated":
        pytest.importorskip("flwr")
        study = {**study, "federation": {**study["federation"], "strategies": ["feddm"]}}
    disk = mount("disk", "-t", "tmpfs", "-o", "size=48k", "tmpfs")
    code, said = run(study, disk / "runs", tmp_path)
    assert code == 2, said
    assert str(disk / "runs") in said
    assert "cannot be written (No space left on device); make room there." in said
    assert said.startswith("error: stage 'clients' failed: " if kind == "pipeline" else f"error: {disk / 'runs'}")
    every_file_is_whole(disk)
    subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
    assert run(study, disk / "runs", tmp_path)[0] == 0
    (folder,) = (disk / "runs").iterdir()
    record = read_json(folder / "record.json")
    assert record["status"] == "done"
    if kind == "privacy":
        kept = list((folder / "epsilon8-releases").glob("release-*.safetensors"))
        assert record["results"]["epsilon8"]["privacy"]["releases"] == len(kept) == 5
    if kind == "federated":
        assert record["results"]["strategies"]["feddm"]["dropped"] == [], "a client was blamed for the disk"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_line_that_finds_no_room_is_one_error_with_its_path(tmp_path: Path) -> None:
    ledger = tmp_path / "metrics.jsonl"
    ledger.symlink_to("/dev/full")
    with pytest.raises(CannotWrite, match=r"metrics\.jsonl: cannot be written \(No space left on device\); make room there\."):
        append_line(ledger, {"step": 1})


def test_a_file_that_finds_no_room_leaves_the_old_one(tmp_path: Path) -> None:
    """Beyond a limit of the process (as `ulimit -f`), which every system has."""
    import resource

    path = tmp_path / "set"
    write_whole(path, b"old")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, before[1]))
    try:
        with pytest.raises(CannotWrite, match="File too large"):
            write_whole(path, b"new" * 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("padding", [0, 100_000])
def test_a_line_that_was_cut_off_does_not_take_the_next_one_with_it(padding: int, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    for step in range(3):
        append_line(path, {"step": step, "text": "x" * padding})
    whole = path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(whole) if byte == ord("\n")]
    cuts = range(len(whole) + 1) if not padding else [0, 1, 70_000, ends[0] - 1, ends[0], ends[0] + 70_000, len(whole) - 1, len(whole)]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        append_line(path, {"step": 9})
        assert [line["step"] for line in read_lines(path)] == [*range(sum(end <= cut for end in ends)), 9]


@pytest.mark.parametrize("place", ["a file", "/proc/nowhere"])
def test_a_place_that_cannot_be_written_is_one_line(place: str, tmp_path: Path) -> None:
    (tmp_path / "a file").write_text("not a folder")
    code, said = run(STUDIES["condense"], tmp_path / place, tmp_path)
    assert code == 2
    assert said.startswith(f"error: {tmp_path / place}")
    assert "cannot be written (" in said
    assert said.endswith("; give another folder (--out).")


# The same folder


def test_a_second_run_in_the_same_folder_is_refused_and_the_first_goes_on(start: Run, tmp_path: Path) -> None:
    study = {**STUDIES["condense"], "method": {**STUDIES["condense"]["method"], "iterations": 2000}}
    (tmp_path / "study.toml").write_text(toml(study))
    first = start(tmp_path / "study.toml", tmp_path / "runs")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("runs/*/metrics.jsonl")):
        assert first.is_alive(), (tmp_path / "log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (folder,) = (tmp_path / "runs").iterdir()
    config, lines = (folder / "config.json").read_bytes(), len(list(read_lines(folder / "metrics.jsonl")))
    code, said = run(study, tmp_path / "runs", tmp_path)
    assert code == 2
    assert said == f"error: {folder}: another process is running this study; wait for it, or choose another --out."
    assert (folder / "config.json").read_bytes() == config
    while len(list(read_lines(folder / "metrics.jsonl"))) <= lines:
        assert first.is_alive(), (tmp_path / "log").read_text()
        time.sleep(0.05)


# Data


def arrays() -> dict[str, np.ndarray]:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(2), 20)
    return {
        f"{name}_{part}": draws.integers(0, 255, (40, 16, 16), dtype=np.uint8) if name == "x" else labels
        for part in ("train", "test")
        for name in ("x", "y")
    }


@contextlib.contextmanager
def read_only(place: Path) -> Iterator[None]:
    """Nobody may write there: by a read-only mount for root, whom rights do not stop, by rights for others."""
    if os.geteuid() == 0:
        commands = [["mount", "--bind", str(place), str(place)], ["mount", "-o", "remount,bind,ro", str(place)]]
        if any(subprocess.run(command, capture_output=True, check=False).returncode for command in commands):
            pytest.skip("root may write everywhere, and this system does not let us mount")
        end = lambda: subprocess.run(["umount", "--lazy", str(place)], check=True)  # noqa: E731
    else:
        place.chmod(0o555)
        end = lambda: place.chmod(0o755)  # noqa: E731
    try:
        with pytest.raises(OSError, match=r"Read-only|Permission"):
            (place / "new").write_text("this must fail")
        yield
    finally:
        end()


@pytest.mark.parametrize("form", ["npz", "torchvision", "folder"])
def test_a_read_only_data_root_works(form: str, tmp_path: Path) -> None:
    root, found = tmp_path / "data", arrays()
    root.mkdir()
    name = {"npz": "own", "torchvision": "mnist", "folder": f"folder:{root}"}[form]
    if form == "npz":
        np.savez(root / "own.npz", **found)
    elif form == "torchvision":
        raw = root / "torchvision/MNIST/raw"
        raw.mkdir(parents=True)
        for part, stem in (("train", "train"), ("test", "t10k")):
            images, labels = found[f"x_{part}"], found[f"y_{part}"].astype(np.uint8)
            (raw / f"{stem}-images-idx3-ubyte").write_bytes(np.array([0x803, *images.shape], ">i4").tobytes() + images.tobytes())
            (raw / f"{stem}-labels-idx1-ubyte").write_bytes(np.array([0x801, len(labels)], ">i4").tobytes() + labels.tobytes())
    else:
        from PIL import Image

        for number, (image, label) in enumerate(zip(found["x_train"], found["y_train"], strict=True)):
            (root / f"class{label}").mkdir(exist_ok=True)
            Image.fromarray(image).save(root / f"class{label}/{number}.png")
    method = ["--method", "dm", "--set", "iterations=1", "--set", "network=ConvNetD1W32", "--set", "batch_real=4"]
    listed = sorted(str(path) for path in root.rglob("*"))
    with read_only(root):
        code, _, errors = call("condense", "--data", name, "--data-root", root, *method, "--out", tmp_path / "runs", "--device", "cpu")
        assert code == 0, errors
    assert sorted(str(path) for path in root.rglob("*")) == listed


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.999])
def test_data_that_are_cut_off_are_named(share: float, tmp_path: Path) -> None:
    path = tmp_path / "own.npz"
    np.savez(path, **arrays())
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    code, _, errors = call("condense", "--data", "own", "--data-root", tmp_path, "--out", tmp_path / "runs", "--device", "cpu")
    assert code == 2
    assert errors.strip().splitlines()[-1].startswith(f"error: {path}: cannot be read as an npz file (")
    assert not (tmp_path / "runs").exists()
