"""`RealStatistics`: the only interface between a matching method and real data, and its exact implementation."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from distill import sharding
from distill.batches import Augment as Augment
from distill.batches import Embed as Embed
from distill.batches import augmented, class_means, group_size, groups, mean_gradient, segment_means
from distill.class_gradients import class_gradients, gradient_groups, mean_over_classes
from distill.coresets import clustered, select
from distill.data import ImageData
from distill.devices import sent
from distill.errors import InputError, clipped
from distill.experts import ExpertConfig, Trajectories, train_experts
from distill.networks import Factory
from distill.spec import DataSpec
from distill.whitening import Whitening

CHOICE_CHUNK = 512  # images at a time whose features clusters are found in


class RealStatistics(Protocol):
    """What a matching method may compute from real data. A method that uses nothing else works with private statistics unchanged.

    Attributes:
        spec: of the data.
        classes: class ids that have images; lists and first dimensions below follow their order.
        device: where returned tensors are.
        fingerprint: identifies the data; None if it would reveal too much.
        privacy: statement for the provenance of sets made from these statistics, or None.
        whitening: transform of the images, or None.

    In the methods ``augment`` is a function of (images (n, C, H, W), position of the class in ``classes``), or None.

    Statistics may also have ``begin(initial set, total steps, steps done, checkpoint path or None, account or None)``, which
    `distill.run.condense` calls before the first step, and ``account``, plain values that it saves in checkpoints and passes to ``begin``.
    """

    @property
    def spec(self) -> DataSpec: ...
    @property
    def classes(self) -> tuple[int, ...]: ...
    @property
    def device(self) -> torch.device: ...
    @property
    def fingerprint(self) -> str | None: ...
    @property
    def privacy(self) -> dict[str, object] | None: ...
    @property
    def whitening(self) -> Whitening | None: ...

    def class_means(
        self,
        embed: Embed,
        batch_size: int,
        augment: Augment | None,
        generator: torch.Generator,
        *,
        joint: bool = False,
        norm: float | None = None,
    ) -> Tensor:
        """Mean feature of a random batch of each class.

        Args:
            embed: maps images (n, C, H, W) to features (n, D).
            batch_size: images per class.
            augment: applied to each class's batch.
            generator: source of the random choices.
            joint: embed all classes as one batch, as BatchNorm requires.
            norm: Euclidean length of every row of ``embed``, where the method knows it. Private statistics clip at it, whether it is true
                or not; others do not use it.

        Returns:
            (number of classes, D).
        """
        ...

    def class_gradients(
        self, network: nn.Module, batch_size: int, augment: Augment | None, generator: torch.Generator, *, together: bool = False
    ) -> list[list[Tensor]]:
        """For each class, the gradient of the mean cross-entropy of a random batch: one tensor per trainable parameter.

        With ``together`` one list only, the mean over classes. Private statistics then add the noise of one class, not of each.
        """
        ...

    def warm_batchnorm(self, network: nn.Module, per_class: int, generator: torch.Generator) -> None:
        """Set a network's BatchNorm running statistics from a small real batch, then put its BatchNorm layers in evaluation mode."""
        ...

    def trajectories(
        self, config: ExpertConfig, network: Factory, *, progress: bool | None = None, batch_real: int | None = None
    ) -> Trajectories:
        """Weights of networks trained on the real data, by epoch.

        ``batch_real`` is the batch size per class of the means or gradients that the same run asks for in networks made of these weights;
        None: the weights themselves are what is matched (MTT), and nothing else is asked for. Private statistics plan for both at once.
        """
        ...

    def choose(self, embed: Embed, batch_size: int, generator: torch.Generator, chosen: list[Tensor] | None = None) -> list[Tensor]:
        """From now on each class's batch is the images nearest to its ``batch_size`` cluster centres, or those ``chosen`` before.

        Returns:
            For each class the positions (n,) of its images. Every image is read for it, so that a private form raises `InputError`.
        """
        ...

    def initial_images(self, kind: str, ipc: int | Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normalised real images (n, C, H, W) and labels (n,) of the coreset ``kind``; ``ipc`` may be counts by class (K,)."""
        ...


class ExactStatistics:
    """Statistics computed from the images themselves, without noise.

    Args:
        data: the images.
        chances: (number of training images,), at least 0 and not all 0 in a class: batches are drawn with replacement, an image with a
            probability in proportion to its number among its class's. None: all images alike, without replacement.

    Raises:
        InputError: ``chances`` are not such numbers.
    """

    def __init__(self, data: ImageData, chances: Tensor | None = None) -> None:
        self.data = data
        self._chances = None if chances is None else _checked(chances, data)
        self._chosen: list[Tensor] = []
        self.privacy: dict[str, object] | None = None

    @property
    def spec(self) -> DataSpec:
        return self.data.spec

    @property
    def classes(self) -> tuple[int, ...]:
        return self.data.classes

    @property
    def device(self) -> torch.device:
        return self.data.device

    @property
    def fingerprint(self) -> str:
        return self.data.fingerprint

    @property
    def whitening(self) -> Whitening | None:
        return self.data.whitening

    @property
    def class_sizes(self) -> tuple[int, ...]:
        """Number of real images of each class, in the order of `classes`; private statistics do not have it."""
        return tuple(self.data.counts[label] for label in self.classes)

    def batch(self, position: int, size: int, generator: torch.Generator) -> Tensor:
        """Up to ``size`` normalised images of one class: all of them when there are fewer, but for images with ``chances``."""
        return self._images([self._drawn(position, size, generator)])

    def _drawn(self, position: int, size: int, generator: torch.Generator) -> Tensor:
        """Which images (n,) of a class: places in `ImageData.by_class` drawn now, or positions that `choose` found."""
        if self._chosen:
            return self._chosen[position][:size]
        label = self.classes[position]
        first, count = self.data.starts[label], self.data.counts[label]
        if self._chances is not None:
            own = self._chances[first : first + count].to(generator.device)
            return first + torch.multinomial(own, size, replacement=True, generator=generator)
        return first + torch.randperm(count, generator=generator, device=generator.device)[:size]

    def _images(self, drawn: Sequence[Tensor]) -> Tensor:
        """The normalised images of one or more draws, one after the other: sent to the device as one list of numbers."""
        places = sent(torch.cat(list(drawn)), self.device)
        return self.data.normalised("train", places if self._chosen else self.data.by_class[places])

    def class_means(
        self,
        embed: Embed,
        batch_size: int,
        augment: Augment | None,
        generator: torch.Generator,
        *,
        joint: bool = False,
        norm: float | None = None,
    ) -> Tensor:
        """(number of classes, D), without gradients; see `RealStatistics.class_means`.

        Class by class in chunks that fit a CPU's cache; on a GPU in groups of classes whose activations are bounded (`batches.groups`).
        """
        positions = list(range(len(self.classes)))
        drawn = [self._drawn(position, batch_size, generator) for position in positions]
        counts = [len(one) for one in drawn]
        own = positions if joint else sharding.own(positions)
        size = group_size(self.data.train.images)
        means = []
        with torch.no_grad():
            for group in [own] if joint else groups(own, [counts[position] for position in own], size):
                images = self._images([drawn[position] for position in group])
                several = [counts[position] for position in group]
                images = augmented(augment, images, group, several)
                means.append(segment_means(embed(images), several) if joint else class_means(embed, images, several))
            return torch.cat(means) if joint else sharding.gathered(torch.cat(means), len(positions))

    def class_gradients(
        self, network: nn.Module, batch_size: int, augment: Augment | None, generator: torch.Generator, *, together: bool = False
    ) -> list[list[Tensor]]:
        """Lists of gradients shaped like the network's trainable parameters; see `RealStatistics.class_gradients`."""
        positions = range(len(self.classes))
        drawn = [self._drawn(position, batch_size, generator) for position in positions]
        own = sharding.own(positions)
        gradients: list[list[Tensor]] = [[] for _ in positions]  # those of other processes stay empty
        for group in gradient_groups(network, self.data.train.images, own, [len(drawn[position]) for position in own]):
            several, labels = [len(drawn[position]) for position in group], [self.classes[position] for position in group]
            images = augmented(augment, self._images([drawn[position] for position in group]), group, several)
            if len(group) == 1:
                gradients[group[0]] = mean_gradient(network, images, torch.full((len(images),), labels[0], device=images.device))
            else:
                targets = sent(torch.tensor(labels).repeat_interleave(torch.tensor(several)), images.device)
                found = class_gradients(network, images, targets, several)
                for position, *rows in zip(group, *found, strict=True):
                    gradients[position] = rows
        return [mean_over_classes(network, gradients)] if together else gradients

    def warm_batchnorm(self, network: nn.Module, per_class: int, generator: torch.Generator) -> None:
        """From ``per_class`` images of each class; see `RealStatistics.warm_batchnorm`."""
        images = torch.cat([self.batch(position, per_class, generator) for position in range(len(self.classes))])
        network.train()
        with torch.no_grad():
            network(images)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def trajectories(
        self, config: ExpertConfig, network: Factory, *, progress: bool | None = None, batch_real: int | None = None
    ) -> Trajectories:
        """Experts trained now, or found in the cache (`distill.experts.train_experts`)."""
        return train_experts(self.data, config, network, progress=progress)

    def choose(self, embed: Embed, batch_size: int, generator: torch.Generator, chosen: list[Tensor] | None = None) -> list[Tensor]:
        """See `RealStatistics.choose`; clusters are those of features, by k-means as `distill.coresets` runs it."""
        if self._chances is not None:
            raise InputError(
                'real_batches = "kmeans" chooses the images of a batch, which are drawn with given chances here; leave it out.'
            )
        self._chosen = chosen or self._clustered(embed, batch_size, generator)
        return self._chosen

    def _clustered(self, embed: Embed, batch_size: int, generator: torch.Generator) -> list[Tensor]:
        chosen = []
        for label in self.classes:
            indices = self.data.class_indices(label)
            count = min(batch_size, len(indices))
            with torch.no_grad():
                parts = [embed(self.data.normalised("train", part)) for part in indices.split(CHOICE_CHUNK)]
            chosen.append(indices[sent(clustered(torch.cat(parts), count, generator), indices.device)])
        return chosen

    def initial_images(self, kind: str, ipc: int | Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Up to ``ipc`` images a class, chosen by a coreset; `InputError` for an unknown name."""
        chosen = select(self.data, kind, ipc, generator)
        return chosen.images, chosen.labels


def _checked(chances: Tensor, data: ImageData) -> Tensor:
    """The chances in the order of `ImageData.by_class`, float64 on the CPU."""
    if chances.shape != (len(data.train),):
        raise InputError(f"chances have the shape {clipped(tuple(chances.shape))}; allowed: ({len(data.train)},), one a training image.")
    found = chances.detach().double().cpu()[data.by_class.cpu()]
    for label in data.classes:
        own = found[data.starts[label] : data.starts[label] + data.counts[label]]
        if not (bool(torch.isfinite(own).all()) and bool((own >= 0).all()) and bool((own > 0).any())):
            raise InputError(f"chances of class {label} are not finite, below 0 or all 0; allowed: numbers of at least 0, one above it.")
    return found
