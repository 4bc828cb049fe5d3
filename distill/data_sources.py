"""Where data sets come from: built-in digits, npz files, torchvision's files, image folders, MHIST. `load` reads all of them."""

import math
import os
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from distill.data import ImageData
from distill.data_folders import read_folder, read_mhist
from distill.data_given import with_given
from distill.data_sets import DATA_SETS, DIGITS
from distill.errors import InputError, unknown_name
from distill.image_files import MAX_ARRAY_BYTES
from distill.randomness import generator
from distill.spec import MAX_CLASSES, MAX_SIDE
from distill.splitting import check_fraction

NAMES = tuple(DATA_SETS)
_ARRAYS = ("x_train", "y_train", "x_test", "y_test")


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
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
) -> ImageData:
    """Load a data set by name.

    Args:
        name: one of `NAMES`; the name of any ``<root>/<name>.npz``; ``folder:PATH``, a folder of images; or ``mhist:PATH``.
        root: folder of data sets; None: the variable DISTILL_DATA, else ~/.cache/distill-data.
        validation: fraction of the training images to hold out, drawn with ``seed``; test images are never used.
        seed: see ``validation``.
        device: where the images are placed.
        size: pixels to which the images of folders, MHIST and the built-in digits are resized.
        mean: per channel, of pixels in [0, 1]; replaces the computed one. Private runs on a user's own images need ``mean``, ``std`` and
            ``classes`` that do not come from the images.
        std: per channel, as ``mean``.
        classes: class names in the order of the labels, at least those that have images; replaces the names in the files.

    Raises:
        InputError: for an unknown name, missing or damaged files, or arguments that do not fit them.
    """
    check_fraction(validation)
    kind, _, path = str(name).partition(":")
    reads_files = kind in ("folder", "mhist") and str(name) != kind
    if reads_files and not path.strip():
        raise InputError(f"data {str(name)!r} has no path; allowed: {kind}:PATH, for example {kind}:. for the current folder.")
    if size is not None and (
        not (reads_files or name == "digits") or isinstance(size, bool) or not isinstance(size, int) or not 1 <= size <= MAX_SIDE
    ):
        raise InputError(f"size is {size!r} for data {name!r}; allowed: 1 to {MAX_SIDE} pixels, with folder:PATH, mhist:PATH and digits.")
    if reads_files:
        place = Path(path).expanduser()
        data = read_folder(place, size, seed) if kind == "folder" else read_mhist(place, size)
    elif name == "digits":
        data = _digits(size or 16)
    else:
        data = _by_name(str(name), data_root(root))
    return with_given(data, mean, std, classes).hold_out(validation, seed).to(device)


def describe(root: str | Path | None = None) -> list[tuple[str, str, bool]]:
    """(name, one line, whether its files are there now) of every data set that `load` knows; loads and downloads nothing."""
    where = data_root(root)
    rows = []
    for name, known in DATA_SETS.items():
        if not known.torchvision:
            rows.append((name, known.title, True))
            continue
        there = (where / f"{name}.npz").is_file() or all((where / "torchvision" / f).is_file() for f in known.files)
        rows.append((name, f"{known.title}: {where / name}.npz, or torchvision's files under {where / 'torchvision'}", there))
    rows += [(stem, f"your arrays: {where / stem}.npz", True) for stem in _own_files(where)]
    rows.append(("folder:PATH", "images: PATH/CLASS/*, PATH/train/CLASS/* and PATH/test/CLASS/*, or images with a CSV of labels", True))
    rows.append(("mhist:PATH", "MHIST: PATH/annotations.csv and PATH/images/*", True))
    return rows


def _own_files(where: Path) -> list[str]:
    return sorted(p.stem for p in where.glob("*.npz") if p.stem not in NAMES) if where.is_dir() else []


def _by_name(name: str, where: Path) -> ImageData:
    # A name is never a path: scenario files may come from others.
    if re.fullmatch(r"\w[\w.-]{0,199}", name) and (where / f"{name}.npz").is_file():
        return _npz(name, where / f"{name}.npz")
    if name not in DATA_SETS:
        raise unknown_name("data", name, {*NAMES, *_own_files(where), "folder:PATH", "mhist:PATH"})
    return _torchvision(name, where)


def _digits(side: int) -> ImageData:
    """scikit-learn's digits, 8 x 8 in 17 greys, enlarged to 16 x 16 or ``side``; always the same 50 test images a class."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] / 16
    images = (F.interpolate(small, size=(side, side), mode="bilinear", align_corners=False) * 255).round().to(torch.uint8)
    labels = torch.from_numpy(bunch.target).long()
    order = torch.randperm(len(labels), generator=generator(0, "digits", "test split"))
    test = torch.zeros(len(labels), dtype=torch.bool)
    for label in range(10):
        test[order[labels[order] == label][:50]] = True
    data = ImageData.from_arrays("digits", images[~test], labels[~test], images[test], labels[test], classes=DIGITS)
    # Mean and std are computed, from a file that is public.
    return data.with_origins(normalisation="published", classes="published", population="published")


def _npz(name: str, file: Path) -> ImageData:
    try:
        arrays, classes = _read_npz(file)
    except InputError:
        raise
    except Exception as error:  # damaged bytes make zipfile, zlib, struct, ast and numpy raise a dozen types
        raise InputError(f"{file}: cannot be read as an npz file ({type(error).__name__}: {str(error)[:120]}); make it again.") from None
    known = DATA_SETS.get(name)
    try:
        data = ImageData.from_arrays(
            name,
            *(arrays[key] for key in _ARRAYS),
            classes=known.classes if known else classes,
            mean=None if known is None or known.computed else known.mean,
            std=None if known is None or known.computed else known.std,
        )
    except InputError as error:
        raise InputError(f"{file}: {error}") from None
    # A list that the file holds may have been made from its labels.
    return _as_published(data) if known else data.with_origins(classes="computed")


def _as_published(data: ImageData) -> ImageData:
    """Data under a published name: class list and size are published, and so is the normalisation, where it is that of the name."""
    known = DATA_SETS[data.spec.name]
    same = [round(value, 6) for value in (*data.spec.mean, *data.spec.std)] == [*(known.mean or ()), *(known.std or ())]
    return data.with_origins(classes="published", population="published", normalisation="published" if same else "computed")


def _read_npz(file: Path) -> tuple[dict[str, NDArray[np.generic]], tuple[str, ...] | None]:
    """The arrays of an npz file, and its class names where it has some."""
    with zipfile.ZipFile(file) as archive:
        members = {info.filename: info for info in archive.infolist()}
        missing = [key for key in _ARRAYS if f"{key}.npy" not in members]
        if missing:
            raise InputError(f"{file}: has no array {missing[0]!r}; needed: {', '.join(_ARRAYS)}.")
        keys = [*_ARRAYS, "class_names"] if "class_names.npy" in members else list(_ARRAYS)
        # All headers before the first array: nothing large is allocated for a file that will be refused.
        total = sum(_checked_bytes(archive, members[f"{key}.npy"], key, file) for key in keys)
        if total > MAX_ARRAY_BYTES:
            raise InputError(f"{file}: its arrays would take {total} bytes; allowed: up to {MAX_ARRAY_BYTES}.")
        arrays: dict[str, NDArray[np.generic]] = {}
        for key in keys:
            with archive.open(members[f"{key}.npy"]) as stream:
                arrays[key] = np.lib.format.read_array(stream, allow_pickle=False)
    names = arrays.pop("class_names", None)
    if names is None:
        return arrays, None
    texts = [text.decode() if isinstance(text, bytes) else str(text) for text in names.tolist()]
    return arrays, tuple(text.encode().decode() for text in texts)  # refuses half characters, which no file could store


def _checked_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo, key: str, file: Path) -> int:
    """Bytes of an array, from its header alone: no Python objects, and as many bytes as the header's shape and the archive say."""
    what, file_bytes = f"{file}: {key}", file.stat().st_size
    packed = info.compress_size * (1032 if info.compress_type == zipfile.ZIP_DEFLATED else 1)  # 1032: the most that deflate can expand
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or info.compress_size > file_bytes or info.file_size > packed:
        raise InputError(f"{what} says {info.file_size} bytes in {info.compress_size} packed ones; allowed: what numpy.savez writes.")
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if header is None:
            raise InputError(f"{what} has the npy format {version}; allowed: 1.0 or 2.0.")
        shape, _, dtype = header(stream)
        start = stream.tell()
    if dtype.hasobject:
        raise InputError(f"{what} holds Python objects (pickle), which are never unpacked; allowed: numbers.")
    if key == "class_names" and (dtype.kind not in "US" or len(shape) != 1 or shape[0] > MAX_CLASSES):
        raise InputError(f"{what} is {dtype} {shape}; allowed: text of shape (K,), K up to {MAX_CLASSES}.")
    size: int = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or info.file_size != start + size:
        raise InputError(f"{what} has {info.file_size - start} bytes, its shape {str(shape)[:80]} of {dtype} needs {size}: damaged.")
    return size


class _Downloaded(Protocol):
    """What torchvision's data sets have; those that are made by split have ``labels``, the others ``targets``."""

    data: NDArray[np.uint8]
    labels: NDArray[np.int64]
    targets: list[int]


def _torchvision(name: str, where: Path) -> ImageData:
    known, folder = DATA_SETS[name], where / "torchvision"
    download = os.environ.get("DISTILL_DOWNLOAD") == "1"  # torchvision asks the network only for files that are missing or damaged
    if not download and not all((folder / f).is_file() for f in known.files):
        raise InputError(
            f"data {name!r}: neither {where / name}.npz nor torchvision's {known.files[0]} under {folder} is there; put one of them there, "
            "name another data root (--data-root or DISTILL_DATA), or set DISTILL_DOWNLOAD=1 to let torchvision download it."
        )
    from torchvision import datasets

    make: Callable[..., _Downloaded] = getattr(datasets, known.torchvision)
    arrays: list[NDArray[np.generic]] = []
    try:
        for part in ("train", "test"):
            dataset = make(str(folder), download=download, **({"split": part} if known.by_split else {"train": part == "train"}))
            images = np.asarray(dataset.data)
            arrays += [images.transpose(0, 2, 3, 1), dataset.labels] if known.by_split else [images, np.asarray(dataset.targets)]
    except Exception as error:  # damaged files and failed downloads raise many types
        doing = "download" if download else "read"
        reason = f"{type(error).__name__}: {str(error)[:120]}"
        raise InputError(
            f"data {name!r}: torchvision could not {doing} its files under {folder} ({reason}); delete them, try again."
        ) from None
    moments = (None, None) if known.computed else (known.mean, known.std)
    return _as_published(ImageData.from_arrays(name, *arrays, classes=known.classes, mean=moments[0], std=moments[1]))
