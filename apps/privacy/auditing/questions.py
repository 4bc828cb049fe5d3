"""What the audit asks of private statistics: features, gradients, a k-means start, and experts; and what a release was made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from apps.privacy.private_start import private_kmeans
from apps.privacy.private_statistics import PrivateStatistics
from apps.privacy.release import Plan, Rows
from distill.data import ImageData, Split
from distill.experts import ExpertConfig
from distill.networks import create
from distill.randomness import generator
from distill.spec import DataSpec

SIDE = 16  # of images; features are repeated so that a release of a class has at least 2,304 numbers
REPEATED = 9
CLASSES = ("a", "b", "c", "nobody")
RELEASED = (0, 1, 2)  # the last class is never released: data whose images are all in it make empty releases
POPULATION, CLIP, NETWORK = 24, 0.5, "ConvNetW32D1"
START_RELEASES, IPC = 3, 4

# PrivateStatistics, or what a test plants in its place.
Make = Callable[..., PrivateStatistics]


@dataclass(frozen=True)
class Seen:
    """One release as it passed the door.

    Attributes:
        key: of its question.
        norm: that its rows are clipped to.
        released: the noised sums (K, slots, D), float64.
        noise: the noise multiplier that the account has for it.
        others: what was released for the same question by the statistics of other data.
    """

    key: str
    norm: float
    released: Tensor
    noise: float
    others: tuple[Tensor, ...] = ()


def images_of(labels: list[int], *, broken: Mapping[int, float] | None = None, lengths: Sequence[float] = ()) -> ImageData:
    """Different images (n, 1, 16, 16) with these labels.

    All pixels of the images ``broken`` have the given value, as NaN. The first images have features of these ``lengths`` over the clip.
    """
    spec = DataSpec("audit", 1, SIDE, SIDE, CLASSES, (0.5,), (0.5,), "given", "given")
    images = torch.rand(len(labels), 1, SIDE, SIDE, generator=generator(0, "audit", "images"))
    for place, length in enumerate(lengths):
        found = _rows(2 * images[place : place + 1] - 1).norm()
        images[place] = 0.5 + (images[place] - 0.5) * (length * CLIP / found)
    for place, value in (broken or {}).items():
        images[place] = value
    none = Split(images[:0], torch.zeros(0, dtype=torch.int64))
    return ImageData(spec, Split(images, torch.tensor(labels)), none, none)


def part_of(data: ImageData, chosen: list[int]) -> ImageData:
    """The data with these images only."""
    return ImageData(data.spec, data.train.at(torch.tensor(chosen)), data.validation, data.test)


def turned(images: Tensor, position: int) -> Tensor:
    """An augmentation: one turn for all images of a class."""
    return torch.rot90(images, position + 1, (2, 3))


def _rows(images: Tensor) -> Tensor:
    """(n, D): features of normalised images."""
    return 0.1 * images.flatten(1).repeat(1, REPEATED)


def features(statistics: PrivateStatistics, number: int) -> Tensor:
    """(K, D): released features of augmented images, rows longer and shorter than the clip."""
    return statistics.class_means(lambda images: number * _rows(images), 4, turned, generator(0, "audit"))


def gradients(statistics: PrivateStatistics, number: int) -> Tensor:
    """(K, P): released gradients of augmented images."""
    network = create(NETWORK, statistics.spec, generator(number, "audit"))
    rows = statistics.class_gradients(network, 4, turned, generator(0, "audit"))
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


def gradient(statistics: PrivateStatistics, number: int) -> Tensor:
    """(1, P): the same of all classes together."""
    network = create(NETWORK, statistics.spec, generator(number, "audit"))
    (row,) = statistics.class_gradients(network, 4, turned, generator(0, "audit"), together=True)
    return torch.cat([part.flatten() for part in row])[None]


def start(statistics: PrivateStatistics, number: int) -> Tensor:
    """The images (N, C, H, W) of a k-means start: class means, then rounds with the sum and the count of each cluster."""
    return private_kmeans(statistics, IPC, seed=number).images


Ask = Callable[[PrivateStatistics, int], Tensor]
ANSWERED: dict[str, Ask] = {"features": features, "gradients": gradients, "gradient": gradient}  # one release each
ASKED: dict[str, Ask] = {**ANSWERED, "start": start}


def made(make: Make, data: ImageData, epsilon: float, delta: float, **options: object) -> PrivateStatistics:
    """Statistics for these questions, with releases of all the data."""
    settings = {"releases": 8, "sample_rate": 1.0, "start_releases": START_RELEASES, "population": POPULATION, "clip": CLIP, **options}
    return make(data, epsilon, delta, classes=RELEASED, **settings)


def watch(statistics: PrivateStatistics, others: Sequence[PrivateStatistics] = ()) -> list[Seen]:
    """The list to which every later release of the statistics is added; ``others`` are asked the same at once, as rows may change later."""
    seen: list[Seen] = []
    release = statistics.release

    def noted(key: str, plan: Plan, norm: float, rows: Rows, length: int, slots: int = 1, *, together: bool = False) -> Tensor:
        released = release(key, plan, norm, rows, length, slots, together=together)
        history = statistics.history
        theirs = tuple(each.release(key, plan, norm, rows, length, slots, together=together).double() for each in others)
        seen.append(Seen(key, norm, released.double(), history[-1].noise_multiplier if history else 0.0, theirs))
        return released

    setattr(statistics, "release", noted)  # noqa: B010  # of this object only; a plain assignment to a method is no type
    return seen


def answer_given(statistics: PrivateStatistics, kind: str, releases: Sequence[Tensor]) -> Tensor:
    """What the statistics answer where their releases come out as these, one after the other; they are made all the same."""
    release, left = statistics.release, iter(releases)

    def replaced(key: str, plan: Plan, norm: float, rows: Rows, length: int, slots: int = 1, *, together: bool = False) -> Tensor:
        release(key, plan, norm, rows, length, slots, together=together)
        return next(left).float().clone()

    setattr(statistics, "release", replaced)  # noqa: B010  # as in `watch`
    return ASKED[kind](statistics, 1)


def trained_once(statistics: PrivateStatistics, experts: int, epochs: int) -> Tensor:
    """(experts, epochs, P): the change of each expert's weights in each step of DP-SGD with step size 1, times the number of examples.

    Without examples it is minus the noise of that step.
    """
    config = ExpertConfig(experts=experts, epochs=epochs, lr=1.0, momentum=0.0, batch_size=POPULATION, network=NETWORK)
    found = statistics.trajectories(config, NETWORK, progress=False)
    weights = torch.stack([torch.stack([found.weights(e, t).double() for t in range(epochs + 1)]) for e in range(experts)])
    return (weights[:, 1:] - weights[:, :-1]) * POPULATION
