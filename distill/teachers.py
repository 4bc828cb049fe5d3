"""Teachers: networks trained on real data whose outputs are labels for other images.

A teacher is written as a table, never as a module: the same table gives the same labels on every machine that has the data. Its training is
that of an expert (`distill.experts`), with the same cache on disk. An early stop gives weaker teachers, which are better for small sets
(Qin, Deng and Alvarez-Melis, "A Label is Worth a Thousand Images in Dataset Distillation", NeurIPS 2024).
"""

import dataclasses
from typing import Annotated, Literal

import pydantic
import torch
from pydantic import Field
from torch import nn
from torch.nn.utils import vector_to_parameters

from distill.augment import strategy
from distill.batches import chunk_size
from distill.condensed import CondensedSet
from distill.configure import STRICT
from distill.data import ImageData
from distill.errors import InputError
from distill.experts import ExpertConfig
from distill.networks import check_name, create, has_batchnorm
from distill.randomness import generator
from distill.statistics import ExactStatistics, RealStatistics


@pydantic.dataclasses.dataclass(frozen=True, config=STRICT)
class Teacher:
    """A network trained on the real data, whose outputs are the labels of a learner's images.

    Attributes:
        network: its name.
        epochs: passes over the real images, at a constant step size.
        stop: take the weights after this many of the epochs; None: the last.
        lr: step size of SGD.
        momentum: of SGD.
        batch_size: images per step.
        augmentation: strategy of its training; "auto" is DSA's for the data.
        seed: of its weights, order and augmentation.
        labels: "views" labels every augmented and mixed view that a learner sees; "images" labels each image once, as it is stored.
    """

    network: str = "ConvNet"
    epochs: Annotated[int, Field(ge=1)] = 20
    stop: Annotated[int, Field(ge=1)] | None = None
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: Annotated[int, Field(ge=1)] = 256
    augmentation: str = "auto"
    seed: Annotated[int, Field(ge=0)] = 0
    labels: Literal["views", "images"] = "views"

    def __post_init__(self) -> None:
        if self.stop is not None and self.stop > self.epochs:
            raise InputError(f"teacher: stop is {self.stop}; allowed: at most its {self.epochs} epochs.")

    def __str__(self) -> str:
        end = f", stopped after {self.stop}" if self.stop else ""
        return f"{self.network} of {self.epochs} epochs{end} (lr {self.lr:g}, seed {self.seed}), which labels {self.labels}"

    @property
    def training(self) -> ExpertConfig:
        """Its training as that of one expert."""
        names = ("epochs", "lr", "momentum", "batch_size", "network", "augmentation", "seed")
        return ExpertConfig(experts=1, **{name: getattr(self, name) for name in names})


def check_teacher(teacher: Teacher) -> None:
    """Raises `InputError` for an unknown network or augmentation."""
    check_name(teacher.network)
    strategy("" if teacher.augmentation == "auto" else teacher.augmentation)


def teacher_network(source: ImageData | RealStatistics, teacher: Teacher, *, progress: bool | None = None) -> nn.Module:
    """The trained network of a teacher, from the cache or trained now; frozen, in evaluation mode.

    Args:
        source: the real data, or statistics whose `trajectories` train it: private statistics train it with noise, within their budget.
        teacher: what to train.
        progress: False hides the progress bar.

    Raises:
        InputError: for an unknown name, and for a network with batch normalisation, whose running statistics are not kept.
    """
    check_teacher(teacher)
    statistics = ExactStatistics(source) if isinstance(source, ImageData) else source
    network = create(teacher.network, statistics.spec, generator(teacher.seed, "teacher"), statistics.device)
    if has_batchnorm(network):
        raise InputError(
            f"teacher network {teacher.network!r} has batch normalisation, whose running statistics are not kept with an expert's weights; "
            "take one with instance or group normalisation, for example ConvNet."
        )
    trajectories = statistics.trajectories(teacher.training, teacher.network, progress=progress)
    weights = trajectories.weights(0, teacher.stop or teacher.epochs, statistics.device)
    vector_to_parameters(weights.clone(), network.parameters())
    return network.eval().requires_grad_(False)


def teacher_for(teacher: Teacher | None, condensed: CondensedSet, data: ImageData, *, progress: bool | None = None) -> nn.Module | None:
    """The teacher of a comparison of this set, or None without one.

    Raises `InputError` for a set with a privacy guarantee: the labels would be computed from the private images without noise.
    """
    if teacher is None:
        return None
    if condensed.provenance.dp is not None:
        raise InputError(
            "this set has a privacy guarantee, and a teacher trained on the images without noise would end it: a network trained on such "
            "labels is not covered. Leave the teacher out, or use one that was trained under the same account."
        )
    return teacher_network(data, teacher, progress=progress)


def labelled(condensed: CondensedSet, data: ImageData, teacher: Teacher, *, progress: bool | None = None) -> CondensedSet:
    """The same images with a teacher's outputs as stored labels (N, K), of the kind "logits": 4 K bytes an image.

    A learner is trained on them by cross-entropy with their softmax, or by a recipe's ``loss``, and needs no teacher any more. A stored row
    that decodes to several images gets the mean of their outputs.

    Args:
        condensed: the set.
        data: the data that the teacher is trained on.
        teacher: what to train; its ``labels`` has no effect.
        progress: False hides the progress bar.

    Raises:
        InputError: as `teacher_for`.
    """
    network = teacher_for(teacher, condensed, data, progress=progress)
    assert network is not None
    images = condensed.decoded().images
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in images.split(chunk_size(images))])
    labels = outputs.reshape(len(condensed), -1, outputs.shape[1]).mean(1)
    origin = dataclasses.replace(condensed.provenance, config={**condensed.provenance.config, "teacher": str(teacher)})
    return dataclasses.replace(condensed, labels=labels.float(), label_kind="logits", provenance=origin)
