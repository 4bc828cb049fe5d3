"""Data sets of image files: folders in common layouts, and MHIST."""

import csv
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from distill.data import ImageData, to_split
from distill.errors import InputError, clipped, unknown_name
from distill.folder_layout import read_layout
from distill.image_files import read_images
from distill.randomness import generator
from distill.spec import MAX_NAME
from distill.splitting import carve


def read_folder(path: Path, size: int | None = None, seed: int = 0) -> ImageData:
    """Read a folder in a layout that `distill.folder_layout.read_layout` recognises.

    Without a test split, "val" is used as test; without both, a fifth of each class. The name of the data is the last part of the path,
    because other parties receive the spec. ``notes`` of the data report empty classes and images in two splits.

    Args:
        path: the folder.
        size: see `distill.image_files.read_images`.
        seed: of the choice of test images.

    Raises:
        InputError: for an unclear layout, a damaged image, or unequal sizes if ``size`` is None.
    """
    path = path.absolute()
    what = f"folder:{clipped(path, 300)}"
    try:
        if not path.is_dir():
            raise InputError(f"{what}: is not a folder.")
        layout = read_layout(path, what)
    except OSError as error:
        raise InputError(f"{what}: cannot be read ({error.strerror}: {clipped(error.filename, 300)}).") from None
    parts = {part: (files, np.array(labels, dtype=np.int64)) for part, (files, labels) in layout.parts.items()}
    if set(parts) == {"train"}:
        files, labels = parts["train"]
        stay, apart = carve(torch.from_numpy(labels), 0.2, generator(seed, "folder", "test split"))
        parts = {part: ([files[i] for i in at.tolist()], labels[at.numpy()]) for part, at in (("train", stay), ("test", apart))}
    # All parts are read together, because they must agree on size and on grey or colour.
    images = read_images([file for files, _ in parts.values() for file in files], size, what)
    ends = np.cumsum([len(files) for files, _ in parts.values()])[:-1]
    arrays = {part: (x, y) for (part, (_, y)), x in zip(parts.items(), np.split(images, ends), strict=True)}
    notes = _repeated({part: (files, *arrays[part]) for part, (files, _) in parts.items()})
    test = "test" if "test" in arrays else "val"
    name = (path.resolve().name or "folder").encode(errors="replace").decode()[:MAX_NAME]
    data = ImageData.from_arrays(name, *arrays["train"], *arrays[test], classes=layout.classes).with_origins(classes="computed")
    data = replace(data, notes=(*layout.notes, *data.notes, *notes))
    return replace(data, validation=to_split(*arrays["val"], name, "val")) if len(arrays) == 3 else data


def read_mhist(path: Path, size: int | None = None) -> ImageData:
    """MHIST (Wei et al., 2021): PATH/annotations.csv with a Partition column, PATH/images of 224 x 224, HP or SSA by majority vote.

    Raises `InputError`, with the line of annotations.csv, for a missing image, column, or unknown label or partition.
    """
    table, classes = path / "annotations.csv", ("HP", "SSA")
    files: dict[str, list[Path]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    columns = ("Image Name", "Majority Vote Label", "Partition")
    seen: set[str] = set()
    try:
        with table.open(newline="", encoding="utf-8-sig") as opened:
            rows = csv.DictReader(opened)
            for column in columns:
                if column not in (rows.fieldnames or ()):
                    raise InputError(f"{table} line 1: has no column {column!r}; found: {str(rows.fieldnames)[:200]}.")
            for row in rows:
                line = f"{table} line {rows.line_num}"
                image, label, part = (str(row[column] or "").strip() for column in columns)
                if label not in classes:
                    raise unknown_name(f"{line}: label", label, classes)
                if part not in files:
                    raise unknown_name(f"{line}: partition", part, files)
                if Path(image).name != image or not (path / "images" / image).is_file():
                    raise InputError(f"{line}: image {image[:80]!r} is not in {path / 'images'}; put it there or delete the line.")
                if image in seen:
                    raise InputError(f"{line}: image {image[:80]!r} was listed before; each image may be listed once.")
                seen.add(image)
                files[part].append(path / "images" / image)
                labels[part].append(classes.index(label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"mhist:{path}: {table} cannot be read ({error}).") from None
    images = read_images([*files["train"], *files["test"]], size, f"mhist:{path}")
    cut = len(files["train"])
    y_train, y_test = (np.array(labels[part], dtype=np.int64) for part in ("train", "test"))
    data = ImageData.from_arrays("mhist", images[:cut], y_train, images[cut:], y_test, classes=classes)
    return data.with_origins(classes="published")


def _repeated(parts: dict[str, tuple[list[Path], NDArray[np.uint8], NDArray[np.int64]]]) -> list[str]:
    """Notes on images (files, pixels, labels by split) with equal pixels in two splits, or in two classes."""
    notes = []
    seen: dict[bytes, tuple[str, Path, int]] = {}
    for part, (files, images, labels) in parts.items():
        shared: list[tuple[Path, Path]] = []
        unlike: list[tuple[Path, Path]] = []
        for file, image, label in zip(files, images, labels.tolist(), strict=True):
            digest = hashlib.blake2b(np.ascontiguousarray(image).data, digest_size=16).digest()
            other, first, its_label = seen.setdefault(digest, (part, file, label))
            if other != part:
                shared.append((file, first))
            if its_label != label:
                unlike.append((file, first))
        for pairs, fault in ((shared, "are in another split too, so an accuracy is too high"), (unlike, "have another class elsewhere")):
            if pairs:
                example = " has the pixels of ".join(clipped(path, 200) for path in pairs[0])
                notes.append(f"{len(pairs)} of {len(files)} {part} images {fault}: {example}.")
    return notes
