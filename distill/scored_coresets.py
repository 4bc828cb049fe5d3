"""Choosing training images by networks that were trained on them: features, and scores of how hard an image is.

Networks are written as a table, `Scorer`, and trained as experts (`distill.experts`), with the same cache on disk: they are as private as
the data. A score is one number for each training image. What is chosen by which is in `distill.coresets`.
"""

import weakref
from collections.abc import Callable
from typing import Annotated

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.utils import vector_to_parameters

from distill.augment import strategy
from distill.batches import Embed, chunk_size
from distill.configure import config_class
from distill.data import ImageData
from distill.errors import InputError
from distill.experts import ExpertConfig, train_experts
from distill.networks import check_name, create, embed, has_batchnorm, parameter_count
from distill.randomness import generator
from distill.resized_crops import boxes, resized

CANDIDATES, CROPS = 300, 5  # of RDED: images a class, and crops of each (LINs-lab/RDED, scripts)
GRADIENTS = 2**26  # numbers of single images' gradients at a time


@config_class
class Scorer:
    """Networks trained on the real data that features and scores are computed with.

    The defaults are those of `distill.teachers.Teacher`, so that one training serves both. Paul et al. average ten networks and look at
    EL2N after 20 of 200 epochs.

    Attributes:
        network: its name.
        epochs: passes over the real images, at a constant step size.
        networks: how many; scores are means over them, features are those of the first.
        lr: step size of SGD.
        momentum: of SGD.
        batch_size: images per step.
        augmentation: strategy of the training; "auto" is DSA's for the data.
        seed: of weights, order and augmentation.
    """

    network: str = "ConvNet"
    epochs: Annotated[int, Field(ge=1)] = 20
    networks: Annotated[int, Field(ge=1, le=1000)] = 1
    lr: Annotated[float, Field(gt=0)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    batch_size: Annotated[int, Field(ge=1)] = 256
    augmentation: str = "auto"
    seed: Annotated[int, Field(ge=0)] = 0

    def __str__(self) -> str:
        several = f"{self.networks} networks " if self.networks > 1 else ""
        passes = f"{self.epochs} epoch{'s' if self.epochs > 1 else ''}"
        return f"{several}{self.network} of {passes} (lr {self.lr:g}, seed {self.seed})"

    @property
    def training(self) -> ExpertConfig:
        """Its training as that of experts."""
        names = ("epochs", "lr", "momentum", "batch_size", "network", "augmentation", "seed")
        return ExpertConfig(experts=self.networks, **{name: getattr(self, name) for name in names})


def check_scorer(scorer: Scorer) -> None:
    """Raises `InputError` for an unknown network or augmentation."""
    check_name(scorer.network)
    strategy("" if scorer.augmentation == "auto" else scorer.augmentation)


Trained = Callable[[int, int], nn.Module]  # (number of the network, epoch) to the network, frozen, in evaluation mode


def trained(data: ImageData, scorer: Scorer, *, progress: bool | None = False) -> Trained:
    """The networks of a scorer, from the cache or trained now.

    Raises:
        InputError: for an unknown name, and for a network with batch normalisation, whose running statistics are not kept.
    """
    check_scorer(scorer)
    network = create(scorer.network, data.spec, generator(scorer.seed, "scorer"), data.device).eval().requires_grad_(False)
    if has_batchnorm(network):
        raise InputError(
            f"scorer network {scorer.network!r} has batch normalisation, whose running statistics are not kept; take one with instance or "
            "group normalisation, for example ConvNet."
        )
    trajectories = train_experts(data, scorer.training, scorer.network, progress=progress)

    def at(number: int, epoch: int) -> nn.Module:
        vector_to_parameters(trajectories.weights(number, epoch, data.device).clone(), network.parameters())
        return network

    return at


# Scores


def forgetting_events(correct: Tensor) -> Tensor:
    """How often each image is classified rightly and then wrongly (Toneva et al., "An Empirical Study of Example Forgetting", ICLR 2019).

    Args:
        correct: (E, N) bool, whether image n was classified rightly at look e, in order. Here a look is the end of an epoch; the authors
            look when the image is in a batch.

    Returns:
        (N,) counts; an image that was never right has E, which is more than any count: the authors sort it behind all others.
    """
    events = (correct[:-1] & ~correct[1:]).sum(0)
    never = torch.full_like(events, len(correct))
    return torch.where(correct.any(0), events, never)


def error_norms(outputs: Tensor, labels: Tensor) -> Tensor:
    """EL2N: (n,) lengths of softmax(outputs (n, K)) minus the one-hot labels (n,) (Paul, Ganguli and Dziugaite, "Deep Learning on a Data
    Diet", NeurIPS 2021, definition 2.2)."""
    errors: Tensor = outputs.softmax(1) - F.one_hot(labels, outputs.shape[1])
    return errors.square().sum(1).sqrt()


def gradient_norms(network: nn.Module, images: Tensor, labels: Tensor) -> Tensor:
    """GraNd: (n,) lengths of the gradient of each image's cross-entropy with respect to all weights (the same paper, definition 2.1).

    Args:
        network: whose outputs for an image do not depend on other images.
        images: (n, C, H, W), normalised.
        labels: (n,).
    """
    weights = {name: parameter.detach() for name, parameter in network.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        outputs: Tensor = functional_call(network, weights, (image[None],))
        return F.cross_entropy(outputs, label[None])

    gradients = vmap(grad(loss), (None, 0, 0))(weights, images, labels)
    return torch.stack([rows.flatten(1).square().sum(1) for rows in gradients.values()]).sum(0).sqrt()


def _forgetting(network: Trained, number: int, data: ImageData, epochs: int) -> Tensor:
    labels = data.train.labels
    return forgetting_events(torch.stack([_outputs(network(number, epoch), data).argmax(1) == labels for epoch in range(1, epochs + 1)]))


def _el2n(network: Trained, number: int, data: ImageData, epochs: int) -> Tensor:
    return error_norms(_outputs(network(number, epochs), data), data.train.labels)


def _grand(network: Trained, number: int, data: ImageData, epochs: int) -> Tensor:
    one = network(number, epochs)
    size = max(1, min(chunk_size(data.train.images), GRADIENTS // parameter_count(one)))
    parts = torch.arange(len(data.train), device=data.device).split(size)
    return torch.cat([gradient_norms(one, data.normalised("train", part), data.train.labels[part]) for part in parts])


# (networks, number of the network, data, epochs) to the scores (N,) of all training images.
SCORES: dict[str, Callable[[Trained, int, ImageData, int], Tensor]] = {"forgetting": _forgetting, "el2n": _el2n, "grand": _grand}

# Scores of data that are in memory: an evaluation selects the same images for each seed.
_known: "weakref.WeakKeyDictionary[ImageData, dict[tuple[str, Scorer], Tensor]]" = weakref.WeakKeyDictionary()


def scores(data: ImageData, name: str, scorer: Scorer) -> Tensor:
    """(N,) float64: a score of `SCORES` for each training image, the mean over the scorer's networks. Large is hard."""
    known = _known.setdefault(data, {})
    if (name, scorer) not in known:
        networks = trained(data, scorer)
        rows = [SCORES[name](networks, number, data, scorer.epochs).double() for number in range(scorer.networks)]
        known[name, scorer] = torch.stack(rows).mean(0)
    return known[name, scorer]


def _outputs(network: nn.Module, data: ImageData) -> Tensor:
    """(N, K): of all training images."""
    with torch.no_grad():
        parts = torch.arange(len(data.train), device=data.device).split(chunk_size(data.train.images))
        return torch.cat([network(data.normalised("train", part)) for part in parts])


# Features, and crops


def features(data: ImageData, scorer: Scorer) -> Embed:
    """Maps images to the features of the scorer's first network: the input of its last layer."""
    network = trained(data, scorer)(0, scorer.epochs)
    return lambda images: embed(network, images)


def scored_crops(data: ImageData, label: int, count: int, scorer: Scorer, draws: torch.Generator) -> Tensor:
    """RDED's images of one class (Sun et al., CVPR 2024): crops that a network is sure of, (count, C, H, W).

    Of up to 300 random images five square crops each are drawn and resized to the image's size. Of each image the crop with the lowest
    cross-entropy is kept, and of all images those with the lowest. The mean over the scorer's networks counts.

    Args:
        data: the data.
        label: the class.
        count: number of crops, at most one an image.
        scorer: what the network is.
        draws: source of the random choices.
    """
    places = data.class_indices(label)
    order = torch.randperm(len(places), generator=draws, device=draws.device).to(places.device)[: max(CANDIDATES, count)]
    images, networks = data.normalised("train", places[order]), trained(data, scorer)
    height, width = images.shape[-2:]
    crops = [resized(images, boxes(len(images), height, width, draws, ratio=(1.0, 1.0))) for _ in range(CROPS)]
    losses = torch.zeros(CROPS, len(images), device=images.device)
    for number in range(scorer.networks):
        network = networks(number, scorer.epochs)
        losses += torch.stack([_losses(network, part, label) for part in crops]) / scorer.networks
    chosen = losses.amin(0).argsort(stable=True)[:count]
    return torch.stack(crops)[losses.argmin(0)[chosen], chosen]


def _losses(network: nn.Module, images: Tensor, label: int) -> Tensor:
    with torch.no_grad():
        outputs = torch.cat([network(part) for part in images.split(chunk_size(images))])
    return F.cross_entropy(outputs, torch.full((len(images),), label, device=images.device), reduction="none")
