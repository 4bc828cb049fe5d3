"""`read_foreign`: a set that another code base saved, as a `CondensedSet`. What its files do not say is asked for, in one line."""

import hashlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from distill.condensed import CondensedSet, Provenance
from distill.data import ImageData
from distill.decode import MAX_FACTOR, Decode, as_text, from_text
from distill.errors import InputError, a_kind, clipped, type_and_shape, unknown_name
from distill.foreign.files import read_file
from distill.foreign.layouts import LAYOUTS, Layout, Parts, recognised
from distill.labels import DEFAULT_KIND, LABEL_KINDS
from distill.records import versions
from distill.set_notes import unnormalised
from distill.spec import DataSpec, column
from distill.whitening import Whitening

VALUES = ("pixels", "normalised", "whitened")
METHOD = "imported"  # in the provenance
_OUTSIDE = 0.5  # IDC clamps its pixels once an outer loop, so that saved ones may leave [0, 1] by a few steps


def read_foreign(
    paths: Sequence[str | Path],
    data: ImageData,
    *,
    values: str | None = None,
    decode: str | None = None,
    lr: float | Literal["none"] | None = None,
    labels: str | None = None,
    experiment: int | None = None,
) -> CondensedSet:
    """Read the files that another code base's script saved; they are not trusted, and nothing in them is executed.

    The layout is recognised by the content (`distill.foreign.layouts.LAYOUTS`). An argument is needed where the files do not say it.

    Args:
        paths: the file, or the files of images, labels and step size in any order.
        data: the data that the set was made from: classes, shape, normalisation, and the training images that a whitening is fitted to.
        values: what the images are: "pixels" in [0, 1], "normalised" by the data's mean and std, or "whitened" (ZCA of the training
            images, eps 0.1, as mtt-distillation with ``--zca``). uint8 images are pixels.
        decode: "none", or "formation:F" for grids of F x F small images (IDC's ``factor``).
        lr: the learned step size, or "none".
        labels: kind of soft labels (`distill.labels.LABEL_KINDS`).
        experiment: which of several sets in the file, from 0.

    Returns:
        The set, in the data's normalisation. Its provenance has the layout, and names and sha256 of the files.

    Raises:
        InputError: for a file that holds anything but tensors and numbers, for what does not fit the data, and for what has to be said.
    """
    files = [Path(path) for path in paths]
    if not files:
        raise InputError("there are no files; give those that the authors' script saved.")
    if labels is not None and labels not in LABEL_KINDS:
        raise unknown_name("labels", labels, LABEL_KINDS)
    name, sets = recognised([read_file(file) for file in files])
    layout, part = LAYOUTS[name], _chosen(sets, experiment)
    facts = part.facts or {}
    stated = "pixels" if part.images.dtype == torch.uint8 else "whitened" if "whitening_matrix" in facts else None
    stated = stated or ("normalised" if {"mean", "std"} <= set(facts) else layout.values)
    images = _images(part.images, data.spec)
    targets, kind = _labels(part, len(images), data.spec.num_classes, layout.soft, labels)
    meaning, form, step = _answers(layout, part, stated, values, decode, lr)
    _check_values(images, meaning, data.spec)
    white = _whitening(data, part) if meaning == "whitened" else None
    if white is None:
        images = _normalised(images, meaning, part, data.spec)
    config: dict[str, object] = {"layout": name, "values": meaning, "decode": as_text(form), "files": [file.name for file in files]}
    config["sha256"] = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    if len(sets) > 1:
        config["experiment"] = experiment
    if part.stated:
        config["stated_accuracy"] = round(100 * math.fsum(part.stated) / len(part.stated), 4)
    origin = Provenance(METHOD, config, versions=versions())
    return CondensedSet(images, targets, data.spec, step, None, origin, whitening=white, label_kind=kind, decode=form)


def _chosen(sets: Sequence[Parts], experiment: int | None) -> Parts:
    if experiment is None and len(sets) > 1:
        raise InputError(f"the file holds the sets of {len(sets)} experiments; give one (--experiment 0 to {len(sets) - 1}).")
    if experiment is not None and not 0 <= experiment < len(sets):
        raise InputError(f"experiment is {experiment}; allowed: 0 to {len(sets) - 1}, the sets in the file.")
    return sets[experiment or 0]


def _answers(
    layout: Layout, part: Parts, stated: str | None, values: str | None, decode: str | None, lr: float | str | None
) -> tuple[str, Decode | None, float | None]:
    """What the values are, how rows are decoded, and the step size: from the file, else from the caller, else asked for."""
    if values is not None and values not in VALUES:
        raise unknown_name("values", values, VALUES)
    if part.images.dtype == torch.uint8 and values not in (None, "pixels"):
        raise InputError(f"the images are uint8, which are pixels, and values is {values!r}; leave it out.")
    factor = (part.facts or {}).get("factor")
    if lr is not None and lr != "none" and not isinstance(lr, float | int):
        raise InputError(f"lr is {a_kind(lr)}; allowed: a positive number, or 'none'.")
    questions = []
    if (values or stated) is None:
        questions.append("what the images are: --values pixels, normalised or whitened (ZCA, as with --zca of mtt-distillation)")
    if decode is None and factor is None and layout.ask_decode:
        questions.append("whether they are grids of small ones: --decode none, or formation:F with the run's factor F")
    if lr is None and part.lr is None and layout.ask_lr:
        questions.append("the learned step size: --lr NUMBER from the run's log, the file lr_best.pt if there is one, or --lr none")
    if questions:
        raise InputError(f"the files ({layout.source}) do not say {'; nor '.join(questions)}.")
    form = from_text(decode) if decode is not None else None if factor is None else _formation(factor)
    step = part.lr if lr is None else None if lr == "none" else float(lr)
    return values or stated or "", form, step


def _formation(factor: Tensor) -> Decode | None:
    """Grids of the file's factor; 1 stands for plain images."""
    number = float(factor) if factor.numel() == 1 and not factor.is_complex() else math.nan
    if not 1 <= number <= MAX_FACTOR or number != int(number):
        raise InputError(f"the file's factor is {clipped(factor.tolist(), 60)}; allowed: a whole number from 1 to {MAX_FACTOR}.")
    return None if number == 1 else from_text(f"formation:{int(number)}")


def _images(images: Tensor, spec: DataSpec) -> Tensor:
    """(N, C, H, W) float32; uint8 becomes pixels in [0, 1]."""
    images = _sound(images, "images")
    if not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(f"images are {type_and_shape(images)}; allowed: uint8 or float.")
    if images.ndim == 3 and spec.channels == 1:
        images = images.unsqueeze(1)
    if images.ndim == 4 and tuple(images.shape[1:]) != spec.shape and tuple(images.shape[1:]) == (*spec.shape[1:], spec.shape[0]):
        images = images.permute(0, 3, 1, 2)
    if images.ndim != 4 or tuple(images.shape[1:]) != spec.shape or not len(images):
        raise InputError(
            f"images are {type_and_shape(images)}, and those of data {spec.name!r} have the shape {spec.shape}; give the data that the set "
            "was made from (and --size, where its images are resized)."
        )
    plain = images.float() / 255 if images.dtype == torch.uint8 else images.float()
    if not bool(torch.isfinite(plain).all()):
        raise InputError("images hold values that are not finite, as of a run that diverged; allowed: finite numbers only.")
    return plain.contiguous()


def _labels(part: Parts, count: int, classes: int, usual: str | None, given: str | None) -> tuple[Tensor, str]:
    """Class numbers int64 (N,) or soft labels float32 (N, K), and the kind of soft labels.

    ``usual`` is the layout's kind. One that is ``given`` and would have no effect is refused: the files are not what the caller expects.
    """
    labels = _sound(part.labels, "labels")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if tuple(labels.shape) not in ((count,), (count, classes)):
        raise InputError(f"labels are {type_and_shape(labels)}; allowed: (N,) or (N, {classes}) for the file's N = {count} images.")
    if labels.is_floating_point() and not bool(torch.isfinite(labels).all()):
        raise InputError("labels hold values that are not finite; allowed: finite numbers only.")
    if labels.ndim == 1:
        if labels.is_floating_point() and bool((labels != labels.round()).any()):
            raise InputError(f"labels are {type_and_shape(labels)} with fractions; allowed: whole numbers, the class of each image.")
        return _unless_other(labels.long(), given, None)
    if bool(((labels == 0) | (labels == 1)).all()) and bool((labels.sum(1) == 1).all()):
        return _unless_other(labels.float().argmax(1), given, None)
    soft = labels.float()
    if part.label_kind is not None:
        return _unless_other(soft, given, part.label_kind)
    kind = given or usual
    if kind in (None, "logits") and LABEL_KINDS[DEFAULT_KIND].fault(soft) is None:
        return _unless_other(soft, given, DEFAULT_KIND)
    if kind is None:
        raise InputError("the soft labels are no probabilities, and the files do not say what they are: --labels logits or scores.")
    return soft, kind


def _unless_other(labels: Tensor, given: str | None, found: str | None) -> tuple[Tensor, str]:
    """Labels and the kind that was found (None: class numbers), unless another kind was given."""
    if given not in (None, found):
        what = "class numbers" if found is None else f"soft labels of the kind {found!r}"
        raise InputError(f"labels is {given!r}, which has no effect: those of the files are {what}; leave it out (--labels).")
    return labels, found or DEFAULT_KIND


def _sound(tensor: Tensor, what: str) -> Tensor:
    """The tensor without a graph. A view that repeats a small storage would take memory that the file does not have."""
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise InputError(f"{what} claim {type_and_shape(tensor)}, which {tensor.untyped_storage().nbytes()} stored bytes do not hold.")
    return tensor.detach()


def _check_values(images: Tensor, meaning: str, spec: DataSpec) -> None:
    """Raises `InputError` where the values cannot be what they are said to be."""
    low, high = float(images.min()), float(images.max())
    if meaning != "whitened" and low >= 0 and 1 + _OUTSIDE < high <= 255:
        raise InputError(f"images lie in {low:.3g} to {high:.3g}, as bytes do; save them as uint8, or divided by 255.")
    if meaning == "pixels" and not -_OUTSIDE <= low <= high <= 1 + _OUTSIDE:
        raise InputError(f"images lie in {low:.3g} to {high:.3g}, and pixels in 0 to 1; give --values normalised or whitened.")
    if meaning == "normalised" and unnormalised(low, high, spec):
        begin = spec.bounds[0]
        raise InputError(
            f"images lie in {low:.3g} to {high:.3g}, as pixels do; normalised ones of {spec.name!r} begin at {begin:.3g}: --values pixels."
        )


def _normalised(images: Tensor, meaning: str, part: Parts, spec: DataSpec) -> Tensor:
    """Images in the data's own normalisation."""
    if meaning == "pixels":
        return spec.normalise(images)
    mean, std = (_numbers(part, name, spec.channels) for name in ("mean", "std"))
    if mean is None or std is None or all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(mean + std, spec.mean + spec.std, strict=True)):
        return images
    pixels = images * column(std, images.dtype, images.device) + column(mean, images.dtype, images.device)
    return spec.normalise(pixels)


def _numbers(part: Parts, name: str, count: int) -> tuple[float, ...] | None:
    found = (part.facts or {}).get(name)
    if found is not None and (found.numel() != count or not bool(torch.isfinite(found).all())):
        raise InputError(f"{name} is {type_and_shape(found)}; allowed: {count} finite numbers, one a channel.")
    if found is not None and name == "std" and not bool((found > 0).all()):
        raise InputError(f"std is {clipped(found.tolist(), 60)}; allowed: positive numbers, one a channel.")
    return None if found is None else tuple(found.double().flatten().tolist())


def _whitening(data: ImageData, part: Parts) -> Whitening:
    """The file's own transform, else one that is fitted to the training images."""
    facts = part.facts or {}
    if {"whitening_mean", "whitening_matrix"} <= set(facts):
        return Whitening(*(_sound(facts[name], name).float() for name in ("whitening_mean", "whitening_matrix")))
    found = data.whitening or data.whitened().whitening
    assert found is not None
    return found
