"""Image files: those in a folder, and their pixels as one array."""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from distill.errors import InputError, clipped
from distill.processes import cores

if TYPE_CHECKING:
    from PIL import Image

MAX_ARRAY_BYTES = 16 << 30
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
# Folders that macOS, Windows and network drives create; names that start with a dot are left out as well.
_FOREIGN = ("__macosx", "@eadir", "$recycle.bin", "system volume information", "lost+found")
_GREY = ("1", "L", "LA")
_COLOUR = ("RGB", "RGBA", "RGBX", "P", "PA", "CMYK", "YCbCr", "HSV", "LAB")
_ORIENTATION = 0x0112  # the EXIF tag that says how the camera was held


def visible(name: str) -> bool:
    """Whether a name is that of a user's file or folder: not hidden, and not created by an operating system."""
    return not name.startswith(".") and name.casefold() not in _FOREIGN


def is_image(path: Path) -> bool:
    """Whether this is a visible file, or a link to one, with the suffix of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES and visible(path.name) and path.is_file()


def subfolders(top: Path) -> list[Path]:
    """The visible folders in ``top``, and links to folders, by name."""
    return sorted(path for path in top.iterdir() if visible(path.name) and path.is_dir())


def images_under(top: Path) -> tuple[list[Path], list[Path]]:
    """Image files in a folder and its subfolders. Links to other folders are followed, each folder once.

    Returns:
        The files, and the links that are broken or point to a folder above them; both sorted.
    """
    base, seen = top.resolve(), {top.resolve()}
    files: list[Path] = []
    broken: list[Path] = []
    waiting = [top]
    while waiting:
        for entry in _entries(waiting.pop()):
            path = Path(entry.path)
            if entry.is_dir():
                real = path.resolve() if entry.is_symlink() else None
                if real is not None and base.is_relative_to(real):
                    broken.append(path)
                elif real is None or real not in seen:
                    seen |= {real} if real is not None else set()
                    waiting.append(path)
            elif entry.is_symlink() and not path.exists():
                broken.append(path)
            elif path.suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
                files.append(path)
    return sorted(files), sorted(broken)


def holds_images(top: Path) -> bool:
    """Whether there is an image file in ``top`` or its subfolders."""
    seen, waiting = {top.resolve()}, [top]
    while waiting:
        inner = []
        for entry in _entries(waiting.pop()):
            if Path(entry.path).suffix.lower() in IMAGE_SUFFIXES and entry.is_file():
                return True
            if entry.is_dir() and (not entry.is_symlink() or Path(entry.path).resolve() not in seen):
                seen |= {Path(entry.path).resolve()} if entry.is_symlink() else set()
                inner.append(Path(entry.path))
        waiting += inner
    return False


def _entries(folder: Path) -> list["os.DirEntry[str]"]:
    with os.scandir(folder) as entries:
        return [entry for entry in entries if visible(entry.name)]


def named(paths: Sequence[Path]) -> str:
    """``a, b and c``: the last parts of the paths."""
    names = [clipped(path.name, 60) for path in paths[:4]] + ([f"{len(paths) - 4} more"] if len(paths) > 4 else [])
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def read_images(files: Sequence[Path], size: int | None, what: str) -> NDArray[np.uint8]:
    """Read image files, turned by their EXIF orientation, in one thread per core.

    Args:
        files: the files.
        size: pixels to which the shorter side is resized before the centre is cropped; None: not resized.
        what: begins the messages of errors.

    Returns:
        uint8, N x H x W if all files are grey, else N x H x W x 3.

    Raises:
        InputError: for a file that is no image or has more than 8 bits per channel, or for unequal sizes if ``size`` is None.
    """
    if not files:
        raise InputError(f"{what}: holds no images; expected files ending in {', '.join(IMAGE_SUFFIXES[:4])}.")
    images: NDArray[np.uint8] | None = None
    for place, (file, pixels) in enumerate(zip(files, _all_pixels(files, size, what), strict=True)):
        if images is None or (images.ndim == 3 and pixels.ndim == 3):
            grey, (height, width) = images, pixels.shape[:2]
            channels = () if pixels.ndim == 2 else (3,)
            if int(np.prod((len(files), height, width, *channels), dtype=object)) > MAX_ARRAY_BYTES:
                raise InputError(
                    f"{what}: {len(files)} images of {width} x {height} take more than {MAX_ARRAY_BYTES} bytes; give a smaller size "
                    "(--size, [data] size)."
                )
            if grey is None or pixels.shape[:2] == grey.shape[1:3]:
                images = np.empty((len(files), height, width, *channels), dtype=np.uint8)
            if grey is not None and images is not None and images is not grey:
                images[:place] = grey[:place, :, :, None]  # the first colour image makes all images colour
        assert images is not None
        if pixels.shape[:2] != images.shape[1:3]:
            (height, width), (first_height, first_width) = pixels.shape[:2], images.shape[1:3]
            sizes = f"{clipped(files[0].name)} is {first_width} x {first_height}, {clipped(file.name)} is {width} x {height}"
            raise InputError(f"{what}: images differ in size ({sizes} pixels); give a size to resize them: --size 32, [data] size = 32.")
        images[place] = pixels if pixels.ndim == images.ndim - 1 else pixels[:, :, None]
    assert images is not None
    return images


def _all_pixels(files: Sequence[Path], size: int | None, what: str) -> Iterator[NDArray[np.uint8]]:
    """The pixels of each file, in order. Only a few files per thread are read ahead, to save memory."""
    threads = min(len(cores()), 16)
    with ThreadPoolExecutor(threads) as pool:
        ahead: deque[Future[NDArray[np.uint8]]] = deque()
        try:
            for file in files:
                ahead.append(pool.submit(_pixels, file, size, what))
                if len(ahead) > 8 * threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


def _pixels(file: Path, size: int | None, what: str) -> NDArray[np.uint8]:
    """uint8 H x W of a grey image, H x W x 3 of another."""
    from PIL import Image
    from torchvision.transforms import functional

    try:
        with Image.open(file) as image:
            mode = image.mode
            if mode in (*_GREY, *_COLOUR):
                # Pillow warns about palettes with transparent entries unless they are converted to RGBA first.
                plain = (image.convert("RGBA") if mode in ("P", "PA") else image).convert("L" if mode in _GREY else "RGB")
                plain = _upright(image, plain)
                return np.asarray(plain if size is None else functional.center_crop(functional.resize(plain, size), [size, size]))
    except Exception as error:  # Pillow's decoders raise many types for damaged files
        raise InputError(
            f"{what}: {clipped(file, 300)} cannot be read as an image ({type(error).__name__}: {str(error)[:80]}); repair or delete it."
        ) from None
    raise InputError(f"{what}: {clipped(file, 300)} has pixels of mode {mode}; allowed: 8 bits a channel; convert it.")


def _upright(image: "Image.Image", plain: "Image.Image") -> "Image.Image":
    """``plain`` turned and mirrored by the EXIF orientation of ``image``; unchanged if its EXIF data are damaged."""
    from PIL import Image

    try:
        orientation = image.getexif().get(_ORIENTATION, 1)
    except Exception:  # damaged EXIF data raise many types, and the pixels are valid
        return plain
    turns = Image.Transpose
    steps = {
        2: turns.FLIP_LEFT_RIGHT,
        3: turns.ROTATE_180,
        4: turns.FLIP_TOP_BOTTOM,
        5: turns.TRANSPOSE,
        6: turns.ROTATE_270,
        7: turns.TRANSVERSE,
        8: turns.ROTATE_90,
    }
    return plain.transpose(steps[orientation]) if orientation in steps else plain
