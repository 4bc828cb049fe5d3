"""Files of another party that would execute something, take memory, or lie about their sizes: one line each, and nothing happens."""

import collections
import io
import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from distill.errors import InputError
from distill.foreign import read_foreign
from distill.foreign.files import read_file
from tests.conftest import toy

LONGEST = 500


class Runs:
    """A pickle of this calls ``os.system``."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


def records(content: object) -> dict[str, bytes]:
    """What `torch.save` writes, by record."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path: Path, parts: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in parts.items():
            archive.writestr(name, data)
    return path


def refused(path: Path) -> str:
    with pytest.raises(InputError) as found:
        read_foreign([path], toy(), values="pixels", decode="none")
    text = str(found.value)
    assert len(text) < LONGEST + len(str(path))
    assert "\n" not in text
    return text


@pytest.mark.parametrize("where", ["a torch file", "inside VICO's dict", "a plain pickle", "a stack global", "the old format"])
def test_a_pickle_that_runs_a_command_is_refused_and_runs_nothing(where: str, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "data.pt"
    bomb = Runs(f"touch {marker}")
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    if where == "a torch file":
        torch.save([images, bomb], path)
    elif where == "inside VICO's dict":
        torch.save({"data": [[images, torch.arange(3)]], "accs_all_exps": {"ConvNet": [bomb]}}, path)
    elif where == "a plain pickle":
        path.write_bytes(pickle.dumps(bomb))
    elif where == "a stack global":
        torch.save(bomb, path, pickle_protocol=4)
    else:
        torch.save(bomb, path, _use_new_zipfile_serialization=False)
    text = refused(path)
    assert not marker.exists()
    wanted = {"a torch file": "posix.system, which was not executed", "a plain pickle": "can execute anything", "the old format": "1.6"}
    assert wanted.get(where, "allowed: tensors") in text
    # The same file does run its command where it is trusted, so that the test means something.
    if where != "a plain pickle":
        torch.load(path, weights_only=False)
    else:
        pickle.loads(path.read_bytes())
    assert marker.exists()


@pytest.mark.parametrize("name", ["builtins eval", "builtins getattr", "numpy load", "torch load", "torch._utils _rebuild_qtensor"])
def test_names_that_torch_or_numpy_might_allow_are_refused(name: str, tmp_path: Path) -> None:
    parts = records([torch.zeros(1)])
    parts["archive/data.pkl"] = b"\x80\x02c" + name.replace(" ", "\n").encode() + b"\n."
    assert f"holds {name.replace(' ', '.')}, which was not executed" in refused(write(tmp_path / "data.pt", parts))


def test_a_numpy_scalar_is_a_number_and_no_object(tmp_path: Path) -> None:
    """Neither an object's dtype nor one with fields is built: numpy would read pointers from the file."""
    good = {"data": [[torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(3)]], "accs_all_exps": {}}
    for value in (np.float64(0.25), np.float32(0.25), np.int64(1), np.bool_(True)):
        torch.save({**good, "accs_all_exps": {"ConvNet": [value]}}, tmp_path / "good.pt")
        assert read_foreign([tmp_path / "good.pt"], toy(), values="pixels").provenance.config["stated_accuracy"] == 100 * float(value)
    for value in (np.str_("abc"), np.datetime64("2020-01-01"), np.array([(1, 2)], dtype=[("a", "i4"), ("b", "f4")])[0]):
        torch.save({**good, "accs_all_exps": {"ConvNet": [value]}}, tmp_path / "bad.pt")
        assert "torch.load refuses it" in refused(tmp_path / "bad.pt")
    parts = records({**good, "accs_all_exps": {"ConvNet": [np.float64(0.25)]}})
    parts["archive/data.pkl"] = parts["archive/data.pkl"].replace(b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00O8")
    assert "numpy scalar that is not a number" in refused(write(tmp_path / "object.pt", parts))


def pickled(path: Path, instructions: bytes) -> Path:
    """A file whose structure is these instructions."""
    return write(path, {**records([torch.arange(4.0)]), "archive/data.pkl": b"\x80\x02" + instructions + b"."})


ENCODE = b"c_codecs\nencode\n"
LATIN = ENCODE + b"X\x04\x00\x00\x00aaaaX\x06\x00\x00\x00latin1\x86R"
TENSOR = records(torch.arange(4.0))["archive/data.pkl"][2:-1]


@pytest.mark.parametrize(
    ("instructions", "words"),
    [
        # Bytes as hexadecimal digits of hexadecimal digits: 30 times are 4 GB.
        (ENCODE * 20 + LATIN + b"X\x03\x00\x00\x00hex\x86R" * 20, "a row of bytes is described in a way that torch.save does not write"),
        # Python computes the hash of a key by a call for each tuple in a tuple, and ends with a segmentation fault.
        (b"})" + b"\x85" * 300_000 + b"K\x01s", "a tuple of more than 32 tuples in tuples"),
        (b"}K\x01\x85K\x02s", "a dict's key, which is a text or a whole number, is described"),
        (b"ccollections\nOrderedDict\n](K\x01\x85K\x02\x86e\x85R", "a dict is described in a way"),
        # torch takes the state of a tensor as the arguments of set_.
        (TENSOR + b"}b", "an object's state is described in a way"),
        (b"}}X\x01\x00\x00\x00aK\x01sb", "an object's state is described in a way"),
        (b"ctorch\nFloatStorage\n)R", "an object is described in a way"),
        (b"ctorch._utils\n_rebuild_tensor_v2\n(K\x01K\x00K\x04\x85K\x01\x85\x89NtR", "a tensor is described in a way"),
        (b"ctorch._utils\n_rebuild_parameter\n(K\x01\x89NtR", "a parameter is described in a way"),
        (b"K\x01a", "damaged, or not a file of torch.save"),
        (b"R", "damaged, or not a file of torch.save"),
        (b"t", "damaged, or not a file of torch.save"),
        (b"h\x07", "damaged, or not a file of torch.save"),
    ],
)
def test_what_torch_would_build_and_no_file_needs_is_refused(
    instructions: bytes, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was reached"))
    assert words in refused(pickled(tmp_path / "data.pt", instructions))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x04\x85", b"J\x00\xca\x9a\x3b\x85"),  # a billion values in a storage of four
        (b"QK\x00", b"QK\x01"),  # from the second value on
        (b"K\x01\x85q\x08", b"K\x02\x85q\x08"),  # every second value
        (b"QK\x00", b"QJ\xff\xff\xff\xff"),  # before the storage
    ],
)
def test_a_tensor_outside_its_storage_is_refused_before_torch_reads_it(
    old: bytes, new: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was reached"))
    assert "does not lie in its storage of 4 values" in refused(tampered(tmp_path / "data.pt", old, new))


def test_what_torch_saves_is_read(tmp_path: Path) -> None:
    """Views, transposed and empty tensors, parameters, and every kind of plain value."""
    square = torch.arange(12.0).view(3, 4)
    content = {
        "tensors": [square.T, square[1:, ::2], square[0, 0], torch.zeros(0, 3), square.bfloat16(), square > 3],
        "parameters": (torch.nn.Parameter(square), torch.zeros(2, requires_grad=True)),
        "scalars": {"ConvNet": [np.float64(0.5), np.float32(0.25), np.int64(3)]},
        "plain": [1, -5, 2**70, 0.5, True, None, "text", (), (1, (2, (3,))), {3: 1}, collections.OrderedDict(a=1)],
    }
    torch.save(content, tmp_path / "data.pt")
    found = read_file(tmp_path / "data.pt")
    assert isinstance(found, dict)
    for one, other in zip([*content["tensors"], *content["parameters"]], [*found["tensors"], *found["parameters"]], strict=True):
        assert torch.equal(one, other)
    assert (found["scalars"], found["plain"]) == ({"ConvNet": [0.5, 0.25, 3]}, content["plain"])


# Sizes


def tampered(path: Path, old: bytes, new: bytes) -> Path:
    parts = records([torch.arange(4.0), torch.zeros(2, dtype=torch.int64)])
    assert old in parts["archive/data.pkl"]
    return write(path, {**parts, "archive/data.pkl": parts["archive/data.pkl"].replace(old, new, 1)})


def test_a_storage_larger_than_its_record_is_refused_before_torch_reads_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Versions of torch before 2.10 would read memory behind the record."""
    path = tampered(tmp_path / "data.pt", b"K\x04tq", b"J\x00\x00\x10\x00tq")
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("torch.load was reached"))
    assert "a tensor claims 4194304 bytes, and its record 'data/0' has 16" in refused(path)
    assert "its record 'data/9' has none" in refused(tampered(path, b"X\x01\x00\x00\x000q", b"X\x01\x00\x00\x009q"))


def test_a_view_that_repeats_a_small_storage_is_refused(tmp_path: Path) -> None:
    labels = torch.zeros(1, dtype=torch.int64).expand(10**9)
    torch.save([torch.zeros(1).expand(10**9, 1, 8, 8), labels], tmp_path / "data.pt")
    assert (tmp_path / "data.pt").stat().st_size < 4000
    assert "which 4 stored bytes do not hold" in refused(tmp_path / "data.pt")
    torch.save([torch.zeros(3, 1, 8, 8), labels], tmp_path / "data.pt")
    assert "labels claim int64 of shape (1000000000,)" in refused(tmp_path / "data.pt")


def test_a_zip_bomb_is_not_unpacked(tmp_path: Path) -> None:
    """A compressed archive, a compressed array, and headers that claim more than there is."""
    parts = {**records([torch.zeros(3), torch.zeros(3)]), "archive/data/0": bytes(256 << 20)}
    path = write(tmp_path / "data.pt", parts, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 1 << 20
    assert "is compressed or encrypted, which torch.save never does" in refused(path)
    np.savez_compressed(tmp_path / "bomb.npz", images=np.zeros((1 << 18, 1, 8, 8), np.float64), labels=np.zeros(1 << 18, np.int64))
    assert "it is not unpacked" in refused(tmp_path / "bomb.npz")
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"shape": (10**12,), "fortran_order": False, "descr": "<f8"})
    path = write(tmp_path / "claims.npz", {"images.npy": header.getvalue(), "labels.npy": header.getvalue()})
    assert "claims float64 of shape (1000000000000,) and has 0 bytes" in refused(path)
    (tmp_path / "claims.npy").write_bytes(header.getvalue())
    assert "has 0 bytes" in refused(tmp_path / "claims.npy")


def test_a_directory_that_claims_more_bytes_than_the_file_has(tmp_path: Path) -> None:
    path = write(tmp_path / "data.pt", records([torch.zeros(3), torch.zeros(3)]))
    data = bytearray(path.read_bytes())
    place = data.index(b"PK\x01\x02")  # the first entry of the central directory: stated sizes at 20 and 24
    data[place + 20 : place + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    path.write_bytes(data)
    assert "claim" in refused(path)


def test_arrays_of_objects_and_damaged_files(tmp_path: Path) -> None:
    np.savez(tmp_path / "objects.npz", images=np.array([{}, []], dtype=object), labels=np.arange(2))
    assert "an array of object; allowed: numbers and texts" in refused(tmp_path / "objects.npz")
    for name, data in (("empty", b""), ("text", b"hello"), ("half", b"PK\x03\x04abc"), ("npy", b"\x93NUMPY\x01\x00\xff")):
        (tmp_path / name).write_bytes(data)
        assert name in refused(tmp_path / name)
    assert "is not a file" in refused(tmp_path)
    torch.save({"weights": torch.zeros(3, 3)}, tmp_path / "net.pt")
    assert "images under images" in refused(tmp_path / "net.pt")
    torch.save([[1, 2], "x"], tmp_path / "list.pt")
    assert "which is no layout known here: vico" in refused(tmp_path / "list.pt")
    parts = records([torch.zeros(3), torch.zeros(3)])
    path = write(tmp_path / "twice.pt", {**parts, "other/data.pkl": parts["archive/data.pkl"]})
    assert "one folder, each name once" in refused(path)


def test_large_structures_and_long_texts_are_refused(tmp_path: Path) -> None:
    torch.save([list(range(400_000)), torch.zeros(1)], tmp_path / "long.pt")
    assert "its structure takes" in refused(tmp_path / "long.pt")
    torch.save({"x" * 2000: torch.zeros(1)}, tmp_path / "text.pt")
    assert "a text or number of 2000 characters" in refused(tmp_path / "text.pt")


def test_damaged_bytes_give_one_line_in_bounded_memory(tmp_path: Path) -> None:
    """Every file with bytes changed at random is read, or refused in one line, by a process that may take 1.5 GB more than it has."""
    done = subprocess.run([sys.executable, "-m", "tests.distill.test_foreign_hostile", str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    outcome = json.loads(done.stdout.splitlines()[-1])
    assert outcome["refused"] > 100
    assert outcome["read"] + outcome["refused"] == 300
    assert outcome["longest"] < LONGEST


def _fuzz(folder: Path) -> dict[str, int]:
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 8 << 30
    resource.setrlimit(resource.RLIMIT_AS, (used + (3 << 29), resource.RLIM_INFINITY))
    rng = np.random.default_rng(0)
    good = records({"data": [[torch.zeros(3, 1, 8, 8), torch.arange(3)]], "accs_all_exps": {"ConvNet": [np.float64(0.5)]}})
    whole = write(folder / "good.pt", good).read_bytes()
    outcome = {"read": 0, "refused": 0, "longest": 0}
    for turn in range(300):
        path = folder / "data.pt"
        if turn % 2:
            data = bytearray(whole)
            for place in rng.integers(0, len(data), 3):
                data[place] = rng.integers(0, 256)
            path.write_bytes(data)
        else:
            pickled = bytearray(good["archive/data.pkl"])
            for place in rng.integers(0, len(pickled), 2):
                pickled[place] = rng.integers(0, 256)
            write(path, {**good, "archive/data.pkl": bytes(pickled)})
        try:
            read_file(path)
            outcome["read"] += 1
        except InputError as error:
            outcome["refused"] += 1
            outcome["longest"] = max(outcome["longest"], len(str(error)))
    return outcome


if __name__ == "__main__":
    print(json.dumps(_fuzz(Path(sys.argv[1]))))
