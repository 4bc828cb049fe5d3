"""`export`: a condensed set in formats that other programs read. `EXPORTS` is the table of formats."""

import io
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from distill.condensed import CondensedSet
from distill.decode import Formation
from distill.errors import InputError, unknown_name
from distill.foreign.card import card, front_matter, to_undo
from distill.foreign.layouts import SOFT_LABELS
from distill.records import write_whole

_NAME = re.compile(r"[\w][\w .-]{0,60}")
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?|.*[ .]", re.IGNORECASE)  # not allowed as names on Windows


@dataclass(frozen=True)
class Exported:
    """What was written.

    Attributes:
        files: the files.
        notes: what the format costs and what a consumer has to know; README.md has them as well.
        pixel_error: largest difference of an exported pixel from the set's, of a range of 1; None where values are exact.
    """

    files: tuple[Path, ...]
    notes: tuple[str, ...]
    pixel_error: float | None = None


def export(condensed: CondensedSet, folder: str | Path, kind: str, *, stored: bool = False) -> Exported:
    """Write a set into a new or empty folder, with a README.md that says what a consumer has to undo.

    Args:
        condensed: the set.
        folder: where the files go.
        kind: "png" (a folder a class), "npz", "pt" (tensors only, for `torch.load`), or "datasets" (Hugging Face's image folder:
            data/train/\\*.png, metadata.jsonl and a data card).
        stored: keep grids of small images as they are stored ("npz" and "pt"); otherwise decoded images are written.

    Returns:
        The files and notes. Pixels in PNG are rounded to 256 values and clipped to [0, 1]; `Exported.pixel_error` is what that costs.

    Raises:
        InputError: for soft labels in "png", images that are neither grey nor colour as PNG, or a folder that has files.
    """
    if kind not in EXPORTS:
        raise unknown_name("format", kind, EXPORTS)
    target = Path(folder)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"{target}: is there and not empty; give a new folder.")
    if stored and (kind not in ("npz", "pt") or not isinstance(condensed.decode, Formation)):
        raise InputError("stored is for sets of grids of small images (formation) as npz or pt; leave it out.")
    return EXPORTS[kind](condensed.to("cpu"), target, stored=stored)


def _npz(condensed: CondensedSet, folder: Path, *, stored: bool) -> Exported:
    arrays = {name: tensor.numpy() for name, tensor in _tensors(condensed, stored=stored).items()}
    content = _packed({**arrays, "class_names": np.array(condensed.spec.classes)})
    return _with_card(condensed, folder, {"set.npz": content}, "`set.npz`: numpy arrays", stored=stored)


def _pt(condensed: CondensedSet, folder: Path, *, stored: bool) -> Exported:
    buffer = io.BytesIO()
    torch.save(_tensors(condensed, stored=stored), buffer)
    content = "`set.pt`: a dict of tensors, for `torch.load(..., weights_only=True)`"
    return _with_card(condensed, folder, {"set.pt": buffer.getvalue()}, content, stored=stored)


def _tensors(condensed: CondensedSet, *, stored: bool) -> dict[str, Tensor]:
    """What npz and pt hold; `distill.foreign.layouts` reads these names."""
    chosen, spec = condensed if stored else condensed.decoded(), condensed.spec
    label_names = {kind: name for name, kind in SOFT_LABELS.items()}
    label_name = label_names[chosen.label_kind] if chosen.labels.is_floating_point() else "labels"
    tensors = {"images": chosen.images.contiguous(), label_name: chosen.labels}
    tensors |= {"mean": torch.tensor(spec.mean, dtype=torch.float64), "std": torch.tensor(spec.std, dtype=torch.float64)}
    if chosen.lr is not None:
        tensors["lr"] = torch.tensor(chosen.lr, dtype=torch.float64)
    if chosen.whitening is not None:
        tensors |= {"whitening_mean": chosen.whitening.mean, "whitening_matrix": chosen.whitening.matrix}
    if isinstance(chosen.decode, Formation):
        tensors["factor"] = torch.tensor(chosen.decode.factor)
    return {name: tensor.detach().clone() for name, tensor in tensors.items()}


def _with_card(condensed: CondensedSet, folder: Path, files: dict[str, bytes], content: str, *, stored: bool) -> Exported:
    """Write the files and their README."""
    held = ", ".join(f"`{name}`" for name in _tensors(condensed, stored=stored))
    notes = to_undo(condensed, pixels=False, stored=stored)
    return _written(folder, {**files, "README.md": card(condensed, f"{content}: {held}.", notes).encode()}, notes)


def _png(condensed: CondensedSet, folder: Path, *, stored: bool) -> Exported:
    if condensed.labels.is_floating_point():
        raise InputError("soft labels do not fit into class folders; export as datasets, npz or pt, which hold them.")
    plain, names = condensed.decoded(), _folder_names(condensed.spec.classes)
    pictures, error, costs = _pictures(condensed)
    files = {
        f"{names[label]}/{place:05d}.png": picture
        for place, (label, picture) in enumerate(zip(plain.labels.tolist(), pictures, strict=True))
    }
    notes = [costs, *to_undo(condensed, pixels=True, stored=False)]
    if absent := [name for label, name in enumerate(condensed.spec.classes) if not plain.counts[label]]:
        notes.append(f"{len(absent)} classes have no image and no folder: readers that number the folders number the classes wrongly.")
    content = "One PNG an image, in a folder a class; the folders' alphabetical order is that of the classes."
    return _written(folder, files | _more(condensed, content, notes), notes, error)


def _datasets(condensed: CondensedSet, folder: Path, *, stored: bool) -> Exported:
    plain = condensed.decoded()
    pictures, error, costs = _pictures(condensed)
    files = {f"data/train/{place:05d}.png": picture for place, picture in enumerate(pictures)}
    lines = [{"file_name": f"{place:05d}.png", "label": label} for place, label in enumerate(plain.hard_labels.tolist())]
    if plain.labels.is_floating_point():
        lines = [{**line, "soft_label": row} for line, row in zip(lines, plain.labels.tolist(), strict=True)]
    files["data/train/metadata.jsonl"] = "".join(json.dumps(line) + "\n" for line in lines).encode()
    notes = [costs, *to_undo(condensed, pixels=True, stored=False)]
    content = "Read it with `datasets.load_dataset(FOLDER)`, or from the hub; labels are in `data/train/metadata.jsonl`."
    return _written(folder, files | _more(condensed, content, notes, front_matter(condensed, len(plain))), notes, error)


def _more(condensed: CondensedSet, content: str, notes: list[str], front: str = "") -> dict[str, bytes]:
    """README.md, and the whitening that pixels need before they are what the set was made as."""
    files = {"README.md": card(condensed, content, notes, front).encode()}
    if condensed.whitening is not None:
        white = condensed.whitening
        files["whitening.npz"] = _packed({"whitening_mean": white.mean.numpy(), "whitening_matrix": white.matrix.numpy()})
    return files


def _pictures(condensed: CondensedSet) -> tuple[list[bytes], float, str]:
    """A PNG of each image, the largest error of a pixel (of a range of 1), and a sentence on it."""
    plain = condensed.decoded()
    if condensed.spec.channels not in (1, 3):
        raise InputError(f"images of {condensed.spec.channels} channels are no PNG; export as npz or pt.")
    exact = _unclipped(plain)
    codes = (exact.clamp(0, 1) * 255).round().to(torch.uint8)
    difference = (codes.float() / 255 - exact).abs()
    outside = float(((exact < 0) | (exact > 1)).float().mean())
    error = float(difference.max())
    costs = (
        f"PNG keeps 256 values of a pixel: the largest error is {error:.4f} of a range of 1, the mean {float(difference.mean()):.4f}"
        + (f"; {100 * outside:.1f} % of the values lie outside 0 to 1 and are clipped (npz and pt are exact)." if outside else ".")
    )
    return [_encoded(image.permute(1, 2, 0).numpy()) for image in codes], error, costs


def _unclipped(plain: CondensedSet) -> Tensor:
    """Pixels (N, C, H, W), not clipped."""
    if plain.whitening is not None:
        return plain.whitening.undo(plain.images)
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (plain.spec.mean, plain.spec.std))
    return plain.images * std + mean


def _packed(arrays: dict[str, NDArray[np.generic]]) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def _encoded(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.shape[2] == 1 else pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _folder_names(classes: tuple[str, ...]) -> list[str]:
    """Names of the classes' folders: the classes' own where they are safe, different and in order, else numbered."""
    safe = all(_NAME.fullmatch(name) and not _RESERVED.fullmatch(name) for name in classes)
    if safe and list(classes) == sorted(classes) and len({name.casefold() for name in classes}) == len(classes):
        return list(classes)
    digits = len(str(len(classes) - 1))
    return [f"{label:0{digits}d}-{re.sub(r'[^A-Za-z0-9_-]+', '_', name)[:60]}".rstrip("-") for label, name in enumerate(classes)]


def _written(folder: Path, files: dict[str, bytes], notes: list[str], error: float | None = None) -> Exported:
    for name, content in files.items():
        write_whole(folder / name, content)
    return Exported(tuple(folder / name for name in files), tuple(notes), error)


class Writer(Protocol):
    """Writes a set into a new folder; ``stored`` as in `export`."""

    def __call__(self, condensed: CondensedSet, folder: Path, *, stored: bool) -> Exported: ...


EXPORTS: dict[str, Writer] = {"png": _png, "npz": _npz, "pt": _pt, "datasets": _datasets}
