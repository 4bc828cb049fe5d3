"""Stored views: augmented and mixed forms of a set's images, each kept as the seed that makes it again, with a teacher's labels for it.

A learner that repeats them needs no teacher (Shen and Xing, "A Fast Knowledge Distillation Framework for Visual Recognition" (FKD), ECCV
2022, which stores the place of each crop and the labels). The images of a view are not stored: seeds take 8 bytes, labels 2 K.
"""

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill.augment import Parameters, Strategy, apply, apply_effects, draw, effects, strategy
from distill.batches import chunk_size
from distill.devices import sent
from distill.errors import InputError, clipped, type_and_shape
from distill.mixing import PROBABILITY, beta, blended, rectangles

MIXES = ("cutmix", "mixup")
MAX_VIEWS = 100_000  # of an image
LAST_SEED = 2**62 - 1


@dataclass(frozen=True, eq=False)
class Views:
    """``V`` views of each of the ``N`` images that a set decodes to, with labels of ``K`` classes. Raises `InputError`.

    Attributes:
        labels: (V, N, K) float16, a teacher's outputs (logits) for each view.
        seeds: (V, N) int64, of each view's augmentation, and of the rectangle that is cut from its partner.
        augmentation: strategy whose transforms are drawn for each view (`distill.augment.strategy`).
        mix: "cutmix", "mixup" or None.
        partners: (V, N) int64, with ``mix``: the image whose view of the same number is mixed in.
        shares: (V, N) float32, with ``mix``: the share of the image itself, as it was drawn; 1 where a view is not mixed.
    """

    labels: Tensor
    seeds: Tensor
    augmentation: str
    mix: str | None = None
    partners: Tensor | None = None
    shares: Tensor | None = None

    def __post_init__(self) -> None:
        labels, seeds = self.labels, self.seeds
        if labels.dtype != torch.float16 or labels.ndim != 3 or not labels.numel() or len(labels) > MAX_VIEWS:
            raise InputError(f"labels of views are {type_and_shape(labels)}; allowed: float16 (V, N, K), V from 1 to {MAX_VIEWS}.")
        if not bool(torch.isfinite(labels).all()):
            raise InputError("labels of views hold values that are not finite; allowed: finite numbers only.")
        if strategy(self.augmentation).dc:
            raise InputError(
                f"views have the augmentation {self.augmentation[:60]!r}, whose fill is a mean over a batch; allowed: no dc_ one."
            )
        if self.mix is not None and self.mix not in MIXES:
            raise InputError(f"views are mixed by {clipped(self.mix)!r}; allowed: {', '.join(MIXES)}, or none.")
        shape, last = labels.shape[:2], labels.shape[1] - 1
        _check("seeds", seeds, torch.int64, shape, (0, LAST_SEED))
        if (self.partners is None, self.shares is None) != (self.mix is None, self.mix is None):
            raise InputError(
                "views have partners and shares where they are mixed, and only there; give mix with both, or none of the three."
            )
        if self.partners is not None and self.shares is not None:
            _check("partners", self.partners, torch.int64, shape, (0, last))
            _check("shares", self.shares, torch.float32, shape, (0, 1))

    def __len__(self) -> int:
        """Views of each image."""
        return len(self.labels)

    def __str__(self) -> str:
        size = sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())
        mixed = f", {self.mix}" if self.mix else ""
        made = f"{self.augmentation}{mixed}; {size:,} bytes of labels and seeds"
        return f"{len(self)} stored view{'s' if len(self) > 1 else ''} an image ({made})"

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The tensors by their names in a file."""
        mixing = {} if self.partners is None or self.shares is None else {"view_partners": self.partners, "view_shares": self.shares}
        return {"view_labels": self.labels, "view_seeds": self.seeds, **mixing}

    def check(self, images: int, classes: int, augmentation: str | None) -> None:
        """Raises `InputError` unless they are of a set of this number of decoded images and classes, with this augmentation."""
        if tuple(self.labels.shape[1:]) != (images, classes):
            raise InputError(f"labels of views are {type_and_shape(self.labels)}; allowed: float16 (V, {images}, {classes}).")
        if self.augmentation != augmentation:
            raise InputError(
                f"views have the augmentation {self.augmentation[:60]!r} and the set {augmentation!r:.60}; allowed: the same for both."
            )

    def to(self, device: torch.device | str) -> "Views":
        """The same views with their labels on ``device``; the host draws from the seeds and keeps them."""
        return dataclasses.replace(self, labels=self.labels.to(device))

    def of(self, keep: Tensor) -> "Views":
        """The views of the images that ``keep`` (N,) bool names. Raises `InputError` if one is mixed with an image that is left out."""
        host = keep.cpu()
        labels, seeds = self.labels[:, keep.to(self.labels.device)], self.seeds[:, host]
        if self.partners is None or self.shares is None:
            return Views(labels, seeds, self.augmentation)
        partners, shares = self.partners[:, host], self.shares[:, host]
        mixed = shares < 1
        if bool((mixed & ~host[partners]).any()):
            raise InputError("views are mixed with images that are left out; leave them out: dataclasses.replace(set, views=None).")
        numbers = host.cumsum(0) - 1
        partners = torch.where(mixed, numbers[partners], torch.arange(int(host.sum())))
        return Views(labels, seeds, self.augmentation, self.mix, partners, shares)

    def joined(self, other: "Views") -> "Views":
        """The views of both sets' images, in order. Raises `InputError` unless both have as many, made alike."""
        for name, ours, theirs in (
            ("number", len(self), len(other)),
            ("augmentation", self.augmentation, other.augmentation),
            ("mix", self.mix, other.mix),
        ):
            if ours != theirs:
                raise InputError(
                    f"concat: the {name} of the sets' views is {ours} and {theirs}; leave them out: dataclasses.replace(set, views=None)."
                )
        labels, seeds = torch.cat([self.labels, other.labels.to(self.labels.device)], 1), torch.cat([self.seeds, other.seeds], 1)
        if self.partners is None or other.partners is None or self.shares is None or other.shares is None:
            return Views(labels, seeds, self.augmentation)
        partners = torch.cat([self.partners, other.partners + self.labels.shape[1]], 1)
        return Views(labels, seeds, self.augmentation, self.mix, partners, torch.cat([self.shares, other.shares], 1))


def _check(what: str, tensor: Tensor, dtype: torch.dtype, shape: torch.Size, ends: tuple[int, int]) -> None:
    """Raises `InputError` unless a tensor of views has this type and shape and lies between ``ends``."""
    if tensor.dtype != dtype or tensor.shape != shape:
        raise InputError(f"{what} of views are {type_and_shape(tensor)}; allowed: {str(dtype).removeprefix('torch.')} {tuple(shape)}.")
    if not bool(((tensor >= ends[0]) & (tensor <= ends[1])).all()):
        raise InputError(f"{what} of views lie in {float(tensor.min()):.4g}..{float(tensor.max()):.4g}; allowed: {ends[0]}..{ends[1]}.")


def draw_views(
    count: int,
    images: int,
    classes: int,
    augmentation: str,
    mix: str | None,
    generator: torch.Generator,
    *,
    probability: float | None = None,
    alpha: float | None = None,
) -> Views:
    """Views with labels of zero. Each is mixed as a batch of `distill.mixing.mixed` is, with its partner and share.

    Args:
        count: views of each image.
        images: number of images.
        classes: number of classes.
        augmentation: see `Views`.
        mix: see `Views`.
        generator: source of the draws, on the CPU.
        probability: of a view to be mixed; None: 0.5.
        alpha: both parameters of the beta distribution of the shares; None: 1, which is uniform.
    """
    if not 1 <= count <= MAX_VIEWS:
        raise InputError(f"{count} views of an image; allowed: 1 to {MAX_VIEWS}.")
    shape = count, images
    seeds, labels = torch.randint(LAST_SEED, shape, generator=generator), torch.zeros(*shape, classes, dtype=torch.float16)
    if mix is None:
        return Views(labels, seeds, augmentation)
    chosen = torch.rand(shape, generator=generator) < (PROBABILITY if probability is None else probability)
    partners = torch.where(chosen, torch.randint(images, shape, generator=generator), torch.arange(images).expand(shape))
    shares = beta(torch.rand(shape, generator=generator), alpha)
    return Views(labels, seeds, augmentation, mix, partners, torch.where(chosen, shares, 1.0))


def labelled_by(views: Views, network: nn.Module, images: Tensor) -> Views:
    """The same views with a network's outputs for each, of the images (N, C, H, W), on their device. Raises `InputError` above float16."""
    replay = Replay(views, images, torch.zeros(len(images), dtype=torch.int64, device=images.device))
    everything = torch.arange(len(images), device=images.device).split(chunk_size(images))
    with torch.no_grad():
        outputs = [torch.cat([network(replay.batch(number, rows).images) for rows in everything]) for number in range(len(views))]
    return dataclasses.replace(views, labels=torch.stack([part.half() for part in outputs]))


def replay_of(views: Views | None, augmentation: Strategy, mix: str | None, images: Tensor, hard: Tensor) -> "Replay | None":
    """How a learner repeats a set's views; None for a set without any.

    Args:
        views: the set's.
        augmentation: that of the recipe.
        mix: that of the recipe.
        images: (N, C, H, W), decoded and normalised.
        hard: (N,) class numbers.

    Raises:
        InputError: the recipe augments or mixes in another way than the views.
    """
    if views is None:
        return None
    if strategy(views.augmentation) != augmentation or views.mix != mix:
        prefix = "all_" if augmentation.every else "dc_" if augmentation.dc else ""
        named = prefix + "_".join(augmentation.transforms) or "none"
        raise InputError(
            f"the set's stored views have augmentation {views.augmentation!r} and mix {views.mix!r}, the recipe {named!r} and {mix!r}; "
            "give a recipe with the set's own, or leave the views out: dataclasses.replace(set, views=None)."
        )
    return Replay(views, images, hard)


class Seen(NamedTuple):
    """What a learner sees of a batch: images (n, C, H, W), their labels (n, K), the shares of the hard labels (n, K)."""

    images: Tensor
    labels: Tensor
    shares: Tensor


class Replay:
    """Repeats the stored views of a set: in pass ``p`` over the images each has its view ``p mod V``.

    Args:
        views: the views.
        images: (N, C, H, W), decoded and normalised.
        hard: (N,) class numbers.
    """

    def __init__(self, views: Views, images: Tensor, hard: Tensor) -> None:
        self.views, self.images, self.transforms = views, images, strategy(views.augmentation)
        self.hard = F.one_hot(hard, views.labels.shape[2]).to(images.dtype)
        self._drawn: dict[int, tuple[Tensor, Tensor]] = {}

    def batch(self, number: int, rows: Tensor) -> Seen:
        """The views of the pass ``number`` over the images, of the images ``rows`` (n,), which are on the images' device."""
        number %= len(self.views)
        device = self.images.device
        if number not in self._drawn:
            self._drawn[number] = self._of_pass(number)
        made, holes = self._drawn[number]
        images, hard = self._augmented(rows, made), self.hard[rows]
        labels = self.views.labels[number].to(device)[rows].to(images.dtype)
        if self.views.partners is None or self.views.shares is None:
            return Seen(images, labels, hard)
        partners = sent(self.views.partners[number], device)[rows]
        others = self._augmented(partners, made)
        kept, cut = sent(self.views.shares[number], device)[rows], holes[rows] if self.views.mix == "cutmix" else None
        images, shares = blended(images, others, kept, cut)
        return Seen(images, labels, shares * hard + (1 - shares) * self.hard[partners])

    def _augmented(self, rows: Tensor, made: Tensor) -> Tensor:
        """The images ``rows`` (n,) under their transforms (N, P)."""
        if self.transforms.every:
            return apply(self.images[rows], Parameters(self.views.augmentation, made[rows]))
        return apply_effects(self.images[rows], made[rows])

    def _of_pass(self, number: int) -> tuple[Tensor, Tensor]:
        """How each image's view of this number is made: `distill.augment.effects` (N, 13), of an ``all_`` strategy its parameters, and
        the rectangles (N, 4) of CutMix."""
        views, (height, width), device = self.views, self.images.shape[-2:], self.images.device
        made, places = [], []
        for seed in views.seeds[number].tolist():
            draws = torch.Generator().manual_seed(seed)
            parameters = draw(self.transforms, draws, height, width)
            made.append(parameters.values if self.transforms.every else effects(parameters))
            places.append(torch.rand(2, generator=draws))
        shares = torch.ones(len(places)) if views.shares is None else views.shares[number]
        return sent(torch.cat(made), device), sent(rectangles(shares, torch.stack(places), height, width), device)
