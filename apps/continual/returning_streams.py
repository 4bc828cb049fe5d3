"""Streams whose classes come back: permuted and rotated images, classes that are repeated, and experiences with blurred borders.

Each experience is an `ImageData` of the data's spec, whose test and validation images are those of its classes, changed as its training
images are.
"""

import dataclasses
import functools
import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from apps.continual.streams import class_incremental, class_order
from distill.data import ImageData, Split
from distill.errors import InputError
from distill.randomness import generator


def permuted(data: ImageData, experiences: int, seed: int) -> list[ImageData]:
    """All classes in every experience; the first has the images as they are, each other one has its own fixed order of the pixels.

    The channels of a pixel stay together (permuted MNIST: Goodfellow et al., 2013; Kirkpatrick et al., PNAS 2017).

    Args:
        data: whose images come in each experience.
        experiences: their number.
        seed: of the orders.
    """
    height, width = data.spec.height, data.spec.width
    orders = [torch.randperm(height * width, generator=generator(seed, "permuted", number)) for number in range(1, experiences)]
    return [data, *(_mapped(data, functools.partial(_reordered, order)) for order in orders)]


def rotated(data: ImageData, experiences: int, degrees: float, seed: int) -> list[ImageData]:
    """All classes in every experience, turned by an angle (rotated MNIST: Lopez-Paz and Ranzato, NeurIPS 2017, section 4).

    Angles are equally spaced from 0 up to, and without, ``degrees``, and come in a seeded order. Images are interpolated (bilinear), and
    black (0) comes in at the corners.

    Args:
        data: whose images come in each experience.
        experiences: their number.
        degrees: the range of the angles.
        seed: of their order.
    """
    angles = [degrees * place / experiences for place in class_order(range(experiences), seed)]
    return [_mapped(data, functools.partial(_turned, angle)) if angle else data for angle in angles]


def repetition(data: ImageData, experiences: int, classes_each: int, seed: int) -> list[ImageData]:
    """Class-incremental learning with repetition (Hemati et al., CoLLAs 2023): each experience has some classes, which come back later.

    Every class comes as often as the others, as far as it divides (at least once), and its images are divided among the experiences that
    have it: no training image comes twice. This is their generator by slots, with slots for whole classes.

    Args:
        data: the classes.
        experiences: their number.
        classes_each: classes of an experience.
        seed: of the choice.

    Raises:
        InputError: some class would never come, or not have an image for each of its experiences.
    """
    classes, slots = list(data.classes), experiences * classes_each
    if not 1 <= classes_each <= len(classes) or slots < len(classes):
        raise InputError(
            f"{experiences} experiences of {classes_each} classes were asked for; allowed: at most {len(classes)} classes in one, "
            f"and {len(classes)} or more in all, so that each comes."
        )
    draws, left = generator(seed, "repetition"), dict.fromkeys(classes, slots // len(classes))
    for place in torch.randperm(len(classes), generator=draws)[: slots % len(classes)].tolist():
        left[classes[place]] += 1
    chosen: list[list[int]] = []
    for number in range(experiences):
        # A class that comes as often as there are experiences left must be in each of them; the others are drawn by what is left of them.
        must = [label for label, count in left.items() if count >= experiences - number]
        weights = torch.tensor([0.0 if label in must else float(count) for label, count in left.items()])
        more = classes_each - len(must)
        drawn = torch.multinomial(weights, more, generator=draws).tolist() if more else []
        chosen.append(sorted([*must, *(classes[place] for place in drawn)]))
        for label in chosen[-1]:
            left[label] -= 1
    parts: dict[int, list[Tensor]] = {}
    for label in classes:
        places, times = data.class_indices(label), sum(label in some for some in chosen)
        if len(places) < times:
            raise InputError(f"class {label} has {len(places)} training images and comes {times} times; take fewer experiences.")
        order = torch.randperm(len(places), generator=generator(seed, "repetition", label)).to(places.device)
        parts[label] = list(places[order].tensor_split(times))
    made = []
    for some in chosen:
        own = torch.cat([parts[label].pop(0) for label in some]).sort().values
        made.append(dataclasses.replace(data.subset(some), train=data.train.at(own)))
    return made


def blurry(data: ImageData, experiences: int, share: float, seed: int) -> list[ImageData]:
    """The classes in equal parts, as `class_incremental`, but ``share`` of each class's images come in the other experiences.

    They are divided equally among these (Bang et al., CVPR 2021: blurry-M has ``share`` M / 100). Test images are those of an experience's
    own classes.

    Args:
        data: the classes.
        experiences: their number.
        share: 0 (none) to 1.
        seed: of the order of the classes, and of the images.

    Raises:
        InputError: classes do not divide, or ``share`` is out of range.
    """
    if not 0 <= share <= 1 or experiences < 2:
        raise InputError(f"{share} of the images come in other experiences of {experiences}; allowed: 0 to 1, and 2 or more experiences.")
    disjoint = class_incremental(data, experiences, seed)
    places: list[list[Tensor]] = [[] for _ in disjoint]
    for home, part in enumerate(disjoint):
        for label in part.classes:
            every = data.class_indices(label)
            order = every[torch.randperm(len(every), generator=generator(seed, "blurry", label)).to(every.device)]
            away = round(share * len(order))
            places[home].append(order[away:])
            others = [number for number in range(experiences) if number != home]
            turn = label % len(others)  # what does not divide goes to others for each class
            for number, some in zip([*others[turn:], *others[:turn]], order[:away].tensor_split(len(others)), strict=True):
                places[number].append(some)
    if not all(sum(map(len, own)) for own in places):
        raise InputError(f"with {share} of the images in other experiences one of {experiences} has none; lower it.")
    return [
        dataclasses.replace(part, train=data.train.at(torch.cat(own).sort().values)) for part, own in zip(disjoint, places, strict=True)
    ]


def _mapped(data: ImageData, change: Callable[[Tensor], Tensor]) -> ImageData:
    """The data with all images changed."""

    def part(split: Split) -> Split:
        return Split(torch.cat([change(images) for images in split.images.split(4096)]) if len(split) else split.images, split.labels)

    return dataclasses.replace(data, train=part(data.train), validation=part(data.validation), test=part(data.test))


def _reordered(order: Tensor, images: Tensor) -> Tensor:
    """Pixels in another order."""
    return images.flatten(2)[:, :, order.to(images.device)].view_as(images)


def _turned(degrees: float, images: Tensor) -> Tensor:
    """Images (n, C, H, W) turned counterclockwise about their middle, in their own type."""
    _, _, height, width = images.shape
    cosine, sine = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    # Coordinates run from -1 to 1 along each side: what is not square must be turned in pixels.
    rows = [[cosine, -sine * height / width, 0.0], [sine * width / height, cosine, 0.0]]
    grid = F.affine_grid(torch.tensor([rows], device=images.device).expand(len(images), -1, -1), list(images.shape), align_corners=False)
    turned = F.grid_sample(images.float(), grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return turned.round().clamp(0, 255).to(torch.uint8) if images.dtype == torch.uint8 else turned
