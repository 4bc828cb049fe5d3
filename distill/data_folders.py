"""Data sets made of image files: torchvision-style class folders, and MHIST."""

import csv
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from distill.data import ImageData, carve, to_split
from distill.errors import InputError, unknown_name
from distill.randomness import generator
from distill.spec import MAX_NAME

if TYPE_CHECKING:
    from PIL import Image

MAX_ARRAY_BYTES = 16 << 30
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_T = TypeVar("_T")
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")


def read_folder(path: Path, size: int | None = None, seed: int = 0) -> ImageData:
    """PATH/train and PATH/test of class folders, or PATH of class folders with a fifth of each class (drawn with ``seed``) as test.

    PATH/val stands in for a missing PATH/test, and is the validation split beside one. The data's name is PATH's last part only, since
    a spec travels to other parties. Raises `InputError` for missing folders, damaged images, and unequal sizes when ``size`` is None.
    """
    what = f"folder:{path}"
    if not path.is_dir():
        raise InputError(f"{what}: is not a folder.")
    parts = [part for part in ("train", "test", "val") if (path / part).is_dir()]
    if parts == ["train"]:
        raise InputError(f"{what}: has train/ but no test/ or val/; add one, or give folder:{path / 'train'} to have a fifth kept as test.")
    top = path / "train" if "train" in parts else path
    classes = _class_names(top)
    if not classes:
        raise InputError(f"{what}: {top} has no class folders; expected {top}/<class>/<image>.")
    files, labels = _class_files(top, classes)
    if "train" in parts:
        listed = {"train": (files, labels), **{part: _class_files(path / part, classes) for part in parts[1:]}}
    else:
        kept, held = carve(torch.from_numpy(labels), 0.2, generator(seed, "folder", "test split"))
        listed = {part: ([files[i] for i in places.tolist()], labels[places.numpy()]) for part, places in (("train", kept), ("test", held))}
    # One reading for all parts, because they must agree on size and on grey or colour.
    images = _read_images([file for part_files, _ in listed.values() for file in part_files], size, what)
    ends = np.cumsum([len(part_files) for part_files, _ in listed.values()])[:-1]
    arrays = {part: (x, y) for (part, (_, y)), x in zip(listed.items(), np.split(images, ends), strict=True)}
    test = "test" if "test" in arrays else "val"
    name = (path.resolve().name or "folder")[:MAX_NAME]
    data = ImageData.from_arrays(name, *arrays["train"], *arrays[test], classes=classes)
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
    images = _read_images([*files["train"], *files["test"]], size, f"mhist:{path}")
    cut = len(files["train"])
    y_train, y_test = (np.array(labels[part], dtype=np.int64) for part in ("train", "test"))
    return ImageData.from_arrays("mhist", images[:cut], y_train, images[cut:], y_test, classes=classes)


def _class_names(top: Path) -> list[str]:
    return sorted(p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))


def _class_files(top: Path, classes: Sequence[str]) -> tuple[list[Path], np.ndarray[Any, Any]]:
    """Image files of all class folders under ``top``, in a fixed order, and their labels (N,)."""
    unknown = [name for name in _class_names(top) if name not in classes]
    if unknown:
        raise unknown_name(f"{top}: class folder", unknown[0], classes)
    files: list[Path] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        inside = sorted(p for p in (top / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
        files += inside
        labels += [label] * len(inside)
    return files, np.array(labels, dtype=np.int64)


def _read_images(files: list[Path], size: int | None, what: str) -> np.ndarray[Any, Any]:
    """uint8 N x H x W when all are grey, else N x H x W x 3; with ``size`` the shorter side is resized and the centre cut out."""
    from torchvision.transforms import functional

    if not files:
        raise InputError(f"{what}: holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES[:4])}.")
    headers = [_open(file, lambda image: (image.size, image.mode), what) for file in files]
    (width, height), _ = headers[0]
    for file, (sides, mode) in zip(files, headers, strict=True):
        if mode not in (*_GREY, *_COLOUR):
            raise InputError(f"{what}: {file} has pixels of mode {mode}; allowed: 8 bits a channel; convert it.")
        if size is None and sides != (width, height):
            sizes = f"{files[0].name} is {width} x {height}, {file.name} is {sides[0]} x {sides[1]}"
            raise InputError(f"{what}: images differ in size ({sizes} pixels); give a size to resize them.")
    grey = all(mode in _GREY for _, mode in headers)
    width, height = (width, height) if size is None else (size, size)
    shape = (len(files), height, width) if grey else (len(files), height, width, 3)
    if np.prod(shape, dtype=object) > MAX_ARRAY_BYTES:
        raise InputError(f"{what}: {len(files)} images of {width} x {height} take more than {MAX_ARRAY_BYTES} bytes; give a smaller size.")

    def pixels(image: "Image.Image") -> np.ndarray[Any, Any]:
        # A palette may hold transparent entries, which Pillow only drops without complaint by way of RGBA.
        plain = (image.convert("RGBA") if image.mode in ("P", "PA") else image).convert("L" if grey else "RGB")
        return np.asarray(plain if size is None else functional.center_crop(functional.resize(plain, size), [size, size]))

    images = np.empty(shape, dtype=np.uint8)
    for row, file in zip(images, files, strict=True):
        row[...] = _open(file, pixels, what)
    return images


def _open(file: Path, use: "Callable[[Image.Image], _T]", what: str) -> _T:
    from PIL import Image

    try:
        with Image.open(file) as image:
            return use(image)
    except Exception as error:  # damaged image files make Pillow's decoders raise a dozen types
        raise InputError(f"{what}: {file} cannot be read as an image ({type(error).__name__}: {str(error)[:80]}).") from None
