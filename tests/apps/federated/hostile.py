"""Ten ways to be a bad client, each with random variants: parts of an upload as bytes by name."""

import io
from collections.abc import Callable

import numpy as np

from apps.federated.wire import Limits

Parts = dict[str, bytes]


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def honest(limits: Limits, rng: np.random.Generator) -> dict[str, np.ndarray]:
    count = limits.per_class * len(limits.classes)
    labels = np.repeat(limits.classes, limits.per_class).astype(np.uint8)
    images = rng.integers(0, 256, (count, *limits.spec.shape)).astype(np.uint8)
    return {"images": images, "labels": labels, "grid": np.tile(np.float32([-1.0, 0.01]), (limits.spec.channels, 1))}


def not_finite(arrays, limits, rng) -> Parts:
    arrays["grid"][rng.integers(limits.spec.channels), rng.integers(2)] = rng.choice([np.nan, np.inf, -np.inf])
    return {name: npy(a) for name, a in arrays.items()}


def wrong_shape(arrays, limits, rng) -> Parts:
    images = arrays["images"]
    shapes = [
        images.reshape(len(images), -1),
        images[..., :-1],
        images[:, :, 1:],
        images[:0],
        np.stack([images, images], 1),
        images.transpose(0, 2, 3, 1),
    ]
    arrays["images"] = np.ascontiguousarray(shapes[rng.integers(len(shapes))])
    if arrays["images"].shape == images.shape:  # a square image of one channel has no other order
        arrays["images"] = images[:, :, :, 1:]
    return {name: npy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def wrong_dtype(arrays, limits, rng) -> Parts:
    arrays["images"] = arrays["images"].astype(rng.choice(["int8", "float64", "float32", "complex64", ">f4", "uint16", "S3", "bool"]))
    return {name: npy(a) for name, a in arrays.items()}


def foreign_labels(arrays, limits, rng) -> Parts:
    labels = arrays["labels"].astype(rng.choice(["int32", "int64"]))
    labels[rng.integers(len(labels))] = rng.choice([-1, limits.spec.num_classes, 10**6, -(2**31)])
    arrays["labels"] = labels
    return {name: npy(a) for name, a in arrays.items()}


def unasked_classes(arrays, limits, rng) -> Parts:
    others = [c for c in range(limits.spec.num_classes) if c not in limits.classes]
    arrays["labels"][rng.integers(len(arrays["labels"]))] = rng.choice(others)
    return {name: npy(a) for name, a in arrays.items()}


def too_many(arrays, limits, rng) -> Parts:
    times = int(rng.choice([2, 10, 1000]))
    return {name: npy(a if name == "grid" else np.concatenate([a] * times)) for name, a in arrays.items()}


def too_many_of_one_class(arrays, limits, rng) -> Parts:
    arrays["labels"][:] = rng.choice(limits.classes)
    return {name: npy(a) for name, a in arrays.items()}


def lying_header(arrays, limits, rng) -> Parts:
    parts = {name: npy(a) for name, a in arrays.items()}
    name = str(rng.choice(["images", "labels"]))
    first = str(len(arrays["labels"])).encode()
    huge = str(rng.integers(10**6, 10**11)).encode()
    body = parts[name]
    header = body[10 : 10 + int.from_bytes(body[8:10], "little")]
    changed = header.replace(b"(" + first, b"(" + huge, 1)
    parts[name] = body[:8] + len(changed).to_bytes(2, "little") + changed + body[10 + len(header) :]
    return parts


def garbage(arrays, limits, rng) -> Parts:
    parts = {name: npy(a) for name, a in arrays.items()}
    name = str(rng.choice(sorted(parts)))
    kind = rng.integers(5)
    if kind == 0:
        parts[name] = rng.bytes(int(rng.integers(0, 300)))
    elif kind == 1:
        parts[name] = parts[name][: int(rng.integers(0, len(parts[name])))]
    elif kind == 2:
        parts[name] = npy(np.array([{"a": object}], dtype=object))
    elif kind == 3:
        buffer = io.BytesIO()
        np.savez_compressed(buffer, a=np.zeros(1000))
        parts[name] = buffer.getvalue()
    else:
        body = bytearray(parts[name])
        body[int(rng.integers(0, 20))] ^= 0xFF
        parts[name] = bytes(body)
    return parts


def wrong_names(arrays, limits, rng) -> Parts:
    parts = {name: npy(a) for name, a in arrays.items()}
    kind = rng.integers(3)
    if kind == 0:
        parts.pop(str(rng.choice(sorted(parts))))
    elif kind == 1:
        parts["../../etc"] = parts["labels"]
    else:
        parts = {f"{name}\n{k}": value for name, value in parts.items() for k in range(3)}
    return parts


def out_of_range(arrays, limits, rng) -> Parts:
    arrays["grid"][:, rng.integers(2)] = rng.choice([1e3, 1e30, 3e38])
    return {name: npy(a) for name, a in arrays.items()}


KINDS: dict[str, Callable[..., Parts]] = {
    made.__name__: made
    for made in (
        *(not_finite, wrong_shape, wrong_dtype, foreign_labels, unasked_classes, too_many, too_many_of_one_class),
        *(lying_header, garbage, wrong_names, out_of_range),
    )
}


def variant(kind: str, limits: Limits, seed: int) -> Parts:
    rng = np.random.default_rng([seed, list(KINDS).index(kind)])
    return KINDS[kind](honest(limits, rng), limits, rng)
