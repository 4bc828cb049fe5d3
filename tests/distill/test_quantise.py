"""One quantiser for sets' files, memories and uploads: against a slow definition, and each format against the bytes it always had."""

import hashlib
import io
import json
import struct

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from apps.continual.exemplars import stored
from apps.federated import wire
from distill.condensed import CondensedSet
from distill.quantise import decode, encode, grid_of, pairs
from distill.spec import DataSpec

SPEC = DataSpec("toy", 3, 5, 4, ("a", "b"), (0.5, 0.4, 0.3), (0.2, 0.3, 0.25))
LABELS = torch.tensor([0, 1] * 3)


def pattern(bend: int) -> Tensor:
    """(6, 3, 5, 4): values from whole numbers, so that every machine has the same; the last channel is flat."""
    places = torch.arange(6 * 3 * 5 * 4, dtype=torch.int64)
    images = (((places * 7919 + places**2 * bend) % 100_003).float() / 33_331 - 1.3).view(6, 3, 5, 4)
    images[:, 2] = 0.7
    return images


def digest(codes: object, grid: object, images: Tensor) -> str:
    parts = [part if isinstance(part, bytes) else json.dumps(part).encode() for part in (codes, grid)]
    return hashlib.sha256(b"".join([*parts, images.numpy().tobytes()])).hexdigest()[:16]


# Codes, grid and decoded images as the three separate quantisers of version 0.1 wrote and read them.


@pytest.mark.parametrize(("bend", "expected"), [(1, "fe6ae62f548fa55a"), (17, "ffde42309c03e4dc")])
def test_the_file_of_a_set_is_unchanged(bend: int, expected: str) -> None:
    data = CondensedSet(pattern(bend), LABELS, SPEC).quantised().to_bytes()
    header = json.loads(data[8 : 8 + struct.unpack("<Q", data[:8])[0]])["__metadata__"]["distill"]
    codes = safetensors.torch.load(data)["images"].numpy().tobytes()
    assert digest(codes, json.loads(header)["quantisation"], CondensedSet.from_bytes(data).images) == expected


@pytest.mark.parametrize(("bend", "expected"), [(1, "c832e382b9ff1a35"), (17, "29dd27a16dc5bae9")])
def test_a_memory_is_unchanged(bend: int, expected: str) -> None:
    codes, grid = stored(pattern(bend), "uint8", None, None)
    assert grid is not None
    assert digest(codes.numpy().tobytes(), grid, decode(codes, grid)) == expected


def test_a_memory_of_real_pixels_is_unchanged() -> None:
    pixels = (torch.arange(360) * 37 % 256).view(6, 3, 5, 4).float() / 255
    codes, grid = stored(
        (pixels - torch.tensor(SPEC.mean).view(3, 1, 1)) / torch.tensor(SPEC.std).view(3, 1, 1), "uint8", SPEC.mean, SPEC.std
    )
    assert grid is not None
    assert digest(codes.numpy().tobytes(), grid, decode(codes, grid)) == "2c7e5cf0944bb303"


@pytest.mark.parametrize(("bend", "expected"), [(1, "6078700197a93ae4"), (17, "fe448f8a28372830")])
def test_an_upload_is_unchanged(bend: int, expected: str) -> None:
    arrays = wire.encode(CondensedSet(pattern(bend), LABELS, SPEC))
    parts = dict[str, bytes]()
    for name, array in arrays.items():
        np.save(buffer := io.BytesIO(), array)
        parts[name] = buffer.getvalue()
    received = wire.decode(parts, wire.Limits(SPEC, (0, 1), 3))
    assert digest(arrays["images"].tobytes(), arrays["grid"].tobytes(), received.images) == expected


# The arithmetic


def slow(images: np.ndarray, precision: type) -> tuple[np.ndarray, np.ndarray]:
    """(codes, grid), channel by channel and value by value."""
    codes, grid = np.zeros(images.shape, np.uint8), []
    for channel in range(images.shape[1]):
        values = images[:, channel].astype(precision)
        low, high = min(values.flat), max(values.flat)
        step = max((high - low) / precision(255), precision(1e-12))
        grid.append((low, step))
        for place in np.ndindex(values.shape):
            nearest = int(np.rint((values[place] - low) / step))  # a tie goes to the even code
            codes[place[0], channel, *place[1:]] = min(255, max(0, nearest))
    return codes, np.array(grid, precision)


VALUES = st.lists(st.floats(-1e6, 1e6, width=32), min_size=16, max_size=16)


@pytest.mark.parametrize("precision", [np.float32, np.float64])
@given(values=VALUES)
def test_codes_are_those_of_a_slow_definition(precision: type, values: list[float]) -> None:
    images = np.array(values, np.float32).reshape(2, 2, 2, 2)
    codes, grid = slow(images, precision)
    ours = grid_of(torch.tensor(images), torch.float32 if precision is np.float32 else torch.float64)
    assert np.array_equal(ours.numpy(), grid)
    assert np.array_equal(encode(torch.tensor(images), ours).numpy(), codes)
    back = (grid[:, 0].reshape(2, 1, 1).astype(np.float64) + grid[:, 1].reshape(2, 1, 1).astype(np.float64) * codes).astype(np.float32)
    assert np.array_equal(decode(torch.tensor(codes), ours).numpy(), back)


def test_a_grid_is_a_tensor_or_numbers() -> None:
    images = pattern(3)
    grid = grid_of(images)
    assert torch.equal(encode(images, grid), encode(images, pairs(grid)))
    assert torch.equal(encode(images, grid)[1], encode(images[1], grid))
    assert float((decode(encode(images, grid), grid) - images).abs().max()) <= 0.51 * float(grid[:, 1].max())
