"""Where data sets come from: built-in digits, npz files, torchvision's files, image folders, MHIST. `load` is the one way in."""

import csv
import math
import os
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from distill.data import ImageData
from distill.errors import InputError, unknown_name
from distill.randomness import generator

DIGITS = tuple("0123456789")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FASHION = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
# name: (class names, mean, std, torchvision's class). CIFAR-10's std is the one that the condensation papers use (the mean over images of
# each image's std), not that of all pixels, so that their step sizes mean the same here.
KNOWN: dict[str, tuple[tuple[str, ...] | None, tuple[float, ...] | None, tuple[float, ...] | None, str]] = {
    "mnist": (DIGITS, (0.1307,), (0.3081,), "MNIST"),
    "fashion-mnist": (_FASHION, (0.2861,), (0.3530,), "FashionMNIST"),
    "cifar10": (_CIFAR10, (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010), "CIFAR10"),
    "cifar100": (None, (0.5071, 0.4866, 0.4409), (0.2673, 0.2564, 0.2762), "CIFAR100"),
    "svhn": (DIGITS, (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970), "SVHN"),
    "usps": (DIGITS, None, None, "USPS"),
}
NAMES = ("digits", *KNOWN)
MAX_ARRAY_BYTES = 16 << 30
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")


def data_root(root: str | Path | None = None) -> Path:
    """``root``, else the variable DISTILL_DATA, else ~/.cache/distill-data."""
    return Path(root or os.environ.get("DISTILL_DATA") or Path.home() / ".cache/distill-data").expanduser()


def load(
    name: str,
    root: str | Path | None = None,
    *,
    validation: float = 0.0,
    seed: int = 0,
    device: torch.device | str = "cpu",
    size: int | None = None,
) -> ImageData:
    """A data set by name: ``digits``, a name of `NAMES`, any ``<root>/<name>.npz``, ``folder:PATH`` or ``mhist:PATH``.

    ``validation`` is the fraction of the training images kept apart, drawn with ``seed``; the test images are never touched. ``size``
    resizes the images of folders and MHIST. Raises `InputError` when the name is unknown or the files are missing or damaged.
    """
    options: dict[str, Any] = {"validation": validation, "seed": seed, "device": device}
    kind, _, path = name.partition(":")
    if kind in ("folder", "mhist") and path:
        return (_folder if kind == "folder" else _mhist)(Path(path).expanduser(), size, options)
    if size is not None:
        raise InputError(f"size was given for data {name!r}; allowed: only with folder:PATH and mhist:PATH.")
    if name == "digits":
        return _digits(options)
    where = data_root(root)
    file = where / f"{name}.npz"
    if "/" not in name and file.is_file():
        return _npz(name, file, options)
    if name not in KNOWN:
        found = [p.stem for p in where.glob("*.npz")] if where.is_dir() else []
        raise unknown_name("data", name, {*NAMES, *found, "folder:PATH", "mhist:PATH"})
    return _torchvision(name, where, options)


def describe(root: str | Path | None = None) -> list[tuple[str, str, bool]]:
    """(name, one line, whether it is there now) of every data set that `load` knows; loads and downloads nothing."""
    where = data_root(root)
    rows = [("digits", "1,797 real handwritten digits, 16 x 16 grey, built in", True)]
    for name in KNOWN:
        there = (where / f"{name}.npz").is_file() or (where / "torchvision").is_dir()
        rows.append((name, f"{where / name}.npz, or torchvision's files under {where / 'torchvision'}", there))
    if where.is_dir():
        rows += [(p.stem, str(p), True) for p in sorted(where.glob("*.npz")) if p.stem not in KNOWN]
    rows.append(("folder:PATH", "an image folder, PATH/<class>/* or PATH/train/<class>/* and PATH/test/<class>/*", True))
    rows.append(("mhist:PATH", "MHIST: PATH/annotations.csv and PATH/images/*", True))
    return rows


def _digits(options: dict[str, Any]) -> ImageData:
    """scikit-learn's digits, 8 x 8 in 17 greys, enlarged to 16 x 16; always the same 50 test images a class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = (F.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False) * 255).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    draws = generator(0, "digits", "test split")
    order = torch.randperm(len(labels), generator=draws)
    test = torch.cat([order[labels[order] == label][:50] for label in range(10)]).sort().values
    train = torch.ones(len(labels), dtype=torch.bool)
    train[test] = False
    return ImageData.from_arrays(
        "digits", images[train], labels[train], images[test], labels[test], classes=DIGITS, **options
    )


def _npz(name: str, file: Path, options: dict[str, Any]) -> ImageData:
    arrays = {}
    try:
        with zipfile.ZipFile(file) as archive:
            members = {info.filename: info for info in archive.infolist()}
            for key in ("x_train", "y_train", "x_test", "y_test"):
                if f"{key}.npy" not in members:
                    raise InputError(f"{file}: has no array {key!r}; needed: x_train, y_train, x_test, y_test.")
                arrays[key] = _member(archive, members[f"{key}.npy"], file)
            names = _member(archive, members["class_names.npy"], file) if "class_names.npy" in members else None
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, zipfile.zlib.error) as error:  # type: ignore[attr-defined]
        if isinstance(error, InputError):
            raise
        raise InputError(f"{file}: cannot be read as an npz file ({str(error)[:120]}).") from None
    known, mean, std, _ = KNOWN.get(name, (None, None, None, ""))
    if names is not None and known is None:
        known = tuple(n.decode("utf-8", "replace") if isinstance(n, bytes) else str(n) for n in names.tolist())
    try:
        return ImageData.from_arrays(name, **arrays, classes=known, mean=mean, std=std, **options)
    except InputError as error:
        raise InputError(f"{file}: {error}") from None


def _member(archive: zipfile.ZipFile, info: zipfile.ZipInfo, file: Path) -> np.ndarray[Any, Any]:
    """One array, after its header was checked: no pickle, and no more bytes than the header's shape says."""
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if reader is None:
            raise InputError(f"{file}: {info.filename} has the npy format {version}; allowed: 1.0 or 2.0.")
        shape, _, dtype = reader(stream)
        header = stream.tell()
    if dtype.hasobject:
        raise InputError(f"{file}: {info.filename} holds Python objects, which are never unpacked; allowed: numbers.")
    size = math.prod(shape) * dtype.itemsize
    if size > MAX_ARRAY_BYTES or info.file_size != header + size:
        raise InputError(f"{file}: {info.filename} claims {size} bytes and has {info.file_size - header}; the file is damaged or too large.")
    with archive.open(info) as stream:
        return np.lib.format.read_array(stream, allow_pickle=False)  # type: ignore[no-any-return]


def _torchvision(name: str, where: Path, options: dict[str, Any]) -> ImageData:
    import torchvision

    classes, mean, std, kind = KNOWN[name]
    folder = where / "torchvision"
    download = os.environ.get("DISTILL_DOWNLOAD") == "1"
    make: Callable[..., Any] = getattr(torchvision.datasets, kind)
    try:
        if name == "svhn":
            train, test = (make(str(folder), split=split, download=download) for split in ("train", "test"))
        else:
            train, test = (make(str(folder), train=flag, download=download) for flag in (True, False))
    except (RuntimeError, OSError) as error:
        raise InputError(
            f"data {name!r}: neither {where / name}.npz nor torchvision's files under {folder} are there ({str(error)[:80]}); put one of "
            "them there, name another --data-root, or set DISTILL_DOWNLOAD=1 to let torchvision download them."
        ) from None
    arrays = []
    for split in (train, test):
        images = np.asarray(split.data)
        if name == "svhn":  # the only one that torchvision keeps channels first
            images = images.transpose(0, 2, 3, 1)
        arrays += [images, np.asarray(split.labels if name == "svhn" else split.targets).astype(np.int64)]
    names = classes or tuple(train.classes)
    return ImageData.from_arrays(name, *arrays, classes=names, mean=mean, std=std, **options)


def _folder(path: Path, size: int | None, options: dict[str, Any]) -> ImageData:
    """PATH/train and PATH/test (or PATH/val) of class folders, or PATH of class folders with a fifth of each class as test."""
    if not path.is_dir():
        raise InputError(f"folder:{path}: is not a folder.")
    parts = {kind: path / kind for kind in ("train", "test", "val") if (path / kind).is_dir()}
    held = parts.get("test", parts.get("val"))
    if "train" in parts and held is None:
        raise InputError(f"folder:{path}: has train/ but no test/ or val/; add one, or put the class folders directly under PATH.")
    top = parts.get("train", path)
    classes = sorted(p.name for p in top.iterdir() if p.is_dir() and not p.name.startswith("."))
    if not classes:
        raise InputError(f"folder:{path}: {top} has no class folders; expected {top}/<class>/<image>.")
    train, labels = _folder_files(top, classes)
    if held is not None:
        extra = sorted(p.name for p in held.iterdir() if p.is_dir() and not p.name.startswith(".") and p.name not in classes)
        if extra:
            raise unknown_name(f"folder:{path}: {held.name}/ has a class that train/ lacks:", extra[0], classes)
        test, test_labels = _folder_files(held, classes)
    else:
        draws = generator(options["seed"], "folder", "test split")
        picked = []
        for label in range(len(classes)):
            places = (labels == label).nonzero()[0]
            order = torch.randperm(len(places), generator=draws).numpy()
            picked += places[order[: len(places) // 5]].tolist()
        inside = np.isin(np.arange(len(labels)), picked)
        test, test_labels = [f for f, t in zip(train, inside, strict=True) if t], labels[inside]
        train, labels = [f for f, t in zip(train, inside, strict=True) if not t], labels[~inside]
    images = _read_images([*train, *test], size, f"folder:{path}")
    name = path.name or "folder"
    return ImageData.from_arrays(name, images[: len(train)], labels, images[len(train) :], test_labels, classes=classes, **options)


def _folder_files(top: Path, classes: list[str]) -> tuple[list[Path], np.ndarray[Any, Any]]:
    files, labels = [], []
    for label, name in enumerate(classes):
        inside = sorted(p for p in (top / name).rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()) if (top / name).is_dir() else []
        files += inside
        labels += [label] * len(inside)
    return files, np.array(labels, dtype=np.int64)


def _mhist(path: Path, size: int | None, options: dict[str, Any]) -> ImageData:
    """MHIST (Wei et al., 2021): annotations.csv with a Partition column, images of 224 x 224, classes HP and SSA by majority vote."""
    table = path / "annotations.csv"
    classes = ("HP", "SSA")
    files: dict[str, list[Path]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    try:
        with table.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.DictReader(file)
            for column in ("Image Name", "Majority Vote Label", "Partition"):
                if column not in (rows.fieldnames or []):
                    raise InputError(f"{table}: has no column {column!r}; found: {', '.join(map(str, rows.fieldnames or []))[:200]}.")
            for row in rows:
                label, part, image = (str(row[c]).strip() for c in ("Majority Vote Label", "Partition", "Image Name"))
                if label not in classes:
                    raise unknown_name(f"{table} line {rows.line_num}: label", label, classes)
                if part not in files:
                    raise unknown_name(f"{table} line {rows.line_num}: partition", part, files)
                if Path(image).name != image or not (path / "images" / image).is_file():
                    raise InputError(f"{table} line {rows.line_num}: image {image[:80]!r} is not in {path / 'images'}.")
                files[part].append(path / "images" / image)
                labels[part].append(classes.index(label))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"mhist:{path}: {table} cannot be read ({error}).") from None
    images = _read_images([*files["train"], *files["test"]], size, f"mhist:{path}")
    cut = len(files["train"])
    y_train, y_test = (np.array(labels[part], dtype=np.int64) for part in ("train", "test"))
    return ImageData.from_arrays("mhist", images[:cut], y_train, images[cut:], y_test, classes=classes, **options)


def _read_images(files: list[Path], size: int | None, what: str) -> np.ndarray[Any, Any]:
    """uint8 N x H x W when all are grey, else N x H x W x 3; with ``size`` the shorter side is resized and the centre cut out."""
    from PIL import Image
    from torchvision.transforms import functional

    if size is not None and size < 1:
        raise InputError(f"{what}: size is {size}; allowed: 1 or more pixels.")
    pictures: list[np.ndarray[Any, Any]] = []
    for file in files:
        try:
            with Image.open(file) as opened:
                picture = opened.convert("L" if opened.mode in ("1", "L", "I;16") else "RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{what}: {file} cannot be read as an image ({str(error)[:80]}).") from None
        if size is not None:
            picture = functional.center_crop(functional.resize(picture, size), [size, size])
        pictures.append(np.asarray(picture))
        if pictures[-1].shape[:2] != pictures[0].shape[:2]:
            first, other = pictures[0].shape[:2], pictures[-1].shape[:2]
            raise InputError(f"{what}: images differ in size ({files[0].name} {first}, {file.name} {other}); give a size to resize them.")
    if not pictures:
        raise InputError(f"{what}: holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES[:4])}.")
    if all(p.ndim == 2 for p in pictures):
        return np.stack(pictures)
    return np.stack([p if p.ndim == 3 else np.repeat(p[:, :, None], 3, 2) for p in pictures])
