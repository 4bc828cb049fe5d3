"""Teachers: networks trained on real data whose outputs are labels for other images.

A teacher is written as a table, never as a module: the same table gives the same labels on every machine that has the data. Its training is
that of an expert (`distill.experts`), with the same cache on disk. An early stop gives weaker teachers, which are better for small sets
(Qin, Deng and Alvarez-Melis, "A Label is Worth a Thousand Images in Dataset Distillation", NeurIPS 2024).
"""

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Literal, Protocol, runtime_checkable

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import vector_to_parameters

from distill.augment import for_data, strategy
from distill.batches import chunk_size
from distill.condensed import CondensedSet, Provenance
from distill.configure import config_class
from distill.data import ImageData
from distill.errors import InputError, clipped
from distill.experts import ExpertConfig, Trajectories
from distill.networks import check_name, create, has_batchnorm
from distill.randomness import generator
from distill.statistics import ExactStatistics, RealStatistics
from distill.views import draw_views, labelled_by


@config_class
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
            raise InputError(f"teacher: stop is {self.stop}; allowed: at most its {self.epochs} epoch{'s' if self.epochs > 1 else ''}.")

    def __str__(self) -> str:
        end = f", stopped after {self.stop}" if self.stop else ""
        passes = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        return f"{self.network} of {passes}{end} (lr {self.lr:g}, seed {self.seed}), which labels {self.labels}"

    @property
    def training(self) -> ExpertConfig:
        """Its training as that of one expert."""
        names = ("epochs", "lr", "momentum", "batch_size", "network", "augmentation", "seed")
        return ExpertConfig(experts=1, **{name: getattr(self, name) for name in names})


def check_teacher(teacher: Teacher) -> None:
    """Raises `InputError` for an unknown network or augmentation."""
    check_name(teacher.network)
    strategy("" if teacher.augmentation == "auto" else teacher.augmentation)


@runtime_checkable
class Account(Protocol):
    """Statistics that train a teacher within a privacy budget, or on public data."""

    def teacher_trajectories(self, teacher: Teacher, stated: Mapping[str, object] | None) -> Trajectories:
        """Its weights by epoch, for labels of a set with the privacy statement ``stated``. Raises `InputError` without a budget for it."""
        ...


def teacher_network(
    source: ImageData | RealStatistics,
    teacher: Teacher,
    *,
    progress: bool | None = None,
    stated: Mapping[str, object] | None = None,
    cached: bool = True,
) -> nn.Module:
    """The trained network of a teacher, from the cache or trained now; frozen, in evaluation mode.

    Args:
        source: the real data, or statistics: private ones train it with noise, within a share of their budget that was stated before.
        teacher: what to train.
        progress: False hides the progress bar.
        stated: privacy statement of the set that gets the labels; None: it has none.
        cached: False trains the same weights again, without the cache: for measuring what the training costs.

    Raises:
        InputError: for an unknown name, a network with batch normalisation, whose running statistics are not kept, and a set with a
            privacy guarantee whose account did not train the teacher.
    """
    check_teacher(teacher)
    statistics = ExactStatistics(source) if isinstance(source, ImageData) else source
    network = create(teacher.network, statistics.spec, generator(teacher.seed, "teacher"), statistics.device)
    if has_batchnorm(network):
        raise InputError(
            f"teacher network {teacher.network!r} has batch normalisation, whose running statistics are not kept with an expert's weights; "
            "take one with instance or group normalisation, for example ConvNet."
        )
    if isinstance(statistics, Account):
        trajectories = statistics.teacher_trajectories(teacher, stated)
    elif stated is None:
        # A function has no name for the cache; this one starts where the expert of the name does.
        again = lambda spec: create(teacher.network, spec, generator(teacher.seed, "expert", 0, "weights"))  # noqa: E731
        trajectories = statistics.trajectories(teacher.training, teacher.network if cached else again, progress=progress)
    else:
        raise InputError(
            "this set has a privacy guarantee, and a teacher trained on the images without noise would end it: a network trained on such "
            "labels is not covered. Leave the teacher out, or give the PrivateStatistics that the set was made from, with a teacher."
        )
    if trajectories.classes is not None and trajectories.classes != statistics.spec.classes:
        raise InputError(
            f"the teacher was trained on data of other classes ({clipped(trajectories.classes[:3], 60)} ..., here "
            f"{clipped(statistics.spec.classes[:3], 60)} ...), so its outputs are no labels; give public data of the same classes."
        )
    weights = trajectories.weights(0, teacher.stop or teacher.epochs, statistics.device)
    vector_to_parameters(weights.clone(), network.parameters())
    return network.eval().requires_grad_(False)


def teacher_for(
    teacher: Teacher | None, condensed: CondensedSet, source: ImageData | RealStatistics, *, progress: bool | None = None
) -> nn.Module | None:
    """The teacher of a comparison of this set, or None without one; see `teacher_network`."""
    return None if teacher is None else teacher_network(source, teacher, progress=progress, stated=condensed.provenance.dp)


def labelled(condensed: CondensedSet, data: ImageData | RealStatistics, teacher: Teacher, *, progress: bool | None = None) -> CondensedSet:
    """The same images with a teacher's outputs as stored labels (N, K), of the kind "logits": 4 K bytes an image.

    A learner is trained on them by cross-entropy with their softmax, or by a recipe's ``loss``, and needs no teacher any more. A stored row
    that decodes to several images gets the mean of their outputs.

    Args:
        condensed: the set.
        data: the data that the teacher is trained on. A set with a privacy guarantee takes labels from its own private statistics only,
            whose account then states everything that was released.
        teacher: what to train; its ``labels`` has no effect.
        progress: False hides the progress bar.

    Raises:
        InputError: as `teacher_for`.
    """
    network = teacher_for(teacher, condensed, data, progress=progress)
    assert network is not None
    return dataclasses.replace(stored(condensed, network, teacher), provenance=_origin(condensed, data, teacher))


def outputs_on(condensed: CondensedSet, network: nn.Module) -> Tensor:
    """A network's outputs (N, K) on a set's images; of a stored row that decodes to several images, their mean."""
    images = condensed.decoded().images
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in images.split(chunk_size(images))])
    return outputs.reshape(len(condensed), -1, outputs.shape[1]).mean(1).float()


def stored(condensed: CondensedSet, network: nn.Module, teacher: Teacher) -> CondensedSet:
    """`labelled` with a network that is trained: the same images with its outputs as labels. For sets without a privacy guarantee."""
    origin = dataclasses.replace(condensed.provenance, config={**condensed.provenance.config, "teacher": str(teacher)})
    return dataclasses.replace(
        condensed, labels=outputs_on(condensed, network), label_kind="logits", views=None, provenance=origin
    ).made_for(condensed.classes)


def labelled_views(
    condensed: CondensedSet,
    data: ImageData | RealStatistics,
    teacher: Teacher,
    count: int,
    *,
    augmentation: str = "auto",
    mix: str | None = None,
    mix_probability: float | None = None,
    mix_alpha: float | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> CondensedSet:
    """The same set with ``count`` stored views of each image and a teacher's labels for them (`distill.views.Views`).

    A learner that repeats them sees what it would see with the teacher, and needs it no more; its recipe must augment and mix alike. Labels
    take 2 K bytes a view. Labels and counts of the set stay.

    Args:
        condensed: the set.
        data: the data that the teacher is trained on. A set with a privacy guarantee takes labels from its own private statistics only,
            whose account then states everything that was released.
        teacher: what to train; its ``labels`` has no effect.
        count: views of each decoded image; a learner of more epochs starts again.
        augmentation: strategy of the views; "auto": the set's own, else DSA's for the data.
        mix: "cutmix", "mixup" or None.
        mix_probability: share of the views that are mixed; None: 0.5.
        mix_alpha: as that of a recipe.
        seed: of the views.
        progress: False hides the progress bar.

    Raises:
        InputError: as `teacher_for`, and for a ``dc_`` augmentation, which cannot be stored view by view.
    """
    name = (condensed.augmentation or for_data(condensed.spec)) if augmentation == "auto" else augmentation
    images = condensed.decoded().images
    mixing = {"probability": mix_probability, "alpha": mix_alpha}
    views = draw_views(count, len(images), condensed.spec.num_classes, name, mix, generator(seed, "views"), **mixing)
    network = teacher_for(teacher, condensed, data, progress=progress)
    assert network is not None
    origin = _origin(condensed, data, teacher)
    return dataclasses.replace(condensed, augmentation=name, views=labelled_by(views, network, images), provenance=origin)


def _origin(condensed: CondensedSet, data: ImageData | RealStatistics, teacher: Teacher) -> Provenance:
    """The provenance of a set with labels: its teacher, and for a private set everything that its account has released by now."""
    origin, now = condensed.provenance, None if isinstance(data, ImageData) else data.privacy
    stated = origin.dp if origin.dp is None or now is None else {**now, "initial": origin.dp.get("initial", "not stated")}
    return dataclasses.replace(origin, config={**origin.config, "teacher": str(teacher)}, dp=stated)
