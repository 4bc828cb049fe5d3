"""Two runs of a private study that differ in one planted image, and what differs in the part of them that others may see.

The second run draws the same noise and the same masks, and is answered with the first run's releases: all that depends on the images
through releases alone is then the same to the bit. What differs left by another way. How far a release itself has moved is compared with
the sensitivity that its noise is for. Neighbours differ in one image that is there or not, so that counts differ, too. Clocks run as usual:
no time may be in the public part.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import math
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor

from apps.federated import condense, inline
from apps.federated.partition import Partition
from apps.privacy import ledger, private_experts, private_statistics
from apps.privacy.entropy import SystemEntropy
from distill.data import ImageData, Split
from distill.data_sources import load
from distill.drawing import Drawing
from scenarios.catalogue import run_study, study
from scenarios.engine import folder as folders
from scenarios.engine import progress, public_part
from scenarios.engine.study import Options

CLASSES = (0, 1, 2)
IMAGES = 60  # beside the planted one, which is the last
# The noised answers, and how far one image may move each: the only numbers that may differ between the runs.
NOISED = {"sums of one release": "the clipping norm", "gradients of one expert's step": "the clipping norm"}
# What public/ may hold; a file of another kind is a leak until somebody looked at it.
FILES = ("GUARANTEE.txt", "*.safetensors", "*.png", "*-releases/*.safetensors", "*-releases/account.json")


def small(planted: bool) -> ImageData:
    """Sixty digits of three classes; the last image of those with one more is a checkerboard, of the last class."""
    data = load("digits").subset(CLASSES)
    some = data.train.at(torch.arange(IMAGES))
    if planted:
        board = (torch.arange(16)[:, None] + torch.arange(16)).remainder(2).mul(255).to(some.images.dtype)[None, None]
        some = Split(torch.cat([some.images, board]), torch.cat([some.labels, torch.tensor([2])]))
    return dataclasses.replace(data, train=some, test=data.test.at(torch.arange(30)))


@dataclasses.dataclass
class Runs:
    """The first run's releases, and how far those of the second have moved: (which noised field, distance, allowed)."""

    answers: list[Tensor] = dataclasses.field(default_factory=list)
    moved: list[tuple[str, float, float]] = dataclasses.field(default_factory=list)
    messages: list[dict[str, bytes]] = dataclasses.field(default_factory=list)
    second = False
    draws = 0

    def answered(self, field: str, found: Tensor, allowed: float) -> Tensor:
        assert field in NOISED
        if not self.second:
            self.answers.append(found.clone())
            return found
        earlier = self.answers[len(self.moved)]
        if earlier.shape != found.shape:
            self.moved.append((field, float("inf"), allowed))
            return found
        self.moved.append((field, float((found.double() - earlier.double()).norm()), allowed))
        return earlier.clone()

    def stream(self) -> np.random.Generator:
        self.draws += 1
        return np.random.Generator(np.random.PCG64([7, self.draws]))


class _SameAccount:
    """`os` with one account id for both runs, which is random and says nothing."""

    def __getattr__(self, name: str) -> Any:
        return (lambda count: bytes(range(count))) if name == "urandom" else getattr(os, name)


@contextlib.contextmanager
def patched(runs: Runs, planted: bool) -> Iterator[None]:
    runs.second, runs.draws = planted, 0
    sums, noised, app = private_statistics.noised_sums, private_experts._NoisedSums.add_noise, inline.client_app
    save = Drawing.save

    def release(data: ImageData, classes: Any, mask: Tensor, noise: float, norm: float, rows: Any, **sizes: Any) -> Tensor:
        return runs.answered("sums of one release", sums(data, classes, mask, noise, norm, rows, **sizes), norm)

    def expert_step(self: Any) -> None:
        noised(self)
        flat = torch.cat([p.grad.flatten() for p in self.params])
        flat = runs.answered("gradients of one expert's step", flat, self.max_grad_norm)
        for p, part in zip(self.params, flat.split([p.numel() for p in self.params]), strict=True):
            p.grad = part.view_as(p).clone()

    def listened(*arguments: Any, **named: Any) -> Any:
        client = app(*arguments, **named)

        def answer(message: Any, context: Any) -> Any:
            reply = client(message, context)
            runs.messages.append(dict(_flat(reply)))
            return reply

        return answer

    def shared_out(labels: Any, config: Any, seed: int = 0) -> Partition:
        """Shards that are as they are: the planted image is at the last client, the only one there of its class."""
        last = config.num_partitions - 1
        owners = np.minimum(np.arange(len(labels)) * config.num_partitions // IMAGES, last)
        owners[:IMAGES][labels[:IMAGES] == CLASSES[-1]] = 0
        return Partition(tuple(np.flatnonzero(owners == client) for client in range(last + 1)))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(private_statistics, "noised_sums", release)
        patch.setattr(private_experts._NoisedSums, "add_noise", expert_step)
        patch.setattr(SystemEntropy, "uniform", lambda self, count: runs.stream().random(count))
        patch.setattr(SystemEntropy, "normal", lambda self, shape: runs.stream().standard_normal(shape))
        patch.setattr(ledger, "os", _SameAccount())
        patch.setattr(progress, "LINE_SECONDS", math.inf)  # what is left of a study is a matter of the clock
        patch.setattr(inline, "client_app", listened)
        patch.setattr(condense, "split", shared_out)
        # Figures outside public/ are slow, and private.
        patch.setattr(Drawing, "save", lambda self, path, *dpi: None if Path(path).parent.name == "figures" else save(self, path, *dpi))
        patch.setattr(folders, "load", lambda *arguments, **named: small(planted))
        yield


def _flat(reply: Any) -> Iterator[tuple[str, bytes]]:
    """Everything in a message but its time and numbers of the link."""
    if reply.has_error():
        yield "error", str(reply.error.reason).encode()
        return
    for name, record in reply.content.items():
        for key, value in record.items():
            shown = (value.dtype, value.shape, value.data) if hasattr(value, "data") else value
            yield f"{name}/{key}", repr(shown).encode()


@dataclasses.dataclass
class Found:
    """The two folders, and where their public parts differ."""

    runs: Runs
    folders: tuple[Path, Path]
    records: tuple[dict[str, Any], dict[str, Any]]
    differences: list[str]
    logs: list[str]  # what differs in the log of a private run and on its terminal, times left out


def compared(tables: Mapping[str, Any], out: Path, plant: Callable[[pytest.MonkeyPatch], None] = lambda patch: None) -> Found:
    """Run the study twice; ``plant`` patches a leak into both runs."""
    runs, done, records, said = Runs(), [], [], []
    for number in (0, 1):
        made: Any = study("leaks", json.loads(json.dumps(tables)), "leaks.toml")
        with patched(runs, bool(number)), pytest.MonkeyPatch.context() as patch:
            plant(patch)
            with contextlib.redirect_stderr(io.StringIO()) as terminal:
                folder, record = run_study(made, Options(out / str(number)))
        said.append(_timeless(terminal.getvalue().replace(str(out / str(number)), "OUT")))
        done.append(folder)
        records.append(record)
    half = len(runs.messages) // 2
    found = [
        f"message {place}: {key}"
        for place, (one, other) in enumerate(zip(runs.messages[:half], runs.messages[half:], strict=True))
        for key in sorted({*one, *other})
        if one.get(key) != other.get(key)
    ]
    parts = [
        {str(path.relative_to(done[0])) for path in public_files(done[0])},
        {str(p.relative_to(done[1])) for p in public_files(done[1])},
    ]
    found += [f"{name}: is in one run only" for name in sorted(parts[0] ^ parts[1])]
    for name in sorted(parts[0] & parts[1]):
        one, other = (described(folder / name) for folder in done)
        found += [f"{name}: {key}" for key in sorted({*one, *other}) if one.get(key) != other.get(key)]
    last = [public_part.handing_on(record, "this output") for record in records]
    found += ["what the terminal says"] if last[0] != last[1] else []
    for name in sorted({str(path.relative_to(done[0])) for path in done[0].rglob("metrics.jsonl")}):
        said[0] += [f"{name}: {line}" for line in _timeless((done[0] / name).read_text())]
        said[1] += [f"{name}: {line}" for line in _timeless((done[1] / name).read_text())]
    logs = [f"{one} | {other}" for one, other in itertools.zip_longest(*said) if one != other]
    return Found(runs, (done[0], done[1]), (records[0], records[1]), found, logs)


def _timeless(text: str) -> list[str]:
    """Lines without seconds."""
    return [re.sub(r"\d[\d.]* s\b", "TIME s", re.sub(r'"seconds": [\d.e-]+', "TIME", line)) for line in text.splitlines()]


def public_files(folder: Path) -> list[Path]:
    """Of the run, and of every stage of a pipeline."""
    return sorted(path for path in folder.rglob("*") if path.is_file() and public_part.FOLDER in path.relative_to(folder).parts)


def described(path: Path) -> dict[str, bytes]:
    """A file's parts by name, so that a leak is named: fields of headers, tensors, pixels, lines."""
    data, parts = path.read_bytes(), {"bytes": path.read_bytes(), "time of change": str(path.stat().st_mtime_ns).encode()}
    if path.suffix == ".safetensors":
        whole = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])
        header = whole.pop("__metadata__", {})
        fields = json.loads(header.pop("distill")) if "distill" in header else {}
        parts["bytes"] = json.dumps(whole, sort_keys=True).encode()  # the order of a header's fields is by chance
        parts |= {f"header {key}": value for key, value in _leaves({**header, **fields})}
        parts |= {f"tensor {key}": repr(value.tolist()).encode() for key, value in safetensors.torch.load(data).items()}
    elif path.suffix == ".json":
        parts |= dict(_leaves(json.loads(data)))
    elif path.suffix == ".png":
        with Image.open(path) as picture:
            picture.load()
            parts |= {"pixels": picture.tobytes(), "words": repr(getattr(picture, "text", {})).encode()}
    else:
        parts |= {f"line {number}": line for number, line in enumerate(data.splitlines())}
    return parts


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, bytes]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{path}.{key}" if path else str(key))
    else:
        yield path, repr(value).encode()
