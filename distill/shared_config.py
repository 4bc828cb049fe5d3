"""Settings that methods share: how images are stored and updated, and which networks they are compared in."""

import dataclasses
from typing import Annotated, Literal

import pydantic
from pydantic import Field

from distill.configure import config_class
from distill.decode import from_text

PoolKind = Literal["random", "early", "blend", "walk", "stages", "sphere"]


@config_class
class ImageConfig:
    """Settings of the images that every method has: how they are stored and updated.

    Attributes:
        decode: how images are stored: "none", "formation:F", "frequency:K" or "lowrank:R" (`distill.decode`).
        optimizer: update of the stored images: "sgd" with the method's momentum, or "adam" (betas 0.9 and 0.999).
        schedule: step size of the images over the run: "constant", or "cosine" down to zero.
        clamp: whether stored pixels are kept in the data's range [0, 1] after each update.
        updates: one update for all classes ("together"), or one after the other with one momentum ("per_class", as IDC and DANCE do).
    """

    decode: str = "none"
    optimizer: Literal["sgd", "adam"] = "sgd"
    schedule: Literal["constant", "cosine"] = "constant"
    clamp: bool = False
    updates: Literal["together", "per_class"] = "together"

    @pydantic.field_validator("decode")
    @classmethod
    def _known(cls, text: str) -> str:
        from_text(text)
        return text


@config_class
class SharedConfig(ImageConfig):
    """The first fields of a method's config. At their defaults a method runs as it is published.

    Attributes:
        flipped: whether the synthetic images are matched together with their mirror images (FYI, Son et al., ECCV 2024).
        pool: the networks that images are compared in (`distill.pool`).
        pool_networks: number of trained networks in the pool.
        pool_epochs: epochs of training of each.
        pool_lr: their step size of SGD with momentum 0.9.
        pool_batch: batch size of their training.
        pool_schedule: step size over their training, "constant" or "cosine" down to zero.
        pool_draws: 0 draws a new network in each step. A number fixes that many draws, of a network and of what a method draws with it
            (NCFM's frequencies), and each step takes one of them: private statistics then release each once.
        calibration: weight of the cross-entropy of the synthetic images under a trained network of the pool, added to the loss; 0 is none
            (Zhang et al., DANCE, IJCAI 2024, eq. 8).
        calibration_every: steps between two calibrations, each of which then counts that many times.
        real_batches: how real batches of a class are chosen, "random" or "kmeans" (images nearest to cluster centres; DREAM, Liu et al.,
            ICCV 2023). "kmeans" reads every image, so that private statistics refuse it.
    """

    flipped: bool = False
    pool: PoolKind = "random"
    pool_networks: Annotated[int, Field(ge=1)] = 5
    pool_epochs: Annotated[int, Field(ge=1)] = 2
    pool_lr: Annotated[float, Field(gt=0)] = 0.01
    pool_batch: Annotated[int, Field(ge=1)] = 64
    pool_schedule: Literal["constant", "cosine"] = "constant"
    pool_draws: Annotated[int, Field(ge=0)] = 0
    calibration: Annotated[float, Field(ge=0)] = 0.0
    calibration_every: Annotated[int, Field(ge=1)] = 1
    real_batches: Literal["random", "kmeans"] = "random"


SHARED = {field.name: field.default for field in dataclasses.fields(SharedConfig)}


def trains_networks(config: SharedConfig) -> bool:
    """Whether the pool of these settings needs trained networks."""
    return config.pool in ("early", "blend", "walk", "stages") or config.calibration > 0


def learner_strategy(config: object, strategy: str) -> str | None:
    """The augmentation that a set names for its learners: the method's own, but none where its default is one for matching only.

    ``config`` is a method's config, ``strategy`` its augmentation with "auto" resolved.
    """
    default = getattr(type(config)(), "augmentation", "auto")
    return None if default != "auto" and getattr(config, "augmentation", None) == default else strategy


def stated(config: object, values: dict[str, object]) -> dict[str, object]:
    """A config's fields by name, without shared ones that are off, as by default: records and hashes from before them stay as they are."""
    default = type(config)()
    off = [name for name in SHARED if getattr(default, name, ...) == SHARED[name]]
    used = {name: value for name, value in values.items() if name not in off or value != SHARED[name]}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in used.items()}  # as JSON gives them back
