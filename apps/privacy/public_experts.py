"""Experts that are trained on public data: networks and calibration of a private run which cost nothing of its budget."""

import dataclasses
from pathlib import Path

from torch import Tensor

from apps.privacy.networks import UnitNetwork
from distill.data import ImageData
from distill.data_sources import load
from distill.errors import InputError, clipped
from distill.experts import ExpertConfig, Trajectories, train_experts
from distill.networks import Factory
from distill.statistics import ExactStatistics


def load_public(name: str | None, like: ImageData, root: Path | str | None = None) -> ImageData | None:
    """The public data set ``name`` in the size of the private images ``like`` and on their device; None where there is no name.

    ``root`` is the folder of the data sets. Raises `InputError` for an unknown name and for data that are not there.
    """
    if not name:
        return None
    sized = name == "digits" or ":" in name  # `distill.load` resizes these
    return load(name, root, size=like.spec.height if sized else None).to(like.device)


def check_public(public: ImageData, private: ImageData) -> None:
    """`InputError` where networks of ``public`` cannot see ``private``'s images, or where it holds one of them.

    That the data are public is the user's statement; a copy of a private image disproves it. Copies are found after rounding to 256 grey
    levels, changed ones are not.
    """
    ours, theirs = private.spec, public.spec
    if theirs.shape != ours.shape or theirs.num_classes != ours.num_classes:
        shapes = (f"{clipped(spec.name)!r} has {spec.num_classes} classes of images {spec.shape}" for spec in (theirs, ours))
        raise InputError(f"public_experts: {' and the private data '.join(shapes)}; allowed: data of the same shape and number of classes.")
    if public.whitening is not None:
        raise InputError("public_experts: these data are whitened and private ones never are; give them without whitening.")
    if public.fingerprint == private.fingerprint or not _levels(public.train.images).isdisjoint(_levels(private.train.images)):
        raise InputError(
            "refused: the data given as public_experts hold a copy of a private image, so experts trained on them are not public; give "
            "other data, or leave public_experts out: experts then get experts_share of the budget."
        )


def _levels(images: Tensor) -> set[bytes]:
    """The images (N, C, H, W) as bytes of 256 levels."""
    whole = (images.float() * 255).round().clamp(0, 255).byte() if images.is_floating_point() else images
    return {image.numpy().tobytes() for image in whole.cpu()}


def train_public_experts(public: ImageData, config: ExpertConfig, network: Factory, *, progress: bool | None = None) -> Trajectories:
    """Experts of the public data, from the cache where the network has a name; they name the classes that they know."""
    name = network.name if isinstance(network, UnitNetwork) else network  # the same weights in the same order
    if isinstance(name, str):
        config = dataclasses.replace(config, network=name)
    return dataclasses.replace(train_experts(public, config, name, progress=progress), classes=public.spec.classes)


class PublicExperts(ExactStatistics):
    """Exact statistics of data whose experts are trained on ``public`` ones: the noise-free twin of a private run with them."""

    def __init__(self, data: ImageData, public: ImageData) -> None:
        super().__init__(data)
        self.public = public

    def trajectories(
        self, config: ExpertConfig, network: Factory, *, progress: bool | None = None, batch_real: int | None = None
    ) -> Trajectories:
        """See `train_public_experts`."""
        return train_public_experts(self.public, config, network, progress=progress)
