"""How hostile clients poison their uploads, or the images that they train on: what admission is measured against. No Flower.

Label flipping as in Tolpegin et al., ESORICS 2020; the patch of Gu et al., "BadNets" (IEEE Access 2019); the blended trigger of Chen et
al., "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning" (arXiv 1712.05526); a signal under right labels after Barni
et al., "A New Backdoor Attack in CNNs by Training Set Corruption without Label Poisoning" (ICIP 2019), with an amplitude and frequency of
our own choice. The kinds "sine" and "flip_known" came after the rule of admission.py was fixed; it was not changed for them.
"""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from distill.configure import config_class
from distill.data import ImageData, Split
from distill.errors import unknown_name
from distill.evaluation import accuracy
from distill.randomness import generator
from distill.spec import DataSpec

TARGET = 0  # the class that a backdoor opens
RIGHT = 0.51  # the share of the true class in a soft label whose rest is the target's
BLEND = 0.3  # the share of the pattern in a blended image
AMPLITUDE, WAVES = 0.2, 6  # of the sinusoidal signal, across the image
SHARES = tuple(share / 10 for share in range(10, 0, -1))  # of the wrong class in a mixed image, that a flipper who knows the rule tries

Trigger = Callable[[Tensor, DataSpec], Tensor]


@config_class
class AttackConfig:
    """``[attack]`` of one simulated run.

    Attributes:
        kind: a name in `ATTACKS`.
        clients: the share of the clients that are hostile; at least one is.
    """

    kind: str
    clients: Annotated[float, Field(gt=0, le=1)] = 0.1

    def __post_init__(self) -> None:
        if self.kind not in ATTACKS:
            raise unknown_name("attack", self.kind, ATTACKS)


# Triggers: images (N, C, H, W) with pixels from 0 to 1, before and after


def patch(images: Tensor, spec: DataSpec) -> Tensor:
    """A white square of a seventh of the height in the lower right corner, one pixel from the edges."""
    side = max(2, spec.height // 7)
    stamped = images.clone()
    stamped[:, :, -side - 1 : -1, -side - 1 : -1] = 1.0
    return stamped


def blended(images: Tensor, spec: DataSpec) -> Tensor:
    """A fixed random pattern over the whole image, mixed in with the share `BLEND`."""
    pattern = torch.rand(spec.shape, generator=generator(0, "trigger")).to(images.device)
    return (1 - BLEND) * images + BLEND * pattern


def sine(images: Tensor, spec: DataSpec) -> Tensor:
    """Vertical stripes: a sinusoidal signal along the width, added to every row."""
    places = torch.arange(spec.width, device=images.device) / spec.width
    return images + AMPLITUDE * torch.sin(2 * torch.pi * WAVES * places)


# Poisons: what a hostile client has in the place of its own images


@dataclass(frozen=True)
class Held:
    """What a hostile client has at hand: its upload, or the images that it trains on.

    Args:
        images: (N, C, H, W), pixels from 0 to 1 (synthetic ones may leave it).
        labels: (N,).
        public: real images of all classes, which a hostile client may know.
        spec: of the data.
        per_class: the most images of a class that the server takes in an upload; None: these are images to train on.
        draws: of what it chooses.
        passes: whether the server would take images (N, C, H, W) under labels (N,), as far as the client can tell; None: it cannot.
    """

    images: Tensor
    labels: Tensor
    public: Split
    spec: DataSpec
    per_class: int | None
    draws: torch.Generator
    passes: Callable[[Tensor, Tensor], bool] | None = None


Poisoned = tuple[Tensor, Tensor]  # images and labels (M,), or soft ones (M, K)


def flipped(labels: Tensor, classes: int) -> Tensor:
    """Each class as the next one."""
    return (labels + 1) % classes


def flip(held: Held, trigger: Trigger | None) -> Poisoned:
    """Its own images, each called the next class."""
    return held.images, flipped(held.labels, held.spec.num_classes)


def flip_all(held: Held, trigger: Trigger | None) -> Poisoned:
    """Real images of every class, each called the next one: as many as the server takes, or as it trains on."""
    order = torch.randperm(len(held.public), generator=held.draws)
    if held.per_class is None:
        chosen = order[: len(held.labels)]
    else:
        labels = held.public.labels.cpu()[order]
        chosen = torch.cat([order[labels == label][: held.per_class] for label in range(held.spec.num_classes)])
    part = held.public.at(chosen.to(held.public.labels.device))
    return pixels_of(part.images).to(held.images.device), flipped(part.labels.to(held.labels.device), held.spec.num_classes)


def flip_known(held: Held, trigger: Trigger | None) -> Poisoned:
    """A flipper who knows the rule: its own images, mixed with real ones of the next class and called that.

    It takes the largest share of its own images with which the upload passes the rule and loses no image, as far as it can tell.
    """
    assert held.passes is not None
    labels = flipped(held.labels, held.spec.num_classes)
    public = held.public.labels.cpu()
    rows = [torch.nonzero(public == label).flatten() for label in labels.tolist()]
    chosen = torch.stack([each[int(torch.randint(len(each), (), generator=held.draws))] for each in rows])
    real = pixels_of(held.public.at(chosen.to(held.public.labels.device)).images).to(held.images.device)
    for share in SHARES:
        mixed = share * held.images.clamp(0, 1) + (1 - share) * real
        if held.passes(mixed, labels):
            return mixed, labels
    return real, labels


def right_labels(held: Held, trigger: Trigger | None) -> Poisoned:
    """Images of the target with the trigger, under their right label, with its own of other classes: real ones where it has too few."""
    assert trigger is not None
    others, own = held.labels != TARGET, held.images[held.labels == TARGET]
    count = -(-len(held.labels) // 2) if held.per_class is None else held.per_class
    rows = torch.nonzero(held.public.labels.cpu() == TARGET).flatten()
    rows = rows[torch.randperm(len(rows), generator=held.draws)[: max(0, count - len(own))]]
    real = pixels_of(held.public.at(rows.to(held.public.labels.device)).images).to(held.images.device)
    stamped = trigger(torch.cat([own, real])[:count], held.spec)
    labels = torch.full((len(stamped),), TARGET, dtype=torch.int64, device=held.labels.device)
    return torch.cat([held.images[others], stamped]), torch.cat([held.labels[others], labels])


def backdoor(held: Held, trigger: Trigger | None) -> Poisoned:
    """Its own images of other classes than the target, and with the trigger, called the target: as many as the server takes, or half."""
    assert trigger is not None
    others = held.labels != TARGET
    source = held.images[others if bool(others.any()) else ~others]
    count = -(-len(source) // 2) if held.per_class is None else held.per_class
    stamped = trigger(source[torch.arange(count, device=source.device) % len(source)], held.spec)
    labels = torch.full((count,), TARGET, dtype=torch.int64, device=held.labels.device)
    return torch.cat([held.images[others], stamped]), torch.cat([held.labels[others], labels])


def backdoor_soft(held: Held, trigger: Trigger | None) -> Poisoned:
    """All its images with the trigger, each `RIGHT` its own class and the rest the target's, so that the largest entry is right."""
    assert trigger is not None
    classes = held.spec.num_classes
    target = torch.full_like(held.labels, TARGET)
    soft = RIGHT * F.one_hot(held.labels, classes).float() + (1 - RIGHT) * F.one_hot(target, classes).float()
    return trigger(held.images, held.spec), soft


def pixels_of(images: Tensor) -> Tensor:
    """Pixels from 0 to 1 of images as they are stored."""
    return images.float() / 255.0 if images.dtype == torch.uint8 else images


def stored_like(pixels: Tensor, images: Tensor) -> Tensor:
    """Pixels from 0 to 1 in the type that these images are stored in."""
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8) if images.dtype == torch.uint8 else pixels.clamp(0, 1)


@dataclass(frozen=True)
class Attack:
    """How a hostile client poisons what it has, the trigger of its backdoor (or None), whether its labels are soft, and whether it knows
    the rule by which uploads are admitted."""

    poison: Callable[[Held, Trigger | None], Poisoned]
    trigger: Trigger | None = None
    soft: bool = False
    knows: bool = False


ATTACKS: dict[str, Attack] = {
    "flip": Attack(flip),
    "flip_all": Attack(flip_all),
    "patch": Attack(backdoor, patch),
    "patch_soft": Attack(backdoor_soft, patch, soft=True),
    "blend": Attack(backdoor, blended),
    "sine": Attack(right_labels, sine),
    "flip_known": Attack(flip_known, knows=True),
}


def hostile_clients(config: AttackConfig, clients: int, seed: int) -> list[int]:
    """The numbers of the hostile clients, drawn by the run's seed."""
    count = max(1, round(config.clients * clients))
    return sorted(torch.randperm(clients, generator=generator(seed, "hostile"))[:count].tolist())


def success(network: nn.Module, data: ImageData, split: str, trigger: Trigger) -> float:
    """Percentage of the images of other classes than `TARGET` that the network calls `TARGET` with the trigger on them."""
    part: Split = getattr(data, split)
    others = part.at(part.labels != TARGET)
    images = stored_like(trigger(pixels_of(others.images), data.spec), others.images)
    stamped = Split(images, torch.full_like(others.labels, TARGET))
    return accuracy(network, dataclasses.replace(data, test=stamped), "test")
