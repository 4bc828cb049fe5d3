"""`RealStatistics`: the only window through which a matching method sees real data, and its exact form."""

from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from distill import sharding
from distill.data import ImageData
from distill.networks import Factory, has_batchnorm
from distill.spec import DataSpec
from distill.whitening import Whitening

if TYPE_CHECKING:
    from distill.experts import ExpertConfig, Trajectories

# Augments a batch of one class: (images (n, C, H, W), position of the class in `classes`) -> images.
Augment = Callable[[Tensor, int], Tensor]
# Maps normalised images (n, C, H, W) to features (n, D).
Embed = Callable[[Tensor], Tensor]


class RealStatistics(Protocol):
    """What a matching method may ask about real data. A method that asks nothing else can be made private from outside.

    ``spec`` is the data's, ``device`` where tensors are given, ``fingerprint`` tells data sets apart (None where it would tell too much),
    ``whitening`` the transform in whose space images are shown, or None.
    ``classes`` are the class ids that have images; lists and first dimensions below follow their order. ``privacy`` is None or the
    statement that goes into the provenance of a set made from these statistics.
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
    def privacy(self) -> dict[str, Any] | None: ...
    @property
    def whitening(self) -> Whitening | None: ...

    def class_means(
        self, embed: Embed, batch_size: int, augment: Augment | None, generator: torch.Generator, joint: bool = False
    ) -> Tensor:
        """(number of classes, D): the mean feature of a random batch of each class.

        ``joint`` embeds all classes as one batch, as BatchNorm needs it.
        """
        ...

    def class_gradients(
        self, network: nn.Module, batch_size: int, augment: Augment | None, generator: torch.Generator
    ) -> list[list[Tensor]]:
        """For each class, the gradient of the mean cross-entropy of a random batch, one tensor per trainable parameter, in its shape."""
        ...

    def warm_batchnorm(self, network: nn.Module, per_class: int, generator: torch.Generator) -> None:
        """Set a network's BatchNorm running statistics from a small real batch, then put its BatchNorm layers in evaluation mode."""
        ...

    def trajectories(self, config: "ExpertConfig", network: Factory, progress: bool | None = None) -> "Trajectories":
        """Weights of networks trained on the real data, epoch by epoch: all that MTT sees of them."""
        ...

    def initial_images(self, kind: str, ipc: int | Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normalised real images (n, C, H, W) and labels (n,) to start from; ``kind`` is a coreset's name, ``ipc`` may be counts (K,)."""
        ...


class ExactStatistics:
    """Statistics computed from the images themselves, without noise."""

    def __init__(self, data: ImageData) -> None:
        self.data = data
        self.privacy: dict[str, Any] | None = None

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
        """Real images of each class, in the order of `classes`; a private form has no such thing."""
        return tuple(self.data.counts[label] for label in self.classes)

    def batch(self, position: int, size: int, generator: torch.Generator) -> Tensor:
        """Up to ``size`` normalised images of one class, drawn without replacement (all of them when there are fewer)."""
        return self.data.normalised("train", self._drawn(position, size, generator))

    def _drawn(self, position: int, size: int, generator: torch.Generator) -> Tensor:
        indices = self.data.class_indices(self.classes[position])
        order = torch.randperm(len(indices), generator=generator, device=generator.device)[:size]
        return indices[order.to(indices.device)]

    def class_means(
        self, embed: Embed, batch_size: int, augment: Augment | None, generator: torch.Generator, joint: bool = False
    ) -> Tensor:
        """(number of classes, D) without gradients, in chunks that fit the cache; see `RealStatistics.class_means`."""
        with torch.no_grad():
            batches = []
            means: dict[int, Tensor] = {}
            for position in range(len(self.classes)):
                chosen = self._drawn(position, batch_size, generator)
                if not joint and not sharding.mine(position):
                    continue
                images = self.data.normalised("train", chosen)
                images = augment(images, position) if augment else images
                if joint:
                    batches.append(images)
                else:
                    means[position] = _chunked_sum(embed, images) / len(images)
            if joint:
                features = embed(torch.cat(batches))
                return torch.stack([part.mean(0) for part in features.split([len(b) for b in batches])])
            found = next(iter(means.values())).new_zeros((len(self.classes), next(iter(means.values())).shape[0]))
            for position, mean in means.items():
                found[position] = mean
            return sharding.summed([found])[0]

    def class_gradients(
        self, network: nn.Module, batch_size: int, augment: Augment | None, generator: torch.Generator
    ) -> list[list[Tensor]]:
        """One list of gradients a class, shaped like the network's trainable parameters; see `RealStatistics.class_gradients`."""
        gradients = []
        for position, label in enumerate(self.classes):
            chosen = self._drawn(position, batch_size, generator)
            if sharding.mine(position):
                images = self.data.normalised("train", chosen)
                images = augment(images, position) if augment else images
                labels = torch.full((len(images),), label, device=images.device)
                gradients.append(mean_gradient(network, images, labels))
            else:
                gradients.append([])  # nobody looks at another process's classes
        return gradients

    def warm_batchnorm(self, network: nn.Module, per_class: int, generator: torch.Generator) -> None:
        """From ``per_class`` images of each class; see `RealStatistics.warm_batchnorm`."""
        images = torch.cat([self.batch(position, per_class, generator) for position in range(len(self.classes))])
        network.train()
        with torch.no_grad():
            network(images)
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()

    def trajectories(self, config: "ExpertConfig", network: Factory, progress: bool | None = None) -> "Trajectories":
        """Experts trained now, or found in the cache (`distill.experts.train_experts`)."""
        from distill.experts import train_experts  # here, because experts are trained with this file's gradients

        return train_experts(self.data, config, network, progress)

    def initial_images(self, kind: str, ipc: int | Sequence[int], generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Up to ``ipc`` images a class, chosen by a coreset; `InputError` for a name that is none."""
        from distill.coresets import select  # here, because coresets need data that a private statistics object never shows

        chosen = select(self.data, kind, ipc, generator)
        return chosen.images, chosen.labels


def mean_gradient(network: nn.Module, images: Tensor, labels: Tensor) -> list[Tensor]:
    """Gradient of the mean cross-entropy, one tensor per trainable parameter; summed over chunks that stay in the processor's cache.

    Exact, because gradients add up; networks with BatchNorm in training mode see the batch whole.
    """
    parameters = [p for p in network.parameters() if p.requires_grad]
    total: list[Tensor] | None = None
    for part, target in chunks(images, labels, whole=network.training and has_batchnorm(network)):
        loss = F.cross_entropy(network(part), target, reduction="sum") / len(images)
        found = torch.autograd.grad(loss, parameters)
        total = list(found) if total is None else [a.add_(b) for a, b in zip(total, found, strict=True)]
    assert total is not None
    return total


def chunks(images: Tensor, labels: Tensor, whole: bool = False) -> Iterator[tuple[Tensor, Tensor]]:
    """Split a batch into pieces whose activations stay in a CPU's cache (2.0 x measured on a ConvNet-3 of width 128); whole on a GPU."""
    pieces = 1 if whole else piece_count(len(images), chunk_size(images))
    yield from zip(images.tensor_split(pieces), labels.tensor_split(pieces), strict=True)


def chunk_size(images: Tensor) -> int:
    """About 20 images of 32 x 32 on a CPU: 10 MB of first-layer activations at width 128."""
    if images.device.type != "cpu":
        return 2048
    return max(4, 20 * 1024 // (images.shape[-1] * images.shape[-2]))


def piece_count(count: int, size: int) -> int:
    """How many pieces of about ``size`` to cut ``count`` images into; equal ones where possible, because a compiler works by shape."""
    nearest = max(1, round(count / size))
    even = [pieces for pieces in range(1, count + 1) if count % pieces == 0 and 0.6 * size <= count / pieces <= 1.5 * size]
    return min(even, key=lambda pieces: abs(pieces - nearest), default=nearest)


def _chunked_sum(embed: Embed, images: Tensor) -> Tensor:
    total: Tensor | None = None
    for part in images.tensor_split(piece_count(len(images), chunk_size(images))):
        found = embed(part).sum(0)
        total = found if total is None else total + found
    assert total is not None
    return total
