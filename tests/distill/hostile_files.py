"""Damaged and hostile condensed-set files for test_condensed.py, and the bounded process that reads them.

Run as ``python -m tests.distill.hostile_files COUNT MARKER SEED...``: prints one JSON line with what became of each file.
"""

import collections
import dataclasses
import io
import json
import pickle
import random
import resource
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from distill.condensed import CondensedSet, Provenance
from distill.decode import Formation
from distill.errors import InputError
from distill.set_parts import StartWeights, StepSizes
from distill.spec import DataSpec
from distill.views import draw_views

HEADROOM = 512 << 20
LONGEST_MESSAGE = 400

# Text that json.dumps would not write; stands in the JSON for the string of its key.
RAW = {
    "@nan": "NaN",
    "@inf": "-Infinity",
    "@1e999": "1e999",
    "@digits": "9" * 5000,
    "@long": "9" * 4000,
    "@deep": "[" * 900 + "]" * 900,
    "@deeper": "[" * 100_000 + "]" * 100_000,
    "@deepest": '{"a":' * 50_000 + "1" + "}" * 50_000,
    "@half": r'"\ud800"',
}
NASTY: list[Any] = [
    *RAW, None, True, False, -1, 0, 1, 2, 1.5, -0.0, 10**12, 2**31, 2**63, 2**64, 10**30, "", "x", "3", "x" * 20_000, "\x1b[31m",
    "\r\nb\u2028c",
    [], {}, [[]], [None], [1, 2], [-1], [True], {"a": 1}, [1e-300], [[0.0, 1.0]], [[0.0, 0.0]], [[0.0, -1.0]], [[1e308, 1e308]],
    ["a"] * 300, [0.5] * 70,
]  # fmt: skip
SHAPES: list[Any] = [
    [10**12], [10**6, 1, 1000, 1000], [2**63, 2, 2, 2], [-1, 1, 4, 4], [6.0, 1, 4, 4], [True, 1, 4, 4], [6, 1, 4], [6, 1, 4, 4, 1],
    [1] * 5000,
    [0, 1, 4, 4], [], ["6", 1, 4, 4], "6144", 6, None, {"0": 6}, [[6], 1, 4, 4], ["@digits", 1, 4, 4], ["@nan", 1, 4, 4], "@deep",
    [2**32, 2**32, 1, 1],
]  # fmt: skip
DTYPES: list[Any] = [
    "F64",
    "F16",
    "BF16",
    "BOOL",
    "U8",
    "I64",
    "F32",
    "F8_E4M3",
    "object",
    "",
    "f32",
    7,
    None,
    [],
    ["F32"],
    {},
    "F" * 10_000,
    True,
]
OFFSETS: list[Any] = [
    [0, 10**12], [0, 2**64], [-8, 8], [8, 0], [0, 1], [1, 0], [4, 388], [0, 0], [0.0, 384.0], [0], [0, 1, 2], "0", None, {}, ["@digits",
    "@digits"], [True, True],
]  # fmt: skip


def small_set(
    seed: int, soft: bool = False, quantised: bool = False, n: int = 6, channels: int = 1, side: int = 4, kind: str = "probabilities"
) -> CondensedSet:
    draws = torch.Generator().manual_seed(seed)
    spec = DataSpec("toy", channels, side, side, ("a", "b", "c"), (0.5,) * channels, (0.25,) * channels)
    labels = torch.rand(n, 3, generator=draws) if soft else torch.randint(3, (n,), generator=draws)
    if kind == "probabilities" and soft:
        labels = labels / labels.sum(1, keepdim=True)
    elif kind == "weighted":
        labels = n * labels / labels.sum()
    images = torch.randn(n, channels, side, side, generator=draws)
    made = CondensedSet(
        images,
        labels,
        spec,
        0.02 if soft else None,
        "color_crop" if soft else None,
        Provenance("dm", {"a": [1, {"b": 2.5}]}, seed),
        label_kind=kind,
    )
    return made.quantised() if quantised else made


def valid_files() -> list[bytes]:
    return (
        [
            small_set(i, soft, quantised, channels=1 + 2 * (i % 2)).to_bytes()
            for i in (0, 1)
            for soft in (False, True)
            for quantised in (False, True)
        ]
        + [small_set(2, True, kind=kind).to_bytes() for kind in ("logits", "scores", "weighted")]
        + [with_parts().to_bytes(), with_views().to_bytes(), dataclasses.replace(small_set(4), decode=Formation(2)).to_bytes()]
    )


def with_parts() -> CondensedSet:
    """A set with all that FORMAT 2 has but a decode."""
    made = small_set(3)
    steps = StepSizes(torch.tensor([0.5, 0.25]), "cycle", torch.tensor([[0, 1, 2], [3, 4, 5]]))
    weights = StartWeights({"0.weight": torch.ones(2, 3), "0.bias": torch.zeros(2), "seen": torch.tensor(3)}, network="MLP")
    spec = dataclasses.replace(made.spec, normalisation_origin="given", classes_origin="published")
    return dataclasses.replace(made, spec=spec, step_sizes=steps, start_weights=weights)


def with_views() -> CondensedSet:
    """A set with stored views."""
    made = dataclasses.replace(small_set(5), augmentation="crop_flip")
    return dataclasses.replace(made, views=draw_views(2, len(made), 3, "crop_flip", "cutmix", torch.Generator().manual_seed(0)))


def unpack(data: bytes) -> tuple[dict[str, Any], bytes]:
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def text(value: Any) -> str:
    written = json.dumps(value)
    for name, raw in RAW.items():
        written = written.replace(f'"{name}"', raw)
    return written


def pack(header: str | bytes, body: bytes, length: int | None = None) -> bytes:
    encoded = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(encoded) if length is None else length) + encoded + body


def _with_inner(data: bytes, change: Callable[[dict[str, Any]], Any]) -> bytes:
    """Change the toolkit's own header, inside the metadata."""
    header, body = unpack(data)
    inner = json.loads(header["__metadata__"]["distill"])
    changed = change(inner)
    header["__metadata__"]["distill"] = changed if isinstance(changed, str) else text(inner)
    return pack(json.dumps(header), body)


def _with_outer(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    header, body = unpack(data)
    change(header)
    return pack(text(header), body)


def flips(data: bytes, rng: random.Random) -> bytes:
    raw = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        raw[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
    return bytes(raw)


def header_flips(data: bytes, rng: random.Random) -> bytes:
    raw = bytearray(data)
    end = 8 + struct.unpack("<Q", data[:8])[0]
    for _ in range(rng.choice((1, 1, 2, 4))):
        raw[rng.randrange(end)] = rng.choice(b'0123456789"{}[]:,.-e\x00\xff aNIF\\')
    return bytes(raw)


def truncation(data: bytes, rng: random.Random) -> bytes:
    return data[: rng.choice((0, 1, 7, 8, 9, rng.randrange(len(data)), len(data) - 1))]


def insertion(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.randbytes(rng.choice((1, 2, 8, 300))) + data[at:]


def noise(data: bytes, rng: random.Random) -> bytes:
    return rng.randbytes(rng.randrange(200))


def length_lie(data: bytes, rng: random.Random) -> bytes:
    length = struct.unpack("<Q", data[:8])[0]
    lie = rng.choice(
        (0, 1, 2, length - 1, length + 1, len(data) - 8, len(data), 1 << 22, 1 << 40, (1 << 63) - 1, (1 << 64) - 1, rng.getrandbits(64))
    )
    return struct.pack("<Q", lie) + data[8:]


def entry(data: bytes, rng: random.Random) -> bytes:
    name = rng.choice(("images", "labels"))
    field, values = rng.choice((("shape", SHAPES), ("dtype", DTYPES), ("data_offsets", OFFSETS)))
    return _with_outer(data, lambda header: header[name].__setitem__(field, rng.choice(values)))


def huge_everything(data: bytes, rng: random.Random) -> bytes:
    count = 10 ** rng.randrange(9, 16)

    def change(header: dict[str, Any]) -> None:
        header["images"] |= {"shape": [count, 1, 4, 4], "data_offsets": [0, 64 * count]}
        header["labels"] |= {"shape": [count], "data_offsets": [64 * count, 72 * count]}

    return _with_outer(data, change)


def tensors(data: bytes, rng: random.Random) -> bytes:
    def change(header: dict[str, Any]) -> None:
        what = rng.randrange(7)
        if what == 0:
            header["extra"] = dict(header["images"])
        elif what == 1:
            del header[rng.choice(("images", "labels"))]
        elif what == 2:
            header["images"], header["labels"] = header["labels"], header["images"]
        elif what == 3:
            header[rng.choice(("images", "labels"))] = rng.choice(NASTY)
        elif what == 4:
            del header["images"][rng.choice(("dtype", "shape", "data_offsets"))]
        elif what == 5:
            header["labels"]["data_offsets"] = header["images"]["data_offsets"]
        else:
            header["images"]["more"] = rng.choice(NASTY)

    return _with_outer(data, change)


def metadata(data: bytes, rng: random.Random) -> bytes:
    def change(header: dict[str, Any]) -> None:
        what = rng.randrange(4)
        if what == 0:
            header["__metadata__"] = rng.choice(NASTY)
        elif what == 1:
            header["__metadata__"]["distill"] = rng.choice(NASTY)
        elif what == 2:
            del header["__metadata__"]
        else:
            header["__metadata__"]["other"] = rng.choice(NASTY)

    return _with_outer(data, change)


def inner_field(data: bytes, rng: random.Random) -> bytes:
    def change(inner: dict[str, Any]) -> None:
        table = rng.choice((inner, inner["spec"], inner["provenance"], inner["provenance"]["config"]))
        what = rng.randrange(8)
        if what == 0:
            del table[rng.choice(list(table))]
        elif what == 1:
            table[rng.choice(("k" * 20_000, "unknown", "\x1b[2J\n"))] = rng.choice(NASTY)
        else:
            table[rng.choice(list(table))] = rng.choice(NASTY)

    return _with_inner(data, change)


def inner_text(data: bytes, rng: random.Random) -> bytes:
    return _with_inner(data, lambda inner: text(rng.choice(NASTY)) if rng.random() < 0.7 else text(inner)[: rng.randrange(300)])


def provenance_types(data: bytes, rng: random.Random) -> bytes:
    def change(inner: dict[str, Any]) -> None:
        inner["provenance"]["versions"] = {rng.choice(("torch", "k" * 20_000)): rng.choice(NASTY)}
        inner["provenance"]["dp"] = rng.choice((None, {"epsilon": rng.choice(NASTY)}))

    return _with_inner(data, change)


def duplicate_keys(data: bytes, rng: random.Random) -> bytes:
    header, body = unpack(data)
    written = json.dumps(header)
    other = text({"images": {"dtype": "F32", "shape": rng.choice(SHAPES), "data_offsets": rng.choice(OFFSETS)}})[1:-1]
    if rng.random() < 0.3:
        return pack(written.replace('"dtype":', '"dtype": "U8", "dtype":', 1), body)
    return pack(f"{{{other}, {written[1:]}" if rng.random() < 0.5 else f"{written[:-1]}, {other}}}", body)


def encodings(data: bytes, rng: random.Random) -> bytes:
    header, body = unpack(data)
    written = json.dumps(header)
    coding = rng.choice(("utf-16", "utf-16-le", "utf-32", "utf-8-sig", "latin"))
    encoded = written.replace("toy", "t\xf6y").encode("latin-1") if coding == "latin" else written.encode(coding)
    return pack(encoded, body)


def nested_header(data: bytes, rng: random.Random) -> bytes:
    return pack(rng.choice((RAW["@deeper"], RAW["@deepest"], "[" * 300_000, f'{{"images": {RAW["@deeper"]}}}')), b"")


class _Payload:
    def __init__(self, marker: str) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        import os

        return os.system, (f"touch '{self.marker}'",)


def pickles(marker: str) -> list[bytes]:
    """The same payload bare, zipped as torch.save does, and dressed as a safetensors file in three ways."""
    made = []
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        raw = pickle.dumps(_Payload(marker), protocol)
        zipped = io.BytesIO()
        with zipfile.ZipFile(zipped, "w") as archive:
            archive.writestr("archive/data.pkl", raw)
            archive.writestr("archive/version", "3\n")
        header, body = unpack(small_set(0).to_bytes())
        made += [
            raw,
            zipped.getvalue(),
            pack(raw, b""),
            pack(json.dumps(header), raw + body[len(raw) :]),
            pack(json.dumps(header), body + raw),
        ]
    return made


def label_kinds() -> list[bytes]:
    """Formats and kinds that contradict each other or the labels."""
    pairs: list[tuple[Any, Any]] = [(1, "logits"), (2, "logits"), (2, "probabilities"), (2, "weighted"), (2, "odds"), (2, None)]
    pairs += [(3, "logits"), (True, "x"), (2, 3), (2, ["logits"]), (2, "l" * 9999)]
    sets = [small_set(0).to_bytes(), small_set(0, soft=True).to_bytes(), small_set(0, soft=True, kind="logits").to_bytes()]
    return [_with_inner(valid, lambda inner, f=f, k=k: inner.update(format=f, label_kind=k)) for valid in sets for f, k in pairs]


def class_names(count: int, name: str = "c") -> bytes:
    return _with_inner(small_set(0).to_bytes(), lambda inner: inner["spec"].__setitem__("classes", [name] * count))


MUTATORS = (
    flips, header_flips, truncation, insertion, noise, length_lie, entry, huge_everything, tensors, metadata, inner_field, inner_text,
    provenance_types,
    duplicate_keys, encodings,
)  # fmt: skip


def survive(count: int, marker: str, seeds: list[int]) -> dict[str, Any]:
    """Read ``count`` hostile files; what was neither a sound set nor a one-line refusal is listed under ``faults``.

    The damage is drawn from each of the seeds in turn: a fault's line names the file's place among them.
    """
    draws, valid = [random.Random(seed) for seed in seeds], valid_files()
    files = [("pickle", data) for data in pickles(marker)]
    files += [("classes", class_names(n)) for n in (0, 2, 4, 99_999, 100_000, 100_001, 200_000)] + [
        ("classes", class_names(3, "n" * 1_000_000))
    ]
    files += [("label_kind", data) for data in label_kinds()]
    files += [("empty", b"")] + [("nested", nested_header(b"", draws[0])) for _ in range(8)]
    tally: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    faults: list[str] = []
    for place in range(count):
        mutate, rng = MUTATORS[place % len(MUTATORS)], draws[place // len(MUTATORS) % len(draws)]
        name, data = files[place] if place < len(files) else (mutate.__name__, mutate(rng.choice(valid), rng))
        try:
            made = CondensedSet.from_bytes(data)
        except InputError as error:
            tally[name]["refused"] += 1
            message = str(error)
            if "\n" in message or len(message) > LONGEST_MESSAGE or not message:
                faults.append(f"{place} {name}: message of {len(message)} characters: {message[:200]!r}")
        except BaseException as error:
            faults.append(f"{place} {name}: {type(error).__name__}: {str(error)[:200]}")
        else:
            tally[name]["accepted"] += 1
            faults += [f"{place} {name}: {fault}" for fault in unsound(made)]
    return {"faults": faults, "tally": tally}


def unsound(made: CondensedSet) -> list[str]:
    """What a set read from a hostile file must still hold."""
    found = []
    if tuple(made.images.shape[1:]) != made.spec.shape or not 0 < len(made.images) < 100 or not bool(made.images.isfinite().all()):
        found.append("images")
    if sum(made.counts) != len(made) or len(made.labels) != len(made) or not bool(made.labels.isfinite().all()):
        found.append("labels")
    if made.labels.is_floating_point() and made.label_kind == "probabilities" and not bool(((made.labels.sum(1) - 1).abs() < 2e-3).all()):
        found.append("probabilities")
    again = CondensedSet.from_bytes(made.to_bytes())
    if not torch.equal(again.images, made.images) or not torch.equal(again.labels, made.labels) or again.provenance != made.provenance:
        found.append("saved and loaded")
    return found


def main() -> None:
    torch.set_num_threads(1)
    CondensedSet.from_bytes(valid_files()[0])
    if sys.platform == "linux":
        now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (now + HEADROOM, now + HEADROOM))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    try:
        torch.empty(HEADROOM + (64 << 20), dtype=torch.uint8)
        bounded = False
    except RuntimeError:
        bounded = True
    result = survive(int(sys.argv[1]), sys.argv[2], [int(seed) for seed in sys.argv[3:]])
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({**result, "bounded": bounded, "grown_bytes": grown * (1 if sys.platform == "darwin" else 1024)}))


if __name__ == "__main__":
    main()
