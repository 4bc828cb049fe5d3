"""Checks of the mechanism on empty releases, and bugs planted into it: each must fail the check that is for it.

A release of nobody is noise alone, of which each number must be normal with the deviation that the account states; 2,304 numbers show a
tenth too little. Releases, classes, objects and steps have noise of their own. A release is the sum of what each example adds, which is
its own clipped row whoever else is there.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from torch import Tensor

from apps.privacy import ledger as ledgers
from apps.privacy import private_start, private_statistics
from apps.privacy.accounting import Steps, spent
from apps.privacy.contributions import clipped
from apps.privacy.entropy import SeededEntropy, SystemEntropy
from apps.privacy.ledger import Ledger
from apps.privacy.private_start import private_kmeans
from apps.privacy.private_statistics import PrivateStatistics
from distill.data import ImageData
from distill.experts import ExpertConfig
from distill.networks import create
from distill.randomness import generator
from tests.conftest import toy_arrays

pytest.importorskip("opacus")

NETWORK, CLIP, RATE = "ConvNetW32D2", 0.5, 0.5
LEVEL = 1e-7  # of each check: a right mechanism fails one in millions of runs
SIDE = 32


def data(side: int = 8) -> ImageData:
    """36 images of three classes; the last has values that make its features infinite."""
    made = ImageData.from_arrays(
        "toy", *toy_arrays(0, side=side), *toy_arrays(1, side=side), mean=(0.5,), std=(0.5,), classes=["a", "b", "c"]
    )
    bright = made.train.images.clone()
    bright[-1] = 255
    return dataclasses.replace(made, train=dataclasses.replace(made.train, images=bright))


class Drawn:
    """The object's own noise, and masks of the test: an example is in where ``chosen`` says it (None: by its own coins)."""

    def __init__(self, inner: Any, chosen: Sequence[bool] | None, silent: bool = False) -> None:
        self.inner, self.chosen, self.silent, self.secure = inner, chosen, silent, inner.secure

    def uniform(self, count: int) -> np.ndarray:
        if self.chosen is None:
            return np.asarray(self.inner.uniform(count))
        return np.where(np.asarray(self.chosen), 0.0, 1.0)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape) if self.silent else np.asarray(self.inner.normal(shape))


NOBODY = [False] * 36


def private(chosen: Sequence[bool] | None = NOBODY, silent: bool = False, side: int = 8, **options: Any) -> PrivateStatistics:
    settings = {"epsilon": 2.0, "delta": 1e-3, "population": 36, "releases": 40, "clip": CLIP, "sample_rate": RATE, **options}
    made = PrivateStatistics(data(side), **settings)
    made._entropy = Drawn(made._entropy, chosen, silent)  # type: ignore[assignment]
    return made


def features(statistics: PrivateStatistics, question: float = 1.0) -> Tensor:
    """768 features an image, all longer than the clip; those of the brightest image are infinite. 2,304 numbers a release."""

    def embed(images: Tensor) -> Tensor:
        rows = question * images.flatten(1).repeat(1, 12)
        return torch.where(images.flatten(1).amin(1, keepdim=True) > 0.9, torch.inf, rows)

    return statistics.class_means(embed, 4, None, generator(0, "test"))


def gradients(statistics: PrivateStatistics, question: float = 1.0) -> Tensor:
    network = create(NETWORK, statistics.spec, generator(round(10 * question), "net"))
    rows = statistics.class_gradients(network, 4, None, generator(0, "test"))
    return torch.stack([torch.cat([part.flatten() for part in row]) for row in rows])


Ask = Callable[..., Tensor]


def kept(statistics: PrivateStatistics) -> list[Tensor]:
    """(K, slots, D) float64: the releases, as they are kept."""
    return [released.double() for released in statistics._ledger._kept.values()]


def is_standard_normal(numbers: Tensor) -> None:
    assert len(numbers) >= 2304
    low, high = scipy.stats.chi2.ppf([LEVEL, 1 - LEVEL], len(numbers))
    assert low < float(numbers.square().sum()) < high, f"deviation {float(numbers.square().mean()) ** 0.5:.3f} of what the account states"
    assert abs(float(numbers.mean())) < 6 / len(numbers) ** 0.5


def uncorrelated(*parts: Tensor) -> None:
    for one, other in itertools.combinations([part.flatten().double() for part in parts], 2):
        size = min(len(one), len(other))
        correlation = float(torch.corrcoef(torch.stack([one[:size], other[:size]]))[0, 1])
        assert abs(correlation) < 6 / size**0.5, f"noise that came before: correlation {correlation:.3f}"


# The checks


def noise_has_the_stated_size(ask: Ask) -> None:
    statistics = private()
    ask(statistics)
    (steps,) = statistics.history
    (released,) = kept(statistics)
    assert steps.times == 1
    is_standard_normal(released.flatten() / (steps.noise_multiplier * CLIP))


def noise_is_new(ask: Ask) -> None:
    """In each release, each class and each object."""
    objects = [private(), private()]
    for statistics in objects:
        ask(statistics, 1.0)
        ask(statistics, 2.0)
    uncorrelated(*(row for statistics in objects for released in kept(statistics) for row in released))


def examples_add_up(ask: Ask) -> None:
    """What an example adds is its own row, at most as long as the clip, and nothing where it is not finite."""

    def of(chosen: Sequence[bool]) -> Tensor:
        statistics = private(chosen, silent=True)
        ask(statistics)
        return kept(statistics)[0]

    everyone = of([True] * 36)
    assert bool(torch.isfinite(everyone).all())
    longest = 0.0
    for gone in (0, 13, 35):
        alone, others = of([place == gone for place in range(36)]), of([place != gone for place in range(36)])
        assert torch.allclose(everyone - others, alone, atol=1e-5)
        assert float(alone.norm()) <= CLIP * (1 + 1e-5)
        assert int((alone.flatten(1).norm(dim=1) > 0).sum()) <= 1, "in its own class only"
        longest = max(longest, float(alone.norm()))
    assert longest > 0.9 * CLIP


def sampling_is_as_the_account_says() -> None:
    """24 releases of 36 coins: as many examples as the stated rate, and others in each release."""
    statistics, seen = private(chosen=None), []
    for question in range(24):
        looked: list[bytes] = []

        def embed(images: Tensor, question: int = question, looked: list[bytes] = looked) -> Tensor:
            looked += [image.numpy().tobytes() for image in images]
            return (question + 1.0) * images.flatten(1)

        statistics.class_means(embed, 4, None, generator(0, "test"))
        own = {row.numpy().tobytes() for row in statistics._data.normalised("train", torch.arange(36))}
        seen.append(frozenset(own & set(looked)))
    (steps,) = statistics.history
    assert steps.times == 24
    assert scipy.stats.binomtest(sum(map(len, seen)), 24 * 36, steps.sample_rate).pvalue > LEVEL
    assert len(set(seen)) > 20, "the same examples again"


def account_keeps_what_was_dropped(folder: Path | None) -> None:
    """Five releases of which one fits into memory: all are counted, here and by whoever opens the folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ledgers, "KEEP_BYTES", 3 * 768 * 4)
        statistics = private(ledger=folder)
        for question in range(5):
            features(statistics, question + 1.0)
        assert len(kept(statistics)) == 1
        again = private(ledger=folder) if folder else statistics
        for each in (statistics, again):
            assert sum(step.times for step in each.history) == 5
            assert each.privacy["epsilon"] == spent(each.history, 1e-3).epsilon > spent([each.history[0]._replace(times=4)], 1e-3).epsilon
        features(again, 1.0)
        assert sum(step.times for step in again.history) == 6, "it was dropped, so that it is a new release"


def private_start_is_noised() -> None:
    """Each release of the k-means start, of nobody: class means, then rounds with a count for each cluster."""
    statistics, ipc = private(side=SIDE, start_releases=3), 3
    private_kmeans(statistics, ipc)
    (steps,) = statistics.history
    means, *rounds = kept(statistics)
    assert (steps.times, len(rounds)) == (3, 2)
    norm = 0.25 * SIDE
    is_standard_normal(means.flatten() / (steps.noise_multiplier * 2 * norm))
    for released in rounds:
        is_standard_normal(released.flatten() / (steps.noise_multiplier * norm * 1.04**0.5))
    uncorrelated(*means, *(slot for released in rounds for row in released for slot in row))


def experts_are_noised() -> None:
    """Of nobody, a step of an expert is its noise: of the stated size, and new in each step, expert and object."""
    config = ExpertConfig(experts=2, epochs=2, lr=1.0, batch_size=36, network=NETWORK)
    changes = []
    for _ in range(2):
        statistics = private(sample_rate=1.0, releases=None)
        found = statistics.trajectories(config, None, progress=False)
        weights = [[found.weights(expert, epoch).double() for epoch in range(3)] for expert in range(2)]
        changes += [after - before for row in weights for before, after in itertools.pairwise(row)]
        (steps,) = statistics.history
        assert steps.times == 4
    for change in changes:
        is_standard_normal(change * 36 / (steps.noise_multiplier * CLIP))
    uncorrelated(*changes)


KINDS = {"features": features, "gradients": gradients}
EACH = (noise_has_the_stated_size, noise_is_new, examples_add_up)
CHECKS: dict[str, Callable[[], None]] = {
    **{f"{check.__name__} {kind}": functools.partial(check, ask) for kind, ask in KINDS.items() for check in EACH},
    "sampling": sampling_is_as_the_account_says,
    "dropped": lambda: account_keeps_what_was_dropped(None),
    "start": private_start_is_noised,
    "experts": experts_are_noised,
}


@pytest.mark.parametrize("check", CHECKS)
def test_the_mechanism_passes(check: str) -> None:
    CHECKS[check]()


def test_a_ledger_counts_what_it_dropped_from_the_disk(tmp_path: Path) -> None:
    account_keeps_what_was_dropped(tmp_path)


# Planted bugs


def sums(bug: str) -> Callable[..., Tensor]:
    """One release written again, with a bug."""

    def noised(data: ImageData, classes: Any, mask: Tensor, noise: float, norm: float, rows: Any, *, entropy: Any, **form: Any) -> Tensor:
        total = torch.zeros(len(classes), form["slots"], form["length"], dtype=torch.float64)
        for position, label in enumerate(classes):
            chosen = (mask & (data.train.labels == label)).nonzero().squeeze(1)
            for found, slot in rows(data.normalised("train", chosen), position):
                if bug == "per-chunk clip":
                    row = found * (norm / torch.nan_to_num(found).norm().clamp_min(norm))
                elif bug == "rows that are not finite":
                    row = found * (norm / found.norm(dim=1, keepdim=True)).clamp(max=1.0)
                elif bug == "no clip":
                    row = torch.nan_to_num(found, posinf=0.0)
                else:
                    row = clipped(found, norm)
                total[position].index_add_(0, torch.zeros(len(row), dtype=torch.int64) if slot is None else slot, row.double())
        total = total.sum(0, keepdim=True) if form["together"] else total
        drawn = torch.from_numpy(entropy.normal(tuple(total.shape)))
        if bug == "one noise for all classes":
            drawn = drawn[:1].expand_as(drawn)
        deviation = noise * norm
        if bug == "noise / sqrt(K)":
            deviation /= len(classes) ** 0.5
        elif bug == "sigma without C":
            deviation = noise
        elif bug == "no noise":
            deviation = 0.0
        return (total + deviation * drawn).float()

    return noised


def plant(bug: str, patch: pytest.MonkeyPatch) -> None:
    record, sample, release = Ledger.record, PrivateStatistics.sample, PrivateStatistics.release
    normal, feature_rows, keep = SystemEntropy.normal, private_statistics.feature_rows, Ledger._keep
    if bug == "noise reused in one object":
        once: dict[Any, np.ndarray] = {}
        patch.setattr(SystemEntropy, "normal", lambda self, shape: once.setdefault((id(self), shape), normal(self, shape)))
    elif bug == "public seed":

        class Public(SeededEntropy):
            secure = True

            def __init__(self) -> None:
                super().__init__(0)

        patch.setattr(private_statistics, "SystemEntropy", Public)
    elif bug == "account with twice the noise":
        patch.setattr(Ledger, "record", lambda self, key, made, noise, *rest, **named: record(self, key, made, 2 * noise, *rest, **named))
    elif bug == "account with half the rate":
        half = lambda self, key, made, noise, rate, *rest, **named: record(self, key, made, noise, rate / 2, *rest, **named)  # noqa: E731
        patch.setattr(Ledger, "record", half)
    elif bug == "one mask for all releases":
        masks: dict[float, Tensor] = {}
        patch.setattr(PrivateStatistics, "sample", lambda self, rate: masks.setdefault(rate, sample(self, rate)))
    elif bug == "two augmented views":

        def twice(view: Any, images: Tensor) -> Any:
            yield from feature_rows(view, images)
            yield from feature_rows(view, images.flip(3))

        patch.setattr(private_statistics, "feature_rows", twice)
    elif bug == "a dropped release leaves the account":

        def forgets(self: Ledger, key: str, released: Tensor, *, made: bool = False) -> None:
            before = len(self._kept)
            keep(self, key, released, made=made)
            if len(self._kept) <= before and before:
                *first, last = self._history
                self._history = [*first, Steps(*last[:2], last.times - 1)]

        patch.setattr(Ledger, "_keep", forgets)
    elif bug == "start: class means without noise":

        def silent(self: PrivateStatistics, key: str, plan: Any, *rest: Any) -> Tensor:
            with pytest.MonkeyPatch.context() as inner:
                if key.endswith("means"):
                    inner.setattr(private_statistics, "noised_sums", sums("no noise"))
                return release(self, key, plan, *rest)

        patch.setattr(PrivateStatistics, "release", silent)
    elif bug == "start: class means past the release":

        def past(self: PrivateStatistics, key: str, plan: Any, *rest: Any) -> Tensor:
            if not key.endswith("means"):
                return release(self, key, plan, *rest)
            rows = self._data.train.images.flatten(1).float() / 255
            return torch.stack([rows[self._data.train.labels == label].sum(0)[None] for label in self.classes])

        patch.setattr(PrivateStatistics, "release", past)
    elif bug == "experts: manual_seed(0) a step":
        seeded = lambda self, shape: torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)  # noqa: E731
        patch.setattr(PrivateStatistics, "noise", seeded)
    elif bug == "experts: manual_seed(0) an expert":
        streams: dict[int, torch.Generator] = {}

        def stream(self: PrivateStatistics, shape: tuple[int, ...]) -> Tensor:
            return torch.randn(shape, generator=streams.setdefault(id(self), torch.Generator().manual_seed(0)), dtype=torch.float64)

        patch.setattr(PrivateStatistics, "noise", stream)
    elif bug == "experts: half the noise":
        noise = PrivateStatistics.noise
        patch.setattr(PrivateStatistics, "noise", lambda self, shape: 0.5 * noise(self, shape))
    else:
        patch.setattr(private_statistics, "noised_sums", sums(bug))


FOUND_BY = {
    "noise / sqrt(K)": ("noise_has_the_stated_size features", "noise_has_the_stated_size gradients", "start"),
    "sigma without C": ("noise_has_the_stated_size features", "noise_has_the_stated_size gradients", "start"),
    "no noise": ("noise_has_the_stated_size features", "noise_has_the_stated_size gradients", "start"),
    "one noise for all classes": ("noise_is_new features", "noise_is_new gradients", "start"),
    "noise reused in one object": ("noise_is_new features", "noise_is_new gradients"),
    "public seed": ("noise_is_new features", "noise_is_new gradients", "experts"),
    "account with twice the noise": ("noise_has_the_stated_size features", "noise_has_the_stated_size gradients", "start", "experts"),
    "account with half the rate": ("sampling",),
    "one mask for all releases": ("sampling",),
    "two augmented views": ("examples_add_up features",),
    "per-chunk clip": ("examples_add_up features", "examples_add_up gradients"),
    "no clip": ("examples_add_up features", "examples_add_up gradients"),
    "rows that are not finite": ("examples_add_up features",),
    "a dropped release leaves the account": ("dropped",),
    "start: class means without noise": ("start",),
    "start: class means past the release": ("start",),
    "experts: manual_seed(0) a step": ("experts",),
    "experts: manual_seed(0) an expert": ("experts",),
    "experts: half the noise": ("experts",),
}


@pytest.mark.parametrize(("bug", "check"), [(bug, check) for bug, checks in FOUND_BY.items() for check in checks])
def test_a_planted_bug_fails_its_check(bug: str, check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(bug, monkeypatch)
    with pytest.raises(AssertionError):
        CHECKS[check]()


@pytest.mark.parametrize("check", [name for name in CHECKS if name not in ("dropped", "experts")])
def test_the_release_written_again_without_a_bug_passes(check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_statistics, "noised_sums", sums(""))
    CHECKS[check]()


def test_the_start_has_the_constants_that_the_check_knows() -> None:
    assert (private_start.SPREAD, private_start.COUNT_WEIGHT) == (0.25, 0.2)
