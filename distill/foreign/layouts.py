"""The layouts of files that authors' scripts save: how each is recognised, and what it means. `LAYOUTS` is the table.

IDC, DREAM, DANCE and NCFM save the same two tensors, so one entry serves them all; what differs between runs (factor, ZCA, learned step
size) is in none of the files, and `distill.foreign.reading` asks for it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from distill.errors import InputError, clipped, type_and_shape

# Names of arrays in a dict or an .npz; the first of each is what `distill.foreign.writing` writes.
IMAGES = ("images", "x_train", "data", "x", "image_syn")
LABELS = ("labels", "y_train", "targets", "target", "y", "label_syn")
# Soft labels by their kind (`distill.labels`), under names that say it.
SOFT_LABELS = {"soft_labels": "probabilities", "label_logits": "logits", "label_scores": "scores", "weighted_labels": "weighted"}
MAX_ACCURACIES = 10_000


@dataclass(frozen=True)
class Parts:
    """What a file has, before it is known what the values are.

    Attributes:
        images: (N, C, H, W), (N, H, W, C) or (N, H, W) of any dtype.
        labels: (N,) or (N, K) of any dtype.
        lr: learned step size, or None.
        label_kind: of soft labels, where the file names it.
        facts: other tensors by name: "mean", "std", "factor", "whitening_mean", "whitening_matrix".
        stated: accuracies that the file states, as fractions.
    """

    images: Tensor
    labels: Tensor
    lr: float | None = None
    label_kind: str | None = None
    facts: Mapping[str, Tensor] | None = None
    stated: tuple[float, ...] = ()


@dataclass(frozen=True)
class Layout:
    """One way to save a set.

    Attributes:
        source: who saves it.
        find: files' contents to the sets in them; None where they have another layout.
        values: what floats are ("pixels" or "normalised"); None: it differs between runs and is asked for.
        ask_decode: whether runs may have stored grids of small images, without a trace in the file.
        ask_lr: whether the step size is learned, and saved in a separate file or nowhere.
        soft: kind of soft labels that are no probabilities; None: it is asked for.
    """

    source: str
    find: Callable[[Sequence[object]], list[Parts] | None]
    values: str | None
    ask_decode: bool = False
    ask_lr: bool = False
    soft: str | None = None


def _vico(contents: Sequence[object]) -> list[Parts] | None:
    """``{"data": [[images, labels], ...], "accs_all_exps": {network: [accuracy, ...]}}``: a pair for each experiment."""
    (content,) = contents if len(contents) == 1 else (None,)
    if not isinstance(content, Mapping) or not isinstance(content.get("data"), list | tuple):
        return None
    pairs = content["data"]
    if not pairs or not all(_is_pair(pair) for pair in pairs):
        raise InputError("'data' is not a list of [images, labels]; allowed: that, as DatasetCondensation saves it.")
    rows = content.get("accs_all_exps")
    stated: list[float] = []
    for row in rows.values() if isinstance(rows, Mapping) else ():
        stated += [float(value) for value in row if isinstance(value, int | float)] if isinstance(row, list) else []
    accuracies = tuple(value for value in stated[:MAX_ACCURACIES] if 0 <= value <= 1)
    return [Parts(images, labels, stated=accuracies) for images, labels in pairs]


def _idc(contents: Sequence[object]) -> list[Parts] | None:
    """``[images, labels]`` in one file."""
    (content,) = contents if len(contents) == 1 else (None,)
    return [Parts(content[0], content[1])] if _is_pair(content) and isinstance(content, list | tuple) else None


def _mtt(contents: Sequence[object]) -> list[Parts] | None:
    """A tensor in each file: images, labels, perhaps the step size; in any order."""
    tensors = [_tensor(content) for content in contents]
    if not all(isinstance(tensor, Tensor) for tensor in tensors):
        return None
    plain = [tensor for tensor in tensors if tensor is not None]
    images = [tensor for tensor in plain if tensor.ndim >= 3]
    labels = [tensor for tensor in plain if tensor.ndim in (1, 2) and tensor.numel() > 1]
    steps = [tensor for tensor in plain if tensor.numel() == 1 and tensor.ndim <= 1]
    if len(images) == 1 and not labels:
        raise InputError("there are images and no labels; give the labels' file as well (labels_best.pt next to images_best.pt).")
    if len(images) != 1 or len(labels) != 1 or len(steps) > 1 or len(images) + len(labels) + len(steps) != len(contents):
        shapes = ", ".join(type_and_shape(tensor) for tensor in plain[:5])
        raise InputError(f"the files hold {shapes}; allowed: images (N, C, H, W), labels (N,) or (N, K), perhaps one step size.")
    return [Parts(images[0], labels[0], lr=float(steps[0]) if steps else None)]


def _arrays(contents: Sequence[object]) -> list[Parts] | None:
    """A dict of tensors or an ``.npz``, with images and labels under common names."""
    (content,) = contents if len(contents) == 1 else (None,)
    if not isinstance(content, Mapping):
        return None
    tensors = {str(name): tensor for name, value in content.items() if (tensor := _tensor(value)) is not None}
    images = next((tensors[name] for name in IMAGES if name in tensors), None)
    kinds = {**dict.fromkeys(LABELS), **SOFT_LABELS}
    name = next((name for name in kinds if name in tensors), None)
    if images is None or name is None:
        raise InputError(
            f"holds {clipped(sorted(map(str, content))[:10])}; allowed: images under {' or '.join(IMAGES[:3])} and labels under "
            f"{' or '.join(LABELS[:3])}."
        )
    lr = tensors.get("lr")
    if "lr" in content and (lr is None or lr.numel() != 1):
        raise InputError("'lr' is not one number; allowed: the learned step size, or leave it out.")
    return [Parts(images, tensors[name], None if lr is None else float(lr), kinds[name], tensors)]


LAYOUTS: dict[str, Layout] = {
    # VICO-UoE/DatasetCondensation main.py and main_DM.py, DataDistillation/DataDAM: normalised images, class numbers.
    "vico": Layout("DatasetCondensation (DC, DSA, DM), DataDAM", _vico, "normalised"),
    # snu-mllab/Efficient-Dataset-Condensation condense.py, Hansong-Zhang/DANCE DANCE.py, gszfwsb/NCFM utils/ddp.py: pixels in [0, 1].
    "idc": Layout("IDC, DREAM, DANCE, NCFM", _idc, "pixels", ask_decode=True),
    # GeorgeCazenavette/mtt-distillation distill.py: whitened with --zca, else normalised; the step size is only logged.
    # NUS-HPC-AI-Lab/DATM distill/DATM.py: the same with lr_best.pt, and logits as labels, to which its loss applies softmax.
    "mtt": Layout("MTT, FTD, TESLA, DATM, PAD", _mtt, None, ask_lr=True, soft="logits"),
    "arrays": Layout("a dict or an .npz of images and labels, such as `distill export` writes", _arrays, None),
}


def recognised(contents: Sequence[object]) -> tuple[str, list[Parts]]:
    """The layout's name and the sets in these files. Raises `InputError` where no layout fits."""
    for name, layout in LAYOUTS.items():
        if (found := layout.find(contents)) is not None:
            return name, found
    kinds = ", ".join(type(content).__name__ for content in contents[:5])
    known = "; ".join(f"{name} ({layout.source})" for name, layout in LAYOUTS.items())
    raise InputError(f"the files hold {clipped(kinds)}, which is no layout known here: {known}.")


def _is_pair(content: object) -> bool:
    pair = isinstance(content, list | tuple) and len(content) == 2 and all(isinstance(part, Tensor) for part in content)
    return pair and isinstance(content, list | tuple) and content[0].ndim >= 3


def _tensor(value: object) -> Tensor | None:
    """A tensor, array of numbers or number as a tensor."""
    if isinstance(value, np.ndarray) and value.dtype.kind in "biuf" and value.dtype.itemsize <= 8:
        return torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))
    if isinstance(value, int | float):
        return torch.tensor(value)
    return value if isinstance(value, Tensor) else None
