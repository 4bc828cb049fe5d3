"""The stream of a continual study: its data in experiences."""

import dataclasses

import torch

from distill.data import ImageData, Split
from distill.errors import InputError
from distill.evaluation import fitted
from scenarios.continual.schema import RETURNING, ContinualStudy, StreamTable
from scenarios.engine.given import Given
from scenarios.engine.study import Options


def check_later(study: ContinualStudy, data: ImageData, given: Given) -> tuple[int, ...]:
    """The classes that come after those of the given set, which is the first experience; `InputError` when they do not fit the stream."""
    later = tuple(label for label in data.classes if label not in given.classes)
    rest = study.stream.experiences - 1
    if study.stream.setting in RETURNING:
        raise InputError(
            f'[stream]: setting is "{study.stream.setting}", and the set of {given.name!r} is the first experience; '
            'allowed: "class", "online".'
        )
    if rest < 1 or not later or len(later) % rest:
        raise InputError(
            f"[stream]: experiences is {study.stream.experiences}: the set of {given.name!r}, then {len(later)} new classes in "
            f"{rest} equal parts; allowed: {', '.join(str(n + 1) for n in range(1, len(later) + 1) if len(later) % n == 0) or 'none'}."
        )
    return later


def _given_first(given: Given, data: ImageData) -> ImageData:
    """An experience whose training images are the given set, whose test images are the real ones of its classes."""
    spec, condensed = data.spec, given.made.to(data.device).decoded()
    if condensed.labels.is_floating_point():
        raise InputError(f"the set of {given.name!r} has soft labels; a stream needs class numbers: give a set with hard labels.")
    mean, std = (torch.tensor(values, device=data.device).view(1, -1, 1, 1) for values in (spec.mean, spec.std))
    pixels = condensed.images * std + mean  # learnt images leave the range of pixels, and the stream normalises them again
    real = data.subset(given.classes)
    return dataclasses.replace(real, train=Split(pixels, condensed.hard_labels))


def _as_float(data: ImageData) -> ImageData:
    """Pixels as float32 in [0, 1], so that a set's images and real ones can be joined."""

    def part(split: Split) -> Split:
        return Split(split.images.float() / (255 if split.images.dtype == torch.uint8 else 1), split.labels)

    return dataclasses.replace(data, train=part(data.train), validation=part(data.validation), test=part(data.test))


def split(table: StreamTable, data: ImageData, seed: int) -> list[ImageData]:
    """The experiences that a stream makes of one data set. Raises `InputError` where they do not divide."""
    from apps.continual import returning_streams
    from apps.continual.streams import class_incremental

    count = table.experiences
    if table.setting == "permuted":
        return returning_streams.permuted(data, count, seed)
    if table.setting == "rotated":
        return returning_streams.rotated(data, count, table.degrees or 180.0, seed)
    if table.setting == "repetition":
        return returning_streams.repetition(data, count, table.classes_each or 2, seed)
    if table.setting == "blurry":
        return returning_streams.blurry(data, count, 0.1 if table.blurred is None else table.blurred, seed)
    return class_incremental(data, count, seed)


def stream_of(study: ContinualStudy, options: Options, data: ImageData, order: int) -> list[ImageData]:
    """The experiences of one class order; a set that another stage handed on is the first of them."""
    from apps.continual.streams import class_incremental, domain_incremental
    from distill.data_sources import load

    if study.given is not None:
        later, data = check_later(study, data, study.given), _as_float(fitted(study.given.made, data))
        rest = class_incremental(data.subset(later), study.stream.experiences - 1, options.seed * 1000 + order)
        return [_given_first(study.given, data), *rest]
    if study.stream.setting != "domain":
        return split(study.stream, data, options.seed * 1000 + order)
    others = [load(name, options.data_root, device=options.device) for name in study.stream.domains]
    if study.data.classes is not None:
        others = [other.subset(study.data.classes) for other in others]
    return domain_incremental([data, *others])
