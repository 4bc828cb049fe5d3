"""One release against its definition, what is refused, and what must survive a kill."""

import dataclasses
import math
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import distill
from apps.privacy import PrivateStatistics
from apps.privacy.accounting import Steps
from apps.privacy.budget import check_left
from apps.privacy.contributions import clipped, gradient_rows
from apps.privacy.entropy import SeededEntropy, SystemEntropy
from apps.privacy.ledger import Ledger
from apps.privacy.networks import drawn_once
from apps.privacy.private_start import private_kmeans
from apps.privacy.release import Plan
from apps.privacy.statement import guarantee
from distill.condensed import CondensedSet, Provenance
from distill.coresets import select
from distill.data import ImageData
from distill.errors import InputError
from distill.experts import ExpertConfig
from distill.fast import Fast
from distill.networks import create
from distill.randomness import generator
from tests.conftest import toy_arrays

pytest.importorskip("opacus")

NETWORK = "ConvNetW32D2"


def public_toy(seed: int = 0, **options: int) -> ImageData:
    """Toy data with a normalisation and a class list that are not computed from them."""
    train, names = toy_arrays(seed, **options), tuple(map(str, range(options.get("classes", 3))))
    return ImageData.from_arrays("toy", *train, *toy_arrays(seed + 1, **options), classes=names, mean=(0.5,), std=(0.5,))


def private(data: ImageData | None = None, **options: object) -> PrivateStatistics:
    settings = {"epsilon": 1.0, "delta": 1e-3, "population": 36, "releases": 5, **options}
    return PrivateStatistics(public_toy() if data is None else data, **settings)  # type: ignore[arg-type]


def draws() -> torch.Generator:
    return generator(0, "test")


def pixels(images: Tensor) -> Tensor:
    return images.flatten(1)


class Recorded:
    """Entropy that keeps what it gave."""

    secure = False

    def __init__(self, keep: float) -> None:
        self.keep, self.normals, self.masks = keep, 0, 0
        self.inner = SeededEntropy(3)

    def uniform(self, count: int) -> np.ndarray:
        self.masks += 1
        self.mask = self.inner.uniform(count)
        return self.mask

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.normals += 1
        self.noise = self.inner.normal(shape)
        return self.noise


@pytest.mark.parametrize("rate", [1.0, 0.4])
def test_a_release_of_features_is_its_definition(rate: float) -> None:
    statistics = private(clip=3.0, sample_rate=rate)
    entropy = statistics._entropy = Recorded(rate)
    found = statistics.class_means(pixels, 4, None, draws())
    data = public_toy()
    (plan,) = statistics.history
    slow = np.zeros((3, 64))
    for index, (image, label) in enumerate(zip(data.train.images, data.train.labels, strict=True)):
        row = (image.double().flatten().numpy() / 255 - 0.5) / 0.5
        if entropy.mask[index] < rate:
            slow[int(label)] += row * min(1.0, 3.0 / np.sqrt((row**2).sum()))
    slow += plan.noise_multiplier * 3.0 * entropy.noise[:, 0]
    assert np.allclose(found.numpy(), slow / (rate * 36 / 3), atol=1e-4)
    assert (entropy.masks, entropy.normals, plan.times, plan.sample_rate) == (1, 1, 1, rate)


def test_a_release_of_the_gradient_of_all_classes_has_the_noise_of_one() -> None:
    statistics = private(clip=0.5, sample_rate=0.6)
    entropy = statistics._entropy = Recorded(0.6)
    network = create(NETWORK, statistics.spec, generator(1, "net"))
    (found,) = statistics.class_gradients(network, 4, None, draws(), together=True)
    data, parameters = public_toy(), list(network.parameters())
    (plan,) = statistics.history
    slow = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    for index in np.flatnonzero(entropy.mask < 0.6):
        image, label = data.normalised("train", torch.tensor([index])), data.train.labels[index : index + 1]
        row = torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(network(image), label), parameters)]).double()
        slow += row * min(1.0, 0.5 / float(row.norm()))
    assert entropy.noise.shape == (1, 1, len(slow))
    noised = slow + plan.noise_multiplier * 0.5 * torch.from_numpy(entropy.noise[0, 0])
    assert torch.allclose(torch.cat([g.flatten() for g in found]).double(), noised / (0.6 * 36), atol=1e-5)
    assert plan.times == 1
    again = statistics.class_gradients(network, 4, None, draws(), together=True)
    assert torch.equal(torch.cat([g.flatten() for g in again[0]]), torch.cat([g.flatten() for g in found]))
    statistics.class_gradients(network, 4, None, draws())
    assert sum(step.times for step in statistics.history) == 2, "each class's gradient is another question"


def test_dcc_asks_for_one_gradient_a_step() -> None:
    """From the first step on, whatever its first phase is: the mechanism of PSG (Chen et al., 2022)."""
    statistics = private(clip=0.5, sample_rate=0.6, releases=6)
    entropy = statistics._entropy = Recorded(0.6)
    settings = {"warm_networks": 1, "warm_updates": 2, "iterations": 2, "outer_steps": 3, "inner_epochs": 1, "initial": "noise"}
    distill.condense(statistics, "dcc", ipc=1, network=NETWORK, **settings)
    assert sum(step.times for step in statistics.history) == entropy.normals == 6
    shapes = [released.shape[0] for released in statistics._ledger._kept.values()]
    assert shapes == [1] * 6


def test_networks_that_come_back_are_released_once_by_dcc() -> None:
    statistics = private(clip=0.5, sample_rate=0.6, releases=3)
    distill.condense(statistics, "dcc", ipc=1, network=drawn_once(NETWORK, 3), iterations=20, outer_steps=1, initial="noise")
    assert sum(step.times for step in statistics.history) <= 3


def test_a_release_of_gradients_is_its_definition() -> None:
    statistics = private(clip=0.5, sample_rate=0.6)
    entropy = statistics._entropy = Recorded(0.6)
    network = create(NETWORK, statistics.spec, generator(1, "net"))
    found = statistics.class_gradients(Fast(network, torch.device("cpu"), 0), 4, None, draws())
    data, parameters = public_toy(), list(network.parameters())
    (plan,) = statistics.history
    slow = [torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64) for _ in range(3)]
    for index in np.flatnonzero(entropy.mask < 0.6):
        image, label = data.normalised("train", torch.tensor([index])), data.train.labels[index : index + 1]
        row = torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(network(image), label), parameters)]).double()
        slow[int(label)] += row * min(1.0, 0.5 / float(row.norm()))
    for position in range(3):
        whole = torch.cat([g.flatten() for g in found[position]]).double()
        noised = slow[position] + plan.noise_multiplier * 0.5 * torch.from_numpy(entropy.noise[position, 0])
        assert torch.allclose(whole, noised / (0.6 * 36 / 3), atol=1e-5)
        assert [g.shape for g in found[position]] == [p.shape for p in parameters]


@pytest.mark.parametrize("name", ["ConvNetW32D2", "LeNet", "MLP", "ConvNetLN"])
@pytest.mark.plain_layers
def test_gradients_of_each_example_are_those_of_opacus(name: str) -> None:
    from opacus import GradSampleModule

    data = public_toy(side=16)
    images, labels = data.normalised("train", torch.arange(0, 36, 5)), data.train.labels[::5]
    network = create(name, data.spec, generator(2, name))
    ours = torch.cat(list(gradient_rows(network, images, labels, chunk=3)))
    state = torch.get_rng_state()
    watched = GradSampleModule(create(name, data.spec, generator(2, name)).train(), loss_reduction="sum", strict=False)
    F.cross_entropy(watched(images.clone().requires_grad_()), labels, reduction="sum").backward()
    theirs = torch.cat([p.grad_sample.flatten(1) for p in watched.parameters()], 1)
    torch.set_rng_state(state)
    assert torch.allclose(ours, theirs, atol=1e-5, rtol=1e-4)


def noise_images(data: ImageData) -> CondensedSet:
    """Three public images a class."""
    images = torch.randn(9, *data.spec.shape, generator=draws())
    return CondensedSet(images, torch.arange(3).repeat_interleave(3), data.spec, provenance=Provenance("initial:noise"))


def test_a_centred_release_is_its_definition() -> None:
    data = public_toy()
    statistics, centre = private(clip=2.0, sample_rate=0.5, centred=True), noise_images(data)
    entropy = statistics._entropy = Recorded(0.5)
    statistics.centre_on(centre)
    found = statistics.class_means(pixels, 4, None, draws())
    (plan,) = statistics.history
    middle = centre.images.flatten(1).double().view(3, 3, -1).mean(1).numpy()
    slow = np.zeros((3, 64))
    for index, (image, label) in enumerate(zip(data.train.images, data.train.labels, strict=True)):
        row = (image.double().flatten().numpy() / 255 - 0.5) / 0.5 - middle[int(label)]
        if entropy.mask[index] < 0.5:
            slow[int(label)] += row * min(1.0, 2.0 / np.sqrt((row**2).sum()))
    slow += plan.noise_multiplier * 2.0 * entropy.noise[:, 0]
    assert np.allclose(found.numpy(), slow / (0.5 * 36 / 3) + middle, atol=1e-4)
    assert torch.equal(found, statistics.class_means(pixels, 4, None, draws()))
    assert statistics.privacy["releases"] == 1
    statistics.centre_on(dataclasses.replace(centre, images=-centre.images))
    statistics.class_means(pixels, 4, None, draws())
    assert statistics.privacy["releases"] == 2  # around another centre it is another question


def test_a_centre_is_public_or_released_and_has_every_class() -> None:
    data = public_toy()
    with pytest.raises(InputError, match="centred features need clip"):
        private(centred=True)
    with pytest.raises(InputError, match="centred features need something to be centred on"):
        private(clip=1.0, centred=True).class_means(pixels, 4, None, draws())
    with pytest.raises(InputError, match="no privacy guarantee: an initial set made by"):
        private(clip=1.0, centred=True).centre_on(select(data, "random", 1, draws()))
    with pytest.raises(InputError, match="centre_on is for statistics made with centred=True"):
        private(clip=1.0).centre_on(noise_images(data))
    with pytest.raises(InputError, match="gradients cannot be centred"):
        private(clip=1.0, centred=True).class_gradients(torch.nn.Identity(), 4, None, draws())
    part = noise_images(data)
    part = dataclasses.replace(part, images=part.images[:6], labels=part.labels[:6])
    with pytest.raises(InputError, match=r"the centre has no image of the classes \[2\]"):
        private(clip=1.0, centred=True).centre_on(part)


def test_clipping_bounds_every_row_and_leaves_short_ones() -> None:
    rows = torch.randn(200, 30, generator=draws()) * torch.logspace(-3, 30, 200)[:, None]
    rows[3, 4], rows[5, 6] = float("nan"), float("inf")
    found = clipped(rows, 2.0)
    assert bool((found.double().norm(dim=1) <= 2.0).all())
    assert bool((found[3] == 0).all())
    assert bool((found[5] == 0).all())
    short = rows.norm(dim=1) < 1.9
    assert int(short.sum()) > 5
    assert torch.equal(found[short], rows[short])


class Silent:
    """Everybody is sampled and there is no noise: the clean sums."""

    secure = False

    def uniform(self, count: int) -> np.ndarray:
        return np.zeros(count)

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        return np.zeros(shape)


@pytest.mark.parametrize("centred", [False, True])
def test_one_example_moves_the_clean_sums_by_at_most_the_clip(centred: bool) -> None:
    """Every neighbour of a data set, with worst-case examples among them."""
    data = public_toy()
    bright = data.train.images.clone()
    bright[7] = 255
    data = dataclasses.replace(data, train=dataclasses.replace(data.train, images=bright))

    def stack(rows: Tensor) -> Tensor:
        part = dataclasses.replace(data, train=data.train.at(rows))
        statistics = private(part, clip=1.5, sample_rate=1.0, centred=centred)
        statistics._entropy = Silent()
        if centred:
            statistics.centre_on(noise_images(data))
        return statistics.class_means(pixels, 4, None, draws()) * 12

    everyone = torch.arange(36)
    whole = stack(everyone)
    moved = [float((whole - stack(everyone[everyone != gone])).norm()) for gone in range(36)]
    assert max(moved) <= 1.5 + 1e-4
    assert max(moved) > 1.4


def test_a_question_is_paid_once_and_other_questions_are_new() -> None:
    statistics = private(sample_rate=1.0)
    first = statistics.class_means(pixels, 4, None, draws())
    assert torch.equal(first, statistics.class_means(lambda images: images.flatten(1), 4, None, draws()))
    assert statistics.privacy["releases"] == 1
    second = statistics.class_means(pixels, 4, lambda images, position: images.flip(3), draws())
    assert statistics.privacy["releases"] == 2
    assert not torch.equal(first, second)


def test_the_budget_ends_with_one_line() -> None:
    statistics = private(releases=2)
    for scale in (1.0, 2.0):
        statistics.class_means(lambda images, scale=scale: scale * images.flatten(1), 4, None, draws())
    with pytest.raises(InputError, match="the privacy budget is spent: 2 of 2 planned releases"):
        statistics.class_means(lambda images: 3 * images.flatten(1), 4, None, draws())
    assert statistics.privacy["epsilon"] <= 1.0


def test_an_empty_sample_is_a_release_of_noise() -> None:
    statistics = private(sample_rate=1e-9, epsilon=5.0)
    found = statistics.class_means(pixels, 4, None, draws())
    assert torch.isfinite(found).all()
    network = create(NETWORK, statistics.spec, generator(1, "net"))
    assert all(torch.isfinite(g).all() for part in statistics.class_gradients(network, 4, None, draws()) for g in part)
    assert statistics.privacy["releases"] == 2


@pytest.mark.parametrize("method", ["dm", "gm", "dsa", "datadam"])
def test_methods_become_private_without_a_changed_line(method: str) -> None:
    statistics = private(releases=None)
    tiny = distill.condense(statistics, method=method, ipc=1, seed=0, network=NETWORK, iterations=2)
    stated = tiny.provenance.dp
    assert stated is not None
    assert stated["epsilon"] == pytest.approx(1.0, abs=1e-3)
    assert stated["releases"] == 2
    assert stated["initial"] == "noise"
    assert tiny.provenance.fingerprint is None
    assert CondensedSet.from_bytes(tiny.to_bytes()).provenance.dp == stated
    assert guarantee(stated).startswith("The maker states (1.00, 1.0e-03)-differential privacy (add or remove one labelled example)")
    assert "2 releases" in guarantee(stated)


def test_two_runs_differ_because_the_noise_is_the_systems() -> None:
    sets = [distill.condense(private(releases=None), method="dm", ipc=1, seed=0, network=NETWORK, iterations=1) for _ in range(2)]
    assert not torch.equal(sets[0].images, sets[1].images)
    seeded = [
        distill.condense(private(releases=None, insecure_seed=1), method="dm", ipc=1, seed=0, network=NETWORK, iterations=1)
        for _ in range(2)
    ]
    assert torch.equal(seeded[0].images, seeded[1].images)
    assert guarantee(seeded[0].provenance.dp).startswith("No privacy guarantee")


def test_no_seed_of_noise_or_sampling_is_written_anywhere(tmp_path: Path) -> None:
    statistics = private(releases=None)
    tiny = distill.condense(
        statistics, method="dm", ipc=1, seed=0, network=NETWORK, iterations=2, checkpoint=tmp_path / "checkpoint.safetensors"
    )
    words = str(tiny.provenance.dp) + "".join(path.read_bytes().decode("latin-1") for path in tmp_path.rglob("*") if path.is_file())
    assert "entropy" not in words
    assert set(tiny.provenance.dp or {}) == {
        *("epsilon", "delta", "adjacency", "mechanism", "releases", "accountant", "history", "epsilon_budget", "clip"),
        *("population", "initial", "insecure", "account", "not_covered"),
    }


def test_networks_that_come_back_share_their_releases() -> None:
    statistics = private(releases=3, clip=1.0)
    network = drawn_once(NETWORK, 3)
    tiny = distill.condense(statistics, "dm", ipc=2, network=network, iterations=20, augmentation="none")
    assert (tiny.provenance.dp or {})["releases"] == 3
    assert tiny.provenance.config["network"].startswith(f"given: 3 times {NETWORK}")


def test_a_stopped_run_goes_on_with_the_same_releases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed after each step in turn: the account ends at the planned number and the images are those of an undisturbed run."""
    import distill.run as runs

    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "checkpoint.safetensors"

    class Killed(Exception):
        pass

    def once(stop_after: int | None) -> CondensedSet:
        statistics = private(releases=None)
        before, made = statistics.class_means, [0]

        def counting(*args: object, **named: object) -> Tensor:
            found = before(*args, **named)  # type: ignore[arg-type]
            made[0] += 1
            if stop_after is not None and made[0] > stop_after:
                raise Killed  # the release is made and kept, the step that wanted it is not done
            return found

        monkeypatch.setattr(statistics, "class_means", counting)
        return distill.condense(statistics, "dm", ipc=1, network=NETWORK, iterations=4, checkpoint=path, resume=True)

    for _ in range(3):
        with pytest.raises(Killed):
            once(1)
    last = once(None)
    assert (last.provenance.dp or {})["releases"] == 4
    assert (last.provenance.dp or {})["epsilon"] <= 1.0
    path.unlink()
    again = once(None)  # from the start, with the kept releases
    assert torch.equal(last.images, again.images)


@pytest.mark.parametrize("moment", ["before the release is written", "between release and account", "after the account"])
def test_ctrl_c_in_the_middle_of_a_step_pays_for_its_release_once(moment: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever was on the disk when the step was left is used again by the same object and by a new one; none is drawn twice."""
    import signal

    from apps.privacy import ledger
    from distill.run import Interrupted

    path, folder, seen = tmp_path / "c", tmp_path / "c-releases", []
    real = {"write_whole": ledger.write_whole, "write_json": ledger.write_json}

    def pressing(name: str, before: bool):
        def write(*arguments: object) -> None:
            third = len(list(folder.glob("release-*"))) == (2 if name == "write_whole" else 3) and not seen
            if third and before:
                seen.append(signal.raise_signal(signal.SIGINT))
            real[name](*arguments)
            if third and not before:
                seen.append(signal.raise_signal(signal.SIGINT))

        return write

    name, before = ("write_whole", moment.startswith("before")) if moment != "after the account" else ("write_json", False)
    monkeypatch.setattr(ledger, name, pressing(name, before))
    statistics = private(releases=None)

    def run() -> CondensedSet:
        return distill.condense(statistics, "dm", ipc=1, network=NETWORK, iterations=5, checkpoint=path, resume=True)

    with pytest.raises(Interrupted):
        run()
    files = {one.name: one.read_bytes() for one in folder.glob("release-*")}
    assert len(files) == 3, "two steps, and the release of the third"
    assert sum(step.times for step in statistics.history) == 3
    last = run()
    assert (last.provenance.dp or {})["releases"] == len(list(folder.glob("release-*"))) == 5
    assert all((folder / name).read_bytes() == content for name, content in files.items())
    statistics = private(releases=None)
    assert torch.equal(distill.condense(statistics, "dm", ipc=1, network=NETWORK, iterations=5, checkpoint=path).images, last.images)
    assert (last.provenance.dp or {}) == statistics.privacy


def test_a_checkpoint_without_its_releases_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    import distill.run as runs

    monkeypatch.setattr(runs, "CHECKPOINT_SECONDS", -1.0)
    path = tmp_path / "checkpoint.safetensors"
    distill.condense(private(releases=None), "dm", ipc=1, network=NETWORK, iterations=2, checkpoint=path)
    shutil.rmtree(tmp_path / "checkpoint-releases")
    with pytest.raises(InputError, match="what was spent is not known"):
        distill.condense(private(releases=None), "dm", ipc=1, network=NETWORK, iterations=2, checkpoint=path, resume=True)


def test_a_ledger_of_other_settings_or_a_damaged_one_is_refused(tmp_path: Path) -> None:
    private(ledger=tmp_path / "a").class_means(pixels, 4, None, draws())
    with pytest.raises(InputError, match="other settings"):
        private(ledger=tmp_path / "a", epsilon=2.0)
    same = private(ledger=tmp_path / "a")
    assert same.privacy["releases"] == 1
    (tmp_path / "a" / "account.json").write_text('{"facts"')
    with pytest.raises(InputError, match=r"account\.json"):
        private(ledger=tmp_path / "a")


def test_a_release_killed_before_its_account_still_counts(tmp_path: Path) -> None:
    statistics = private(ledger=tmp_path / "a")
    statistics.class_means(pixels, 4, None, draws())
    account = (tmp_path / "a" / "account.json").read_bytes()
    first = statistics.class_means(lambda images: 2 * images.flatten(1), 4, None, draws())
    (tmp_path / "a" / "account.json").write_bytes(account)
    again = private(ledger=tmp_path / "a")
    assert again.privacy["releases"] == 2
    assert torch.equal(first, again.class_means(lambda images: 2 * images.flatten(1), 4, None, draws()))


def test_private_experts_count_every_step_and_the_set_says_so(tmp_path: Path) -> None:
    options: dict[str, object] = {"iterations": 2, "experts": 2, "max_start_epoch": 1, "expert_epochs": 1, "syn_steps": 2, "batch_real": 12}
    statistics = private(releases=None, epsilon=8.0, ledger=tmp_path / "a")
    tiny = distill.condense(statistics, "mtt", ipc=1, network=NETWORK, **options)  # type: ignore[arg-type]
    stated = tiny.provenance.dp or {}
    assert stated["releases"] == 2 * 2 * 3  # experts, epochs, steps an epoch at 12 of 36
    assert stated["epsilon"] <= 8.0
    again = private(releases=None, epsilon=8.0, ledger=tmp_path / "a")
    distill.condense(again, "mtt", ipc=1, network=NETWORK, **options)  # type: ignore[arg-type]
    assert again.privacy["releases"] == 12


def test_a_step_of_a_private_expert_is_its_definition_in_any_number_of_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Next to no noise: the sum of clipped gradients over the expected, not the realised, number of examples."""
    from apps.privacy import private_experts

    monkeypatch.setattr(private_experts, "chunk_size", lambda images: 5)
    statistics, data = private(releases=None, epsilon=1e6, clip=0.5), public_toy()
    mask = torch.arange(36) % 3 != 1
    monkeypatch.setattr(statistics, "sample", lambda rate: mask)
    config = ExpertConfig(experts=1, epochs=1, batch_size=36, lr=0.5, network=NETWORK)
    found = statistics.trajectories(config, NETWORK)
    before = found.weights(0, 0)
    network = create(NETWORK, data.spec, generator(0, "nothing"))
    torch.nn.utils.vector_to_parameters(before, network.parameters())
    total = torch.zeros_like(before)
    for index in mask.nonzero().flatten():
        image, label = data.normalised("train", index[None]), data.train.labels[index][None]
        row = torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(network(image), label), list(network.parameters()))])
        total += row * min(1.0, 0.5 / float(row.norm()))
    assert torch.allclose(found.weights(0, 1), before - 0.5 * total / 36, atol=1e-4)


@pytest.mark.parametrize(("schedule", "factors"), [("constant", (1.0, 1.0, 1.0)), ("cosine", (1.0, 0.75, 0.25))])
def test_the_noise_of_private_experts_has_the_stated_size(
    schedule: Literal["constant", "cosine"], factors: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is sampled: three steps of noise of deviation lr sigma C / expected batch each, lr by the schedule."""
    statistics = private(releases=None, epsilon=2.0, clip=2.0)
    monkeypatch.setattr(statistics, "sample", lambda rate: torch.zeros(36, dtype=torch.bool))
    config = ExpertConfig(experts=1, epochs=1, batch_size=12, lr=0.1, network=NETWORK, schedule=schedule)
    found = statistics.trajectories(config, NETWORK)
    moved = (found.weights(0, 1) - found.weights(0, 0)).double()
    (step,) = statistics.history
    size = float(moved.square().mean().sqrt()) / (0.1 * step.noise_multiplier * 2.0 / 12 * math.hypot(*factors))
    assert step.times == 3
    assert abs(size - 1) < 5 / math.sqrt(2 * moved.numel())


# Refusals


def test_real_and_derived_starts_are_refused(digits: ImageData) -> None:
    statistics = PrivateStatistics(digits, epsilon=1.0)
    for kind in ("real", "kmeans", "class_mean", "herding", "kcenter"):
        with pytest.raises(InputError, match="no privacy guarantee: initial images"):
            distill.condense(statistics, "dm", ipc=1, initial=kind, iterations=1)
    chosen = select(digits, "random", 1, draws())
    with pytest.raises(InputError, match="no privacy guarantee: an initial set made by 'coreset:random'"):
        distill.condense(statistics, "dm", ipc=1, initial=chosen, iterations=1)
    for kind in ("real", "kmeans", "noisy"):  # only noise is what the first images may be without a word
        drawn = dataclasses.replace(chosen, provenance=Provenance(f"initial:{kind}"))
        with pytest.raises(InputError, match=f"no privacy guarantee: an initial set made by 'initial:{kind}'"):
            distill.condense(statistics, "dm", ipc=1, initial=drawn, iterations=1)
    claimed = PrivateStatistics(digits, epsilon=1.0, public_start="my own drawings")
    with pytest.raises(InputError, match="no privacy guarantee"):
        distill.condense(claimed, "dm", ipc=1, initial=chosen, iterations=1)
    hidden = dataclasses.replace(chosen, provenance=Provenance("given"))
    with pytest.raises(InputError, match="holds a copy of a private image"):
        distill.condense(claimed, "dm", ipc=1, initial=hidden, iterations=1)
    drawn = dataclasses.replace(chosen, images=chosen.images * 0.3, provenance=Provenance("given"))
    with pytest.raises(InputError, match="name where it is from"):
        distill.condense(statistics, "dm", ipc=1, initial=drawn, iterations=1)
    tiny = distill.condense(claimed, "dm", ipc=1, initial=drawn, iterations=1, network=NETWORK)
    assert (tiny.provenance.dp or {})["initial"] == "public: my own drawings"


def test_a_normalisation_of_ones_own_images_is_refused(digits: ImageData) -> None:
    with pytest.raises(InputError, match="was computed from its images"):
        PrivateStatistics(ImageData.from_arrays("mine", *toy_arrays(), *toy_arrays(1)), epsilon=1.0, delta=1e-3, population=36)
    with pytest.raises(InputError, match="whitening"):
        PrivateStatistics(public_toy().whitened(), epsilon=1.0, delta=1e-3, population=36)


@pytest.mark.plain_layers
def test_batchnorm_and_dropout_are_refused() -> None:
    for method in ("dm", "gm"):
        with pytest.raises(InputError, match="BatchNorm"):
            distill.condense(private(), method, ipc=1, network="ConvNetBN", iterations=1)
    statistics = private()
    state = torch.get_rng_state()
    norm, drop = nn.BatchNorm1d(64), nn.Dropout(0.5)
    for layer in (norm, drop):
        with pytest.raises(InputError, match="change with its batch"):
            statistics.class_means(lambda images, layer=layer: layer(images.flatten(1)), 4, None, draws())
    torch.set_rng_state(state)
    assert statistics.history == []


def test_sizes_that_are_not_public_are_refused() -> None:
    with pytest.raises(InputError, match="no publicly known size"):
        PrivateStatistics(public_toy(), epsilon=1.0)
    with pytest.raises(InputError, match=r"below 1 / population"):
        private(delta=0.1)
    with pytest.raises(InputError, match="epsilon is"):
        private(epsilon=float("nan"))


def test_classes_come_from_the_spec_and_not_from_the_images() -> None:
    data = public_toy().subset([0, 2])
    statistics = private(data)
    assert statistics.classes == (0, 1, 2)
    assert torch.isfinite(statistics.class_means(pixels, 4, None, draws())).all()


# Noise


def test_the_systems_noise_is_normal_and_its_masks_are_poisson() -> None:
    import scipy.stats

    entropy = SystemEntropy()
    noise = entropy.normal((40_000,))
    assert scipy.stats.kstest(noise, "norm").pvalue > 1e-4
    assert scipy.stats.kstest(entropy.uniform(40_000), "uniform").pvalue > 1e-4
    sizes = [int((entropy.uniform(400) < 0.25).sum()) for _ in range(2000)]
    # A binomial's spread: a fixed batch would have none.
    assert scipy.stats.kstest(np.array(sizes) + entropy.uniform(2000), lambda x: _smoothed_binomial(x)).pvalue > 1e-4


def _smoothed_binomial(x: np.ndarray) -> np.ndarray:
    import scipy.stats

    low = np.floor(x)
    return scipy.stats.binom.cdf(low - 1, 400, 0.25) + (x - low) * scipy.stats.binom.pmf(low, 400, 0.25)


def test_the_noise_of_a_release_has_the_stated_size() -> None:
    statistics = private(epsilon=1.0, releases=1, sample_rate=1.0, clip=2.0)
    zeros = statistics.class_means(lambda images: torch.zeros(len(images), 4000), 4, None, draws()) * 12
    (step,) = statistics.history
    sizes = float(zeros.double().square().mean().sqrt()) / (2.0 * step.noise_multiplier)
    assert abs(sizes - 1) < 5 / math.sqrt(2 * zeros.numel())


@pytest.mark.parametrize("centred", [False, True])
def test_the_private_start_is_accounted_and_nearer_than_noise(centred: bool, digits: ImageData) -> None:
    statistics = PrivateStatistics(digits, epsilon=20.0, start_releases=5, start_share=0.9, releases=2, clip=1.0, centred=centred)
    start = private_kmeans(statistics, 2)
    assert statistics.privacy["releases"] == 5
    assert statistics.privacy["epsilon"] < 20.0
    own = start.provenance.dp or {}  # of the set as it is given, without what comes later: all of its rounds
    assert (own["releases"], own["epsilon"], own["history"]) == tuple(statistics.privacy[key] for key in ("releases", "epsilon", "history"))
    means = torch.stack([digits.normalised("train", digits.class_indices(c)).mean(0) for c in range(10)])
    away = torch.cdist(start.images.flatten(1), means.flatten(1))
    assert float((away.argmin(1) == start.labels).float().mean()) >= 0.9
    tiny = distill.condense(statistics, "dm", initial=start, ipc=2, iterations=4, network=drawn_once(NETWORK, 2), augmentation="none")
    stated = tiny.provenance.dp or {}
    assert stated["releases"] == 7
    assert 19 < stated["epsilon"] <= 20.0
    assert "same account" in stated["initial"]
    with pytest.raises(InputError, match="budget is spent"):
        private_kmeans(statistics, 3)
    elsewhere = PrivateStatistics(digits, epsilon=1.0, releases=2)
    with pytest.raises(InputError, match="no privacy guarantee: an initial set made by 'private k-means'"):
        distill.condense(elsewhere, "dm", initial=start, ipc=2, iterations=1)


def stated(**change: object) -> dict[str, object]:
    """A true statement of 40 releases, and what somebody changed in it."""
    statistics = private(releases=40, sample_rate=0.2, epsilon=2.0)
    statistics._ledger.count(statistics._planned(4).noise_multiplier, 0.2, 40)
    return {**statistics.privacy, "insecure": False, **change}


def test_the_sentence_is_the_definition_in_both_directions() -> None:
    """(epsilon, delta) bounds every event's probability by e^epsilon times the other plus delta. That the ratio exceeds e^epsilon with a
    probability of at most delta is another claim, and a false one."""
    from scipy.stats import norm

    from apps.privacy.accounting import gaussian_delta, gaussian_epsilon

    mu = 0.3
    epsilon = gaussian_epsilon(mu, 1e-5)
    events = np.linspace(-10, 10, 4001)
    for first, second in ((norm.sf(events, mu), norm.sf(events)), (norm.cdf(events), norm.cdf(events, mu))):
        assert (first <= np.exp(epsilon) * second + 1e-5 * (1 + 1e-6)).all()
    exceeds = norm.sf(epsilon / mu - mu / 2)  # where the ratio of densities is e^epsilon
    assert exceeds > 10 * gaussian_delta(epsilon, mu)
    text = guarantee(stated())
    assert "times that without it plus 1.0e-03, and the other way round" in text
    assert "except with a probability" not in text
    for part in ("normalisation", "how long", "k examples", "operating system"):
        assert part in text
    assert "not below 1 / 36" in guarantee(stated(delta=0.5))


def test_an_epsilon_that_is_not_that_of_its_history_is_no_guarantee() -> None:
    true = stated()
    assert guarantee(true).startswith("The maker states (")
    assert "(recomputed from the stated history of releases)" in guarantee(true)
    epsilon = float(str(true["epsilon"]))
    forged = guarantee(stated(epsilon=0.5))
    assert forged == f"No privacy guarantee: the set states epsilon 0.50 and its own history of releases gives {epsilon:.2f}."
    assert guarantee(stated(epsilon=3.0)).startswith("The maker states (3.00")  # more than it needs is still true
    noise, rate, times = true["history"][0]  # type: ignore[index]
    assert "gives" in guarantee(stated(history=[[noise / 2, rate, times]]))
    assert "states 40 releases and its history holds 39" in guarantee(stated(history=[[noise, rate, 39]]))
    assert "gives" in guarantee(stated(history=[[noise, rate, 400]], releases=400))


@pytest.mark.parametrize(
    ("history", "words"),
    [
        ("none", "cannot be read"),
        ([[1.0, 0.5]], "cannot be read"),
        ([["1", 0.5, 40]], "no number"),
        ([[1.0, 0.5, 40.5]], "numbers of releases that are none"),
        ([[1e-9, 0.5, 40]], "no epsilon can be computed"),
        ([[1.0, 1e-300, 40]], "no epsilon can be computed"),
        ([[-1.0, 0.5, 40]], "no epsilon can be computed"),
        ([[1.0, 1.5, 40]], "no epsilon can be computed"),
    ],
)
def test_a_history_without_meaning_is_no_guarantee(history: object, words: str) -> None:
    found = guarantee(stated(history=history))
    assert found.startswith("No privacy guarantee")
    assert words in found


def test_a_figure_that_was_not_recomputed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    from apps.privacy import accounting

    assert "no history of releases is given" in guarantee(stated(history=None))
    assert "too long to be recomputed" in guarantee(stated(history=[[50.0, 0.001, 10**7]], releases=10**7))
    true = stated()

    def missing() -> None:
        raise InputError("privacy accounting needs opacus")

    accounting._spent.cache_clear()
    monkeypatch.setattr(accounting, "_opacus", missing)
    assert "not recomputed: privacy accounting needs opacus" in guarantee(true)


@pytest.mark.parametrize(
    "history", [[[0.05, 1e-8, 9000]], [[1e5, 1.0, 9000]], [[0.05, 0.999, 9000]], [[1e5, 0.5, 9000]], [[0.4, 1e-4, 9000]]]
)
def test_histories_at_the_limits_are_recomputed_soon(history: list[list[float]]) -> None:
    """No time is compared: a series without an end would hang here."""
    assert guarantee(stated(history=history, releases=9000)).endswith(".")


def test_statements_from_elsewhere_are_read_with_care() -> None:
    assert guarantee(None).startswith("No privacy guarantee")
    for bad in (
        {"epsilon": 1.0},
        {"epsilon": "1", "insecure": False},
        {"epsilon": 10**400, "delta": 1e-5, "releases": 1, "insecure": False},
    ):
        assert guarantee(bad).startswith("No privacy guarantee")
    good = {"epsilon": 1.0, "delta": 1e-5, "releases": 3, "insecure": False, "adjacency": "x\x1b[2J", "not_covered": [1, None]}
    assert "\x1b" not in guarantee(good)
    assert Steps(1.0, 1.0, 1).times == 1


def test_releases_of_a_kind_are_counted_wherever_they_stand_in_the_history() -> None:
    """A history joins equal neighbours only, so that kinds that alternate have several entries each."""
    one, other = Plan(3, 0.5, 1.0), Plan(3, 0.25, 2.0)
    history = [Steps(1.0, 0.5, 1), Steps(2.0, 0.25, 1), Steps(1.0, 0.5, 1)]
    check_left(one, 1, [one, other], history)
    with pytest.raises(InputError, match="2 of 3 planned releases are made, and 2 more were asked for"):
        check_left(one, 2, [one, other], history)
    with pytest.raises(InputError, match="3 of 3 planned releases are made"):
        check_left(one, 1, [one, other], [*history, Steps(2.0, 0.25, 1), Steps(1.0, 0.5, 1)])


@pytest.mark.parametrize(("epsilon", "delta"), [(0.6, 1e-7), (0.1, 6e-6)])
def test_a_grant_keeps_within_epsilon_and_within_delta(epsilon: float, delta: float) -> None:
    """Either of them alone would be overspent here."""
    ledger = Ledger(None)
    ledger.grant("first", 0.5, 5e-6)
    with pytest.raises(InputError, match="the privacy budget is spent"):
        ledger.check_grant("second", epsilon, delta, (1.0, 1e-5))
    ledger.check_grant("second", 0.5, 5e-6, (1.0, 1e-5))


class Logged(SeededEntropy):
    """Entropy that keeps everything that it gave, in order."""

    def __init__(self) -> None:
        super().__init__(5)
        self.masks: list[np.ndarray] = []
        self.drawn: list[np.ndarray] = []

    def uniform(self, count: int) -> np.ndarray:
        self.masks.append(super().uniform(count))
        return self.masks[-1]

    def normal(self, shape: tuple[int, ...]) -> np.ndarray:
        self.drawn.append(super().normal(shape))
        return self.drawn[-1]


@pytest.mark.parametrize("lr", [0.05, 60.0])
def test_experts_are_dp_sgd_written_out(lr: float) -> None:
    """Steps of one size on noised sums, whatever the loss of the private batch is: with 60 it is several times that of guessing."""
    statistics = private(releases=None, clip=0.5, epsilon=50.0)
    entropy = statistics._entropy = Logged()
    config = ExpertConfig(experts=1, epochs=1, batch_size=12, lr=lr, momentum=0.0, network=NETWORK)
    found = statistics.trajectories(config, NETWORK, progress=False).weights(0, 1)
    (plan,) = statistics.history
    network, data, losses = (
        create(NETWORK, statistics.spec, generator(config.seed, "expert", 0, "weights")),
        public_toy(),
        list[list[float]](),
    )
    parameters = list(network.parameters())
    assert plan.times == len(entropy.masks) == 3
    for step, mask in enumerate(entropy.masks):
        chosen = np.flatnonzero(mask < plan.sample_rate)
        total = [torch.zeros_like(p) for p in parameters]
        losses.append([])
        for index in chosen:
            image, label = data.normalised("train", torch.tensor([index])), data.train.labels[index : index + 1]
            loss = F.cross_entropy(network(image), label)
            losses[-1].append(float(loss.detach()))
            row = torch.autograd.grad(loss, parameters)
            scale = 0.5 / max(0.5, float(torch.cat([g.flatten() for g in row]).norm()))
            total = [a + scale * b for a, b in zip(total, row, strict=True)]
        noise = entropy.drawn[step * len(parameters) : (step + 1) * len(parameters)]
        with torch.no_grad():
            for p, summed, drawn in zip(parameters, total, noise, strict=True):
                p -= lr * (summed + plan.noise_multiplier * 0.5 * torch.from_numpy(drawn).float()) / round(plan.sample_rate * 36)
    assert (np.mean(losses[1]) > 3 * math.log(3)) == (lr > 1)
    expected = torch.cat([p.detach().flatten() for p in parameters])
    assert float((found - expected).norm()) < 1e-3 * float(expected.norm())
